"""Weights of ESM-2: which there are, where they lie, and what a file holds."""

from esm2_features._checkpoints.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
