"""A disk without room."""

from __future__ import annotations

from contextlib import contextmanager

import pytest


@contextmanager
def no_room(size=100):
    """Let no file grow beyond so many bytes, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="limits are POSIX")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
