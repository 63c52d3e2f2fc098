"""The table of throughputs that ships with the library, made of the results that are saved.

`make` fits, for each machine and precision, the three factors of `esm2_features._costs.model` to
all runs of this library, each run with the same weight: how long a floating-point operation of the
affine layers takes, a number of the residual stream, and a score of attention.

    python -m benchmarks.report --write      writes esm2_features/data/throughput.json

Never here: measuring, what is estimated with the factors.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks._end_to_end_report import shares
from benchmarks._ledger import FORWARD
from benchmarks.workloads import SHAPES, shape_of, workload
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._costs.model import CARDS, Pieces, weight_bytes, work
from esm2_features._model.packing import BYTES_PER_NUMBER_OF_WIDTH, cpu_budget

FILE = Path(__file__).parents[1] / "esm2_features" / "data" / "throughput.json"

_OURS = "esm2_features"
_FEWEST_SEQUENCES = 100
"""Of counted sequences: fewer are a fraction of a pass, which is no throughput."""
_DIGITS = 4

Result = dict[str, Any]


@dataclass(frozen=True)
class Timed:
    """One job that was timed.

    Attributes
    ----------
    device, machine : str
        ``"cpu"`` or the name of a card in `CARDS`; what it ran on.
    cores : int
    precision, model : str
    what : str
        Which sequences.
    lengths : tuple of int
        In residues.
    seconds : float
        Median of the rounds.
    date : str or None
    memory : float or None
        Most memory of the process, in bytes.
    """

    device: str
    machine: str
    cores: int
    precision: str
    model: str
    what: str
    lengths: tuple[int, ...]
    seconds: float
    date: str | None
    memory: float | None


def make(results: dict[str, list[Result]]) -> dict[str, Any]:
    """Make the table.

    Parameters
    ----------
    results : dict of str to list of dict
        By kind, as `report.read` gives them: ``compare``, ``scaling`` and ``end_to_end``.

    Returns
    -------
    table : dict
        ``fits``: one for each device and precision, with the factors, how far off they are, and the
        runs; ``host``: what is not the forward pass, for each sequence.
    """
    groups: dict[tuple[str, str, int, str], list[Timed]] = defaultdict(list)
    for run in (*_compared(results.get("compare", [])), *_scaled(results.get("scaling", []))):
        groups[run.device, run.machine, run.cores, run.precision].append(run)
    return {
        "made_by": "python -m benchmarks.report --write, from benchmarks/results",
        "fits": [_fit(runs) for runs in groups.values()],
        "host": _host(results["end_to_end"][-1]),
    }


def text(results: dict[str, list[Result]]) -> str:
    """Write the table as the file has it."""
    return json.dumps(make(results), indent=1) + "\n"


def _compared(results: Sequence[Result]) -> Iterator[Timed]:
    for result in results:
        given, machine = result["arguments"], result["machine"]
        device = _device(given["device"], machine)
        if given["model"] not in SHAPES or device is None:
            continue
        lengths = tuple(
            len(sequence)
            for sequence in workload(given["mix"], given["residues"], given.get("seed", 0))
        )
        for record in result["contenders"]:
            if record["library"] == _OURS:
                yield Timed(
                    device,
                    machine["cpu"] if device == "cpu" else machine["gpu"],
                    given["threads"],
                    record["precision"],
                    given["model"],
                    given["mix"],
                    lengths,
                    record["seconds"],
                    result["date"],
                    1e6 * record["memory_MB"],
                )


def _scaled(results: Sequence[Result]) -> Iterator[Timed]:
    for result in results:
        for point in result["points"]:
            of_use = point["figure"] in ("length", "count") and (
                point["figure"] == "length" or point["sequences"] >= _FEWEST_SEQUENCES
            )
            if of_use and point["model"] in SHAPES:
                length = point["residues"] // point["sequences"]
                yield Timed(
                    "cpu",
                    result["machine"]["cpu"],
                    result["machine"]["threads"],
                    point["precision"],
                    point["model"],
                    f"{point['sequences']:,} of {length}",
                    (length,) * point["sequences"],
                    float(np.median(point["seconds"])),
                    result.get("date"),
                    None,
                )


def _device(name: str, machine: Result) -> str | None:
    """Say which of the devices that can be estimated a result is of; None of others."""
    if name == "cpu":
        return "cpu"
    return next((key for key in CARDS if key.upper() in str(machine["gpu"]).upper()), None)


def _fit(runs: Sequence[Timed]) -> dict[str, Any]:
    first = runs[0]
    amounts = np.array([_work(run) for run in runs])
    seconds = np.array([run.seconds for run in runs])
    relative = amounts / seconds[:, None]
    scale = relative.max(axis=0)
    factors = nnls(relative / scale, np.ones(len(runs)))[0] / scale
    off = seconds / (amounts @ factors)
    return {
        "device": first.device,
        "machine": first.machine,
        "cores": first.cores,
        "precision": first.precision,
        "models": [model for model in SHAPES if any(run.model == model for run in runs)],
        "dates": sorted({run.date for run in runs if run.date is not None}),
        "seconds_per": {
            name: _rounded(factor)
            for name, factor in zip(("flop", "number", "score"), factors, strict=True)
        },
        "least": _rounded(off.min()),
        "most": _rounded(off.max()),
        "base_bytes": _base(runs),
        "measured": [
            {
                "model": run.model,
                "sequences": run.what,
                "tokens": sum(run.lengths) + 2 * len(run.lengths),
                "seconds": _rounded(run.seconds),
                "tokens_per_second": round((sum(run.lengths) + 2 * len(run.lengths)) / run.seconds),
                "times_fit": round(float(ratio), 2),
            }
            for run, ratio in zip(runs, off, strict=True)
        ],
    }


def _work(run: Timed) -> np.ndarray:
    shape = Architecture(*shape_of(run.model))
    return work(shape, shape.layers, Pieces.of([length + 2 for length in run.lengths]))


def _base(runs: Sequence[Timed]) -> int | None:
    """Give what a process has in memory beside weights and one pass; None on a card."""
    if runs[0].device != "cpu":
        return None
    budget = cpu_budget(runs[0].cores)
    rest = []
    for run in runs:
        shape = Architecture(*shape_of(run.model))
        if run.memory is not None:
            one_pass = budget * BYTES_PER_NUMBER_OF_WIDTH * shape.dim
            rest.append(run.memory - weight_bytes(shape, run.precision) - one_pass)
    return round(_rounded(max(rest))) if rest else None


def _host(result: Result) -> dict[str, Any]:
    seconds = float(np.median([run["seconds"] for run in result["transform"]]))
    share = 1 - shares(result)[FORWARD]
    return {
        "machine": result["machine"]["cpu"],
        "sequences": result["arguments"]["peptides"],
        "seconds_per_sequence": _rounded(share * seconds / result["arguments"]["peptides"]),
    }


def _rounded(value: float) -> float:
    """Keep the digits that mean something."""
    return float(f"{value:.{_DIGITS}g}")
