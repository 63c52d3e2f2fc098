"""How long the maintenance of a large cache takes, and how long others wait for it.

A cache is filled with vectors of 42 specs. Then it is counted, verified, pruned and cleared, while
another process reads 100 vectors and writes one, again and again, with a pause of 0.1 s.

    python benchmarks/cache_maintenance.py
    python benchmarks/cache_maintenance.py --quick
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from esm2_features._cache import Cache
from esm2_features._cache.connection import CacheConnection
from esm2_features._cache.keys import KeyedVectors, Spec

DIM = 192
AT_A_TIME = 5000  # vectors of each spec in one write
POOLINGS = ("mean", "max", "std", "cls", "eos", "parti")
SPECS = [
    Spec("sha256:aa", layer, pooling, "float32", "float32", "mini")
    for layer in range(7)
    for pooling in POOLINGS
]


def fill(folder: Path, size: int) -> None:
    """Write vectors until the cache has so many bytes."""
    cache, rng, n = Cache(folder), np.random.default_rng(0), 0
    while n * len(SPECS) * (4 * DIM + 36) < size:
        names = [f"n{i}" for i in range(n, n + AT_A_TIME)]
        rows = rng.standard_normal((AT_A_TIME, DIM), np.float32)
        for spec in SPECS:
            cache._put_many([KeyedVectors(spec, spec.keys(names), rows)])
        n += AT_A_TIME


def use(folder: Path, stop: Connection) -> None:
    """Read and write until told to stop; send the longest waits and the number of refusals."""
    CacheConnection.rest_seconds = 0.0
    cache, out = Cache(folder), np.zeros((100, DIM), np.float32)
    names, turn = [f"n{i}" for i in range(100)], 0
    reads, writes, refused = [0.0], [0.0], 0
    stop.send("ready")
    while not stop.poll(0.1):
        spec = SPECS[turn % len(SPECS)]
        turn += 1
        for times, what in (
            (reads, lambda spec=spec: cache._get_many(spec, spec.keys(names), out)),
            (writes, lambda turn=turn: cache._put_many([_one(turn)])),
        ):
            start = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                cache._link._warned.clear()  # each refusal is a warning
                what()
            refused += bool(caught)
            times.append(time.perf_counter() - start)
    stop.send((max(reads), max(writes), refused, turn))


def _one(turn: int) -> KeyedVectors:
    return KeyedVectors(SPECS[0], SPECS[0].keys([f"x{turn}"]), np.zeros((1, DIM), np.float32))


def measure(folder: Path, name: str, action: Callable[[], Any]) -> None:
    """Time an action while another process uses the cache, and print a row."""
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=use, args=(folder, there))
    other.start()
    here.recv()
    start = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - start
    here.send("stop")
    read, write, refused, turns = here.recv()
    other.join()
    cells = [name, f"{seconds:.2f}", f"{read:.2f}", f"{write:.2f}", f"{refused} of {2 * turns}"]
    size = Cache(folder).file.stat().st_size
    print(f"| {' | '.join(cells)} | {size / 1e9:.2f} | {result} |", flush=True)


def main() -> None:
    """Fill a cache, and print a table."""
    parser = argparse.ArgumentParser(description="Time the maintenance of a large cache.")
    parser.add_argument("--bytes", type=float, default=5e9, help="size of the cache")
    parser.add_argument("--quick", action="store_true", help="50 MB")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        start = time.perf_counter()
        fill(folder, 50_000_000 if given.quick else int(given.bytes))
        cache = Cache(folder)
        print(f"Filled in {time.perf_counter() - start:.0f} s: {cache.info().rows:,} vectors\n")
        print("| what | s | longest read, s | longest write, s | refused | file, GB | result |")
        print("|---|---|---|---|---|---|---|")
        measure(folder, "info", lambda: cache.info().rows)
        measure(folder, "verify", cache.verify)
        measure(folder, "prune, nothing to remove", cache.prune)
        measure(folder, "prune, a layer", lambda: cache.prune(layer=3))
        half = max(4 << 20, cache.file.stat().st_size // 2)
        measure(folder, "prune, to half", lambda: cache.prune(max_bytes=half))
        measure(folder, "clear", cache.clear)


if __name__ == "__main__":
    main()
