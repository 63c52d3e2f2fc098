"""`esm2-features mutants`: the sequences of mutants, from a table of mutations."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from esm2_features._io.paths import check_inputs, check_output
from esm2_features.cli.console import CommandError, examples, print_done, print_message
from esm2_features.cli.options import INPUT, force_option, input_argument, output_option
from esm2_features.exceptions import InputError

_WILDTYPES = re.compile("(wild_?type|wt|parent|reference)_?(aa_?)?(seq|sequence)?")
_PROTEINS = re.compile("(protein|pdb|uniprot|gene)(_?(id|name|accession|chain))?|wt_name")


@click.command(
    epilog=examples(
        "esm2-features mutants ddg.csv -o mutants.csv",
        "esm2-features mutants ddg.csv -o mutants.csv --wildtypes proteins.fasta --protein-column "
        "pdb_id",
    )
)
@input_argument("table", metavar="TABLE")
@output_option("OUT.csv", "Where to write: all columns of TABLE, and what the rows are.")
@click.option(
    "--column",
    metavar="NAME",
    help="Column of mutations. By default the one with a usual name, such as mutation, mutant or "
    "hgvs_pro.",
)
@click.option(
    "--wildtype-column",
    metavar="NAME",
    help="Column that holds the wild type of each row. By default the one with a usual name, such "
    "as wildtype_sequence.",
)
@click.option(
    "--wildtypes",
    metavar="FILE",
    type=INPUT,
    help="File of the wild types, such as FASTA: one for all rows, or one for each protein, by id.",
)
@click.option(
    "--protein-column",
    metavar="NAME",
    help="Column that names the protein of each row. By default the one with a usual name, such as "
    "protein_id or pdb_id.",
)
@click.option(
    "--offset",
    "offsets",
    multiple=True,
    metavar="N|PROTEIN=N",
    help="Number of the residue before the first one, for all proteins or for one: with 23, the "
    "first is residue 24. Can be given several times. By default it is found.",
)
@force_option
def mutants(
    table: str,
    output: Path,
    column: str | None,
    wildtype_column: str | None,
    wildtypes: str | None,
    protein_column: str | None,
    offsets: tuple[str, ...],
    force: bool,
) -> None:
    """Make the sequences of mutants from mutations.

    TABLE is CSV, TSV, Parquet or Excel. A mutation is such as A123G, A52aG (with an insertion code
    of a PDB file), A123G:D42N, p.Ala123Gly or WT. Numbers count from the first residue of the wild
    type; where they do not, as those of PDB files, the offset is found from the rows of each
    protein. Rows that do not fit, or whose position the rows do not tell, have no mutant: they are
    named, and the exit code is 1.

    OUT has the columns of TABLE, and wildtype_sequence, mutant_sequence, positions (counted from
    0), offset, status and problem.
    """
    from esm2_features._inputs.mutants import build_mutants
    from esm2_features._inputs.records import TABLES, open_told
    from esm2_features._inputs.tables import VARIANT_COLUMNS, find_column, open_table, read_rows
    from esm2_features._io.variants import write_rows

    start = time.perf_counter()
    offset = _parse_offsets(offsets)
    check_inputs(output, table, *([wildtypes] if wildtypes else []))
    checked = check_output(output, formats=("csv",), force=force)
    with (
        open_told(table, VARIANT_COLUMNS) as (kind, stream),
        open_table(stream, kind if kind in TABLES else "csv", table) as opened,
    ):
        places, rows = read_rows(opened)
    header = opened.header
    at = find_column(opened, column, VARIANT_COLUMNS, what="mutations", option="--column")
    proteins = _optional(header, protein_column, _PROTEINS, at)
    if wildtypes is None:
        what, option = "wild types", "--wildtype-column, or give a file of them: --wildtypes"
        wild = find_column(opened, wildtype_column, _WILDTYPES, what=what, option=option, beside=at)
        of_rows: Any = [row[wild] for row in rows]
    elif wildtype_column is not None:
        raise click.UsageError("--wildtypes and --wildtype-column both give wild types. Give one.")
    else:
        of_rows, is_one = _read_wildtypes(wildtypes)
        if not is_one:
            what, option = "proteins", "--protein-column"
            proteins = find_column(
                opened, protein_column, _PROTEINS, what=what, option=option, beside=at
            )
    names = None if proteins is None else [row[proteins] for row in rows]
    result = build_mutants([row[at] for row in rows], of_rows, names, offset=offset)
    result.rows = [f"{table}, {place}" for place in places]
    own = {
        "wildtype_sequence": result.wildtypes,
        "mutant_sequence": result.sequences,
        "positions": result.regions,
        "offset": result.offsets,
        "status": result.status,
        "problem": result.problems,
    }
    same = header.index("wildtype_sequence") if "wildtype_sequence" in header else None
    if wildtypes is None and same is not None:
        del own["wildtype_sequence"]
    taken = [name for name in own if name in header]
    if taken:
        raise InputError(
            f"{table} has a column {taken[0]!r} already, which would be there twice. Rename it."
        )
    columns = zip(*own.values(), strict=True)
    lines = ([*row, *values] for row, values in zip(rows, columns, strict=True))
    write_rows(checked, [*header, *own], lines)
    n = int(result.ok.sum())
    print_done(f"{n} mutants of {len(rows)} rows -> {checked.path}", start)
    if n < len(rows):
        print_message(str(result))
        raise CommandError(f"{len(rows) - n} rows have no mutant (see the column problem).", 1)


def _parse_offsets(words: tuple[str, ...]) -> int | dict[str, int] | None:
    found: dict[str, int] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        if re.fullmatch(r"[+-]?[0-9]+", number) is None:
            raise click.BadParameter(f"{word!r} is neither a number nor PROTEIN=NUMBER.")
        found[name] = int(number)
    if "" in found and len(words) > 1:
        raise click.BadParameter("Give one offset for all proteins, or PROTEIN=N for each.")
    return found.get("", found or None)


def _optional(
    header: list[str], wanted: str | None, known: re.Pattern[str], other: int
) -> int | None:
    """Find a column that need not be there, unless it is named."""
    from esm2_features._inputs.tables import matching_columns

    found = [at for at in matching_columns(header, wanted, known) if at != other]
    if wanted is not None and len(found) != 1:
        raise InputError(
            f"There is no column {wanted!r} among {', '.join(header)}. Name the column of proteins "
            "by --protein-column."
        )
    return found[0] if len(found) == 1 else None


def _read_wildtypes(path: str) -> tuple[Any, bool]:
    """Read wild types, and say whether it is one for all rows."""
    from esm2_features._inputs.records import read_records

    records = read_records(path).records
    return (records[0].seq, True) if len(records) == 1 else (records, False)
