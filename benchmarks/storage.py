"""What it costs in exactness to keep vectors in float16: errors, cosines, and who is next to whom.

Vectors are computed in float32 and rounded once. Two inputs: the peptides of the demonstration, and
single mutants of one protein, whose vectors hardly differ.

    python -m benchmarks.storage --save

Never here: half precision of the network itself (compare.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import workload
from esm2_features import Engine
from esm2_features.datasets import load_demo_peptides

RESULTS = Path(__file__).with_name("results")
NEIGHBOURS = 10

Result = dict[str, Any]


def compare(exact: np.ndarray, kept: np.ndarray) -> Result:
    """Say how far rounded vectors are from exact ones.

    Parameters
    ----------
    exact, kept : ndarray of shape (n, dim)
        More than `NEIGHBOURS` rows.

    Returns
    -------
    figures : dict
        ``largest_error``; ``cosine``, the largest of 1 - cosine; ``error_to_spread``, the median
        length of the error next to how far a vector is from the mean of all; ``same_nearest``, the
        share whose nearest neighbour (cosine) stays the same; ``same_neighbours``, the share of
        the nearest `NEIGHBOURS` that stay among these.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(20, 4))
    >>> compare(rows, rows)["same_neighbours"]
    1.0
    """
    exact, kept = exact.astype(np.float64), kept.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(kept, axis=1)
    before, after = _neighbours(exact), _neighbours(kept)
    shared = [len(set(a) & set(b)) for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    spread = np.linalg.norm(exact - exact.mean(axis=0), axis=1)
    return {
        "vectors": len(exact),
        "largest_error": float(np.abs(exact - kept).max()),
        "cosine": float((1 - (exact * kept).sum(axis=1) / lengths).max()),
        "error_to_spread": float(np.median(np.linalg.norm(exact - kept, axis=1) / spread)),
        "same_nearest": float((before[:, 0] == after[:, 0]).mean()),
        "same_neighbours": float(np.mean(shared) / NEIGHBOURS),
    }


def _neighbours(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1, kind="stable")[:, :NEIGHBOURS]


def run(model: str, mutants: int) -> Result:
    """Embed and compare.

    Parameters
    ----------
    model : str
    mutants : int
        How many of them, about.

    Returns
    -------
    result : dict
        For JSON.
    """
    names = list(load_demo_peptides().feature_names)
    peptides = load_demo_peptides().data[:, names.index("sequence")]
    inputs = {
        "peptides of the demonstration": peptides.tolist(),
        "single mutants of one protein": workload("mutants", 230 * mutants),
    }
    engine = Engine(model, cache=None)
    records = []
    for name, sequences in inputs.items():
        exact = engine.embed(sequences)
        records.append({"input": name, **compare(exact, exact.astype(np.float16))})
    return {"kind": "storage", "model": model, "records": records}


def table(result: Result) -> str:
    """Write a result as Markdown.

    Parameters
    ----------
    result : dict
        As `run` gives it.

    Returns
    -------
    markdown : str
    """
    return "\n".join(
        [
            f"Vectors of `{result['model']}` in float32, and the same rounded to float16:",
            "",
            "| input | vectors | largest error | largest 1 - cosine | error / spread "
            f"| same nearest neighbour | same {NEIGHBOURS} neighbours |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {record['input']} | {record['vectors']:,} | {record['largest_error']:.1e} "
                f"| {record['cosine']:.1e} | {record['error_to_spread']:.1e} "
                f"| {record['same_nearest']:.1%} | {record['same_neighbours']:.1%} |"
                for record in result["records"]
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(prog="benchmarks.storage", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--save", action="store_true", help="write storage.json")
    parser.add_argument("--results", type=Path, default=RESULTS, help="its folder")
    given = parser.parse_args(arguments)
    result = run(given.model, given.mutants)
    print(table(result))
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        file = given.results / "storage.json"
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
