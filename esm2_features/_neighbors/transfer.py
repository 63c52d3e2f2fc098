"""`transfer_labels`: the labels of neighbours, and how reliable they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.containers import labels_of, listed
from esm2_features._inputs.rows import labelled, place_of
from esm2_features._neighbors.search import Neighbors
from esm2_features.exceptions import InputError, shorten

_SEVERAL = (list, tuple, set, frozenset, np.ndarray)


class TransferredLabels(NamedTuple):
    """The labels that neighbours transfer to each query.

    Attributes
    ----------
    labels : ndarray of shape (n_queries,), or list of n_queries lists
        The most reliable label; or, if targets have several labels each, all labels of the
        neighbours, the most reliable first.
    reliability : ndarray of shape (n_queries,), float64, or list of n_queries ndarrays
        The reliability of each label, from 0 to 1.
    """

    labels: Any
    reliability: Any


TransferredLabels.__module__ = "esm2_features"  # by which it is pickled


def transfer_labels(neighbors: Neighbors, labels: Any) -> TransferredLabels:
    """Predict the labels of queries from those of their neighbours, with a reliability.

    Parameters
    ----------
    neighbors : Neighbors
        What `nearest` gives.
    labels : list, array or Series of length n_targets
        The label of each target, of any type; or a list of labels for each, such as GO terms.
        An empty list means that the target has none.

    Returns
    -------
    transferred : TransferredLabels
        The fields ``labels`` and ``reliability``, to be unpacked.

    Raises
    ------
    InputError, TypeError
        If there are not as many labels as targets, one is missing, or only some are lists.

    See Also
    --------
    nearest : Find the neighbours.

    Notes
    -----
    The reliability of a label is that of goPredSim and EAT: the sum of 0.5 / (0.5 + d) over the
    neighbours that have it, at the distance d, divided by the number of neighbours. It is 1 where
    all neighbours have the label and are at distance 0. It is no probability, and depends on the
    scale and the metric: find out with known labels which values are good enough.

    Of labels with the same reliability, that of the nearest neighbour comes first.

    References
    ----------
    Littmann et al., "Embeddings from deep learning transfer GO annotations beyond homology",
    Scientific Reports 11 (2021) 1160.

    Examples
    --------
    >>> import numpy as np
    >>> from esm2_features import nearest, transfer_labels
    >>> targets = np.array([[0.0], [1.0], [4.0]])
    >>> neighbors = nearest([[0.5], [4.0]], targets, scale=None, metric="euclidean")
    >>> labels, reliability = transfer_labels(neighbors, ["membrane", "membrane", "nucleus"])
    >>> labels.tolist(), reliability
    (['membrane', 'nucleus'], array([0.5, 1. ]))
    >>> transfer_labels(neighbors, [["GO:0005886"], [], ["GO:0005634", "GO:0003677"]]).labels
    [['GO:0005886'], ['GO:0005634', 'GO:0003677']]
    """
    if not isinstance(neighbors, tuple) or len(neighbors) != 2:
        raise TypeError(f"Got {type(neighbors).__name__} as neighbors. Pass what nearest gives.")
    if len(getattr(labels, "shape", ())) > 1:
        raise TypeError(
            f"Got labels of shape {tuple(labels.shape)}. Pass one label for each target, or a list "
            "of labels; MultiLabelBinarizer.inverse_transform makes lists of a matrix."
        )
    indices, distances = np.asarray(neighbors[0]), np.asarray(neighbors[1], np.float64)
    cells = listed(labels, "labels")
    with labelled(labels_of(labels)):
        several = _check_labels(cells, neighbors, indices)
    weights = 0.5 / (0.5 + distances) / indices.shape[1]
    found: list[list[object]] = []
    reliabilities: list[NDArray[np.float64]] = []
    for rows, parts in zip(indices.tolist(), weights.tolist(), strict=True):
        sums: dict[Any, float] = {}
        for row, part in zip(rows, parts, strict=True):
            for label in _labels_in(cells[row]):
                sums[label] = sums.get(label, 0.0) + part
        # Sorting keeps the order of what is equal.
        order = sorted(sums, key=lambda label: -sums[label])
        found.append(order)
        reliabilities.append(np.array([sums[label] for label in order]))
    if several:
        return TransferredLabels(found, reliabilities)
    values = [order[0] for order in found]
    is_uniform = len(set(map(type, values))) <= 1
    return TransferredLabels(
        np.array(values, dtype=None if is_uniform else object),
        np.array([parts[0] for parts in reliabilities]),
    )


def _labels_in(cell: object) -> list[Any]:
    """List the labels of a cell, each once."""
    if isinstance(cell, set | frozenset):
        return sorted(cell, key=str)
    return list(dict.fromkeys(cell)) if isinstance(cell, _SEVERAL) else [cell]


def _check_labels(cells: Sequence[object], neighbors: Neighbors, indices: NDArray[np.intp]) -> bool:
    """Check the labels of the targets; tell whether each target can have several."""
    n = getattr(neighbors, "n_targets", None)
    least = int(indices.max(initial=-1)) + 1
    if len(cells) != n if n is not None else len(cells) < least:
        raise InputError(
            f"Got {len(cells)} labels, but there are {least if n is None else n} targets. "
            "Pass one label for each row of the targets, such as y[train] for nearest(X[test], "
            "X[train])."
        )
    several = any(isinstance(cell, _SEVERAL) for cell in cells)
    for row, cell in enumerate(cells):
        shown = f"The label in {place_of(row)} is {shorten(repr(cell))}"
        if several and not isinstance(cell, _SEVERAL):
            raise InputError(
                f"{shown}, where others are lists. Pass a list of labels in every row, [] if there "
                "are none."
            )
        if any(map(is_missing, _labels_in(cell))):
            remedy = "Leave out the missing one" if several else "Leave the row out of the targets"
            raise InputError(f"{shown}: a label is missing. {remedy}.")
    return several
