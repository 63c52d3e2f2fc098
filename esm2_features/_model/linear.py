"""How a matrix product is done: one affine layer, prepared once for its device.

On x86 the weights are reordered once for oneDNN. That is faster than a plain product, and
it makes a row of the result independent of how many rows are computed with it, bit for
bit, which the default library does not promise. PyTorch offers the reordering under a
private name only, so everything here works without it too.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from esm2_features._model.split_products import SplitWeight, is_usable

_ROWS_HINT = 2048
"""Rows for which oneDNN picks its layout; any number of rows may follow."""

LONGEST_SUM = 256
"""Terms that oneDNN adds up in a row in float32. It rounds after each, so the error grows with
the length of the sum. MKL divides its sums as well, every 192 terms."""

_NUMBERS_OF_A_THREAD = 1 << 20
"""Numbers of a result that a thread adds pieces of sums to at a time, while they are cached."""

_NUMBERS_OF_GELU = 1 << 18
"""Numbers that a thread applies GELU to at a time."""

_FEWEST_ROWS = 64

_SQRT_HALF = 0.5**0.5


class Linear:
    """An affine layer ``x W' + b`` whose weight is laid out for one device."""

    __slots__ = ("_pieces", "_split", "_terms", "_weight", "bias")

    def __init__(self, weight: Tensor, bias: Tensor, longest_sum: int | None = None) -> None:
        self.bias = bias
        self._terms = _terms_of_a_piece(weight, longest_sum or LONGEST_SUM)
        self._weight: Tensor | None = weight
        self._split: SplitWeight | None = None
        self._pieces: list[Tensor] = []
        if weight.dtype == torch.float32 and is_usable(weight.device):
            self._weight, self._split = None, SplitWeight(weight)
        elif _can_pack(weight):
            self._weight = None
            self._pieces = [
                torch.ops.mkldnn._reorder_linear_weight(piece.contiguous(), _ROWS_HINT)
                for piece in torch.split(weight, self._terms, dim=1)
            ]

    def __call__(self, x_TI: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor:
        """Apply the layer, and what follows it."""
        rows = _rows_of(_NUMBERS_OF_A_THREAD, len(self.bias))
        if len(self._pieces) < 2 or len(x_TI) <= rows:
            return self._apply(x_TI, gelu, onto)
        y_TO = x_TI.new_empty(len(x_TI), len(self.bias))
        for start in range(0, len(x_TI), rows):
            some = slice(start, start + rows)
            y_TO[some] = self._apply(x_TI[some], gelu, None if onto is None else onto[some])
        return y_TO

    def _apply(self, x_TI: Tensor, gelu: bool, onto: Tensor | None) -> Tensor:
        exact_gelu = gelu and x_TI.is_cpu and x_TI.dtype == torch.float32
        if not self._pieces:
            y_TO = self._unpacked(x_TI)
            if gelu and not exact_gelu:
                y_TO = torch.ops.aten.gelu_(y_TO)
        else:
            # oneDNN has another kernel for one row, which rounds otherwise.
            two_TI = x_TI.expand(2, -1) if len(x_TI) == 1 else x_TI
            y_TO = self._packed(two_TI, "gelu" if gelu and not exact_gelu else "none")[: len(x_TI)]
        if exact_gelu:
            y_TO = _gelu_(y_TO)
        if onto is None:
            return y_TO
        return y_TO.add_(onto) if y_TO.dtype == onto.dtype else onto + y_TO

    def _unpacked(self, x_TI: Tensor) -> Tensor:
        if self._split is not None:
            return self._split(x_TI).add_(self.bias)
        assert self._weight is not None
        return torch.nn.functional.linear(x_TI, self._weight, self.bias)

    def _packed(self, x_TI: Tensor, activation: str) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        *first, (last_TP, last) = zip(
            torch.split(x_TI, self._terms, dim=1), self._pieces, strict=True
        )
        y_TO: Tensor
        if not first:
            y_TO = product(last_TP, last, self.bias, activation, [], "none")
            return y_TO
        y_TO = product(*first[0], None, "none", [], "none")
        for x_TP, piece in first[1:]:
            y_TO = product.binary(x_TP, y_TO, piece, None, "add")
        # The bias comes last: it may be larger than any piece.
        y_TO = product.binary(last_TP, y_TO, last, self.bias, "add")
        return y_TO


def _gelu_(x_TO: Tensor) -> Tensor:
    """Apply GELU in place, some rows at a time, so that they stay in the caches.

    PyTorch's and oneDNN's own are polynomials on x86, whose errors are three times as large.
    """
    for part in torch.split(x_TO, _rows_of(_NUMBERS_OF_GELU, x_TO.shape[1])):
        half = part * 0.5
        torch.addcmul(half, half, part.mul_(_SQRT_HALF).erf_(), out=part)
    return x_TO


def _rows_of(numbers: int, width: int) -> int:
    """Divide so many numbers for each thread into rows, in steps of some."""
    rows = numbers * torch.get_num_threads() // width
    return max(_FEWEST_ROWS, rows // _FEWEST_ROWS * _FEWEST_ROWS)


def _terms_of_a_piece(weight: Tensor, longest_sum: int) -> int:
    """Divide the terms of a long sum evenly, in multiples of 64."""
    terms = weight.shape[1]
    if weight.dtype != torch.float32:
        return terms  # oneDNN adds up in float32; pieces would be rounded to bfloat16
    pieces = -(-terms // longest_sum)
    return -(-terms // (64 * pieces)) * 64


def _can_pack(weight: Tensor) -> bool:
    """Whether this PyTorch can reorder this weight for this processor."""
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    ops = torch.ops.mkldnn
    needed = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(ops, name) for name in needed):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported())
    )
