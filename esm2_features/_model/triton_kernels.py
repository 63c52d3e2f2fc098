"""Steps of a block in one kernel each, in Triton; `fusion` says when they are used.

Triton comes with PyTorch's CUDA wheels. Its compiler has to see each kernel as a function of this
module, so importing it needs Triton. Kernels compute in float32, as PyTorch's own steps do here.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
# mypy: disallow-incomplete-defs=False, disallow-untyped-calls=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_PAIRS = 1024
"""Pairs of numbers that one block of threads turns."""

_EPSILON = 1e-5
"""What PyTorch's `layer_norm` adds to a variance, unless told otherwise."""


def turn_(qk_TNH: Tensor, turns_T1P: Tensor) -> None:
    """Turn queries and keys in place, as `Rotary.turn`; they may be part of a wider row."""
    tokens, heads, width = qk_TNH.shape
    pairs = heads * width // 2
    block = min(_MOST_PAIRS, triton.next_power_of_2(pairs))
    with torch.cuda.device_of(qk_TNH):
        _turn[tokens, triton.cdiv(pairs, block)](
            qk_TNH,
            torch.view_as_real(turns_T1P.contiguous()),
            qk_TNH.stride(0),
            PAIRS=pairs,
            PAIRS_OF_HEAD=width // 2,
            BLOCK=block,
            enable_fp_fusion=False,
        )


def add_norm(
    x_TD: Tensor, y_TD: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Add, if there is something to add; return the sum, and its norm in ``dtype``."""
    tokens, width = x_TD.shape
    added = x_TD if y_TD is None else torch.empty_like(x_TD)
    normed = torch.empty_like(x_TD, dtype=dtype)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(x_TD):
        _add_norm[(tokens,)](
            *(x_TD, y_TD, weight, bias, added, normed, _EPSILON),
            WIDTH=width,
            HAS_Y=y_TD is not None,
            BLOCK=block,
            enable_fp_fusion=False,
            num_warps=min(16, max(1, block // 512)),
        )
    return added, normed


@triton.jit
def _turn(qk, turns, stride, PAIRS: tl.constexpr, PAIRS_OF_HEAD: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    is_there = number < 2 * PAIRS
    row = qk + token * stride
    both = tl.load(row + number, mask=is_there, other=0.0).to(tl.float32)
    first, second = tl.split(tl.reshape(both, (BLOCK, 2)))
    turn = turns + token * 2 * PAIRS_OF_HEAD + number % (2 * PAIRS_OF_HEAD)
    cos, sin = tl.split(tl.reshape(tl.load(turn), (BLOCK, 2)))
    turned = tl.interleave(first * cos - second * sin, first * sin + second * cos)
    tl.store(row + number, turned.to(qk.dtype.element_ty), mask=is_there)


@triton.jit
def _add_norm(
    x, y, weight, bias, added, normed, epsilon,
    WIDTH: tl.constexpr, HAS_Y: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    is_there = column < WIDTH
    number = tl.program_id(0).to(tl.int64) * WIDTH + column
    row = tl.load(x + number, mask=is_there, other=0.0)
    if HAS_Y:
        row += tl.load(y + number, mask=is_there, other=0.0).to(tl.float32)
        tl.store(added + number, row, mask=is_there)
    centred = tl.where(is_there, row - tl.sum(row, 0) / WIDTH, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + epsilon)
    scaled = centred * scale * tl.load(weight + column, mask=is_there, other=0.0)
    shifted = scaled + tl.load(bias + column, mask=is_there, other=0.0)
    tl.store(normed + number, shifted.to(normed.dtype.element_ty), mask=is_there)
