"""Pairs of related sequences among many, by one of two engines."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from esm2_features._inputs import options
from esm2_features._inputs.containers import Column, single_column
from esm2_features._inputs.policy import SequencePolicy
from esm2_features._inputs.rows import labelled
from esm2_features.exceptions import InputError
from esm2_features.model_selection import mmseqs
from esm2_features.model_selection.identity import Aligner

_ENGINES = ("auto", "alignment", "mmseqs")
_SMALL_SET = 2_000_000
"""Residues below which MMseqs2 is given more time, and fewer of the short sequences."""
_PAIR_SECONDS, _CELL_SECONDS = 5e-7, 1.5e-10
_MANY_SECONDS = 60.0
"""Time of a core from which MMseqs2 is used where it is installed."""
_TOO_MANY_SECONDS = 3600.0

_Job = tuple[int, NDArray[np.intp]]  # a sequence, and those to align it with

_logger = logging.getLogger("esm2_features")


def read_sequences(
    sequences: object, *, owner: str, unknown: str, column: str | None = None
) -> list[str]:
    """Check sequences of any length as `Engine.embed` does."""
    policy = SequencePolicy(None, unknown=options.one_of("unknown", unknown, options.UNKNOWN))
    cells = sequences
    if not isinstance(cells, Column):
        cells = single_column(sequences, owner=owner)
    with labelled(cells.labels):
        return policy.normalise(cells.values, column=column)


def fraction(option: str, value: Any) -> float:
    """Check an option that is a fraction greater than 0."""
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        raise TypeError(f"Got {option}={value!r}; pass a number between 0 and 1, such as 0.4.")
    number = float(value)
    if not 0 < number <= 1:
        percent = f" Did you mean {number / 100:g}?" if 1 < number <= 100 else ""
        raise InputError(
            f"Got {option}={value!r}; pass a fraction greater than 0, and at most 1.{percent}"
        )
    return number


def sorted_distinct(sequences: Sequence[str]) -> list[str]:
    """Give each sequence once, the shortest first."""
    return sorted(set(sequences), key=lambda sequence: (len(sequence), sequence))


@dataclass(frozen=True)
class PairSearch:
    """How related sequences are looked for."""

    min_identity: float
    coverage: float
    engine: str
    threads: int

    def __post_init__(self) -> None:
        fraction("coverage", self.coverage)
        options.one_of("engine", self.engine, _ENGINES)
        if self.engine == "mmseqs" and not mmseqs.is_installed():
            raise mmseqs.missing_error('engine="mmseqs" needs mmseqs, which is not on the path.')

    def related(
        self, sequences: Sequence[str], sides: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Give pairs of related sequences of different sides, (n, 2), and their identities (n,).

        ``sequences`` are as `sorted_distinct` gives them; the shorter one of a pair comes first.
        """
        aligned, proposed = self._candidates(sequences, sides)
        aligner = Aligner(sequences, self.min_identity, self.coverage)
        return self._align(aligner, [*aligned, *_by_query(proposed)])

    def connected(self, sequences: Sequence[str]) -> NDArray[np.intp]:
        """Label sequences that chains of relatives connect, (n,)."""
        aligned, proposed = self._candidates(sequences, None)
        aligner = Aligner(sequences, self.min_identity, self.coverage)
        pairs, _ = self._align(aligner, aligned)
        labels = _components(pairs, len(sequences))
        # Pairs that nearer ones have connected by then need no alignment.
        rounds = np.ceil(np.log2(proposed[:, 2] + 1))
        for number in np.unique(rounds):
            left = proposed[rounds == number, :2]
            left = left[labels[left[:, 0]] != labels[left[:, 1]]]
            found, _ = self._align(aligner, _by_query(left))
            pairs = np.concatenate([pairs, found])
            labels = _components(pairs, len(sequences))
        return labels

    def _candidates(
        self, sequences: Sequence[str], sides: NDArray[np.bool_] | None
    ) -> tuple[list[_Job], NDArray[np.intp]]:
        """Give sequences that are aligned with all that follow, and pairs that MMseqs2 proposes."""
        lengths = np.array([len(sequence) for sequence in sequences], np.intp)
        n_aligned, proposed = len(sequences), np.empty((0, 3), np.intp)
        if self._choose_engine(lengths) == "mmseqs":
            is_small = lengths.sum() < _SMALL_SET
            n_aligned = int(np.searchsorted(lengths, 50 if is_small else 25))
            sensitivity = 5.7 if is_small or self.min_identity < 0.4 else 4.0
            proposed = self._proposed(sequences, n_aligned, sides, sensitivity)
        others = np.arange(len(sequences))
        aligned = [(query, others[query + 1 :]) for query in range(n_aligned)]
        if sides is not None:
            aligned = [(query, after[sides[after] != sides[query]]) for query, after in aligned]
        return aligned, proposed

    def _align(
        self, aligner: Aligner, jobs: Sequence[_Job]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        def align(job: _Job) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
            query, targets = job
            identity = aligner.identities(query, targets)
            kept = np.flatnonzero(identity)
            return np.column_stack([np.full(len(kept), query), targets[kept]]), identity[kept]

        with ThreadPoolExecutor(self.threads) as pool:
            found = list(pool.map(align, (job for job in jobs if len(job[1]))))
        none = np.empty((0, 2), np.intp), np.empty(0)
        pairs, identities = zip(none, *found, strict=True)
        return np.concatenate(pairs), np.concatenate(identities)

    def _choose_engine(self, lengths: NDArray[np.intp]) -> str:
        """Choose an engine by the time that aligning all pairs takes."""
        cells = float(lengths.sum()) ** 2 / 2
        seconds = len(lengths) ** 2 / 2 * _PAIR_SECONDS + cells * _CELL_SECONDS
        engine = self.engine
        if engine == "auto":
            engine = "mmseqs" if seconds > _MANY_SECONDS and mmseqs.is_installed() else "alignment"
            if engine == "alignment" and seconds > _TOO_MANY_SECONDS:
                raise mmseqs.missing_error(
                    f"Aligning all pairs of {len(lengths):,} sequences would take about "
                    f'{seconds / 3600:.0f} hours of a core (engine="alignment" does it all the '
                    "same). MMseqs2 is faster, but no mmseqs is on the path."
                )
        _logger.info('Comparing %d sequences with engine="%s".', len(lengths), engine)
        return engine

    def _proposed(
        self,
        sequences: Sequence[str],
        n_aligned: int,
        sides: NDArray[np.bool_] | None,
        sensitivity: float,
    ) -> NDArray[np.intp]:
        """Let MMseqs2 propose pairs of the longer sequences, with ranks: 0 is the most similar."""
        queries = targets = np.arange(n_aligned, len(sequences))
        if sides is not None:
            queries, targets = queries[sides[queries]], targets[~sides[targets]]
        if not len(queries) or not len(targets):
            return np.empty((0, 3), np.intp)
        found = mmseqs.propose_pairs(
            [sequences[i] for i in queries.tolist()],
            None if sides is None else [sequences[i] for i in targets.tolist()],
            sensitivity=sensitivity,
            threads=self.threads,
        )
        pairs = np.column_stack([queries[found[:, 0]], targets[found[:, 1]]])
        is_pair = pairs[:, 0] != pairs[:, 1]
        pairs, scores = pairs[is_pair], found[is_pair, 2]
        order = np.lexsort([-scores, pairs[:, 0]])
        pairs = pairs[order]
        _, starts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        ranks = np.arange(len(pairs)) - np.repeat(starts, counts)
        order = np.argsort(ranks, kind="stable")
        pairs, ranks = np.sort(pairs[order], axis=1), ranks[order]
        _, first = np.unique(pairs, axis=0, return_index=True)
        return np.column_stack([pairs[first], ranks[first]])


def _by_query(pairs: NDArray[np.intp]) -> list[_Job]:
    """Collect the targets of each query."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    queries, starts = np.unique(pairs[:, 0], return_index=True)
    targets = np.split(pairs[:, 1], starts[1:])
    return [(int(query), targets[i]) for i, query in enumerate(queries)]


def _components(pairs: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)
