"""Attention over a packed batch: the kernel.

Every group of equal length is computed by itself: no padding, no mask, and nothing that depends
on the other groups. Which kernel does it follows from the length alone, so that a sequence's
result does not depend on its batch mates.

Never here: weights, probing of devices at import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from esm2_features._plan import Group

_SHORT = 128
"""Tokens up to which, on a CPU, it is quicker to hold the maps than to fuse them away: 15 to 35 %
of attention's time. PyTorch's fused kernel works in blocks of 32 queries there."""

_SHORT_MAPS = 1 << 19
"""Numbers of the maps of short sequences that are held at a time; they stay in the caches."""

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
    may_be_short = v_TNH.device.type == "cpu" and v_TNH.dtype == torch.float32
    for group in groups:
        q, k, v, a = (_by_head(x_TNH, group) for x_TNH in (q_TNH, k_TNH, v_TNH, a_TNH))
        if may_be_short and group.tokens <= _SHORT:
            _attend_short(q, k, v, a)
        else:
            a.copy_(scaled_dot_product_attention(q, k, v))
    return a_TNH


def _attend_short(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> None:
    """Attend by products of small matrices, a few sequences at a time, into ``a``."""
    count, heads, tokens, width = q.shape
    at_a_time = max(1, _SHORT_MAPS // (heads * tokens**2))
    maps = q.new_empty(min(count, at_a_time) * heads, tokens, tokens)
    for start in range(0, count, at_a_time):
        some = slice(start, start + at_a_time)
        q_BTH, k_BTH, v_BTH = (x[some].flatten(0, 1) for x in (q, k, v))
        some_maps = maps[: len(q_BTH)]
        scale = width**-0.5
        torch.baddbmm(some_maps, q_BTH, k_BTH.transpose(1, 2), beta=0, alpha=scale, out=some_maps)
        torch.softmax(some_maps, -1, out=some_maps)
        a[some] = torch.bmm(some_maps, v_BTH).view_as(a[some])


def _by_head(x_TNH: Tensor, group: Group) -> Tensor:
    """View a group's rows as (count, heads, tokens, head width)."""
    rows = x_TNH[group.start : group.stop]
    return rows.view(group.count, group.tokens, *x_TNH.shape[1:]).transpose(1, 2)


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
    q, k = (_by_head(x_TNH, group).float() for x_TNH in (q_TNH, k_TNH))
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
