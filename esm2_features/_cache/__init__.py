"""Vectors on disk, found by key."""
