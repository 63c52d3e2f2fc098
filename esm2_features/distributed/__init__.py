"""Embed inputs that are larger than memory, in shards; `job` starts and resumes them."""

from esm2_features.distributed.embed import embed_ray_dataset, embed_shards

__all__ = ["embed_ray_dataset", "embed_shards"]
