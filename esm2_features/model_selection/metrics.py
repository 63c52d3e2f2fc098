"""Scores of predictions, and how far they would vary with other families."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn import metrics
from sklearn.base import BaseEstimator

from esm2_features.exceptions import InputError
from esm2_features.model_selection.targets import Targets

Metric = Callable[[NDArray[np.intp]], float]
"""Scores rows of predictions that it holds, by their numbers."""


def default_scoring(targets: Targets) -> str:
    """Name the score: rank correlation, or area under the ROC curve."""
    if targets.classes is None:
        return "spearman"
    return "roc_auc" if len(targets.classes) == 2 else "roc_auc_ovr"


def metric_of(scoring: Any, targets: Targets, predictions: NDArray[np.float64]) -> Metric:
    """Make a score of predictions: (n,) numbers, or (n, classes) probabilities."""
    y = targets.values
    if scoring == "spearman":
        return lambda rows: _spearman(y[rows], predictions[rows])
    if scoring in ("roc_auc", "roc_auc_ovr") and predictions.ndim == 2:
        codes = [1] if predictions.shape[1] == 2 else range(predictions.shape[1])
        return lambda rows: _roc_auc(y[rows], predictions[rows], codes)
    fixed = _Fixed(predictions, targets)
    scorer = metrics.check_scoring(fixed, scoring)

    def score(rows: NDArray[np.intp]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that happen to be missing
            try:
                return float(scorer(fixed, rows, y[rows]))
            except ValueError:
                return np.nan

    return score


def check_scoring(scoring: Any, targets: Targets) -> None:
    """Raise InputError for a score that is unknown, or not one of such targets."""
    if scoring == default_scoring(targets):
        return
    y, n = targets.values, len(targets.values)
    if targets.classes is None:
        predictions = np.array(y, np.float64)
    else:
        predictions = np.eye(len(targets.classes))[y]
    fixed = _Fixed(predictions, targets)
    try:
        metrics.check_scoring(fixed, scoring)(fixed, np.arange(n), y)
    except ValueError as error:
        raise InputError(f"Got scoring={scoring!r}, which cannot score y: {error}") from error


class _Fixed(BaseEstimator):  # type: ignore[misc]
    """Predictions in the place of an estimator, for scorers: X is numbers of rows."""

    def __init__(self, predictions: NDArray[np.float64], targets: Targets) -> None:
        self.predictions = predictions
        self.targets = targets
        if targets.classes is not None:
            self.classes_ = np.arange(len(targets.classes))

    def fit(self, X: object, y: object = None) -> _Fixed:  # noqa: ARG002
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor" if self.targets.classes is None else "classifier"
        return tags

    def predict(self, X: NDArray[np.intp]) -> NDArray[Any]:
        found = self.predictions[X]
        return found if found.ndim == 1 else found.argmax(axis=1)

    def predict_proba(self, X: NDArray[np.intp]) -> NDArray[np.float64]:
        return self.predictions[X]


def _roc_auc(y: NDArray[np.intp], p: NDArray[np.float64], codes: Sequence[int]) -> float:
    """Give the area under the ROC curve, the mean over classes against the rest."""
    areas = []
    for code in codes:
        positive = y == code
        n = int(positive.sum())
        if 0 < n < len(y):
            ranks = rankdata(p[:, code])[positive].sum()
            areas.append((ranks - n * (n + 1) / 2) / (n * (len(y) - n)))
    return float(np.mean(areas)) if areas else np.nan


def _spearman(y: NDArray[np.float64], p: NDArray[np.float64]) -> float:
    """Give the rank correlation; that of a constant prediction is 0."""
    a, b = (rank - rank.mean() for rank in (rankdata(y), rankdata(p)))
    if not a.any():
        return np.nan
    return float(a @ b / np.sqrt((a @ a) * (b @ b))) if b.any() else 0.0


class Bootstrap:
    """Draws of families with replacement, the same for all features, in each test set."""

    def __init__(
        self, tests: Sequence[NDArray[np.intp]], groups: NDArray[np.intp], n: int, seed: int
    ) -> None:
        self._tests, self._n, self._seed = tests, n, seed
        self._codes = [np.unique(groups[test], return_inverse=True)[1] for test in tests]

    def scores(self, metric: Metric) -> NDArray[np.float64]:
        """Score the test sets, and then each draw: (1 + n,), means over test sets."""
        return np.array(
            [mean_of_known(map(metric, self._tests)), *map(mean_of_known, self._drawn(metric))]
        )

    def _drawn(self, metric: Metric) -> Iterator[list[float]]:
        generator = np.random.default_rng(self._seed)
        for _ in range(self._n):
            found = []
            for test, codes in zip(self._tests, self._codes, strict=True):
                n = int(codes.max()) + 1
                counts = np.bincount(generator.integers(0, n, n), minlength=n)
                found.append(metric(np.repeat(test, counts[codes])))
            yield found


def mean_of_known(scores: Any) -> float:
    """Average scores, without those of test sets that cannot be scored."""
    known = [score for score in scores if not np.isnan(score)]
    return float(np.mean(known)) if known else np.nan


def interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Give the 95 % interval of draws."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def check_scored(score: float, scoring: object) -> None:
    """Raise InputError if no test set could be scored."""
    if np.isnan(score):
        raise InputError(
            f"No test set can be scored by {scoring!r}: each holds one class, or one value, only. "
            "Pass fewer folds (cv=3), or larger test sets."
        )
