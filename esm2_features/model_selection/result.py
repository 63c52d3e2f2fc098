"""`FeatureComparison`: scores with intervals, a verdict, and the fitted pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


_COLOURS = {"procedure": "#00738a", "embedding": "#7fb8c4", "baseline": "#b57a14"}
_PALETTE = ("#00738a", "#c8384d", "#7a5195", "#5f8f3f", "#555555")


class Row(NamedTuple):
    """Scores of one set of features, or of a procedure that chooses among several."""

    features: str
    kind: str
    layer: int | None
    pooling: str | None
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class FeatureComparison:
    """What `compare_features` found; printed, a table and the verdict.

    Attributes
    ----------
    task : str
        What was learned: ``"classification"`` or ``"regression"``.
    scoring : str
        Name of the score.
    model : str
        Name of the model.
    results : dict of str to list
        One entry for each set of features, in columns as ``cv_results_`` of scikit-learn:
        ``features`` (name), ``kind`` (``"embedding"``, ``"baseline"``, or ``"procedure"``, which
        chooses by inner scores), ``layer``, ``pooling``, ``score``, ``low`` and ``high`` (95 %
        interval).
    draws : dict of str to ndarray of shape (n_bootstrap,)
        Of each set of features, by its name, the scores of the draws of families. They are the
        same draws for all, so that differences can be taken.
    estimator : Pipeline
        What has the best inner score on all rows, fitted on all rows: features and learner.
    groups : ndarray of shape (n,), intp, or None
        Family of each row.
    splits : list of tuple
        Rows of each outer fold, (train, test).
    predictions : ndarray of shape (n,) or (n, n_classes), float64
        Out-of-fold predictions of the procedure whose pipeline ``estimator`` is: numbers, or
        probabilities. NaN for rows that are in no test set.
    classes : ndarray of shape (n_classes,), or None
        Classes, in the order of the columns of ``predictions``.
    targets : ndarray of shape (n,)
        What was to be predicted.

    See Also
    --------
    compare_features : Makes it.
    """

    task: str
    scoring: str
    model: str
    results: dict[str, list[Any]] = field(repr=False)
    draws: dict[str, NDArray[np.float64]] = field(repr=False)
    estimator: Pipeline = field(repr=False)
    groups: NDArray[np.intp] | None = field(repr=False)
    splits: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = field(repr=False)
    predictions: NDArray[np.float64] = field(repr=False)
    classes: NDArray[Any] | None
    targets: NDArray[Any] = field(repr=False)

    @property
    def verdict(self) -> str:
        """One sentence: what the embedding scores, and whether that is more than the baseline."""
        embedding = self._row(CHOSEN_EMBEDDING)
        measure = _WORDS.get(self.scoring, f"a score ({self.scoring})")
        alone = self.groups is None or len(np.unique(self.groups)) == len(self.groups)
        unseen = "rows" if alone else "families"
        learner = "classifier" if self.task == "classification" else "regressor"
        text = (
            f"On {unseen} that it has not seen, a {learner} on embeddings of {self.model} reaches "
            f"{measure} of {embedding.score:.3f} (95 % interval {embedding.low:.3f} to "
            f"{embedding.high:.3f})"
        )
        if not embedding.low > _CHANCE.get(self.scoring, -np.inf):
            text += ", which cannot be told from chance"
        if CHOSEN_BASELINE not in self.draws:
            return f"{text}."
        baseline, both = self._row(CHOSEN_BASELINE), self._row(BOTH)
        better = max(embedding, baseline, key=lambda row: row.score)
        return (
            f"{text}; this is {self._compared(embedding, baseline)}; and both together are "
            f"{self._compared(both, better, 'the better of the two')}."
        )

    @property
    def shallowest_layer(self) -> int:
        """The first layer whose best pooling is not clearly behind the best embedding."""
        best, rows = self._best("embedding"), self._rows("embedding")
        of_layers = [
            max((row for row in rows if row.layer == layer), key=lambda row: row.score)
            for layer in dict.fromkeys(row.layer for row in rows)
        ]
        near = [row for row in of_layers if not self._difference(best, row)[0] > 0]
        return min(row.layer or 0 for row in near)

    @property
    def layer_advice(self) -> str:
        """One sentence: which layer is deep enough, and what that saves."""
        best, layer = self._best("embedding"), self.shallowest_layer
        text, depth = f"The best embedding is {best.features}; ", best.layer or 0
        if len({row.layer for row in self._rows("embedding")}) == 1:
            return f"{text}no other layer was compared."
        if depth == 0:
            return f"{text}the context of a residue adds nothing here."
        if layer >= depth:
            return f"{text}all earlier layers are behind it."
        if layer == 0:
            return f"{text}layer 0, residues without their context, is not clearly behind it."
        return (
            f"{text}layer {layer} is not clearly behind it, and takes {1 - layer / depth:.0%} less "
            "computation."
        )

    def to_frame(self) -> Any:
        """Give the results as a frame, procedures first, and the best first among equals.

        Returns
        -------
        frame : pandas.DataFrame
            The columns of ``results``.

        Raises
        ------
        MissingDependencyError
            If pandas is not installed.

        Examples
        --------
        >>> comparison.to_frame().head(3)  # doctest: +SKIP
        """
        pandas = import_optional("pandas", extra="pandas", purpose="A frame of results")
        frame = pandas.DataFrame([row._asdict() for row in self._sorted()])
        return frame.astype({"layer": "Int64"})

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

        Examples
        --------
        >>> comparison.plot_scores().figure.savefig("scores.png")  # doctest: +SKIP
        """
        best = self._best("embedding")
        rows = [row for row in self._sorted() if row.kind != "embedding" or row == best][::-1]
        ax = _axes(ax, height=0.7 + 0.32 * len(rows))
        for place, row in enumerate(rows):
            colour = _COLOURS[row.kind]
            ax.plot([row.low, row.high], [place, place], color=colour, lw=2.5, alpha=0.6)
            ax.plot(row.score, place, "o", color=colour, ms=7)
        names = [f"{row.features} (the best)" if row == best else row.features for row in rows]
        ax.set_yticks(range(len(rows)), names)
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

        Examples
        --------
        >>> comparison.plot_layers().figure.savefig("layers.png")  # doctest: +SKIP
        """
        ax = _axes(ax, height=3.4)
        rows = self._rows("embedding")
        for i, pooling in enumerate(dict.fromkeys(row.pooling for row in rows)):
            line = [row for row in rows if row.pooling == pooling]
            layers, colour = [row.layer for row in line], _PALETTE[i % len(_PALETTE)]
            ax.plot(layers, [row.score for row in line], "o-", ms=4, color=colour, label=pooling)
            low, high = [row.low for row in line], [row.high for row in line]
            ax.fill_between(layers, low, high, color=colour, alpha=0.1, lw=0)
        if self._rows("baseline"):
            baseline = self._best("baseline")
            style = {"color": _COLOURS["baseline"], "ls": "--", "lw": 1.2}
            ax.axhline(baseline.score, label=f"baseline: {baseline.features}", **style)
        ax.set(xlabel=f"layer of {self.model}", ylabel=self.scoring)
        ax.legend(frameon=False, loc="best", fontsize=9)
        return ax

    def __str__(self) -> str:
        lines = [f"{'features':<30} {self.scoring:>10}   95 % interval"]
        for row in self._sorted():
            interval = f"{row.low:.3f} to {row.high:.3f}"
            lines.append(f"{row.features:<30} {row.score:>10.3f}   {interval}")
        return "\n".join([*lines, "", self.verdict, self.layer_advice])

    def _rows(self, kind: str) -> list[Row]:
        return [row for row in self._sorted(by_score=False) if row.kind == kind]

    def _row(self, features: str) -> Row:
        return next(row for row in self._sorted() if row.features == features)

    def _best(self, kind: str) -> Row:
        return next(row for row in self._sorted() if row.kind == kind)

    def _sorted(self, *, by_score: bool = True) -> list[Row]:
        rows = [Row(*cells) for cells in zip(*self.results.values(), strict=True)]
        if not by_score:
            return rows
        return sorted(rows, key=lambda row: (row.kind != "procedure", -np.nan_to_num(row.score)))

    def _difference(self, a: Row, b: Row) -> tuple[float, float]:
        return interval(self.draws[a.features] - self.draws[b.features])

    def _compared(self, a: Row, b: Row, called: str | None = None) -> str:
        """Compare two procedures; who is ahead is also compared with the best of the baselines."""
        low, high = self._difference(a, b)
        words = "ahead of" if low > 0 else "behind" if high < 0 else "not clearly different from"
        called = called or f"the {b.score:.3f} of baseline features"
        text = f"{words} {called} (difference {a.score - b.score:+.3f}, {low:+.3f} to {high:+.3f})"
        best = self._best("baseline")
        if low > 0 >= self._difference(a, best)[0]:
            text += f", but not clearly of the best baseline, {best.features} ({best.score:.3f})"
        return text


def _axes(ax: Any, *, height: float) -> Any:
    if ax is not None:
        return ax
    figure = import_optional("matplotlib.figure", extra="plot", purpose="Drawing a comparison")
    return figure.Figure(figsize=(7, height), layout="constrained").add_subplot()
