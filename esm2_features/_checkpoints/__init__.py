"""Weights of ESM-2: known models, downloads, and the formats of their files."""

from esm2_features._checkpoints.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
