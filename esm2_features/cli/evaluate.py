"""`esm2-features evaluate`: from a table of sequences and targets to a report and a model."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import click

from esm2_features._files import atomic_path
from esm2_features._io.paths import Output, check_inputs
from esm2_features._io.predictions import write_table
from esm2_features.cli.console import examples, interruptible, naming_rows, print_done, row_check
from esm2_features.cli.options import (
    add_options,
    column_options,
    computing_options,
    input_argument,
    output_option,
    run_option,
)
from esm2_features.exceptions import InputError, import_optional

_FILES = ("report.html", "comparison.csv", "predictions.csv", "model.skops")
_INDEPENDENT = "none"
_MANY_ROWS = 1000
"""Rows from which it pays to start processes."""


@click.command(
    epilog=examples(
        "esm2-features evaluate peptides.csv --target toxic -o report/",
        "esm2-features evaluate assay.xlsx --sequence vh --target kd --group lineage -o report/",
    )
)
@input_argument("table", metavar="TABLE")
@output_option("REPORT", "Folder to write; created if it does not exist.")
@click.option(
    "--target", metavar="COL", required=True, help="Column to predict: numbers, or classes."
)
@column_options
@click.option(
    "--group",
    "--groups",
    "group",
    metavar="COL|none",
    help="Column of families, which are kept together, such as a protein or a lineage. By default "
    "they are found by sequence identity. none takes the rows as independent.",
)
@click.option(
    "--min-identity",
    type=click.FloatRange(0, 1, min_open=True),
    help="Sequence identity from which two sequences are one family.  [default: 0.4]",
)
@click.option(
    "--task",
    type=click.Choice(["auto", "classification", "regression"]),
    default="auto",
    help="auto takes text, two values, and up to 10 whole numbers for classes, and other numbers "
    "for a regression.",
)
@click.option("--cv", type=click.IntRange(min=2), default=5, help="Number of outer folds.")
@run_option("model")
@run_option("layers", default="all", help='Layers to compare: "all", or numbers such as 6,-1.')
@run_option("pooling", default="mean,max,std", help="Poolings to compare, with each layer.")
@add_options(
    [computing_options(too_long=("raise", "truncate", "window")), run_option("cache")],
)
@click.option(
    "--no-sequences",
    is_flag=True,
    help="Do not write the training sequences into the model. It then cannot name the nearest.",
)
@click.option("--force", is_flag=True, help="Replace REPORT if it exists.")
def evaluate(
    table: str,
    output: Path,
    target: str,
    column: str | None,
    id_column: str | None,
    group: str | None,
    min_identity: float | None,
    task: str,
    cv: int,
    layers: Any,
    pooling: Any,
    no_sequences: bool,
    force: bool,
    **options: Any,
) -> None:
    """Find out whether embeddings predict a column of a table, and how well.

    TABLE is CSV, TSV, Parquet or Excel, with a column of sequences and one of targets. Rows without
    a target are dropped. Layers and poolings of the model are compared with baselines, such as the
    composition, in the same folds, which keep families of related sequences together.

    REPORT is a folder of report.html, which opens in any browser; comparison.csv, all scores;
    predictions.csv, where each row is predicted by a model that saw neither the row nor its family;
    and model.skops, for `predict`.
    """
    from esm2_features._inputs.labelled import read_labelled_table
    from esm2_features._sklearn.embedding import ESM2Transformer

    start = time.perf_counter()
    for module in ("skops.io", "matplotlib.figure", "pandas"):
        import_optional(module, extra="evaluate", purpose="A report")
    if group is not None and min_identity is not None:
        raise click.UsageError("--group and --min-identity both say what families are. Give one.")
    check_inputs(output, table)
    folder = output.resolve()
    _check_folder(folder, force=force)
    transformer = ESM2Transformer(**options)
    engine = transformer._engine(layers=layers, pooling=pooling)
    data = read_labelled_table(
        table,
        target=target,
        column=column,
        id_column=id_column,
        group=None if group == _INDEPENDENT else group,
        task=task,
    )
    if data.n_dropped:
        click.echo(f"Rows without a target, which are dropped: {data.n_dropped}", err=True)
    places = [f"{data.name}: {place}" for place in data.places]
    with (
        interruptible(folder, engine.cache),
        naming_rows(places, row_check(engine.policy, data.sequences)),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        compared = _compare(data, transformer, group, min_identity, layers, pooling, task, cv)
    said = {str(w.message): w for w in caught if issubclass(w.category, UserWarning)}
    for warning in said.values():
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    with atomic_path(folder, folder=True, check=lambda: _check_folder(folder, force=force)) as part:
        _write(part, *compared, data, target, no_sequences, list(said))
    click.echo(compared[0].verdict)
    print_done(f"{len(data.ids)} rows -> {folder / _FILES[0]}", start)


def _check_folder(folder: Path, *, force: bool) -> None:
    """Raise InputError if the folder cannot be written, or holds what would be lost."""
    if not folder.exists():
        if not folder.parent.is_dir():
            raise InputError(f"There is no folder {folder.parent} to write to. Create it first.")
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, but a report is a folder. Choose another name.")
    found = sorted(item.name for item in folder.iterdir())
    odd = [name for name in found if name not in _FILES]
    if odd:
        raise InputError(
            f"{folder} holds other things than a report, such as {odd[0]}, so it is not replaced. "
            "Choose a folder that does not exist yet."
        )
    if found and not force:
        raise InputError(f"{folder} exists already. Choose another name, or replace it: --force.")


def _compare(
    data: Any,
    transformer: Any,
    group: str | None,
    min_identity: float | None,
    layers: Any,
    pooling: Any,
    task: Any,
    cv: int,
) -> tuple[Any, str]:
    """Compare features; give the comparison, and where families are from."""
    import pandas as pd

    from esm2_features.model_selection import cluster_sequences, compare_features

    groups: Any = data.groups
    families = f"from the column {group!r}"
    if group is None:
        identity = 0.4 if min_identity is None else min_identity
        groups = cluster_sequences(
            data.sequences, min_identity=identity, unknown=transformer.unknown
        )
        families = f"of sequences with an identity of at least {identity:.0%}"
    elif group == _INDEPENDENT:
        families = "none: rows were taken as independent"
    comparison = compare_features(
        pd.Series(data.sequences, name=data.column),
        data.targets,
        groups=groups,
        transformer=transformer,
        layers=layers,
        poolings=pooling,
        task=task,
        cv=cv,
        n_jobs=-1 if len(data.ids) > _MANY_ROWS else None,
    )
    return comparison, families


def _write(
    folder: Path,
    comparison: Any,
    families: str,
    data: Any,
    target: str,
    no_sequences: bool,
    caught: list[str],
) -> None:
    """Write the files of a report."""
    from esm2_features.model_selection.model_files import package_versions, save_model
    from esm2_features.model_selection.report import report_page, wrongness

    page, scores, predictions, model = (folder / name for name in _FILES)
    write_table(Output(scores, "csv"), comparison.results)
    fold = [""] * len(data.ids)
    for number, (_, test) in enumerate(comparison.splits):
        for row in test.tolist():
            fold[row] = str(number)
    _, _, predicted = wrongness(comparison)
    shares = {}
    if comparison.classes is not None:
        columns = zip(comparison.classes, comparison.predictions.T, strict=True)
        shares = {f"probability_{name}": values for name, values in columns}
    families_of = {} if comparison.groups is None else {"family": comparison.groups}
    known = [bool(number) for number in fold]
    columns_out = {
        "id": data.ids,
        "row": data.places,
        "target": comparison.targets,
        "prediction": [p if k else "" for p, k in zip(predicted.tolist(), known, strict=True)],
        **shares,
        "fold": fold,
        **families_of,
    }
    write_table(Output(predictions, "csv"), columns_out)
    is_regression = comparison.classes is None
    save_model(
        model,
        comparison.estimator,
        target=target,
        sequences=None if no_sequences else data.sequences,
        ids=None if no_sequences else data.ids,
        residuals=comparison.targets - comparison.predictions if is_regression else None,
        groups=comparison.groups if is_regression else None,
    )
    text = report_page(
        comparison,
        data,
        target=target,
        families=families,
        warnings=caught,
        versions=package_versions(),
    )
    page.write_text(text, encoding="utf-8")
