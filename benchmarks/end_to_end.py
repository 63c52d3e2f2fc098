"""Where the time and the memory of a whole job go: what is not the forward pass, and what it takes.

Three questions. Of a `transform` that computes and caches everything: how much is the network
itself, and how much everything around it? Of a fresh process: how long until the first features are
there? Of more and more peptides: does the memory grow by more than the array that was asked for?

    python -m benchmarks.end_to_end
    python -m benchmarks.end_to_end --save --plot
    python -m benchmarks.end_to_end --quick

Weights are random, sequences too. The device is the CPU, where a call returns when its work is
done.

Never here: what belongs to which part (_ledger.py), how a result reads (_end_to_end_report.py), how
fast the forward pass is (scaling.py), other libraries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import esm2_features  # whose names import what they need when they are used
from benchmarks._end_to_end_report import plot, table
from benchmarks._ledger import booked, seconds_of_wrapping
from benchmarks.machine import Stopwatch, describe
from benchmarks.workloads import workload, write_checkpoint

RESULTS = Path(__file__).with_name("results")

Result = dict[str, Any]


# ----------------------------------------------------------------- transform


def transforming(checkpoint: Path, peptides: Sequence[str], folder: Path) -> Result:
    """Transform and cache peptides, and say where the time goes.

    Parameters
    ----------
    checkpoint, folder : Path
        The cache of the run is made in the folder.
    peptides : sequence of str

    Returns
    -------
    record : dict
        ``seconds`` and ``foreign`` of the run, ``parts`` (seconds of each), and ``calls`` and
        ``wrapping``, how many calls were timed, and the seconds that this took.
    """
    # Weights are loaded, and the products of a full batch prepared.
    _transformer(checkpoint, None).transform(peptides[:100])
    transformer = _transformer(checkpoint, folder / "cache")
    with Stopwatch() as watch, booked() as ledger:
        transformer.transform(peptides)
    calls = sum(ledger.calls.values())
    return {
        "seconds": sum(ledger.seconds.values()),
        "foreign": watch.foreign,
        "parts": dict(ledger.seconds),
        "calls": calls,
        "wrapping": calls * seconds_of_wrapping(),
    }


def _transformer(checkpoint: Path, cache: Path | None) -> esm2_features.ESM2Transformer:
    return esm2_features.ESM2Transformer(checkpoint, cache=cache, device="cpu")


# ---------------------------------------------------------------- cold start

_FIT = """
import sys
from esm2_features import ESM2Transformer
ESM2Transformer("mini", cache=sys.argv[1], device="cpu").fit_transform(sys.argv[2:])
"""
# In this order: what is cached at last was computed by the process before.
COLD_STARTS = {
    "python -c pass": "pass",
    "import esm2_features": "import esm2_features",
    "import ESM2Transformer": "from esm2_features import ESM2Transformer",
    "fit_transform, empty cache": _FIT,
    "fit_transform, all cached": _FIT,
}
_SAY = "\nimport sys; print('torch' in sys.modules, flush=True)"


def cold_starts(folder: Path, rounds: int) -> list[Result]:
    """Time fresh processes, in turn, from their start until their result is there.

    Parameters
    ----------
    folder : Path
        For the caches.
    rounds : int

    Returns
    -------
    records : list of dict
        ``what``, ``seconds`` of each round, and whether ``torch`` was imported.
    """
    peptides = workload("peptides", 50 * 20, seed=1)[:20]
    records = {what: {"what": what, "seconds": [], "torch": False} for what in COLD_STARTS}
    for turn in range(rounds):
        for what, code in COLD_STARTS.items():
            seconds, has_torch = cold_start(code, [str(folder / f"cold{turn}"), *peptides])
            records[what]["seconds"].append(seconds)
            records[what]["torch"] = has_torch
    return list(records.values())


def cold_start(code: str, arguments: Sequence[str]) -> tuple[float, bool]:
    """Run code in a process of its own: seconds until it is done, and whether torch is there."""
    command = [sys.executable, "-c", code + _SAY, *arguments]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        seconds = time.perf_counter() - start  # ending is not part of it
    if process.returncode or said not in ("True", "False"):
        raise RuntimeError(f"A fresh process ended with {process.returncode}, and said {said!r}.")
    return seconds, said == "True"


# -------------------------------------------------------------------- memory

WAYS = ("transform", "transform, cached", "stream", "stream, cached")
"""Ways to embed. None of the peptides is in the cache before."""


def memory(checkpoint: Path, file: Path, counts: Sequence[int], at_once: int = 1) -> list[Result]:
    """Measure what embedding more and more peptides takes, each time in a process of its own.

    Parameters
    ----------
    checkpoint : Path
        Of a tiny network, so that it is the library's own memory that is seen.
    file : Path
        Peptides, one a line.
    counts : sequence of int
        How many of them.
    at_once : int, default=1
        Processes at the same time.

    Returns
    -------
    records : list of dict
        ``way``, ``peptides``, ``peak`` (bytes above what a warm process has) and ``array``
        (bytes of the result). Empty where the system does not tell (it is read from ``/proc``).
    """
    if not Path("/proc/self/clear_refs").exists():
        return []
    with ThreadPoolExecutor(at_once) as threads:
        given = itertools.product(WAYS, counts)
        return list(threads.map(lambda one: _memory_of(*one, checkpoint, file), given))


def _memory_of(way: str, count: int, checkpoint: Path, file: Path) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) if "cached" in way else None
        # A process that starts from nothing: what another has freed may not be given back.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak, array = pool.apply(peak_memory, (way, checkpoint, file, count, cache))
            pool.close()  # and not killed, so that it can clean up behind it
            pool.join()
    print(f"{way}, {count:,} peptides: {(peak - array) / 1e6:.1f} MB", flush=True)
    return {"way": way, "peptides": count, "peak": peak, "array": array}


def peak_memory(
    way: str, checkpoint: Path, file: Path, count: int, cache: Path | None
) -> tuple[int, int]:
    """Embed peptides, and say by how much the memory of this process rises.

    Parameters
    ----------
    way : str
        One of `WAYS`.
    checkpoint, file : Path
    count : int
        Of the peptides in the file.
    cache : Path or None

    Returns
    -------
    peak : int
        Bytes. What is given to `transform` is there before; what is streamed is read on the way.
    array : int
        Bytes of the result, if it is one array.
    """
    _warm_up(checkpoint, file)
    with file.open() as lines:
        peptides: Iterator[str] = (line.rstrip() for line in itertools.islice(lines, count))
        if way.startswith("transform"):
            given, transformer = list(peptides), _transformer(checkpoint, cache)
            before = _peak_begins()
            array = transformer.transform(given).nbytes
        else:
            engine = esm2_features.Engine(checkpoint, cache=cache, device="cpu")
            before, array = _peak_begins(), 0
            for _ in engine.stream(peptides):
                pass
        return _resident("VmHWM") - before, array


def _warm_up(checkpoint: Path, file: Path) -> None:
    """Load weights, start threads, map libraries: what a process does once is not counted."""
    with file.open() as lines:
        few = [line.rstrip() for line in itertools.islice(lines, 200)]
    esm2_features.Engine(checkpoint, cache=None, device="cpu").embed(few)


def _peak_begins() -> int:
    """Let the peak begin anew, and say where."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(field: str) -> int:
    """Read a size of this process. Unlike ru_maxrss, it leaves out what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


# ---------------------------------------------------------------------- main


def run(
    model: str,
    n_peptides: int,
    rounds: int,
    starts: int,
    counts: Sequence[int],
    at_once: int = 1,
) -> Result:
    """Measure everything.

    Parameters
    ----------
    model : str
        Name of a shape.
    n_peptides, rounds : int
        Of the transform.
    starts : int
        Rounds of fresh processes.
    counts : sequence of int
        Peptides whose memory is measured.
    at_once : int, default=1
        Processes in which it is.

    Returns
    -------
    result : dict
        ``transform``, a record for each round, ``cold_starts`` and ``memory``.
    """
    result: Result = {"kind": "end_to_end", "machine": describe()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = write_checkpoint(model, folder)
        # A peptide has 50 residues at most, so that there are enough of them.
        peptides = workload("peptides", 50 * max(n_peptides, *counts))
        file = folder / "peptides.txt"
        file.write_text("".join(f"{peptide}\n" for peptide in peptides[: max(counts)]))
        result["transform"] = [
            transforming(checkpoint, peptides[:n_peptides], folder / str(turn))
            for turn in range(rounds)
        ]
        del peptides
        result["cold_starts"] = cold_starts(folder, starts)
        result["memory"] = memory(write_checkpoint("tiny", folder), file, counts, at_once)
    return result


def parser() -> argparse.ArgumentParser:
    """Say what the command takes."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--peptides", type=int, help="to be transformed; default: 100,000")
    found.add_argument("--model", default="t6_8M", help="shape that transforms them")
    found.add_argument("--rounds", type=int, default=1, help="of the transform")
    found.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],
        help="of peptides whose memory is measured",
    )
    found.add_argument(
        "--quick", action="store_true", help="400 peptides, 1 cold start, memory of 500"
    )
    found.add_argument("--save", action="store_true", help="write end_to_end.json")
    found.add_argument("--plot", action="store_true", help="draw end_to_end.png")
    found.add_argument("--results", type=Path, default=RESULTS, help="folder of both")
    return found


def main() -> None:
    """Parse, measure, print tables."""
    given = parser().parse_args()
    n_peptides = given.peptides or (400 if given.quick else 100_000)
    starts, counts = (1, (500,)) if given.quick else (5, tuple(given.counts))
    at_once = 2 if given.quick else 1
    result = run(given.model, n_peptides, given.rounds, starts, counts, at_once)
    result["arguments"] = {
        "peptides": n_peptides,
        "model": given.model,
        "rounds": given.rounds,
        "quick": given.quick,
    }
    print(f"\n{table(result)}")
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / "end_to_end.json").write_text(json.dumps(result, indent=1) + "\n")
    if given.plot:
        plot(result, given.results)


if __name__ == "__main__":
    main()
