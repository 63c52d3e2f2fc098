"""The commands `embed`, `models`, `verify` and `demo`, and the group of all commands.

Exit codes: 0 done; 1 a difference (`verify`), damage (`cache verify`), a contradiction (`cache
import`) or a shard that was set aside (`embed`); 2 any other error; 130 interrupted. Results go to
standard output, messages to standard error.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from esm2_features._cache.reports import readable
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL, available_models
from esm2_features._environment import limit_openmp_spinning
from esm2_features._inputs.options import OPTIONS, PRECISIONS
from esm2_features._io.features import (
    FORMATS,
    H5_KEYS,
    Features,
    check_feature_ids,
    check_features_output,
    write_features,
)
from esm2_features._io.paths import check_inputs
from esm2_features.cli.arrays import attentions, contacts, logits, residues
from esm2_features.cli.cache import cache
from esm2_features.cli.console import (
    CommandError,
    Commands,
    examples,
    interruptible,
    naming_rows,
    print_done,
    row_check,
)
from esm2_features.cli.estimate import estimate, print_dry_run
from esm2_features.cli.evaluate import evaluate
from esm2_features.cli.mcp import mcp
from esm2_features.cli.mutants import mutants
from esm2_features.cli.options import (
    INPUT,
    PATH,
    add_options,
    callback_of,
    column_options,
    device_option,
    force_option,
    format_option,
    input_argument,
    output_option,
    parse_words,
    run_option,
    run_options,
)
from esm2_features.cli.predict import predict
from esm2_features.cli.serve import serve, token
from esm2_features.cli.shards import FILE_OPTIONS, SHARD_OPTIONS, check_arguments, embed_into_folder
from esm2_features.cli.variants import scan, score


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    epilog=examples("esm2-features embed proteins.fasta -o proteins.npz"),
)
@click.version_option(package_name="esm2-features", prog_name="esm2-features")
def main() -> None:
    """Compute features of protein sequences with ESM-2."""
    limit_openmp_spinning()


@main.command(
    epilog=examples(
        "esm2-features embed proteins.fasta.gz -o proteins.parquet",
        "zcat *.fasta.gz | esm2-features embed - -o all.npz --layers 0,-1 --pooling mean,max",
        "esm2-features embed proteins.fasta -o proteins.npz --endpoint http://host:8000",
        "esm2-features embed uniref50.fasta.zst vectors/ --dtype float16 --shard 0/8",
    )
)
@input_argument("inputs", metavar="IN... [OUT]", nargs=-1, required=True)
@output_option(
    "OUT",
    "One output: OUT.npz, OUT.parquet, OUT.csv, OUT.h5, or OUT.pt, which is a folder with one .pt "
    "for each sequence, as fair-esm's scripts/extract.py writes. Without -o, the last argument is "
    "a folder of shards.",
    required=False,
)
@run_options(*OPTIONS)
@format_option(FORMATS)
@force_option
@click.option(
    "--h5-keys",
    type=click.Choice(H5_KEYS),
    default="id",
    help="With OUT.h5: what a dataset is named by. id is UniProt's and ProtSpace's layout, hash "
    "(of the sequence) is biotrainer's; both have the attribute original_id.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what would be done: what the cache has, and in how many batches the rest would be "
    "computed. Computes and writes nothing.",
)
@column_options
@add_options(SHARD_OPTIONS.values())
@click.pass_context
def embed(
    context: click.Context, /, inputs: tuple[str, ...], output: Path | None, **options: Any
) -> None:
    """Embed the sequences of files.

    A file of sequences is FASTA, a table (CSV, TSV, Parquet, Excel), or a GenBank, UniProt, mmCIF
    or PDB file, also compressed. With -o, IN is one of them, or - for standard input. Input and
    options are checked before anything is computed, and OUT is written completely or not at all.

    Without -o, IN are such files, folders, or patterns such as 'data/*.fasta.gz', of any total
    size, and OUT is a folder of Parquet files, the shards. After an interruption, repeat the
    command: it computes what is missing. A record that is invalid, or a shard that cannot be read,
    is set aside, and the others are computed; the exit code is then 1. There is no cache unless you
    give --cache, because the folder keeps the results.
    """
    check_arguments(context, inputs, output)
    unused = FILE_OPTIONS if output is None else SHARD_OPTIONS
    options = {name: value for name, value in options.items() if name not in unused}
    if output is None:
        embed_into_folder(context, inputs, **options)
    else:
        _embed_file(inputs[0], output, **options)


@main.command(epilog=examples("esm2-features models"))
def models() -> None:
    """List the models that have a name.

    Sizes are those of the official files, and of the float32 weights in memory.
    """
    from esm2_features._checkpoints.download import locate

    line = "{:<20} {:>10} {:>6} {:>5} {:>9} {:>8}  {}".format
    click.echo(line("name", "parameters", "layers", "dim", "download", "memory", "on this machine"))
    for card in available_models():
        shape, weights = card.architecture, card.weights
        size, place = "included", "yes, with this library"
        if weights is not None:
            size, place = readable(weights.bytes), str(locate(card, weights) or "no")
        memory = readable(4 * shape.parameters)
        click.echo(line(card.name, card.parameters, shape.layers, shape.dim, size, memory, place))


@main.command(
    epilog=examples(
        "esm2-features verify",
        "esm2-features verify --model esm2_t6_8M_UR50D --precision float32,float16",
    )
)
@run_option("model", default=EMBEDDED_MODEL)
@click.option(
    "--sequences",
    metavar="FILE",
    type=INPUT,
    help="Sequences to compare, or - for standard input, besides a few that cover all letters, "
    "masks, and 1 to 1022 residues.",
)
@run_option(
    "precision",
    type=str,
    callback=callback_of(parse_words),
    metavar="WORD[,WORD...]",
    help=f"Arithmetic to compare: {', '.join(PRECISIONS)}.",
)
@device_option
def verify(model: str, sequences: str | None, precision: list[str], device: str) -> None:
    """Compare every layer with fair-esm's own network, on this machine.

    The standard is fair-esm's network in float64. It needs the package fair-esm: pip install
    "esm2-features[verify]". The exit code is 1 if this library's numbers are farther from it than
    is allowed.
    """
    from esm2_features._inputs.records import read_records
    from esm2_features._verify import verify as compare

    records, places = (None, []) if sequences is None else read_records(sequences)
    with naming_rows(places):
        report = compare(model, sequences=records, precisions=precision, device=device)
    click.echo(report)
    if not report.passed:
        raise CommandError("Numbers of this installation are farther off than is allowed.", 1)


@main.command(epilog=examples("esm2-features demo --output demo"))
@click.option(
    "--output",
    metavar="FOLDER",
    type=PATH,
    default="demo",
    help="Where to write the picture; created if it does not exist.",
)
@run_option("model", default=EMBEDDED_MODEL)
def demo(output: Path, model: str) -> None:
    """Tell toxins from hormones, and draw a map of them.

    It takes less than a minute with the model that ships with this library, and needs no network.
    """
    from esm2_features.cli.demo import run

    run(output, model=model, print_line=click.echo)


for command in (
    estimate,
    residues,
    logits,
    contacts,
    attentions,
    score,
    scan,
    mutants,
    evaluate,
    predict,
):
    main.add_command(command)
for command in (cache, serve, token, mcp):
    main.add_command(command)


def _embed_file(
    path: str,
    output: Path,
    *,
    kind: str | None,
    force: bool,
    dry_run: bool,
    column: str | None,
    id_column: str | None,
    h5_keys: str,
    **options: Any,
) -> None:
    """Run `embed IN -o OUT`."""
    from esm2_features._engine import Engine
    from esm2_features._inputs.records import read_records

    start = time.perf_counter()
    engine = Engine(verbose=True, **options)
    check_inputs(output, path)
    checked = check_features_output(output, format=kind, poolings=engine.poolings, force=force)
    with interruptible(checked.path, engine.cache):
        records, places = read_records(path, column=column, id_column=id_column)
        ids = [record.id for record in records]
        check_feature_ids(checked, ids)
        with naming_rows(places, row_check(engine.policy, records)):
            if dry_run:
                print_dry_run(engine, records, str(checked.path))
                return
            values = engine.embed(records)
    features = Features(
        ids=ids,
        labels=[record.description for record in records],
        values=values,
        names=engine.feature_names,
        layers=engine.layers,
        poolings=engine.poolings,
        sequences=[record.seq for record in records],
        h5_keys=h5_keys,
    )
    write_features(checked, features)
    n, d = values.shape
    computed = f"{engine.n_computed} of them computed"
    print_done(f"{n} sequences x {d} features, {computed} -> {checked.path}", start)
