"""Print what a block of 650M does on cards that are not there: ``python -m cards.counts`` in tests.

Of a block, per batch: launches, and bytes that kernels read and write (weights included); launches
for the vectors of another layer; waits of the host; and the memory of a pass at its peak. Bytes are
for each token and number of the width. Tensors have shapes only.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from cards.stand_in import Machine, build_guard

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._inference.batch_loop import plan_batches
from esm2_features._inference.extractors import PooledVectors
from esm2_features._model import attention, devices, esm2
from esm2_features._model.devices import computing
from esm2_features._model.fusion import find_kernels
from esm2_features._model.packing import cuda_budget

DIM, HEADS = 1280, 20
CARD = torch.device("cuda", 0)
CARDS = [  # precision, compute capability, free memory in GB
    ("bfloat16", (9, 0), 140),
    ("float32", (9, 0), 140),
    ("float16", (7, 5), 15),
    ("float32", (7, 5), 15),
]


def rows() -> dict[str, list[str]]:
    """Random sequences, of lengths as in peptides, a bacterial proteome, and so on."""
    noise = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))

    def sequences(lengths) -> list[str]:
        return ["".join(noise.choice(letters, n)) for n in lengths]

    proteome = np.clip(noise.lognormal(5.58, 0.62, 4400), 30, 3000).astype(int)  # mean 320
    return {
        "20,000 peptides": sequences(noise.integers(5, 41, 20_000)),
        "4,400 proteins": sequences(proteome),
        "300 proteins": sequences(proteome[:300]),
        "1 of 8,000": sequences([8000]),
        "1 of 35,000, windows": [f"{one}~1022" for one in sequences([35_000])],
    }


def weights() -> dict[str, torch.Tensor]:
    """Those of three blocks, shapes only."""
    of_block = {f"self_attn.{x}_proj": (DIM, DIM) for x in ("q", "k", "v", "out")}
    of_block |= {"fc1": (4 * DIM, DIM), "fc2": (DIM, 4 * DIM)}
    of_block |= {"self_attn_layer_norm": (DIM,), "final_layer_norm": (DIM,)}
    found = {"embed_tokens.weight": torch.empty(33, DIM, device="meta")}
    for name, shape in [
        ("emb_layer_norm_after", (DIM,)),
        *((f"layers.{i}.{x}", shape) for i in range(3) for x, shape in of_block.items()),
    ]:
        found[f"{name}.weight"] = torch.empty(shape, device="meta")
        found[f"{name}.bias"] = torch.empty(shape[0], device="meta")
    return found


class Counts(NamedTuple):
    """Of all batches the mean, or what is largest."""

    batches: int
    launches: float
    of_a_layer: float  # launches
    moved: float  # bytes
    held: float
    waits: int


def count(precision: str, capability: tuple[int, int], gigabytes: int, views: list[str]) -> Counts:
    """Run it up to a block, up to the next one, and up to that one with the vectors of both."""
    machine = Machine(capability=capability)
    extractors = [
        PooledVectors(tuple((layer, "mean") for layer in layers), DIM)
        for layers in ([1], [2], [1, 2])
    ]
    with machine.switched_on(), mock.patch.object(esm2, "condition"), computing(CARD):
        attention._packed_kernel(CARD, getattr(torch, precision), DIM // HEADS)
        devices._failure_of(CARD)
        find_kernels(CARD, getattr(torch, precision), DIM, HEADS)
        machine.only_shapes = True
        shape = Architecture(3, DIM, HEADS)
        network = esm2.ESM2Network("650M", shape, weights(), CARD, precision)
        budget = cuda_budget(gigabytes << 30, DIM)
        distinct, plan = plan_batches(views, budget, extractors[0].bytes)
        tokens, peak, counts = int(distinct.tokens.sum()), 0, []
        for extractor in extractors:
            machine.reset()
            for batch in plan:
                before = machine.peak = machine.in_use
                wait = extractor(network, [views[i] for i in batch], budget)
                rows = int(
                    distinct.tokens[batch].sum()
                )  # no view is of the same sequence as another
                peak = max(peak, (machine.peak - before) / rows / DIM)
                wait()
            counts.append((machine.launches.total() / len(plan), machine.moved / tokens / DIM))
    (first, moved), (second, moved_by_both), (both, _) = counts
    waits = machine.waits.total()
    return Counts(len(plan), second - first, both - second, moved_by_both - moved, peak, waits)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build_guard(Path(folder))
    for name, views in rows().items():
        for precision, capability, gigabytes in CARDS:
            found = count(precision, capability, gigabytes, views)
            card = f"sm{capability[0]}{capability[1]}"
            numbers = "  ".join(f"{one} {number:5.1f}" for one, number in found._asdict().items())
            print(f"{name:21} {precision:8} {card}  {numbers}", flush=True)  # noqa: T201
