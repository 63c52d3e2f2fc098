"""Tools for chat agents, over the Model Context Protocol (MCP)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esm2_features.agents.app import create_server, run
    from esm2_features.agents.settings import AgentSettings

_HOME_OF_NAME = {"AgentSettings": "settings", "create_server": "app", "run": "app"}

__all__ = ["AgentSettings", "create_server", "run"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used: the SDK of the protocol is optional."""
    if name not in _HOME_OF_NAME:
        raise AttributeError(f"module 'esm2_features.agents' has no attribute {name!r}")
    return getattr(importlib.import_module(f"esm2_features.agents.{_HOME_OF_NAME[name]}"), name)
