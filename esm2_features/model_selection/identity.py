"""Sequence identity by exact local alignment, with alignments that chance would give left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
_MANY_TARGETS = 16
"""Targets from which pyopal, which aligns a query with many at once, is faster than parasail."""


def clean(sequence: str) -> str:
    """Write U and O as the residues that they replace, and what is ambiguous as X."""
    return sequence.translate(_CLEANED)


class Aligner:
    """Aligns pairs of distinct sequences, which have to be sorted by their lengths."""

    def __init__(self, sequences: Sequence[str], min_identity: float, coverage: float) -> None:
        purpose = "Comparing sequences"
        self._parasail = import_optional("parasail", extra="families", purpose=purpose)
        opal = import_optional("pyopal", extra="families", purpose=purpose)
        matrices = import_optional("scoring_matrices", extra="families", purpose=purpose)
        blosum = matrices.ScoringMatrix.from_name("BLOSUM62")
        at = [blosum.alphabet.index(letter) for letter in CANONICAL_RESIDUES]
        scores = np.full((len(at) + 2, len(at) + 2), -1)  # of X with everything
        scores[:-2, :-2] = [[int(blosum[i][j]) for j in at] for i in at]
        alphabet = CANONICAL_RESIDUES + _UNKNOWN
        self._matrix = self._parasail.matrix_create(alphabet, 0, -1)
        for i, j in np.ndindex(scores.shape):
            self._matrix[i, j] = int(scores[i, j])
        matrix = matrices.ScoringMatrix(scores.tolist(), alphabet=alphabet)
        self._opal = opal.Aligner(matrix, gap_open=_GAP_OPEN, gap_extend=_GAP_EXTEND)
        self._queries = [clean(sequence) for sequence in sequences]
        self._targets = [query.replace(*_UNKNOWN) for query in self._queries]
        self._database = opal.Database(self._targets, self._opal.alphabet)
        self._lengths = np.array([len(sequence) for sequence in sequences])
        self._min_identity, self._coverage = min_identity, coverage

    def identities(self, query: int, targets: NDArray[np.intp]) -> NDArray[np.float64]:
        """Give the identity of one sequence to each of some that follow it; 0 if not related."""
        found = np.zeros(len(targets))
        length = int(self._lengths[query])
        significant = math.log(_K * length * self._lengths.sum() / _MAX_EVALUE) / _LAMBDA
        # Scores cost half as much as counting matches. The score of those that count is at least
        # 1.7 for each residue that has to be identical, in all pairs that were looked at.
        least = max(min(significant, length), 1.5 * self._min_identity * length)
        scores = self._scores(query, targets)
        for at in np.flatnonzero(scores >= least).tolist():
            target = int(targets[at])
            of = length if length >= _SHORT else int(self._lengths[target])
            result = self._parasail_run("sw_stats", self._queries[query], self._targets[target])
            identity = result.matches / of
            is_related = identity >= _CERTAIN or result.score >= significant
            if is_related and identity >= self._min_identity:
                # No more residues can be identical than are covered.
                is_covered = identity >= self._coverage
                if is_covered or self._covered(query, target, result) / of >= self._coverage:
                    found[at] = identity
        return found

    def _scores(self, query: int, targets: NDArray[np.intp]) -> NDArray[np.int64]:
        if len(targets) >= _MANY_TARGETS:
            results = self._opal.align(
                self._queries[query], self._database.extract(targets.tolist())
            )
        else:
            results = [
                self._parasail_run("sw", self._queries[query], self._targets[target])
                for target in targets.tolist()
            ]
        return np.fromiter((result.score for result in results), np.int64, len(targets))

    def _covered(self, query: int, target: int, result: Any) -> int:
        """Count the residues of the query from the first to the last that is aligned."""
        query_part = self._queries[query][result.end_query :: -1]
        target_part = self._targets[target][result.end_ref :: -1]
        return int(self._parasail_run("sw", query_part, target_part).end_query) + 1

    def _parasail_run(self, name: str, query: str, target: str) -> Any:
        arguments = query, target, _GAP_OPEN, _GAP_EXTEND, self._matrix
        result = getattr(self._parasail, f"{name}_striped_16")(*arguments)
        if result.saturated:
            result = getattr(self._parasail, f"{name}_striped_32")(*arguments)
        return result
