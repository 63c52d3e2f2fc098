"""A timed sample on this machine: sequences of the input's lengths through random weights.

The time of a product does not depend on its numbers, so no weights have to be here. The blocks of a
network are all alike, so of a large one only a few are made and timed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from esm2_features._checkpoints.catalogue import Architecture, ModelCard
from esm2_features._checkpoints.checkpoint import Checkpoint
from esm2_features._checkpoints.names import CONTACTS, ROTARY, TIED, tensor_shapes
from esm2_features._costs.cards import flop
from esm2_features._costs.input_summary import InputSummary, lengths_at, passes_of
from esm2_features._engine import Engine
from esm2_features._inference.networks import forget_network
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT_BYTES = 1 << 29
"""Of random weights, unless two blocks have more."""
_ROUNDS, _ROUND_SECONDS, _MOST_SECONDS = 3, 1.0, 10.0
"""Rounds, what one should take, and after how many seconds no other is begun."""


class Calibration(NamedTuple):
    """How fast this machine computes an input."""

    seconds_per_flop: list[float]  # in each of the rounds, the fastest first
    sequences: int  # in the sample
    blocks: int  # of the network that was timed


class _RandomCheckpoint(Checkpoint):
    def load(self) -> dict[str, Tensor]:
        import torch

        return {
            name: torch.empty(shape).uniform_(-0.1, 0.1)
            for name, shape in tensor_shapes(self.architecture).items()
            if not name.endswith((ROTARY, TIED, *CONTACTS))
        }


def calibrate(engine: Engine, summary: InputSummary, blocks: int) -> Calibration:
    """Time a sample, through a network like that of ``engine`` with at most so many blocks."""
    shape = engine.checkpoint.architecture
    blocks = min(blocks, max(2, _WEIGHT_BYTES // (4 * 12 * shape.dim**2)))
    timed = Architecture(blocks, shape.dim, shape.heads)
    name = f"random weights of {timed}"
    checkpoint = _RandomCheckpoint(name, timed, ModelCard(name, "", timed))
    engine = Engine(
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
        engine.embed([CANONICAL_RESIDUES])  # makes the weights, and starts the threads
        sequences, rounds = _timed_rounds(engine, summary)
    finally:
        forget_network(checkpoint, device=str(engine.device), precision=engine.precision)
    operations = flop(timed, blocks, passes_of(Counter(map(len, sequences)), summary.window))
    return Calibration([each / operations for each in sorted(rounds)], len(sequences), blocks)


def _timed_rounds(engine: Engine, summary: InputSummary) -> tuple[list[str], list[float]]:
    """Let the sample grow until it takes long enough, and give the seconds of some rounds."""
    count = 1
    while True:
        # At even steps through the distribution: one sequence has the median length.
        sequences = _random_sequences(lengths_at(summary.lengths, (np.arange(count) + 0.5) / count))
        rounds = [_seconds(engine, sequences)]
        if rounds[0] >= _ROUND_SECONDS or count == summary.unique:
            break
        grow = min(10.0, max(2.0, _ROUND_SECONDS / rounds[0]))
        count = min(summary.unique, int(count * grow))
    while len(rounds) < _ROUNDS and sum(rounds) < _MOST_SECONDS:
        rounds.append(_seconds(engine, sequences))
    return sequences, rounds


def _seconds(engine: Engine, sequences: Sequence[str]) -> float:
    start = time.perf_counter()
    engine.embed(sequences)
    return time.perf_counter() - start


def _random_sequences(lengths: Sequence[int]) -> list[str]:
    """Make different sequences of these lengths; of peptides so short that they repeat, fewer."""
    letters = np.random.default_rng(0).choice(list(CANONICAL_RESIDUES), sum(lengths))
    text, ends = "".join(letters), np.cumsum(lengths)
    return list(dict.fromkeys(text[end - n : end] for n, end in zip(lengths, ends, strict=True)))
