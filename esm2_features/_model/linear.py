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

_ROWS_HINT = 2048
"""Rows for which oneDNN picks its layout; any number of rows may follow."""

_LONGEST_SUM = 1024
"""Terms that oneDNN adds up in a row in float32. It rounds after each, so the error of a long sum
is more than twice that of the usual library's; in pieces, it is not, and takes 5 % more time."""


class Linear:
    """An affine layer ``x W' + b`` whose weight is laid out for one device."""

    __slots__ = ("_bias", "_pieces", "_terms", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._bias = bias
        self._terms = _terms_of_a_piece(weight)
        self._weight: Tensor | None = weight
        self._pieces: list[Tensor] = []
        if _can_pack(weight):
            self._weight = None
            self._pieces = [
                torch.ops.mkldnn._reorder_linear_weight(piece.contiguous(), _ROWS_HINT)
                for piece in torch.split(weight, self._terms, dim=1)
            ]

    def __call__(self, x_TI: Tensor, *, gelu: bool = False, onto: Tensor | None = None) -> Tensor:
        """Apply the layer, and what follows it."""
        if self._weight is None:
            return self._packed(x_TI, gelu=gelu, onto=onto)
        y_TO = torch.nn.functional.linear(x_TI, self._weight, self._bias)
        if gelu:
            y_TO = torch.nn.functional.gelu(y_TO)
        return y_TO if onto is None else onto + y_TO

    def _packed(self, x_TI: Tensor, *, gelu: bool, onto: Tensor | None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        first, *others = self._pieces
        y_TO: Tensor
        if onto is not None and onto.dtype == x_TI.dtype and len(x_TI) > 1 and not (others or gelu):
            y_TO = product.binary(x_TI, onto, first, self._bias, "add")
            return y_TO
        if len(x_TI) == 1:  # oneDNN has another kernel for one row, which rounds otherwise
            y_TO = self._packed(x_TI.repeat(2, 1), gelu=gelu, onto=None)[:1]
        elif not others:
            y_TO = product(x_TI, first, self._bias, "gelu" if gelu else "none", [], "none")
        else:
            first_TP, *others_TP = torch.split(x_TI, self._terms, dim=1)
            y_TO = product(first_TP, first, self._bias, "none", [], "none")
            for x_TP, piece in zip(others_TP, others, strict=True):
                y_TO = product.binary(x_TP, y_TO, piece, None, "add")
            y_TO = torch.nn.functional.gelu(y_TO) if gelu else y_TO
        return y_TO if onto is None else onto + y_TO


def _terms_of_a_piece(weight: Tensor) -> int:
    """Divide the terms of a long sum evenly, in multiples of 64."""
    terms = weight.shape[1]
    if weight.dtype != torch.float32:
        return terms  # oneDNN adds up in float32; pieces would be rounded to bfloat16
    pieces = -(-terms // _LONGEST_SUM)
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
