"""Scores against those of scikit-learn and SciPy, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from esm2_features.exceptions import InputError
from esm2_features.model_selection.metrics import (
    Bootstrap,
    check_scored,
    default_scoring,
    interval,
    metric_of,
)
from esm2_features.model_selection.targets import Targets

N = 60
ALL = np.arange(N)


def classes_of(k: int, seed: int = 0) -> tuple[Targets, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, N)
    p = rng.integers(1, 5, (N, k)) + (np.arange(k) == y[:, None])  # with ties
    return Targets(y, np.arange(k)), p / p.sum(axis=1, keepdims=True)


def numbers_of(seed: int = 0) -> tuple[Targets, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 9, N) / 2
    return Targets(y, None), y + rng.integers(-3, 4, N)


@pytest.mark.parametrize("seed", range(5))
def test__scores__are_those_of_scikit_learn(seed):
    targets, p = classes_of(2, seed)
    expected = roc_auc_score(targets.values, p[:, 1])
    assert metric_of("roc_auc", targets, p)(ALL) == pytest.approx(expected)
    targets, p = classes_of(4, seed)
    expected = roc_auc_score(targets.values, p, multi_class="ovr")
    assert metric_of("roc_auc_ovr", targets, p)(ALL) == pytest.approx(expected)
    targets, p = numbers_of(seed)
    assert metric_of("spearman", targets, p)(ALL) == pytest.approx(spearmanr(targets.values, p)[0])


def test__other_scores__are_of_the_rows_that_are_asked_for():
    rows = np.repeat(ALL[:20], ALL[:20] % 3)
    targets, p = classes_of(2)
    expected = balanced_accuracy_score(targets.values[rows], p[rows].argmax(axis=1))
    assert metric_of("balanced_accuracy", targets, p)(rows) == pytest.approx(expected)
    targets, p = numbers_of()
    assert metric_of("r2", targets, p)(rows) == pytest.approx(
        r2_score(targets.values[rows], p[rows])
    )

    def bias(estimator, X, y):
        return float(np.mean(estimator.predict(X) - y))

    assert metric_of(bias, targets, p)(rows) == pytest.approx(
        np.mean(p[rows] - targets.values[rows])
    )


def test__default_scores():
    assert default_scoring(classes_of(2)[0]) == "roc_auc"
    assert default_scoring(classes_of(3)[0]) == "roc_auc_ovr"
    assert default_scoring(numbers_of()[0]) == "spearman"


def test__what_cannot_be_scored__is_nan_and_a_constant_prediction_is_no_skill():
    targets, p = classes_of(2)
    one_class = np.flatnonzero(targets.values == 1)
    assert np.isnan(metric_of("roc_auc", targets, p)(one_class))
    assert np.isnan(metric_of("neg_log_loss", targets, p)(one_class))
    targets, _ = numbers_of()
    assert metric_of("spearman", targets, np.ones(N))(ALL) == 0
    assert metric_of("roc_auc", classes_of(2)[0], np.full((N, 2), 0.5))(ALL) == 0.5
    with pytest.raises(InputError, match="No test set can be scored by 'roc_auc'"):
        check_scored(np.nan, "roc_auc")


def test__a_class_that_a_test_set_lacks__is_left_out():
    targets, p = classes_of(3)
    rows = np.flatnonzero(targets.values != 2)
    areas = [roc_auc_score(targets.values[rows] == code, p[rows, code]) for code in (0, 1)]
    assert metric_of("roc_auc_ovr", targets, p)(rows) == pytest.approx(np.mean(areas))


def test__draws__are_of_whole_families_within_test_sets():
    tests = [ALL[:30], ALL[30:]]
    groups = ALL // 3
    seen = []

    def record(rows):
        seen.append(rows)
        return float(len(rows))

    Bootstrap(tests, groups, 20, 0).scores(record)
    assert len(seen) == 2 * 21
    for number, rows in enumerate(seen):
        assert set(rows) <= set(tests[number % 2])
        counts = np.bincount(rows, minlength=N).reshape(-1, 3)
        assert (counts == counts[:, :1]).all()
        assert counts[:, 0].sum() == 10


def test__draws__are_the_same_for_all_features():
    targets, p = classes_of(2)
    bootstrap = Bootstrap([ALL], ALL, 50, 0)
    scores = bootstrap.scores(metric_of("roc_auc", targets, p))
    np.testing.assert_array_equal(scores, bootstrap.scores(metric_of("roc_auc", targets, p**2)))
    assert scores[0] == pytest.approx(roc_auc_score(targets.values, p[:, 1]))


def test__intervals__hold_the_truth_as_often_as_they_say():
    """The mean of normal numbers, by a score that is that mean."""
    held = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=40)
        bootstrap = Bootstrap([np.arange(40)], np.arange(40), 200, seed)
        low, high = interval(bootstrap.scores(lambda rows, x=values: float(x[rows].mean()))[1:])
        held += low <= 0 <= high
    assert 0.88 <= held / 200 <= 0.98
    assert np.isnan(interval(np.array([np.nan]))).all()
