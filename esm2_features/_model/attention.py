"""Attention over a packed batch: rotary positions, and the kernel.

Which kernel computes a sequence follows from the device, the precision and the sequence's own
length, never from its batch mates:

    a card with a kernel for packed sequences    all at once; the kernel knows where each begins
    float32, a CPU, up to 128 tokens             those of equal length together, their maps held
    otherwise                                    those of equal length together, maps fused away

There is no padding and no mask in any of them.

Sources, for kernels that take packed sequences: Dao, "FlashAttention-2", ICLR 2024, in half
precision (``torch.nn.attention.varlen``, or the package ``flash-attn``); Rabe and Staats,
"Self-attention does not need O(n^2) memory", 2021, in float32 as well and on older cards
(``_efficient_attention_forward``, which PyTorch's own attention calls, but not for packed
sequences unless they are nested tensors).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from importlib import import_module

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from esm2_features._model.devices import even_rows, is_out_of_memory, send
from esm2_features._model.packing import MOST_SEQUENCES, Group

_logger = logging.getLogger("esm2_features")

_PACKED_KERNELS = (
    ("torch.nn.attention.varlen", "varlen_attn"),
    ("flash_attn", "flash_attn_varlen_func"),
    (__name__, "_efficient_attention"),
)
"""Modules and functions that attend over packed sequences, in the order of preference. All take
queries, keys, values, where sequences begin and end (twice: ``cu_seqlens`` of queries and of
keys), and the longest's tokens (twice)."""

_PROBE_LENGTHS = [3, 70, 1, 33, 70]

_PROBE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Error of a packed kernel on random numbers, beyond which it is not used: five times what is
usual. In float32, TensorFloat-32 is beyond it."""

_SHORT = 128
"""Tokens up to which, on a CPU, it is quicker to hold the maps than to fuse them away: 15 to 35 %
of attention's time. PyTorch's fused kernel works in blocks of 32 queries there."""

_SHORT_MAPS = 1 << 19
"""Numbers of the maps of short sequences that are held at a time; they stay in the caches."""

_MAP_BYTES = 1 << 25
_MAP_BYTES_OF_CARD = 1 << 28
"""Bytes of attention maps that are held at a time, if one map is not larger: few, so that they stay
in a CPU's caches, and as many on a card as keep it busy while the host begins the next ones. With
what is computed of them, that is 1 GB."""


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values of a batch in, each (tokens, heads, head width); the result out."""


class Rotary:
    """Rotary position embedding (Su et al. 2021): turns pairs of a head by position."""

    def __init__(self, inv_freq: Tensor) -> None:
        self._device = inv_freq.device
        self._inv_freq = inv_freq.cpu().double()
        self._turns_TP = self._of_positions(0)

    def turns(self, positions_T: Tensor, longest: int) -> Tensor:
        """Look up every token's turns, for `turn`: complex, of shape (tokens, 1, H / 2)."""
        turns_TP = self._turns_TP
        if len(turns_TP) < longest:
            # Another thread may do the same at the same time, with the same outcome.
            self._turns_TP = turns_TP = self._of_positions(longest)
        return turns_TP[positions_T].unsqueeze(1)

    def _of_positions(self, count: int) -> Tensor:
        # In float64, which not every device has: float32 rounds the angle of residue 1000 by 3e-5.
        positions = torch.arange(count, dtype=torch.float64, device="cpu")
        angle_TP = torch.outer(positions, self._inv_freq)
        turns_TP = torch.polar(torch.ones_like(angle_TP), angle_TP)
        return send(turns_TP.to(torch.complex64).numpy(), self._device)

    @staticmethod
    def turn(qk_TNH: Tensor, turns_T1P: Tensor) -> None:
        """Turn queries and keys in place; they are float32, pairs side by side."""
        pairs_TNP = torch.view_as_complex(qk_TNH.view(*qk_TNH.shape[:2], -1, 2))
        for rows in even_rows(pairs_TNP):
            pairs_TNP[rows].mul_(turns_T1P[rows])


def choose_attention(
    groups: Sequence[Group], device: torch.device, dtype: torch.dtype, width: int
) -> Attend:
    """Choose how the tokens of a batch attend to those of their own sequences, in all layers."""
    packed = _packed_kernel(device, dtype, width)
    if packed is None:
        return partial(_attend_in_groups, groups)
    lengths = [group.tokens for group in groups for _ in range(group.count)]
    cu_seqlens = send(np.cumsum([0, *lengths], dtype=np.int32), device)
    return partial(_attend_packed, packed, cu_seqlens, max(lengths))


