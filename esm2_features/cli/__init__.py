"""The command line."""

from esm2_features.cli.app import main

__all__ = ["main"]
