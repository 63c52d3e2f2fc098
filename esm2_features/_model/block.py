"""One transformer block and what it is made of, in reading order; shapes are named as in `esm2`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from esm2_features._model.attention import Attend, Rotary
from esm2_features._model.conditioning import PAIR_ORDER
from esm2_features._model.fusion import Kernels, find_kernels
from esm2_features._model.linear import FeedForward, Linear

_PARTS = ("weight", "bias")
_FUSED = "qkv_proj"


class Weights:
    """The tensors of a checkpoint, handed out once each, on their device."""

    def __init__(
        self, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._tensors = tensors
        self.device = device
        self.dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def exact(self, name: str) -> Tensor:
        return self._tensors.pop(name).to(self.device, torch.float32)

    def affine(self, name: str) -> tuple[Tensor, Tensor]:
        weight, bias = (
            self._tensors.pop(f"{name}.{part}").to(self.device, self.dtype) for part in _PARTS
        )
        return weight, bias

    def order(self, name: str) -> Tensor | None:
        """Take an order, if the weights have been rearranged."""
        order = self._tensors.pop(name, None)
        return None if order is None else order.to(self.device)


def fuse_projections(tensors: dict[str, Tensor], name: str, heads: int) -> None:
    """Make one of a block's three projections of attention, for `Rotary.turn` to turn."""
    attention, order = f"{name}.self_attn", tensors.get(f"{name}.{PAIR_ORDER}")
    for part in _PARTS:
        q, k, v = (tensors.pop(f"{attention}.{x}_proj.{part}") for x in "qkv")
        turned = [_pairs_together(rows, heads, order) for rows in (q, k)]
        tensors[f"{attention}.{_FUSED}.{part}"] = torch.cat([*turned, v])


def _pairs_together(rows: Tensor, heads: int, order: Tensor | None) -> Tensor:
    """Reorder the outputs of a projection so that the rotary pairs of a head are neighbours."""
    pairs = len(rows) // heads // 2
    divided = rows.view(heads, 2, pairs, *rows.shape[1:])
    if order is not None:
        divided = divided[:, :, order.to(rows.device)]
    return divided.transpose(1, 2).reshape(rows.shape)


class Norm:
    """Layer normalisation in float32."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weight = weights.exact(f"{name}.weight")
        self._bias = weights.exact(f"{name}.bias")

    def __call__(self, x_TD: Tensor) -> Tensor:
        return layer_norm(x_TD, self._weight.shape, self._weight, self._bias)

    def fused(
        self, kernels: Kernels, x_TD: Tensor, y_TD: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Add, if there is something to add; return the sum, and its norm in ``dtype``."""
        return kernels.add_norm(x_TD, y_TD, self._weight, self._bias, dtype)


class TransformerBlock:
    """One transformer block: attention, then feed-forward, each after a norm.

    Its projections are those of `fuse_projections`.
    """

    def __init__(self, weights: Weights, name: str, heads: int) -> None:
        self._dtype = weights.dtype
        attention = f"{name}.self_attn"
        self._attention_norm = Norm(weights, f"{attention}_layer_norm")
        self._pair_order = weights.order(f"{name}.{PAIR_ORDER}")
        self._qkv = Linear(*weights.affine(f"{attention}.{_FUSED}"))
        self._out = Linear(*weights.affine(f"{attention}.out_proj"))
        self._feed_forward_norm = Norm(weights, f"{name}.final_layer_norm")
        self._feed_forward = FeedForward(
            *weights.affine(f"{name}.fc1"), *weights.affine(f"{name}.fc2")
        )
        self._heads = heads
        dim = len(self._out.bias)
        self._kernels = find_kernels(weights.device, self._dtype, dim, heads)

    def project(self, x_TD: Tensor) -> Tensor:
        """Project each row to its queries, keys and values, side by side."""
        if self._kernels is not None:
            return self._qkv(self._attention_norm.fused(self._kernels, x_TD, None, self._dtype)[1])
        return self._qkv(self._attention_norm(x_TD).to(self._dtype))

    def __call__(
        self,
        x_TD: Tensor,
        qkv_TE: Tensor,
        turns_T1P: Tensor,
        attend: Attend,
        attention_hook: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Add attention and feed-forward to the residual stream."""
        heads_TNH = qkv_TE.view(len(x_TD), 3 * self._heads, -1)
        q_TNH, k_TNH = self._turned(heads_TNH[:, : 2 * self._heads], turns_T1P).chunk(2, dim=1)
        if attention_hook is not None:
            attention_hook(q_TNH, k_TNH)
        a_TNH = attend(q_TNH, k_TNH, heads_TNH[:, 2 * self._heads :])
        a_TD = a_TNH.flatten(1).to(self._dtype)
        if self._kernels is not None:
            y_TD = self._out(a_TD)
            x_TD, h_TD = self._feed_forward_norm.fused(self._kernels, x_TD, y_TD, self._dtype)
        else:
            x_TD = self._out(a_TD, onto=x_TD)
            h_TD = self._feed_forward_norm(x_TD).to(self._dtype)
        return self._feed_forward(h_TD, onto=x_TD)

    def _turned(self, qk_TNH: Tensor, turns_T1P: Tensor) -> Tensor:
        """Turn queries and keys by their positions, in place where that needs no copy."""
        if self._pair_order is not None:
            turns_T1P = turns_T1P[..., self._pair_order]
        if self._kernels is not None:
            self._kernels.turn_(qk_TNH, turns_T1P)
            return qk_TNH
        exact_TNH = qk_TNH.float()  # a copy unless it is float32 already
        Rotary.turn(exact_TNH, turns_T1P)
        return exact_TNH.to(qk_TNH.dtype)
