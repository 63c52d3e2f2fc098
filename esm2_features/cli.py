"""The command line: parse, one call, write.

Exit codes: 0 done; 1 `verify` found a difference, `cache verify` damage, or `cache import` vectors
that contradict; 2 anything else that is reported (an input, an option, a checkpoint, memory);
130 interrupted.
Results go to standard output, everything that is said about them to standard error.

Never here: a second pipeline. What a command does is imported when it runs, so that ``--help``
takes no time.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from esm2_features._cache_commands import cache
from esm2_features._cache_reports import readable
from esm2_features._catalogue import DEFAULT_MODEL, EMBEDDED_MODEL, available_models
from esm2_features._console import INTERRUPTED, Commands, Stop, examples
from esm2_features._options import CACHE_DTYPES, POOLINGS, PRECISIONS, STORES
from esm2_features._outputs import FORMATS, Features, prepare, write
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from esm2_features._catalogue import ModelCard
    from esm2_features._fasta import FastaRecord

_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}

# ------------------------------------------------------------------ options


def _layers(_: click.Context, __: click.Parameter, value: str) -> list[int] | str:
    if value == "all":
        return value
    try:
        return [int(word) for word in value.split(",")]
    except ValueError:
        raise click.BadParameter(
            f'{value!r} is neither "all" nor numbers such as -1 or 0,6,-1.'
        ) from None


def _words(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    return [word.strip() for word in value.split(",")]


def _number_or(word: str, meaning: str | None) -> Callable[..., int | str | None]:
    """Read a number, or one word that stands for something else."""

    def read(_: click.Context, __: click.Parameter, value: str) -> int | str | None:
        if value == word:
            return meaning
        try:
            return int(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is neither a whole number nor {word!r}.") from None

    return read


_model_help = (
    "Official name (see `esm2-features models`), mini (the demonstration model that is included), "
    "or the path of a checkpoint: .pt, .safetensors, or a Hugging Face folder."
)
_device = click.option(
    "--device",
    default="auto",
    help="auto (a GPU if there is one), cpu, cuda, a card such as cuda:1, mps.",
)


# ------------------------------------------------------------------ commands


@click.group(
    cls=Commands,
    context_settings=_SETTINGS,
    epilog=examples("esm2-features embed proteins.fasta -o proteins.npz"),
)
@click.version_option(package_name="esm2-features", prog_name="esm2-features")
def main() -> None:
    """Protein sequences in, ESM-2 features out."""


@main.command(
    epilog=examples(
        "esm2-features embed proteins.fasta.gz -o proteins.parquet",
        "zcat *.fasta.gz | esm2-features embed - -o all.npz --layers 0,-1 --pooling mean,max",
    )
)
@click.argument("fasta", metavar="IN")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    required=True,
    type=click.Path(path_type=Path),
    help="Where to write: OUT.npz, OUT.parquet, OUT.csv, or OUT.pt, which is a folder of one "
    ".pt for each sequence, as fair-esm's scripts/extract.py writes.",
)
@click.option("--model", default=DEFAULT_MODEL, help=_model_help)
@click.option(
    "--layers",
    callback=_layers,
    metavar="N[,N...]|all",
    default="-1",
    help="Representations to give. 0 is the embedding, negatives count from the end; several "
    "are concatenated.",
)
@click.option(
    "--pooling",
    callback=_words,
    metavar="WORD[,WORD...]|all",
    default="mean",
    help=f"How residues become one vector: {', '.join(POOLINGS)}. Several are concatenated.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    help="Arithmetic; half precisions are faster on hardware that has them, and too coarse to "
    "compare variants of one protein.",
)
@_device
@click.option(
    "--batch-tokens",
    callback=_number_or("auto", "auto"),
    metavar="N|auto",
    default="auto",
    help="Tokens (residues + 2) in one forward pass. Changes speed and memory, no number.",
)
@click.option(
    "--max-residues",
    callback=_number_or("none", None),
    metavar="N|none",
    default="1022",
    help="Longest sequence that is allowed. ESM-2 was trained on up to 1022 residues.",
)
@click.option(
    "--too-long",
    type=click.Choice(["raise", "truncate"]),
    default="raise",
    help="Refuse longer sequences, or keep their first residues.",
)
@click.option(
    "--unknown",
    type=click.Choice(["raise", "X", "mask"]),
    default="raise",
    help="Refuse characters that stand for no residue, or read them as X or as a mask.",
)
@click.option(
    "--cache",
    metavar="FOLDER|auto|none",
    default="auto",
    help="Where vectors are kept; auto is the user's cache folder, or $ESM2_FEATURES_CACHE.",
)
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
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Whatever OUT ends in.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def embed(
    fasta: str,
    output: Path,
    model: str,
    layers: list[int] | str,
    pooling: list[str],
    precision: str,
    device: str,
    batch_tokens: int | str | None,
    max_residues: int | str | None,
    too_long: str,
    unknown: str,
    cache: str,
    cache_dtype: str,
    store: str,
    kind: str | None,
    force: bool,
) -> None:
    """Embed the sequences of a FASTA file.

    IN is a FASTA file, which may be compressed, or - for standard input. Everything that can
    be wrong is looked for before anything is computed, and OUT is written as a whole or not
    at all.
    """
    from esm2_features._engine import Engine
    from esm2_features._fasta import read_fasta

    start = time.perf_counter()
    engine = Engine(
        model,
        layers=layers,  # type: ignore[arg-type]  # checked by the engine, as all of these
        pooling=pooling[0] if pooling == ["all"] else pooling,
        precision=precision,
        device=device,
        batch_tokens=batch_tokens,  # type: ignore[arg-type]
        max_residues=max_residues,  # type: ignore[arg-type]
        too_long=too_long,  # type: ignore[arg-type]
        unknown=unknown,  # type: ignore[arg-type]
        cache=None if cache == "none" else cache,
        cache_dtype=cache_dtype,  # type: ignore[arg-type]
        store=store,  # type: ignore[arg-type]
        verbose=True,
    )
    if output.exists() and Path(fasta).exists() and output.samefile(fasta):
        raise InputError(f"OUT is IN, {fasta}, which would be lost. Choose another name.")
    place = prepare(output, format=kind, poolings=engine.poolings, force=force)
    try:
        records = read_fasta(fasta)
        with _naming_the_record(records):
            values = engine.embed(records)
    except KeyboardInterrupt as error:
        kept = "nothing is kept, because of --cache none."
        if engine.cache is not None:
            kept = f"what was computed is in the cache, {engine.cache.path}: repeat the command."
        raise Stop(f"Interrupted; {place.path} was not written, and {kept}", INTERRUPTED) from error
    features = Features(
        ids=[record.id for record in records],
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
@click.option("--model", default=EMBEDDED_MODEL, help=_model_help)
@click.option(
    "--sequences",
    metavar="FASTA",
    help="Sequences to compare on, or - for standard input. By default a few that cover all "
    "letters, masks, and 1 to 1022 residues.",
)
@click.option(
    "--precision",
    callback=_words,
    metavar="WORD[,WORD...]",
    default="float32",
    help=f"Arithmetic to compare: {', '.join(PRECISIONS)}.",
)
@_device
def verify(model: str, sequences: str | None, precision: list[str], device: str) -> None:
    """Compare every layer with fair-esm's own network, on this machine.

    The exit code is 1 if they differ by more than rounding.
    """
    from esm2_features._fasta import read_fasta
    from esm2_features._verify import verify as compare

    records = None if sequences is None else read_fasta(sequences)
    with _naming_the_record(records or []):
        report = compare(model, sequences=records, precisions=precision, device=device)
    click.echo(report.text)
    if not report.passed:
        raise Stop("This installation does not compute what fair-esm computes.", 1)


@main.command(epilog=examples("esm2-features demo --output demo"))
@click.option(
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    default="demo",
    help="Where the picture goes; made if need be.",
)
@click.option("--model", default=EMBEDDED_MODEL, help=_model_help)
def demo(output: Path, model: str) -> None:
    """Tell toxins from hormones, and draw a map of them.

    Takes less than a minute with the included model, and needs no network.
    """
    from esm2_features._demo import run

    run(output, model=model, say=click.echo)


main.add_command(cache)


# ------------------------------------------------------------------ the parts of a command


@contextmanager
def _naming_the_record(records: Sequence[FastaRecord]) -> Iterator[None]:
    """Name the record when one of them is wrong; the library knows it as a row."""
    try:
        yield
    except InputError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        raise Stop(f"Record {index + 1}, {records[index].id}: {error}", 2) from error


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
    from esm2_features._download import locate

    if card.weights is None:
        return "yes, with this library"
    return str(locate(card, card.weights) or "no")
