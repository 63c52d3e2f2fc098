"""Locks of SQLite files: how long a process waits for others, and file systems without locks."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from esm2_features._cache.file import FORK_LOCK

try:
    import fcntl
except ImportError:  # Windows, whose file systems all have locks
    fcntl = None  # type: ignore[assignment]

_T = TypeVar("_T")

_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# What SQLite reports if a lock fails otherwise than by being taken. ENOLCK is SQLITE_BUSY to it.
_LOCK_FAILED = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_RDLOCK,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
}
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two tries
_LONGEST_COMMIT = 1.0  # seconds, the longest time for which a commit may hold up `fork`
_FAR = 1 << 62  # a byte that SQLite never locks

# Why locks fail in a folder, or None where they work; it is found out once in a process.
_FAULTS: dict[Path, str | None] = {}


class NoLocksError(OSError):
    """The file system of a file has no locks."""


class Patience:
    """The time that this process waits for one file while others lock it.

    It is spent once. Then each call tries once, and the first that succeeds restores it. Who cannot
    do what is `easier`, as to read, cannot do this either, and has no more patience for it.
    """

    def __init__(self, file: Path, easier: Patience | None = None) -> None:
        self._file = file
        self._easier = easier
        self._own_seconds = self._counted_until = 0.0

    @property
    def _spent(self) -> float:
        return max(self._own_seconds, self._easier._spent if self._easier else 0.0)

    def run(self, action: Callable[[float], _T], seconds: float) -> _T:
        """Run an action, and repeat all of it while the file is locked; wait outside of FORK_LOCK.

        The action gets the seconds that its commit may wait, for which `fork` waits as well.
        """
        pause = _SHORTEST_PAUSE
        since = time.monotonic()
        while True:
            if fault := _FAULTS.get(self._file.parent):
                raise NoLocksError(_no_locks(self._file, fault))
            left = max(0.0, seconds - self._spent)
            try:
                with FORK_LOCK:
                    result = action(min(left, _LONGEST_COMMIT))
            except sqlite3.Error as error:
                self._spend(since)
                since = self._counted_until
                if is_lock_trouble(error) and _lock_fault(self._file, again=self._spent >= seconds):
                    continue  # which raises
                if not is_locked(error) or self._spent >= seconds:
                    raise
            else:
                self._restore()
                return result
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _spend(self, since: float) -> None:
        """Count the time since a try began, but no second for two threads."""
        now = time.monotonic()
        self._own_seconds += max(0.0, now - max(since, self._counted_until))
        self._counted_until = now

    def _restore(self) -> None:
        self._own_seconds = 0.0
        if self._easier is not None:
            self._easier._restore()


_PATIENCE: dict[tuple[Path, str], Patience] = {}


def patience_of(file: Path, use: str) -> Patience:
    """Return the patience of this process for a file and a use of it, as to read or to write."""
    easier = patience_of(file, "read") if use == "write" else None
    return _PATIENCE.setdefault((file, use), Patience(file, easier))


def is_locked(error: BaseException | None) -> bool:
    """Whether SQLite reports that somebody else has a lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED


def is_lock_trouble(error: BaseException) -> bool:
    """Whether SQLite reports a lock that is taken, or that fails."""
    return is_locked(error) or getattr(error, "sqlite_errorcode", 0) in _LOCK_FAILED


def _lock_fault(file: Path, *, again: bool) -> str | None:
    """Return why locks fail in the folder of a file, or None if they work; look once, or again."""
    folder = file.parent
    if folder not in _FAULTS or again:
        _FAULTS[folder] = _probe(file)
    return _FAULTS[folder]


def _probe(file: Path) -> str | None:
    """Lock a byte of a file that SQLite does not use; return why that fails, or None."""
    if fcntl is None:
        return None
    # To close the file drops SQLite's locks, which nobody in this process has meanwhile.
    with FORK_LOCK:
        try:
            probe = os.open(file, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.lockf(probe, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _FAR)
            fcntl.lockf(probe, fcntl.LOCK_UN, 1, _FAR)
        except OSError as error:
            taken = (errno.EAGAIN, errno.EACCES, errno.EINTR)
            return None if error.errno in taken else os.strerror(error.errno or errno.ENOLCK)
        finally:
            os.close(probe)
    return None


def _no_locks(file: Path, fault: str) -> str:
    return (
        f"the file system of {file.parent} has no locks ({fault}), without which processes would "
        "damage each other's work. This process goes on without it, and keeps nothing. Choose a "
        "folder on a local disk: cache=, or ESM2_FEATURES_CACHE"
    )
