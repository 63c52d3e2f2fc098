"""The promise about numbers: how far ours are from float64, measured by fair-esm's float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import numpy as np
import torch
from checkpoints import bare_state
from esm.model.esm2 import ESM2

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.packing import pack
from esm2_features._model.reference import Reference

Rows = Mapping[str, np.ndarray]


def opened(network: ESM2) -> SimpleNamespace:
    """A network of fair-esm as if it were a checkpoint."""
    shape = Architecture(network.num_layers, network.embed_dim, network.attention_heads)
    return SimpleNamespace(architecture=shape, load=lambda: bare_state(network))


def references_of(checkpoint) -> tuple[Reference, Reference]:
    """fair-esm in float64 and in float32."""
    return Reference(checkpoint, torch.float64), Reference(checkpoint)


def rows_of(network: ESM2Network, batch: list[str]) -> list[dict[str, np.ndarray]]:
    """All layers of each sequence, and logits, from one packed pass."""
    found: list[dict[str, np.ndarray]] = [{} for _ in batch]
    sizes = np.cumsum([len(sequence) + 2 for sequence in batch])[:-1]
    for layer, x_TD in network.representations(pack(batch), range(network.depth + 1)):
        products = {str(layer): x_TD}
        if layer == network.depth and network.has_head:
            products["logits"] = network.logits(x_TD)
        for name, numbers in products.items():
            for rows, part in zip(found, np.split(numbers.numpy(), sizes), strict=True):
                rows[name] = part
    return found


def assert_as_exact_as_fair_esm(
    triples: Iterable[tuple[Rows, Rows, Rows]], rms: float = 1.25, largest: float = 2.0
) -> dict[str, float]:
    """Compare (ours, float64, fair-esm's float32) of some sequences; return the ratios of rms."""
    squares: dict[str, list[np.ndarray]] = {}
    for ours, exact, theirs in triples:
        assert set(ours) == set(exact) == set(theirs)
        for name, expected in exact.items():
            both = [
                ((x.astype(np.float64) - expected) ** 2).mean(1) for x in (ours[name], theirs[name])
            ]
            # Where fair-esm is exact by chance, the rounding of the result itself is allowed.
            both[1] = np.maximum(both[1], 2.0**-48 * (expected**2).mean(1) / 9)
            squares.setdefault(name, []).append(np.stack(both))
    ratios = {}
    for name, parts in squares.items():
        ours, theirs = np.concatenate(parts, axis=1)
        ratios[name] = float(np.sqrt(ours.mean() / theirs.mean())) if theirs.any() else 0.0
        assert ours.max() <= largest**2 * theirs.max(), (name, np.sqrt(ours.max() / theirs.max()))
    assert max(ratios.values()) <= rms, ratios
    return ratios
