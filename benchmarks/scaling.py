"""How the cost of embedding grows: with length, number of sequences, size of the model, and batch.

Weights are random, in ESM-2's real shapes, and nothing is cached. What is timed is `Engine.embed`
from strings to an array. All points of a model are measured in turn, round after round, so that a
machine that slows down slows them all.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --models t6_8M,t12_35M --save --plot
    python -m benchmarks.scaling --quick

Never here: what a batch could reach (_roofline.py), how a result reads (_scaling_tables.py) or
looks (_scaling_plots.py), other libraries, what is not the forward pass (end_to_end.py).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._roofline import PEPTIDE, memory_bandwidth
from benchmarks._scaling_plots import plot
from benchmarks._scaling_tables import Result, table
from benchmarks.machine import Stopwatch, describe, gemm_peak
from benchmarks.workloads import SHAPES, flops, shape_of, workload, write_checkpoint
from esm2_features import Engine
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES

RESULTS = Path(__file__).with_name("results")
PRECISIONS = ("float32", "bfloat16")
MIX = "proteome"
PROTEIN = 300
"""Residues of the sequences that are counted, as `PEPTIDE`."""
SMALL = 12
"""Layers up to which a model is small: ten thousand peptides of a large one would take hours."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    lengths, peptides, proteins, budgets : tuple of int
        Residues of a sequence; numbers of sequences of each kind; tokens of a batch.
    residues : int
        In total, at each length: that of the longest sequence, and two full batches of a CPU.
    mix_residues : int
        In total, of the mix that all models get.
    budget_tokens : int
        In total, at each small budget; a large one gets at least one full batch.
    copied_bytes : int
        By which the bandwidth of memory is measured: more than any cache of a processor holds.
    product_seconds : float
        In which each product of the peak is repeated.
    least_seconds : float
        For which a run that takes less is repeated.
    """

    lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
    peptides: tuple[int, ...] = (1, 10, 100, 1000, 10000)
    proteins: tuple[int, ...] = (1, 3, 10, 30, 100)
    budgets: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    residues: int = 4096
    mix_residues: int = 8192
    budget_tokens: int = 1024
    copied_bytes: int = 1 << 28
    product_seconds: float = 0.4
    least_seconds: float = 0.2


QUICK = Sizes(
    lengths=(32, 128, 512),
    peptides=(1, 10),
    proteins=(1, 3),
    budgets=(32, 128, 512),
    residues=512,
    mix_residues=512,
    budget_tokens=128,
    copied_bytes=1 << 24,
    product_seconds=0.0,
    least_seconds=0.0,
)


@dataclass(frozen=True)
class Point:
    """One thing to be timed.

    Attributes
    ----------
    figure : {"length", "count", "size", "roofline"}
        What it is a point of.
    series : str
        What its sequences are.
    x : int
        Where it stands: residues, sequences, parameters, or tokens of a batch.
    sequences : tuple of str
        All different.
    batch_tokens : int or "auto"
    """

    figure: str
    series: str
    x: int
    sequences: tuple[str, ...]
    batch_tokens: int | str = "auto"


# -------------------------------------------------------------------- points


def random_sequences(count: int, length: int, seed: int = 0) -> tuple[str, ...]:
    """Draw sequences of one length; from 30 residues on, no two are ever equal."""
    rng = np.random.default_rng([count, length, seed])
    letters = np.array(list(CANONICAL_RESIDUES))
    return tuple("".join(row) for row in rng.choice(letters, (count, length)))


def points(model: str, sizes: Sizes) -> list[Point]:
    """List what is measured of a model.

    Parameters
    ----------
    model : str
        Name of a shape.
    sizes : Sizes

    Returns
    -------
    points : list of Point
    """
    shape = Architecture(*shape_of(model))
    mix = tuple(workload(MIX, sizes.mix_residues))
    found = [
        *_length_points(sizes),
        Point("size", MIX, shape.parameters, mix),
        *_budget_points(sizes),
    ]
    return found + _count_points(sizes) if shape.layers <= SMALL else found


def _length_points(sizes: Sizes) -> list[Point]:
    return [
        Point(
            "length",
            f"{sizes.residues:,} residues",
            length,
            random_sequences(max(1, sizes.residues // length), length),
        )
        for length in sizes.lengths
    ]


def _count_points(sizes: Sizes) -> list[Point]:
    return [
        Point("count", f"{kind} of {length}", count, random_sequences(count, length))
        for kind, length, counts in (
            ("peptides", PEPTIDE, sizes.peptides),
            ("proteins", PROTEIN, sizes.proteins),
        )
        for count in counts
    ]


def _budget_points(sizes: Sizes) -> list[Point]:
    tokens = PEPTIDE + 2
    return [
        Point(
            "roofline",
            f"peptides of {PEPTIDE}",
            budget,
            random_sequences(max(budget, min(4 * budget, sizes.budget_tokens)) // tokens, PEPTIDE),
            batch_tokens=budget,
        )
        for budget in sizes.budgets
    ]


# --------------------------------------------------------------- measurement


def measure(
    model: str, checkpoint: Path, precision: str, sizes: Sizes, rounds: int
) -> list[dict[str, Any]]:
    """Time all points of a model at one precision, in turn.

    Parameters
    ----------
    model : str
        Name of its shape.
    checkpoint : Path
    precision : str
    sizes : Sizes
    rounds : int

    Returns
    -------
    records : list of dict
        For each point, what it is, what it costs (``gflop``), and, of each round, ``seconds`` of
        one run and ``foreign``, the share of the machine that others had.
    """
    timed = [(point, _engine(checkpoint, precision, point)) for point in points(model, sizes)]
    timed[0][1].embed(["MKTAYIAKQR"])  # weights are loaded, threads started
    records = [_record(model, precision, point) for point, _ in timed]
    for _ in range(rounds):
        for (point, engine), record in zip(timed, records, strict=True):
            run, foreign = _time(engine, point.sequences, sizes.least_seconds)
            record["seconds"].append(run)
            record["foreign"].append(foreign)
    return records


def _time(engine: Engine, sequences: Sequence[str], least_seconds: float) -> tuple[float, float]:
    """Embed once, or as often as a measurable time takes: seconds of a run, share of others."""
    runs, start = 0, time.perf_counter()
    with Stopwatch() as watch:
        while runs == 0 or time.perf_counter() - start < least_seconds:
            engine.embed(sequences)
            runs += 1
    return watch.seconds / runs, watch.foreign


def _engine(checkpoint: Path, precision: str, point: Point) -> Engine:
    return Engine(
        checkpoint,
        precision=precision,
        device="cpu",
        batch_tokens=point.batch_tokens,
        max_residues=None,  # also what is longer than ESM-2's 1022 residues goes in one piece
        cache=None,
    )


def _record(model: str, precision: str, point: Point) -> dict[str, Any]:
    lengths = [len(sequence) for sequence in point.sequences]
    return {
        "figure": point.figure,
        "series": point.series,
        "model": model,
        "precision": precision,
        "x": point.x,
        "sequences": len(lengths),
        "residues": sum(lengths),
        "gflop": flops(model, lengths) / 1e9,
        "seconds": [],
        "foreign": [],
    }


# ---------------------------------------------------------------------- main


def run(models: Sequence[str], precisions: Sequence[str], rounds: int, sizes: Sizes) -> Result:
    """Measure all models.

    Parameters
    ----------
    models : sequence of str
        Names of shapes.
    precisions : sequence of str
    rounds : int
    sizes : Sizes

    Returns
    -------
    result : dict
        ``points`` as `measure` gives them, and what the roofline is made of.
    """
    result: Result = {
        "kind": "scaling",
        "machine": describe(),
        "bandwidth_GB_s": memory_bandwidth(sizes.copied_bytes),
        "peaks_GFLOP_s": {},
        "points": [],
    }
    with tempfile.TemporaryDirectory() as name:
        for model in models:
            checkpoint = write_checkpoint(model, name)
            dim = shape_of(model)[1]
            result["peaks_GFLOP_s"][model] = {
                how: gemm_peak(dim, how, seconds=sizes.product_seconds) for how in precisions
            }
            for precision in precisions:
                print(f"{model}, {precision} ...", flush=True)
                result["points"] += measure(model, checkpoint, precision, sizes, rounds)
            checkpoint.unlink()  # the largest takes gigabytes
    return result


def parser() -> argparse.ArgumentParser:
    """Say what the command takes."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--models", type=_names, help=f"default: {','.join(SHAPES)}")
    found.add_argument("--precisions", type=_names, help=f"default: {','.join(PRECISIONS)}")
    found.add_argument("--rounds", type=int, help="default: 3")
    found.add_argument("--quick", action="store_true", help="few points; by default, a tiny model")
    found.add_argument("--save", action="store_true", help="write scaling.json")
    found.add_argument("--plot", action="store_true", help="draw the figures")
    found.add_argument("--results", type=Path, default=RESULTS, help="folder of both")
    return found


def _names(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Parse, measure, print tables."""
    given = parser().parse_args()
    models = given.models or (["tiny"] if given.quick else list(SHAPES))
    precisions = given.precisions or (["float32"] if given.quick else list(PRECISIONS))
    rounds = given.rounds or (1 if given.quick else 3)
    result = run(models, precisions, rounds, QUICK if given.quick else Sizes())
    result["arguments"] = {
        "models": models,
        "precisions": precisions,
        "rounds": rounds,
        "quick": given.quick,
    }
    print(f"\n{table(result)}")
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    if given.plot:
        plot(result, given.results)


if __name__ == "__main__":
    main()
