"""How worker threads learn that their run is called off: signals reach the main thread only."""

from __future__ import annotations

from contextvars import ContextVar
from threading import Event

CALLED_OFF: ContextVar[Event | None] = ContextVar("CALLED_OFF", default=None)
"""Set once nobody waits for this thread's passes: they raise KeyboardInterrupt before a block."""
