"""From views to numbers: `runner` leads the way, `local` and `remote` are the backends."""
