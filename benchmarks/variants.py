"""How long a full masked-marginal scan takes, and what mini's scores are worth.

The scan of a protein of 230 residues is timed next to the naive way, one masked copy per forward
pass of fair-esm's network, in turn, in one process, on the same weights; the scores are compared.
With a table of measured stabilities, the scores are correlated with these.

    python benchmarks/variants.py
    python benchmarks/variants.py --stability TABLE.csv.gz --protein 1aoy_A_7-75
    python benchmarks/variants.py --quick

The table has columns protein_id, mutation, sequence and a ddG that is positive where the mutation
destabilises (Tsuboyama et al. 2023). The demonstration model is not for science: its figure shows
that the way from table to correlation works.

Never here: the cache's own speed (cache_speed.py).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from esm2_features import Engine, score_variants
from esm2_features._checkpoints import open_checkpoint
from esm2_features._inputs.alphabet import CANONICAL_TOKENS, MASK, encode
from esm2_features._model.reference import Reference
from esm2_features._variants import scan_variants

# Green fluorescent protein of Aequorea victoria (UniProt P42212, 238 residues), its first 230.
PROTEIN = (
    "MSKGEELFTGVVPILVELDGDVNGHKFSVSGEGEGDATYGKLTLKFICTTGKLPVPWPTLVTTFSYGVQCFSRYPDHMKQHDFFKSAMPEGYVQERTIF"
    "FKDDGNYKTRAEVKFEGDTLVNRIELKGIDFKEDGNILGHKLEYNYNSHNVYIMADKQKNGIKVNFKIRHNIEDGSVQLADHYQQNTPIGDGPVLLPDN"
    "HYLSTQSALSKDPNEKRDHMVLLEFVTAAGIT"
)


def naive(reference: Reference, protein: str) -> np.ndarray:
    """Score all substitutions, one masked copy per forward pass."""
    scores = np.empty((len(protein), 20))
    for position, letter in enumerate(protein):
        masked = f"{protein[:position]}{MASK}{protein[position + 1 :]}"
        logits = torch.from_numpy(reference.layers(masked)["logits"])
        log_probs = logits[position + 1].log_softmax(-1).numpy()
        own = int(encode(letter)[1])
        scores[position] = log_probs[CANONICAL_TOKENS] - log_probs[own]
    return scores


def timed(function, *arguments):
    """Give a result and the seconds that it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def scan(rounds: int, residues: int) -> None:
    """Time the scan in turn."""
    protein = PROTEIN[:residues]
    assert len(protein) == residues
    reference = Reference(open_checkpoint("mini"))
    engine = Engine("mini", cache=None)
    scan_variants(engine, protein[:20])
    naive(reference, protein[:20])
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    for _ in range(rounds):
        ours, seconds = timed(scan_variants, engine, protein)
        times["ours"].append(seconds)
        theirs, seconds = timed(naive, reference, protein)
        times["naive"].append(seconds)
    print(
        f"{residues} residues, mini, {torch.get_num_threads()} threads, {rounds} rounds in turn\n"
    )
    print("| what | median seconds | quartiles |\n|---|---:|---:|")
    for name, seconds in times.items():
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.2f} | {low:.2f} to {high:.2f} |")
    ratio = np.median(times["naive"]) / np.median(times["ours"])
    print(f"\nratio {ratio:.2f}; largest difference of a score {np.abs(ours - theirs).max():.1e}")


def stability(path: str, name: str | None) -> None:
    """Correlate scores with measured stabilities of one protein."""
    table = pd.read_csv(path)
    name = name or table.protein_id.iloc[0]
    rows = table[table.protein_id == name]
    first = rows.iloc[0]
    old, position = first.mutation[0], int(first.mutation[1:-1])
    wildtype = first.sequence[: position - 1] + old + first.sequence[position:]
    measured = -rows[next(column for column in rows if column.startswith("ddG"))]
    print(f"\n{name}: {len(rows)} mutants of {len(wildtype)} residues; Spearman with -ddG, mini\n")
    print("| method | Spearman |\n|---|---:|")
    for method in ("masked-marginals", "wildtype-marginals"):
        engine = Engine("mini", cache=None)
        scores = score_variants(engine, wildtype, rows.mutation, method)
        print(f"| {method} | {spearmanr(scores, measured).statistic:.3f} |")


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short protein, one round")
    parser.add_argument("--stability", metavar="CSV", help="table of measured stabilities")
    parser.add_argument("--protein", help="its protein_id; the first one by default")
    arguments = parser.parse_args()
    scan(*((1, 40) if arguments.quick else (7, 230)))
    if arguments.stability:
        stability(arguments.stability, arguments.protein)


if __name__ == "__main__":
    main()
