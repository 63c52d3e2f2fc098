"""What training and test sequences have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import ArrayLike, NDArray

from esm2_features._inputs.containers import listed
from esm2_features._inputs.groups import group_cells, group_codes
from esm2_features.exceptions import InputError, LeakageWarning
from esm2_features.model_selection.pairs import PairSearch, read_sequences, sorted_distinct


class TrainTestIdentity(NamedTuple):
    """The nearest training sequence of every test sequence; printed, a summary of one line.

    Attributes
    ----------
    identity : ndarray of shape (n_test,), float64
        Identity to the nearest training sequence, a fraction; 0 if none is related.
    nearest : ndarray of shape (n_test,), intp
        Its row in the training sequences, the first of several; -1 if none is related.
    """

    identity: NDArray[np.float64]
    nearest: NDArray[np.intp]

    def __str__(self) -> str:
        n = len(self.identity)
        counts = [
            f"{(self.identity >= least).sum():,} ({(self.identity >= least).sum() / max(n, 1):.0%})"
            for least in (0.9, 0.4)
        ]
        return (
            f"Of {n:,} test sequences, {counts[0]} are at least 90 % identical to a training "
            f"sequence, and {counts[1]} at least 40 %."
        )


def train_test_identity(
    train: object,
    test: object,
    *,
    coverage: float = 0.5,
    engine: Literal["auto", "alignment", "mmseqs"] = "auto",
    unknown: Literal["raise", "X", "mask"] = "raise",
    n_jobs: int | None = -1,
) -> TrainTestIdentity:
    """Find the nearest training sequence of every test sequence, by sequence identity.

    Parameters
    ----------
    train, test : list of str, or one column of an array, Series, frame or table
        As in `Engine.embed`, of any length.
    coverage, engine, unknown, n_jobs : optional
        As in `cluster_sequences`, which also defines the identity.

    Returns
    -------
    result : TrainTestIdentity
        The arrays ``identity`` and ``nearest``, to be unpacked; printed, a summary.

    Raises
    ------
    InputError, TypeError
        If a sequence is wrong, as in `Engine.embed`, or another parameter.
    MissingDependencyError, Esm2FeaturesError
        As in `cluster_sequences`.

    See Also
    --------
    cluster_sequences : Cluster sequences into families, to keep them on one side.

    Notes
    -----
    The test sequences of a low identity are the distant ones: a score on them alone tells more of
    new families. With the families of `cluster_sequences` on one side each, no identity reaches its
    ``min_identity``, if both functions got the same sequences: the E-value depends on them.

    Examples
    --------
    >>> from esm2_features.model_selection import train_test_identity
    >>> train = ["GIGKFLHSAKKFGKAFVGEIMNS", "HSQGTFTSDYSKYLDSRRAQDFVQWLMNT"]
    >>> identity, nearest = train_test_identity(train, ["GIGKFLHSAGKFGKAFVGEIMKS", "CYIQNCPLG"])
    >>> identity.round(2), nearest
    (array([0.91, 0.  ]), array([ 0, -1]))
    """
    owner = "train_test_identity"
    search = PairSearch(0.0, coverage, engine, effective_n_jobs(n_jobs))
    rows = {
        name: read_sequences(given, owner=owner, unknown=unknown, column=name)
        for name, given in (("train", train), ("test", test))
    }
    # Of repeated sequences, the first row is kept.
    first = {sequence: row for row, sequence in reversed(list(enumerate(rows["train"])))}
    distinct = sorted_distinct([*rows["train"], *rows["test"]])
    is_train = np.array([sequence in first for sequence in distinct], dtype=bool)
    row_of = np.array([first.get(sequence, -1) for sequence in distinct], dtype=np.intp)
    pairs, identities = search.related(distinct, sides=is_train)
    of_test = np.where(is_train[pairs], -1, pairs).max(axis=1, initial=-1)
    of_train = row_of[pairs].max(axis=1, initial=-1)
    best, nearest = is_train.astype(float), row_of.copy()
    # The last to be written is the highest identity, in the first row.
    order = np.lexsort([-of_train, identities])
    best[of_test[order]], nearest[of_test[order]] = identities[order], of_train[order]
    at = {sequence: i for i, sequence in enumerate(distinct)}
    of_rows = np.array([at[sequence] for sequence in rows["test"]], dtype=np.intp)
    return TrainTestIdentity(best[of_rows], nearest[of_rows])


def check_splits(splits: Iterable[tuple[ArrayLike, ArrayLike]], groups: Any) -> NDArray[np.float64]:
    """Warn if families are on both sides of a split, so that scores would be too good.

    Parameters
    ----------
    splits : iterable of (train, test)
        Rows of each split, as ``split`` of a splitter of scikit-learn gives them.
    groups : list, array or Series of length n
        Family of each row, from `cluster_sequences` or elsewhere.

    Returns
    -------
    shared : ndarray of shape (n_splits,), float64
        Fraction of the test rows of each split whose family has rows in the training set.

    Raises
    ------
    InputError, TypeError
        If ``splits`` are no pairs of rows, or name rows that ``groups`` does not have.

    Warns
    -----
    LeakageWarning
        If a family is on both sides of a split.

    See Also
    --------
    train_test_identity : Measure how near the test sequences are.

    Examples
    --------
    >>> from sklearn.model_selection import GroupKFold, KFold
    >>> from esm2_features.model_selection import check_splits
    >>> families = [0, 0, 1, 1, 2, 2]
    >>> check_splits(GroupKFold(3).split(families, groups=families), families)
    array([0., 0., 0.])
    """
    family = group_codes(group_cells(groups, len(listed(groups, "groups"))))
    shared, example = [], ""
    for number, split in enumerate(splits):
        train, test = rows_of(split, number, len(family))
        leaks = np.isin(family[test], family[train])
        shared.append(leaks.mean() if len(test) else 0.0)
        if leaks.any() and not example:
            row = int(test[leaks][0])
            other = int(train[family[train] == family[row]][0])
            example = (
                f"in split {number}, {leaks.sum():,} of {len(test):,}, such as row {row}, a "
                f"relative of row {other}"
            )
    if example:
        warnings.warn(
            f"Test rows have relatives in the training set: {np.mean(shared):.0%} of them on "
            f"average over {len(shared)} splits ({example}). Scores then measure how well "
            "relatives are remembered. Pass groups to a splitter that keeps them together, such as "
            "StratifiedGroupKFold(5).split(X, y, groups).",
            LeakageWarning,
            stacklevel=2,
        )
    return np.array(shared)


def rows_of(split: Any, number: int, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Check the rows of one split."""
    is_pair = isinstance(split, tuple | list) and len(split) == 2
    sides = [np.asarray(side) for side in split] if is_pair else []
    if not is_pair or any(side.ndim != 1 for side in sides):
        raise TypeError(
            f"Split {number} is no pair of arrays of rows, (train, test). Pass what a splitter "
            "gives, such as KFold(5).split(X); a single split as [(train, test)]."
        )
    for side in sides:
        if side.size and (side.dtype.kind not in "iu" or side.min() < 0 or side.max() >= n):
            raise InputError(
                f"Split {number} names rows that do not exist: there are the rows 0 to {n - 1}. "
                "Pass numbers of rows, and the family of every row."
            )
    train, test = (side.astype(np.intp) for side in sides)
    return train, test
