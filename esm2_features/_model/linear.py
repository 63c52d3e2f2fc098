"""How matrix products are done: affine layers, prepared once for their device.

On x86 the weights are reordered once for oneDNN. That is faster than a plain product, and
it makes a row of the result independent of how many rows are computed with it, bit for
bit, which the default library does not promise. PyTorch offers the reordering under a
private name only, so everything here works without it too.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable

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

_ROWS_OF_A_THREAD = 512
"""Rows that a thread takes through both layers of a feed-forward part at a time."""

_NUMBERS_OF_GELU = 1 << 18
"""Numbers that a thread applies GELU to at a time."""

_FEWEST_ROWS = 64

_SQRT_HALF = 0.5**0.5


class Linear:
    """An affine layer ``x W' + b`` whose weight is laid out for one device.

    ``terms`` is the number of terms in a piece of its sums, all of them where there is one piece.
    """

    __slots__ = ("_pieces", "_split", "_weight", "bias", "terms")

    def __init__(self, weight: Tensor, bias: Tensor, longest_sum: int | None = None) -> None:
        self.bias = bias
        self.terms = weight.shape[1]
        self._weight: Tensor | None = weight
        self._split: SplitWeight | None = None
        self._pieces: list[Tensor] = []
        if weight.dtype == torch.float32 and is_usable(weight.device):
            self._weight, self._split = None, SplitWeight(weight)
        elif _can_pack(weight):
            self._weight = None
            self.terms = _terms_of_a_piece(weight, longest_sum or LONGEST_SUM)
            self._pieces = [
                torch.ops.mkldnn._reorder_linear_weight(piece.contiguous(), _ROWS_HINT)
                for piece in torch.split(weight, self.terms, dim=1)
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
            activation = "gelu" if gelu and not exact_gelu else "none"
            y_TO = self.sum_pieces(self.divide(x_TI), activation)[: len(x_TI)]
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

    def divide(self, x_TI: Tensor) -> list[Tensor]:
        """Divide the terms of the sums into those of each piece."""
        # oneDNN has another kernel for one row, which rounds otherwise.
        two_TI = x_TI.expand(2, -1) if len(x_TI) == 1 else x_TI
        return [x_TP.contiguous() for x_TP in torch.split(two_TI, self.terms, dim=1)]

    def sum_pieces(self, pieces: Iterable[Tensor], activation: str = "none") -> Tensor:
        """Multiply each piece by its part of the weight, and add up one after the other."""
        product = torch.ops.mkldnn._linear_pointwise
        y_TO: Tensor | None = None
        for k, (x_TP, weight) in enumerate(zip(pieces, self._pieces, strict=True), start=1):
            # The bias comes last: it may be larger than any piece.
            bias = self.bias if k == len(self._pieces) else None
            if y_TO is None:
                y_TO = product(x_TP, weight, bias, activation, [], "none")
            else:
                y_TO = product.binary(x_TP, y_TO, weight, bias, "add")
        assert y_TO is not None
        return y_TO


class FeedForward:
    """``W2 gelu(W1 x + b1) + b2``.

    Where the sums of the second layer are computed in pieces, the first one computes what a piece
    needs just before it, so that it is still cached and never copied. The bits are those of one
    layer after the other.
    """

    def __init__(self, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
        self._second = Linear(w2, b2)
        terms = self._second.terms
        parts = zip(torch.split(w1, terms), torch.split(b1, terms), strict=True)
        self._first = [Linear(*part) for part in parts]

    def __call__(self, x_TD: Tensor, onto: Tensor) -> Tensor:
        """Add what comes of ``x_TD`` to the residual stream ``onto``."""
        if len(self._first) == 1:
            return self._second(self._first[0](x_TD, gelu=True), onto=onto)
        y_TD = torch.empty_like(onto)
        rows = _ROWS_OF_A_THREAD * torch.get_num_threads()
        for x_RD, onto_RD, y_RD in zip(
            *(torch.split(t, rows) for t in (x_TD, onto, y_TD)), strict=True
        ):
            pieces = self._first[0].divide(x_RD)
            hidden = (_gelu_(part.sum_pieces(pieces)) for part in self._first)
            torch.add(self._second.sum_pieces(hidden)[: len(x_RD)], onto_RD, out=y_RD)
        return y_TD


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
