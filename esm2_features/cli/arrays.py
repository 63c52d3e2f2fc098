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
from esm2_features._io.paths import atomic_output, check_inputs, write_index
from esm2_features.cli.console import examples, interruptible, naming_rows, print_done, row_check
from esm2_features.cli.options import (
    PATH,
    Decorator,
    add_options,
    column_options,
    computing_options,
    force_option,
    force_plot_option,
    format_option,
    input_argument,
    output_option,
    run_option,
)
from esm2_features.exceptions import SequenceTooLongError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from esm2_features._engine import Engine
    from esm2_features._inputs.fasta import FastaRecord

_PAIRWISE = ("contacts", "attentions")
_NO_WINDOWS = ("raise", "truncate")
"""What can be done with a long sequence if all of its residues attend to each other."""

_OUTPUT = output_option(
    "OUT",
    "Where to write: OUT.npz or OUT.h5, with an array for each id; OUT.npy, a folder with one .npy "
    "for each id (and ids.csv, if an id cannot be the name of a file); or OUT.pt, a folder with "
    "one .pt for each sequence, as fair-esm's scripts/extract.py writes.",
)


def _array_options(
    *own: Decorator, too_long: Sequence[str], force: Decorator = force_option
) -> Decorator:
    """Add the argument and the options of all four commands, with some of their own."""
    return add_options(
        [
            input_argument("path", metavar="IN"),
            _OUTPUT,
            *own,
            column_options,
            run_option("model"),
            computing_options(too_long=too_long),
            format_option(ARRAY_FORMATS),
            force,
        ]
    )


@click.command(
    epilog=examples(
        "esm2-features residues proteins.fasta -o residues.npz",
        "esm2-features residues proteins.fasta -o residues.h5 --layers 6,-1",
    )
)
@_array_options(
    run_option(
        "layers",
        help="Layers whose representations are written. 0 is the embedding, and negative numbers "
        "count from the end. With several, arrays are layers x residues x dim, in this order.",
    ),
    too_long=TOO_LONG,
)
def residues(layers: list[int] | str, **options: Any) -> None:
    """Write the representation of every residue, without pooling.

    IN is a file of sequences, as for `embed -o`. Arrays are residues x
    dim, float32, without special tokens. Each is written as soon as it is computed, so memory does
    not grow with the input. They are not cached.
    """
    _write_product("residues", layers=layers, **options)


@click.command(
    epilog=examples(
        "esm2-features logits proteins.fasta -o logits.npz",
        "esm2-features logits proteins.fasta -o log_probs.h5 --log-probs",
    )
)
@_array_options(
    click.option(
        "--log-probs", is_flag=True, help="Write natural-log probabilities instead of logits."
    ),
    click.option(
        "--over",
        type=click.Choice(["residues", "tokens"]),
        help="What the probabilities of --log-probs are normalised over: the 20 canonical "
        "residues, in the order ACDEFGHIKLMNPQRSTVWY (the default), or all 33 tokens.",
    ),
    too_long=TOO_LONG,
)
def logits(log_probs: bool, over: str | None, **options: Any) -> None:
    """Write the logits of the language model for every residue.

    IN is a file of sequences, as for `embed -o`. Arrays are residues x 33,
    float32: a score for each token, in the order of ESM-2's alphabet. No residue is masked.
    """
    if over is not None and not log_probs:
        raise click.UsageError("--over is for probabilities: add --log-probs, or leave it out.")
    _write_product("log_probs" if log_probs else "logits", over=over, **options)


@click.command(epilog=examples("esm2-features contacts proteins.fasta -o contacts.npz --plot maps"))
@_array_options(
    click.option(
        "--plot",
        metavar="FOLDER",
        type=PATH,
        help="Also draw a map of each protein: a folder with one .png for each id.",
    ),
    too_long=_NO_WINDOWS,
    force=force_plot_option,
)
def contacts(plot: Path | None, **options: Any) -> None:
    """Predict which residues are in contact.

    IN is a file of sequences, as for `embed -o`. Arrays are residues x
    residues, float32: probabilities that the C-beta atoms are within 8 angstroms. The checkpoint
    needs a contact regression; all official ones have it, mini does not.
    """
    _write_product("contacts", plot=plot, **options)


