"""From sequences to numbers: batches, devices, extractors, and the cache between them."""
