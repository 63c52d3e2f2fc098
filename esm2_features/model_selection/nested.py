"""Nested cross-validation of one set of features: inner folds choose, outer folds judge."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    ParameterGrid,
    StratifiedGroupKFold,
    StratifiedKFold,
)
from sklearn.pipeline import FeatureUnion, make_pipeline
from threadpoolctl import threadpool_limits

from esm2_features._inputs.options import is_whole
from esm2_features.exceptions import InputError
from esm2_features.model_selection.metrics import mean_of_known, metric_of
from esm2_features.model_selection.splits import check_splits, rows_of
from esm2_features.model_selection.targets import Targets

_INNER_FOLDS = 3
_STRENGTHS = np.logspace(-1, 3, 5)
"""Inverse strengths of regularisation, for rows of about unit length."""

Split = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Learner:
    """A learner, and the grid of its parameters that is searched in the inner folds."""

    estimator: Any
    grid: Mapping[str, Sequence[Any]]


def learner_of(given: Any, targets: Targets) -> Learner:
    """Make the default learner, or check a given one."""
    is_classes = targets.classes is not None
    if given is None and is_classes:
        return Learner(LogisticRegression(max_iter=1000), {"C": _STRENGTHS.tolist()})
    if given is None:
        return Learner(Ridge(), {"alpha": (10 / _STRENGTHS).tolist()})
    fits = is_classifier(given) if is_classes else is_regressor(given)
    if not fits:
        kind = "classifier" if is_classes else "regressor"
        raise InputError(f"The learner {given!r} is no {kind}, and y asks for one.")
    if is_classes and not hasattr(given, "predict_proba"):
        raise InputError(
            f"The learner {given!r} gives no probabilities. Wrap it: "
            "CalibratedClassifierCV(learner), of sklearn.calibration."
        )
    return Learner(given, {})


@dataclass(frozen=True)
class Block:
    """Features of all rows, (n, d), and what scales them to rows of about unit length."""

    name: str
    values: Any
    scaler: Any
    weight: float


@dataclass(frozen=True)
class Outcome:
    """What one set of features gave: of all rows, and of each fold."""

    predictions: NDArray[np.float64]  # out of fold; NaN where a row is in no test set
    inner_scores: dict[int, float]  # of folds by their numbers; the last is that of all rows
    best_params: dict[str, Any]  # of the last fold that was run


@dataclass(frozen=True)
class NestedFolds:
    """Outer folds, and the inner folds of each; the last inner folds are of all rows."""

    outer: list[Split]
    inner: list[list[Split]]

    @property
    def tests(self) -> list[NDArray[np.intp]]:
        return [test for _, test in self.outer]

    def run(
        self,
        blocks: Sequence[Block],
        targets: Targets,
        learner: Learner,
        scoring: Any,
        where: Iterable[int],
    ) -> Outcome:
        """Fit in some folds, by their numbers, and predict their test rows."""
        features = union_of([(x.name, _Rows(x.values), x.scaler, x.weight) for x in blocks])
        y, n_classes = targets.values, [] if targets.classes is None else [len(targets.classes)]
        predictions, inner_scores = np.full([len(y), *n_classes], np.nan), {}
        params: dict[str, Any] = {}
        # Folds are small, and threads that wait for each other would take most of the time.
        with threadpool_limits(1):
            for fold in where:
                train, test = [*self.outer, (np.arange(len(y)), None)][fold]
                inner_scores[fold], params = _tune(
                    features, learner, targets, scoring, self.inner[fold]
                )
                if test is not None:
                    [predictions[test]] = _predictions(
                        features, learner.estimator, [params], targets, train, test
                    )
        return Outcome(predictions, inner_scores, params)


def _tune(
    features: FeatureUnion,
    learner: Learner,
    targets: Targets,
    scoring: Any,
    splits: Sequence[Split],
) -> tuple[float, dict[str, Any]]:
    """Find the parameters that fit best, and give their score and themselves.

    Log loss and squared error are less noisy than ranks: on the training sets of four peptide
    tasks, the strength of regularisation that they chose was the better one on the test sets.
    """
    grid = list(ParameterGrid(dict(learner.grid)))
    found = np.empty((2, len(grid), len(splits)))
    for i, (train, test) in enumerate(splits):
        y = targets.values[test]
        fits = _predictions(features, learner.estimator, grid, targets, train, test)
        for j, predictions in enumerate(fits):
            metric = metric_of(scoring, Targets(y, targets.classes), predictions)
            found[:, j, i] = _goodness_of_fit(y, predictions), metric(np.arange(len(y)))
    best = int(found[0].mean(axis=1).argmax())
    return mean_of_known(found[1, best]), grid[best]


def _goodness_of_fit(y: NDArray[Any], predictions: NDArray[np.float64]) -> float:
    if predictions.ndim == 1:
        return -float(np.mean((y - predictions) ** 2))
    return float(np.mean(np.log(np.clip(predictions[np.arange(len(y)), y], 1e-15, 1))))


def _predictions(
    features: FeatureUnion,
    estimator: Any,
    grid: Sequence[dict[str, Any]],
    targets: Targets,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
) -> Iterator[NDArray[np.float64]]:
    """Fit each member of a grid, and yield its predictions: (n,), or (n, classes)."""
    features = clone(features)
    X_train, X_test = features.fit_transform(train), features.transform(test)
    for params in grid:
        fitted = fit(clone(estimator).set_params(**params), X_train, targets.values[train])
        if targets.classes is None:
            yield np.asarray(fitted.predict(X_test), np.float64)
            continue
        found = np.zeros((len(test), len(targets.classes)))
        found[:, fitted.classes_] = fitted.predict_proba(X_test)
        yield found


def fit(estimator: Any, X: Any, y: NDArray[Any]) -> Any:
    """Fit without warnings of the solver, whose last digits matter to no score."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", LinAlgWarning)
        return estimator.fit(X, y)


