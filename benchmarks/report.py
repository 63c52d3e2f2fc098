"""Tables of the README and of a page of the site, made of the results that are saved.

    python -m benchmarks.report
    python -m benchmarks.report --write

A result is a JSON file whose ``kind`` says which benchmark wrote it. A kind is shown by an entry in
`TABLES`, and stands in the README, or the page that `PAGES` names, between
``<!-- kind: begin -->`` and ``<!-- kind: end -->``.

Never here: measuring, drawing (plot.py).
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import RESULTS, machine_of, optional
from benchmarks.workloads import MIXES, SHAPES, TINY

README = Path(__file__).with_name("README.md")

Result = dict[str, Any]

_OURS = "esm2_features"
_OTHERS = {
    "fair-esm extract.py": ("fair-esm", "extract.py"),
    "fair-esm tuned": ("fair-esm", "tuned"),
    "transformers": ("transformers", "default"),
    "transformers tuned": ("transformers", "tuned"),
    "onnxruntime": ("onnxruntime", "tuned"),
    "openvino": ("openvino", "tuned"),
    "esm-cpp": ("esm-cpp", "default"),
    "esm-cpp int8": ("esm-cpp", "int8"),
}
"""Heads of columns, and the library and setting that each is about."""

_IN_FLOAT32 = ("fair-esm", "esm-cpp")


def read(folder: Path) -> dict[str, list[Result]]:
    """Read all results of a folder.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    results : dict of str to list of dict
        By kind, in the order of the files' names.
    """
    found: dict[str, list[Result]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found[result["kind"]].append(result)
    return dict(found)


# ------------------------------------------------------------------- compare


def in_order(results: Sequence[Result]) -> list[Result]:
    """Sort comparisons: small models first, mixes as they are listed."""
    models = [*TINY, *SHAPES]

    def place(result: Result) -> tuple[int, int]:
        given = result["arguments"]
        return models.index(given["model"]), MIXES.index(given["mix"])

    return sorted(results, key=place)


def comparisons(results: Sequence[Result]) -> str:
    """Show how this library compares: a table for each machine and precision.

    Parameters
    ----------
    results : sequence of dict
        Of kind ``compare``.

    Returns
    -------
    markdown : str
    """
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in in_order(results):
        for record in result["contenders"]:
            if record["library"] == _OURS:
                groups[machine_of(result), record["precision"]].append(result)
    return "\n\n".join(_comparison(*key, some) for key, some in groups.items())


def _comparison(machine: str, precision: str, results: Sequence[Result]) -> str:
    heads = [
        *("model", "mix", "residues/s"),
        *(f"vs {name}" for name in _OTHERS),
        *("share of peak", "memory, MB", "largest error", "error / spread"),
    ]
    rows = [_row(result, precision) for result in results]
    used = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [
        f'{precision}, {machine} ({_versions(results)}); "vs" is how many times as fast:',
        "",
        _markdown_row([heads[i] for i in used]),
        "|---|---|" + "---:|" * (len(used) - 2),
        *(_markdown_row([row[i] for i in used]) for row in rows),
    ]
    return "\n".join(lines)


def _row(result: Result, precision: str) -> list[str]:
    """Show our speed, how many times that of each other it is, and how exact it is."""
    ours = _find(result, _OURS, precision)
    assert ours is not None
    others = [_rival(result, library, precision, setting) for library, setting in _OTHERS.values()]
    return [
        *(result["arguments"]["model"], result["arguments"]["mix"]),
        f"{ours['residues_per_second']:,.0f}",
        *(f"{other['seconds'] / ours['seconds']:.2f}" if other else "" for other in others),
        f"{ours['peak_share']:.0%}",
        f"{ours['memory_MB']:,.0f}",
        optional(ours["max_abs_error"], ".1e"),
        optional(ours["relative_error"], ".1e"),
    ]


def _rival(result: Result, library: str, precision: str, setting: str) -> Result | None:
    """Find a peer at the same precision; some have float32 only, or integers."""
    return _find(result, library, "float32" if library in _IN_FLOAT32 else precision, setting)


def _find(result: Result, library: str, precision: str, setting: str = "") -> Result | None:
    wanted = (library, precision, setting)
    for record in result["contenders"]:
        if (record["library"], record["precision"], record["setting"]) == wanted:
            return record
    return None


def _versions(results: Sequence[Result]) -> str:
    """Name each version that took part."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for result in results:
        for name in ("torch", *result["arguments"]["peers"]):
            if version := result["machine"]["versions"].get(name):
                found[name][version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------- kinds


def _each(module: str) -> Callable[[Sequence[Result]], str]:
    """Show results one after the other, by the function ``table`` of the module that wrote them."""

    def show(results: Sequence[Result]) -> str:
        table = importlib.import_module(module).table
        return "\n\n".join(table(result).strip() for result in results)

    return show


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "compare": comparisons,
    "scaling": _each("benchmarks.scaling"),
    "end_to_end": _each("benchmarks.end_to_end"),
    "estimate": _each("benchmarks.estimate_error"),
    "simulate": _each("benchmarks.simulate"),
    "storage": _each("benchmarks.storage"),
}
"""From a kind to what makes Markdown of its results."""

_BILLION = Path(__file__).parents[1] / "docs" / "guide" / "billion.md"
PAGES = {"simulate": _BILLION, "storage": _BILLION}
"""Kinds that stand in another page than the README."""


def tables(results: dict[str, list[Result]]) -> dict[str, str]:
    """Make Markdown of all kinds of results that can be shown."""
    return {kind: TABLES[kind](some) for kind, some in results.items() if kind in TABLES}


def insert(text: str, kind: str, markdown: str) -> str:
    r"""Put a table in the place of the one before.

    Parameters
    ----------
    text : str
        With the two marks of this kind.
    kind, markdown : str

    Returns
    -------
    text : str

    Raises
    ------
    ValueError
        If the marks are not there, once.

    Examples
    --------
    >>> insert("<!-- x: begin --> old <!-- x: end -->", "x", "new")
    '<!-- x: begin -->\nnew\n<!-- x: end -->'
    """
    begin, end = f"<!-- {kind}: begin -->", f"<!-- {kind}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    changed, places = pattern.subn(lambda _: f"{begin}\n{markdown}\n{end}", text)
    if places != 1:
        raise ValueError(f"{begin} ... {end} stands {places} times in the text, instead of once.")
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables, or write them into the README."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--write", action="store_true", help="change the README and the page")
    given = parser.parse_args(arguments)
    found = tables(read(given.results))
    if not given.write:
        print("\n\n".join(found.values()))
        return
    places: dict[Path, dict[str, str]] = defaultdict(dict)
    for kind, markdown in found.items():
        own_page = PAGES.get(kind) if given.readme == README else None
        places[own_page or given.readme][kind] = markdown
    for path, shown in places.items():
        text = path.read_text(encoding="utf-8")
        for kind, markdown in shown.items():
            try:
                text = insert(text, kind, markdown)
            except ValueError as error:
                sys.exit(f"{path}: {error}")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