@click.command(epilog=examples("esm2-features attentions proteins.fasta -o maps.h5 --layers 32,33"))
@_array_options(
    run_option(
        "layers",
        default="all",
        help="Layers whose maps are written, from 1; negative numbers count from the end.",
    ),
    too_long=_NO_WINDOWS,
)
def attentions(layers: list[int] | str, **options: Any) -> None:
    """Write the attention maps.

    IN is a file of sequences, as for `embed -o`. Arrays are layers x heads
    x (residues + 2) x (residues + 2), float32, with the special tokens at both ends. All layers of
    the 650M model take 240 MB for a protein of 300 residues.
    """
    _write_product("attentions", layers=layers, **options)


def _write_product(
    product: str,
    *,
    path: str,
    output: Path,
    kind: str | None,
    force: bool,
    plot: Path | None = None,
    layers: Any = None,
    over: Any = None,
    column: str | None,
    id_column: str | None,
    **options: Any,
) -> None:
    """Compute a product of `Engine.stream` for a file, and write it as it comes."""
    import numpy as np

    from esm2_features._engine import Engine
    from esm2_features._inputs.policy import TruncationCounter
    from esm2_features._inputs.records import read_records

    start = time.perf_counter()
    engine = Engine(cache=None, verbose=True, **options)
    check_inputs(output, path)
    checked = check_array_output(output, format=kind, force=force)
    pictures = None
    if plot is not None:
        from esm2_features._io.figures import check_picture_output

        check_inputs(plot, path, called="The folder of pictures")
        pictures = check_picture_output(plot, beside=checked, is_folder=True)
    chosen = layers[0] if isinstance(layers, list) and len(layers) == 1 else layers
    kept = "nothing is kept of what was computed."
    with interruptible(checked.path, None, kept), ExitStack() as stack:
        records, places = read_records(path, column=column, id_column=id_column)
        check_ids(checked, [record.id for record in records])
        # Report an invalid record before hours of computing. Warnings follow from the stream.
        check = row_check(engine.policy, records)
        with naming_rows(places, check), warnings.catch_warnings(action="ignore"):
            try:
                engine.policy.normalise(records, truncations=TruncationCounter())
            except SequenceTooLongError as error:
                if product in _PAIRWISE:
                    error.args = (_without_windows(error),)
                raise
        # This checks the options, and computes nothing yet.
        results = engine.stream(records, product, layers=chosen, over=over)
        arrays: Iterator[NDArray[np.float32]] = (
            np.stack(list(result.values())) if isinstance(result, dict) else result
            for result in results
        )
        if pictures is not None:
            folder = stack.enter_context(atomic_output(pictures))
            arrays = _draw_contacts(arrays, records, folder)
        n = write_arrays(checked, _contents(product, engine, records, layers, over), arrays)
    drawn = "" if pictures is None else f", drawn in {pictures.path}"
    title = "log-probabilities" if product == "log_probs" else product
    print_done(f"{title} of {n} sequences -> {checked.path}{drawn}", start)


def _contents(
    product: str, engine: Engine, records: Sequence[FastaRecord], layers: Any, over: str | None
) -> Arrays:
    from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, TOKENS

    depth, name = engine.checkpoint.architecture.layers, engine.checkpoint.name
    numbers = () if layers is None else absolute_layers(layers, depth=depth, model=name)
    if product == "attentions" and layers == "all":
        numbers = numbers[1:]  # the embedding has no attention
    tokens: dict[str, Sequence[str]] = {
        "logits": TOKENS,
        "log_probs": TOKENS if over == "tokens" else tuple(CANONICAL_RESIDUES),
    }
    return Arrays(
        product=product,
        ids=[record.id for record in records],
        labels=[record.description for record in records],
        model=name,
        precision=engine.precision,
        layers=numbers,
        tokens=tokens.get(product, ()),
    )


def _without_windows(error: SequenceTooLongError) -> str:
    """Return the message without the advice to use windows, which the command does not have."""
    what = str(error).partition(". Pass ")[0]
    return (
        f'{what}. Pass too_long="truncate" to keep the first {error.limit}, max_residues=None to '
        "run it whole (memory grows with the square of the length), or split the protein into its "
        "domains."
    )


def _draw_contacts(
    arrays: Iterator[NDArray[np.float32]], records: Sequence[FastaRecord], folder: Path
) -> Iterator[NDArray[np.float32]]:
    """Draw each map, and pass it on."""
    from esm2_features._io.figures import contact_figure, save_png

    names = write_index(folder, [record.id for record in records], "png")
    for array, record, name in zip(arrays, records, names, strict=True):
        save_png(contact_figure(array, title=record.description), folder / f"{name}.png")
        yield array
