"""A disk without room."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager, suppress

import pytest
from cache_helpers import fork

_NO_MOUNT = 77  # exit code


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


def on_small_disk(folder, size, work):
    """Do some work in another process, for which a folder is a disk of so many bytes."""

    def on_disk():
        if not _mounted(folder, size):
            os._exit(_NO_MOUNT)
        work()

    folder.mkdir(exist_ok=True)
    code = os.waitstatus_to_exitcode(os.waitpid(fork(on_disk), 0)[1])
    if code == _NO_MOUNT:
        pytest.skip("file systems cannot be mounted here")
    assert code == 0


def fill_disk(folder):
    """Leave no byte free on the disk of a folder."""
    for size in (1 << 16, 1):
        with suppress(OSError), (folder / f"pad{size}").open("wb", buffering=0) as file:
            while file.write(bytes(size)):
                pass
    assert os.statvfs(folder).f_bavail == 0


def _mounted(folder, size):
    """Mount a file system in memory that no other process sees, if that is possible."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user, private = 0x20000, 0x10000000, (1 << 14) | (1 << 18)
    if not hasattr(libc, "unshare") or libc.unshare(new_mounts | (new_user if os.getuid() else 0)):
        return False
    options = f"size={size},mode=777".encode()
    return not (
        libc.mount(b"none", b"/", None, private, None)
        or libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, options)
    )
