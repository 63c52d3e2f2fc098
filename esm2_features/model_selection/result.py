"""`FeatureComparison`: scores with intervals, a verdict, and the fitted pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from esm2_features.exceptions import import_optional
from esm2_features.model_selection.metrics import interval

CHOSEN_EMBEDDING = "embedding, chosen inside"
CHOSEN_BASELINE = "baseline, chosen inside"
BOTH = "embedding + baseline"
BEST = "best of these, chosen inside"

_CHANCE = {"roc_auc": 0.5, "roc_auc_ovr": 0.5, "spearman": 0.0}
_WORDS = {"roc_auc": "an AUC", "roc_auc_ovr": "a mean AUC", "spearman": "a rank correlation"}


@dataclass(frozen=True)
class Judged:
    """Scores of one set of features, or of a procedure that chooses: the score, then draws."""

    features: str
    kind: str
    layer: int | None
    pooling: str | None
    scores: NDArray[np.float64] = field(repr=False)

    @property
    def score(self) -> float:
        return float(self.scores[0])

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.scores[1:])


@dataclass(frozen=True)
class FeatureComparison:
    """What `compare_features` found; printed, a table and the verdict.

    Attributes
    ----------
    task : {"classification", "regression"}
        What was learned.
    scoring : str
        Name of the score.
    model : str
        Name of the model.
    results : dict of str to list
        One entry for each set of features, in columns as ``cv_results_`` of scikit-learn:
        ``features`` (name), ``kind`` (``"embedding"``, ``"baseline"``, or ``"procedure"``, which
        chooses by inner scores), ``layer``, ``pooling``, ``score``, ``low`` and ``high`` (95 %
        interval).
    verdict : str
        One sentence: what the embedding scores, and whether that is more than the baseline.
    shallowest_layer : int or None
        The first layer whose best pooling is not clearly behind the best embedding.
    estimator : Pipeline
        What has the best inner score on all rows, fitted on all rows: features and learner.
    groups : ndarray of shape (n,), intp, or None
        Family of each row.
    splits : list of (train, test)
        Rows of each outer fold.
    predictions : ndarray of shape (n,) or (n, n_classes), float64
        Out-of-fold predictions of the procedure whose pipeline ``estimator`` is: numbers, or
        probabilities. NaN for rows that are in no test set.
    classes : ndarray of shape (n_classes,), or None
        Classes, in the order of the columns of ``predictions``.
    targets : ndarray of shape (n,)
        What was to be predicted.
    """

    task: str
    scoring: str
    model: str
    judged: list[Judged] = field(repr=False)
    estimator: Pipeline
    groups: NDArray[np.intp] | None = field(repr=False)
    splits: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = field(repr=False)
    predictions: NDArray[np.float64] = field(repr=False)
    classes: NDArray[Any] | None
    targets: NDArray[Any] = field(repr=False)

    @property
    def results(self) -> dict[str, list[Any]]:
        rows = [(x.features, x.kind, x.layer, x.pooling, x.score, *x.interval) for x in self.judged]
        names = ("features", "kind", "layer", "pooling", "score", "low", "high")
        return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))

    def to_frame(self) -> Any:
        """Give the results as a pandas frame, procedures first, then the best.

        Returns
        -------
        frame : pandas.DataFrame
            The columns of ``results``.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.
        """
        pandas = import_optional("pandas", extra="pandas", purpose="A frame of results")
        frame = pandas.DataFrame(self.results).astype({"layer": "Int64"})
        frame["last"] = frame["kind"] != "procedure"
        frame = frame.sort_values(["last", "score"], ascending=[True, False], ignore_index=True)
        return frame.drop(columns="last")

    @cached_property
    def shallowest_layer(self) -> int | None:
        best = self._best("embedding")
        for found in sorted(self._best_of_layers(), key=lambda x: x.layer or 0):
            low, _ = interval(best.scores[1:] - found.scores[1:])
            if not low > 0:
                return found.layer
        return best.layer

    @cached_property
    def verdict(self) -> str:
        embedding = self._named(CHOSEN_EMBEDDING)
        low, high = embedding.interval
        score = f"{embedding.score:.3f} (95 % interval {low:.3f} to {high:.3f})"
        measure = _WORDS.get(self.scoring, f"a score ({self.scoring})")
        unseen = "rows" if self.groups is None else "families"
        learner = "classifier" if self.task == "classification" else "regressor"
        text = (
            f"On {unseen} that it has not seen, a {learner} on embeddings of {self.model} reaches "
            f"{measure} of {score}"
        )
        chance = _CHANCE.get(self.scoring)
        if chance is not None and not low > chance:
            text += ", which cannot be told from chance"
        if not any(x.features == CHOSEN_BASELINE for x in self.judged):
            return f"{text}."
        baseline, both = self._named(CHOSEN_BASELINE), self._named(BOTH)
        better = max(embedding, baseline, key=lambda x: x.score)
        return (
            f"{text}; this is {_compared(embedding, baseline)} the {baseline.score:.3f} of "
            f"baseline features ({_difference(embedding, baseline)}), and both together are "
            f"{_compared(both, better)} the better of the two ({_difference(both, better)})."
        )

    def plot_scores(self, ax: Any = None) -> Any:
        """Draw the scores of procedures, baselines and the best embedding, with intervals.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default, in a figure of its own.

        Returns
        -------
        ax : matplotlib.axes.Axes
            What was drawn on.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        rows = [x for x in self.judged if x.kind != "embedding"]
        rows = sorted([*rows, self._best("embedding")], key=lambda x: x.score)
        ax = _axes(ax, height=0.7 + 0.32 * len(rows))
        colours = {"procedure": "#00738a", "embedding": "#7fb8c4", "baseline": "#b57a14"}
        for place, x in enumerate(rows):
            ax.plot(x.interval, [place, place], color=colours[x.kind], lw=2.5, alpha=0.6)
            ax.plot(x.score, place, "o", color=colours[x.kind], ms=7)
        ax.set_yticks(range(len(rows)), [x.features for x in rows])
        ax.set_xlabel(f"{self.scoring}, with 95 % intervals")
        ax.grid(axis="x", color="#dddddd", lw=0.7)
        ax.set_axisbelow(True)
        return ax

    def plot_layers(self, ax: Any = None) -> Any:
        """Draw the score against the layer, with one line for each pooling.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default, in a figure of its own.

        Returns
        -------
        ax : matplotlib.axes.Axes
            What was drawn on.

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        """
        ax = _axes(ax, height=3.4)
        embeddings = [x for x in self.judged if x.kind == "embedding"]
        palette = ("#00738a", "#c8384d", "#7a5195", "#5f8f3f", "#555555")
        for i, pooling in enumerate(dict.fromkeys(x.pooling for x in embeddings)):
            line = [x for x in embeddings if x.pooling == pooling]
            layers = [x.layer for x in line]
            colour = palette[i % len(palette)]
            ax.plot(layers, [x.score for x in line], "o-", ms=4, color=colour, label=pooling)
            low, high = np.transpose([x.interval for x in line])
            ax.fill_between(layers, low, high, color=colour, alpha=0.1, lw=0)
        if any(x.kind == "baseline" for x in self.judged):
            baseline = self._best("baseline")
            ax.axhline(baseline.score, color="#b57a14", ls="--", lw=1.2)
            ax.text(
                *(0.99, baseline.score), f"{baseline.features} ", color="#8a5c0c", ha="right",
                va="bottom", transform=ax.get_yaxis_transform(),
            )  # fmt: skip
        ax.set(xlabel=f"layer of {self.model}", ylabel=self.scoring)
        ax.legend(frameon=False, title="pooling", loc="lower right")
        return ax

    def __str__(self) -> str:
        lines = [f"{'features':<30} {self.scoring:>10}   95 % interval"]
        rows = sorted(self.judged, key=lambda x: (x.kind != "procedure", -x.score))
        for x in rows:
            low, high = x.interval
            lines.append(f"{x.features:<30} {x.score:>10.3f}   {low:.3f} to {high:.3f}")
        return "\n".join([*lines, "", self.verdict, self.layer_advice])

    @property
    def layer_advice(self) -> str:
        """Say which layer is deep enough, and what that saves."""
        best, layer = self._best("embedding"), self.shallowest_layer
        if layer is None or best.layer is None or layer >= best.layer:
            return f"The best embedding is {best.features}; no earlier layer is as good."
        if layer == 0:
            return (
                f"The best embedding is {best.features}; layer 0, residues without their context, "
                "is not clearly behind it."
            )
        return (
            f"The best embedding is {best.features}; layer {layer} is not clearly behind it, and "
            f"takes {1 - layer / best.layer:.0%} less computation."
        )

    def _named(self, name: str) -> Judged:
        return next(x for x in self.judged if x.features == name)

    def _best(self, kind: str) -> Judged:
        return max(
            (x for x in self.judged if x.kind == kind),
            key=lambda x: np.nan_to_num(x.score, nan=-np.inf),
        )

    def _best_of_layers(self) -> list[Judged]:
        """Give the best pooling of each layer."""
        found: dict[int | None, Judged] = {}
        for x in self.judged:
            if x.kind == "embedding" and (x.layer not in found or x.score > found[x.layer].score):
                found[x.layer] = x
        return list(found.values())


def _compared(a: Judged, b: Judged) -> str:
    low, high = interval(a.scores[1:] - b.scores[1:])
    return "ahead of" if low > 0 else "behind" if high < 0 else "not clearly different from"


def _difference(a: Judged, b: Judged) -> str:
    low, high = interval(a.scores[1:] - b.scores[1:])
    return f"difference {a.score - b.score:+.3f}, {low:+.3f} to {high:+.3f}"


def _axes(ax: Any, *, height: float) -> Any:
    if ax is not None:
        return ax
    figure = import_optional("matplotlib.figure", extra="plot", purpose="Drawing a comparison")
    return figure.Figure(figsize=(7, height), layout="constrained").add_subplot()
