"""Figures of contact maps and of scans of single substitutions.

They are made without pyplot, so there is no window and no global state.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._io.paths import Output, check_nesting, check_output
from esm2_features.exceptions import import_optional, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESIDUES_BY_PROPERTY = ("GAVLIMP", "FWY", "STCNQ", "KRH", "DE")
"""Aliphatic (with glycine and proline), aromatic, polar, positive, negative."""

_BLUES = ("#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
_GREY = "#555555"
_DPI, _MOST_DPI = 150, 600

_PER_ROW = 75
"""Most positions in one row of a scan; rows have about the same length."""

# Sizes of a scan in inches, so that letters fit into their cells, whatever the length.
_CELL = 0.135
_LEFT, _RIGHT, _TOP, _BELOW = 0.5, 0.25, 0.95, 0.48
_NARROWEST = 5.6


def check_picture_output(path: Path, *, beside: Output, is_folder: bool = False) -> Output:
    """Check, before anything is computed, that pictures can be drawn and written."""
    import_optional("matplotlib.figure", extra="plot", purpose="Drawing")
    check_nesting(path, beside.path)
    return check_output(
        path,
        formats=("png",),
        format="png" if is_folder else None,
        force=beside.force,
        is_folder=is_folder,
    )


def save_png(figure: Figure, path: Path) -> None:
    with path.open("xb") as file:
        figure.savefig(file, format="png", dpi="figure")


# ------------------------------------------------------------------ contacts


def contact_figure(contacts: NDArray[np.float32], *, title: str) -> Figure:
    """Draw a contact map; residue 1 is at the top left, as in the figures of fair-esm."""
    residues = len(contacts)
    width, height, side = 6.2, 5.6, 4.65
    # At least one pixel for each residue, or single contacts of long proteins would fade.
    dpi = min(max(_DPI, math.ceil(residues / side)), _MOST_DPI)
    figure = _figure(width, height, dpi)
    colors: Any = import_optional("matplotlib.colors", extra="plot", purpose="Drawing")
    axes = figure.add_axes((0.115, 0.085, side / width, side / height))
    image = axes.imshow(
        contacts,
        interpolation="nearest" if residues / side <= _MOST_DPI else "antialiased",
        cmap=colors.LinearSegmentedColormap.from_list("contacts", _BLUES),
        vmin=0,
        vmax=1,
        extent=(0.5, residues + 0.5, residues + 0.5, 0.5),
    )
    figure.text(0.02, 0.945, shorten(title, 60), fontsize=11, weight="bold", parse_math=False)
    ticks = _round_ticks(1, residues, most=8)
    axes.set(xticks=ticks, yticks=ticks, xlabel="residue", ylabel="residue")
    beside = figure.add_axes((0.885, 0.085, 0.025, 0.83))
    figure.colorbar(image, cax=beside, label="contact probability")
    for part in (axes, beside):
        _style_axes(part)
    return figure


# ------------------------------------------------------------------ scans


def scan_figure(
    scores: NDArray[np.float64], wildtype: str, *, offset: int = 0, title: str
) -> Figure:
    """Draw the scores of all single substitutions of a protein."""
    length, order = len(wildtype), "".join(RESIDUES_BY_PROPERTY)
    n_rows = math.ceil(length / _PER_ROW)
    per_row = math.ceil(length / n_rows)
    width = max(_NARROWEST, _LEFT + per_row * _CELL + _RIGHT)
    high = len(order) * _CELL
    height = _TOP + n_rows * (high + _BELOW)
    figure = _figure(width, height, _DPI)
    matplotlib: Any = import_optional("matplotlib", extra="plot", purpose="Drawing")
    # Red for less likely than the wild type, and blue for more likely.
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="#bbbbbb")

    # (20, L), by property. At an X, ratios cannot be compared with those of other positions.
    values = scores[:, [CANONICAL_RESIDUES.index(letter) for letter in order]].T
    is_odd = np.array([letter not in order for letter in wildtype])
    shown = np.ma.array(values, mask=~np.isfinite(values) | is_odd)
    largest = float(np.abs(shown).max()) if shown.count() else 0.0
    style = {"cmap": colours, "vmin": -(largest or 1.0), "vmax": largest or 1.0}
    for row in range(n_rows):
        start, stop = row * per_row, min((row + 1) * per_row, length)
        top = height - _TOP - row * (high + _BELOW)
        axes = figure.add_axes(
            (_LEFT / width, (top - high) / height, (stop - start) * _CELL / width, high / height)
        )
        image = axes.imshow(shown[:, start:stop], aspect="auto", interpolation="nearest", **style)
        letters = wildtype[start:stop]
        dots = [(x, order.index(letter)) for x, letter in enumerate(letters) if letter in order]
        if dots:  # an X has no row
            x, y = zip(*dots, strict=True)
            axes.scatter(x, y, s=5, color="#222222", linewidths=0)
        _label_scan(axes, letters, start + 1 + offset, order)

    figure.text(
        (_LEFT - 0.3) / width,
        1 - 0.28 / height,
        shorten(title, round(width * 8)),
        fontsize=11,
        weight="bold",
        parse_math=False,
    )
    bar_axes = figure.add_axes(((_LEFT) / width, 1 - 0.56 / height, 2.0 / width, 0.12 / height))
    figure.colorbar(image, cax=bar_axes, orientation="horizontal")
    bar_axes.text(
        1.06,
        0.5,
        "log-likelihood ratio to the wild type (nats)\nrows: residue in its place; dots: wild type",
        transform=bar_axes.transAxes,
        va="center",
        linespacing=1.4,
        fontsize=8,
        color=_GREY,
    )
    bar_axes.tick_params(pad=1)
    _style_axes(bar_axes)
    return figure


def _label_scan(axes: Any, wildtype: str, first: int, order: str) -> None:
    """Write wild-type letters and residue numbers below, and mutant letters at the side."""
    length = len(wildtype)
    # The first number, and every tenth that is not too close to it.
    numbered = {first, *(n for n in range(first + 4, first + length) if n % 10 == 0)}
    axes.set_xticks(
        range(length),
        [
            f"{letter}\n{first + x}" if first + x in numbered else letter
            for x, letter in enumerate(wildtype)
        ],
    )
    axes.set_yticks(range(len(order)), list(order))
    axes.tick_params(length=0, pad=2, labelsize=7)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(family="monospace", linespacing=1.25)
    edge = -0.5
    for group in RESIDUES_BY_PROPERTY[:-1]:
        edge += len(group)
        axes.axhline(edge, color="white", linewidth=1.4)
    axes.spines[:].set_visible(False)


# ------------------------------------------------------------------ for both


def _figure(width: float, height: float, dpi: int) -> Figure:
    module: Any = import_optional("matplotlib.figure", extra="plot", purpose="Drawing")
    figure: Figure = module.Figure(figsize=(width, height), dpi=dpi)
    return figure


def _style_axes(axes: Any) -> None:
    axes.tick_params(labelsize=8, color="#aaaaaa", labelcolor=_GREY)
    axes.spines[:].set_color("#aaaaaa")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=_GREY)


def _round_ticks(first: int, last: int, *, most: int) -> list[int]:
    """Choose numbers for an axis: the first one, and multiples of a round step."""
    steps = (k * 10**power for power in range(9) for k in (1, 2, 5))
    step = next(step for step in steps if (last - first) / step <= most)
    return [first, *(n for n in range(step, last + 1, step) if n - first > step / 2)]
