"""What is taken for classes and for numbers, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from esm2_features.exceptions import InputError
from esm2_features.model_selection.targets import check_classes, read_targets


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (["toxic", "safe", "safe"], "classification"),
        ([True, False, True], "classification"),
        ([0, 1, 1], "classification"),
        ([1.0, 0.0, 1.0], "classification"),
        ([0.2, 0.7, 0.2], "classification"),
        ([1, 2, 3], "classification"),
        (np.array([3, 1, 2], dtype=np.int8), "classification"),
        (pd.Series(["a", "b", "a"], dtype="category"), "classification"),
        (pd.DataFrame({"y": ["a", "b", "a"]}), "classification"),
        ([0.5, 1.5, 2.5], "regression"),
        (list(range(11)), "regression"),
        (pd.Series([1.5, 2.5, 7]), "regression"),
        (np.array([[0.5], [1.5], [2.5]], dtype=np.float32), "regression"),
    ],
)
def test__task__is_found_in_the_targets(y, task):
    targets = read_targets(y, len(y), "auto")
    assert targets.task == task
    np.testing.assert_array_equal(targets.original, np.asarray(y).ravel())


def test__task__can_be_given():
    assert read_targets([1, 2, 3], 3, "regression").values.dtype == np.float64
    assert len(read_targets(list(range(12)), 12, "classification").classes) == 12
    with pytest.raises(InputError, match="task='ranking'"):
        read_targets([1, 2], 2, "ranking")


def test__classes__of_mixed_kinds_are_texts():
    assert read_targets(["a", 1, "a"], 3, "auto").classes.tolist() == ["1", "a"]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test__a_missing_target__is_named(missing):
    with pytest.raises(InputError, match=r"missing in row 1 \(the first of 2\).*notna"):
        read_targets([1.5, missing, 2.5, missing], 4, "auto")


@pytest.mark.parametrize(
    ("y", "task", "said"),
    [
        ([1.5, 2.5], "auto", "X has 3 rows, but y has 2"),
        ([1.0, 1.0, 1.0], "auto", r"All targets are 1\.0"),
        (["a", "a", "a"], "auto", "All targets are 'a'"),
        ([2.0, 2.0, 2.0], "regression", "nothing to predict"),
        ([0.5, np.inf, 1.5], "auto", "row 1 is no finite number: inf"),
        (["0.5", "x", "1.5"], "regression", r"row 0 is no finite number: '0\.5'.*to_numeric"),
    ],
)
def test__wrong_targets__are_refused(y, task, said):
    with pytest.raises(InputError, match=said):
        read_targets(y, 3, task)


def test__numbers_as_text__are_no_classes():
    y = [f"{i / 7:.2f}" for i in range(20)]
    with pytest.raises(InputError, match=r"numbers as text, such as '0\.00', with 20 different"):
        read_targets(y, 20, "auto")
    assert read_targets(["0", "1"] * 10, 20, "auto").classes.tolist() == ["0", "1"]


def test__a_table_as_targets__is_refused():
    for table in (pd.DataFrame({"a": [1, 2], "b": [1, 2]}), np.zeros((2, 2)), "ab"):
        with pytest.raises(TypeError, match="one column"):
            read_targets(table, 2, "auto")


@pytest.mark.parametrize("value", [pd.Timestamp("2020-01-01"), 1j, b"toxic", ["toxic"]])
def test__other_targets__are_named(value):
    with pytest.raises(InputError, match=r"The target in row 1 is .* Pass numbers, or classes"):
        read_targets(["a", value, "b"], 3, "auto")


def test__a_class_in_few_families__is_named():
    targets = read_targets(["a", "a", "a", "b", "b", "b", "b"], 7, "auto")
    check_classes(targets, None)
    with pytest.raises(InputError, match=r"The class 'b' is in 1 family only.*groups=None"):
        check_classes(targets, np.array([0, 1, 2, 3, 3, 3, 3]))
    with pytest.raises(InputError, match="The class 'a' is in 2 rows only"):
        check_classes(read_targets(["a", "a", "b", "b", "b"], 5, "auto"), None)
