"""`Several`: an extractor of several outputs of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esm2_features._inference.extractors import (
    Contacts,
    Logits,
    PooledVectors,
    Residues,
    cut,
    in_order,
    run_network,
    stacked,
)
from esm2_features._model.attention_maps import ContactMaps
from esm2_features._model.devices import Copies, fetch
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.layout import Layout
from esm2_features._model.pooling import pool


@dataclass(frozen=True)
class Several:
    """Outputs for whole sequences, without windows: for each, a dictionary of arrays.

    They are called "vectors", "logits" and "contacts"; residues have the number of their layer.
    """

    vectors: PooledVectors | None = None  # without "parti"
    residues: Residues | None = None
    logits: Logits | None = None
    contacts: Contacts | None = None

    def bytes(self, residues: int) -> int:
        """Size of the results for a view of so many residues."""
        return sum(part.bytes(residues) for part in vars(self).values() if part is not None)

    def __call__(
        self, network: ESM2Network, views: Sequence[str], budget: int | None = None
    ) -> Callable[[], list[dict[str | int, Any]]]:
        """Run the network over the views of a batch, and read everything off this one run."""
        layout, depth = Layout(views, budget), network.depth
        assert not layout.is_windowed
        columns = () if self.vectors is None else self.vectors.columns
        of_residues = () if self.residues is None else self.residues.layers
        maps = None
        if self.contacts is not None:
            weight, bias = self.contacts.weight, self.contacts.bias
            maps = ContactMaps(layout.groups, weight, bias, heads=self.contacts.heads)
        pooled: dict[tuple[int, str], Tensor] = {}
        copies, found = Copies(), dict[int, list[NDArray[np.float32]]]()
        arriving: dict[str, Callable[[], Any]] = {}
        layers = {*of_residues, *(layer for layer, _ in columns)}
        if self.logits or self.contacts:  # of which the maps of all blocks have to pass
            layers.add(depth)
        for layer, x_TD in run_network(network, layout, sorted(layers), maps):
            pooled |= {
                (at, how): pool(x_TD, layout.segments, how) for at, how in columns if at == layer
            }
            if layer in of_residues:
                copies.begin(x_TD, partial(cut, layout, found, layer))
            if layer == depth and self.logits is not None:
                logits = fetch(network.logits(x_TD))
                arriving["logits"] = partial(_sequences, layout, logits)
            del x_TD  # the next block needs the memory
        if self.vectors is not None:
            arriving["vectors"] = stacked(pooled, self.vectors)
        if maps is not None:
            probabilities = maps.probabilities()
            arriving["contacts"] = lambda: in_order(layout, probabilities())

        def wait() -> list[dict[str | int, Any]]:
            copies.finish()
            of_all: dict[Any, Any] = {name: values() for name, values in arriving.items()}
            of_all |= found
            return [{key: of_all[key][i] for key in of_all} for i in range(layout.count)]

        return wait


def _sequences(
    layout: Layout, arriving: Callable[[], NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    return layout.sequences(arriving())
