"""Attention over a packed batch.

Every group of equal length is one dense call of PyTorch's fused attention: no padding, no
mask, and nothing that depends on the other groups, so that a sequence's result does not
depend on its batch mates.

Never here: weights, probing of devices at import.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from esm2_features._plan import Group


def attend(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, groups: Sequence[Group]) -> Tensor:
    """Let every token attend to the tokens of its own sequence.

    Parameters
    ----------
    q_TNH, k_TNH, v_TNH : Tensor of shape (tokens, heads, head width)
        Queries, keys and values of the whole batch, rotary embedding already applied.
    groups : sequence of Group
        They cover all tokens, in order.

    Returns
    -------
    a_TNH : Tensor of shape (tokens, heads, head width)
    """
    a_TNH = torch.empty_like(v_TNH, memory_format=torch.contiguous_format)
    for group in groups:
        rows = slice(group.start, group.stop)
        q, k, v = (
            x_TNH[rows].view(group.count, group.tokens, *x_TNH.shape[1:]).transpose(1, 2)
            for x_TNH in (q_TNH, k_TNH, v_TNH)
        )  # each (count, heads, tokens, head width)
        a_TNH[rows] = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    return a_TNH
