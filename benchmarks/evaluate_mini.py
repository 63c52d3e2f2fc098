r"""What `mini` is worth: measured from the weights as shipped, written to its model card.

Held-out masked perplexity next to the unigram baseline's, and ROC AUC on toxic peptides next
to that of amino-acid composition.  Every number on the card is written by this script.

    python benchmarks/evaluate_mini.py --fasta natural_proteins.fasta.gz \
        --toxicity toxicity_peptides.csv.gz

Never here: training (train_mini.py).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional
from train_mini import (
    DEFAULT_FASTA,
    DEFAULT_OUT,
    END_RESIDUE,
    FIRST_RESIDUE,
    SELECTED,
    WINDOWS,
    Mini,
    select,
    sequences_of,
    split,
)

from esm2_features._inputs.alphabet import MASK_TOKEN, encode

LONGEST = 1022  # residues of a held-out sequence that are read
FOLDS = 5

CARD = """\
# mini: a demonstration network

> **This is not ESM-2, and it is not for science.**
> `mini` has ESM-2's architecture and nothing else of it: this project trained it for
> {minutes:.0f} minutes on a small computer, so that examples, tests and demonstrations run
> without a download. For results that matter take an official checkpoint. Nothing in this
> library ever falls back to `mini`: it is used only where `model="mini"` is written out.

It ships **without a contact regression** (none was fitted), so contact maps cannot be asked of
it: asking raises an error.

## What it is

| | |
|---|---|
| architecture | that of ESM-2: rotary positions, LayerNorm in front, token dropout |
| shape | {layers} layers, width {dim}, {heads} heads of {head_dim} |
| parameters | {parameters:,} |
| stored as | float16 safetensors, {megabytes:.1f} MB, under fair-esm's parameter names |
| objective | masked language model: {selected:.0%} of the residues selected, 80/10/10 |
| training | {steps_done:,} steps of {tokens_per_step:,} tokens, bfloat16 products |
| tokens | {tokens:,} in all, {epochs:.1f} times the training set |
| rows | windows without padding, tokens (share of the batches): {windows} |
| optimiser | Muon for the matrices, AdamW for the rest; linear decay to zero; seed {seed} |
| hardware | {hardware}; {software} |
| wall time | {minutes:.0f} minutes, {speed:,.0f} tokens/s, on a machine with other work to do |

## What it learned

The figures are those of the float16 weights in this folder, computed in float32.

| perplexity of held-out residues | behind `<mask>` | all selected, 80/10/10 |
|---|---|---|
| `mini` | **{masked:.2f}** | **{perplexity:.2f}** |
| frequencies of the training set (unigram) | {unigram:.2f} | {unigram:.2f} |
| the same, seeing the corrupted letter | {unigram:.2f} | {no_context:.2f} |

The first column is the honest one. In the second, a tenth of the selected residues were left as
they are and a tenth replaced, so that the letter itself tells much: the last row is the best
that can be had without looking at any other residue.

{held_out_sequences:,} sequences ({held_out:.0%}, by the seed) were held out of training and read
whole, up to {longest:,} residues; {scored:,} residues were selected. The split is at random and
does not keep families apart: these are no figures for proteins without relatives in training.

| ROC AUC, toxic against other peptides | mean of {folds} folds | sd |
|---|---|---|
| `mini`, last layer, mean over the residues | **{auc_mini:.4f}** | {sd_mini:.4f} |
| amino-acid composition, 20 numbers | {auc_composition:.4f} | {sd_composition:.4f} |

{peptides:,} peptides ({toxic:,} toxic); `StandardScaler`, then `LogisticRegression`; the same
stratified, shuffled folds (seed {seed}) for both. Similar peptides may lie in different folds:
compare the rows with each other, not with figures of stricter splits.

## Data

{total_sequences:,} natural proteins, deduplicated; {training_residues:,} residues in training:

- a sample of UniRef90, by way of BioNeMo (Apache-2.0);
- sequences of FLIP (AFL-3.0);
- public proteomes (human, *E. coli*, yeast) and the chains of the PDB.

The peptides of the comparison are those of UniDL4BioPep (MIT). Their labels were not seen in
training; the sequence of one may occur in a training protein. This package holds none of
these data sets.

## How to repeat it

    python benchmarks/train_mini.py --fasta natural_proteins.fasta.gz \\
        --steps {steps} --minutes {minutes:.0f} --compile
    python benchmarks/evaluate_mini.py --fasta natural_proteins.fasta.gz \\
        --toxicity toxicity_peptides.csv.gz

The seed fixes the batches and the masks. The learning rates followed the steps or the clock,
whichever was further, so that a repetition comes close to these weights but does not equal them.

Written by `benchmarks/evaluate_mini.py`: do not edit.
"""


def load(path: Path) -> tuple[Mini, dict[str, Any]]:
    """Load the shipped weights and the record of their training."""
    with safe_open(path, "pt") as opened:
        record = json.loads(opened.metadata()["training"])
        weights = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
    model = Mini(record["layers"], record["dim"], record["heads"]).eval()
    model.load_state_dict(weights)
    return model, record


@torch.no_grad()
def losses(
    model: Mini, sequences: list[str], longest: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mask whole sequences, cut at the longest length in residues, one at a time.

    Returns
    -------
    loss : of each selected residue, in nats
    behind_mask : whether `<mask>` stood there
    """
    loss, behind_mask = [], []
    for sequence in sequences:
        tokens = encode(sequence[:longest])[None].astype(np.int64)
        standard = (tokens >= FIRST_RESIDUE) & (tokens < END_RESIDUE)
        corrupted, chosen = select(tokens, round(SELECTED * int(standard.sum())), rng)
        logits = model(torch.from_numpy(corrupted), torch.from_numpy(chosen))
        truth = torch.from_numpy(tokens.ravel()[chosen])
        loss.append(functional.cross_entropy(logits, truth, reduction="none").numpy())
        behind_mask.append(corrupted.ravel()[chosen] == MASK_TOKEN)
    return np.concatenate(loss).astype(float), np.concatenate(behind_mask)


