"""VectorStore on disk, found by key."""
