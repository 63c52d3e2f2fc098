"""Options that several commands have, and how what is typed becomes a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from esm2_features._files import expanded
from esm2_features._inputs.options import OPTIONS, is_region_text
from esm2_features._inputs.streams import MOST_BYTES

METHODS = ("masked-marginals", "wildtype-marginals", "pseudo-perplexity")
"""How variants can be scored: those of `score_variants`, which would take seconds to import."""

_TOO_LONG = {
    "raise": "raise an error",
    "truncate": "truncate them to their first residues",
    "window": "average over overlapping windows",
}

Decorator = Callable[[Any], Any]

# ------------------------------------------------------------------ paths


class PathType(click.Path):
    """A path, in which ``~`` and variables are expanded: shells do not do that after ``=``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value), param, ctx)


INPUT = PathType(allow_dash=True)
"""A path of an input, as text."""
PATH = PathType(path_type=Path)

# ------------------------------------------------------------------ what is typed


def callback_of(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """Make the callback of an option, which may be left out, from a function of its text."""
    return lambda _, __, text: None if text is None else parse(text)


def _parse_layers(text: str) -> list[int] | str:
    try:
        return text if text == "all" else [int(word) for word in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f'{text!r} is neither "all" nor numbers such as -1 or 0,6,-1.'
        ) from None


def parse_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def parse_size(text: str) -> int:
    match = re.fullmatch(r"(?ai)(\d+(?:\.\d+)?)\s*([KMGT](?=B))?B?", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 20GB.")
    return int(float(match[1]) * 1000 ** " KMGT".index((match[2] or " ").upper()))


def two_numbers(text: str, separator: str) -> tuple[int, int] | None:
    match = re.fullmatch(f"([0-9]+){separator}([0-9]+)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def _parse_region(text: str) -> tuple[int, int] | str:
    region = two_numbers(text, ":")
    if region is None and not is_region_text(text):
        raise click.BadParameter(
            f"{text!r} is not two whole numbers such as 0:120, nor several such as 26:33,50:58."
        )
    return region or text


def _parse_number(text: str, word: str, meaning: str | None) -> int | str | None:
    """Read a number, or a word that stands for something else."""
    try:
        return meaning if text == word else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a whole number nor {word!r}.") from None


_PARSERS: dict[str, Callable[[str], Any]] = {
    "layers": _parse_layers,
    "pooling": lambda text: "all" if text.strip() == "all" else parse_words(text),
    "region": _parse_region,
    "batch_tokens": partial(_parse_number, word="auto", meaning="auto"),
    "max_residues": partial(_parse_number, word="none", meaning=None),
    "cache": lambda text: None if text == "none" else expanded(text),
    "model": expanded,
}

# ------------------------------------------------------------------ what is read


def input_argument(name: str, **settings: Any) -> Decorator:
    """Add the argument of an input, and the option that limits what is read of it."""
    return add_options(
        [
            click.argument(name, type=INPUT, **settings),
            click.option(
                "--max-input",
                metavar="SIZE",
                callback=_limit_input,
                expose_value=False,
                help="Read at most this much of a file, such as 5GB, after decompression. Without "
                "it, a file may have any size.",
            ),
        ]
    )


def _limit_input(context: click.Context, _: object, text: str | None) -> None:
    if text is not None:
        before = MOST_BYTES.set(parse_size(text))
        context.call_on_close(lambda: MOST_BYTES.reset(before))


# ------------------------------------------------------------------ options of a run


def run_option(name: str, **changes: Any) -> Decorator:
    """Make a click option of one of `OPTIONS`, with changes for one command."""
    option = OPTIONS[name]
    settings: dict[str, Any] = {
        "type": click.Choice(option.choices) if option.choices else None,
        "default": None if option.default is None else str(option.default),
        "callback": callback_of(_PARSERS[name]) if name in _PARSERS else None,
        "metavar": option.metavar,
        "help": option.help,
    }
    return click.option(f"--{name.replace('_', '-')}", **(settings | changes))


def add_options(options: Iterable[Decorator]) -> Decorator:
    """Add options in the order in which the help shows them."""
    listed = list(options)  # once: several commands may get them

    def add(command: Any) -> Any:
        for option in reversed(listed):
            command = option(command)
        return command

    return add


def run_options(*names: str) -> Decorator:
    return add_options(map(run_option, names))


def computing_options(*, too_long: Sequence[str]) -> Decorator:
    """Add precision, device, batch_tokens, max_residues, too_long (of fewer words) and unknown."""
    *others, last = (_TOO_LONG[word] for word in too_long)
    text = f"What to do with longer sequences: {', '.join(others)}, or {last}."

    return add_options(
        [
            run_options("precision", "device", "batch_tokens", "max_residues"),
            run_option("too_long", type=click.Choice(too_long), help=text),
            run_option("unknown"),
        ]
    )


# ------------------------------------------------------------------ other options

column_options = add_options(
    [
        click.option(
            "--sequence-column",
            "--sequence",
            "--column",
            "column",
            metavar="NAME",
            help="Column of a table that holds the sequences. By default the one with a usual "
            "name, such as sequence or seq.",
        ),
        click.option(
            "--id-column",
            metavar="NAME|none",
            help="Column of a table that holds the ids. By default the one with a usual name, such "
            "as id; without one, or with none, rows are numbered from 0.",
        ),
    ]
)

device_option = run_option(
    "device", help="auto (a GPU if there is one), cpu, cuda, a card such as cuda:1, or mps."
)
force_option = click.option("--force", is_flag=True, help="Replace OUT if it exists.")
force_plot_option = click.option(
    "--force",
    is_flag=True,
    help="Replace OUT if it exists, and the picture, or the folder of pictures, of --plot.",
)
offset_option = click.option(
    "--offset",
    type=int,
    metavar="N",
    default=0,
    help="Number of the residue before the first one: with 23, the first is residue 24.",
)


def output_option(metavar: str, text: str, *, required: bool = True) -> Decorator:
    return click.option("-o", "--output", metavar=metavar, required=required, type=PATH, help=text)


def format_option(formats: Sequence[str]) -> Decorator:
    """Add ``--format``, whose parameter is called ``kind``."""
    return click.option(
        "--format",
        "kind",
        type=click.Choice(formats),
        help="Write this format, whatever OUT ends in.",
    )
