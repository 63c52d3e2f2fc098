"""The server, which answers in the JSON of the hosted ESM-2 API."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esm2_features.server.app import create_app, run
    from esm2_features.server.settings import Settings

_HOME_OF_NAME = {"Settings": "settings", "create_app": "app", "run": "app"}

__all__ = ["Settings", "create_app", "run"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used, so that making a token needs no FastAPI."""
    if name not in _HOME_OF_NAME:
        raise AttributeError(f"module 'esm2_features.server' has no attribute {name!r}")
    return getattr(importlib.import_module(f"esm2_features.server.{_HOME_OF_NAME[name]}"), name)
