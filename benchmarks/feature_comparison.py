"""Embeddings against baselines on published tasks, by `compare_features`.

    python benchmarks/feature_comparison.py [--task toxicity] [--model mini] [--data FOLDER]

The peptide tasks have real vectors of esm2_t6_8M_UR50D (last layer, mean) and published test sets;
the others are computed by the model. Families or proteins are on one side of every split.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from esm2_features import Cache, ESM2DifferenceTransformer, ESM2Transformer
from esm2_features.model_selection import FeatureComparison, compare_features

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PEPTIDES = ("bitter", "umami", "bbp", "quorum")
REAL = "esm2_t6_8M_UR50D"


def _toxicity(data: Path, model: str) -> FeatureComparison:
    table = pd.read_csv(data / "toxicity_peptides.csv.gz")
    return compare_features(table["sequence"], table["label"], transformer=model, n_jobs=-1)


def _s2648(data: Path, model: str, **options: Any) -> FeatureComparison:
    table = pd.read_csv(data / "stability_s2648.csv.gz")
    return compare_features(
        table[["wildtype_sequence", "sequence"]],
        table["ddg"],
        transformer=ESM2DifferenceTransformer(model, too_long="window", **options),
        groups="auto",  # families of the wild types
        n_jobs=-1,
    )


def _gb1(data: Path, model: str) -> FeatureComparison:
    table = pd.read_csv(f"zip://splits/two_vs_rest.csv::{data}/stability_flip_gb1_splits.zip")
    split = (np.flatnonzero(table["set"] == "train"), np.flatnonzero(table["set"] == "test"))
    return compare_features(
        table["sequence"].str[:56],  # the domain; a fusion partner follows
        table["target"],
        transformer=model,
        groups=np.arange(len(table)),  # variants of one protein: rows are drawn
        cv=[split],
        n_jobs=-1,
    )


def _peptides(data: Path, task: str) -> FeatureComparison:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cache, parts = Cache(folder), []
        for part in ("train", "test"):
            path = data / f"real_esm2_t6_8M_{task}_{part}.npz"
            cache.import_(path, model=REAL, layer=6, pooling="mean")
            with np.load(path) as arrays:
                parts.append((arrays["sequence"].astype(object), arrays["label"]))
        (train_X, train_y), (test_X, test_y) = parts
        n = len(train_X)
        return compare_features(
            np.concatenate([train_X, test_X]),
            np.concatenate([train_y, test_y]),
            transformer=ESM2Transformer(REAL, cache=cache),
            layers=[6],
            poolings="mean",
            groups=np.arange(n + len(test_X)),  # the published split keeps no families together
            cv=[(np.arange(n), np.arange(n, n + len(test_X)))],
        )


TASKS: dict[str, Callable[[Path, str], FeatureComparison]] = {
    "toxicity": _toxicity,
    **{task: lambda data, _, task=task: _peptides(data, task) for task in PEPTIDES},
    "s2648": _s2648,
    "s2648-site": lambda data, model: _s2648(data, model, region="site", window=2),
    "gb1": _gb1,
}


def main() -> None:
    """Compare features on the tasks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", type=Path, default=DATA)
    arguments = parser.parse_args()
    for task in arguments.task or TASKS:
        start = time.perf_counter()
        comparison = TASKS[task](arguments.data, arguments.model)
        print(f"\n== {task}: {time.perf_counter() - start:.0f} s\n{comparison}", flush=True)


if __name__ == "__main__":
    main()
