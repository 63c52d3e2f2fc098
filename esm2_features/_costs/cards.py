"""Cards that nobody has measured: the figures of their data sheets, and a roofline range."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import NamedTuple

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features.exceptions import InputError

SHARE_OF_PEAK = (0.2, 0.6)  # that a run is assumed to reach, at worst and at best


class Card(NamedTuple):
    """What the data sheet of a card states, below https://www.nvidia.com/en-us/data-center/."""

    title: str
    memory: int  # bytes
    peak: dict[str, float]  # FLOP/s of dense products by precision; float32 is without TF32


_HOPPER = {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12}
_AMPERE = {"float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12}
_ADA = {"float32": 30.3e12, "bfloat16": 121e12, "float16": 121e12}
CARDS = {
    "h200": Card("NVIDIA H200 (SXM)", 141 * 10**9, _HOPPER),
    "h100": Card("NVIDIA H100 (SXM)", 80 * 10**9, _HOPPER),
    "a100": Card("NVIDIA A100 (SXM)", 80 * 10**9, _AMPERE),
    "l4": Card("NVIDIA L4", 24 * 10**9, _ADA),
    "t4": Card("NVIDIA T4", 16 * 10**9, {"float32": 8.1e12, "float16": 65e12}),
}


class Range(NamedTuple):
    """A figure that is not known exactly."""

    low: float
    middle: float
    high: float


def flop(architecture: Architecture, blocks: int, passes: Mapping[int, int]) -> float:
    """Count the operations of affine layers and attention for sequences of so many tokens."""
    tokens = sum(n * count for n, count in passes.items())
    pairs = sum(n * n * count for n, count in passes.items())
    return float(blocks * (24 * architecture.dim**2 * tokens + 4 * architecture.dim * pairs))


def roofline(card: Card, precision: str, operations: float) -> tuple[Range, str]:
    """Give the seconds that this many FLOP take on a card, and what they rest on."""
    if precision not in card.peak:
        raise InputError(
            f"{card.title} has no units for {precision=}. Choose one of {', '.join(card.peak)}."
        )
    (worst, best), peak = SHARE_OF_PEAK, card.peak[precision]
    low, high = operations / (best * peak), operations / (worst * peak)
    return Range(low, sqrt(low * high), high), (
        f"Not measured: between {worst:.0%} and {best:.0%} of the peak of {card.title}, "
        f"{peak / 1e12:g} TFLOP/s in {precision} by its data sheet. In the middle stands the "
        "geometric mean. The attention maps for parti are not counted."
    )
