"""How a matrix product is done: one affine layer, prepared once for its device.

On x86 the weights are reordered once for oneDNN. That is faster than a plain product, and
it makes a row of the result independent of how many rows are computed with it, bit for
bit, which the default library does not promise. PyTorch offers the reordering under a
private name only, so everything here works without it too.

Never here: names of weights, layers of the network.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

_ROWS_HINT = 2048
"""Rows for which oneDNN picks its layout; any number of rows may follow."""

_LONGEST_SUM = 640
"""Terms that oneDNN adds up in a row. It rounds after each, so the error of a long sum is twice
that of the usual library's; in pieces, it is not, and takes a tenth of the time more."""


class Linear:
    """An affine layer ``x W' + b`` whose weight is laid out for one device.

    Parameters
    ----------
    weight : Tensor of shape (out, in)
    bias : Tensor of shape (out,)
        On the same device and of the same dtype.
    """

    __slots__ = ("_bias", "_pieces", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self._bias = bias
        self._weight: Tensor | None = weight
        self._pieces: list[Tensor] = []
        if _can_pack(weight):
            self._weight = None
            self._pieces = [
                torch.ops.mkldnn._reorder_linear_weight(piece, _ROWS_HINT)
                for piece in torch.split(weight, _LONGEST_SUM, dim=1)
            ]

    def __call__(self, x_TI: Tensor, *, gelu: bool = False) -> Tensor:
        """Apply the layer, and the exact (error function) GELU after it if asked.

        Parameters
        ----------
        x_TI : Tensor of shape (tokens, in)
        gelu : bool

        Returns
        -------
        y_TO : Tensor of shape (tokens, out)
        """
        if self._weight is not None:
            y_TO = torch.nn.functional.linear(x_TI, self._weight, self._bias)
            return torch.nn.functional.gelu(y_TO) if gelu else y_TO
        product = torch.ops.mkldnn._linear_pointwise
        first, *others = zip(torch.split(x_TI, _LONGEST_SUM, dim=1), self._pieces, strict=True)
        fused = "gelu" if gelu and not others else "none"
        y_TO = product(*first, self._bias, fused, [], "none")
        for x_TP, piece in others:
            y_TO = product.binary(x_TP, y_TO, piece, None, "add")
        return torch.nn.functional.gelu(y_TO) if gelu and others else y_TO


def _can_pack(weight: Tensor) -> bool:
    """Tell whether this PyTorch can reorder this weight for this processor."""
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
