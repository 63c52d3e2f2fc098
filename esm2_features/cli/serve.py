"""The commands `serve` and `token`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from esm2_features._environment import keep_few_products
from esm2_features._inputs.options import PRECISIONS
from esm2_features.cli.console import CommandError, Commands, examples
from esm2_features.cli.options import cache_option
from esm2_features.exceptions import InputError, import_optional

_TOKENS = click.option(
    "--tokens",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Hashes of the tokens that are good, as `esm2-features token new` writes them. Without "
    "it, only this machine is served.",
)


@click.command(
    epilog=examples(
        "esm2-features serve",
        "esm2-features serve --host 0.0.0.0 --tokens tokens.txt --model esm2-650m",
        "esm2-features serve --model mine=/data/finetuned.pt --device cuda:0,cuda:1",
    )
)
@click.option("--host", default="127.0.0.1", help="Address to listen at; others need --tokens.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, help="Port to listen at.")
@_TOKENS
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|NAME=PATH",
    help="A model that is served: an official name, its slug (esm2-650m), mini, or a name of "
    "yours for a checkpoint. Can be given several times; by default, all that have names.",
)
@click.option(
    "--device",
    "devices",
    default="auto",
    metavar="NAME[,NAME...]",
    help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps; each has a worker of its own.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", help="Arithmetic.")
@cache_option
@click.option(
    "--models-in-memory", type=click.IntRange(1), default=2, help="Networks that a device holds."
)
@click.option("--max-items", type=click.IntRange(1), default=256, help="Sequences in a request.")
@click.option("--max-residues", type=click.IntRange(1), default=2048, help="Longest sequence.")
@click.option("--max-body", type=click.IntRange(1), default=16, help="Megabytes of a request.")
@click.option("--max-answer", type=click.IntRange(1), default=256, help="Megabytes of numbers.")
@click.option("--max-waiting", type=click.IntRange(1), default=256, help="Requests in the queue.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    help="Seconds to answer in.",
)
@click.option("--rate", metavar="N/second|N/minute", help="Requests of one token, at most.")
@click.option("--batch-tokens", type=click.IntRange(1), default=8192, help="Computed together.")
@click.option(
    "--wait", type=click.FloatRange(0), default=2.0, help="Milliseconds to collect requests in."
)
def serve(
    models: tuple[str, ...],
    devices: str,
    max_body: int,
    max_answer: int,
    rate: str | None,
    wait: float,
    **options: Any,
) -> None:
    """Answer requests in the JSON of the hosted ESM-2 service, and in Arrow and npz.

    It ends on Ctrl-C or SIGTERM, and finishes what it has accepted.
    """
    keep_few_products()
    import_optional("fastapi", extra="server", purpose="The server")
    from esm2_features.server.app import run
    from esm2_features.server.settings import Settings, read_rate

    chosen: dict[str, Any] = {} if not models else {"models": _models_of(models)}
    settings = Settings(
        devices=tuple(word.strip() for word in devices.split(",")),
        max_body_bytes=max_body << 20,
        max_answer_bytes=max_answer << 20,
        rate=None if rate is None else read_rate(rate),
        wait=wait / 1000,
        **chosen,
        **options,
    )
    if settings.tokens is None:
        click.echo("There are no tokens, so only this machine is served (127.0.0.1).", err=True)
    click.echo(f"http://{settings.host}:{settings.port}/", err=True)
    run(settings)


@click.group(
    cls=Commands, epilog=examples("esm2-features token new --tokens tokens.txt --name alice")
)
def token() -> None:
    """Make tokens, which let people use a server."""


@token.command(epilog=examples("esm2-features token new --tokens tokens.txt --name alice"))
@click.option(
    "--tokens",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where its hash goes. To take a token back, delete its line.",
)
@click.option("--name", required=True, help="Whose it is.")
def new(tokens: Path, name: str) -> None:
    """Make a token, and print it: it is kept nowhere, but for its hash."""
    from esm2_features.server.tokens import new_token

    made = new_token(tokens, name)
    click.echo(made)
    click.echo(f"Its hash is in {tokens}. Send it as `Authorization: Token ...`.", err=True)


def _models_of(words: tuple[str, ...]) -> dict[str, str]:
    from esm2_features.server.settings import Settings

    known = Settings()
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if equals:
            if not name or known.find(name) is not None or not name.isascii() or "/" in name:
                raise CommandError(f"--model {word}: choose another name for {path}.", 2)
            found[name] = path
            continue
        official = known.find(name)
        if official is None:
            raise InputError(
                f"Got model={word!r}, which is not a name (see `esm2-features models`). Give a "
                f"checkpoint a name: --model mine={word}"
            )
        found[official] = official
    return found
