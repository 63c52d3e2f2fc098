"""The commands `serve` and `token`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from esm2_features._environment import keep_few_products
from esm2_features._files import expanded
from esm2_features.cli.console import CommandError, Commands, examples
from esm2_features.cli.options import (
    Decorator,
    PathType,
    callback_of,
    parse_words,
    run_options,
)
from esm2_features.exceptions import InputError, import_optional


def _tokens_option(text: str, *, required: bool = False) -> Decorator:
    kind = PathType(path_type=Path, dir_okay=False)
    return click.option("--tokens", metavar="FILE", required=required, type=kind, help=text)


def _limit_option(flag: str, default: int, text: str) -> Decorator:
    return click.option(flag, type=click.IntRange(1), default=default, help=text)


@click.command(
    epilog=examples(
        "esm2-features serve",
        "esm2-features serve --host 0.0.0.0 --tokens tokens.txt --model esm2-650m",
        "esm2-features serve --model mine=/data/finetuned.pt --device cuda:0,cuda:1",
    )
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; others need --tokens.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, help="Port to listen on.")
@click.option(
    "--proxy",
    metavar="ADDRESS",
    help="Address of a proxy in front of the server, whose X-Forwarded-For names the clients.",
)
@click.option(
    "--root-path",
    metavar="PATH",
    default="",
    help="Path under which a proxy publishes the server, such as /esm2.",
)
@click.option(
    "--allow-origin",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="A site whose pages may use the server, such as https://notebooks.example.org. Can be "
    "given several times.",
)
@_tokens_option(
    "File with the hashes of valid tokens, as `esm2-features token new` writes it. Without it, the "
    "server only answers this machine."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|NAME=PATH",
    help="A model to serve: an official name, its slug (esm2-650m), mini, or your own name for a "
    "checkpoint. Can be given several times; by default, all models that have a name.",
)
@click.option(
    "--device",
    "devices",
    default="auto",
    callback=callback_of(parse_words),
    metavar="NAME[,NAME...]",
    help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps; each has its own worker.",
)
@run_options("precision", "cache")
@_limit_option("--models-in-memory", 2, "Networks that a device holds.")
@_limit_option("--max-items", 256, "Most sequences in a request.")
@_limit_option("--max-residues", 2048, "Longest sequence.")
@_limit_option("--max-body", 16, "Most megabytes in a request.")
@_limit_option("--max-answer", 256, "Most megabytes of numbers in a response.")
@_limit_option("--max-memory", 1024, "Most megabytes of all requests, besides the models.")
@_limit_option("--max-connections", 1024, "Most connections; a quarter for one address.")
@_limit_option("--max-waiting", 256, "Most requests in the queue.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    help="Seconds until a request is given up.",
)
@_limit_option("--grace", 30, "Seconds until the server ends after SIGTERM.")
@click.option(
    "--rate",
    metavar="N/second|N/minute|auto|none",
    default="auto",
    help="Most requests with one token; auto is 600/minute with --tokens, else none.",
)
@_limit_option("--batch-tokens", 8192, "Tokens computed at a time.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=2.0,
    help="Milliseconds to wait for requests that can share a forward pass.",
)
def serve(
    models: tuple[str, ...],
    devices: list[str],
    max_body: int,
    max_answer: int,
    max_memory: int,
    rate: str,
    wait: float,
    **options: Any,
) -> None:
    """Serve the API of the hosted ESM-2 service, in JSON, Arrow and npz.

    On Ctrl-C or SIGTERM, the server finishes the requests that it can within --grace, and ends.
    """
    keep_few_products()
    import_optional("fastapi", extra="server", purpose="The server")
    from esm2_features.server.app import run
    from esm2_features.server.settings import Settings, read_rate

    if models:
        options["models"] = parse_models(models)
    settings = Settings(
        devices=tuple(devices),
        max_body_bytes=max_body << 20,
        max_answer_bytes=max_answer << 20,
        max_memory_bytes=max_memory << 20,
        rate=read_rate(rate),
        wait=wait / 1000,
        **options,
    )
    if settings.tokens is None:
        click.echo("There are no tokens, so only this machine is served (127.0.0.1).", err=True)
    click.echo(settings.address, err=True)
    run(settings)


@click.group(
    cls=Commands, epilog=examples("esm2-features token new --tokens tokens.txt --name alice")
)
def token() -> None:
    """Create tokens, which let people use a server."""


@token.command(epilog=examples("esm2-features token new --tokens tokens.txt --name alice"))
@_tokens_option(
    "File to add the hash of the token to. To revoke a token, delete its line.", required=True
)
@click.option("--name", required=True, help="Who the token is for.")
def new(tokens: Path, name: str) -> None:
    """Create a token, and print it. Only its hash is kept."""
    from esm2_features.server.tokens import new_token

    click.echo(new_token(tokens, name))
    click.echo(f"Its hash is in {tokens}. Send it as `Authorization: Token ...`.", err=True)


def parse_models(words: tuple[str, ...]) -> dict[str, str]:
    """Read ``NAME`` and ``NAME=PATH`` into a dictionary of names and what they load."""
    from esm2_features.server.settings import Settings

    known = Settings()
    models: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        official = known.find(name)
        if equals and not path:
            raise CommandError(f"--model {word}: the path of the checkpoint is missing.", 2)
        if equals and (official is not None or name in models):
            known_as = official or models[name]
            raise CommandError(
                f"--model {word}: the name is that of {known_as}. Choose another name for {path}.",
                2,
            )
        if not equals and official is None:
            raise InputError(
                f"Got model={word!r}, which is no model's name (see `esm2-features models`). Give "
                f"a checkpoint a name: --model mine={word}"
            )
        models[official or name] = official or expanded(path)
    return models
