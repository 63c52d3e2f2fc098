"""How exact the numbers are: lengths of sums in float32, and half precisions.

The standard is fair-esm's network in float64, sequence by sequence, on the same weights. Times are
medians of whole passes over the same sequences, all variants in turn in one process.

    python -m benchmarks.exactness sums --model t12_35M --model t33_650M
    python -m benchmarks.exactness sums --model CHECKPOINT --fasta PROTEINS
    python -m benchmarks.exactness precision --model CHECKPOINT
    python -m benchmarks.exactness sums --quick

Models are sizes with random weights, or checkpoints. `plain` is without the rearrangement of
weights that a network gets when it is loaded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import describe
from benchmarks.variants import PROTEIN
from benchmarks.workloads import SHAPES, TINY, workload, write_checkpoint
from esm2_features import datasets, read_fasta
from esm2_features._checkpoints import Checkpoint, open_checkpoint
from esm2_features._inference.batching import batches
from esm2_features._model import esm2, linear
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.packing import pack
from esm2_features._model.reference import Reference, Rows

ALL = 1 << 20
SUMS = (64, 128, 192, 256, 320, 640, ALL)
_BATCH_TOKENS = 2048
_MUTANTS = 60


@contextmanager
def built_with(*, longest_sum: int, conditioned: bool) -> Iterator[None]:
    """Build networks in another way than users get them."""
    before = linear.LONGEST_SUM, esm2.condition
    linear.LONGEST_SUM = longest_sum
    if not conditioned:
        esm2.condition = lambda *_: None
    try:
        yield
    finally:
        linear.LONGEST_SUM, esm2.condition = before


def network_of(checkpoint: Checkpoint, precision: str = "float32") -> ESM2Network:
    """Load the network of a checkpoint onto the CPU."""
    shape, device = checkpoint.architecture, torch.device("cpu")
    return ESM2Network(checkpoint.name, shape, checkpoint.load(), device, precision)


def rows_of(network: ESM2Network, sequences: Sequence[str]) -> list[Rows]:
    """All layers of each sequence."""
    found: list[Rows] = [{} for _ in sequences]
    for batch in batches([len(one) + 2 for one in sequences], _BATCH_TOKENS):
        sizes = np.cumsum([len(sequences[i]) + 2 for i in batch])[:-1]
        packed = pack([sequences[i] for i in batch])
        for layer, x_TD in network.representations(packed, range(network.depth + 1)):
            for i, part in zip(batch, np.split(x_TD.numpy(), sizes), strict=True):
                found[i][str(layer)] = part
    return found


def errors(rows: Sequence[Rows], exact: Sequence[Rows]) -> dict[str, tuple[float, float]]:
    """Largest error of a number, and the root mean square of all, by layer."""
    found = {}
    for layer in exact[0]:
        if layer == "logits":
            continue
        off = np.concatenate(
            [(a[layer] - b[layer]).ravel() for a, b in zip(rows, exact, strict=True)]
        )
        found[layer] = float(np.abs(off).max()), float(np.sqrt((off**2).mean()))
    return found


def sums(
    checkpoint: Checkpoint, sequences: Sequence[str], rounds: int, terms: Sequence[int]
) -> dict[str, object]:
    """Measure error and time for each length of sums."""
    exact, theirs = (
        [reference.layers(s) for s in sequences] for reference in _references(checkpoint)
    )
    fair_esm = errors(theirs, exact)
    variants = {("plain", n): False for n in (640, ALL) if n in terms}
    variants |= {("ours", n): True for n in sorted({*terms, linear.LONGEST_SUM})}
    networks = {}
    for (kind, longest_sum), conditioned in variants.items():
        with built_with(longest_sum=longest_sum, conditioned=conditioned):
            networks[kind, longest_sum] = network_of(checkpoint)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in networks}
    for _ in range(rounds):
        for key, network in networks.items():
            start = time.perf_counter()
            found = rows_of(network, sequences)
            seconds[key].append(time.perf_counter() - start)
    usual = np.median(seconds["ours", linear.LONGEST_SUM])
    shape, last = checkpoint.architecture, str(checkpoint.architecture.layers)
    print(
        f"\n{checkpoint.name}: {shape.layers} layers, {shape.dim} wide; {len(sequences)} sequences"
    )
    largest, rms = fair_esm[last]
    print(f"fair-esm in float32, last layer: {rms:.1e} rms, {largest:.1e} max\n")
    print("| network | terms of a sum | rms, mean | rms, worst | max, worst | last rms | time |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    table = []
    for (kind, longest_sum), network in networks.items():
        found = errors(rows_of(network, sequences), exact)
        ratios = np.array([np.divide(found[k], fair_esm[k]) for k in fair_esm if k != "0"])
        row = [
            *ratios[:, 1].mean(keepdims=True),
            ratios[:, 1].max(),
            ratios[:, 0].max(),
            ratios[-1, 1],
        ]
        row.append(float(np.median(seconds[kind, longest_sum]) / usual))
        length = "all" if longest_sum == ALL else str(longest_sum)
        print(f"| {kind} | {length} | {' | '.join(f'{x:.2f}' for x in row)} |")
        table.append([kind, length, *map(float, row)])
    return {"model": checkpoint.name, "fair_esm": fair_esm, "rows": table}


def precision(checkpoint: Checkpoint, sequences: Sequence[str]) -> dict[str, object]:
    """Measure the error of half precisions next to the spread of what is compared."""
    rng = np.random.default_rng(0)
    places = rng.permutation(len(PROTEIN))
    mutants = [
        PROTEIN[:i]
        + str(rng.choice([x for x in "ACDEFGHIKLMNPQRSTVWY" if x != PROTEIN[i]]))
        + PROTEIN[i + 1 :]
        for i in np.resize(places, _MUTANTS)
    ]
    sets = {
        f"{_MUTANTS} single mutants": mutants,
        "155 peptides": list(datasets.load_demo_peptides(as_frame=True).data["sequence"]),
        f"{len(sequences)} proteins": list(sequences),
    }
    last = str(checkpoint.architecture.layers)
    networks = {p: network_of(checkpoint, p) for p in ("float32", "float16", "bfloat16")}
    print(f"\n{checkpoint.name}: error of mean vectors over their spread, on a CPU\n")
    print("| set | float16 | bfloat16 | times |\n|---|---:|---:|---:|")
    table = {}
    for name, members in sets.items():
        vectors = {
            p: np.array([rows[last][1:-1].mean(0) for rows in rows_of(network, members)])
            for p, network in networks.items()
        }
        exact = vectors.pop("float32")
        spread = _rms(exact - exact.mean(0))
        share = {p: _rms(found - exact) / spread for p, found in vectors.items()}
        times = share["bfloat16"] / share["float16"]
        print(f"| {name} | {share['float16']:.4f} | {share['bfloat16']:.4f} | {times:.1f} |")
        table[name] = share
    return {"model": checkpoint.name, "rows": table}


def _references(checkpoint: Checkpoint) -> Iterator[Reference]:
    """One after the other, so that only one is in memory."""
    yield Reference(checkpoint, torch.float64)
    yield Reference(checkpoint)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean()))


def main() -> None:
    """Print Markdown, and everything as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["sums", "precision"])
    parser.add_argument("--model", action="append", metavar="SIZE|PATH", help="may be repeated")
    parser.add_argument("--fasta", help="take proteins from this file, instead of random ones")
    parser.add_argument("--residues", type=int, default=4000, help="in total")
    parser.add_argument("--longest", type=int, default=1000, help="residues of the longest protein")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--terms", help="of a sum, with commas between them; 0 is all")
    parser.add_argument("--quick", action="store_true", help="a tiny network, one round")
    arguments = parser.parse_args()
    models = ["tiny"] if arguments.quick else arguments.model or ["t6_8M"]
    residues, rounds = (900, 1) if arguments.quick else (arguments.residues, arguments.rounds)
    asked = [int(n) or ALL for n in arguments.terms.split(",")] if arguments.terms else SUMS
    sequences = workload("proteome", residues)
    if arguments.fasta:
        records = [r.seq for r in read_fasta(arguments.fasta) if len(r.seq) <= arguments.longest]
        order = np.random.default_rng(0).permutation(len(records))
        stop = int(np.searchsorted(np.cumsum([len(records[i]) for i in order]), residues)) + 1
        sequences = [records[i] for i in order[:stop]]
    measure: Callable[[Checkpoint], dict[str, object]]
    if arguments.what == "sums":
        measure = lambda checkpoint: sums(checkpoint, sequences, rounds, asked)  # noqa: E731
    else:
        measure = lambda checkpoint: precision(checkpoint, sequences)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for model in models:
            known = model in SHAPES or model in TINY
            path = write_checkpoint(model, folder) if known else Path(model)
            found.append(measure(open_checkpoint(path if known else model)))
    print(json.dumps({"machine": describe(), "what": arguments.what, "models": found}))


if __name__ == "__main__":
    main()
