"""How fast this library embeds next to its peers, on the same weights, and how exactly.

Each contender has a process of its own, with its weights loaded, warmed up, and its batching
chosen; they work one at a time, in turn, round after round, in rotated order. What is timed is the
whole job inside that process: from a list of strings to an array of float32, one vector for each
sequence, the mean of the last representation. Nothing is read or written, and nothing is cached.

    python -m benchmarks.compare --model t12_35M --mix proteome
    python -m benchmarks.compare --model t33_650M --mix mutants --peers fair-esm,transformers --save
    python -m benchmarks.compare --quick

It prints a Markdown table, and a line of JSON with every single time. A peer that is not installed,
or fails, is left out, and the output says so.

Never here: what a contender does (_work.py), rounds (_rounds.py), other questions than speed,
memory and error.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._contenders import (
    BASELINE,
    BUDGETS,
    EXPORTED,
    ONE_SEQUENCE,
    PEERS,
    Job,
    contenders,
)
from benchmarks._hugging_face import export_graph
from benchmarks._padding import Vectors
from benchmarks._rounds import NOISY, Trial, all_fit_into_memory, in_new_process, measure, say
from benchmarks.machine import describe, gemm_peak
from benchmarks.workloads import MIXES, SHAPES, TINY, flops, shape_of, workload, write_checkpoint

RESULTS = Path(__file__).with_name("results")
PRECISIONS = ("float32", "bfloat16")
RESIDUES = {
    "tiny": 1000,
    "t6_8M": 80_000,
    "t12_35M": 40_000,
    "t30_150M": 16_000,
    "t33_650M": 8000,
}
"""Of the job, unless it is said: at least some seconds for each contender on a small machine."""

EXTRA_ROUNDS = 2
SLOW_TO_EXPORT = "t33_650M"
LEAST_PROBE_RESIDUES = {"t30_150M": 2048, "t33_650M": 1024}
OTHERWISE_PROBED = 4096
"""On which token budgets are tried; a quarter of the job if that is more."""
QUICK_BUDGETS = (ONE_SEQUENCE, 1024)

Result = dict[str, Any]


# --------------------------------------------------------------- statistics


def errors(vectors: Vectors, reference: Vectors) -> dict[str, float | None]:
    """Compare vectors with fair-esm's.

    Parameters
    ----------
    vectors, reference : ndarray of shape (n, dim)

    Returns
    -------
    errors : dict
        ``max_abs_error``, and ``relative_error``: the median over the sequences of the length of
        the error next to how far the reference is from the mean of all references (None for a
        single sequence). Among single mutants of one protein, that is the error relative to what
        tells them apart.
    """
    truth = reference.astype(float)
    difference = vectors - truth
    spread = np.linalg.norm(truth - truth.mean(0), axis=1)
    return {
        "max_abs_error": float(np.abs(difference).max()),
        "relative_error": (
            float(np.median(np.linalg.norm(difference, axis=1) / spread))
            if len(truth) > 1
            else None
        ),
    }


def summarise(trials: Sequence[Trial], job: Job, peaks: dict[str, float]) -> list[Result]:
    """Make of each trial a record.

    Medians and quartiles are over the rounds without disturbance, or over all if there are none.
    Speed-up and errors are relative to `BASELINE`, and None where it takes no part.
    """
    residues = sum(map(len, job.sequences))
    work_gflop = flops(job.shape, map(len, job.sequences)) / 1e9
    baseline = next((trial for trial in trials if trial.contender == BASELINE), None)
    records = []
    for trial in trials:
        counted = trial.quiet or trial.rounds
        low, median, high = np.quantile(
            [record["seconds"] for record in counted], (0.25, 0.5, 0.75)
        )
        peak = peaks[trial.contender.precision]
        memory = max(record["peak_bytes"] for record in trial.rounds)
        record = {
            "name": trial.contender.name,
            **asdict(trial.contender),
            "budget": trial.loaded["budget"],
            "seconds": float(median),
            "residues_per_second": residues / float(median),
            "quartiles": [residues / float(high), residues / float(low)],
            "peak_share": work_gflop / float(median) / peak,
            "memory_MB": memory / 1e6,
            "load_seconds": trial.loaded["load_seconds"],
            "load_memory_MB": trial.loaded["load_peak_bytes"] / 1e6,
            "foreign": float(np.median([record["foreign"] for record in trial.rounds])),
            "noisy_rounds": len(trial.rounds) - len(trial.quiet),
            "rounds": trial.rounds,
            "speedup": None,
            "max_abs_error": None,
            "relative_error": None,
        }
        if baseline is not None:
            record.update(errors(trial.vectors, baseline.vectors))
        records.append(record)
    for record in records:
        if baseline is not None:
            base = records[trials.index(baseline)]
            record["speedup"] = base["seconds"] / record["seconds"]
    return records


# --------------------------------------------------------------------- text


HEADS = (
    *("contender", "residues/s", "quartiles", f"vs {BASELINE.name}", "share of peak"),
    *("memory, MB", "largest error", "error / spread", "others", "seconds, by round"),
)


def table(result: Result) -> str:
    """Show one comparison as a Markdown table, with all that is needed to read it.

    Parameters
    ----------
    result : dict
        As `compare` gives it.

    Returns
    -------
    markdown : str
    """
    given, job = result["arguments"], result["workload"]
    peaks = ", ".join(f"{peak:,.0f} in {name}" for name, peak in result["peak_GFLOP_per_s"].items())
    lines = [
        f"{given['model']}, {given['mix']}: {job['sequences']:,} sequences, {job['residues']:,} "
        f"residues; {machine_of(result)}; rounds in turn: {given['rounds']}; "
        f"peak of matrix products, GFLOP/s: {peaks}",
        "",
        f"| {' | '.join(HEADS)} |",
        f"|---|{'---:|' * (len(HEADS) - 1)}",
        *(f"| {' | '.join(_cells(record))} |" for record in result["contenders"]),
    ]
    lines += ["", *(f"Left out: {name} ({why})." for name, why in result["left_out"].items())]
    if any(record["noisy_rounds"] for record in result["contenders"]):
        lines.append(
            f"`*`: a noisy round, in which others used more than {NOISY:.0%} of the machine; "
            f"{given['extra_rounds']} rounds at most were added to make up for them. Medians and "
            "quartiles leave noisy rounds out where there are others."
        )
    return "\n".join(lines).rstrip()


def _cells(record: Result) -> list[str]:
    low, high = record["quartiles"]
    return [
        f"{record['name']}{_batching(record['budget'])}",
        f"{record['residues_per_second']:,.0f}",
        f"{low:,.0f} to {high:,.0f}",
        optional(record["speedup"], ".2f"),
        f"{record['peak_share']:.0%}",
        f"{record['memory_MB']:,.0f}",
        optional(record["max_abs_error"], ".1e"),
        optional(record["relative_error"], ".1e"),
        f"{record['foreign']:.0%}",
        " ".join(f"{one['seconds']:.3g}{'*' * one['noisy']}" for one in record["rounds"]),
    ]


def _batching(budget: int | None) -> str:
    if budget is None:
        return ""
    return " (one sequence)" if budget == ONE_SEQUENCE else f" ({budget} tokens)"


def machine_of(result: Result) -> str:
    """Name what a comparison ran on."""
    threads = result["arguments"]["threads"]
    return f"{processor_of(result)}, {threads} thread{'s' * (threads > 1)}"


def processor_of(result: Result) -> str:
    """Name the processor, or the card."""
    return result["machine"]["cpu" if result["arguments"]["device"] == "cpu" else "gpu"]


def file_stem(result: Result) -> str:
    """Name the file of a comparison, and of pictures, so that each processor has its own."""
    return f"compare_{re.sub('[^A-Za-z0-9]+', '-', processor_of(result)).strip('-')}"


def optional(value: float | None, how: str) -> str:
    """Format a number, or the lack of one."""
    return "" if value is None else format(value, how)


# ---------------------------------------------------------------------- all


def compare(given: argparse.Namespace, folder: Path) -> Result:
    """Run everything.

    Parameters
    ----------
    given : Namespace
        Of `parse`.
    folder : Path
        Where checkpoints and graphs are, or are written.

    Returns
    -------
    result : dict
        All that is saved.
    """
    sequences = tuple(workload(given.mix, given.residues, given.seed))
    found, left_out = contenders(given.peers, given.precisions, given.device)
    if unknown := set(given.leave_out) - {one.name for one in found}:
        raise SystemExit(f"--leave-out: nobody is called {', '.join(sorted(unknown))}")
    left_out |= given.unasked | dict.fromkeys(given.leave_out, "on request")
    found = [one for one in found if one.name not in given.leave_out]
    checkpoint = write_checkpoint(given.model, folder)
    job = Job(
        checkpoint=checkpoint,
        graph=folder / f"{checkpoint.stem}_graph" / "network.onnx",
        shape=shape_of(given.model),
        sequences=sequences,
        device=given.device,
        threads=given.threads,
        budgets=QUICK_BUDGETS if given.quick else BUDGETS[torch.device(given.device).type],
        probe_residues=max(
            given.residues // 4, LEAST_PROBE_RESIDUES.get(given.model, OTHERWISE_PROBED)
        ),
    )
    if given.quick:
        found = [one for one in found if one.setting != "default"]  # as tuned, in other batches
    machine = describe()
    stays = all_fit_into_memory(found, given.model, machine["memory_GB"])
    trials = [Trial(one, job, stays=stays) for one in found]
    if given.quick:  # little enough to be loaded all at the same time
        _start(trial for trial in trials if trial.contender.library not in EXPORTED)
    trials = _exported(trials, job, left_out)
    if given.quick:
        _start(trials)
    before = _peaks(given) if given.quick else in_new_process(_peaks, given)
    done, failures = measure(trials, given.rounds, given.extra_rounds)
    # The machine may have been busy, or slow, the first time.
    after = before if given.quick else in_new_process(_peaks, given)
    peaks = {name: max(peak, after[name]) for name, peak in before.items()}
    options = (
        "model",
        "mix",
        "peers",
        "leave_out",
        "precisions",
        "rounds",
        "extra_rounds",
        "residues",
    )
    return {
        "kind": "compare",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine | {"threads": given.threads},
        "arguments": {
            name: getattr(given, name) for name in (*options, "seed", "threads", "device", "quick")
        },
        "workload": {
            "sequences": len(sequences),
            "residues": sum(map(len, sequences)),
            "flop": flops(job.shape, map(len, sequences)),
        },
        "peak_GFLOP_per_s": peaks,
        "one_process_for_all_rounds": stays,
        "contenders": summarise(done, job, peaks),
        "left_out": left_out | failures,
    }


def _peaks(given: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(given.threads)
    _, dim, _ = shape_of(given.model)
    seconds = 0.0 if given.quick else 0.4
    wanted = dict.fromkeys(("float32", *given.precisions))  # fair-esm's is float32
    return {name: gemm_peak(dim, name, given.device, seconds) for name in wanted}


def _start(trials: Iterable[Trial]) -> None:
    for trial in trials:
        trial.start()


def _exported(trials: list[Trial], job: Job, left_out: dict[str, str]) -> list[Trial]:
    """Export the graph, or leave out those who need it."""
    needing = [trial.contender for trial in trials if trial.contender.library in EXPORTED]
    if not needing:
        return trials
    say("exporting the graph")
    try:
        in_new_process(export_graph, job)
    except Exception as error:  # exporters raise whatever they like
        lines = str(error).strip().splitlines() or [""]
        why = f"the export failed: {type(error).__name__}: {lines[0][:200]}"
        left_out.update({one.name: why for one in needing})
        return [trial for trial in trials if trial.contender not in needing]
    return trials


def _listed(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        words = [word for word in text.split(",") if word]
        for word in words:
            if word not in choices:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(choices)}")
        return words

    return read


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, and fill in what depends on other options."""
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", choices=[*SHAPES, *TINY], default="t12_35M", help="shape; weights are random")
    add("--mix", choices=MIXES, default="proteome")
    add("--peers", type=_listed(list(PEERS)), help=f"of {','.join(PEERS)}; default: all")
    add("--leave-out", type=lambda text: text.split(","), default=[], help="contenders, by name")
    add("--precisions", type=_listed([*PRECISIONS, "float16"]), help="default: float32,bfloat16")
    add("--rounds", type=int, help="default: 5")
    add("--residues", type=int, help="of the job, in total; the default depends on the model")
    add("--threads", type=int, help="of every contender; default: torch's")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--seed", type=int, default=0, help="of the sequences")
    add(
        "--quick",
        action="store_true",
        help="a tiny model, one round, one thread, float32, tuned ways",
    )
    add("--folder", type=Path, help="keeps checkpoints and graphs for the next time")
    add("--save", action="store_true", help="write a JSON file")
    add("--results", type=Path, default=RESULTS, help="its folder")
    given = parser.parse_args(arguments)
    if given.quick:
        given.model = "tiny"
    given.extra_rounds = 0 if given.quick else EXTRA_ROUNDS
    given.rounds = given.rounds or (1 if given.quick else 5)
    given.threads = given.threads or (1 if given.quick else torch.get_num_threads())
    given.residues = given.residues or RESIDUES[given.model]
    given.precisions = given.precisions or (["float32"] if given.quick else list(PRECISIONS))
    given.unasked = {}
    if given.peers is None:
        given.peers = list(PEERS)
        if given.model == SLOW_TO_EXPORT:
            given.peers = [peer for peer in PEERS if peer not in EXPORTED]
            why = "slow to export at this size; ask for it by --peers"
            given.unasked = dict.fromkeys(EXPORTED, why)
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and JSON, and save it if asked."""
    given = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of all processes that will be started
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(given, given.folder or Path(temporary))
    print(table(result), end="\n\n")
    print(json.dumps(result))
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        file = given.results / f"{file_stem(result)}_{given.model}_{given.mix}.json"
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
