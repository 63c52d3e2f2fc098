"""The command line: parse, one call, write.

Exit codes: 0 done; 1 `verify` found a difference, `cache verify` damage, `cache import` vectors
that contradict, or `embed` set shards aside; 2 anything else that is reported (an input, an
option, a checkpoint, memory); 130 interrupted.
Results go to standard output, everything that is said about them to standard error.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._cache.reports import readable
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL, available_models
from esm2_features._environment import limit_openmp_spinning
from esm2_features._inference.remote.endpoint import TOKEN_VARIABLE
from esm2_features._inputs.options import CACHE_DTYPES, POOLINGS, PRECISIONS, STORES, TOO_LONG
from esm2_features._io.features import FORMATS, Features, prepare, write
from esm2_features._io.paths import check_inputs
from esm2_features.cli.arrays import attentions, contacts, logits, residues
from esm2_features.cli.cache import cache
from esm2_features.cli.console import (
    CommandError,
    Commands,
    examples,
    interruptible,
    kept_in,
    naming,
    records_called,
)
from esm2_features.cli.estimate import estimate, show_plan
from esm2_features.cli.options import (
    MODEL_HELP,
    cache_option,
    device_option,
    force_option,
    format_option,
    layers_of,
    model_option,
    output_option,
    region_of,
    run_options,
    words_of,
)
from esm2_features.cli.serve import serve, token
from esm2_features.cli.shards import SHARD_OPTIONS, embed_into_folder, shard_options, split
from esm2_features.cli.variants import scan, score

if TYPE_CHECKING:
    from esm2_features._checkpoints.catalogue import ModelCard

_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}

# ------------------------------------------------------------------ commands


@click.group(
    cls=Commands,
    context_settings=_SETTINGS,
    epilog=examples("esm2-features embed proteins.fasta -o proteins.npz"),
)
@click.version_option(package_name="esm2-features", prog_name="esm2-features")
def main() -> None:
    """Protein sequences in, ESM-2 features out."""
    limit_openmp_spinning()


@main.command(
    epilog=examples(
        "esm2-features embed proteins.fasta.gz -o proteins.parquet",
        "zcat *.fasta.gz | esm2-features embed - -o all.npz --layers 0,-1 --pooling mean,max",
        "esm2-features embed proteins.fasta -o proteins.npz --endpoint http://host:8000",
        "esm2-features embed uniref50.fasta.zst vectors/ --dtype float16 --shard 0/8",
    )
)
@click.argument("inputs", metavar="IN... [OUT]", nargs=-1, required=True)
@output_option(
    "OUT",
    "One file: OUT.npz, OUT.parquet, OUT.csv, or OUT.pt, which is a folder of one "
    ".pt for each sequence, as fair-esm's scripts/extract.py writes. Without -o, the last argument "
    "is a folder of shards.",
    required=False,
)
@model_option
@click.option(
    "--layers",
    callback=layers_of,
    metavar="N[,N...]|all",
    default="-1",
    help="Representations to give. 0 is the embedding, negatives count from the end; several "
    "are concatenated.",
)
@click.option(
    "--pooling",
    callback=words_of,
    metavar="WORD[,WORD...]|all",
    default="mean",
    help=f"How residues become one vector: {', '.join(POOLINGS)}, which are all; or parti, a mean "
    "that weights residues by PageRank over the attention maps, and takes time and memory for "
    "these. Several are concatenated.",
)
@click.option(
    "--region",
    callback=region_of,
    metavar="START:STOP",
    default=None,
    help="Pool over a part of every sequence, in the context of all of it; counted from 0, as "
    "sequence[START:STOP].",
)
@run_options(too_long=TOO_LONG)
@cache_option
@click.option(
    "--cache-dtype",
    type=click.Choice(CACHE_DTYPES),
    default="float32",
    help="What they are kept in; float16 halves the cache and rounds the features.",
)
@click.option(
    "--store",
    type=click.Choice(STORES),
    default="requested",
    help="Keep the layers and poolings that are asked for, or all that the model has.",
)
@click.option(
    "--endpoint",
    metavar="URL",
    default=None,
    help="Have a server compute what is not in the cache, such as http://host:8000; its token is "
    f"what ${TOKEN_VARIABLE} holds.",
)
@format_option(FORMATS)
@force_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done: what the cache has, batches, time. Computes and writes nothing.",
)
@shard_options
@click.pass_context
def embed(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    output: Path | None,
    pooling: list[str],
    kind: str | None,
    force: bool,
    dry_run: bool,
    **run: Any,
) -> None:
    """Embed the sequences of FASTA and Parquet files.

    With -o, IN is a FASTA file, which may be compressed, or - for standard input. Everything that
    can be wrong is looked for before anything is computed, and OUT is written as a whole or not
    at all.

    Without -o, IN are files of FASTA or Parquet, folders, or patterns such as 'data/*.fasta.gz',
    of any size together, and OUT is a folder of Parquet files, the shards. Repeat the command to
    go on after an interruption: it does what is missing. A shard that cannot be read, or holds a
    wrong sequence, is set aside, and the rest goes on; the exit code is 1 then. There is no cache
    unless --cache is given, since the folder is what is kept.
    """
    of_shards = split(context, inputs, output)
    for name in SHARD_OPTIONS:
        del run[name]
    poolings = pooling[0] if pooling == ["all"] else pooling
    if output is None:
        if run.pop("endpoint") is not None:
            raise click.UsageError("--endpoint is for one output, -o: shards are computed here.")
        if dry_run:
            raise click.UsageError(
                "--dry-run is for one output, -o. `esm2-features estimate` counts any input."
            )
        embed_into_folder(context, inputs, pooling=poolings, **run, **of_shards)
    else:
        _embed_file(
            inputs[0], output, kind=kind, force=force, dry_run=dry_run, pooling=poolings, **run
        )


@main.command(epilog=examples("esm2-features models"))
def models() -> None:
    """List the models that can be asked for by name.

    Sizes are those of the official files, and of the weights in memory in float32.
    """
    line = "{:<20} {:>10} {:>6} {:>5} {:>9} {:>8}  {}".format
    click.echo(line("name", "parameters", "layers", "dim", "download", "memory", "on this machine"))
    for card in available_models():
        click.echo(line(*_row(card)))


@main.command(
    epilog=examples(
        "esm2-features verify",
        "esm2-features verify --model esm2_t6_8M_UR50D --precision float32,bfloat16",
    )
)
@click.option("--model", default=EMBEDDED_MODEL, help=MODEL_HELP)
@click.option(
    "--sequences",
    metavar="FASTA",
    help="Sequences to compare on, or - for standard input. By default a few that cover all "
    "letters, masks, and 1 to 1022 residues.",
)
@click.option(
    "--precision",
    callback=words_of,
    metavar="WORD[,WORD...]",
    default="float32",
    help=f"Arithmetic to compare: {', '.join(PRECISIONS)}.",
)
@device_option
def verify(model: str, sequences: str | None, precision: list[str], device: str) -> None:
    """Compare every layer with fair-esm's own network, on this machine.

    The exit code is 1 if they differ by more than rounding.
    """
    from esm2_features._inputs.fasta import read_fasta
    from esm2_features.cli.verify import verify as compare

    records = None if sequences is None else read_fasta(sequences)
    with naming(records_called([record.id for record in records or []])):
        report = compare(model, sequences=records, precisions=precision, device=device)
    click.echo(report.text)
    if not report.passed:
        raise CommandError("This installation does not compute what fair-esm computes.", 1)


@main.command(epilog=examples("esm2-features demo --output demo"))
@click.option(
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    default="demo",
    help="Where the picture goes; made if need be.",
)
@click.option("--model", default=EMBEDDED_MODEL, help=MODEL_HELP)
def demo(output: Path, model: str) -> None:
    """Tell toxins from hormones, and draw a map of them.

    Takes less than a minute with the included model, and needs no network.
    """
    from esm2_features.cli.demo import run

    run(output, model=model, say=click.echo)


for command in (
    *(estimate, residues, logits, contacts, attentions),
    *(score, scan, cache, serve, token),
):
    main.add_command(command)


# ------------------------------------------------------------------ the parts of a command


def _embed_file(
    fasta: str, output: Path, *, kind: str | None, force: bool, dry_run: bool, **run: Any
) -> None:
    """Do what `embed IN -o OUT` says."""
    from esm2_features._engine import Engine
    from esm2_features._inputs.fasta import read_fasta

    start = time.perf_counter()
    engine = Engine(verbose=True, **run)
    check_inputs(output, fasta)
    place = prepare(output, format=kind, poolings=engine.poolings, force=force)
    kept = kept_in(engine.cache.path if engine.cache is not None else None)
    with interruptible(place.path, kept=kept):
        records = read_fasta(fasta)
        ids = [record.id for record in records]
        with naming(records_called(ids)):
            if dry_run:
                show_plan(engine, records, str(place.path))
                return
            values = engine.embed(records)
    features = Features(
        ids=ids,
        labels=[record.description for record in records],
        values=values,
        names=engine.feature_names,
        layers=engine.layers,
        poolings=engine.poolings,
    )
    write(place, features)
    n, d = values.shape
    seconds = time.perf_counter() - start
    click.echo(
        f"{n} sequences x {d} features, {engine.n_computed} of them computed -> {place.path} "
        f"({seconds:.1f} s)",
        err=True,
    )


def _row(card: ModelCard) -> tuple[str, ...]:
    """One line of the table of models."""
    shape, weights = card.architecture, card.weights
    return (
        card.name,
        card.parameters,
        str(shape.layers),
        str(shape.dim),
        "included" if weights is None else readable(weights.bytes),
        readable(4 * shape.parameters),
        _whereabouts(card),
    )


def _whereabouts(card: ModelCard) -> str:
    from esm2_features._checkpoints.download import locate

    if card.weights is None:
        return "yes, with this library"
    return str(locate(card, card.weights) or "no")
