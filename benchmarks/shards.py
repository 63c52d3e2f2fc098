"""What shards cost: throughput with Ray's actors, Ray's part of it, and memory over a long input.

    python -m benchmarks.shards
    python -m benchmarks.shards --memory-sequences 1000000
    python -m benchmarks.shards --quick --no-ray

Random peptides of 10 to 40 residues and the model `mini`. Every run is a process of its own, and
rates are taken from the end of the first shards to that of the last, so that starting (torch, the
model, Ray) is told by itself. The last line of output is JSON.

Never here: what breaks, which is in the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUN = """
import json, os, sys, time

def resident():
    with open("/proc/self/status") as file:
        lines = [line for line in file if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024

def main():
    source, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    begin = time.perf_counter()
    from esm2_features import distributed
    from esm2_features._environment import keep_few_products, limit_openmp_spinning
    keep_few_products()  # as the command does
    limit_openmp_spinning()
    ends, memory = [], []
    def note(line):
        ends.append(time.perf_counter() - begin)
        memory.append(resident())
    report = distributed.embed_shards(source, out, progress=note, **options)
    assert report.complete and not report.failed
    print(json.dumps({"ends": ends, "memory": memory, "sequences": report.sequences}))

if __name__ == "__main__":
    main()
"""


def peptides(path: Path, n: int) -> Path:
    """Write n random peptides."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(n):
            text = "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(10, 40)))
            file.write(f">p{i}\n{text}\n")
    return path


def run(
    source: Path, threads: int | None = None, model: str = "mini", **options: Any
) -> dict[str, Any]:
    """Embed a file in a process of its own, with so many threads, or as many as there are."""
    variables = dict(os.environ)
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        words = [str(source), f"{folder}/out", json.dumps({"model": model, **options})]
        script = Path(folder) / "run.py"
        script.write_text(RUN)
        done = subprocess.run(
            [sys.executable, str(script), *words], env=variables, capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rate(found: dict[str, Any], size: int, workers: int) -> float:
    """Sequences per second after each worker has made a shard."""
    ends = found["ends"]
    return (len(ends) - workers) * size / (ends[-1] - ends[workers - 1])


def throughput(source: Path, size: int, *, with_ray: bool) -> dict[str, Any]:
    """Compare a plain run with one and two actors."""
    cases: dict[str, tuple[int, dict[str, Any]]] = {
        "plain, all cores": (1, {}),
        "plain, 1 thread": (1, {"threads": 1}),
    }
    if with_ray:
        cases |= {
            "ray, 1 worker, 1 thread": (1, {"engine": "ray", "workers": 1, "threads": 1}),
            "ray, 1 worker, all cores": (1, {"engine": "ray", "workers": 1}),
            "ray, 2 workers, 1 thread each": (2, {"engine": "ray", "workers": 2}),
        }
    table = {}
    for name, (workers, options) in cases.items():
        found = run(source, shard_size=size, **options)
        table[name] = {
            "sequences_per_second": round(rate(found, size, workers), 1),
            "seconds_to_the_first_shard": round(found["ends"][0], 2),
        }
        print(f"{name:32} {table[name]['sequences_per_second']:9.1f} sequences/s", flush=True)
    return table


def overhead(source: Path, size: int, *, with_ray: bool) -> dict[str, float]:
    """Time of a shard that has next to nothing in it."""
    table = {}
    for name, options in {"plain": {}, "ray": {"engine": "ray"}}.items():
        if name == "plain" or with_ray:
            found = run(source, threads=1, shard_size=size, **options)
            table[name] = round(1e3 * size / rate(found, size, 1), 2)
            print(f"a shard of {size} sequences, {name}: {table[name]:.2f} ms", flush=True)
    return table


def memory(source: Path, model: str) -> dict[str, Any]:
    """Resident memory of a plain run, after some of its shards."""
    found = run(source, model=model)
    megabytes = found["memory"]
    at = {f"after {k + 1} shards": round(megabytes[k], 1) for k in _spread(len(megabytes))}
    print(f"resident over {found['sequences']} sequences, MB: {at}", flush=True)
    return {
        "sequences": found["sequences"],
        "megabytes": at,
        "largest_megabytes": round(max(megabytes), 1),
        "seconds": round(found["ends"][-1], 1),
    }


def _spread(n: int) -> list[int]:
    """Choose a few numbers below n, ever further apart."""
    return sorted({k for k in (0, 1, 3, 7, 15, 31, 63, 127, 255, n - 1) if k < n})


def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=20_480, help="for throughput")
    parser.add_argument("--memory-sequences", type=int, default=200_000)
    parser.add_argument("--memory-model", default="mini", help="name or path")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--quick", action="store_true", help="smoke size; the figures mean nothing")
    options = parser.parse_args(words)
    n, size, tiny, long = options.sequences, 1024, 1600, options.memory_sequences
    if options.quick:
        n, size, tiny, long = 96, 16, 48, 96
    with_ray = not options.no_ray
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        report = {
            "load_before": os.getloadavg()[0],
            "throughput": throughput(peptides(place / "a.fasta", n), size, with_ray=with_ray),
            "shard_milliseconds": overhead(peptides(place / "b.fasta", tiny), 8, with_ray=with_ray),
            "memory": memory(peptides(place / "c.fasta", long), options.memory_model),
            "load_after": os.getloadavg()[0],
        }
    print(json.dumps(report))
    return report


if __name__ == "__main__":
    main()
