"""Claims on forward passes, so that only one process or thread computes each.

    <folder>/claims.sqlite3
    └─ claim   key    blob     what is being computed
               owner  text     host, process and a random word; the word tells threads apart
               until  real     when the lease ends, in seconds since 1970

A claim only saves work: two owners of one key would compute the same vector twice.
So the file may be lost at any time, is not synchronised with the disk, and where it cannot be
used, every run computes everything. A lease is much longer than a batch takes; the claims of a
process of this machine that has died are free at once.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache.connection import is_damage, make_private
from esm2_features._cache.file import FORK_LOCK, SqliteConnection, connect, transaction

_SCHEMA = """
create table if not exists claim(
    key blob primary key, owner text not null, until real not null) without rowid
"""
_CHUNK = 500  # keys in one query; SQLite may be built to claim no more than 999


class Claims:
    """The claims of one run; a context manager that releases them at the end."""

    # how long a claim holds if its owner is on another machine, or hangs
    lease_seconds: ClassVar[float] = 600.0
    busy_seconds: ClassVar[float] = 5.0

    def __init__(self, folder: Path) -> None:
        self._file = folder / "claims.sqlite3"
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        self._connection: SqliteConnection | None = None
        self._given_up = False

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._delete("delete from claim where owner = ?", [(self._owner,)])
        self._disconnect()

    def claim(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Claim the keys that no other run has claimed, and return which these are (n,)."""
        return self._look(keys, claim=True)

    def unclaimed(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which keys no other run has claimed (n,)."""
        return self._look(keys, claim=False)

    def release(self, keys: NDArray[np.uint8]) -> None:
        """Release claims: the vectors are stored, or will not be computed."""
        mine = [(key.tobytes(), self._owner) for key in keys]
        self._delete("delete from claim where key = ? and owner = ?", mine)

    def _look(self, keys: NDArray[np.uint8], *, claim: bool) -> NDArray[np.bool_]:
        wanted = [key.tobytes() for key in keys]
        taken: set[bytes] = set()
        if not self._given_up:
            try:
                with FORK_LOCK, transaction(self._opened()) as connection:
                    taken = self._of_others(connection, wanted)
                    if claim:
                        # Also where nothing is to be written, so that a file which cannot be
                        # is noticed here: nobody could claim over what it says is claimed.
                        connection.execute("delete from claim where until <= ?", (time.time(),))
                        until = time.time() + self.lease_seconds
                        connection.executemany(
                            "insert or replace into claim values(?, ?, ?)",
                            [(key, self._owner, until) for key in wanted if key not in taken],
                        )
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                self._give_up(error)
                taken = set()
        return np.array([key not in taken for key in wanted], np.bool_)

    def _of_others(self, connection: SqliteConnection, wanted: list[bytes]) -> set[bytes]:
        """Return the keys that another run has claimed, unless its process has ended."""
        now, alive, taken = time.time(), dict[bytes, bool](), set[bytes]()
        for start in range(0, len(wanted), _CHUNK):
            some = wanted[start : start + _CHUNK]
            query = (
                f"select key, owner, until from claim where key in ({','.join('?' * len(some))}) "
                "and typeof(owner) = 'text' and typeof(until) = 'real'"
            )
            for key, owner, until in connection.execute(query, some).fetchall():
                # A lease that ends much too late was written by a clock that is wrong.
                latest = now + 2 * self.lease_seconds
                if owner == self._owner.encode() or not now < until <= latest:
                    continue
                if owner not in alive:
                    alive[owner] = _may_be_alive(owner.decode(errors="replace"))
                if alive[owner]:
                    taken.add(key)
        return taken

    def _delete(self, query: str, values: Sequence[tuple[object, ...]]) -> None:
        if self._connection is None:
            return
        # What is not deleted is free when its lease ends, or this process.
        free = suppress(sqlite3.Error, UnicodeDecodeError)
        with free, FORK_LOCK, transaction(self._connection) as connection:
            connection.executemany(query, values)

    def _opened(self) -> SqliteConnection:
        if self._connection is None:
            make_private(self._file)
            self._connection = connect(self._file, self.busy_seconds)
            self._connection.execute("pragma synchronous=OFF")
            self._connection.execute(_SCHEMA)
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


def _may_be_alive(owner: str) -> bool:
    """Whether the process that made a claim may still be running."""
    host, _, rest = owner.partition(" ")
    pid = rest.partition(" ")[0]
    # On Windows, to send a process no signal is to end it.
    if host != socket.gethostname() or not pid.isdecimal() or os.name == "nt":
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        pass
    return True
