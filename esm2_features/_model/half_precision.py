"""Half precision: whether this processor gains by it, and what a user of a card should know of it.

Source of the figures: `benchmarks/exactness.py`, a fine-tuned ESM-2 8M.
"""

from __future__ import annotations

import time
import warnings
from functools import lru_cache

import torch

from esm2_features._model.linear import Linear

_ROWS, _WIDTH = 256, 640
_TIMES = 3
_LEAST_GAIN = 1.2
"""Of bare products: the rest of a pass takes as long as in float32."""

ON_A_CARD = (
    'Cards multiply several times as fast in half precision. precision="float16" changes '
    "embeddings by 0.1 to 0.2 % of the spread between proteins, and by 2 % of that between single "
    "mutants of one protein (`esm2-features verify --precision float16` measures your model)."
)


@lru_cache
def gain(precision: str) -> float:
    """Measure how many times as fast as in float32 this processor multiplies, in some 50 ms."""
    return _seconds("float32") / _seconds(precision)


def warn_if_slow(precision: str) -> None:
    """Warn of a half precision that gains nothing on this processor."""
    times = gain(precision)
    if times < _LEAST_GAIN:
        warnings.warn(
            f'precision="{precision}" brings no speed on this processor, which multiplies matrices '
            f"{times:.2g} times as fast as in float32. It halves the memory of the weights; for "
            'anything else take precision="float32", which is exact.',
            UserWarning,
            stacklevel=2,
        )


def _seconds(precision: str) -> float:
    dtype = getattr(torch, precision)
    weight = torch.full((4 * _WIDTH, _WIDTH), 0.5, dtype=dtype)
    layer = Linear(weight, torch.zeros(4 * _WIDTH, dtype=dtype))
    x_TI = torch.ones(_ROWS, _WIDTH, dtype=dtype)
    layer(x_TI)
    times = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        layer(x_TI)
        times.append(time.perf_counter() - start)
    return min(times)
