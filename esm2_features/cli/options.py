"""Options that several commands have, and how what is typed becomes a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._inputs.options import PRECISIONS

METHODS = ("masked-marginals", "wildtype-marginals", "pseudo-perplexity")
"""How variants can be scored: those of `score_variants`, which would take seconds to import."""

MODEL_HELP = (
    "Official name (see `esm2-features models`), mini (the demonstration model that is included), "
    "or the path of a checkpoint: .pt, .safetensors, or a Hugging Face folder."
)
_TOO_LONG = {
    "raise": "Refuse longer sequences",
    "truncate": "keep their first residues",
    "window": "average over overlapping windows",
}

Decorator = Callable[[Any], Any]

# ------------------------------------------------------------------ what is typed


def layers_of(_: click.Context, __: click.Parameter, value: str) -> list[int] | str:
    """Read ``"all"``, or numbers with commas."""
    if value == "all":
        return value
    try:
        return [int(word) for word in value.split(",")]
    except ValueError:
        raise click.BadParameter(
            f'{value!r} is neither "all" nor numbers such as -1 or 0,6,-1.'
        ) from None


def words_of(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    """Read words with commas."""
    return [word.strip() for word in value.split(",")]


def region_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``START:STOP``."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+):([0-9]+)", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not two whole numbers such as 0:120.")
    return int(found[1]), int(found[2])


def number_or(word: str, meaning: str | None) -> Callable[..., int | str | None]:
    """Read a number, or one word that stands for something else."""

    def read(_: click.Context, __: click.Parameter, value: str) -> int | str | None:
        if value == word:
            return meaning
        try:
            return int(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is neither a whole number nor {word!r}.") from None

    return read


def cache_or_none(_: click.Context, __: click.Parameter, value: str) -> str | None:
    """Read a folder, ``auto``, or ``none``."""
    return None if value == "none" else value


# ------------------------------------------------------------------ single options

_ONE_DEVICE = "auto (a GPU if there is one), cpu, cuda, a card such as cuda:1, mps"
device_option = click.option("--device", default="auto", help=f"{_ONE_DEVICE}.")
devices_option = click.option(
    "--device",
    default="auto",
    help=f"{_ONE_DEVICE}; several with commas between them share the work, and all is every CUDA "
    "card.",
)
cache_option = click.option(
    "--cache",
    callback=cache_or_none,
    metavar="FOLDER|auto|none",
    default="auto",
    help="Where results are kept; auto is the user's cache folder, or $ESM2_FEATURES_CACHE.",
)
force_option = click.option("--force", is_flag=True, help="Replace OUT if it exists.")
force_plot_option = click.option(
    "--force",
    is_flag=True,
    help="Replace OUT if it exists, and so the picture, or folder of pictures, of --plot.",
)


def output_option(metavar: str, text: str, *, required: bool = True) -> Decorator:
    """Say where to write."""
    return click.option(
        "-o",
        "--output",
        metavar=metavar,
        required=required,
        type=click.Path(path_type=Path),
        help=text,
    )


def format_option(formats: Sequence[str]) -> Decorator:
    """Say what to write."""
    return click.option(
        "--format", "kind", type=click.Choice(formats), help="Whatever OUT ends in."
    )


def offset_option(command: Any) -> Any:
    """Say how residues are numbered."""
    return click.option(
        "--offset",
        type=int,
        metavar="N",
        default=0,
        help="Number of the residue before the first one: with 23, the first is residue 24.",
    )(command)


# ------------------------------------------------------------------ options of a run


precision_option = click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    help="Arithmetic; half precisions are faster on hardware that has them, and too coarse "
    "to compare variants of one protein.",
)


def run_options(*, too_long: Sequence[str]) -> Decorator:
    """Add precision, device, batch_tokens, max_residues, too_long and unknown."""
    return _all_of(
        precision_option,
        devices_option,
        click.option(
            "--batch-tokens",
            callback=number_or("auto", "auto"),
            metavar="N|auto",
            default="auto",
            help="Tokens (residues + 2) in one forward pass. Changes speed and memory, no number.",
        ),
        policy_options(too_long=too_long),
    )


def policy_options(*, too_long: Sequence[str]) -> Decorator:
    """Add max_residues, too_long and unknown."""
    *others, last = (_TOO_LONG[word] for word in too_long)
    return _all_of(
        click.option(
            "--max-residues",
            callback=number_or("none", None),
            metavar="N|none",
            default="1022",
            help="Longest sequence that is allowed. ESM-2 was trained on up to 1022 residues.",
        ),
        click.option(
            "--too-long",
            type=click.Choice(too_long),
            default="raise",
            help=f"{', '.join(others)}, or {last}.",
        ),
        click.option(
            "--unknown",
            type=click.Choice(["raise", "X", "mask"]),
            default="raise",
            help="Refuse characters that stand for no residue, or read them as X or as a mask.",
        ),
    )


model_option = click.option("--model", default=DEFAULT_MODEL, help=MODEL_HELP)


def _all_of(*options: Decorator) -> Decorator:
    """Join options, in the order in which the help shows them."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add