def perplexity(model: Mini, sequences: list[str], seed: int) -> dict[str, float]:
    """Return the perplexities of whole held-out sequences, and how many residues they rest on."""
    loss, masked = losses(model, sequences, LONGEST, np.random.default_rng([seed, 2]))
    return {
        "masked": float(np.exp(loss[masked].mean())),
        "perplexity": float(np.exp(loss.mean())),
        "scored": len(loss),
    }


def composition(sequences: list[str]) -> NDArray[np.float64]:
    """Return the shares of the twenty residues, ndarray of shape (n, 20), float64."""
    rows = [np.bincount(encode(sequence), minlength=END_RESIDUE) for sequence in sequences]
    counts = np.array([row[FIRST_RESIDUE:END_RESIDUE] for row in rows], float)
    shares: NDArray[np.float64] = counts / counts.sum(1, keepdims=True)
    return shares


def baselines(training: list[str], held_out: list[str]) -> dict[str, float]:
    """Return perplexities, on held-out residues, of what knows only the training frequencies."""
    counts = np.zeros((2, END_RESIDUE - FIRST_RESIDUE))
    for side, sequences in enumerate((training, [s[:LONGEST] for s in held_out])):
        tokens = np.concatenate([encode(sequence) for sequence in sequences])
        counts[side] = np.bincount(tokens, minlength=END_RESIDUE)[FIRST_RESIDUE:END_RESIDUE]
    known, seen = counts / counts.sum(1, keepdims=True)
    hidden = -(seen * np.log(known)).sum()
    # Where no <mask> stands: probability of the letter that is seen (column), given the true one.
    channel = 0.5 * np.eye(len(seen)) + 0.5 / len(seen)
    posterior = known[:, None] * channel / (known @ channel)
    visible = -(seen[:, None] * channel * np.log(posterior)).sum()
    return {
        "unigram": float(np.exp(hidden)),
        "no_context": float(np.exp(0.8 * hidden + 0.2 * visible)),
    }


@torch.no_grad()
def embed(model: Mini, sequences: list[str]) -> NDArray[np.float32]:
    """Return the mean over residues of the last layer, ndarray of shape (n, d), float32."""
    rows = []
    for sequence in sequences:
        hidden = model.hidden(torch.from_numpy(encode(sequence)[None].astype(np.int64)))
        rows.append(hidden[0, 1:-1].mean(0).numpy())
    return np.stack(rows)


def auc(features: NDArray[Any], labels: NDArray[Any], seed: int) -> tuple[float, float]:
    """Return the mean and the standard deviation over the folds of the ROC AUC."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    scores = cross_val_score(classifier, features, labels, cv=folds, scoring="roc_auc")
    return float(scores.mean()), float(scores.std(ddof=1))


def measure(weights: Path, fasta: Path, toxicity: Path) -> dict[str, Any]:
    """Measure everything that the card says."""
    model, record = load(weights)
    seed = record["seed"]
    training, held_out = split(sequences_of(fasta), record["held_out"], seed)
    if not toxicity.is_file():
        raise SystemExit(f"{toxicity}: no such table; give one with --toxicity PATH")
    with gzip.open(toxicity, "rt", newline="") as lines:
        rows = list(csv.DictReader(lines))
    peptides, labels = [row["sequence"] for row in rows], np.array([int(r["label"]) for r in rows])
    figures = dict(record)
    figures |= perplexity(model, held_out, seed) | baselines(training, held_out)
    figures["auc_mini"], figures["sd_mini"] = auc(embed(model, peptides), labels, seed)
    figures["auc_composition"], figures["sd_composition"] = auc(composition(peptides), labels, seed)
    return figures | {
        "head_dim": record["dim"] // record["heads"],
        "megabytes": weights.stat().st_size / 1e6,
        "selected": SELECTED,
        "windows": "; ".join(f"{window} ({share:.0%})" for window, share in WINDOWS.items()),
        "epochs": record["tokens"] / record["training_residues"],
        "held_out_sequences": len(held_out),
        "total_sequences": len(training) + len(held_out),
        "longest": LONGEST,
        "folds": FOLDS,
        "peptides": len(labels),
        "toxic": int(labels.sum()),
        "speed": record["tokens"] / record["minutes"] / 60,
    }


def main() -> None:
    """Parse, measure, write the card; print one JSON line last."""
    parser = argparse.ArgumentParser(description="Measure `mini` and write its model card.")
    parser.add_argument("--weights", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--fasta", type=Path, default=DEFAULT_FASTA)
    default = DEFAULT_FASTA.with_name("toxicity_peptides.csv.gz")
    parser.add_argument("--toxicity", type=Path, default=default)
    parser.add_argument("--card", type=Path, default=DEFAULT_OUT.with_name("MINI.md"))
    given = parser.parse_args()
    figures = measure(given.weights, given.fasta, given.toxicity)
    given.card.write_text(CARD.format(**figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
