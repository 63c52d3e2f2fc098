"""Errors and warnings as messages without tracebacks, in which options have their shell names."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from esm2_features._inputs.messages import in_shell
from esm2_features._inputs.options import OPTIONS
from esm2_features.exceptions import Esm2FeaturesError, InputError, list_problems

if TYPE_CHECKING:
    from esm2_features._cache import Cache
    from esm2_features._inputs.policy import SequencePolicy

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class CommandError(click.ClickException):
    """An expected error: one message on standard error, and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # as click.exceptions.Exit does

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message; an interruption is not called an error."""
        start = "" if self.exit_code == INTERRUPTED else "Error: "
        print_message(start + self.message, file)


class Commands(click.Group):
    """Commands that print expected errors and warnings as messages, without tracebacks."""

    def invoke(self, ctx: click.Context) -> object:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            try:
                return super().invoke(ctx)
            except Esm2FeaturesError as error:
                raise CommandError(in_shell(error), 2) from error
            except BrokenPipeError:  # `| head` closed the pipe; click handles it
                raise
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                raise CommandError(reason, 2) from error
            except KeyboardInterrupt as error:
                raise CommandError("Interrupted.", INTERRUPTED) from error


@contextmanager
def naming_rows(
    places: Sequence[str], check: Callable[[int], object] = lambda _: None
) -> Iterator[None]:
    """Put the place of the row in front of an error; the library only knows its number.

    The library stops at the first row that is wrong: ``check`` looks at one row, and is called with
    all others, so that one message names what is wrong in the whole file.
    """
    try:
        yield
    except InputError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        found = {index: error}
        for row in range(len(places)):
            try:
                with warnings.catch_warnings(action="ignore"):
                    check(row)
            except InputError as other:
                found.setdefault(row, other)
        problems = [f"{places[row]}: {in_shell(found[row])}" for row in sorted(found)]
        what = problems[0]
        if len(problems) > 1:
            what = list_problems(problems, len(places), "records")
        raise CommandError(what, 2) from error


def row_check(policy: SequencePolicy, sequences: Sequence[object]) -> Callable[[int], object]:
    """Check single sequences, for `naming_rows`."""

    def check(row: int) -> None:
        policy.views(policy.normalise([sequences[row]], rows=[row]), rows=[row])

    return check


@contextmanager
def interruptible(
    output: Path, cache: Cache | None, kept: str = "nothing is kept, because of --cache none."
) -> Iterator[None]:
    """On Ctrl-C, print what is lost and what is kept."""
    if cache is not None:
        kept = f"what was computed is in the cache, {cache.path}: repeat the command."
    try:
        yield
    except KeyboardInterrupt as error:
        raise CommandError(
            f"Interrupted; {output} was not written, and {kept}", INTERRUPTED
        ) from error


def print_done(text: str, start: float) -> None:
    """Print what was written, and the seconds since ``start``."""
    click.echo(f"{text} ({time.perf_counter() - start:.1f} s)", err=True)


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    print_message(f"Warning: {in_shell(message) if isinstance(message, Warning) else message}")


def print_message(message: str, file: IO[Any] | None = None) -> None:
    click.echo(as_options(message), file=file, err=True)


_NAMES = [
    *OPTIONS,
    *("layer", "max_bytes", "unused_days", "over", "method", "offset", "sequences", "per_residue"),
    *("coverage", "task", "min_identity", "groups", "cv"),
    *("engine", "address", "workers", "gpus_per_worker", "patience"),
]
_ARGUMENT = re.compile(
    rf"\b({'|'.join(_NAMES)})="
    r"""(?:"([^"]*)"|'([^']*)'|(-?\w+)|\((\d+), (\d+)\)|(?=[\s,.;:)]|$))"""
)


def as_options(message: str) -> str:
    """Write options as in the shell: ``too_long="truncate"`` becomes --too-long truncate."""

    def option(match: re.Match[str]) -> str:
        name, *values = match.groups(default="")
        value = ":".join(filter(None, values))  # two values are START:STOP of a region
        value = "" if value == "True" else value  # a flag
        return f"--{name.replace('_', '-')} {'none' if value == 'None' else value}".rstrip()

    return _ARGUMENT.sub(option, message)


def examples(*lines: str) -> str:
    """Format example commands for the end of a help text."""
    title = "Examples:" if len(lines) > 1 else "Example:"
    return "\n".join(["\b", title, *map("  {}".format, lines)])
