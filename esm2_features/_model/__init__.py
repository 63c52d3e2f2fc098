"""The network: ESM-2 over packed batches, and what its attention maps are made into."""
