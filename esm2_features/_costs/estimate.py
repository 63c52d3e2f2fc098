"""How long a run takes, and the memory and disk that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from esm2_features._cache.keys import KEY_BYTES
from esm2_features._costs.cards import CARDS, SHARE_OF_PEAK, flop, roofline
from esm2_features._costs.input_summary import InputSummary
from esm2_features._engine import Engine
from esm2_features._model.packing import BYTES_PER_NUMBER_OF_WIDTH, cuda_budget
from esm2_features.exceptions import InputError

_CHECK_BYTES = 4
"""Checksum of each cached vector, beside its key."""
CACHE_STRUCTURE = 1.03
"""What a cache takes beside its vectors, keys and checksums: a few percent."""
_RECORD_BYTES = 400
"""A record in memory beside its letters: objects of Python for id, header, sequence, view."""
_PROCESS_BYTES = 400_000_000
"""Python and torch."""
_MARGIN = 1.25
"""How far the whole run may be from its sample, beyond what the rounds differ by."""
_BYTES_OF = {"float32": 4, "float16": 2}


class Range(NamedTuple):
    """A figure that is not known exactly."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    device: str
    seconds: Range
    flop: float  # of affine layers and attention
    batch_tokens: int  # tokens of a forward pass that suit the device
    device_bytes: int  # of the card or, on a CPU, of the process without its input and output
    embed_bytes: int  # of a process that holds all sequences and all vectors, as `embed -o` does
    fits: bool | None  # whether a card has that much memory; None of a device of this machine
    output_bytes: dict[str, int]  # on disk, by dtype
    cache_bytes: dict[str, int]  # on disk, by dtype
    basis: str  # what the time rests on


def estimate(engine: Engine, summary: InputSummary, *, card: str | None = None) -> Estimate:
    """Estimate what a run takes on the engine's device, or on a card that is not here.

    For sequences that are not in the cache yet, and without the loading of weights.
    """
    shape, precision = engine.checkpoint.architecture, engine.precision
    # The attention maps of all blocks are what parti looks at.
    blocks = shape.layers if "parti" in engine.poolings else max(1, *engine.layers)
    operations = flop(shape, blocks, summary.passes)
    weights = shape.parameters * (4 if precision == "float32" else 2)
    if card is not None:
        chosen = CARDS[card]
        low, high = roofline(chosen, precision, operations)
        seconds, device = Range(low, sqrt(low * high), high), chosen.title
        budget = cuda_budget(max(0, chosen.memory - weights), shape.dim)
        basis = (
            f"Not measured: between {SHARE_OF_PEAK[0]:.0%} and {SHARE_OF_PEAK[1]:.0%} of the peak "
            f"of {device}, {chosen.peak[precision] / 1e12:g} TFLOP/s in {precision} by its data "
            "sheet. In the middle stands the geometric mean. Attention maps for parti are not "
            "counted."
        )
    else:
        from esm2_features._costs.calibration import calibrate
        from esm2_features._model.devices import default_batch_tokens, resolve_device, title_of

        if isinstance(engine.device, list) or "+" in engine.device or engine.device == "all":
            raise InputError(f"Got device={engine.device!r}; an estimate is for one device.")
        sample = calibrate(engine, summary, blocks)
        rounds = [rate * operations for rate in sample.seconds_per_flop]
        seconds = Range(rounds[0] / _MARGIN, rounds[len(rounds) // 2], rounds[-1] * _MARGIN)
        home = resolve_device(engine.device)
        budget, device = default_batch_tokens(home, shape.dim), title_of(home)
        basis = (
            f"Timed here, on {device}, in {len(rounds)} rounds: {sample.sequences} sequences of "
            f"the input's lengths through {sample.blocks} of {shape.layers} blocks, with random "
            "weights. The time of all sequences is in proportion to their FLOP; the range is "
            f"{_MARGIN - 1:.0%} wider than that of the rounds. Other processes are part of it."
        )
    on_cpu = _PROCESS_BYTES if device == "cpu" else 0
    one_pass = max(budget, *summary.passes) * BYTES_PER_NUMBER_OF_WIDTH * shape.dim
    on_device = weights + one_pass + on_cpu
    columns, written = (
        len(engine.layers) * len(engine.poolings),
        summary.sequences - summary.left_out,
    )
    width, extra = columns * shape.dim, columns * (KEY_BYTES + _CHECK_BYTES)
    held = (4 * width + _RECORD_BYTES) * written + summary.text_bytes
    return Estimate(
        device=device,
        seconds=seconds,
        flop=operations,
        batch_tokens=engine.batch_tokens or budget,
        device_bytes=on_device,
        embed_bytes=held + (on_device if on_cpu else _PROCESS_BYTES),
        fits=None if card is None else on_device < CARDS[card].memory,
        output_bytes={dtype: size * width * written for dtype, size in _BYTES_OF.items()},
        cache_bytes={
            dtype: round(CACHE_STRUCTURE * summary.unique * (size * width + extra))
            for dtype, size in _BYTES_OF.items()
        },
        basis=basis,
    )
