"""From inputs to views: `containers` and `fasta` read, `residues` checks cells, `policy` decides."""
