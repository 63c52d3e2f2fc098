"""`compare_features`: layers and poolings against baselines, under the same nested folds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from esm2_features._checkpoints import open_checkpoint
from esm2_features._inputs.groups import group_cells, group_codes
from esm2_features._inputs.options import is_whole
from esm2_features._inputs.rows import labelled
from esm2_features._sklearn.difference import ESM2DifferenceTransformer
from esm2_features._sklearn.model import EmbeddingTransformer
from esm2_features.exceptions import InputError, MissingDependencyError
from esm2_features.model_selection.candidates import (
    Candidate,
    default_transformer,
)
from esm2_features.model_selection.candidates import (
    baselines as list_baselines,
)
from esm2_features.model_selection.candidates import (
    embeddings as list_embeddings,
)
from esm2_features.model_selection.families import cluster_sequences
from esm2_features.model_selection.metrics import (
    Bootstrap,
    check_scored,
    check_scoring,
    default_scoring,
    interval,
    metric_of,
)
from esm2_features.model_selection.nested import (
    Learner,
    NestedFolds,
    Outcome,
    fit,
    learner_of,
    nested_folds,
    union_of,
)
from esm2_features.model_selection.result import (
    BEST,
    BOTH,
    CHOSEN_BASELINE,
    CHOSEN_EMBEDDING,
    FeatureComparison,
    Row,
)
from esm2_features.model_selection.splits import check_splits
from esm2_features.model_selection.targets import Targets, check_classes, read_targets


def compare_features(
    X: object,
    y: object,
    *,
    groups: Any = "auto",
    transformer: EmbeddingTransformer | str | None = None,
    layers: int | Sequence[int] | Literal["all"] = "all",
    poolings: str | Sequence[str] = ("mean", "max", "std"),
    baselines: Mapping[str, Any] | Literal["auto"] = "auto",
    learner: Any = None,
    task: Literal["auto", "classification", "regression"] = "auto",
    scoring: Any = None,
    cv: Any = 5,
    n_bootstrap: int = 500,
    random_state: int = 0,
    n_jobs: int | None = None,
) -> FeatureComparison:
    """Compare the layers and poolings of a model with baselines, and fit the best pipeline.

    Each sequence goes through the model once. All features are then scored by the same learner
    in the same nested folds, which keep families together: inner folds tune the learner and choose
    the layer, the pooling and the baseline, and outer folds judge the choice.

    Parameters
    ----------
    X : sequences of length n, or frame of shape (n, n_chains)
        As in the ``fit`` of the transformer.
    y : list, array or Series of length n
        What is to be predicted: numbers, or classes as text, numbers or truth values.
    groups : "auto", list, array or Series of length n, or None, default="auto"
        Family of each row; families are on one side of every split. ``"auto"`` finds them by
        `cluster_sequences`. None takes rows as independent, and warns if they are relatives.
    transformer : ESM2Transformer, ESM2DifferenceTransformer, str or None, default=None
        What embeds X, with its options; or the name of a model. None is ``ESM2Transformer()``. Its
        ``layers`` and ``pooling`` are those of the comparison.
    layers : int, list of int or "all", default="all"
        Representations to compare.
    poolings : str or list of str, default=("mean", "max", "std")
        Poolings to compare, each with each layer.
    baselines : "auto" or dict of str to transformer, default="auto"
        ``"auto"`` is length, composition, properties and 1- to 3-mers, of
        `DescriptorTransformer`; and one-hot and BLOSUM62, of `AlignedTransformer`, if all
        sequences have the same length. Given ones must learn nothing of the rows.
    learner : classifier or regressor, default=None
        None is ``LogisticRegression`` or ``Ridge`` of scikit-learn on standardised features, with
        the strength of its regularisation from the inner folds. Others are taken as they are.
    task : {"auto", "classification", "regression"}, default="auto"
        ``"auto"`` takes text, truth values, two distinct values, and up to 10 distinct whole
        numbers for classes.
    scoring : str, callable or None, default=None
        A scorer of scikit-learn. None is the area under the ROC curve (``"roc_auc"``; with more
        than two classes ``"roc_auc_ovr"``, the mean over classes against the rest) or
        ``"spearman"``, the rank correlation.
    cv : int, splitter or iterable of (train, test), default=5
        Outer folds: their number, or other ones, such as a published split: ``[(train, test)]``.
    n_bootstrap : int, default=500
        Draws of families with replacement, for intervals.
    random_state : int, default=0
        Seed of the folds and of the draws.
    n_jobs : int or None, default=None
        Processes that fit, as in scikit-learn.

    Returns
    -------
    comparison : FeatureComparison
        Scores with intervals, a verdict, and a pipeline that is fitted on all rows.

    Raises
    ------
    InputError, TypeError
        If X is wrong, as in the transformer, or y, or a parameter; if there are too few families
        for the folds; or if X has several columns and no groups are passed.
    MissingDependencyError
        If families are to be found, and the extra ``families`` is not installed.
    CheckpointError, OutOfMemoryError, NumericalError, CacheVersionError, EndpointError
        As in the ``transform`` of the transformer.

    Warns
    -----
    LeakageWarning
        If relatives are on both sides of a split.

    See Also
    --------
    cluster_sequences : Finds the families, with other options.
    FeatureComparison : What is given back.

    Notes
    -----
    The score of a set of features is the mean over outer test sets. Its interval is of the 2.5 and
    97.5 percentiles over draws of whole families from each test set; differences are of the same
    draws. It holds the fitted models fixed, so it covers the choice of test families, and no
    others of training families.

    The best of many layers is partly the best by chance. Therefore the verdict compares
    procedures: "the layer and pooling with the best inner score" against "the baseline with the
    best inner score", and the features of both side by side.

    Features are standardised, or for k-mers divided by their Euclidean norm, and multiplied so that
    rows have about unit length. The strength of regularisation is that of the best log loss or
    squared error in 3 inner folds.

    Nested cross-validation: Varma and Simon, *BMC Bioinformatics* 7 (2006) 91.

    Examples
    --------
    >>> from esm2_features import ESM2Transformer
    >>> from esm2_features.datasets import load_demo_peptides
    >>> from esm2_features.model_selection import compare_features
    >>> peptides = load_demo_peptides(as_frame=True).frame.groupby("kind").head(30)
    >>> comparison = compare_features(
    ...     peptides["sequence"], peptides["kind"], transformer=ESM2Transformer("mini", cache=None),
    ...     layers=[3, 6], poolings="mean", cv=3, n_bootstrap=50)
    >>> comparison.task, comparison.scoring, len(comparison.results["features"])
    ('classification', 'roc_auc', 10)
    """
    transformer = default_transformer(transformer)
    for name, value, least in (("n_bootstrap", n_bootstrap, 10), ("random_state", random_state, 0)):
        if not is_whole(value) or value < least:
            raise InputError(f"Got {name}={value!r}; expected a whole number from {least}.")
    chains = transformer._columns(X)
    transformer._check_sequences(chains, X)
    with labelled(chains[0].labels):
        targets = read_targets(y, len(chains[0].values), task)
        families, is_grouped = _families(groups, chains, transformer)
    learner = learner_of(learner, targets)
    known = families if is_grouped else None
    check_classes(targets, known)
    folds = nested_folds(cv, targets, known, random_state)
    if not is_grouped and families is not None:
        check_splits(folds.outer, families)
    scoring = default_scoring(targets) if scoring is None else scoring
    check_scoring(scoring, targets)
    with config_context(transform_output="default"), _with_cache(transformer) as cached:
        candidates = list_embeddings(cached, layers, poolings)
        candidates += list_baselines(baselines, X, transformer)
        cached.precompute(
            X,
            layers=sorted({c.layer for c in candidates if c.layer is not None}),
            pooling=list(dict.fromkeys(c.pooling for c in candidates if c.pooling is not None)),
        )
        run = _Run(X, targets, folds, learner, scoring, candidates, n_jobs)
        estimator = run.fitted(transformer)
    units = np.arange(len(targets.values)) if known is None else known
    bootstrap = Bootstrap(folds.tests, units, n_bootstrap, random_state)
    rows, draws = run.judged(bootstrap)
    check_scored(rows[0].score, scoring)
    return FeatureComparison(
        task=targets.task,
        scoring=scoring if isinstance(scoring, str) else getattr(scoring, "__name__", "score"),
        model=open_checkpoint(transformer.model).name,
        results=dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True)),
        draws=draws,
        estimator=estimator,
        groups=known,
        splits=folds.outer,
        predictions=run.predictions(BEST),
        classes=targets.classes,
        targets=targets.original,
    )


def _families(
    groups: Any, chains: Sequence[Any], transformer: EmbeddingTransformer
) -> tuple[NDArray[np.intp] | None, bool]:
    """Give families of rows, if they are known, and whether folds have to keep them."""
    is_auto = isinstance(groups, str) and groups == "auto"
    if groups is not None and not is_auto:
        return group_codes(group_cells(groups, len(chains[0].values))), True
    is_one = len(chains) == 1 or isinstance(transformer, ESM2DifferenceTransformer)
    if is_auto and not is_one:
        raise InputError(
            f"X has {len(chains)} columns, so families cannot be found without knowing which of "
            "them makes rows relatives. Pass groups, such as cluster_sequences(X[name]); or None, "
            "if rows are independent."
        )
    if not is_one:
        return None, False
    try:
        return cluster_sequences(chains[0], unknown=transformer.unknown), is_auto
    except MissingDependencyError as error:
        if not is_auto:
            return None, False
        raise MissingDependencyError(
            f"{error} Or pass groups: the family of each row, or None if rows are independent."
        ) from error


@contextmanager
def _with_cache(transformer: EmbeddingTransformer) -> Iterator[EmbeddingTransformer]:
    """Give the transformer a cache for the time of the comparison, if it has none."""
    if transformer.cache is not None:
        yield transformer
        return
    with TemporaryDirectory(prefix="esm2-features-", ignore_cleanup_errors=True) as folder:
        yield clone(transformer).set_params(cache=folder)


class _Run:
    """The outcomes of all candidates, and what the inner folds choose among them."""

    def __init__(
        self,
        X: object,
        targets: Targets,
        folds: NestedFolds,
        learner: Learner,
        scoring: Any,
        candidates: Sequence[Candidate],
        n_jobs: int | None,
    ) -> None:
        self._X, self._targets, self._folds = X, targets, folds
        self._learner, self._scoring = learner, scoring
        self._candidates, self._parallel = candidates, Parallel(n_jobs=n_jobs)
        everywhere = range(len(folds.inner))
        found = self._outcomes([([c], everywhere) for c in candidates])
        self._of_choice: dict[tuple[str, ...], Outcome] = {
            (c.name,): outcome for c, outcome in zip(candidates, found, strict=True)
        }
        self._choices = {
            name: [self._best(some, fold) for fold in everywhere]
            for name, some in (
                (CHOSEN_EMBEDDING, [c for c in candidates if c.is_embedding]),
                (CHOSEN_BASELINE, [c for c in candidates if not c.is_embedding]),
            )
            if some
        }
        if len(self._choices) == 2:
            both = [a + b for a, b in zip(*self._choices.values(), strict=True)]
            pairs = list(dict.fromkeys(both))
            where = [[fold for fold in everywhere if both[fold] == pair] for pair in pairs]
            found = self._outcomes(
                [([*map(self._named, pair)], some) for pair, some in zip(pairs, where, strict=True)]
            )
            self._of_choice |= dict(zip(pairs, found, strict=True))
            self._choices[BOTH] = both
        self._choices[BEST] = [
            max((of[fold] for of in self._choices.values()), key=self._inner(fold))
            for fold in everywhere
        ]

    def _outcomes(self, jobs: Sequence[tuple[Sequence[Candidate], Sequence[int]]]) -> list[Outcome]:
        """Run sets of features in some folds; features are computed as they are needed."""
        return list(
            self._parallel(
                delayed(self._folds.run)(
                    [c.block(self._X) for c in some],
                    self._targets,
                    self._learner,
                    self._scoring,
                    where,
                )
                for some, where in jobs
            )
        )

    def _named(self, name: str) -> Candidate:
        return next(c for c in self._candidates if c.name == name)

    def _inner(self, fold: int) -> Callable[[tuple[str, ...]], float]:
        """Give what tells the inner score of a choice in a fold; what has none is the last."""

        def score(choice: tuple[str, ...]) -> float:
            return float(np.nan_to_num(self._of_choice[choice].inner_scores[fold], nan=-np.inf))

        return score

    def _best(self, some: Sequence[Candidate], fold: int) -> tuple[str, ...]:
        return max(((c.name,) for c in some), key=self._inner(fold))

    def predictions(self, procedure: str) -> NDArray[np.float64]:
        """Put together the predictions of what a procedure chose in each fold."""
        choices = self._choices[procedure]
        found = np.full_like(self._of_choice[choices[0]].predictions, np.nan)
        for choice, test in zip(choices, self._folds.tests, strict=False):
            found[test] = self._of_choice[choice].predictions[test]
        return found

    def judged(self, bootstrap: Bootstrap) -> tuple[list[Row], dict[str, NDArray[np.float64]]]:
        """Score procedures and candidates: rows of results, and draws."""
        rows = [Row(name, "procedure", None, None, *[np.nan] * 3) for name in self._choices]
        predictions = [self.predictions(name) for name in self._choices]
        for c in self._candidates:
            kind = "embedding" if c.is_embedding else "baseline"
            rows.append(Row(c.name, kind, c.layer, c.pooling, *[np.nan] * 3))
            predictions.append(self._of_choice[c.name,].predictions)
        metrics = [metric_of(self._scoring, self._targets, found) for found in predictions]
        scores = self._parallel(delayed(bootstrap.scores)(metric) for metric in metrics)
        judged, draws = [], {}
        for row, (score, *drawn) in zip(rows, scores, strict=True):
            draws[row.features] = np.array(drawn)
            low, high = interval(draws[row.features])
            judged.append(row._replace(score=float(score), low=low, high=high))
        return judged, draws

    def fitted(self, transformer: EmbeddingTransformer) -> Pipeline:
        """Fit what is the best of all rows, on all rows."""
        choice = self._choices[BEST][-1]
        candidates = [self._named(name) for name in choice]
        blocks = [candidate.block(self._X) for candidate in candidates]
        names = ["esm2" if candidate.is_embedding else "baseline" for candidate in candidates]
        features = union_of(
            [
                (name, clone(candidate.transformer), block.scaler, block.weight)
                for name, candidate, block in zip(names, candidates, blocks, strict=True)
            ]
        )
        with suppress(AttributeError, ValueError):  # of given baselines that name no columns
            features.set_output(transform="default")
        learner = clone(self._learner.estimator).set_params(**self._of_choice[choice].best_params)
        pipeline = Pipeline([("features", features), ("learner", learner)])
        fit(pipeline, self._X, self._targets.original)
        if "esm2" in names:
            pipeline["features"]["esm2"][0].set_params(cache=transformer.cache)
        return pipeline
