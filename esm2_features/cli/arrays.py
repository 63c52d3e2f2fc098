"""`esm2-features residues`, `logits`, `contacts` and `attentions`: an array for each sequence."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._inputs.options import TOO_LONG, absolute_layers
from esm2_features._io.arrays import (
    ARRAY_FORMATS,
    Arrays,
    check_array_output,
    check_ids,
    write_arrays,
)
from esm2_features._io.paths import Output, atomic_output, check_inputs, file_names, write_index
from esm2_features.cli.console import examples, interruptible, naming, records_called
from esm2_features.cli.options import (
    Decorator,
    force_option,
    force_plot_option,
    format_option,
    layers_of,
    model_option,
    output_option,
    run_options,
)
from esm2_features.exceptions import SequenceTooLongError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from esm2_features._engine import Engine
    from esm2_features._inputs.fasta import FastaRecord

_OF_WHOLE = ("contacts", "attentions")
_WHOLE = ("raise", "truncate")
"""What can be done with a long sequence if all of its residues have to see each other."""

_CALLED = {"log_probs": "log-probabilities"}
_KEPT = "nothing is kept of what was computed."


def _array_output(command: Any) -> Any:
    return output_option(
        "OUT",
        "Where to write: OUT.npz or OUT.h5, with an array for each id; OUT.npy, a folder of one "
        ".npy for each id (and ids.csv, if an id cannot be the name of a file); or OUT.pt, a "
        "folder of one .pt for each sequence, as fair-esm's scripts/extract.py writes.",
    )(command)


def _layers_option(default: str, text: str) -> Decorator:
    return click.option(
        "--layers", callback=layers_of, metavar="N[,N...]|all", default=default, help=text
    )


@click.command(
    epilog=examples(
        "esm2-features residues proteins.fasta -o residues.npz",
        "esm2-features residues proteins.fasta -o residues.h5 --layers 6,-1",
    )
)
@click.argument("fasta", metavar="IN")
@_array_output
@model_option
@_layers_option(
    "-1",
    "Representations to give. 0 is the embedding, negatives count from the end; with several, "
    "arrays are layers x residues x dim, in this order.",
)
@run_options(too_long=TOO_LONG)
@format_option(ARRAY_FORMATS)
@force_option
def residues(layers: list[int] | str, **given: Any) -> None:
    """Give the representation of every residue, without pooling.

    IN is a FASTA file, which may be compressed, or - for standard input. Arrays are residues x
    dim, float32, without special tokens. They are written as they come, and never held together;
    they are not cached.
    """
    _write_product("residues", layers=layers, **given)


@click.command(
    epilog=examples(
        "esm2-features logits proteins.fasta -o logits.npz",
        "esm2-features logits proteins.fasta -o log_probs.h5 --log-probs",
    )
)
@click.argument("fasta", metavar="IN")
@_array_output
@click.option(
    "--log-probs",
    is_flag=True,
    help="Natural-log probabilities instead of the raw scores.",
)
@click.option(
    "--over",
    type=click.Choice(["residues", "tokens"]),
    default=None,
    help="What the probabilities of --log-probs add up to 1 over: the 20 canonical residues, in "
    "the order ACDEFGHIKLMNPQRSTVWY (the default), or all 33 tokens.",
)
@model_option
@run_options(too_long=TOO_LONG)
@format_option(ARRAY_FORMATS)
@force_option
def logits(log_probs: bool, over: str | None, **given: Any) -> None:
    """Give what the language model says of every residue.

    IN is a FASTA file, which may be compressed, or - for standard input. Arrays are residues x 33,
    float32: a score for each token, in the order of ESM-2's alphabet. No residue is masked for it.
    """
    if over is not None and not log_probs:
        raise click.UsageError("--over is for probabilities: add --log-probs, or leave it out.")
    _write_product("log_probs" if log_probs else "logits", over=over, **given)


@click.command(epilog=examples("esm2-features contacts proteins.fasta -o contacts.npz --plot maps"))
@click.argument("fasta", metavar="IN")
@_array_output
@click.option(
    "--plot",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Also draw a map of each protein: a folder of one .png for each id, named as in OUT.npy.",
)
@model_option
@run_options(too_long=_WHOLE)
@format_option(ARRAY_FORMATS)
@force_plot_option
def contacts(plot: Path | None, **given: Any) -> None:
    """Predict which residues are in contact.

    IN is a FASTA file, which may be compressed, or - for standard input. Arrays are residues x
    residues, float32: probabilities that the C-beta atoms are within 8 angstroms. The checkpoint
    needs a contact regression; all official ones have it, mini does not.
    """
    _write_product("contacts", plot=plot, **given)


@click.command(epilog=examples("esm2-features attentions proteins.fasta -o maps.h5 --layers 32,33"))
@click.argument("fasta", metavar="IN")
@_array_output
@model_option
@_layers_option("all", "Layers to give the maps of, from 1; negatives count from the end.")
@run_options(too_long=_WHOLE)
@format_option(ARRAY_FORMATS)
@force_option
def attentions(layers: list[int] | str, **given: Any) -> None:
    """Give the attention maps.

    IN is a FASTA file, which may be compressed, or - for standard input. Arrays are layers x heads
    x (residues + 2) x (residues + 2), float32, with the special tokens at both ends. All layers of
    the 650M model take 240 MB for a protein of 300 residues.
    """
    _write_product("attentions", layers=layers, **given)


def _write_product(
    product: str,
    *,
    fasta: str,
    output: Path,
    kind: str | None,
    force: bool,
    plot: Path | None = None,
    layers: list[int] | str | None = None,
    over: Any = None,
    **run: Any,
) -> None:
    from esm2_features._engine import Engine
    from esm2_features._inputs.fasta import read_fasta
    from esm2_features._inputs.policy import TruncationCounter

    start = time.perf_counter()
    engine = Engine(cache=None, verbose=True, **run)
    check_inputs(output, fasta)
    place = check_array_output(output, format=kind, force=force)
    pictures = None
    if plot is not None:
        check_inputs(plot, fasta, called="The folder of pictures")
        pictures = _picture_folder(plot, place)
    chosen: Any = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    with interruptible(place.path, kept=_KEPT), ExitStack() as stack:
        records = read_fasta(fasta)
        ids = [record.id for record in records]
        check_ids(place, ids)
        # A bad record is known before hours of computing; what is to be warned of, is said later.
        with naming(records_called(ids)), warnings.catch_warnings(action="ignore"):
            try:
                engine.policy.normalise(records, truncations=TruncationCounter())
            except SequenceTooLongError as error:
                raise _in_one_piece(error) if product in _OF_WHOLE else error from None
        # Nothing is computed yet, but the options are checked.
        found = engine.stream(records, product, layers=chosen, over=over)
        arrays: Iterator[NDArray[np.float32]] = map(_stacked, found)
        if pictures is not None:
            folder = stack.enter_context(atomic_output(pictures))
            arrays = _drawn(arrays, records, folder)
        n = write_arrays(place, _contents(product, engine, records, layers, over), arrays)
    drawn = "" if pictures is None else f", drawn in {pictures.path}"
    seconds = time.perf_counter() - start
    click.echo(
        f"{_CALLED.get(product, product)} of {n} sequences -> {place.path}{drawn} "
        f"({seconds:.1f} s)",
        err=True,
    )


def _contents(
    product: str,
    engine: Engine,
    records: Sequence[FastaRecord],
    layers: list[int] | str | None,
    over: str | None,
) -> Arrays:
    from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, TOKENS

    depth, name = engine.checkpoint.architecture.layers, engine.checkpoint.name
    numbers = () if layers is None else absolute_layers(layers, depth=depth, model=name)
    if product == "attentions" and layers == "all":
        numbers = numbers[1:]  # the embedding comes of no attention
    tokens: Sequence[str] = ()
    if product == "log_probs" and over != "tokens":
        tokens = tuple(CANONICAL_RESIDUES)
    elif product in ("logits", "log_probs"):
        tokens = TOKENS
    return Arrays(
        product=product,
        ids=[record.id for record in records],
        labels=[record.description for record in records],
        model=name,
        precision=engine.precision,
        layers=numbers,
        tokens=tokens,
    )


def _stacked(found: Any) -> NDArray[np.float32]:
    """Make one array of the layers of a sequence."""
    import numpy as np

    return np.stack(list(found.values())) if isinstance(found, dict) else found


def _in_one_piece(error: SequenceTooLongError) -> SequenceTooLongError:
    """Say the same without the advice to use windows, which the command does not have."""
    what = str(error).partition(". Pass ")[0]
    return SequenceTooLongError(
        f'{what}. Pass too_long="truncate" to keep the first {error.limit}, max_residues=None to '
        "run it whole (memory grows with the square of the length), or split the protein into its "
        "domains.",
        index=error.index,
        length=error.length,
        limit=error.limit,
    )


def _picture_folder(path: Path, output: Output) -> Output:
    from esm2_features._io.figures import check_picture_output

    return check_picture_output(path, beside=output, is_folder=True)


def _drawn(
    arrays: Iterator[NDArray[np.float32]], records: Sequence[FastaRecord], folder: Path
) -> Iterator[NDArray[np.float32]]:
    """Draw contacts as they pass by."""
    from esm2_features._io.figures import contact_figure, save_png

    ids = [record.id for record in records]
    write_index(folder, ids, "png")
    names = file_names(ids)
    for array, record, name in zip(arrays, records, names, strict=True):
        save_png(contact_figure(array, title=record.description), folder / f"{name}.png")
        yield array
