"""PooledVectors that a server computes."""
