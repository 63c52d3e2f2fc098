"""Ways to keep vectors on disk, behind one small interface: the cache, and what else one could do.

The peers are as their manuals would have them written: what fails in them, raises. `lmdb`,
`diskcache` and `h5py` are no dependencies; the classes that need them are left out where they
cannot be imported.

Never here: measuring, breaking.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache
from esm2_features._cache.blocks import crc32
from esm2_features._cache.connection import CacheConnection
from esm2_features._cache.keys import KeyedVectors, Spec

SPEC = Spec(f"sha256:{'0' * 64}", 33, "mean", "float32", model="benchmark")
_CHUNK = 500  # keys in one query
_MOST_BYTES = 1 << 36


class Store(ABC):
    """Vectors in a folder.

    Parameters
    ----------
    folder : Path
        It has to exist.
    patience : float, default=30.0
        Seconds to wait for a lock, where the store can be told.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = "sqlite3"
    page_bytes: ClassVar[int] = 4096
    is_slow: ClassVar[bool] = False  # 0.1 ms a vector and more

    def __init__(self, folder: Path, patience: float = 30.0) -> None:
        self.folder = folder
        self.patience = patience
        self._handles: dict[tuple[int, ...], Any] = {}

    @abstractmethod
    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:
        """Write (n, dim) rows under their (n, 32) keys; whether they are promised to be kept."""

    @abstractmethod
    def get(
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read: (n, dim) rows, zeros where there is none; (n,) whether there is one."""

    @abstractmethod
    def hold(self) -> object:
        """Take the store's lock, for as long as the process lives; None if there is no lock."""

    def close(self) -> None:  # noqa: B027
        """Come to an end in good order, where that makes a difference to the file."""

    def _fill(
        self, found: list[bytes | None], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, hit = np.zeros((len(found), dim), np.float32), np.zeros(len(found), np.bool_)
        for i, value in enumerate(found):
            if value is not None and len(value) == 4 * dim:
                rows[i], hit[i] = np.frombuffer(value, "<f4"), True
        return rows, hit


class Ours(Store):
    """The cache of this library."""

    name = "esm2_features"
    page_bytes = 65536

    def __init__(self, folder: Path, patience: float = 30.0) -> None:
        super().__init__(folder, patience)
        CacheConnection.busy_seconds = patience
        self._cache = Cache(folder)

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        return self._cache._put_many([KeyedVectors(SPEC, keys, rows)])

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows = np.empty((len(keys), dim), np.float32)
        hit = self._cache._get_many(SPEC, keys, rows)
        rows[~hit] = 0
        return rows, hit

    def hold(self) -> object:  # noqa: D102
        return _exclusive(self._cache.file)


class RowPerVector(Store):
    """SQLite with a row, a checksum and an index entry for each vector: the plain design."""

    name = "SQLite, a row per vector"

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        pairs = ((key.tobytes(), row.tobytes()) for key, row in zip(keys, rows, strict=True))
        with self._connection as connection:
            connection.executemany(
                "insert or replace into vector values(?, ?, ?)",
                [(key, _checksum(key, value), value) for key, value in pairs],
            )
        return True

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        wanted = [key.tobytes() for key in keys]
        found: dict[bytes, bytes] = {}
        for start in range(0, len(wanted), _CHUNK):
            some = wanted[start : start + _CHUNK]
            query = f"select key, crc, value from vector where key in ({','.join('?' * len(some))})"
            records = self._connection.execute(query, some).fetchall()
            found |= {k: value for k, crc, value in records if _checksum(k, value) == crc}
        return self._fill([found.get(key) for key in wanted], dim)

    def hold(self) -> object:  # noqa: D102
        return _exclusive(self.folder / "vectors.sqlite3")

    @property
    def _connection(self) -> sqlite3.Connection:
        """One for each process and thread."""
        here = (os.getpid(), threading.get_ident())
        if here not in self._handles:
            file = self.folder / "vectors.sqlite3"
            self._handles[here] = sqlite3.connect(file, timeout=self.patience)
            table = "vector(key blob primary key, crc integer not null, value blob not null)"
            self._handles[here].execute("pragma synchronous=NORMAL")  # as ours
            self._handles[here].execute(f"create table if not exists {table}")
        return self._handles[here]


class RowsInOrder(Store):
    """SQLite with a row and a checksum for each vector, in the order of writing.

    Keys are in a table of their own, and sorted in memory when the store is read, as ours are: the
    quickest of the layouts with rows that we know.
    """

    name = "SQLite, rows in order, keys in memory"

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        pairs = [(key.tobytes(), row.tobytes()) for key, row in zip(keys, rows, strict=True)]
        with self._connection as connection:
            [(last,)] = connection.execute("select coalesce(max(id), 0) from entry").fetchall()
            numbered = list(enumerate(pairs, last + 1))
            connection.executemany(
                "insert into entry values(?, ?)", [(i, key) for i, (key, _) in numbered]
            )
            connection.executemany(
                "insert into vector values(?, ?, ?)",
                [(i, _checksum(key, value), value) for i, (key, value) in numbered],
            )
        return True

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, hit = np.zeros((len(keys), dim), np.float32), np.zeros(len(keys), np.bool_)
        there = self._connection.execute("select key from entry order by id").fetchall()
        known = np.array([key for (key,) in there], "S32")
        order = np.argsort(known)
        wanted = np.frombuffer(np.ascontiguousarray(keys).tobytes(), "S32")
        at = np.searchsorted(known, wanted, sorter=order)
        numbers = order[np.minimum(at, len(known) - 1)]
        present = np.flatnonzero(known[numbers] == wanted)
        present = present[np.argsort(numbers[present])]
        step = max(1, (1 << 24) // (4 * dim))
        for start in range(0, len(present), step):
            some = present[start : start + step]
            ids = (numbers[some] + 1).tolist()
            where = f"between {ids[0]} and {ids[-1]}"
            if ids[-1] - ids[0] != len(ids) - 1:
                where = f"in ({','.join(map(str, ids))}) order by id"
            query = f"select crc, value from vector where id {where}"
            found = self._connection.execute(query).fetchall()
            good = [
                _checksum(keys[i].tobytes(), value) == crc
                for i, (crc, value) in zip(some.tolist(), found, strict=True)
            ]
            rows[some] = np.frombuffer(b"".join(value for _, value in found), "<f4").reshape(
                -1, dim
            )
            hit[some] = good
        return rows, hit

    def hold(self) -> object:  # noqa: D102
        return _exclusive(self.folder / "rows.sqlite3")

    @property
    def _connection(self) -> sqlite3.Connection:
        here = (os.getpid(), threading.get_ident())
        if here not in self._handles:
            file = self.folder / "rows.sqlite3"
            connection = self._handles[here] = sqlite3.connect(file, timeout=self.patience)
            connection.execute("pragma page_size=65536")  # as ours
            connection.execute("pragma synchronous=NORMAL")
            for table in (
                "entry(id integer primary key, key blob)",
                "vector(id integer primary key, crc integer, value blob)",
            ):
                connection.execute(f"create table if not exists {table}")
        return self._handles[here]


class NpyFolder(Store):
    """A file for each vector, as it is written by hand."""

    name = "a .npy file per vector"
    needs = "numpy"
    is_slow = True

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        for key, row in zip(keys, rows, strict=True):
            np.save(self._file(key), row)
        return True

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, hit = np.zeros((len(keys), dim), np.float32), np.zeros(len(keys), np.bool_)
        for i, key in enumerate(keys):
            if (file := self._file(key)).exists():
                rows[i], hit[i] = np.load(file), True
        return rows, hit

    def hold(self) -> object:  # noqa: D102
        return None

    def _file(self, key: NDArray[np.uint8]) -> Path:
        return self.folder / f"{key.tobytes().hex()}.npy"


class Lmdb(Store):
    """LMDB: a tree in memory that is mapped; no checksums."""

    name = needs = "lmdb"

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        with self._environment.begin(write=True) as transaction:
            for key, row in zip(keys, rows, strict=True):
                transaction.put(key.tobytes(), row.tobytes())
        return True

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        with self._environment.begin(buffers=True) as transaction:
            return self._fill([transaction.get(key.tobytes()) for key in keys], dim)

    def hold(self) -> object:  # noqa: D102
        return self._environment.begin(write=True)

    @property
    def _environment(self) -> Any:
        """One for each process: a fork must not use its parent's."""
        here = (os.getpid(),)
        if here not in self._handles:
            self._handles[here] = import_module("lmdb").open(str(self.folder), map_size=_MOST_BYTES)
        return self._handles[here]


class DiskCache(Store):
    """diskcache: SQLite with a write-ahead log and book-keeping; no checksums."""

    name = needs = "diskcache"
    is_slow = True

    def __init__(self, folder: Path, patience: float = 30.0) -> None:
        super().__init__(folder, patience)
        options = {"eviction_policy": "none", "size_limit": _MOST_BYTES}
        self._cache = import_module("diskcache").Cache(str(folder), timeout=patience, **options)

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        with self._cache.transact():
            for key, row in zip(keys, rows, strict=True):
                self._cache.set(key.tobytes(), row.tobytes())
        return True

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return self._fill([self._cache.get(key.tobytes()) for key in keys], dim)

    def hold(self) -> object:  # noqa: D102
        return _exclusive(self.folder / "cache.db")

    def close(self) -> None:  # noqa: D102
        self._cache.close()  # the log goes into the file


class Hdf5(Store):
    """HDF5 with a data set for each vector, as UniProt ships embeddings; no checksums."""

    name = "HDF5, a data set per vector"
    needs = "h5py"
    is_slow = True

    def put(self, keys: NDArray[np.uint8], rows: NDArray[np.float32]) -> bool:  # noqa: D102
        with self._opened("a") as file:
            for key, row in zip(keys, rows, strict=True):
                if (name := key.tobytes().hex()) in file:
                    file[name][...] = row
                else:
                    file[name] = row
        return True

    def get(  # noqa: D102
        self, keys: NDArray[np.uint8], dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        rows, hit = np.zeros((len(keys), dim), np.float32), np.zeros(len(keys), np.bool_)
        if not (self.folder / "vectors.h5").exists():
            return rows, hit
        with self._opened("r") as file:
            for i, key in enumerate(keys):
                if (name := key.tobytes().hex()) in file:
                    rows[i], hit[i] = file[name][:], True
        return rows, hit

    def hold(self) -> object:  # noqa: D102
        return self._opened("a")

    def _opened(self, mode: str) -> Any:
        return import_module("h5py").File(self.folder / "vectors.h5", mode)


def stores() -> list[type[Store]]:
    """List what can be imported, ours first; say what cannot."""
    found: list[type[Store]] = []
    for kind in (Ours, RowPerVector, NpyFolder, Lmdb, DiskCache, Hdf5):
        try:
            import_module(kind.needs)
            found.append(kind)
        except ImportError:
            print(f"{kind.needs} is not installed, and left out.")
    return found


def _checksum(key: bytes, value: bytes) -> int:
    return crc32(value, crc32(key))


def _exclusive(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("begin exclusive")
    return connection
