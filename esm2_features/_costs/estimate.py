"""How long a run takes, and the memory and disk that it needs."""

from __future__ import annotations

from dataclasses import dataclass

from esm2_features._cache.keys import KEY_BYTES
from esm2_features._costs.cards import CARDS, Range, flop, roofline
from esm2_features._costs.input_summary import InputSummary
from esm2_features._engine import Engine
from esm2_features._model.packing import BYTES_PER_NUMBER_OF_WIDTH, cuda_budget

_CHECK_BYTES = 4  # checksum of each cached vector, beside its key
CACHE_STRUCTURE = 1.03  # a few percent beside vectors, keys and checksums
_RECORD_BYTES = 400  # of a record in memory beside its letters: Python's objects
_PROCESS_BYTES = 400_000_000  # Python and torch
_BYTES_OF = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    device: str
    seconds: Range
    batch_tokens: int  # tokens at a time that suit the device
    device_bytes: int  # of the card or, on a CPU, of the process without its input and output
    embed_bytes: int  # of a process that holds all sequences and all vectors, as `embed -o` does
    fits: bool | None  # whether a card has that much memory; None of a device of this machine
    output_bytes: dict[str, int]  # on disk, by dtype
    cache_bytes: dict[str, int]  # on disk, by dtype
    basis: str  # what the time rests on


def estimate(engine: Engine, summary: InputSummary, *, card: str | None = None) -> Estimate:
    """Estimate what a run without a cache takes, on the engine's device or a card not here."""
    shape, columns = engine.checkpoint.architecture, len(engine.layers) * len(engine.poolings)
    blocks = shape.layers if "parti" in engine.poolings else max(1, *engine.layers)
    weights = shape.parameters * (4 if engine.precision == "float32" else 2)
    if card is not None:
        device, memory, _ = CARDS[card]
        operations = flop(shape, blocks, summary.passes)
        seconds, basis = roofline(CARDS[card], engine.precision, operations)
        budget = cuda_budget(max(0, memory - weights), shape.dim)
    else:
        from esm2_features._costs.calibration import calibrate
        from esm2_features._model.devices import default_batch_tokens, resolve_device, title_of

        seconds, basis = calibrate(engine, summary, blocks)
        home = resolve_device(str(engine.device))
        device, budget = title_of(home), default_batch_tokens(home, shape.dim)
    one_pass = max(budget, *summary.passes) * BYTES_PER_NUMBER_OF_WIDTH * shape.dim
    on_device = weights + one_pass + (_PROCESS_BYTES if device == "cpu" else 0)
    width, written = columns * shape.dim, summary.sequences - summary.left_out
    held = (4 * width + _RECORD_BYTES) * written + summary.text_bytes
    cached = columns * (KEY_BYTES + _CHECK_BYTES)  # beside the numbers
    return Estimate(
        device=device,
        seconds=seconds,
        batch_tokens=budget,
        device_bytes=on_device,
        embed_bytes=held + (on_device if device == "cpu" else _PROCESS_BYTES),
        fits=None if card is None else on_device < memory,
        output_bytes={dtype: size * width * written for dtype, size in _BYTES_OF.items()},
        cache_bytes={
            dtype: round(CACHE_STRUCTURE * summary.unique * (size * width + cached))
            for dtype, size in _BYTES_OF.items()
        },
        basis=basis,
    )
