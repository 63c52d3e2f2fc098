"""How a result of `scaling` reads: what is picked and computed of its records, and its tables.

Never here: measuring, drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks._roofline import attainable

Result = dict[str, Any]


def of(result: Result, figure: str, **wanted: object) -> list[dict[str, Any]]:
    """Pick the records of a figure, and of a model, precision or series if asked."""
    return [
        record
        for record in result["points"]
        if record["figure"] == figure and all(record[name] == wanted[name] for name in wanted)
    ]


def residues_per_second(record: dict[str, Any]) -> float:
    """Give the residues that are embedded in a second, of the median round."""
    return record["residues"] / float(np.median(record["seconds"]))


def gflop_per_second(record: dict[str, Any]) -> float:
    """Give what the products of the network reach, of the median round."""
    return record["gflop"] / float(np.median(record["seconds"]))


def seconds(record: dict[str, Any]) -> float:
    """Give the time of the median round."""
    return float(np.median(record["seconds"]))


def peak_of(result: Result, record: dict[str, Any]) -> float:
    """Give what the matrix products of a record's model reach by themselves, in GFLOP/s."""
    peak: float = result["peaks_GFLOP_s"][record["model"]][record["precision"]]
    return peak


def mix_of(result: Result) -> str:
    """Name the mix of sequences that models of all sizes got."""
    mix: str = of(result, "size")[0]["series"]
    return mix


def table(result: Result) -> str:
    """Write a result as Markdown.

    Parameters
    ----------
    result : dict
        As `scaling` saves it.

    Returns
    -------
    markdown : str
    """
    length, count, roofline = (of(result, name) for name in ("length", "count", "roofline"))
    parts = [
        _pivot("Residues per second, by length", length, residues_per_second, "{:,.0f}"),
        _pivot("GFLOP/s, by length", length, gflop_per_second, "{:.1f}"),
    ]
    for series in dict.fromkeys(record["series"] for record in count):
        some = of(result, "count", series=series)
        parts.append(_pivot(f"Seconds, by number of {series}", some, seconds, "{:.3g}"))
    parts += [
        _size_table(result),
        _pivot("GFLOP/s, by tokens of a batch", roofline, gflop_per_second, "{:.1f}"),
        _attainable_table(result),
    ]
    return "\n\n".join(parts) + "\n"


def _pivot(
    title: str,
    records: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
    form: str,
) -> str:
    """Write a row for each model and precision, a column for each x."""
    columns = sorted({record["x"] for record in records})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for record in records:
        row = rows.setdefault((record["model"], record["precision"]), {})
        row[record["x"]] = form.format(value(record))
    return _markdown(
        title,
        ["model", "precision", *(f"{x:,}" for x in columns)],
        ([*name, *(row.get(x, "") for x in columns)] for name, row in rows.items()),
    )


def _size_table(result: Result) -> str:
    return _markdown(
        f"One mix ({mix_of(result)}), by size of the model",
        ["model", "precision", "parameters", "residues/s", "GFLOP/s", "of the products' peak"],
        (
            [
                *(record["model"], record["precision"], f"{record['x'] / 1e6:.1f} M"),
                *(f"{residues_per_second(record):,.0f}", f"{gflop_per_second(record):.1f}"),
                f"{gflop_per_second(record) / peak_of(result, record):.0%}",
            ]
            for record in of(result, "size")
        ),
    )


def _attainable_table(result: Result) -> str:
    records = of(result, "roofline")
    title = (
        f"GFLOP/s that the roofline allows (memory: {result['bandwidth_GB_s']:.1f} GB/s), by "
        "tokens of a batch"
    )
    return _pivot(title, records, lambda record: _roof_over(result, record), "{:.1f}")


def _roof_over(result: Result, record: dict[str, Any]) -> float:
    return attainable(result, record["model"], record["precision"], record["x"])


def _markdown(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table whose first two columns are words, and the others numbers."""
    rule = "|---|---|" + "---:|" * (len(heads) - 2)
    lines = [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
    return f"{title}\n\n" + "\n".join(lines)
