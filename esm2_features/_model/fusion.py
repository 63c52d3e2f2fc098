"""Which steps of a block are one kernel each, where PyTorch's own would be several."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from esm2_features._model.attention import Rotary
from esm2_features._model.devices import is_out_of_memory

_logger = logging.getLogger("esm2_features")

_TOLERANCE = {torch.float16: 0.004, torch.bfloat16: 0.04}
"""Error of a kernel on random numbers, beyond which it is not used: a digit more than numbers of
their size are rounded by."""


class Kernels(Protocol):
    """What `triton_kernels` has."""

    def turn_(self, qk_TNH: Tensor, turns_T1P: Tensor) -> None: ...

    def add_norm(
        self,
        x_TD: Tensor,
        y_TD: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]: ...


@lru_cache
def find_kernels(device: torch.device, dtype: torch.dtype, dim: int, heads: int) -> Kernels | None:
    """Find fused kernels that compute correctly on this device, for blocks of this shape.

    There are none in float32, where these steps are 4 of 168 bytes that a block moves.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return None
    try:
        kernels = cast(Kernels, import_module("esm2_features._model.triton_kernels"))
        error = _worst_error(kernels, device, dtype, dim, heads)
    except Exception as failure:  # no Triton, no compiler for it, or not for this card
        if is_out_of_memory(failure):
            raise  # it may be there the next time
        _logger.info("Fused kernels are not used on %s: %r", device, failure)
        return None
    if error <= _TOLERANCE[dtype]:
        return kernels
    _logger.info("Fused kernels are not used on %s: they err by %.2g", device, error)
    return None


def _worst_error(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int, heads: int
) -> float:
    """Run the kernels on random numbers, next to what they replace."""
    rows, noise = 5, torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise, device="cpu")

    x, weight, bias = random(rows, dim), random(dim), random(dim)
    y, qkv = random(rows, dim).to(dtype), random(rows, 3 * heads, dim // heads).to(dtype)
    angles = random(rows, 1, dim // heads // 2)
    turns, turned = torch.polar(torch.ones_like(angles), angles), qkv.float()
    Rotary.turn(turned[:, : 2 * heads], turns)
    expected = [turned, x + y, *(layer_norm(one, (dim,), weight, bias) for one in (x + y, x))]
    x, y, weight, bias, qkv = (one.to(device) for one in (x, y, weight, bias, qkv))
    kernels.turn_(qkv[:, : 2 * heads], turns.to(device))
    found = [qkv, *kernels.add_norm(x, y, weight, bias, dtype)]
    found.append(kernels.add_norm(x, None, weight, bias, dtype)[1])
    # A number is rounded by a share of its size. What is not a number is the worst.
    errors = [
        ((one.cpu().float() - other).abs() / other.abs().clamp(min=1)).nan_to_num(torch.inf).max()
        for one, other in zip(found, expected, strict=True)
    ]
    return float(max(errors))
