"""Kernels of cards that a CPU does not have, over the numbers that it has."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from esm2_features._model.attention import Rotary


class Kernels:
    """What a `Machine` runs where PyTorch's operations for the CPU are not enough."""

    capability: tuple[int, int]
    only_shapes: bool

    def packed_attention(
        self, q: Tensor, k: Tensor, v: Tensor, edges: Tensor, _: Tensor, longest: int, __: int
    ) -> Tensor:
        """Attend over packed sequences, as `varlen_attn` does on cards that it is made for."""
        if self.capability < (8, 0) or q.dtype == torch.float32 or q.shape[-1] % 8:
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
        return self._attend_packed(q, k, v, edges, longest, "packed attention")

    def _efficient_attention(
        self, q, k, v, bias, edges, edges_of_keys, longest, _, dropout, mask, *, scale=None
    ) -> tuple[Tensor, ...]:
        """Attend over packed sequences as `_efficient_attention_forward` does on every card."""
        assert (bias, dropout, mask) == (None, 0.0, 0)
        is_same = edges_of_keys is edges or torch.equal(edges_of_keys.inner, edges.inner)
        if not is_same or not edges.is_contiguous():
            raise RuntimeError("seqstart_q and seqstart_k differ, or are not contiguous")
        if any(x.dim() != 4 or len(x) != 1 or x.stride(-1) != 1 for x in (q, k, v)):
            raise RuntimeError("cu_seqlen only supports batch_size=1")
        least = 1 if q.dtype == torch.float32 and self.capability < (8, 0) else 4
        if any(x.stride(1) % least or x.stride(2) % least for x in (q, k, v)):
            raise RuntimeError("cutlassF: no kernel found to launch!")
        one = (x.squeeze(0) for x in (q, k, v))
        found = self._attend_packed(*one, edges, longest, "efficient attention", scale)
        nothing = self._wrap(torch.empty(0), q.device)
        return found.unsqueeze(0), nothing, nothing, nothing, longest, longest

    def _multiply(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply bfloat16, and add up in float32."""
        if self.capability < (8, 0):
            raise RuntimeError("no units for bfloat16")
        found = torch.mm(a.inner.to(dtype), b.inner.to(dtype))
        result = self._wrap(found, a.device)
        self._kernel("mm", [a, b], [result])
        return result

    def _attend_packed(
        self, q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, name: str,
        scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        if edges.dtype != torch.int32 or len({x.device for x in (q, k, v, edges)}) > 1:
            raise RuntimeError("cu_seqlens must be int32 and on the device of q, k and v")
        found = torch.full(q.shape, torch.nan, dtype=q.dtype, device=q.inner.device)
        for a, b in () if self.only_shapes else pairwise(edges.inner.tolist()):
            some = (x.inner[a:b].transpose(0, 1)[None] for x in (q, k, v))
            rows = scaled_dot_product_attention(*some, scale=scale)[0].transpose(0, 1)
            # No block of threads is started for tokens beyond what is said to be the longest.
            found[a : min(b, a + longest)] = rows[:longest]
        result = self._wrap(found, q.device)
        self._kernel(name, [q, k, v, edges], [result])
        return result

    def turn_(self, qk: Tensor, turns: Tensor) -> None:
        """Turn queries and keys in one launch, as the kernel in Triton does."""
        if self.capability < (8, 0):
            raise RuntimeError("no Triton on older cards here, so that PyTorch's steps are tested")
        exact = qk.inner.float()
        Rotary.turn(exact, turns.inner)
        qk.inner.copy_(exact)
        self._kernel("fused turn", [qk, turns], [qk])

    def add_norm(
        self, x: Tensor, y: Tensor | None, weight: Tensor, bias: Tensor,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Add and norm in one launch, as the kernel in Triton does."""
        with torch.inference_mode():
            total = x.inner if y is None else x.inner + y.inner
            normed = layer_norm(total, weight.shape, weight.inner, bias.inner).to(dtype)
        added = x if y is None else self._wrap(total, x.device)
        result = self._wrap(normed, x.device)
        made = [result] if y is None else [added, result]
        self._kernel("fused norm", [t for t in (x, y, weight, bias) if t is not None], made)
        return added, result

    def _kernel(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Let a kernel that PyTorch does not know run on the stream of what it makes."""
        stream = self.stream(outputs[0].device)
        if len({x.device for x in inputs}) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device in {name}")
        self._use(inputs, stream, write=False)
        self._use(outputs, stream, write=True)
        self._count(name, inputs, [x.inner for x in outputs])
