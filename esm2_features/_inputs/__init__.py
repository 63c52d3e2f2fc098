"""From what users pass to views: `policy` checks, `containers` and `fasta` read, `views` writes."""
