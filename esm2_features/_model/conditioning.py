"""Weights rearranged so that float32 rounds less. The network computes the same function.

A sum in float32 is rounded after each term, in proportion to what it has come to. Some channels
of a trained network are large in all tokens alike, so sums pass through large numbers on their way
to small ones, and the exponential of attention magnifies what is lost. One forward pass over a
protein, while the network is loaded, shows what is common to all tokens, and `condition` moves
it into biases, which are computed in float64:

    projections     LN(x) W' + b  =  (LN(x) - m) W' + (b + m W')
    values          A v O' + o  =  A (v - n) O' + (o + n O'), as the rows of attention A sum to 1
    rotary pairs    queries and keys in one new order, the pairs with the smallest products first

None of these takes time when the network runs.

Source: none for the purpose of float32. Subtracting what keys have in common is known from
quantised attention (Zhang et al., "SageAttention", ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

PROBE = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
"""Human ubiquitin. Any protein will do: what is large in one is large in all."""

PAIR_ORDER = "self_attn.pair_order"
"""Name within a block of the order of its rotary pairs."""


def condition(
    tensors: dict[str, Tensor], name: str, heads: int, x_TD: Tensor, turns_T1P: Tensor
) -> None:
    """Rearrange the attention of one block in place; ``x_TD`` is what it gets of the probe."""

    def exact(part: str) -> Tensor:
        return tensors[f"{name}.{part}"].double()

    def subtract(common_D: Tensor, bias: str, linears: Sequence[str]) -> None:
        """Subtract from a bias what the linear layers behind it add to their own instead."""
        before_D = exact(bias)
        after_D = (before_D - common_D).nan_to_num().float()
        tensors[f"{name}.{bias}"] = after_D
        for layer in linears:
            moved_D = exact(f"{layer}.bias") + exact(f"{layer}.weight") @ (before_D - after_D)
            tensors[f"{name}.{layer}.bias"] = moved_D.float()

    norm, projections = "self_attn_layer_norm", [f"self_attn.{x}_proj" for x in "qkv"]
    scale_D, shift_D = exact(f"{norm}.weight"), exact(f"{norm}.bias")
    h_TD = layer_norm(x_TD.cpu().double(), scale_D.shape, scale_D, shift_D)
    q_TNP, k_TNP, v_TNP = (
        _pairs(linear(h_TD, exact(f"{x}.weight"), exact(f"{x}.bias")), heads) for x in projections
    )
    turned = (x_TNP * turns_T1P.cpu() for x_TNP in (q_TNP, k_TNP))
    scores_NTS = torch.einsum("tnp,snp->nts", next(turned), next(turned).conj()).real
    maps_NTS = (scores_NTS * (len(scale_D) // heads) ** -0.5).softmax(-1)
    a_NP = torch.einsum("nts,snp->np", maps_NTS + 0j, v_TNP) / len(x_TD)

    subtract(h_TD.mean(0), f"{norm}.bias", projections)
    subtract(
        torch.cat([a_NP.real, a_NP.imag], 1).flatten(),
        f"{projections[2]}.bias",
        ["self_attn.out_proj"],
    )

    products_NP = (q_TNP.abs().square().sum(0) * k_TNP.abs().square().sum(0)).sqrt()
    order = (products_NP / products_NP.sum(1, keepdim=True)).sum(0).argsort()
    tensors[f"{name}.{PAIR_ORDER}"] = order


def _pairs(x_TD: Tensor, heads: int) -> Tensor:
    """View the two halves of each head as one complex number a pair, (tokens, heads, pairs)."""
    halves = x_TD.view(len(x_TD), heads, 2, -1)
    return torch.complex(halves[:, :, 0], halves[:, :, 1])
