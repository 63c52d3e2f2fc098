"""The ESM-2 network, packed: what one batch of tokens goes through, in reading order.

All sequences of a batch stand in one matrix with a row for each token. Norms, projections
and feed-forward layers see that matrix as it is; only attention knows where a sequence
begins and ends. The residual stream and the norms are float32 at every precision, and
so is attention on a CPU; the precision is that of the products.

Shapes are in the names of tensors:

    T  tokens of the whole batch       N  attention heads
    D  width of the model              H  width of a head, D = N x H
    F  width inside a block, 4 D       V  vocabulary, 33 tokens

Source: Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a
language model", Science 379 (2023), and its reference code, ``esm/model/esm2.py`` of
fair-esm 2.0.0, whose names the weights bear.

Never here: files, tokenising, foreign names of weights, a choice of kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import layer_norm

from esm2_features._attention import Attend, attention
from esm2_features._catalogue import Architecture
from esm2_features._devices import even_rows, keep_freed_memory, release_memory, send
from esm2_features._linear import Linear
from esm2_features._plan import Batch
from esm2_features.exceptions import CheckpointError

_ROTARY_BASE = 10000.0

ROWS_STEP = 16
"""On a CPU, passes have a multiple of so many rows: oneDNN keeps a kernel for each number of rows
that it meets, 0.2 MB for each product; of 1024 kernels it forgets the oldest."""

_PARTS = ("weight", "bias")

Watch = Callable[[int, Tensor, Tensor], None]
"""Told each block's number, from 1, and its queries and keys, from which attention follows."""


