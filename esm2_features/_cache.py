"""Vectors on disk: one SQLite file, one row per key, a checksum in every row.

A cache problem may cost time, but never a wrong vector and never a failed run. A value that fails
its checksum is a miss. A damaged file is set aside, never deleted. A full disk, a read-only folder,
a locked file: one `CacheWarning`, and the results go on. Only a file that is not ours to touch,
another program's or a newer version's, is an error: `CacheVersionError`, from every method.

Never here: model names, what a key is made of, torch.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import platformdirs
from numpy.typing import NDArray

from esm2_features._cache_file import (
    Connection,
    open_file,
    read_vectors,
    transaction,
    write_vectors,
)
from esm2_features.exceptions import CacheWarning, InputError

_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG}

_T = TypeVar("_T")


class CacheInfo(NamedTuple):
    """What a cache holds."""

    path: Path  # the folder
    rows: int  # number of vectors
    bytes: int  # size of the file


class Cache:
    """Vectors on disk, one row per key, each with a checksum.

    A light handle: making one opens nothing, and the first write creates folder and file, for
    their owner only. Threads may share it and forked processes inherit it; a pickle carries the
    path alone. Two are equal if their paths are.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The folder; `default_folder()` if not given. One that exists keeps its permissions.

    Attributes
    ----------
    path, file : Path
        The folder, and the SQLite file in it; absolute.
    """

    busy_seconds: ClassVar[float] = 30.0  # how long to wait while another process has the lock
    rest_seconds: ClassVar[float] = 60.0  # how long to leave a cache alone after a failure: a
    # stuck lock is not waited for in every batch, and a full disk does not end caching for good

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        folder = default_folder() if path is None else Path(path)
        self.path = folder.expanduser().absolute()
        self.file = self.path / "embeddings.sqlite3"
        self._local = _PerThread()
        self._resting_until = {"read": 0.0, "written": 0.0}
        self._warned: dict[tuple[int, str], object] = {}

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return self.path == other.path if isinstance(other, Cache) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> tuple[type[Cache], tuple[str]]:
        return type(self), (str(self.path),)

    def __deepcopy__(self, memo: dict[int, object]) -> Cache:
        return self  # clones of an estimator share the connections, and warn once between them

    def get_many(
        self, keys: Sequence[bytes], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read the vectors of some keys.

        Parameters
        ----------
        keys : sequence of bytes
            The keys, which may repeat.
        dim : int
            Width of a vector; a stored vector of another width is a miss.

        Returns
        -------
        rows : ndarray of shape (len(keys), dim), float32
            The vectors in the order of `keys`; zeros where there is none.
        hit : ndarray of shape (len(keys),), bool
            Whether the vector was found and its checksum holds.
        """
        place: dict[bytes, int] = {}
        for key in keys:
            place.setdefault(key, len(place))
        raw = np.zeros((len(place), 4 * dim), np.uint8)
        hit = np.zeros(len(place), np.bool_)
        if self._attempt("read", lambda link: read_vectors(link, place, raw, hit)):
            message = f"The cache {self.file} holds a damaged value, which is computed again and "
            self._warn("value", message + "overwritten. If this happens often, check the disk.")
        rows = raw.view("<f4").astype(np.float32, copy=False)
        if len(place) == len(keys):
            return rows, hit
        back = [place[key] for key in keys]
        return rows[back], hit[back]

    def put_many(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Write vectors over what is there, in one transaction. Failure is a `CacheWarning`.

        Parameters
        ----------
        keys : sequence of bytes
            The keys; where one repeats, its last row stays.
        rows : ndarray of shape (len(keys), dim), float32
            The vectors.

        Raises
        ------
        ValueError
            If there is not one row for each key.
        """
        if rows.ndim != 2 or len(rows) != len(keys):
            raise ValueError(f"Got rows of shape {rows.shape} but expected ({len(keys)}, dim)")
        if len(keys):
            self._attempt("written", lambda link: write_vectors(link, keys, rows))

    def info(self) -> CacheInfo:
        """Count the vectors and the bytes; a cache that is not there yet has none."""
        count = "select count(*) from vector"
        rows = self._attempt("read", lambda link: int(link.execute(count).fetchone()[0]))
        return CacheInfo(self.path, rows or 0, self.file.stat().st_size if rows is not None else 0)

    def clear(self) -> None:
        """Delete all vectors, and give the space back.

        Raises
        ------
        OSError
            If they cannot be deleted: who asks for it must know, so a warning would not do.
        """

        def delete(connection: Connection) -> None:
            with transaction(connection):
                connection.execute("delete from vector")
            connection.execute("vacuum")

        self._run("cleared", delete)

    def _attempt(self, purpose: str, action: Callable[[Connection], _T]) -> _T | None:
        """Run `action`; where that fails, warn, let the cache rest, and return None."""
        if time.monotonic() < self._resting_until[purpose]:
            return None
        try:
            return self._run(purpose, action)
        except OSError as error:
            self._resting_until[purpose] = time.monotonic() + self.rest_seconds
            message = f"{error}. The results are right all the same, only slower than they could "
            message += "be. Mend the cause, or choose another folder with cache=, or cache=None."
            self._warn(purpose, message)
            return None

    def _run(self, purpose: str, action: Callable[[Connection], _T]) -> _T | None:
        """Run `action` on this thread's connection, twice at most; None if there is no file.

        Whatever the cause of a failure, it is raised as an OSError.
        """
        for last in (False, True):
            try:
                with _FORK_LOCK:
                    connection = self._connection(create=purpose == "written")
                    return None if connection is None else action(connection)
            except (sqlite3.Error, OSError) as error:
                self._drop()
                if last or not self._make_way(error):
                    message = f"The cache {self.file} could not be {purpose}: {_cause(error)}"
                    raise OSError(message) from error
        raise AssertionError("the second try returns or raises")

    def _make_way(self, error: Exception) -> bool:
        """Set the file aside if `error` says that it is damaged; whether to try again."""
        try:
            if self._identity() != self._local.identity:
                return True  # another process has set it aside or replaced it
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in _DAMAGE:
                return bool(code == sqlite3.SQLITE_ERROR)  # no table: emptied while it was open
            if not os.access(self.file, os.W_OK):
                return False  # a reader of a shared cache leaves that to its owner
            aside = f"{self.file}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}"
            # The journal first: left behind, it would be played into the file that comes next.
            with suppress(FileNotFoundError):
                Path(f"{self.file}-journal").rename(f"{aside}-journal")
            self.file.rename(aside)
        except OSError:
            return False
        message = f"The cache {self.file} is damaged: {_cause(error)}. It was set aside as {aside}"
        self._warn(aside, f"{message}, which you may delete, and a new one is begun.")
        return True

    def _warn(self, cause: str, message: str) -> None:
        """Warn once for each cause in each process; setdefault is atomic between threads."""
        token = object()
        if self._warned.setdefault((os.getpid(), cause), token) is token:
            warnings.warn(message, CacheWarning, stacklevel=4)

    def _identity(self) -> tuple[int, int] | None:
        """Device and inode of the file: whether it is still the one that was opened."""
        try:
            status = self.file.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _connection(self, *, create: bool) -> Connection | None:
        """Return this thread's connection to the file that is there now; open it if need be."""
        identity = self._identity()
        if identity is None and create:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only SQLite may open a file that exists: to close it otherwise drops SQLite's locks.
            with suppress(FileExistsError):
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            identity = self._identity()
        held = self._local.connection
        if held and held.pid == os.getpid() and self._local.identity == identity:
            return held
        self._drop()
        self._local.identity = identity
        if identity is None:
            return None
        self._local.connection = connection = open_file(self.file, self.busy_seconds)
        return connection

    def _drop(self) -> None:
        """Forget this thread's connection; close it, or keep it open if a parent opened it."""
        held, self._local.connection = self._local.connection, None
        if held and held.pid == os.getpid():
            held.close()
        elif held:
            _INHERITED.append(held)


# One for each folder, however often it is named: what has been warned of, and which failing disk
# is left alone for a while, is remembered from one call to the next.
_OPEN: dict[Path, Cache] = {}


def open_cache(cache: str | os.PathLike[str] | Cache | None) -> Cache | None:
    """Turn what users pass as ``cache=`` into a `Cache`.

    Parameters
    ----------
    cache : None, "auto", path or Cache
        None is no cache, ``"auto"`` is `default_folder()`, a path is a folder.

    Returns
    -------
    cache : Cache or None

    Raises
    ------
    TypeError, InputError
        If it is something else; if it is the empty string, which would be the current folder.
    """
    if cache is None or isinstance(cache, Cache):
        return cache
    if not isinstance(cache, str | os.PathLike):
        raise TypeError(f'Got cache={cache!r}; pass None, "auto", the path of a folder, or a Cache')
    if cache == "":
        raise InputError('Got cache=""; pass None for no cache, "auto", or the path of a folder')
    opened = Cache(None if cache == "auto" else cache)
    return _OPEN.setdefault(opened.path, opened)


def default_folder() -> Path:
    """Say which folder is "auto": ``ESM2_FEATURES_CACHE``, or else one in the user's caches."""
    chosen = os.environ.get("ESM2_FEATURES_CACHE")
    return Path(chosen or platformdirs.user_cache_path("esm2_features") / "embeddings")


# A fork waits for this lock, and so never copies a transaction that is half done: the child would
# roll it back under its parent's hands. Inherited connections are kept from being closed, as
# SQLite demands.
_FORK_LOCK = threading.RLock()
_INHERITED: list[Connection] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_FORK_LOCK.acquire,
        after_in_parent=_FORK_LOCK.release,
        after_in_child=_FORK_LOCK.release,
    )


class _PerThread(threading.local):
    """What one thread holds: its connection, and which file it was opened for."""

    connection: Connection | None = None
    identity: tuple[int, int] | None = None


def _cause(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "")
    return f"{error} ({name})" if name else str(error)
