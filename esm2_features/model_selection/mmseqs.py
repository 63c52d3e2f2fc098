"""MMseqs2 as a prefilter: it proposes pairs of sequences that may be related."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm2_features.exceptions import Esm2FeaturesError, MissingDependencyError
from esm2_features.model_selection.identity import clean

_LEAST_SCORE = 40
"""Of the best alignment without gaps; related sequences that are not short have more."""
_MOST_TARGETS = 300
_INSTALL = "apt-get install mmseqs2, brew install mmseqs2, or conda install -c bioconda mmseqs2"


def is_installed() -> bool:
    return shutil.which("mmseqs") is not None


def missing_error(reason: str) -> MissingDependencyError:
    """Make the error of a missing MMseqs2."""
    return MissingDependencyError(f"{reason} Install it with: {_INSTALL}")


def propose_pairs(
    queries: Sequence[str], targets: Sequence[str] | None, *, sensitivity: float, threads: int
) -> NDArray[np.intp]:
    """Propose pairs of a query and a target, or of two queries: numbers and scores, (n, 3)."""
    with tempfile.TemporaryDirectory(prefix="esm2-features-") as name:
        folder = Path(name)
        _make_database(folder / "queries", queries)
        into = folder / "queries" if targets is None else folder / "targets"
        if targets is not None:
            _make_database(into, targets)
        options = ["-s", str(sensitivity), "--max-seqs", str(_MOST_TARGETS)]
        options += ["--min-ungapped-score", str(_LEAST_SCORE), "--threads", str(threads)]
        # Repeats and unusual compositions count here, as they do in the alignments.
        options += ["--mask", "0", "--comp-bias-corr", "0"]
        _run("prefilter", folder / "queries", into, folder / "hits", *options)
        _run("createtsv", folder / "queries", into, folder / "hits", folder / "hits.tsv")
        if not (folder / "hits.tsv").stat().st_size:
            return np.empty((0, 3), np.intp)
        return np.loadtxt(folder / "hits.tsv", np.intp, usecols=(0, 1, 2), ndmin=2)


def _make_database(path: Path, sequences: Sequence[str]) -> None:
    fasta = path.with_suffix(".fasta")
    lines = (f">{i}\n{clean(sequence)}\n" for i, sequence in enumerate(sequences))
    fasta.write_text("".join(lines))
    _run("createdb", fasta, path)


def _run(*command: str | Path) -> None:
    words = ["mmseqs", *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        raise Esm2FeaturesError(
            f"MMseqs2 failed in {words[1]} with exit code {done.returncode}: {said} "
            'Pass engine="alignment" to do without it.'
        )
