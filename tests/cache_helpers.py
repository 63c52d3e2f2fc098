"""Numbered sequences, with vectors that tell by every number in them whose they are."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import traceback
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

from esm2_features._cache import Cache
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features.exceptions import CacheWarning

POSIX = pytest.mark.skipif(os.name != "posix", reason="forks, signals and limits are POSIX")
DIM = 320
NOBODY = 65534
SPEC = Spec("sha256:46f0", 6, "mean", "float32", model="tiny")
CLS = Spec("sha256:46f0", 6, "cls", "float32", model="tiny")
HALF = Spec("sha256:46f0", 6, "mean", "float32", dtype="float16", model="tiny")
OTHER = Spec("sha256:beef", 0, "mean", "bfloat16", model="other")


def keys_of(numbers, spec=SPEC):
    return spec.keys(map(str, numbers))


def rows_of(numbers, dim=DIM):
    ramp = np.arange(dim, dtype=np.float32) * np.float32(1e-3)
    return np.asarray(numbers, np.float32)[:, None] + 1 + ramp


def part_of(numbers, spec=SPEC, dim=DIM):
    return KeyedVectors(spec, keys_of(numbers, spec), rows_of(numbers, dim))


def filled(folder, numbers, spec=SPEC, dim=DIM, **options):
    cache = Cache(folder, **options)
    cache._put_many([part_of(numbers, spec, dim)])
    return cache


def found(cache, numbers, spec=SPEC, dim=DIM):
    """Read vectors; those that are found must be right, the others untouched. How many."""
    expected = rows_of(numbers, dim).astype(spec.dtype).astype(np.float32)
    out = np.full_like(expected, -7)
    hit = cache._get_many(spec, keys_of(numbers, spec), out)
    np.testing.assert_array_equal(out[hit], expected[hit])
    assert (out[~hit] == -7).all()
    return int(hit.sum())


@contextmanager
def raw(cache):
    """The file, past the cache."""
    connection = sqlite3.connect(cache.file, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def keys_by_block(cache):
    """The keys in each block, by its number."""
    with raw(cache) as file:
        blocks = file.execute("select id, keys from block order by id").fetchall()
    return {number: [keys[i : i + 32] for i in range(0, len(keys), 32)] for number, keys in blocks}


def stored_keys(cache):
    return [key for keys in keys_by_block(cache).values() for key in keys]


def flip(cache, table, column, place=0):
    """Change one bit of a blob in the first row of a table."""
    with raw(cache) as file:
        query = f"select rowid, {column} from {table} order by rowid limit 1"
        number, value = file.execute(query).fetchone()
        value = bytearray(value)
        value[place] ^= 1
        file.execute(f"update {table} set {column} = ? where rowid = ?", (bytes(value), number))


@contextmanager
def caches_warn():
    """Collect the messages of the warnings, all of which must be of the cache."""
    messages = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    assert all(warning.category is CacheWarning for warning in caught)
    messages.extend(str(warning.message) for warning in caught)


def fork(work, seconds=60):
    """Do some work in another process; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks that have threads
        pid = os.fork()
    if pid == 0:
        signal.alarm(seconds)  # a child that hangs shall fail, not hang the test
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return pid


def succeeded(pid):
    return os.waitpid(pid, 0)[1] == 0


def as_another_user():
    """Give up the rights of root, whom read-only does not bind."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
