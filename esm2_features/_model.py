"""The ESM-2 network, packed: what one batch of tokens goes through, in reading order.

All sequences of a batch stand in one matrix with a row for each token. Norms, projections
and feed-forward layers see that matrix as it is; only attention knows where a sequence
begins and ends. The residual stream and the norms are float32 at every precision; the
precision is that of the products and of attention.

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

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import layer_norm

from esm2_features._attention import attend
from esm2_features._catalogue import Architecture
from esm2_features._devices import release_memory
from esm2_features._linear import Linear
from esm2_features._plan import Batch, Group
from esm2_features.exceptions import CheckpointError

_ROTARY_BASE = 10000.0

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
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def exact(self, name: str) -> Tensor:
        """Take one tensor as float32."""
        return self._tensors.pop(name).to(self._device, torch.float32)

    def linear(self, *names: str) -> Linear:
        """Take the affine layers of these names as one, their outputs side by side."""
        parts = [
            torch.cat([self._tensors.pop(f"{name}.{part}") for name in names])
            if len(names) > 1
            else self._tensors.pop(f"{names[0]}.{part}")
            for part in ("weight", "bias")
        ]
        weight, bias = (part.to(self._device, self._dtype) for part in parts)
        return Linear(weight, bias)


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

    Parameters
    ----------
    inv_freq : Tensor of shape (H / 2,)
        Angle per position of each pair. Official checkpoints store it, and it may have been
        rounded on the way: what they were trained and published with is what they store.
    """

    def __init__(self, inv_freq: Tensor) -> None:
        self._inv_freq = inv_freq

    def angles(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every token's angles, for `turn`; one pair serves all layers.

        The sine carries the sign of `turn`'s exchange: - for the first half of a head.
        """
        angle_TP = torch.outer(positions_T.to(self._inv_freq.dtype), self._inv_freq)
        cos_TP, sin_TP = angle_TP.cos(), angle_TP.sin()
        cos_T1H = torch.cat((cos_TP, cos_TP), dim=-1).unsqueeze(1)
        sin_T1H = torch.cat((-sin_TP, sin_TP), dim=-1).unsqueeze(1)
        return cos_T1H, sin_T1H

    @staticmethod
    def turn(x_TNH: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Turn queries or keys; component i of a head is paired with i + H / 2."""
        cos_T1H, sin_T1H = angles
        exchanged_TNH = x_TNH.roll(x_TNH.shape[-1] // 2, dims=-1)
        return (x_TNH * cos_T1H).addcmul_(exchanged_TNH, sin_T1H).to(x_TNH.dtype)


class Block:
    """One transformer block: attention, then feed-forward, each after a norm."""

    def __init__(self, weights: Weights, name: str, heads: int, dtype: torch.dtype) -> None:
        attention = f"{name}.self_attn"
        self._attention_norm = Norm(weights, f"{attention}_layer_norm")
        self._qkv = weights.linear(*(f"{attention}.{part}_proj" for part in "qkv"))
        self._out = weights.linear(f"{attention}.out_proj")
        self._feed_forward_norm = Norm(weights, f"{name}.final_layer_norm")
        self._fc1 = weights.linear(f"{name}.fc1")
        self._fc2 = weights.linear(f"{name}.fc2")
        self._heads = heads
        self._dtype = dtype

    def __call__(
        self,
        x_TD: Tensor,
        angles: tuple[Tensor, Tensor],
        groups: Sequence[Group],
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Add what attention and feed-forward have to say to the residual stream."""
        normed_TD = self._attention_norm(x_TD).to(self._dtype)
        qkv_T3NH = self._qkv(normed_TD).view(len(x_TD), 3, self._heads, -1)
        q_TNH, k_TNH, v_TNH = qkv_T3NH.unbind(1)
        q_TNH, k_TNH = Rotary.turn(q_TNH, angles), Rotary.turn(k_TNH, angles)
        if watch is not None:
            watch(q_TNH, k_TNH)
        a_TNH = attend(q_TNH, k_TNH, v_TNH, groups)
        x_TD = x_TD + self._out(a_TNH.flatten(1))
        h_TF = self._fc1(self._feed_forward_norm(x_TD).to(self._dtype), gelu=True)
        return x_TD + self._fc2(h_TF)


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
        dtype: torch.dtype = getattr(torch, precision)
        weights = Weights(tensors, device, dtype)
        self._embedding_VD = weights.exact("embed_tokens.weight")
        self._rotary = Rotary(self._inverse_frequencies(tensors, architecture).to(device))
        self._blocks: list[Block] = []
        for i in range(architecture.layers):
            self._blocks.append(Block(weights, f"layers.{i}", architecture.heads, dtype))
            # The allocator would keep what each layer's copies leave behind: 20 % of the weights.
            release_memory(device)
        self._last_norm = Norm(weights, "emb_layer_norm_after")
        self._head = (
            LanguageModelHead(weights, self._embedding_VD) if "lm_head.bias" in weights else None
        )

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
        x_TD = self._embedding_VD[self._on_device(batch.tokens)]
        x_TD = x_TD * self._on_device(batch.scale).unsqueeze(-1)
        if 0 in layers:
            yield 0, x_TD
        angles = self._rotary.angles(self._on_device(batch.positions))
        for layer, block in enumerate(self._blocks[: max(layers)], start=1):
            x_TD = block(x_TD, angles, batch.groups, watch and partial(watch, layer))
            if layer == self.depth:
                x_TD = self._last_norm(x_TD)
            if layer in layers:
                yield layer, x_TD

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

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

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
