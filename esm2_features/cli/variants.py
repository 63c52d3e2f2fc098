"""`esm2-features score` and `esm2-features scan`: variants of one protein."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._io.paths import atomic_output, check_inputs, check_output
from esm2_features._io.variants import COLUMNS, read_variant_file, write_scan, write_scores
from esm2_features.cli.console import examples, interruptible, naming_rows, print_done
from esm2_features.cli.options import (
    INPUT,
    METHODS,
    PATH,
    add_options,
    computing_options,
    force_option,
    force_plot_option,
    input_argument,
    offset_option,
    output_option,
    run_option,
)
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._engine import Engine
    from esm2_features._inputs.fasta import FastaRecord

_NOT_TRUNCATED = ("raise", "window")
"""What can be done with a long protein if none of its mutations may be lost."""

_id_option = click.option(
    "--id", "identifier", metavar="ID", help="Which record of PROTEIN to use, if it has several."
)
_run_options = add_options(
    [
        offset_option,
        run_option("model"),
        computing_options(too_long=_NOT_TRUNCATED),
        run_option("cache"),
    ]
)


@click.command(
    epilog=examples(
        "esm2-features score protein.fasta variants.csv -o scores.csv",
        "esm2-features score protein.fasta mutants.fasta -o scores.csv --method pseudo-perplexity",
    )
)
@click.argument("protein", metavar="PROTEIN", type=INPUT)
@input_argument("variants", metavar="VARIANTS")
@output_option("OUT.csv", "Where to write: all columns of VARIANTS, and score.")
@click.option(
    "--column",
    metavar="NAME",
    help=f"Column of variants in a table. By default the first of {', '.join(COLUMNS)} that "
    "the table has, or its only column.",
)
@_id_option
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default=METHODS[0],
    help="masked-marginals: one forward pass for each mutated position, which is masked. "
    "wildtype-marginals: one pass for all of them. pseudo-perplexity: one pass for each residue of "
    "each variant; the only method for insertions and deletions.",
)
@click.option(
    "--per-residue",
    is_flag=True,
    help="Write differences of means over the residues instead of sums, for insertions and "
    "deletions: a sum over fewer residues is higher for that alone.",
)
@_run_options
@force_option
def score(
    protein: str,
    variants: str,
    output: Path,
    column: str | None,
    identifier: str | None,
    method: str,
    per_residue: bool,
    offset: int,
    force: bool,
    **options: Any,
) -> None:
    """Score variants of a protein by their log-likelihood ratio to the wild type.

    PROTEIN is a FASTA file with the wild type, or another file of sequences. VARIANTS is a table
    (CSV, TSV, Parquet, Excel) with a column of variants, a text file with one variant per line, or
    a FASTA file with the sequences of mutants. Both may be compressed, and one of them may be - for
    standard input. A variant is a mutation such as A123G or p.Ala123Gly, several such as
    A123G:D42N, a sequence, or WT. Scores are in nats: the wild type has 0, and a variant
    that the model finds more likely has a higher score.
    """
    from esm2_features._engine import Engine
    from esm2_features._inputs.mutations import check_length, read_variants
    from esm2_features._variants import PSEUDO, score_variants

    start = time.perf_counter()
    if protein == variants == "-":
        raise click.UsageError(
            "PROTEIN and VARIANTS are both -, but standard input can be read only once. Give one "
            "of them as a file."
        )
    engine = Engine(verbose=True, **options)
    check_inputs(output, protein, variants)
    checked = check_output(output, formats=("csv",), force=force)
    with interruptible(checked.path, engine.cache):
        wildtype, _ = _read_wildtype(engine, protein, identifier)
        table = read_variant_file(variants, column=column)
        places = [f"{variants}, {position}" for position in table.positions]

        def check(row: int) -> None:
            rows, normalise = [table.variants[row]], engine.policy.normalise
            try:
                [found] = read_variants(rows, wildtype, offset=offset, normalise=normalise)
                if isinstance(found, str) and method != PSEUDO:
                    check_length(wildtype, found, index=0, given=rows[0])
            except InputError as error:  # it was the only row
                error.args = (str(error).replace("row 0", f"row {row}"),)
                raise

        with naming_rows(places, check):
            scores = score_variants(
                engine, wildtype, table.variants, method, offset=offset, per_residue=per_residue
            )
        write_scores(checked, table, scores.tolist())
    print_done(f"scores of {len(scores)} variants -> {checked.path}", start)


@click.command(epilog=examples("esm2-features scan protein.fasta -o scan.csv --plot scan.png"))
@input_argument("protein", metavar="PROTEIN")
@output_option("OUT.csv", "Where to write: columns variant, position, wildtype, mutant and score.")
@click.option("--plot", metavar="PNG", type=PATH, help="Also draw a heat map: the name of a .png.")
@_id_option
@click.option(
    "--method",
    type=click.Choice(METHODS[:2]),
    default=METHODS[0],
    help="masked-marginals: one forward pass for each position, which is masked. "
    "wildtype-marginals: one pass for all of them.",
)
@_run_options
@force_plot_option
def scan(
    protein: str,
    output: Path,
    plot: Path | None,
    identifier: str | None,
    method: str,
    offset: int,
    force: bool,
    **options: Any,
) -> None:
    """Score all single substitutions of a protein.

    PROTEIN is a FASTA file, or another file of sequences, or - for standard input. Scores are
    log-likelihood ratios to the wild type in nats, as those of `score`: 19 for each residue, and
    none where the wild type has none of the 20 canonical residues.
    """
    from esm2_features._engine import Engine
    from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
    from esm2_features._io.figures import check_picture_output, save_png, scan_figure
    from esm2_features._variants import scan_variants

    start = time.perf_counter()
    engine = Engine(verbose=True, **options)
    check_inputs(output, protein)
    checked = check_output(output, formats=("csv",), force=force)
    picture = None
    if plot is not None:
        check_inputs(plot, protein, called="The picture")
        picture = check_picture_output(plot, beside=checked)
    with interruptible(checked.path, engine.cache), ExitStack() as stack:
        wildtype, record = _read_wildtype(engine, protein, identifier)
        scores = scan_variants(engine, wildtype, method)
        if picture is not None:
            figure = scan_figure(scores, wildtype, offset=offset, title=record.description)
            save_png(figure, stack.enter_context(atomic_output(picture)))
        n = write_scan(checked, wildtype, CANONICAL_RESIDUES, scores.tolist(), offset=offset)
    drawn = "" if picture is None else f", drawn in {picture.path}"
    left_out = sum(residue not in CANONICAL_RESIDUES for residue in wildtype)
    if left_out:
        drawn += f", without {left_out} positions that hold none of the 20 residues"
    print_done(f"scores of {n} substitutions -> {checked.path}{drawn}", start)


def _read_wildtype(engine: Engine, path: str, identifier: str | None) -> tuple[str, FastaRecord]:
    """Read the protein: its normalised sequence, and its record in the file."""
    from esm2_features._inputs.records import read_records
    from esm2_features._variants import normalise_wildtype

    records, places = read_records(path)
    ids = [record.id for record in records]
    shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
    if identifier is None and len(records) > 1:
        raise InputError(
            f"{path} has {len(records)} records ({shown}), but variants are of one protein. Choose "
            "a record: --id."
        )
    if identifier is not None and identifier not in ids:
        raise InputError(
            f"{path} has no record with the id {identifier!r}, but {shown}. Choose one of these."
        )
    at = 0 if identifier is None else ids.index(identifier)
    with naming_rows(places[at:]):
        return normalise_wildtype(engine, records[at].seq), records[at]
