"""What people pass: containers, files, residues, regions, and what they become."""
