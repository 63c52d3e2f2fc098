"""The features that are compared: layers and poolings of a model, and baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import clone
from sklearn.preprocessing import Normalizer, StandardScaler

from esm2_features._inputs.containers import columns
from esm2_features._sklearn.aligned import AlignedTransformer
from esm2_features._sklearn.descriptors import DescriptorTransformer
from esm2_features._sklearn.embedding import ESM2Transformer
from esm2_features._sklearn.model import EmbeddingTransformer
from esm2_features.exceptions import InputError
from esm2_features.model_selection.nested import Block
from esm2_features.model_selection.result import BEST, BOTH, CHOSEN_BASELINE, CHOSEN_EMBEDDING

RESERVED = (BEST, BOTH, CHOSEN_BASELINE, CHOSEN_EMBEDDING)


@dataclass(frozen=True)
class Candidate:
    """One kind of features: its name, and the transformer that computes them."""

    name: str
    transformer: Any
    layer: int | None = None
    pooling: str | None = None

    @property
    def is_embedding(self) -> bool:
        return self.layer is not None

    def block(self, X: object) -> Block:
        """Compute the features of all rows; the transformers learn nothing of them."""
        values = clone(self.transformer).fit_transform(X)
        is_sparse = sparse.issparse(values)
        values = sparse.csr_matrix(values) if is_sparse else np.asarray(values)
        scaler = Normalizer() if is_sparse else StandardScaler()
        # A standardised row has a length of about sqrt(d).
        return Block(self.name, values, scaler, 1.0 if is_sparse else values.shape[1] ** -0.5)


def embeddings(transformer: EmbeddingTransformer, layers: Any, poolings: Any) -> list[Candidate]:
    """List the layers and poolings of a model."""
    engine = transformer._engine(layers=layers, pooling=poolings)
    return [
        Candidate(
            f"layer {layer}, {pooling}",
            clone(transformer).set_params(layers=layer, pooling=pooling),
            layer,
            pooling,
        )
        for pooling in engine.poolings
        for layer in engine.layers
    ]


def baselines(given: Any, X: object, transformer: EmbeddingTransformer) -> list[Candidate]:
    """List the baselines; by default, those that the sequences allow."""
    if isinstance(given, Mapping):
        unknown = [name for name, value in given.items() if not hasattr(value, "fit_transform")]
        if unknown:
            raise InputError(
                f"The baseline {unknown[0]!r} is no transformer. Pass a dict of names to "
                'transformers, such as {"composition": DescriptorTransformer()}.'
            )
        taken = [name for name in map(str, given) if name.startswith("layer ") or name in RESERVED]
        if taken:
            raise InputError(
                f"Got a baseline with the name {taken[0]!r}, which is taken: rename it."
            )
        return [Candidate(str(name), value) for name, value in given.items()]
    if given != "auto":
        raise InputError(
            f'Got baselines={given!r}; expected "auto", or a dict of names to transformers.'
        )
    return [Candidate(name, value) for name, value in _defaults(X, transformer)]


def _defaults(X: object, transformer: EmbeddingTransformer) -> Iterator[tuple[str, Any]]:
    common = {"unknown": transformer.unknown, "chains": _sequence_columns(X, transformer)}
    for name in ("length", "composition", "properties"):
        yield name, DescriptorTransformer(name, **common)
    yield "1- to 3-mers", DescriptorTransformer("kmers", sparse_output=True, **common)
    chains = columns(X, owner="compare_features", chains=common["chains"])
    if all(len({len(str(text).strip()) for text in chain.values}) == 1 for chain in chains):
        yield "one-hot", AlignedTransformer("onehot", **common)
        yield "BLOSUM62", AlignedTransformer("blosum62", **common)


def _sequence_columns(X: object, transformer: Any) -> Sequence[str | int] | None:
    """Name the columns of X that hold sequences, and no regions."""
    region = transformer._region_column
    if region is None:
        return transformer.chains  # type: ignore[no-any-return]
    found = columns(X, owner="compare_features", region=region, chains=transformer.chains)
    return [str(column.name) for column in found if column.name != region]


def default_transformer(given: Any) -> EmbeddingTransformer:
    """Make the transformer, or check a given one."""
    if given is None or isinstance(given, str):
        return ESM2Transformer(*([given] if given else []))
    if not isinstance(given, EmbeddingTransformer):
        raise TypeError(
            f"Got transformer={given!r}; pass an ESM2Transformer, an ESM2DifferenceTransformer, "
            "or the name of a model."
        )
    return clone(given).set_params(on_missing="raise").set_output(transform="default")  # type: ignore[no-any-return]
