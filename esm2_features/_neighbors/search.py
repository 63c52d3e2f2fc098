"""`nearest`: exact nearest neighbours among vectors that may be larger than memory."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.groups import group_cells, group_codes
from esm2_features._inputs.options import one_of, positive
from esm2_features._neighbors.vectors import METRICS, SCALES, Scaling, Vectors
from esm2_features.exceptions import InputError, shorten

_QUERIES_AT_A_TIME = 1024
_PAIR_NUMBERS = 1 << 22
"""Numbers in the pairs whose exact distances are computed at a time."""
_SAME = 1e-20
"""Squared distance, as a part of the squared norms, below which two vectors are the same."""


class _Neighbors(NamedTuple):
    indices: NDArray[np.intp]
    distances: NDArray[np.float32]


class Neighbors(_Neighbors):
    """The nearest targets of each query, the nearest first.

    Attributes
    ----------
    indices : ndarray of shape (n_queries, n_neighbors), intp
        Rows of the targets. Of targets at the same distance, the lowest row comes first.
    distances : ndarray of shape (n_queries, n_neighbors), float32
        Cosine distances, 1 - cosine similarity, from 0 to 2; or Euclidean distances.
    """

    __module__ = "esm2_features"

    n_targets: int | None = None  # for `transfer_labels`, which checks the number of labels


def nearest(
    queries: Any,
    targets: Any = None,
    *,
    n_neighbors: int = 1,
    scale: Literal["standardize", "whiten"] | None = "standardize",
    metric: Literal["cosine", "euclidean"] = "cosine",
    query_groups: Any = None,
    target_groups: Any = None,
) -> Neighbors:
    """Find the nearest targets of each query, exactly.

    Parameters
    ----------
    queries : array or frame of shape (n_queries, d), or Embeddings
        One vector in each row, such as `ESM2Transformer` gives.
    targets : array or frame of shape (n_targets, d), or Embeddings, optional
        What to search. They may be larger than memory: an array that is memory-mapped (``np.load(
        path, mmap_mode="r")``), or what `open_embeddings` gives. By default, the queries
        are searched, and no row is its own neighbour.
    n_neighbors : int, default=1
        Number of neighbours of each query.
    scale : {"standardize", "whiten"} or None, default="standardize"
        ``"standardize"`` gives each component of the targets mean 0 and variance 1.
        ``"whiten"`` also removes the correlations between components, and needs many more targets
        than components. None takes the vectors as they are. The queries are scaled alike.
    metric : {"cosine", "euclidean"}, default="cosine"
        Distance of the scaled vectors.
    query_groups : list, array or Series of length n_queries, optional
        Groups, such as those of `cluster_sequences`: targets of a query's own group are left out.
    target_groups : list, array or Series of length n_targets, optional
        Groups of the targets; without ``targets``, they are those of the queries.

    Returns
    -------
    neighbors : Neighbors
        The arrays ``indices`` and ``distances``, to be unpacked.

    Raises
    ------
    InputError, TypeError
        If a vector holds NaN or infinity, or has no direction; if there are too few targets; or if
        another parameter is wrong. The message names the row and a remedy.

    See Also
    --------
    transfer_labels : Predict the labels of queries from their neighbours.

    Notes
    -----
    Memory: 8 bytes for each component of the queries, 12 bytes for each neighbour, and about
    250 MB, however many targets there are; ``"whiten"`` needs some matrices of shape (d, d), too.
    The targets are read once or, to scale them, twice (three times for ``"whiten"``).

    Candidates are found in float32, with an allowance for its rounding errors, and compared in
    float64. Two targets are at the same distance if it is the same in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from esm2_features import nearest
    >>> targets = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.1, 0.1]])
    >>> indices, distances = nearest([[0.9, 0.2]], targets, n_neighbors=2)
    >>> indices
    array([[1, 2]])
    >>> nearest(targets[:3], scale=None, metric="euclidean").indices.ravel()
    array([2, 2, 0])
    """
    k = positive("n_neighbors", n_neighbors)
    if scale is not None:
        one_of("scale", scale, SCALES)
    one_of("metric", metric, METRICS)
    itself = targets is None
    of_queries = Vectors(queries, "queries")
    of_targets = of_queries if itself else Vectors(targets, "targets")
    _check_alike(of_queries, of_targets)
    query_codes, target_codes = _codes(
        query_groups, target_groups, of_queries, of_targets, itself=itself
    )
    _check_enough(k, of_queries, of_targets, query_codes, target_codes, itself=itself)
    scaling = Scaling(of_targets, scale, metric)
    scaled = np.empty((len(of_queries), scaling.width))
    for start, rows in of_queries.chunks():
        scaled[start : start + len(rows)] = scaling.transform(of_queries, start, rows)
    blocks = [
        _Block(scaled[first : first + _QUERIES_AT_A_TIME], k, scaling)
        for first in range(0, len(scaled), _QUERIES_AT_A_TIME)
    ]
    for start, rows in of_targets.chunks():
        found = scaling.transform(of_targets, start, rows)
        for number, block in enumerate(blocks):
            first = number * _QUERIES_AT_A_TIME
            scores = block.scores(found)
            if query_codes is not None and target_codes is not None:
                own = query_codes[first : first + len(scores), None]
                scores[own == target_codes[start : start + len(rows)]] = -np.inf
            elif itself:
                both = np.arange(max(first, start), min(first + len(scores), start + len(rows)))
                scores[both - first, both - start] = -np.inf
            block.update(scores, found, start)
    empty = np.empty((0, k))
    result = Neighbors(
        np.concatenate([empty.astype(np.intp), *(block.indices for block in blocks)]),
        scaling.distances(np.concatenate([empty, *(block.squared for block in blocks)])),
    )
    result.n_targets = len(of_targets)
    return result


class _Block:
    """Some queries, and the nearest targets that were found so far."""

    def __init__(self, queries: NDArray[np.float64], k: int, scaling: Scaling) -> None:
        self.queries, self.k, self.scaling = queries, k, scaling
        self.norms = _squared_norms(queries)
        self.squared = np.full((len(queries), k), np.inf)
        self.indices = np.full((len(queries), k), -1, np.intp)

    def scores(self, targets: NDArray[np.float64]) -> NDArray[np.float32]:
        """Compute q.t - t.t / 2 in float32, which is largest for the nearest target."""
        scores = self.queries.astype(np.float32) @ targets.astype(np.float32).T
        scores -= (_squared_norms(targets) / 2).astype(np.float32)
        return scores

    def update(self, scores: NDArray[np.float32], targets: NDArray[np.float64], start: int) -> None:
        """Take the targets of a chunk that are nearer than those found so far."""
        norms = _squared_norms(targets)
        # The largest error of a product of n numbers in float32 is n * 2**-24 of the norms.
        largest = norms.max()
        error = (targets.shape[1] + 8) * 2.0**-24 * (np.sqrt(self.norms * largest) + largest)
        least = _rounded_down((self.norms - self.squared[:, -1]) / 2 - error)
        is_near = scores > least[:, None]
        many = np.flatnonzero(np.count_nonzero(is_near, axis=1) > self.k)
        if len(many):
            at = scores.shape[1] - self.k
            kth = np.partition(scores[many], at, axis=1)[:, at]
            least[many] = np.maximum(least[many], _rounded_down(kth - 2 * error[many]))
            is_near[many] = scores[many] > least[many, None]
        found = np.flatnonzero(is_near)
        step = max(1, _PAIR_NUMBERS // targets.shape[1])
        for i in range(0, len(found), step):
            rows, columns = np.divmod(found[i : i + step], len(targets))
            squared = _squared_norms(self.queries[rows] - targets[columns])
            squared[squared <= _SAME * (self.norms[rows] + norms[columns])] = 0.0
            self._merge(rows, columns + start, squared)

    def _merge(
        self, rows: NDArray[np.intp], indices: NDArray[np.intp], squared: NDArray[np.float64]
    ) -> None:
        changed = np.unique(rows)
        rows = np.concatenate([np.repeat(changed, self.k), rows])
        indices = np.concatenate([self.indices[changed].ravel(), indices])
        squared = np.concatenate([self.squared[changed].ravel(), squared])
        order = np.lexsort((indices, self.scaling.distances(squared), rows))
        firsts = np.searchsorted(rows[order], changed)
        kept = order[firsts[:, None] + np.arange(self.k)]
        self.indices[changed], self.squared[changed] = indices[kept], squared[kept]


def _squared_norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows))


def _rounded_down(numbers: NDArray[Any]) -> NDArray[np.float32]:
    return np.nextafter(numbers.astype(np.float32), np.float32(-np.inf))


def _check_alike(queries: Vectors, targets: Vectors) -> None:
    """Raise InputError if queries and targets do not have the same components."""
    if queries.shape[1] != targets.shape[1]:
        raise InputError(
            f"The queries have {queries.shape[1]} components, and the targets {targets.shape[1]}. "
            "Compute both with the same model, layers and poolings."
        )
    if queries.columns and targets.columns and queries.columns != targets.columns:
        pairs = zip(queries.columns, targets.columns, strict=True)
        one, other = next((one, other) for one, other in pairs if one != other)
        raise InputError(
            f"The columns of queries and targets differ: {shorten(one)!r} is where the targets "
            f"have {shorten(other)!r}. Compute both with the same model, layers and poolings, or "
            "bring the columns into one order."
        )


def _codes(
    query_groups: Any, target_groups: Any, queries: Vectors, targets: Vectors, *, itself: bool
) -> tuple[NDArray[np.intp] | None, NDArray[np.intp] | None]:
    """Give each group of queries and targets a number; None and None if there are none."""
    if query_groups is None and target_groups is None:
        return None, None
    if itself and target_groups is not None:
        raise InputError("Got target_groups, but no targets. Pass query_groups alone.")
    if query_groups is None or (target_groups is None and not itself):
        given, absent = ("query", "target") if target_groups is None else ("target", "query")
        raise InputError(f"Got {given}_groups without {absent}_groups. Pass both.")
    codes: dict[object, int] = {}
    found = []
    for groups, vectors in ((query_groups, queries), (target_groups, targets))[: 2 - itself]:
        name = "query_groups" if vectors is queries else "target_groups"
        cells = group_cells(
            groups,
            len(vectors),
            name=name,
            of=vectors.name,
            place=lambda rows, of=vectors: of.place(rows[0]),  # type: ignore[misc]
        )
        found.append(group_codes(cells, codes))
    return found[0], found[-1]


def _check_enough(
    k: int,
    queries: Vectors,
    targets: Vectors,
    query_codes: NDArray[np.intp] | None,
    target_codes: NDArray[np.intp] | None,
    *,
    itself: bool,
) -> None:
    """Raise InputError if a query has fewer targets than it needs neighbours."""
    n = len(targets)
    if n - itself < k:
        besides = " besides each query itself" if itself else ""
        raise InputError(
            f"Got n_neighbors={k}, more than there are targets{besides} ({max(0, n - itself)}). "
            "Pass fewer neighbours, or more targets."
        )
    if query_codes is None or target_codes is None or not len(query_codes):
        return
    sizes = np.bincount(target_codes, minlength=int(query_codes.max()) + 1)
    others = n - sizes[query_codes]
    if others.min() < k:
        row = int(np.argmax(others < k))
        raise InputError(
            f"Got n_neighbors={k}, more than there are targets outside of the group of "
            f"{queries.place(row)} ({others[row]}). Pass fewer neighbours, or leave out such rows "
            f"(their number is {int((others < k).sum())})."
        )
