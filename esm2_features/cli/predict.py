"""`esm2-features predict`: predictions of a saved model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._io.paths import check_inputs
from esm2_features._io.predictions import check_table_output, write_table
from esm2_features.cli.console import examples, naming_rows, print_done, print_message, row_check
from esm2_features.cli.options import (
    INPUT,
    column_options,
    force_option,
    input_argument,
    output_option,
    run_option,
)
from esm2_features.exceptions import InputError, MissingDependencyError, import_optional

if TYPE_CHECKING:
    from esm2_features._inputs.fasta import FastaRecord
    from esm2_features.model_selection import SavedModel


@click.command(
    epilog=examples(
        "esm2-features predict report/model.skops proteins.fasta -o predictions.csv",
        "esm2-features predict model.skops new.xlsx --sequence peptide -o new.parquet",
    )
)
@click.argument("model_file", metavar="MODEL", type=INPUT)
@input_argument("inputs", metavar="IN")
@output_option("OUT", "Where to write: OUT.csv, OUT.tsv, OUT.parquet, or - for standard output.")
@column_options
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    help="Of numbers: the fraction of new families that the intervals from low to high hold.",
)
@run_option(
    "model", show_default=False, help="Path of the checkpoint, if it is elsewhere than it was."
)
@run_option("device", show_default=False, help="Device, if it is another than in the training.")
@run_option("cache", show_default=False, help="Cache, if it is another than in the training.")
@click.option(
    "--trust",
    "trusted",
    metavar="TYPE",
    multiple=True,
    help="A type that MODEL holds and that may do harm; an error names it. Trust files of people "
    "that you know. Can be given several times.",
)
@force_option
@click.pass_context
def predict(
    context: click.Context,
    /,
    model_file: str,
    inputs: str,
    output: Path,
    column: str | None,
    id_column: str | None,
    coverage: float,
    trusted: tuple[str, ...],
    force: bool,
    **parameters: Any,
) -> None:
    """Predict with a model that `evaluate` or save_model wrote.

    IN is a file of sequences: FASTA, a table (CSV, TSV, Parquet, Excel), or a GenBank, UniProt,
    mmCIF or PDB file, also compressed, or - for standard input. In a table, the column of sequences
    is that of --sequence, or the one that has the name of the column of the training, or a usual
    name.

    OUT has one row for each sequence: id, prediction, and for classes their probabilities, for
    numbers the ends of an interval (low, high); then the identity to the nearest training sequence,
    and its id. A prediction that is far from all training sequences deserves less trust.
    """
    from esm2_features._inputs.records import read_records
    from esm2_features.model_selection import load_model

    start = time.perf_counter()
    check_inputs(output, model_file, inputs)
    checked = check_table_output(output, force=force)
    is_default = click.core.ParameterSource.DEFAULT
    given = {n for n in context.params if context.get_parameter_source(n) != is_default}
    changed = {name: value for name, value in parameters.items() if name in given}
    saved = load_model(model_file, parameters=changed, trusted=trusted)
    if "coverage" in given and saved.residuals is None:
        raise click.UsageError(
            f"--coverage is of intervals, for which {model_file} has no residuals. Leave it out."
        )
    columns = saved.columns or []
    if len(columns) > 1:
        raise InputError(
            f"{model_file} was trained with the columns {', '.join(columns)}, but this command "
            "reads one column of sequences. Use load_model and predict in Python."
        )
    records, places = read_records(
        inputs, column=column, id_column=id_column, usual_column=next(iter(columns), None)
    )
    neighbours = _can_find_neighbours(saved)

    with naming_rows(places, *_checks(saved, records)):
        found = saved.predict(records, coverage=coverage, neighbours=neighbours)
    write_table(checked, {"id": [record.id for record in records], **found})
    target = f" of {saved.target}" if saved.target else ""
    shown = "standard output" if checked is None else checked.path
    print_done(f"{len(records)} predictions{target} -> {shown}", start)


def _checks(saved: SavedModel, records: list[FastaRecord]) -> Iterator[Callable[[int], object]]:
    """Give the check of single rows."""
    from esm2_features.model_selection.model_files import find_transformers

    for _, transformer in find_transformers(saved.estimator):
        yield row_check(transformer._engine().policy, records)
        return


def _can_find_neighbours(saved: SavedModel) -> bool:
    """Whether to look for the nearest training sequences; if not, say why."""
    left_out = "the columns identity and nearest are left out."
    if saved.sequences is None:
        print_message(f"The model does not hold its training sequences, so {left_out}")
        return False
    try:
        for module in ("parasail", "pyopal"):
            import_optional(module, extra="families", purpose="Finding the nearest sequence")
    except MissingDependencyError as error:
        print_message(f"{error} Until then, {left_out}")
        return False
    return True
