"""Labelled sequences for examples, tests and benchmarks, in the shapes of scikit-learn."""

from esm2_features.datasets.loaders import (
    fetch_fitness_gb1,
    fetch_stability_megascale,
    fetch_stability_s2648,
    fetch_toxicity_peptides,
    load_demo_peptides,
)

__all__ = [
    "fetch_fitness_gb1",
    "fetch_stability_megascale",
    "fetch_stability_s2648",
    "fetch_toxicity_peptides",
    "load_demo_peptides",
]