def nested_folds(
    cv: Any, targets: Targets, groups: NDArray[np.intp] | None, seed: int
) -> NestedFolds:
    """Make the outer folds, or check those that are given, and the inner ones."""
    n = len(targets.values)
    n_units = n if groups is None else len(np.unique(groups))
    units = "rows" if groups is None else "families (groups)"
    if n_units < 3:
        raise InputError(
            f"There are {n_units} {units}, and at least 3 are needed to learn, to choose and to "
            "test. Group variants of one protein by position, for instance; or pass groups=None, "
            "if rows are independent."
        )
    if is_whole(cv) and not 2 <= cv <= n_units:
        raise InputError(
            f"{cv} folds cannot be made of {n_units:,} {units}. Pass cv between 2 and {n_units}."
        )
    if is_whole(cv):
        outer = list(_split(int(cv), np.arange(n), targets, groups, seed))
    else:
        given = cv.split(np.zeros(n), targets.original, groups) if hasattr(cv, "split") else cv
        if not isinstance(given, Iterable):
            raise InputError(f"Got cv={cv!r}; expected a number of folds, a splitter, or splits.")
        outer = [rows_of(split, number, n) for number, split in enumerate(given)]
        _check_tested_once(outer, n)
        if groups is not None:
            check_splits(outer, groups)
    trains = [*(train for train, _ in outer), np.arange(n)]
    inner = []
    for number, train in enumerate(trains):
        k = min(_INNER_FOLDS, len(train) if groups is None else len(np.unique(groups[train])))
        found = list(_split(k, train, targets, groups, seed)) if k > 1 else []
        if targets.classes is not None:
            found = [split for split in found if len(np.unique(targets.values[split[0]])) > 1]
        if not found:
            raise InputError(
                f"The training set of fold {number} has one class, or one family, and cannot be "
                "divided further, to choose features. Pass more rows, or fewer folds, such as cv=3."
            )
        inner.append(found)
    return NestedFolds(outer, inner)


def _split(
    k: int, rows: NDArray[np.intp], targets: Targets, groups: NDArray[np.intp] | None, seed: int
) -> Iterator[Split]:
    """Split rows into k folds that keep groups together and, if they can, shares of classes."""
    is_classes = targets.classes is not None
    if groups is None:
        splitter = (StratifiedKFold if is_classes else KFold)(k, shuffle=True, random_state=seed)
    else:
        kind = StratifiedGroupKFold if is_classes else GroupKFold
        splitter = kind(k, shuffle=True, random_state=seed)
    within = None if groups is None else groups[rows]
    with warnings.catch_warnings():
        # Classes of fewer rows than folds.
        warnings.filterwarnings("ignore", message="The least populated class")
        for train, test in splitter.split(np.zeros(len(rows)), targets.values[rows], within):
            yield rows[train], rows[test]


def _check_tested_once(outer: Sequence[Split], n: int) -> None:
    """Raise InputError if there is nothing to test, or a row is tested twice."""
    if not outer or not all(len(train) and len(test) for train, test in outer):
        raise InputError("Got cv without splits, or a split without training or test rows.")
    tested = np.concatenate([test for _, test in outer])
    repeated = np.flatnonzero(np.bincount(tested, minlength=n) > 1)
    if len(repeated):
        raise InputError(
            f"Row {repeated[0]} is in several test sets. Pass splits that test each row at most "
            "once, such as KFold(5); repeated splits can be compared one after the other."
        )


def union_of(blocks: Sequence[tuple[str, Any, Any, float]]) -> FeatureUnion:
    """Lay features side by side: of each its name, its transformer, its scaler and its weight."""
    return FeatureUnion(
        [(name, make_pipeline(transformer, scaler)) for name, transformer, scaler, _ in blocks],
        transformer_weights={name: weight for name, *_, weight in blocks},
    )


class _Rows(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Gives rows of features by their numbers, so that folds hold no copies of them."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __sklearn_clone__(self) -> _Rows:
        return self

    def fit(self, X: object, y: object = None) -> _Rows:  # noqa: ARG002
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: NDArray[np.intp]) -> Any:
        return self.values[X]
