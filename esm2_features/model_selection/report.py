"""The page that `esm2-features evaluate` writes: one file, readable without network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from io import BytesIO
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL
from esm2_features.exceptions import import_optional, printable, shorten

if TYPE_CHECKING:
    from esm2_features._inputs.labelled import LabelledTable
    from esm2_features.model_selection.result import FeatureComparison

_SHOWN_ROWS, _WRONG_ROWS, _MOST_CURVES = 12, 15, 6
_COLOURS = ("#00738a", "#c8384d", "#7a5195", "#5f8f3f", "#b57a14", "#555555")
_SIZE, _DPI = (4.8, 3.5), 200  # inches, so that letters are readable on a phone


def report_page(
    comparison: FeatureComparison,
    table: LabelledTable,
    *,
    target: str,
    families: str,
    warnings: Sequence[str],
    versions: Mapping[str, str],
) -> str:
    """Write the page; ``families`` says where they are from."""
    if comparison.model == EMBEDDED_MODEL:
        said = f"{EMBEDDED_MODEL} is a demonstration model, and not for science. Name a larger one."
        warnings = [*warnings, said]
    sections = {
        "Scores": _scores(comparison),
        "Layers": _layers(comparison),
        "Predictions": _predictions(comparison, target),
        "The rows that are most wrong": _most_wrong(comparison, table),
        "What was compared, and how": _facts(comparison, table, target, families),
        "Use the model": _usage(comparison, table),
        "Versions": _pairs(versions),
    }
    page = Template((files("esm2_features") / "data" / "report.html").read_text("utf-8"))
    return page.substitute(
        title=_text(f"Features for {target}"),
        verdict=_text(comparison.verdict),
        advice=_text(comparison.layer_advice),
        warnings="\n".join(f'<p class="warning">{_text(said)}</p>' for said in warnings),
        sections="\n".join(
            f"<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>"
            for title, body in sections.items()
        ),
    )


# ------------------------------------------------------------------ sections


def _scores(comparison: FeatureComparison) -> str:
    results = comparison.results
    order = sorted(
        range(len(results["features"])),
        key=lambda i: (results["kind"][i] != "procedure", -np.nan_to_num(results["score"][i])),
    )
    rows = [
        (
            results["features"][i],
            f"{results['score'][i]:.3f}",
            f"{results['low'][i]:.3f} to {results['high'][i]:.3f}",
            results["kind"][i],
        )
        for i in order
    ]
    header = ("features", comparison.scoring, "95 % interval", "kind")
    shown, more = rows[:_SHOWN_ROWS], rows[_SHOWN_ROWS:]
    text = _table(header, shown, numbers=(1,))
    if more:
        text += (
            f"<details><summary>{len(more)} more</summary>{_table(header, more, (1,))}</details>"
        )
    procedures = (
        "Procedures come first: they choose the layer, the pooling and the baseline inside the "
        "training set, so their scores are fair. The best of many rows below is partly the best by "
        "chance."
    )
    best = max(results["score"], default=np.nan)
    alt = f"Scores with intervals of {len(rows)} sets of features; the highest is {best:.3f}."
    height = 0.9 + 0.3 * sum(kind != "embedding" for kind in results["kind"])
    figure = _figure(comparison.plot_scores, (_SIZE[0], height))
    return f'<p>{procedures}</p><div class="figures"><div>{text}</div>{_picture(figure, alt)}</div>'


def _layers(comparison: FeatureComparison) -> str:
    results = comparison.results
    embeddings = [i for i, kind in enumerate(results["kind"]) if kind == "embedding"]
    best = max(embeddings, key=lambda i: float(np.nan_to_num(results["score"][i])))
    alt = (
        f"{comparison.scoring} against the layer of {comparison.model}, a line for each pooling. "
        f"The highest is {results['features'][best]} with {results['score'][best]:.3f}."
    )
    caption = "The dashed line is the best baseline; bands are 95 % intervals."

    def draw(ax: Any) -> None:
        comparison.plot_layers(ax).xaxis.get_major_locator().set_params(integer=True)

    return _picture(_figure(draw), alt, caption)


def _predictions(comparison: FeatureComparison, target: str) -> str:
    known = np.flatnonzero(
        np.isfinite(comparison.predictions.reshape(len(comparison.targets), -1)).all(1)
    )
    y, p = comparison.targets[known], comparison.predictions[known]
    said = (
        "<p>All predictions are of models that did not see the row, nor its family."
        if comparison.groups is not None
        else "<p>All predictions are of models that did not see the row."
    )
    if comparison.classes is None:
        error = float(np.abs(y - p).mean())
        correlation = float(np.corrcoef(y, p)[0, 1]) if np.ptp(p) else 0.0
        alt = (
            f"Predicted against true {target} of {len(known):,} rows: correlation "
            f"{correlation:.2f}, mean absolute error {error:.3g}."
        )
        return (
            f"{said}</p>{_picture(_figure(lambda ax: _draw_scatter(ax, y, p, target)), alt, alt)}"
        )
    classes = comparison.classes
    curves = [1] if len(classes) == 2 else range(min(len(classes), _MOST_CURVES))
    areas = {
        i: float(roc_auc_score(y == classes[i], p[:, i]))
        for i in curves
        if 0 < (y == classes[i]).sum() < len(y)
    }
    shown = ", ".join(f"{classes[i]}: {area:.3f}" for i, area in areas.items())
    alt = f"ROC curves of all out-of-fold predictions together; areas: {shown}."
    picture = _picture(_figure(lambda ax: _draw_roc(ax, y, p, classes, areas)), alt, alt)
    counts = confusion_matrix(y, classes[p.argmax(1)], labels=classes)
    rows = [
        (f"true {_plain(str(name))}", *row, f"{row[i] / max(row.sum(), 1):.0%}")
        for i, (name, row) in enumerate(zip(classes, counts, strict=True))
    ]
    header = ("", *(f"predicted {_plain(str(name))}" for name in classes), "right")
    matrix = _table(header, rows, numbers=range(1, len(header)))
    return f'{said}</p><div class="figures">{picture}<div>{matrix}</div></div>'


def _most_wrong(comparison: FeatureComparison, table: LabelledTable) -> str:
    order, error, predicted = wrongness(comparison)
    what = "probability of the target" if comparison.classes is not None else "error"
    shares = 1 - error if comparison.classes is not None else error
    rows = [
        (
            shorten(table.ids[i]),
            table.places[i],
            _number(comparison.targets[i]),
            _number(predicted[i]),
            f"{shares[i]:.3g}",
            shorten(table.sequences[i], 40),
        )
        for i in order[:_WRONG_ROWS].tolist()
    ]
    note = "Look for wrong labels among them, and for kinds of sequences that the model lacks."
    header = ("id", "where", "target", "prediction", what, "sequence")
    return f"<p>{note}</p>{_table(header, rows, numbers=(4,))}"


def wrongness(
    comparison: FeatureComparison,
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[Any]]:
    """Order the rows that were predicted by their errors; give errors and predictions of all rows.

    The error of a class is the probability that was given to the others.
    """
    predictions, y = comparison.predictions, comparison.targets
    if comparison.classes is None:
        error, predicted = np.abs(y - predictions), predictions
    else:
        true = np.searchsorted(comparison.classes, y)
        error = 1 - predictions[np.arange(len(y)), true]
        predicted = comparison.classes[np.nan_to_num(predictions).argmax(1)]
    known = np.flatnonzero(np.isfinite(error))
    return known[np.argsort(-error[known], kind="stable")], error, predicted


def _facts(comparison: FeatureComparison, table: LabelledTable, target: str, families: str) -> str:
    n, y = len(table.ids), comparison.targets
    facts = {"Table": table.name, "Rows": f"{n:,} with a target in the column {target!r}"}
    if table.n_dropped:
        facts["Dropped"] = f"rows without a target: {table.n_dropped:,}"
    if comparison.classes is None:
        low, middle, high = np.quantile(y, [0, 0.5, 1])
        facts["Targets"] = f"numbers from {low:.4g} to {high:.4g}, median {middle:.4g}"
    else:
        shares = [(name, int((y == name).sum())) for name in comparison.classes]
        facts["Classes"] = ", ".join(f"{name}: {k:,} ({k / n:.0%})" for name, k in shares)
    facts["Families"] = families
    if comparison.groups is not None:
        sizes = np.bincount(comparison.groups)
        facts["Families"] = f"{len(sizes):,}, the largest of {sizes.max():,} rows; {families}"
    tests = [len(test) for _, test in comparison.splits]
    facts["Folds"] = (
        f"{len(tests)} outer folds, with test sets of {min(tests):,} to {max(tests):,} rows; "
        "layer, pooling, baseline and regularisation are chosen in inner folds"
    )
    facts["Score"] = f"{comparison.scoring}, the mean over outer folds"
    drawn = "rows" if comparison.groups is None else "whole families"
    facts["Intervals"] = f"95 %, from draws of {drawn}"
    facts["Model"] = comparison.model
    return _pairs(facts)


def _usage(comparison: FeatureComparison, table: LabelledTable) -> str:
    features = {name for name, _ in comparison.estimator["features"].transformer_list}
    kinds = {"esm2": f"embeddings of {comparison.model}", "baseline": "baseline features"}
    chosen = " and ".join(text for name, text in kinds.items() if name in features)
    gives = "probabilities" if comparison.classes is not None else "intervals"
    return (
        f"<p>The file model.skops holds the pipeline with the best inner score ({_text(chosen)}), "
        "fitted on all rows, and the training sequences. It predicts with "
        f"{gives}, and names the nearest training sequence:</p>\n"
        "<pre><code>esm2-features predict model.skops new.fasta -o predictions.csv</code></pre>\n"
        "<p>A table may take the place of new.fasta, with sequences in the column "
        f"{_text(repr(table.column))}. In Python:</p>\n"
        "<pre><code>from esm2_features.model_selection import load_model\n"
        'predictions = load_model("model.skops").predict(sequences)</code></pre>'
    )


# ------------------------------------------------------------------ pictures


def _figure(draw: Callable[[Any], object], size: tuple[float, float] = _SIZE) -> bytes:
    figure = import_optional("matplotlib.figure", extra="plot", purpose="Drawing a report")
    drawing = figure.Figure(figsize=size, layout="constrained")
    axes = drawing.add_subplot()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    stream = BytesIO()
    drawing.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def _draw_scatter(ax: Any, y: NDArray[Any], p: NDArray[Any], target: str) -> None:
    ends = [min(y.min(), p.min()), max(y.max(), p.max())]
    ax.plot(ends, ends, color="#999999", lw=1)
    ax.plot(y, p, "o", color=_COLOURS[0], ms=4, alpha=0.5, mew=0, rasterized=True)
    name = _plain(target)
    ax.set_xlabel(f"true {name}", parse_math=False)
    ax.set_ylabel(f"predicted {name}", parse_math=False)


def _draw_roc(
    ax: Any, y: NDArray[Any], p: NDArray[Any], classes: NDArray[Any], areas: Mapping[int, float]
) -> None:
    ax.plot([0, 1], [0, 1], color="#999999", lw=1)
    for i, area in areas.items():
        false, true, _ = roc_curve(y == classes[i], p[:, i])
        label = f"{_plain(str(classes[i]))} ({area:.3f})"
        ax.plot(false, true, color=_COLOURS[i % len(_COLOURS)], label=label)
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    for text in ax.legend(frameon=False, loc="lower right").get_texts():
        text.set_parse_math(False)


def _plain(text: str) -> str:
    return shorten(printable(text), 40)


# ------------------------------------------------------------------ pieces of the page


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shorten(str(value))


def _pairs(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>\n" for key, value in facts.items()
    )
    return f"<dl>\n{rows}</dl>"


def _table(
    header: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()
) -> str:
    right = set(numbers)

    def line(cells: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if i in right else ''}>{_text(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(header, 'th')}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def _picture(png: bytes, alt: str, caption: str = "") -> str:
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    data = b64encode(png).decode()
    return f'<figure><img alt="{_text(alt)}" src="data:image/png;base64,{data}">{below}</figure>'
