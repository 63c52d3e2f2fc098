"""Sequence identity by exact local alignment, with alignments that chance would give left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK
from esm2_features.exceptions import import_optional

_GAP_OPEN, _GAP_EXTEND = 11, 1
_LAMBDA, _K = 0.267, 0.041
"""Statistics of local alignments with BLOSUM62 and these gaps (Altschul and Gish, 1996)."""
_MAX_EVALUE = 1e-3
_CERTAIN = 0.7
"""Identity from which alignments count whatever their E-value, which is high for short peptides."""
_SHORT = 8
"""Residues below which a peptide is found by chance in many proteins."""

_UNKNOWN = "XJ"
"""Letters of unknown residues in queries and in targets: different, so that they never match."""
_CLEANED = str.maketrans("UOBZ" + MASK, "CKXXX")


def clean(sequence: str) -> str:
    """Write U and O as the residues that they replace, and what is ambiguous as X."""
    return sequence.translate(_CLEANED)


class Aligner:
    """Aligns pairs of distinct sequences, which have to be sorted by their lengths."""

    def __init__(self, sequences: Sequence[str], min_identity: float, coverage: float) -> None:
        purpose = "Comparing sequences"
        self._opal = import_optional("pyopal", extra="families", purpose=purpose)
        matrices = import_optional("scoring_matrices", extra="families", purpose=purpose)
        blosum = matrices.ScoringMatrix.from_name("BLOSUM62")
        at = [blosum.alphabet.index(letter) for letter in CANONICAL_RESIDUES]
        scores = np.full((len(at) + 2, len(at) + 2), -1.0)  # of X with everything
        scores[:-2, :-2] = [[blosum[i][j] for j in at] for i in at]
        matrix = matrices.ScoringMatrix(scores.tolist(), alphabet=CANONICAL_RESIDUES + _UNKNOWN)
        self._aligner = self._opal.Aligner(matrix, gap_open=_GAP_OPEN, gap_extend=_GAP_EXTEND)
        self._queries = [clean(sequence) for sequence in sequences]
        self._targets = self._opal.Database(
            [query.replace(*_UNKNOWN) for query in self._queries], self._aligner.alphabet
        )
        self._lengths = np.array([len(sequence) for sequence in sequences])
        self._min_identity, self._coverage = min_identity, coverage

    def identities(self, query: int, targets: NDArray[np.intp]) -> NDArray[np.float64]:
        """Give the identity of one sequence to each of some that follow it; 0 if not related."""
        found = np.zeros(len(targets))
        length = int(self._lengths[query])
        significant = math.log(_K * length * self._lengths.sum() / _MAX_EVALUE) / _LAMBDA
        database = self._targets.extract(targets.tolist())
        # Scores cost half as much as alignments. The score of those that count is at least 1.7 for
        # each residue that has to be identical, in all pairs that were looked at.
        least = max(min(significant, length), 1.5 * self._min_identity * length)
        results = self._aligner.align(self._queries[query], database)
        scores = np.fromiter((result.score for result in results), np.int64, len(targets))
        kept = np.flatnonzero(scores >= least)
        if not len(kept):
            return found
        database = database.extract(kept.tolist())
        results = self._aligner.align(self._queries[query], database, mode="full")
        for at, result in zip(kept.tolist(), results, strict=True):
            of = length if length >= _SHORT else int(self._lengths[targets[at]])
            identity = result.alignment.count("M") / of
            covered = (result.query_end - result.query_start + 1) / of
            is_related = identity >= _CERTAIN or result.score >= significant
            if is_related and identity >= self._min_identity and covered >= self._coverage:
                found[at] = identity
        return found