class Weights:
    """The tensors of a checkpoint, handed out once each, on their device.

    Taking a tensor removes it from the dictionary, so that a tensor which is copied on its
    way (fused, reordered, cast) is freed before the next one is read: loading needs little
    more memory than the weights themselves.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Emptied on the way.
    device : torch.device
    dtype : torch.dtype
        Of the products; norms and embeddings are float32 always.
    """

    def __init__(
        self, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._tensors = tensors
        self._device = device
        self.dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def exact(self, name: str) -> Tensor:
        """Take one tensor as float32."""
        return self._tensors.pop(name).to(self._device, torch.float32)

    def linear(self, name: str) -> Linear:
        """Take an affine layer."""
        return self._laid_out(*(self._tensors.pop(f"{name}.{part}") for part in _PARTS))

    def queries_keys_values(self, name: str, heads: int) -> Linear:
        """Take the three projections of attention as one, for `Rotary.turn` to turn."""
        weight, bias = (
            torch.cat(
                [
                    *(_pairs_together(take(f"{name}.{x}_proj.{part}"), heads) for x in "qk"),
                    take(f"{name}.v_proj.{part}"),
                ]
            )
            for take, part in ((self._tensors.pop, part) for part in _PARTS)
        )
        return self._laid_out(weight, bias)

    def _laid_out(self, weight: Tensor, bias: Tensor) -> Linear:
        return Linear(weight.to(self._device, self.dtype), bias.to(self._device, self.dtype))


def _pairs_together(rows: Tensor, heads: int) -> Tensor:
    """Reorder the outputs of a projection so that the rotary pairs of a head are neighbours."""
    pairs = len(rows) // heads // 2
    return rows.view(heads, 2, pairs, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


class Norm:
    """Layer normalisation in float32."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weight = weights.exact(f"{name}.weight")
        self._bias = weights.exact(f"{name}.bias")

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Normalise each row."""
        return layer_norm(x_TD, self._weight.shape, self._weight, self._bias)


class Rotary:
    """Rotary position embedding (Su et al. 2021): turns pairs of a head by position.

    A pair is one complex number, and a turn is one product. ESM-2 pairs component i of a head
    with i + H / 2; `Weights.queries_keys_values` has brought the two together, which no product
    of a query with a key can tell.

    Parameters
    ----------
    inv_freq : Tensor of shape (H / 2,)
        Angle per position of each pair. Official checkpoints store it, and it may have been
        rounded on the way: what they were trained and published with is what they store.
    """

    def __init__(self, inv_freq: Tensor) -> None:
        self._inv_freq = inv_freq
        self._turns_TP = self._of_positions(0)

    def turns(self, positions_T: Tensor, longest: int) -> Tensor:
        """Look up every token's turns, for `turn`: complex, of shape (tokens, 1, H / 2)."""
        turns_TP = self._turns_TP
        if len(turns_TP) < longest:
            # Another thread may do the same at the same time, with the same outcome.
            self._turns_TP = turns_TP = self._of_positions(longest)
        return turns_TP[positions_T].unsqueeze(1)

    def _of_positions(self, count: int) -> Tensor:
        positions = torch.arange(count, dtype=torch.float32, device=self._inv_freq.device)
        angle_TP = torch.outer(positions, self._inv_freq)
        return torch.polar(torch.ones_like(angle_TP), angle_TP)

    @staticmethod
    def turn(qk_TNH: Tensor, turns_T1P: Tensor) -> None:
        """Turn queries and keys in place; they are float32, pairs side by side."""
        pairs_TNP = torch.view_as_complex(qk_TNH.view(*qk_TNH.shape[:2], -1, 2))
        for rows in even_rows(pairs_TNP):
            pairs_TNP[rows].mul_(turns_T1P[rows])


class Block:
    """One transformer block: attention, then feed-forward, each after a norm."""

    def __init__(self, weights: Weights, name: str, heads: int) -> None:
        self._dtype = weights.dtype
        attention = f"{name}.self_attn"
        self._attention_norm = Norm(weights, f"{attention}_layer_norm")
        self._qkv = weights.queries_keys_values(attention, heads)
        self._out = weights.linear(f"{attention}.out_proj")
        self._feed_forward_norm = Norm(weights, f"{name}.final_layer_norm")
        self._fc1 = weights.linear(f"{name}.fc1")
        self._fc2 = weights.linear(f"{name}.fc2")
        self._heads = heads

    def project(self, x_TD: Tensor) -> Tensor:
        """Project each row to its queries, keys and values, side by side."""
        return self._qkv(self._attention_norm(x_TD).to(self._dtype))

    def __call__(
        self,
        x_TD: Tensor,
        qkv_TE: Tensor,
        turns_T1P: Tensor,
        attend: Attend,
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Add what attention and feed-forward have to say to the residual stream."""
        heads_TNH = qkv_TE.view(len(x_TD), 3 * self._heads, -1)
        qk_TNH = heads_TNH[:, : 2 * self._heads].float()  # a copy unless it is float32 already
        Rotary.turn(qk_TNH, turns_T1P)
        q_TNH, k_TNH = qk_TNH.to(qkv_TE.dtype).chunk(2, dim=1)
        if watch is not None:
            watch(q_TNH, k_TNH)
        a_TNH = attend(q_TNH, k_TNH, heads_TNH[:, 2 * self._heads :])
        x_TD = self._out(a_TNH.flatten(1).to(self._dtype), onto=x_TD)
        h_TF = self._fc1(self._feed_forward_norm(x_TD).to(self._dtype), gelu=True)
        return self._fc2(h_TF, onto=x_TD)


class LanguageModelHead:
    """From the last representation to a score for each of the 33 tokens."""

    def __init__(self, weights: Weights, embedding_VD: Tensor) -> None:
        self._dense = Linear(
            weights.exact("lm_head.dense.weight"), weights.exact("lm_head.dense.bias")
        )
        self._norm = Norm(weights, "lm_head.layer_norm")
        self._vocabulary = Linear(embedding_VD, weights.exact("lm_head.bias"))

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Compute the logits."""
        return self._vocabulary(self._norm(self._dense(x_TD, gelu=True)))


class Network:
    """ESM-2 with the weights of one checkpoint, on one device, at one precision.

    It holds no state between calls and may be used by several threads at once.

    Parameters
    ----------
    name : str
        For messages.
    architecture : Architecture
    tensors : dict of str to Tensor
        Weights under fair-esm's names. **Emptied**, so that they can be freed one by one.
    device : torch.device
    precision : str
        ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    def __init__(
        self,
        name: str,
        architecture: Architecture,
        tensors: dict[str, Tensor],
        device: torch.device,
        precision: str,
    ) -> None:
        self.name = name
        self.device = device
        self._head_dim = architecture.head_dim
        self._dtype: torch.dtype = getattr(torch, precision)
        weights = Weights(tensors, device, self._dtype)
        self._embedding_VD = weights.exact("embed_tokens.weight")
        self._rotary = Rotary(self._inverse_frequencies(tensors, architecture).to(device))
        self._blocks: list[Block] = []
        for i in range(architecture.layers):
            self._blocks.append(Block(weights, f"layers.{i}", architecture.heads))
            # The allocator would keep what each layer's copies leave behind: 20 % of the weights.
            release_memory(device)
        self._last_norm = Norm(weights, "emb_layer_norm_after")
        self._head = (
            LanguageModelHead(weights, self._embedding_VD) if "lm_head.bias" in weights else None
        )
        keep_freed_memory(device)

    @property
    def depth(self) -> int:
        """Number of blocks, and of the last representation."""
        return len(self._blocks)

    @property
    def has_head(self) -> bool:
        """Whether the checkpoint holds a language-model head, so that there are logits."""
        return self._head is not None

    @torch.inference_mode()
    def representations(
        self, batch: Batch, layers: Collection[int], watch: Watch | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Run a batch up to the highest layer that is asked for.

        Parameters
        ----------
        batch : Batch
        layers : collection of int
            Representations to give, from 0 (the embedding) to the number of blocks. Only
            the last one has the final norm, as in fair-esm.
        watch : callable, optional
            Called in each block with its number, from 1, and its queries and keys of shape
            (tokens, heads, head width), rotary embedding already applied.

        Yields
        ------
        layer : int
            In ascending order.
        x_TD : Tensor of shape (tokens, dim), float32
        """
        kinds, rows = batch.kinds, len(batch.positions)
        # Rows that belong to no sequence, at the end: nothing looks at what becomes of them.
        filler = -rows % ROWS_STEP if self.device.type == "cpu" else 0
        x_KD = self._embedding_VD[self._sent(kinds.tokens)] * self._sent(kinds.scale).unsqueeze(1)
        kind_T = self._sent(np.pad(kinds.of_rows, (0, filler)))
        x_TD = x_KD[kind_T]
        if 0 in layers:
            yield 0, x_TD[:rows]
        longest = max(group.tokens for group in batch.groups)
        turns_T1P = self._rotary.turns(self._sent(np.pad(batch.positions, (0, filler))), longest)
        # On a CPU, attention is as quick in float32, and short sequences quicker.
        attention_dtype = torch.float32 if self.device.type == "cpu" else self._dtype
        attend = attention(batch.groups, self.device, attention_dtype, self._head_dim)
        for layer, block in enumerate(self._blocks[: max(layers)], start=1):
            # Before the first block, rows are tokens still, and few of them differ.
            qkv_TE = block.project(x_KD)[kind_T] if layer == 1 else block.project(x_TD)
            noticed = watch and partial(watch, layer)
            x_TD = block(x_TD, qkv_TE.to(attention_dtype), turns_T1P, attend, noticed)
            if layer == self.depth:
                x_TD = self._last_norm(x_TD)
            if layer in layers:
                yield layer, x_TD[:rows]

    @torch.inference_mode()
    def logits(self, x_TD: Tensor) -> Tensor:
        """Score the 33 tokens at each position, from the last representation.

        Parameters
        ----------
        x_TD : Tensor of shape (tokens, dim), float32

        Returns
        -------
        logits_TV : Tensor of shape (tokens, 33), float32

        Raises
        ------
        CheckpointError
            If the checkpoint holds no language-model head.
        """
        if self._head is None:
            raise CheckpointError(
                f"{self.name} holds no language-model head (its lm_head weights are missing), so "
                "it gives embeddings but no logits. Use the official checkpoint, or one saved by "
                "transformers' EsmForMaskedLM.",
                path=self.name,
            )
        return self._head(x_TD)

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return send(array, self.device)

    def _inverse_frequencies(
        self, tensors: dict[str, Tensor], architecture: Architecture
    ) -> Tensor:
        """Take the rotary frequencies out of the weights; compute them where there are none."""
        names = [f"layers.{i}.self_attn.rot_emb.inv_freq" for i in range(architecture.layers)]
        stored = [tensors.pop(name).float() for name in names if name in tensors]
        if not stored:
            pairs = torch.arange(0, architecture.head_dim, 2, dtype=torch.float32, device="cpu")
            return 1.0 / (_ROTARY_BASE ** (pairs / architecture.head_dim))
        if not all(torch.equal(stored[0], other) for other in stored):
            raise CheckpointError(
                f"The layers of {self.name} hold different rotary frequencies "
                "(rot_emb.inv_freq); ESM-2 uses the same ones in every layer. The file is "
                "probably damaged: fetch it anew.",
                path=self.name,
            )
        return stored[0]
