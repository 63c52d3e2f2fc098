"""`transfer_labels`: the reliability of goPredSim, and labels that do not fit their targets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from esm2_features import nearest, transfer_labels
from esm2_features.exceptions import InputError

TARGETS = np.array([[0.0], [1.0], [4.0], [4.5]])
NEIGHBORS = nearest([[0.5], [4.0]], TARGETS, n_neighbors=3, scale=None, metric="euclidean")
# Distances 0.5, 0.5, 3.5 to the rows 0, 1, 2; and 0, 0.5, 3 to the rows 2, 3, 1.
FAR, FARTHER = 0.5 / 3.5, 0.5 / 4


def test__reliability__is_the_mean_over_neighbours():
    labels, reliability = transfer_labels(NEIGHBORS, ["a", "b", "b", "c"])
    assert labels.tolist() == ["b", "b"]
    np.testing.assert_allclose(reliability, [(0.5 + FARTHER) / 3, (1 + FAR) / 3])


def test__reliability__of_one_neighbour():
    one = nearest([[4.0]], TARGETS, scale=None, metric="euclidean")
    labels, reliability = transfer_labels(one, [7, 8, 9, 10])
    assert (labels.tolist(), reliability.tolist()) == ([9], [1.0])
    assert labels.dtype.kind == "i"


def test__equal_reliability__gives_the_label_of_the_nearest():
    labels, _ = transfer_labels(NEIGHBORS, ["z", "a", "y", "x"])
    assert labels.tolist() == ["z", "y"]


@pytest.mark.parametrize("container", [list, pd.Series, pl.Series, np.array])
@pytest.mark.parametrize("labels", [["a", "b", "b", "c"], [0, 1, 1, 2], [True, False, False, True]])
def test__labels__in_any_column(container, labels):
    found = transfer_labels(NEIGHBORS, container(labels))
    np.testing.assert_array_equal(found.labels, transfer_labels(NEIGHBORS, labels).labels)


def test__labels_of_two_types__stay_as_they_are():
    labels, _ = transfer_labels(NEIGHBORS, [1, "b", "c", 2])
    assert labels.tolist() == [1, "c"]


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
def test__several_labels__are_ordered_by_reliability(kind):
    terms = [kind(["GO:1", "GO:2"]), kind(["GO:2"]), kind([]), kind(["GO:1"])]
    labels, reliability = transfer_labels(NEIGHBORS, terms)
    assert labels == [["GO:2", "GO:1"], ["GO:1", "GO:2"]]
    np.testing.assert_allclose(reliability[0], [1 / 3, 0.5 / 3])
    np.testing.assert_allclose(reliability[1], [0.5 / 3, FAR / 3])


def test__several_labels__of_neighbours_without_any():
    labels, reliability = transfer_labels(NEIGHBORS, [[], [], [], []])
    assert labels == [[], []]
    assert [len(values) for values in reliability] == [0, 0]


def test__repeated_labels__of_one_target_count_once():
    _, reliability = transfer_labels(NEIGHBORS, [["a", "a"], [], [], []])
    np.testing.assert_allclose(reliability[0], [0.5 / 3])


def test__cosine__takes_the_cosine_distance():
    found = nearest([[1.0, 0.0]], [[0.0, 1.0], [-1.0, 0.0]], scale=None)
    np.testing.assert_allclose(transfer_labels(found, ["a", "b"]).reliability, [0.5 / 1.5])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "c"], r"3 labels, but there are 4 targets.*y\[train\]"),
        (["a"] * 5, "5 labels, but there are 4 targets"),
        (["a", None, "b", "c"], "row 1 is None: a label is missing. Leave the row out"),
        ([1.0, 2.0, np.nan, 1.0], "row 2 is nan"),
        ([["a"], "b", [], []], r"row 1 is 'b', where others are lists.*\[\]"),
        ([["a"], None, [], []], "row 1 is None, where others are lists"),
        ([["a"], ["b", None], [], []], "row 1 is .*Leave out the missing one"),
        (pd.Series(["a", None, "b", "c"], index=list("wxyz")), r"row 1 \(index 'x'\)"),
    ],
)
def test__wrong_labels__are_named(labels, message):
    with pytest.raises(InputError, match=message):
        transfer_labels(NEIGHBORS, labels)


@pytest.mark.parametrize("labels", ["abcd", np.eye(4), {"a": 1}, 3])
def test__labels_of_another_shape__are_type_errors(labels):
    with pytest.raises(TypeError, match="Pass"):
        transfer_labels(NEIGHBORS, labels)


def test__neighbors__of_another_search():
    pair = NEIGHBORS.indices, NEIGHBORS.distances
    labels = transfer_labels(pair, ["a", "b", "b", "c", "d"]).labels
    assert labels.tolist() == ["b", "b"]
    with pytest.raises(InputError, match="3 labels, but there are 4 targets"):
        transfer_labels(pair, ["a", "b", "c"])
    with pytest.raises(TypeError, match="Pass what nearest gives"):
        transfer_labels(TARGETS, ["a"] * 4)
