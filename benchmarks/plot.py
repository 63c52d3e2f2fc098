"""Pictures of saved comparisons: residues per second of every contender.

    python -m benchmarks.plot

There is one picture for each device and mix of sequences, with a panel for each model. Each panel
has a scale of its own, from 0: a small model is a hundred times as fast as a large one.

Never here: measuring; pictures of other benchmarks, which they draw themselves.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.compare import RESULTS, file_stem, machine_of
from benchmarks.report import in_order, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = dict[str, Any]

# Of Okabe and Ito, and told apart by colour-blind readers; names stand next to the bars as well.
_COLOURS = {
    "esm2_features": "#D55E00",
    "fair-esm": "#0072B2",
    "transformers": "#56B4E9",
    "onnxruntime": "#009E73",
    "openvino": "#CC79A7",
    "esm-cpp": "#F0E442",
}
_HATCHES = {"float32": "", "bfloat16": "///", "float16": "..."}
_PANEL_INCHES = 3.0
_BAR_INCHES = 0.27


def contenders_of(results: Sequence[Result]) -> list[Result]:
    """List all contenders of some results once, by precision and then as in the tables."""
    found: dict[str, Result] = {}
    for result in results:
        for record in result["contenders"]:
            found.setdefault(record["name"], record)
    return sorted(found.values(), key=lambda record: list(_HATCHES).index(record["precision"]))


def draw(results: Sequence[Result]) -> Figure:
    """Draw the comparisons of one mix on one device, a panel for each model.

    Parameters
    ----------
    results : sequence of dict
        Of kind ``compare``.

    Returns
    -------
    figure : Figure
    """
    results = in_order(results)
    contenders = contenders_of(results)
    height = 1.5 + _BAR_INCHES * len(contenders)
    figure = Figure(figsize=(2.6 + _PANEL_INCHES * len(results), height), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, result in zip(panels, results, strict=True):
        _draw_panel(panel, result, contenders)
    panels[0].set_yticks(range(len(contenders)), [record["name"] for record in contenders])
    panels[0].invert_yaxis()
    given = results[0]["arguments"]
    figure.suptitle(f"Embedding the {given['mix']} mix on {machine_of(results[0])}", fontsize=11)
    figure.supxlabel("residues per second: median and quartiles of the rounds", fontsize=9)
    return figure


def _draw_panel(panel: Axes, result: Result, contenders: Sequence[Result]) -> None:
    found = {record["name"]: record for record in result["contenders"]}
    fastest = max(record["quartiles"][1] for record in found.values())
    for place, contender in enumerate(contenders):
        record = found.get(contender["name"])
        if record is None:
            panel.text(0, place, " not measured", va="center", fontsize=8, color="#777777")
            continue
        median, (low, high) = record["residues_per_second"], record["quartiles"]
        panel.barh(
            place,
            median,
            xerr=[[max(median - low, 0)], [max(high - median, 0)]],
            color=_COLOURS[record["library"]],
            hatch=_HATCHES[record["precision"]],
            edgecolor="white",
            linewidth=0,
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )
        panel.text(high + 0.02 * fastest, place, f"{median:,.0f}", va="center", fontsize=8)
    panel.set_xlim(0, 1.25 * fastest)  # room for the numbers
    panel.set_title(result["arguments"]["model"], fontsize=10)
    panel.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    panel.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
    panel.tick_params(labelsize=8)
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right"]].set_visible(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw all comparisons of a folder into it, and say where."""
    parser = argparse.ArgumentParser(prog="benchmarks.plot", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    given = parser.parse_args(arguments)
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in read(given.results).get("compare", []):
        groups[file_stem(result), result["arguments"]["mix"]].append(result)
    for (stem, mix), some in groups.items():
        file = given.results / f"{stem}_{mix}.png"
        draw(some).savefig(file, dpi=150)
        print(file)


if __name__ == "__main__":
    main()
