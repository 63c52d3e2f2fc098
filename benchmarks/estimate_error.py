"""How far the time of `esm2-features estimate` is from what embedding takes on this machine.

Weights are random, in ESM-2's real shapes, and those of `mini`; inputs are files of the benchmarks'
mixes. Each is estimated from a timed sample, and then embedded, in this process, with a cache in a
new folder. Times are processor seconds of one thread, which other processes hardly change.

    python -m benchmarks.estimate_error --save
    python -m benchmarks.estimate_error --quick
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.workloads import SHAPES, workload, write_checkpoint
from esm2_features import Engine
from esm2_features._costs import calibration, estimate
from esm2_features._costs.input_summary import summarise

RESULTS = Path(__file__).with_name("results")
RESIDUES = {"mini": 80_000, "t6_8M": 50_000, "t12_35M": 15_000}
"""Of an input that takes some seconds on two cores."""
SEED = 7

Result = dict[str, Any]


def measure(model: str, checkpoint: str, mix: str, residues: int, precision: str) -> Result:
    """Estimate how long an input takes, and embed it.

    Returns
    -------
    record : dict
        Seconds that were estimated, and that it took.
    """
    sequences = workload(mix, residues, SEED)
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "in.fasta"
        fasta.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(sequences)))
        engine = Engine(checkpoint, precision=precision, device="cpu", cache=Path(folder) / "cache")
        summary = summarise([str(fasta)], engine)
        estimated = estimate(engine, summary).seconds
        start = time.process_time()
        engine.embed(sequences)
        seconds = time.process_time() - start
    return {
        "model": model,
        "precision": precision,
        "mix": mix,
        "sequences": len(sequences),
        "tokens": summary.tokens_to_compute,
        "seconds": seconds,
        "estimated": estimated._asdict(),
    }


def table(result: Result) -> str:
    """Write a result, as `main` saves it, as Markdown."""
    machine = result["machine"]
    return "\n".join(
        [
            f"`estimate` next to `embed` on one thread of {machine['cpu']} ({result['date']}), in "
            "processor seconds. Error is estimate / time - 1.",
            "",
            "| model | precision | mix | tokens/s | time, s | estimate, s | range, s | error "
            "| in its range |",
            "|---|---|---|---:|---:|---:|---:|---:|---|",
            *(_row(record) for record in result["records"]),
        ]
    )


def _row(record: Result) -> str:
    seconds, estimated = record["seconds"], record["estimated"]
    low, middle, high = (estimated[name] for name in ("low", "middle", "high"))
    return (
        f"| {record['model']} | {record['precision']} | {record['mix']} "
        f"| {record['tokens'] / seconds:,.0f} | {seconds:.1f} | {middle:.1f} "
        f"| {low:.1f} to {high:.1f} | {middle / seconds - 1:+.0%} "
        f"| {'yes' if low <= seconds <= high else 'no'} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.estimate_error", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--models", type=lambda text: text.split(","), default=list(RESIDUES), metavar="NAME,...")
    add("--mixes", type=lambda text: text.split(","), default=["proteome", "peptides"])
    add("--precisions", type=lambda text: text.split(","), default=["float32", "bfloat16"])
    add("--checkpoints", type=Path, help="folder of random weights; made if they are not there")
    add("--quick", action="store_true", help="mini on little")
    add("--save", action="store_true", help="write estimate.json")
    add("--results", type=Path, default=RESULTS, help="its folder")
    given = parser.parse_args(arguments)
    if given.quick:
        given.models, given.mixes, given.precisions = ["mini"], ["peptides"], ["float32"]
    torch.set_num_threads(1)
    calibration.timeit = partial(timeit, timer=time.process_time)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models:
            where = given.checkpoints or Path(folder)
            checkpoint = str(write_checkpoint(model, where)) if model in SHAPES else model
            residues = 2000 if given.quick else RESIDUES[model]
            records += [
                measure(model, checkpoint, mix, residues, precision)
                for precision in given.precisions
                for mix in given.mixes
            ]
    result = {
        "kind": "estimate",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": {**describe(), "threads": torch.get_num_threads()},
        "records": records,
    }
    print(table(result))
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        file = given.results / "estimate.json"
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
