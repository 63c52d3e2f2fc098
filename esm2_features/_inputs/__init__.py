"""From inputs to views: `containers`, `fasta` read, `residues` checks cells, `policy` decides."""
