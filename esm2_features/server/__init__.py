"""The server, which speaks the hosted API's JSON: `create_app` makes it, `run` runs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esm2_features.server.app import create_app, run
    from esm2_features.server.settings import Settings

_HOME = {"Settings": "settings", "create_app": "app", "run": "app"}

__all__ = ["Settings", "create_app", "run"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used: whoever makes a token needs no FastAPI."""
    if name not in _HOME:
        raise AttributeError(f"module 'esm2_features.server' has no attribute {name!r}")
    return getattr(importlib.import_module(f"esm2_features.server.{_HOME[name]}"), name)
