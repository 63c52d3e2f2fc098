"""What becomes of a folder of shards when things go wrong, and whether anybody notices.

Jobs are killed, started twice, and stopped by full disks; shards and records are damaged; inputs
become shorter. After each fault, the folder is read, the command is repeated, and the folder is
read again, by this library and as Parquet. Whatever touches a folder runs in a process of its own.

    python benchmarks/shard_faults.py
    python benchmarks/shard_faults.py --quick

Ends with exit code 1 if a wrong row was read, a row was lost, or a fault was not noticed. POSIX
only. A killed process leaves its writes to the operating system; a power cut is not tried here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401 - once, before processes are forked
from cache_faults import Child

from esm2_features import Engine, distributed, open_embeddings
from esm2_features.exceptions import Esm2FeaturesError

SIZE, SHARDS = 5, 8
PATIENCE = 60.0  # seconds without a word, after which a process is said to hang
COUNTS = {"kill": 50, "pair": 20, "flip": 200, "cut": 50, "record": 200, "short": 20, "disk": 20}
QUICK = {"kill": 3, "pair": 2, "flip": 8, "cut": 3, "record": 10, "short": 2, "disk": 2}
LETTERS = list("ACDEFGHIKLMNPQRSTVWY")
Vectors = dict[str, Any]

# --------------------------------------------------- what runs in a process


def embed(
    source: Path, out: Path, *, limit: int | None = None, stop: int = 0, **options: Any
) -> Iterator[dict]:
    """Run a job, with a limit of the size of files, or killed after some shards."""
    if limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    lines: list[str] = []

    def kill_at(line: str) -> None:
        lines.append(line)
        if len(lines) == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"model": "mini", "shard_size": SIZE, "progress": kill_at} | options
    try:
        report = distributed.embed_shards(source, out, **options)
        yield {"computed": report.computed, "complete": report.complete}
    except (Esm2FeaturesError, OSError) as error:
        yield {"refused": f"{type(error).__name__}: {error}"}


def read(out: Path) -> Iterator[dict]:
    """Read all rows by this library, and count those that other programs read."""
    import pyarrow.parquet as pq

    try:
        x = open_embeddings(out)
        yield {"rows": (x.ids.tolist(), x[:])}
    except (Esm2FeaturesError, OSError) as error:
        yield {"unread": str(error)}
        return
    files = [path for path in out.glob("*.parquet") if path.name[0] not in "._"]
    yield {"parquet": sum(pq.read_metadata(path).num_rows for path in files)}


# --------------------------------------------------------------- scenarios


class Bench:
    """One scenario: its folders, random numbers, and what it came to."""

    def __init__(self, folder: Path, trials: int, seed: list[int]) -> None:
        self.folder, self.trials, self.rng = folder, trials, np.random.default_rng(seed)
        self.wrong = self.lost = self.not_noticed = self.not_healed = 0
        self.crashes: list[str] = []
        texts = ["".join(self.rng.choice(LETTERS, self.rng.integers(8, 30))) for _ in range(40)]
        self.sequences = {f"p{k}": text for k, text in enumerate(texts[: SIZE * SHARDS])}
        self.source = folder / "a.fasta"
        self.write(self.sequences)
        self.expected = {layer: self.vectors(layer) for layer in (6, 3)}
        self.made = folder / "made"
        self.run(embed, self.source, self.made)

    def write(self, sequences: dict[str, str]) -> None:
        """Write the input."""
        records = (f">{name}\n{text}\n" for name, text in sequences.items())
        self.source.write_text("".join(records))

    def vectors(self, layer: int) -> Vectors:
        """Compute what a folder should hold."""

        def compute() -> Iterator[dict]:
            engine = Engine("mini", layers=layer, cache=None)
            yield {"rows": engine.embed(list(self.sequences.values()))}

        [rows] = Child(compute).finish(PATIENCE).all("rows")
        return dict(zip(self.sequences, rows, strict=True))

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Child:
        """Run in a process of its own, and note what is no answer: crashes and hangs."""
        child = Child(function, *args, **options).finish(PATIENCE)
        self.crashes += [text for text in child.all("crash") if text != "SIGKILL"]
        return child

    def killed(self, seconds: float) -> None:
        """Run a job, and kill it after some time."""
        child = Child(embed, self.source, self.folder / "out")
        child.process.join(seconds)
        child.process.kill()
        child.finish(PATIENCE)

    def look(self, layer: int = 6) -> bool:
        """Read the folder; whether it could be read. What is wrong or missing is counted."""
        child = self.run(read, self.folder / "out")
        for ids, rows in child.all("rows"):
            expected = self.expected[layer]
            there = {name: row for name, row in zip(ids, rows, strict=True) if name in expected}
            self.wrong += len(ids) - len(there)
            self.wrong += sum(
                not np.allclose(row, expected[name], atol=1e-4) for name, row in there.items()
            )
            self.lost += len(set(self.sequences) - set(ids))
            self.wrong += sum(abs(n - len(ids)) for n in child.all("parquet"))
        return bool(child.all("rows"))

    def finish(self, layer: int = 6) -> int:
        """Repeat the command, read the folder, and return how many shards were computed."""
        child = self.run(embed, self.source, self.folder / "out")
        if child.all("refused") or not self.look(layer):
            self.not_healed += 1
        return sum(child.all("computed"))


def kill(bench: Bench, out: Path) -> None:
    """Kill a job three times, and finish it."""
    for _ in range(3):
        bench.killed(bench.rng.uniform(0.02, 0.5))
    bench.finish()
    bench.not_noticed += len(list(out.rglob(".*.part")))


def pair(bench: Bench, out: Path) -> None:
    """Start the same job twice; both must end well."""
    jobs = [Child(embed, bench.source, out) for _ in range(2)]
    for job in jobs:
        job.finish(PATIENCE)
        bench.crashes += job.all("crash") + [text[:70] for text in job.all("refused")]
    bench.look()


def flip(bench: Bench, out: Path) -> None:
    """Flip a bit of a shard, half of them in its footer."""
    shutil.copytree(bench.made, out)
    path = bench.rng.choice(sorted(out.glob("*.parquet")))
    content = bytearray(path.read_bytes())
    start = 4 if bench.rng.integers(2) else len(content) - 3000
    content[bench.rng.integers(start, len(content))] ^= 1 << bench.rng.integers(8)
    path.write_bytes(content)
    bench.look()
    bench.not_noticed += bench.finish() == 0


def cut(bench: Bench, out: Path) -> None:
    """Cut a shard off."""
    shutil.copytree(bench.made, out)
    path = bench.rng.choice(sorted(out.glob("*.parquet")))
    content = path.read_bytes()
    path.write_bytes(content[: bench.rng.integers(len(content))])
    bench.look()
    bench.not_noticed += bench.finish() == 0


def record(bench: Bench, out: Path) -> None:
    """Damage or delete a record; then ask for another layer, and for the same."""
    shutil.copytree(bench.made, out)
    names = [f"{word}.json" for word in ("job", "job", "a.source", "a-00003.done")]
    path = out / "_manifest" / bench.rng.choice(names)
    content = bytearray(path.read_bytes())
    how = bench.rng.integers(5)
    if how == 0:
        content.clear()
    elif how == 1:
        content[:] = bench.rng.bytes(len(content))
    elif how == 2:
        del content[bench.rng.integers(len(content)) :]
    elif how == 3:
        content[bench.rng.integers(len(content))] ^= 1 << bench.rng.integers(8)
    path.write_bytes(content)
    if how == 4:
        path.unlink()
    bench.look()
    # What people do after "Delete it, and repeat the command", with another command.
    other = bench.run(embed, bench.source, out, layers=3)
    if other.all("refused") and "Delete it" in other.all("refused")[0]:
        path.unlink()
        other = bench.run(embed, bench.source, out, layers=3)
    if other.all("computed"):  # it must then hold the layer that was asked for
        bench.look(layer=3)
        return
    bench.finish()


def short(bench: Bench, out: Path) -> None:
    """Interrupt a job, and let its input become shorter."""
    whole = bench.sequences
    bench.run(embed, bench.source, out, stop=int(bench.rng.integers(3, SHARDS)))
    bench.sequences = dict(list(whole.items())[: 2 * SIZE])
    bench.write(bench.sequences)
    job = bench.run(embed, bench.source, out)
    if not job.all("refused"):  # it had been read to its end: it has changed, and is refused
        bench.look()
    bench.sequences = whole
    bench.write(whole)


def disk(bench: Bench, out: Path) -> None:
    """Limit the size of files, and finish the job without the limit."""
    bench.run(embed, bench.source, out, limit=int(bench.rng.integers(100, 6000)))
    bench.finish()


SCENARIOS = {
    "kill -9 of a job": kill,
    "two jobs at once": pair,
    "bit flip in a shard": flip,
    "truncated shard": cut,
    "damaged or deleted record, another layer": record,
    "input became shorter": short,
    "disk full": disk,
}


def main() -> int:
    """Parse, try everything, print a table."""
    parser = argparse.ArgumentParser(description="Break folders of shards, and count the harm.")
    parser.add_argument("--quick", action="store_true", help="a few trials of each")
    parser.add_argument("--scale", type=float, default=1, help="multiplies the trials")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    counts = QUICK if given.quick else COUNTS
    passed, notes = True, list[str]()
    print(
        "| scenario | trials | wrong rows read | rows lost | not noticed | not healed | failures |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for number, (scenario, run) in enumerate(SCENARIOS.items()):
        trials = max(1, int(counts[run.__name__] * given.scale))
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), trials, [given.seed, number])
            for _ in range(trials):
                run(bench, bench.folder / "out")
                shutil.rmtree(bench.folder / "out", ignore_errors=True)
        harm = bench.wrong, bench.lost, bench.not_noticed, bench.not_healed, len(bench.crashes)
        print(f"| {scenario} | {trials} | {' | '.join(map(str, harm))} |", flush=True)
        reasons = [f"{n} x {why}" for why, n in Counter(bench.crashes).most_common(3)]
        notes += [f"- {scenario}: {'; '.join(reasons)}"] if reasons else []
        passed = passed and not any(harm)
    print("\nFailures:\n" if notes else "\nNothing failed.")
    print("\n".join(notes))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
