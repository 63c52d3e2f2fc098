"""Which runs live: a file for each, locked while it lives, and touched every few seconds.

The operating system lets go of the lock of a process that has ended, whichever container or machine
it was on, and whether or not its parent has noticed. A run that is stopped keeps its lock, as does
one on a machine that was lost without its file server noticing, but neither touches its file. Who
waits for such a run compares two looks at the file by a clock of its own: the clocks of two
machines are never compared, and process numbers, which containers share, are not used.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from esm2_features._cache.connection import mode_in

_NAME = re.compile(rb"[0-9a-f]{32}")

# Locks that a parent took: in its children they are kept, because to release them would be to
# release the parent's.
_INHERITED: list[FileLock] = []

# Folders in which this process has looked for what killed runs left behind.
_TIDIED: set[Path] = set()


class RunLock:
    """The file of one run; to be closed."""

    touch_seconds: ClassVar[float] = 5.0
    # A run that hangs is not waited for for ever.
    idle_seconds: ClassVar[float] = 600.0

    def __init__(self, folder: Path) -> None:
        if folder not in _TIDIED:
            _TIDIED.add(folder)
            for path in folder.glob("claims-*.lock"):
                remove_if_left(path)
        self.name = uuid.uuid4().hex
        self._path = _path_of(folder, self.name)
        self._pid = os.getpid()
        self._lock = _lock_of(self._path)
        try:
            self._lock.acquire(timeout=0)
        except OSError as error:  # such as of a file system without locks
            with suppress(OSError):
                self._path.unlink()
            raise OSError(f"{self._path} cannot be locked: {error}") from error
        self._last_use = time.monotonic()
        self._is_closed = threading.Event()
        threading.Thread(target=self._touch, name="esm2_features-run-lock", daemon=True).start()

    def use(self) -> None:
        """Note that the run goes on."""
        self._last_use = time.monotonic()

    def close(self) -> None:
        """Remove the file."""
        if self._pid != os.getpid():
            _INHERITED.append(self._lock)
            return
        self._is_closed.set()
        with suppress(OSError):
            self._path.unlink()
        self._lock.release()

    def _touch(self) -> None:
        while not self._is_closed.wait(self.touch_seconds):
            if time.monotonic() - self._last_use < self.idle_seconds:
                with suppress(OSError):
                    os.utime(self._path)


class OtherRuns:
    """The other runs of a folder, as one of them sees them."""

    silent_seconds: ClassVar[float] = 60.0

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[bytes, tuple[int, float]] = {}  # when touched, and since when we know

    def has_ended(self, name: bytes) -> bool:
        """Whether a run has ended, or gives no sign of life."""
        if not _NAME.fullmatch(name):
            return True
        path = _path_of(self._folder, name.decode())
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        if remove_if_left(path):
            return True
        if self._seen.get(name, (0, 0.0))[0] != touched:
            self._seen[name] = touched, time.monotonic()
        return time.monotonic() - self._seen[name][1] > self.silent_seconds


def remove_if_left(path: Path) -> bool:
    """Remove the file of a run if nobody has locked it; return whether that was so."""
    lock = _lock_of(path)
    try:
        with lock.acquire(timeout=0):
            path.unlink(missing_ok=True)
            return True
    except Timeout:
        return False
    except OSError:  # somebody else's, or a file system without locks
        return False


def _lock_of(path: Path) -> FileLock:
    # In a folder to which its group may write, the group can see who lives.
    return FileLock(path, mode=mode_in(path.parent), thread_local=False)


def _path_of(folder: Path, name: str) -> Path:
    return folder / f"claims-{name}.lock"
