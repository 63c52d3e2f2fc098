"""How the command line speaks: errors and warnings without tracebacks, options by their names.

Never here: commands.
"""

from __future__ import annotations

import re
import warnings
from typing import IO, Any

import click

from esm2_features.exceptions import Esm2FeaturesError

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


class Stop(click.ClickException):
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
                raise Stop(str(error), 2) from error
            except BrokenPipeError:  # `| head` has seen enough; click knows what to do
                raise
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                raise Stop(reason, 2) from error
            except KeyboardInterrupt as error:
                raise Stop("Interrupted.", INTERRUPTED) from error


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"Warning: {as_options(str(message))}", err=True)


_ARGUMENT = re.compile(
    r"\b(model|layers?|pooling|precision|device|batch_tokens|max_residues|too_long|unknown|cache"
    r"|cache_dtype|store|max_bytes|unused_days)="
    r"""(?:"([^"]*)"|'([^']*)'|(-?\w+)|(?=[\s,.;:)]|$))"""
)


def as_options(message: str) -> str:
    """Name options as the shell does: ``too_long="truncate"`` is --too-long truncate."""

    def option(found: re.Match[str]) -> str:
        name, *values = found.groups(default="")
        value = "".join(values)
        return f"--{name.replace('_', '-')} {'none' if value == 'None' else value}".rstrip()

    return _ARGUMENT.sub(option, message)


def examples(*lines: str) -> str:
    """Lay out example commands for the end of a help text."""
    return "\n".join(
        ["\b", "Examples:" if len(lines) > 1 else "Example:", *map("  {}".format, lines)]
    )
