"""The figures of `scaling`: by length, by number, by size of the model, and the roofline.

Never here: measuring, tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._roofline import PEPTIDE, attainable
from benchmarks._scaling_tables import (
    Result,
    gflop_per_second,
    mix_of,
    of,
    peak_of,
    residues_per_second,
    seconds,
)

# Of Okabe and Ito, and told apart by colour-blind readers; markers and lines say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = {"float32": "-", "bfloat16": "--", "float16": ":"}


def plot(result: Result, path: Path) -> list[Path]:
    """Draw the four figures.

    Parameters
    ----------
    result : dict
        As `scaling` saves it.
    path : Path
        Folder; made if it is not there.

    Returns
    -------
    files : list of Path
        ``scaling_length.png``, ``scaling_count.png``, ``scaling_size.png``, ``roofline.png``.
    """
    path.mkdir(parents=True, exist_ok=True)
    figures = {
        "scaling_length": _plot_length,
        "scaling_count": _plot_count,
        "scaling_size": _plot_size,
        "roofline": _plot_roofline,
    }
    files = []
    for name, draw in figures.items():
        figure = draw(result)
        if figure is not None:
            files.append(path / f"{name}.png")
            figure.savefig(files[-1], dpi=150)
    return files


def _plot_length(result: Result) -> Any:
    figure, (left, right) = _panels(result, 1, 2)
    for axes, value, label in (
        (left, residues_per_second, "residues per second"),
        (right, gflop_per_second, "GFLOP/s"),
    ):
        for name, style, records in _series(result, "length"):
            _curve(axes, records, value, label=name, **style)
        _label(axes, "residues of a sequence", label, _xs(of(result, "length")))
    _legend(figure, left)
    return figure


def _plot_count(result: Result) -> Any:
    names = list(dict.fromkeys(record["series"] for record in of(result, "count")))
    if not names:  # no small model was asked for
        return None
    figure, panels = _panels(result, 1, len(names))
    for axes, series in zip(panels, names, strict=True):
        for name, style, records in _series(result, "count", series=series):
            _curve(axes, records, seconds, label=name, **style)
            _guide(axes, records)
        _label(axes, f"number of {series}", "seconds", _xs(of(result, "count", series=series)))
    panels[0].set_title("grey: in proportion to the number", fontsize=9)
    _legend(figure, panels[0])
    return figure


def _plot_size(result: Result) -> Any:
    figure, (left, right) = _panels(result, 1, 2)
    for axes, value, label in (
        (left, residues_per_second, "residues per second"),
        (right, gflop_per_second, "GFLOP/s"),
    ):
        for i, precision in enumerate(_precisions(result)):
            records = of(result, "size", precision=precision)
            style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": LINES[precision]}
            _curve(axes, records, value, label=precision, **style)
            if axes is right:
                roof = [peak_of(result, record) for record in sorted(records, key=_x)]
                axes.plot(_xs(records), roof, color=COLOURS[i], linewidth=1, alpha=0.5)
        _label(
            axes, f"parameters of the model (mix: {mix_of(result)})", label, _xs(of(result, "size"))
        )
    right.set_title("pale: peak of the matrix products", fontsize=9)
    _legend(figure, left)
    return figure


def _plot_roofline(result: Result) -> Any:
    models = list(result["peaks_GFLOP_s"])
    columns = min(2, len(models))
    figure, panels = _panels(result, math.ceil(len(models) / columns), columns)
    for axes, model in zip(panels, models, strict=False):
        for i, precision in enumerate(_precisions(result)):
            records = sorted(of(result, "roofline", model=model, precision=precision), key=_x)
            tokens = np.geomspace(1, max(record["x"] for record in records), 200)
            roof = [attainable(result, model, precision, n) for n in tokens]
            line = {"color": COLOURS[i], "linestyle": LINES[precision]}
            axes.plot(tokens, roof, label=f"{precision}, roof", **line)
            dots = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": "none"}
            _curve(axes, records, gflop_per_second, label=f"{precision}, measured", **dots)
        axes.set_title(model, fontsize=10)
        ticks = [4**k for k in range(8) if 4**k <= _xs(of(result, "roofline"))[-1]]
        _label(axes, f"tokens of a batch (peptides of {PEPTIDE})", "GFLOP/s", ticks)
    for axes in panels[len(models) :]:
        axes.set_visible(False)
    _legend(figure, panels[0])
    return figure


def _panels(result: Result, rows: int, columns: int) -> tuple[Any, Sequence[Any]]:
    """Make an empty figure that names its machine, and axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5, 4.6 * columns), 0.9 + 3.2 * rows), layout="constrained")
    machine = result["machine"]
    figure.suptitle(f"{machine['cpu']}, threads: {machine['threads']}", fontsize=9, color="0.3")
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def _series(
    result: Result, name: str, **wanted: object
) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Give each model its colour, and each precision its kind of line."""
    for i, model in enumerate(result["peaks_GFLOP_s"]):
        for precision in _precisions(result):
            records = of(result, name, model=model, precision=precision, **wanted)
            if records:
                style = {"color": COLOURS[i % 6], "marker": MARKERS[i % 6]}
                yield f"{model}, {precision}", {**style, "linestyle": LINES[precision]}, records


def _precisions(result: Result) -> list[str]:
    return list(dict.fromkeys(record["precision"] for record in result["points"]))


def _x(record: dict[str, Any]) -> int:
    x: int = record["x"]
    return x


def _xs(records: Iterable[dict[str, Any]]) -> list[int]:
    return sorted({record["x"] for record in records})


def _curve(
    axes: Any,
    records: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
    **style: Any,
) -> None:
    ordered = sorted(records, key=_x)
    axes.plot(
        [record["x"] for record in ordered],
        [value(record) for record in ordered],
        markersize=5,
        **style,
    )


def _guide(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Draw what seconds in proportion to the number would be, through the last point."""
    last = max(records, key=_x)
    at = np.array(_xs(records))
    axes.plot(at, seconds(last) * at / last["x"], color="0.6", linewidth=0.8, zorder=0)


def _label(axes: Any, x: str, y: str, ticks: Sequence[int]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [_short(tick) for tick in ticks], fontsize=8)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    # Curves that hardly rise would have no labelled tick within reach at powers of ten alone.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.12g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)


def _short(number: int) -> str:
    """Write a number as narrow as an axis with many of them needs it."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if number >= 10**5 and number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
