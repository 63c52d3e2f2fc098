"""Vectors that a server computes."""
