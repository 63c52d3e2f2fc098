"""The ESM-2 network, packed: what one batch of tokens goes through, in reading order.

All sequences of a batch stand in one matrix with a row for each token. Norms, projections
and feed-forward layers see that matrix as it is; only attention knows where a sequence
begins and ends. The residual stream and the norms are float32 at every precision, and
so is attention on a CPU; the precision is that of the products.

Shapes are in the names of tensors:

    T  tokens of the whole batch       N  attention heads
    D  width of the model              H  width of a head, D = N x H
    F  width inside a block, 4 D       V  vocabulary, 33 tokens
    K  distinct tokens of the batch    E  queries, keys and values of all heads, 3 D
    P  rotary pairs of a head, H / 2   B  views      R  residues of a view

Source: Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a
language model", Science 379 (2023), and its reference code, ``esm/model/esm2.py`` of
fair-esm 2.0.0, whose names the weights bear.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.attention import Attend, Rotary, choose_attention
from esm2_features._model.block import Norm, TransformerBlock, Weights
from esm2_features._model.conditioning import PROBE, condition
from esm2_features._model.devices import DeviceMap, keep_freed_memory, send
from esm2_features._model.interruption import CALLED_OFF
from esm2_features._model.linear import Linear
from esm2_features._model.offload import OffloadedBlocks, block_name
from esm2_features._model.packing import EMBEDDING_SCALE, Batch, Group, pack
from esm2_features.exceptions import CheckpointError

_ROTARY_BASE = 10000.0

_LONGEST_SUM_OF_HEAD = 64
"""Logits are far from 0 and close to each other, and computing them takes little time."""

ROWS_STEP = 16
"""On a CPU, passes have a multiple of so many rows: oneDNN keeps a kernel for each number of rows
that it meets, 0.2 MB for each product; of 1024 kernels it forgets the oldest."""

AttentionHook = Callable[[int, Tensor, Tensor], None]
"""Told each block's number, from 1, and its queries and keys, from which attention follows."""


class LanguageModelHead:
    """From the last representation to a score for each of the 33 tokens."""

    def __init__(self, weights: Weights, embedding_VD: Tensor) -> None:
        dense, bias = weights.exact("lm_head.dense.weight"), weights.exact("lm_head.dense.bias")
        self._dense = Linear(dense, bias, _LONGEST_SUM_OF_HEAD)
        self._norm = Norm(weights, "lm_head.layer_norm")
        bias = weights.exact("lm_head.bias")
        self._vocabulary = Linear(embedding_VD, bias, _LONGEST_SUM_OF_HEAD)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self._vocabulary(self._norm(self._dense(x_TD, gelu=True)))


@dataclass
class _Pass:
    """A batch on its way through the blocks."""

    groups: Sequence[Group]
    rows: int
    stream: Tensor  # the residual stream, (T, D)
    turns: Tensor  # rotary, of each row
    unique: tuple[Tensor, Tensor] | None  # distinct rows, and which each is; until the first block
    attend: Attend | None = None


