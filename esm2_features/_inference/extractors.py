"""Extractors: what is read off a forward pass, be it vectors, residues, logits, contacts or maps.

An extractor runs a network once over the views of a batch, and returns a function that waits for
one result for each view, in their order. Its `bytes` is the size of a result, by which batches are
kept small.

Source: the outputs of ``esm/model/esm2.py`` of fair-esm 2.0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm2_features._inference.cache_session import Columns
from esm2_features._inference.numerics import round_vectors
from esm2_features._inputs.alphabet import CANONICAL_TOKENS, TOKENS
from esm2_features._model.attention_maps import AllMaps, ContactMaps, Importance
from esm2_features._model.devices import Copies, fetch, send
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.layout import Layout
from esm2_features._model.pooling import pool


class Extractor(Protocol):
    """Reads one thing off a forward pass."""

    def bytes(self, residues: int) -> int:
        """Size of the result for a view of so many residues."""

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], Any]:
        """Run the network over the views of a batch; the returned function waits for their results.

        Windows go through it at most ``budget`` tokens at a time.
        """


@dataclass(frozen=True)
class PooledVectors:
    """Pooled representations: rows of shape (columns, dim), float32."""

    columns: tuple[tuple[int, str], ...]  # layer and pooling of each
    dim: int  # width of the network
    dtype: str = "float32"  # what they are rounded to

    def bytes(self, residues: int) -> int:
        """Size of a row; while attention maps are looked at, of a map, too."""
        with_map = any(how == "parti" for _, how in self.columns)
        return 4 * len(self.columns) * self.dim + with_map * 4 * (residues + 2) ** 2

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], NDArray[np.float32]]:
        layout = Layout(views, budget)
        layers = {layer for layer, _ in self.columns}
        importance = None
        if any(how == "parti" for _, how in self.columns):
            importance = Importance(layout.groups)
            layers.add(network.depth)  # the maps of all blocks have to pass
        pooled: dict[tuple[int, str], Tensor] = {}
        pooled_last: dict[int, Tensor] = {}  # by importance, known after the last block
        for layer, x_TD in run_network(network, layout, sorted(layers), importance):
            for how in {how for at, how in self.columns if at == layer}:
                if how == "parti":
                    pooled_last[layer] = x_TD
                else:
                    pooled[layer, how] = pool(x_TD, layout.segments, how)
            del x_TD  # the next block needs the memory
        if importance is not None:
            weights_T = send(importance.ranks().numpy(), network.device)
            for layer, x_TD in pooled_last.items():
                pooled[layer, "parti"] = pool(x_TD, layout.segments, "parti", weights_T)
        return stacked(pooled, self)


def stacked(
    pooled: dict[tuple[int, str], Tensor], vectors: PooledVectors
) -> Callable[[], NDArray[np.float32]]:
    """Fetch pooled representations as rows, (sequences, columns, dim)."""
    arriving = fetch(torch.stack([pooled[column] for column in vectors.columns], dim=1))
    return lambda: round_vectors(arriving(), vectors.dtype)


@dataclass(frozen=True)
class SiteLogProbs:
    """Log-probabilities of the 33 tokens at the one residue of each view: (1, 33), float32."""

    def bytes(self, residues: int) -> int:  # noqa: ARG002 - a site is a site
        return 4 * len(TOKENS)

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], NDArray[np.float32]]:
        layout = Layout(views, budget)
        head = network.logits if layout.is_windowed else None
        [(_, x_TD)] = run_network(network, layout, [network.depth], head=head)
        logits_BV = pool(x_TD, layout.segments, "mean")  # the mean of one residue is itself
        if not layout.is_windowed:
            logits_BV = network.logits(logits_BV)
        return fetch(logits_BV.log_softmax(-1).unsqueeze(1))


@dataclass(frozen=True)
class Residues:
    """Representations of each residue: (residues, dim), float32, by layer if asked."""

    layers: tuple[int, ...]
    dim: int  # width of the network
    by_layer: bool  # whether a result is a dict of layers, or the array of the only one

    def bytes(self, residues: int) -> int:
        return 4 * len(self.layers) * self.dim * residues

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], list[Any]]:
        layout = Layout(views, budget)
        copies, found = Copies(), dict[int, list[NDArray[np.float32]]]()
        for layer, x_TD in run_network(network, layout, self.layers):
            copies.begin(x_TD, partial(cut, layout, found, layer))

        def wait() -> list[Any]:
            copies.finish()
            if not self.by_layer:
                return found[self.layers[0]]
            return [{layer: found[layer][i] for layer in self.layers} for i in range(layout.count)]

        return wait


@dataclass(frozen=True)
class Logits:
    """Scores of tokens at each residue: (residues, 33) or (residues, 20), float32."""

    kind: str
    # all 33 tokens, in the order of the vocabulary; or the 20 canonical residues, in alphabetical
    # order of their letters, of which log-probabilities are then normalised
    over: str = "tokens"

    def bytes(self, residues: int) -> int:
        return 4 * len(TOKENS) * residues

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], list[NDArray[np.float32]]]:
        layout = Layout(views, budget)
        [(_, logits_TV)] = run_network(network, layout, [network.depth], head=network.logits)
        if self.over == "residues":
            logits_TV = logits_TV[:, send(np.array(CANONICAL_TOKENS), logits_TV.device)]
        if self.kind == "log_probs":
            logits_TV = logits_TV.log_softmax(-1)
        arriving = fetch(logits_TV)
        return lambda: layout.sequences(arriving())


@dataclass(frozen=True)
class Contacts:
    """Probabilities of contacts between residues: (residues, residues), float32."""

    weight: Tensor  # the checkpoint's contact regression
    bias: Tensor  # the checkpoint's contact regression
    heads: int

    def bytes(self, residues: int) -> int:
        """Size of a result, and of what is added up for it."""
        return 8 * residues**2

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], list[NDArray[np.float32]]]:
        layout = Layout(views, budget)
        maps = ContactMaps(layout.groups, self.weight, self.bias, heads=self.heads)
        _run_maps(network, layout, maps, network.depth)
        arriving = maps.probabilities()
        return lambda: in_order(layout, arriving())


@dataclass(frozen=True)
class Attentions:
    """Attention maps: (layers, heads, residues + 2, residues + 2), float32."""

    layers: tuple[int, ...]  # from 1
    heads: int

    def bytes(self, residues: int) -> int:
        return 4 * len(self.layers) * self.heads * (residues + 2) ** 2

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], list[NDArray[np.float32]]]:
        layout = Layout(views, budget)
        maps = AllMaps(layout.groups, self.layers, heads=self.heads)
        _run_maps(network, layout, maps, max(self.layers))
        return lambda: in_order(layout, maps.maps())


def run_network(
    network: ESM2Network,
    layout: Layout,
    layers: Collection[int],
    attention_hook: ContactMaps | AllMaps | Importance | None = None,
    *,
    head: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run the network over all batches of a layout: layers, and the rows of its sequences.

    ``head`` is applied to the rows of the windows, before these become one sequence.
    """
    for layer, parts in network.run(layout.batches, layers, attention_hook):
        merged = [layout.merge_windows(map(head, parts) if head else parts)]
        parts.clear()  # the next block needs the memory
        yield layer, merged.pop()


def cut(
    layout: Layout,
    found: dict[int, list[NDArray[np.float32]]],
    layer: int,
    rows: NDArray[np.float32],
) -> None:
    found[layer] = layout.sequences(rows)


def _run_maps(
    network: ESM2Network, layout: Layout, maps: ContactMaps | AllMaps, depth: int
) -> None:
    """Run the blocks up to one, whose maps go to ``maps``."""
    for _ in run_network(network, layout, [depth], maps):
        pass


def in_order(
    layout: Layout, by_sequence: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Bring the results of sequences, in the order of the layout, into that of the views."""
    found = [by_sequence[0]] * layout.count
    for segment in layout.segments:
        for member, owner in zip(segment.members, segment.owners, strict=True):
            found[member] = by_sequence[owner]
    return found


def vectors_extractor(columns: Columns) -> Extractor:
    """Make the extractor of rows that can be cached."""
    if columns.computed[0][1] == "log_probs":
        return SiteLogProbs()
    return PooledVectors(tuple(columns.computed), columns.width, columns.dtype)
