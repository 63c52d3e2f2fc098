"""Protein sequences in, ESM-2 features out, as a scikit-learn transformer.

>>> from sklearn.linear_model import LogisticRegression
>>> from sklearn.pipeline import make_pipeline
>>> from esm2_features import ESM2Transformer
>>> toxic = make_pipeline(ESM2Transformer("mini", cache=None), LogisticRegression())
>>> toxic.fit(["GIGAVLKVLTTGLPALISWIKRKRQQ", "HSQGTFTSDYSKYLDSRRAQDFVQWLMNT"], [1, 0]).classes_
array([0, 1])

Importing this package imports no torch: names are looked up when they are first used, and
weights are loaded when a vector is first missing from the cache.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esm2_features import datasets, distributed, exceptions, model_selection
    from esm2_features._cache import Cache
    from esm2_features._checkpoints.catalogue import available_models
    from esm2_features._engine import Engine
    from esm2_features._inputs.fasta import read_fasta
    from esm2_features._inputs.mutants import Mutants, build_mutants
    from esm2_features._neighbors.search import Neighbors, nearest
    from esm2_features._neighbors.transfer import TransferredLabels, transfer_labels
    from esm2_features._residue_table import ResidueTable, residue_table
    from esm2_features._sklearn.aligned import AlignedTransformer
    from esm2_features._sklearn.descriptors import DescriptorTransformer
    from esm2_features._sklearn.difference import ESM2DifferenceTransformer
    from esm2_features._sklearn.embedding import ESM2Transformer
    from esm2_features._sklearn.likelihood import ESM2LikelihoodTransformer
    from esm2_features._variants import scan_variants, score_variants
    from esm2_features._verify import verify
    from esm2_features.distributed.reader import open_embeddings

_HOME_OF_NAME = {
    "AlignedTransformer": "esm2_features._sklearn.aligned",
    "Cache": "esm2_features._cache",
    "DescriptorTransformer": "esm2_features._sklearn.descriptors",
    "ESM2DifferenceTransformer": "esm2_features._sklearn.difference",
    "ESM2LikelihoodTransformer": "esm2_features._sklearn.likelihood",
    "ESM2Transformer": "esm2_features._sklearn.embedding",
    "Engine": "esm2_features._engine",
    "Mutants": "esm2_features._inputs.mutants",
    "Neighbors": "esm2_features._neighbors.search",
    "ResidueTable": "esm2_features._residue_table",
    "TransferredLabels": "esm2_features._neighbors.transfer",
    "available_models": "esm2_features._checkpoints.catalogue",
    "build_mutants": "esm2_features._inputs.mutants",
    "datasets": "esm2_features.datasets",
    "distributed": "esm2_features.distributed",
    "exceptions": "esm2_features.exceptions",
    "model_selection": "esm2_features.model_selection",
    "nearest": "esm2_features._neighbors.search",
    "open_embeddings": "esm2_features.distributed.reader",
    "read_fasta": "esm2_features._inputs.fasta",
    "residue_table": "esm2_features._residue_table",
    "scan_variants": "esm2_features._variants",
    "score_variants": "esm2_features._variants",
    "transfer_labels": "esm2_features._neighbors.transfer",
    "verify": "esm2_features._verify",
}

__all__ = [
    "AlignedTransformer",
    "Cache",
    "DescriptorTransformer",
    "ESM2DifferenceTransformer",
    "ESM2LikelihoodTransformer",
    "ESM2Transformer",
    "Engine",
    "Mutants",
    "Neighbors",
    "ResidueTable",
    "TransferredLabels",
    "available_models",
    "build_mutants",
    "datasets",
    "distributed",
    "exceptions",
    "model_selection",
    "nearest",
    "open_embeddings",
    "read_fasta",
    "residue_table",
    "scan_variants",
    "score_variants",
    "transfer_labels",
    "verify",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("esm2-features")
    if name not in _HOME_OF_NAME:
        raise AttributeError(f"module 'esm2_features' has no attribute {name!r}")
    home = importlib.import_module(_HOME_OF_NAME[name])
    return home if _HOME_OF_NAME[name].endswith(f".{name}") else getattr(home, name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
