"""What training and test sequences have in common: `train_test_identity` and `check_splits`."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pandas as pd
import pytest
from families import GLUCAGON, MAGAININ, families_of, with_mmseqs
from sklearn.model_selection import KFold, StratifiedGroupKFold

from esm2_features.exceptions import (
    InputError,
    InvalidSequenceError,
    LeakageWarning,
    MissingSequenceError,
)
from esm2_features.model_selection import (
    check_splits,
    cluster_sequences,
    mmseqs,
    train_test_identity,
)

# ------------------------------------------------------------------ the nearest training sequence


def test__identity__is_to_the_nearest_training_sequence():
    near, far = MAGAININ[:-1] + "K", MAGAININ[:-3] + "KKK"
    identity, nearest = train_test_identity([far, GLUCAGON, near], [MAGAININ, "CYIQNCPLG"])
    np.testing.assert_allclose(identity, [22 / 23, 0])
    np.testing.assert_array_equal(nearest, [2, -1])
    assert (identity.dtype, nearest.dtype) == (np.float64, np.intp)


def test__identity__of_a_shared_sequence_is_one_and_its_first_row():
    train = [GLUCAGON, MAGAININ, MAGAININ]
    identity, nearest = train_test_identity(train, [MAGAININ, MAGAININ, GLUCAGON])
    np.testing.assert_array_equal(identity, 1)
    np.testing.assert_array_equal(nearest, [1, 1, 0])
    # A training sequence that holds it comes before in the rows, and is as identical.
    identity, nearest = train_test_identity([MAGAININ + "WW", MAGAININ], [MAGAININ])
    assert identity[0] == 1


def test__nearest__is_the_first_row_of_equals():
    train = [GLUCAGON, MAGAININ[:-1] + "K", MAGAININ[:-1] + "R"]
    assert train_test_identity(train, [MAGAININ]).nearest[0] == 1
    assert train_test_identity(train[::-1], [MAGAININ]).nearest[0] == 0


@pytest.mark.parametrize(
    ("train", "test", "identity"),
    [([], [], []), ([MAGAININ], [], []), ([], [MAGAININ], [0]), ([GLUCAGON], [MAGAININ], [0])],
)
def test__identity__of_few_sequences(train, test, identity):
    result = train_test_identity(train, test)
    np.testing.assert_array_equal(result.identity, identity)
    np.testing.assert_array_equal(result.nearest, [-1] * len(identity))
    assert str(result).startswith(f"Of {len(test)} test sequences, 0 (0%)")


def test__identity__agrees_with_the_families():
    sequences = np.array(families_of(8, 30, (10, 90)))
    families = cluster_sequences(sequences)
    splitter = StratifiedGroupKFold(4)
    for train, test in splitter.split(sequences, np.zeros(len(sequences)), groups=families):
        identity, _ = train_test_identity(sequences[train], sequences[test])
        assert identity.max() < 0.4
    [(train, test)] = [next(KFold(2, shuffle=True, random_state=0).split(sequences))]
    identity, nearest = train_test_identity(sequences[train], sequences[test])
    related = identity >= 0.4
    assert related.any()
    np.testing.assert_array_equal(families[test][related], families[train][nearest[related]])


def test__summary__counts_near_and_related_sequences():
    half = "".join("W" if i % 2 else x for i, x in enumerate(GLUCAGON * 3))
    result = train_test_identity([MAGAININ, GLUCAGON * 3], [MAGAININ, half, "CYIQNCPLG"])
    assert str(result) == (
        "Of 3 test sequences, 1 (33%) are at least 90 % identical to a training sequence, and "
        "2 (67%) at least 40 %."
    )


def test__errors__name_the_side_and_the_row():
    with pytest.raises(InvalidSequenceError, match=r"row 1 of column 'test'"):
        train_test_identity([MAGAININ], [MAGAININ, "MK1AYIAKQR"])
    train = pd.Series([MAGAININ, None], index=["a", "b"])
    with pytest.raises(MissingSequenceError, match=r"row 1 of column 'train' \(index 'b'\)"):
        train_test_identity(train, [MAGAININ])
    with pytest.raises(InputError, match=r"coverage=80; .* Did you mean 0.8\?"):
        train_test_identity([MAGAININ], [MAGAININ], coverage=80)


def test__proposed_pairs__give_the_nearest_of_all_pairs(monkeypatch):
    """What happens to proposals, also where MMseqs2 is not installed."""
    sequences = families_of(11, 30, (20, 150))
    halves = sequences[::2], sequences[1::2]

    def propose_all(queries, targets, *, sensitivity, threads):
        # Training sequences are the queries, and the two share none.
        assert not set(queries) & set(targets)
        return np.array([(i, j, 50) for i in range(len(queries)) for j in range(len(targets))])

    aligned = train_test_identity(*halves, engine="alignment")
    monkeypatch.setattr(mmseqs, "is_installed", lambda: True)
    monkeypatch.setattr(mmseqs, "propose_pairs", propose_all)
    proposed = train_test_identity(*halves, engine="mmseqs")
    assert (aligned.identity > 0).sum() > 5
    np.testing.assert_array_equal(aligned.identity, proposed.identity)
    np.testing.assert_array_equal(aligned.nearest, proposed.nearest)


@with_mmseqs
def test__engines__agree():
    sequences = families_of(9, 30, (20, 150))
    random.Random(0).shuffle(sequences)
    halves = sequences[::2], sequences[1::2]
    aligned = train_test_identity(*halves, engine="alignment")
    proposed = train_test_identity(*halves, engine="mmseqs")
    assert (aligned.identity > 0).sum() > 5
    np.testing.assert_array_equal(aligned.identity, proposed.identity)
    np.testing.assert_array_equal(aligned.nearest, proposed.nearest)


# ------------------------------------------------------------------ families on both sides

FAMILIES = ["a", "a", "b", "b", "c", "c"]


def test__random_split__of_families_is_a_warning():
    splits = [([0, 2, 4], [1, 3, 5]), ([0, 1, 2, 3], [4, 5])]
    with pytest.warns(LeakageWarning, match=r"50% of them .* over 2 splits") as caught:
        shared = check_splits(splits, FAMILIES)
    np.testing.assert_array_equal(shared, [1, 0])
    [warning] = caught
    assert "in split 0, 3 of 3, such as row 1, a relative of row 0" in str(warning.message)
    assert "StratifiedGroupKFold(5).split(X, y, groups)" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("container", [list, np.array, lambda g: pd.Series(g, index=[9] * 6)])
def test__split_by_families__is_none(container):
    groups = container(FAMILIES)
    X, y = np.zeros(6), [0, 1, 0, 1, 0, 1]
    splits = StratifiedGroupKFold(3).split(X, y, groups=FAMILIES)
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(check_splits(splits, groups), [0, 0, 0])
    assert check_splits([], groups).shape == (0,)


@pytest.mark.parametrize(
    ("splits", "error", "message"),
    [
        (([0, 1], [2, 3]), TypeError, r"a single split as \[\(train, test\)\]"),
        ([[0, 1, 2]], TypeError, "Split 0 is no pair"),
        ([([0, 1], [2, 6])], InputError, "there are the rows 0 to 5"),
        ([([0, 1], [-1])], InputError, "there are the rows 0 to 5"),
        ([([True, False], [False, True])], InputError, "Pass numbers of rows"),
    ],
)
def test__splits__are_checked(splits, error, message):
    with pytest.raises(error, match=message):
        check_splits(splits, FAMILIES)


def test__groups__are_a_list():
    with pytest.raises(TypeError, match="as groups"):
        check_splits([([0], [1])], "aabbcc")


def test__missing_groups__are_no_family():
    with pytest.raises(InputError, match=r"The group of row 1 \(the first of 2\) is missing"):
        check_splits([([0, 1], [2, 3])], [0, None, np.nan, 1])
