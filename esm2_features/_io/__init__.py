"""Files of features, arrays, variants and pictures."""
