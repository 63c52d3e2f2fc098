"""How a result of `end_to_end` reads: shares of the time, tables, and a figure.

Never here: measuring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._ledger import FORWARD

GOAL = 0.05
"""Of the time, what is not the forward pass is meant to be less."""

Result = dict[str, Any]


def shares(result: Result) -> dict[str, float]:
    """Give each part's share of the time, the largest first; of several rounds, the median.

    Parameters
    ----------
    result : dict
        As `end_to_end` saves it.

    Returns
    -------
    shares : dict of str to float
        They add up to 1.
    """
    rounds = result["transform"]
    found = {
        part: float(np.median([run["parts"].get(part, 0.0) / run["seconds"] for run in rounds]))
        for part in dict.fromkeys(part for run in rounds for part in run["parts"])
    }
    total = sum(found.values())  # medians of several rounds do not add up by themselves
    return {part: found[part] / total for part in sorted(found, key=found.__getitem__)[::-1]}


def overhead(result: Result) -> float:
    """Share of the time that is not the forward pass."""
    return 1 - shares(result)[FORWARD]


def table(result: Result) -> str:
    """Write a result as Markdown.

    Parameters
    ----------
    result : dict
        As `end_to_end` saves it.

    Returns
    -------
    markdown : str
    """
    parts = [_shares_table(result), _cold_table(result)]
    if result["memory"]:
        parts.append(_memory_table(result))
    return "\n\n".join(parts) + "\n"


def _shares_table(result: Result) -> str:
    seconds = float(np.median([run["seconds"] for run in result["transform"]]))
    asked = result["arguments"]
    lines = [
        f"A `transform` of {asked['peptides']:,} new peptides of 5 to 50 residues by "
        f"{asked['model']}, with a cache: {seconds:.1f} s",
        "\n| part | share | seconds |\n|---|---:|---:|",
        *(
            f"| {part} | {share:.2%} | {share * seconds:.3f} |"
            for part, share in shares(result).items()
        ),
        f"\nEverything that is not the forward pass: {overhead(result):.2%} (goal: less than "
        f"{GOAL:.0%}), of which about "
        f"{max(run['wrapping'] / run['seconds'] for run in result['transform']):.2%} is the "
        "measurement itself.",
    ]
    return "\n".join(lines)


def _cold_table(result: Result) -> str:
    lines = [
        "From the start of a fresh process until 20 peptides are embedded with `mini`",
        "\n| what | median, s | range, s | torch is imported |\n|---|---:|---:|---|",
    ]
    for record in result["cold_starts"]:
        times = record["seconds"]
        lines.append(
            f"| {record['what']} | {np.median(times):.3f} | {min(times):.3f} to {max(times):.3f} "
            f"| {'yes' if record['torch'] else 'no'} |"
        )
    return "\n".join(lines)


def _memory_table(result: Result) -> str:
    counts = sorted({record["peptides"] for record in result["memory"]})
    lines = [
        "Peak memory above that of the warm process, without the array that was asked for, MB",
        f"\n| way | {' | '.join(f'{count:,} peptides' for count in counts)} |",
        f"|---|{'---:|' * len(counts)}",
    ]
    for way in _ways(result):
        extra = {r["peptides"]: r["peak"] - r["array"] for r in result["memory"] if r["way"] == way}
        lines.append(f"| {way} | {' | '.join(f'{extra[n] / 1e6:.1f}' for n in counts)} |")
    return "\n".join(lines)


def _ways(result: Result) -> list[str]:
    """List the ways whose memory was measured, in their order."""
    return list(dict.fromkeys(record["way"] for record in result["memory"]))


# Of Okabe and Ito, and told apart by colour-blind readers; markers say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")


def plot(result: Result, path: Path) -> Path:
    """Draw the three answers side by side.

    Parameters
    ----------
    result : dict
        As `end_to_end` saves it.
    path : Path
        Folder; made if it is not there.

    Returns
    -------
    file : Path
        ``end_to_end.png``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    machine = result["machine"]
    figure.suptitle(f"{machine['cpu']}, threads: {machine['threads']}", fontsize=9, color="0.3")
    left, middle, right = figure.subplots(1, 3)
    _draw_shares(left, result)
    _draw_cold_starts(middle, result)
    _draw_memory(right, result)
    path.mkdir(parents=True, exist_ok=True)
    file = path / "end_to_end.png"
    figure.savefig(file, dpi=150)
    return file


def _draw_shares(axes: Any, result: Result) -> None:
    """Without the forward pass, next to which the others could not be seen."""
    others = {part: 100 * share for part, share in shares(result).items() if part != FORWARD}
    bars = axes.barh(list(others), list(others.values()), color=COLOURS[0])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("share of the whole transform, %")
    axes.set_title(f"not the forward pass: {overhead(result):.1%}", fontsize=10)


def _draw_cold_starts(axes: Any, result: Result) -> None:
    records = result["cold_starts"]
    medians = [float(np.median(record["seconds"])) for record in records]
    colours = [COLOURS[1] if record["torch"] else COLOURS[0] for record in records]
    bars = axes.barh([record["what"] for record in records], medians, color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("seconds from the start of the process")
    axes.set_title("cold start (orange: torch is imported)", fontsize=10)


def _draw_memory(axes: Any, result: Result) -> None:
    for way, colour, marker in zip(_ways(result), COLOURS, MARKERS, strict=False):
        some = [record for record in result["memory"] if record["way"] == way]
        extra = [(record["peak"] - record["array"]) / 1e6 for record in some]
        axes.plot([r["peptides"] for r in some], extra, color=colour, marker=marker, label=way)
    counts = sorted({record["peptides"] for record in result["memory"]})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("peptides")
    axes.set_ylabel("peak memory without the array, MB")
    axes.set_title("memory", fontsize=10)
    axes.grid(visible=True, linewidth=0.4, alpha=0.5)
    if result["memory"]:
        axes.legend(fontsize=8, frameon=False)
