"""How long an exact search of nearest neighbours takes, and its memory, next to scikit-learn's.

The targets are random, in a file that is memory-mapped. The last line is JSON.

    python -m benchmarks.neighbors
    python -m benchmarks.neighbors --targets 10000000 --only-ours
    python -m benchmarks.neighbors --quick
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from esm2_features import nearest

_ROWS = 100_000


def write_targets(path: Path, n: int, width: int) -> np.ndarray:
    """Write random vectors, some at a time; give them memory-mapped."""
    rng = np.random.default_rng(0)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n, width))
    for start in range(0, n, _ROWS):
        part = out[start : start + _ROWS]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    out.flush()
    return np.load(path, mmap_mode="r")


def main() -> None:
    """Measure, print a table, and end with JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--neighbors", type=int, default=5)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the targets")
    given = parser.parse_args()
    n = given.targets // 100 if given.quick else given.targets
    shape = given.queries, given.width
    queries = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    report: dict[str, float] = {"targets": n, "queries": len(queries)}
    with tempfile.TemporaryDirectory() as folder:
        targets = write_targets(Path(folder) / "targets.npy", n, given.width)
        options = {"n_neighbors": given.neighbors, "metric": "euclidean", "scale": None}
        tracemalloc.start()
        start, cpu = time.perf_counter(), time.process_time()
        ours = nearest(queries, targets, **options)
        report["seconds"] = round(time.perf_counter() - start, 2)
        report["processor_seconds"] = round(time.process_time() - cpu, 2)
        report["peak_megabytes"] = round(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
        if not given.only_ours:
            start = time.perf_counter()
            search = NearestNeighbors(n_neighbors=given.neighbors, algorithm="brute").fit(targets)
            theirs = search.kneighbors(queries, return_distance=False)
            report["scikit_learn_seconds"] = round(time.perf_counter() - start, 2)
            report["agreement"] = float((theirs == ours.indices).mean())
    for name, value in report.items():
        print(f"{name:>22} {value:,}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
