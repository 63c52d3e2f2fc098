"""How the command line speaks: errors and warnings without tracebacks, options by their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from esm2_features.exceptions import Esm2FeaturesError, InputError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class CommandError(click.ClickException):
    """An end that was foreseen: one message on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # as click.exceptions.Exit does

    def show(self, file: IO[Any] | None = None) -> None:
        """Say what happened; an interruption is no error."""
        start = "" if self.exit_code == INTERRUPTED else "Error: "
        click.echo(start + as_options(self.message), file=file, err=True)


class Commands(click.Group):
    """Commands whose foreseen errors and warnings are messages, without tracebacks."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except Esm2FeaturesError as error:
                raise CommandError(str(error), 2) from error
            except BrokenPipeError:  # `| head` has seen enough; click knows what to do
                raise
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                raise CommandError(reason, 2) from error
            except KeyboardInterrupt as error:
                raise CommandError("Interrupted.", INTERRUPTED) from error


@contextmanager
def naming(places: Sequence[str]) -> Iterator[None]:
    """Say where it stands if one of the rows is wrong; the library knows but its number."""
    try:
        yield
    except InputError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        raise CommandError(f"{places[index]}: {error}", 2) from error


def records_called(ids: Sequence[str]) -> list[str]:
    """Name the records of a file for `naming`."""
    return [f"Record {number}, {identifier}" for number, identifier in enumerate(ids, start=1)]


@contextmanager
def interruptible(output: Path, *, kept: str) -> Iterator[None]:
    """Say after Ctrl-C what is lost, and what is not."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise CommandError(
            f"Interrupted; {output} was not written, and {kept}", INTERRUPTED
        ) from error


def kept_in(cache: Path | None) -> str:
    """Say where the results of an interrupted command are."""
    if cache is None:
        return "nothing is kept, because of --cache none."
    return f"what was computed is in the cache, {cache}: repeat the command."


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"Warning: {as_options(str(message))}", err=True)


_ARGUMENT = re.compile(
    r"\b(model|layers?|pooling|region|precision|device|batch_tokens|max_residues|too_long|unknown"
    r"|cache|cache_dtype|store|endpoint|max_bytes|unused_days|over|method|offset|engine|address"
    r"|workers|gpus_per_worker|cores)="
    r"""(?:"([^"]*)"|'([^']*)'|(-?\w+)|\((\d+), (\d+)\)|(?=[\s,.;:)]|$))"""
)


def as_options(message: str) -> str:
    """Name options as the shell does: ``too_long="truncate"`` is --too-long truncate."""

    def option(found: re.Match[str]) -> str:
        name, *values = found.groups(default="")
        value = ":".join(filter(None, values))  # two are START:STOP of a region
        return f"--{name.replace('_', '-')} {'none' if value == 'None' else value}".rstrip()

    return _ARGUMENT.sub(option, message)


def examples(*lines: str) -> str:
    """Lay out example commands for the end of a help text."""
    return "\n".join(
        ["\b", "Examples:" if len(lines) > 1 else "Example:", *map("  {}".format, lines)]
    )
