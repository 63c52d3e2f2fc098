"""Claims on forward passes, so that only one process or thread computes each.

    <folder>/claims.sqlite3
    └─ claimed  key    blob     what is being computed
                run    text     who computes it: the name of a `RunLock`

A claim only saves work: two owners of one key would compute the same vector twice. So the file may
be lost at any time, is not synchronised with the disk, and where it cannot be used, every run
computes everything. Claims count while their run lives.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache.connection import is_damage, make_private
from esm2_features._cache.file import SqliteConnection, connect, transaction
from esm2_features._cache.locks import patience_of
from esm2_features._cache.run_lock import OtherRuns, RunLock

_T = TypeVar("_T")

_SCHEMA = (
    "create table if not exists claimed(key blob primary key, run text not null) without rowid"
)
_CHUNK = 500  # keys in one query; SQLite may be built to claim no more than 999


class Claims:
    """The claims of one run; a context manager that releases them at the end."""

    busy_seconds: ClassVar[float] = 5.0

    def __init__(self, folder: Path) -> None:
        self._file = folder / "claims.sqlite3"
        self._run: RunLock | None = None
        self._others = OtherRuns(folder)
        self._connection: SqliteConnection | None = None
        self._given_up = False

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._run is not None:
            self._forget("run = ?", [(self._run.name,)])
            self._run.close()
            self._run = None
        self._disconnect()

    def claim(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Claim the keys that no other run has claimed, and return which these are (n,)."""
        return self._look(keys, claim=True)

    def unclaimed(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which keys no other run has claimed (n,)."""
        return self._look(keys, claim=False)

    def release(self, keys: NDArray[np.uint8]) -> None:
        """Release claims: the vectors are stored, or will not be computed."""
        if self._run is not None:
            self._run.use()
            self._forget("key = ? and run = ?", [(key.tobytes(), self._run.name) for key in keys])

    def _look(self, keys: NDArray[np.uint8], *, claim: bool) -> NDArray[np.bool_]:
        wanted = [key.tobytes() for key in keys]
        taken: dict[bytes, bytes] = {}
        try:
            if self._given_up:
                return np.ones(len(wanted), np.bool_)
            if claim and self._run is None:
                make_private(self._file)
                self._run = RunLock(self._file.parent)
            look = partial(self._taken, wanted, claim=claim)
            taken = self._do(look)
            while ended := [run for run in set(taken.values()) if self._others.has_ended(run)]:
                self._delete("cast(run as blob) = ?", [(run,) for run in ended])
                taken = self._do(look)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            self._give_up(error)
            taken = {}
        return np.array([key not in taken for key in wanted], np.bool_)

    def _taken(self, wanted: list[bytes], *, claim: bool) -> dict[bytes, bytes]:
        """Return which run has claimed which key; claim the others."""
        taken: dict[bytes, bytes] = {}
        connection = self._opened()
        own = self._run.name if self._run is not None else ""
        # As bytes, because a damaged one may be anything.
        query = "select key, cast(run as blob) from claimed where key in "
        with transaction(connection):
            for start in range(0, len(wanted), _CHUNK):
                some = wanted[start : start + _CHUNK]
                marks = f"({','.join('?' * len(some))})"
                found = connection.execute(query + marks, some).fetchall()
                taken |= {key: run for key, run in found if run != own.encode()}
            if claim:
                connection.executemany(
                    "insert or replace into claimed values(?, ?)",
                    [(key, own) for key in wanted if key not in taken],
                )
        return taken

    def _do(self, action: Callable[[], _T]) -> _T:
        """Do what needs the file, and wait for others that lock it, but not for long."""

        def on_connection(commit_seconds: float) -> _T:
            self._opened().commit_seconds = commit_seconds
            return action()

        return patience_of(self._file, "write").run(on_connection, self.busy_seconds)

    def _delete(self, where: str, values: list[tuple[object, ...]]) -> None:
        def delete() -> None:
            with transaction(self._opened()) as connection:
                connection.executemany(f"delete from claimed where {where}", values)

        self._do(delete)

    def _forget(self, where: str, values: list[tuple[object, ...]]) -> None:
        """Delete claims of this run; what is not deleted is free when the run has ended."""
        if self._connection is not None:
            with suppress(sqlite3.Error, OSError, UnicodeDecodeError):
                self._delete(where, values)

    def _opened(self) -> SqliteConnection:
        if self._connection is None:
            make_private(self._file)
            connection = connect(self._file)
            try:
                connection.execute("pragma synchronous=OFF")
                connection.execute(_SCHEMA)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: Exception) -> None:
        """Continue this run without claims, and delete a damaged file."""
        self._given_up = True
        if is_damage(error):
            self._disconnect()
            for name in (f"{self._file}-journal", self._file):
                with suppress(OSError):
                    Path(name).unlink()
