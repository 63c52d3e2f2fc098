"""Attention over a packed batch.

Every group of equal length is one dense call of PyTorch's fused attention: no padding, no
mask, and nothing that depends on the other groups, so that a sequence's result does not
depend on its batch mates.

Never here: weights, probing of devices at import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from esm2_features._plan import Group

_MAP_BYTES = 1 << 25
"""Bytes of attention maps that are held at a time, if one map is not larger."""


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


def attention_maps(
    q_TNH: Tensor, k_TNH: Tensor, group: Group
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Compute how much every token of a group attends to each token of its sequence.

    `attend` never holds these maps; who needs them sees a few at a time.

    Parameters
    ----------
    q_TNH, k_TNH : Tensor of shape (tokens, heads, head width)
        Queries and keys of the whole batch, rotary embedding already applied.
    group : Group

    Yields
    ------
    sequences, heads : slice
        Which of the group's sequences and of the heads these are.
    maps : Tensor of shape (sequences, heads, group.tokens, group.tokens), float32
        Rows are queries, and sum to 1. The reader may overwrite them.
    """
    rows = slice(group.start, group.stop)
    q, k = (
        x_TNH[rows].float().view(group.count, group.tokens, *x_TNH.shape[1:]).transpose(1, 2)
        for x_TNH in (q_TNH, k_TNH)
    )  # each (count, heads, tokens, head width)
    q = q * q.shape[-1] ** -0.5
    of_a_head = 4 * group.tokens**2
    heads_at_a_time = max(1, min(q.shape[1], _MAP_BYTES // of_a_head))
    at_a_time = max(1, _MAP_BYTES // (of_a_head * heads_at_a_time))
    if q.device.type == "cpu":
        # How a product of many small matrices is rounded depends there on how many they are.
        at_a_time = 1
    for start in range(0, group.count, at_a_time):
        sequences = slice(start, min(group.count, start + at_a_time))
        for head in range(0, q.shape[1], heads_at_a_time):
            heads = slice(head, min(q.shape[1], head + heads_at_a_time))
            logits = q[sequences, heads] @ k[sequences, heads].transpose(-1, -2)
            yield sequences, heads, logits.softmax(-1)