@lru_cache
def _packed_kernel(
    device: torch.device, dtype: torch.dtype, width: int
) -> Callable[..., Tensor] | None:
    """Find a kernel that takes packed sequences and heads of this width on this device."""
    if device.type != "cuda":
        return None
    edges = send(np.cumsum([0, *_PROBE_LENGTHS], dtype=np.int32), device)
    noise = torch.Generator().manual_seed(0)
    # Side by side, as they come from a block.
    host = torch.randn(sum(_PROBE_LENGTHS), 6, width, generator=noise, device="cpu").to(dtype)
    on_host = (torch.split(x.float(), _PROBE_LENGTHS) for x in host.chunk(3, dim=1))
    expected = torch.cat([_attend_alone(*one) for one in zip(*on_host, strict=True)])
    qkv, longest = host.to(device).chunk(3, dim=1), max(_PROBE_LENGTHS)
    for module, name in _PACKED_KERNELS:
        try:
            kernel: Callable[..., Tensor] = getattr(import_module(module), name)
            found = kernel(*qkv, edges, edges, longest, longest).cpu()
        except Exception as error:  # not there, or not for this card, build or width
            if is_out_of_memory(error):
                raise  # it may be there the next time
            _logger.info("%s is not used on %s: %r", name, device, error)
            continue
        if torch.allclose(found.float(), expected, rtol=0, atol=_PROBE_TOLERANCE[dtype]):
            return kernel
        _logger.info("%s is not used on %s: it computes other numbers", name, device)
    return None


def _efficient_attention(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    edges: Tensor,
    same_edges: Tensor,
    longest: int,
    same_longest: int,
) -> Tensor:
    """Attend with the memory-efficient kernel of PyTorch, which any precision and card has."""
    q, k, v = (x_TNH.unsqueeze(0) for x_TNH in (q_TNH, k_TNH, v_TNH))
    kernel = torch.ops.aten._efficient_attention_forward
    no_bias, dropout, no_mask = None, 0.0, 0
    a: Tensor = kernel(
        *(q, k, v, no_bias, edges, same_edges, longest, same_longest, dropout, no_mask),
        scale=q.shape[-1] ** -0.5,
    )[0]
    return a.squeeze(0)


def _attend_alone(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor) -> Tensor:
    """Attend over one sequence by its definition."""
    scores_NTS = torch.einsum("tnh,snh->nts", q_TNH, k_TNH) * q_TNH.shape[-1] ** -0.5
    return torch.einsum("nts,snh->tnh", scores_NTS.softmax(-1), v_TNH)


def _attend_packed(
    kernel: Callable[..., Tensor],
    cu_seqlens: Tensor,
    longest: int,
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
) -> Tensor:
    return kernel(q_TNH, k_TNH, v_TNH, cu_seqlens, cu_seqlens, longest, longest)


def _attend_in_groups(
    groups: Sequence[Group], q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor
) -> Tensor:
    a_TNH = torch.empty_like(v_TNH, memory_format=torch.contiguous_format)
    a_TNH[groups[-1].stop :] = 0  # rows of no sequence
    may_be_short = v_TNH.is_cpu and v_TNH.dtype == torch.float32
    for group in groups:
        q, k, v, a = (_by_head(x_TNH, group) for x_TNH in (q_TNH, k_TNH, v_TNH, a_TNH))
        if may_be_short and group.tokens <= _SHORT:
            _attend_short(q, k, v, a)
            continue
        if v.device.type == "mps":
            # Its kernels gave wrong numbers for permuted inputs before PyTorch 2.12
            # (pytorch#181133), and in 2.8 (pytorch#163597).
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        a.copy_(scaled_dot_product_attention(q, k, v))
    return a_TNH


def _attend_short(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> None:
    """Attend by products of small matrices, a few sequences at a time, into ``a``."""
    count, heads, tokens, width = q.shape
    at_a_time = max(1, _SHORT_MAPS // (heads * tokens**2))
    maps = q.new_empty(min(count, at_a_time) * heads, tokens, tokens)
    for start in range(0, count, at_a_time):
        some = slice(start, start + at_a_time)
        # Contiguous always: how a product is rounded may depend on how its factors lie.
        q_BTH, k_BTH, v_BTH = (x[some].flatten(0, 1).contiguous() for x in (q, k, v))
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

    The kernels do not return these maps.
    """
    q, k = (_by_head(x_TNH, group).float() for x_TNH in (q_TNH, k_TNH))
    q = q * q.shape[-1] ** -0.5
    of_a_head, on_cpu = 4 * group.tokens**2, q.device.type == "cpu"
    held = _MAP_BYTES if on_cpu else _MAP_BYTES_OF_CARD
    heads_at_a_time = max(1, min(q.shape[1], held // of_a_head))
    at_a_time = max(1, min(held // of_a_head, MOST_SEQUENCES) // heads_at_a_time)
    if on_cpu:
        # How a product of many small matrices is rounded depends there on how many they are.
        at_a_time = 1
    for start in range(0, group.count, at_a_time):
        sequences = slice(start, min(group.count, start + at_a_time))
        for head in range(0, q.shape[1], heads_at_a_time):
            heads = slice(head, min(q.shape[1], head + heads_at_a_time))
            logits = q[sequences, heads] @ k[sequences, heads].transpose(-1, -2)
            yield sequences, heads, logits.softmax(-1)
