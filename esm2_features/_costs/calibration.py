"""A timed sample on this machine: sequences of the input's lengths through random weights.

Time does not depend on the weights. All blocks are alike, so a large network has only a few here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import median
from timeit import timeit
from typing import Any

import numpy as np

from esm2_features._checkpoints import Checkpoint
from esm2_features._checkpoints.catalogue import Architecture, ModelCard
from esm2_features._checkpoints.names import CONTACTS, ROTARY, TIED, tensor_shapes
from esm2_features._costs.cards import Range, flop
from esm2_features._costs.input_summary import InputSummary, lengths_at, passes_of
from esm2_features._engine import Engine
from esm2_features._inference.networks import forget_network
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features.exceptions import InputError

_WEIGHT_BYTES = 1 << 29  # of random weights, unless two blocks have more
_ROUNDS, _ROUND_SECONDS = 3, 1.0
_MOST_SECONDS = 10.0  # of all rounds; after that, no other begins
_MARGIN = 1.25  # how far the whole run may be from its sample, beside what the rounds differ by


class _RandomCheckpoint(Checkpoint):
    def load(self) -> dict[str, Any]:
        import torch

        return {
            name: torch.empty(shape).uniform_(-0.1, 0.1)
            for name, shape in tensor_shapes(self.architecture).items()
            if not name.endswith((ROTARY, TIED, *CONTACTS))
        }


def calibrate(engine: Engine, summary: InputSummary, blocks: int) -> tuple[Range, str]:
    """Time a sample on the engine's device; give seconds of the input, and what they rest on."""
    if isinstance(engine.device, list) or "+" in engine.device or engine.device == "all":
        raise InputError(f"Got device={engine.device!r}; an estimate is for one device.")
    shape = engine.checkpoint.architecture
    few = min(blocks, max(2, _WEIGHT_BYTES // (4 * 12 * shape.dim**2)))
    timed = Architecture(few, shape.dim, shape.heads)
    name = f"random weights of {timed}"
    checkpoint = _RandomCheckpoint(name, timed, ModelCard(name, "", timed))
    like = Engine(
        checkpoint,  # type: ignore[arg-type]  # `open_checkpoint` takes it as it is
        layers="all" if len(engine.layers) > 1 else -1,
        pooling=list(engine.poolings),
        precision=engine.precision,
        device=engine.device,
        max_residues=summary.window or None,
        too_long="window" if summary.window else "raise",
        cache=None,
    )
    try:
        like.embed([CANONICAL_RESIDUES])  # makes the weights, and starts the threads
        sequences, rounds = _timed_rounds(like, summary)
    finally:
        forget_network(checkpoint, device=engine.device, precision=engine.precision)
    sample = passes_of(Counter(map(len, sequences)), summary.window)
    times = flop(shape, blocks, summary.passes) / flop(timed, few, sample)
    low, middle, high = times * min(rounds), times * median(rounds), times * max(rounds)
    return Range(low / _MARGIN, middle, high * _MARGIN), (
        f"Timed on this machine, in {len(rounds)} rounds: a sample with the lengths of "
        f"{len(sequences)} of {summary.unique} sequences, through {few} of {shape.layers} blocks "
        "with random weights. The whole input takes longer in proportion to its FLOP; the range is "
        f"{_MARGIN - 1:.0%} wider than that of the rounds. Other processes are part of it."
    )


def _timed_rounds(engine: Engine, summary: InputSummary) -> tuple[list[str], list[float]]:
    """Let the sample grow until it takes long enough, and give the seconds of some rounds."""
    count = 1
    while True:
        # At even steps through the distribution: one sequence has the median length.
        sequences = _random_sequences(lengths_at(summary.lengths, (np.arange(count) + 0.5) / count))
        embed = partial(engine.embed, sequences)
        rounds = [timeit(embed, number=1)]
        if rounds[0] >= _ROUND_SECONDS or count == summary.unique:
            break
        grow = min(10.0, max(2.0, _ROUND_SECONDS / rounds[0]))
        count = min(summary.unique, int(count * grow))
    while len(rounds) < _ROUNDS and sum(rounds) < _MOST_SECONDS:
        rounds.append(timeit(embed, number=1))
    return sequences, rounds


def _random_sequences(lengths: Sequence[int]) -> list[str]:
    """Make different sequences of these lengths; of peptides so short that they repeat, fewer."""
    letters = np.random.default_rng(0).choice(list(CANONICAL_RESIDUES), sum(lengths))
    text, ends = "".join(letters), np.cumsum(lengths)
    return list(dict.fromkeys(text[end - n : end] for n, end in zip(lengths, ends, strict=True)))
