"""Nearest neighbours of vectors, and the labels that they transfer."""
