"""float32 products on the units of a card that multiply bfloat16, as sums of six such products.

A float32 number is the sum of three bfloat16 numbers. Of the nine products of two such sums, the
three smallest are below the rounding of float32. The other six lie side by side in one product
that adds up in float32, the smallest first. It needs no setting of the whole process, as three
products in TensorFloat-32 would. Weights take three times their memory.

Source: Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
Higher-Precision Computations", ARITH 2019.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import torch
from torch import Tensor

from esm2_features._model.devices import is_out_of_memory

_logger = logging.getLogger("esm2_features")

_OF_X = (2, 0, 1, 1, 0, 0)
_OF_WEIGHT = (0, 2, 1, 0, 1, 0)

_COPIED_BYTES = 1 << 28
"""Bytes of parts that lie side by side at a time."""

_MOST_ERROR = 1.25
"""Error of a product, over that of the card's own in float32, beyond which it is not used."""


class SplitWeight:
    """A weight as three bfloat16 numbers for each of its own."""

    def __init__(self, weight: Tensor) -> None:
        self._wide = _side_by_side(weight, _OF_WEIGHT)

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Multiply rows with it: ``x W'``."""
        rows = max(1, _COPIED_BYTES // (2 * self._wide.shape[1]))
        parts = [
            torch.mm(_side_by_side(some, _OF_X), self._wide.T, out_dtype=torch.float32)
            for some in torch.split(x_TI, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@lru_cache
def is_usable(device: torch.device) -> bool:
    """Whether ``ESM2_FEATURES_SPLIT_FLOAT32`` asks for it, and this device computes it right."""
    asked = os.environ.get("ESM2_FEATURES_SPLIT_FLOAT32", "").strip().lower()
    if asked not in {"1", "true", "yes", "on"} or device.type != "cuda":
        return False
    try:
        error = _relative_error(device)
    except Exception as failure:  # an older PyTorch, or a card before compute capability 8.0
        if is_out_of_memory(failure):
            raise
        _logger.warning("Split products are not used on %s: %r", device, failure)
        return False
    if error > _MOST_ERROR:
        _logger.warning("Split products are not used on %s: %.3g times the error", device, error)
    return error <= _MOST_ERROR


def _relative_error(device: torch.device) -> float:
    """Measure the error of a product, over that of the device's own product in float32."""
    noise = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 512, generator=noise, device="cpu") for rows in (64, 256))
    exact = x.double() @ weight.double().T
    on_device = x.to(device), weight.to(device)
    plain = torch.nn.functional.linear(*on_device)
    split = SplitWeight(on_device[1])(on_device[0])
    errors = [(found.cpu().double() - exact).square().mean().sqrt() for found in (split, plain)]
    return float(errors[0] / errors[1])


def _side_by_side(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """Split numbers into parts of 8 bits each, and lay these out in an order."""
    parts = []
    for _ in range(3):
        parts.append(x.to(torch.bfloat16))
        x = x - parts[-1]  # without rounding
    return torch.cat([parts[i] for i in order], dim=1)