class ESM2Network:
    """ESM-2 with the weights of one checkpoint, on one device map, at one precision.

    Results are on the first device, its home. It holds no state between calls, so several threads
    may use it at once.
    """

    def __init__(
        self,
        name: str,  # for messages
        architecture: Architecture,
        tensors: dict[str, Tensor],
        device_map: DeviceMap | torch.device,  # where the blocks are
        precision: str,  # ``"float32"``, ``"bfloat16"`` or ``"float16"``
    ) -> None:
        device_map = device_map if isinstance(device_map, DeviceMap) else DeviceMap((device_map,))
        device = device_map.home
        self.name = name
        self.device = device
        self._head_dim = architecture.head_dim
        self._dtype: torch.dtype = getattr(torch, precision)
        weights = Weights(tensors, device, self._dtype)
        self._embedding_VD = weights.exact("embed_tokens.weight")
        self._rotary = Rotary(self._inverse_frequencies(tensors, architecture).to(device))
        self._blocks = OffloadedBlocks(
            count=architecture.layers,
            heads=architecture.heads,
            device_map=device_map,
            dtype=self._dtype,
        )
        self._add_blocks(tensors, architecture.heads)
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

    def representations(
        self, batch: Batch, layers: Collection[int], attention_hook: AttentionHook | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Run a batch up to the highest layer that is asked for."""
        for layer, [x_TD] in self.run([batch], layers, attention_hook):
            yield layer, x_TD

    @torch.inference_mode()
    def run(
        self,
        batches: Sequence[Batch],
        layers: Collection[int],
        attention_hook: AttentionHook | None = None,
    ) -> Iterator[tuple[int, list[Tensor]]]:
        """Run batches up to the highest layer that is asked for, each block for all of them.

        So the layers of a sequence whose windows are in several batches are there one by one.
        """
        called_off = CALLED_OFF.get()
        passes = [self._begin(batch) for batch in batches]
        if 0 in layers:
            yield 0, [one.stream[: one.rows] for one in passes]
        for layer, (device, block) in enumerate(self._blocks.upto(max(layers)), start=1):
            block_hook = attention_hook and self._hook_at_home(attention_hook, layer)
            for one in passes:
                if called_off is not None and called_off.is_set():
                    raise KeyboardInterrupt
                self._advance(one, device, block, block_hook)
            if layer in layers:
                yield layer, [self._found(one, layer) for one in passes]

    def _begin(self, batch: Batch) -> _Pass:
        """Bring a batch to the device, and look up its tokens."""
        unique_tokens, rows = batch.unique_tokens, len(batch.positions)
        # Rows that belong to no sequence, at the end: nothing looks at what becomes of them.
        filler = -rows % ROWS_STEP if self.device.type == "cpu" else 0
        tokens_K, scale_K, kind_T, positions_T = (
            send(array, self.device)
            for array in (
                unique_tokens.tokens,
                unique_tokens.scale,
                np.pad(unique_tokens.of_rows, (0, filler)),
                np.pad(batch.positions, (0, filler)),
            )
        )
        x_KD = self._embedding_VD[tokens_K] * scale_K.unsqueeze(1)
        turns_T1P = self._rotary.turns(positions_T, max(group.tokens for group in batch.groups))
        return _Pass(batch.groups, rows, x_KD[kind_T], turns_T1P, (x_KD, kind_T))

    def _advance(
        self,
        one: _Pass,
        device: torch.device,
        block: TransformerBlock,
        block_hook: Callable[[Tensor, Tensor], None] | None,
    ) -> None:
        """Run one block."""
        # On a CPU, attention is as quick in float32, and short sequences quicker.
        attention_dtype = torch.float32 if self.device.type == "cpu" else self._dtype
        if one.attend is None or one.stream.device != device:  # the network is split
            one.stream, one.turns = one.stream.to(device), one.turns.to(device)
            one.attend = choose_attention(one.groups, device, attention_dtype, self._head_dim)
        if one.unique is None:
            qkv_TE = block.project(one.stream)
        else:  # before the first block, rows are tokens still, and few of them differ
            x_KD, kind_T = one.unique
            qkv_TE, one.unique = block.project(x_KD)[kind_T], None
        one.stream = block(
            one.stream, qkv_TE.to(attention_dtype), one.turns, one.attend, block_hook
        )

    def _found(self, one: _Pass, layer: int) -> Tensor:
        x_TD = one.stream.to(self.device)
        return (self._last_norm(x_TD) if layer == self.depth else x_TD)[: one.rows]

    @torch.inference_mode()
    def logits(self, x_TD: Tensor) -> Tensor:
        """Score the 33 tokens at each position, from the last representation."""
        if self._head is None:
            raise CheckpointError(
                f"{self.name} holds no language-model head (its lm_head weights are missing), so "
                "it gives embeddings but no logits. Use the official checkpoint, or one saved by "
                "transformers' EsmForMaskedLM.",
                path=self.name,
            )
        return self._head(x_TD)

    @torch.inference_mode()
    def _add_blocks(self, tensors: dict[str, Tensor], heads: int) -> None:
        """Add the blocks one by one; in float32, `condition` each by what it gets of the probe."""
        if self._dtype != torch.float32:
            for _ in range(self.depth):
                self._blocks.add(tensors)
            return
        probe = pack([PROBE])
        tokens_T, positions_T = (send(x, self.device) for x in (probe.tokens, probe.positions))
        x_TD = self._embedding_VD[tokens_T] * EMBEDDING_SCALE
        turns_T1P = self._rotary.turns(positions_T, len(tokens_T))
        for i in range(self.depth):
            condition(tensors, block_name(i), heads, x_TD, turns_T1P)
            self._blocks.add(tensors)
            [(device, block)] = self._blocks.upto(i + 1, start=i)
            x_TD, turns_T1P = x_TD.to(device), turns_T1P.to(device)
            attend = choose_attention(probe.groups, device, self._dtype, self._head_dim)
            x_TD = block(x_TD, block.project(x_TD), turns_T1P, attend)

    def _hook_at_home(
        self, attention_hook: AttentionHook, layer: int
    ) -> Callable[[Tensor, Tensor], None]:
        return lambda q_TNH, k_TNH: attention_hook(
            layer, q_TNH.to(self.device), k_TNH.to(self.device)
        )

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
