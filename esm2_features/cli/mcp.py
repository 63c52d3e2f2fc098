"""`esm2-features mcp`: tools for chat agents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from esm2_features._environment import keep_few_products
from esm2_features.cli.console import examples
from esm2_features.cli.options import PathType, device_option, parse_words, run_options
from esm2_features.cli.serve import parse_models
from esm2_features.exceptions import import_optional


@click.command(
    epilog=examples(
        "esm2-features mcp --allow ./data",
        "esm2-features mcp --allow /data/proteins --model mini --model mine=/data/finetuned.pt",
        "esm2-features mcp --allow ./data --http 0.0.0.0:8001 --tokens tokens.txt",
    )
)
@click.option(
    "--allow",
    "folders",
    multiple=True,
    metavar="FOLDER",
    type=PathType(path_type=Path),
    help="Folder in which agents may read and write files; links that lead out of it are refused. "
    "Can be given several times; names of files begin in the first. Without it, there are no "
    "files.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|NAME=PATH",
    help="A model that agents may use, as for `serve`. Can be given several times; by default, all "
    "models that have a name. Calls that name none use the 650M model, or else the first.",
)
@click.option("--download", is_flag=True, help="Let agents download weights, of up to 30 GB.")
@device_option
@run_options("precision", "cache")
@click.option("--http", metavar="HOST:PORT", help="Serve HTTP, at /mcp, instead of stdin.")
@click.option(
    "--tokens",
    metavar="FILE",
    type=PathType(path_type=Path, dir_okay=False),
    help="With --http: file of tokens, as `esm2-features token new` writes it. Needed unless HOST "
    "is this machine.",
)
@click.option(
    "--max-sequences", "max_items", type=click.IntRange(1), default=10_000, help="Per call."
)
@click.option("--max-residues", type=click.IntRange(1), default=2048, help="Longest sequence.")
@click.option(
    "--max-file", type=click.IntRange(1), default=64, help="Megabytes of a file, decompressed."
)
@click.option("--max-waiting", type=click.IntRange(1), default=16, help="Calls in the queue.")
def mcp(
    folders: tuple[Path, ...],
    models: tuple[str, ...],
    download: bool,
    device: str,
    http: str | None,
    max_file: int,
    **options: Any,
) -> None:
    """Serve tools for chat agents, over the Model Context Protocol.

    Agents embed sequences, score variants, scan proteins, predict contacts, find neighbours,
    compare features, and predict with saved models. A host such as Claude Desktop starts this
    command, and talks to it on standard input and output. Vectors go into files, and answers are
    summaries.
    """
    keep_few_products()
    import_optional("mcp", extra="mcp", purpose="The server for agents")
    from esm2_features.agents import AgentSettings, run
    from esm2_features.agents.folders import Folders
    from esm2_features.server.settings import Settings

    if http is not None:
        match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]{1,5})", http)
        if match is None or not 0 < int(match[3]) < 65536:
            raise click.BadParameter(f"{http!r} is not HOST:PORT, such as 127.0.0.1:8001.")
        options |= {"host": match[1] or match[2], "port": int(match[3])}
    elif options["tokens"] is not None:
        raise click.UsageError("--tokens is for --http. Leave it out, or add --http HOST:PORT.")
    if models:
        options["models"] = parse_models(models)
    settings = AgentSettings(
        Settings(devices=tuple(parse_words(device)), **options),
        Folders(folders, max_file << 20),
        download,
    )
    open_folders = ", ".join(map(str, settings.folders.paths)) or "none; see --allow"
    where = "standard input" if http is None else f"http://{http}/mcp"
    click.echo(f"Tools for agents on {where}; open folders: {open_folders}.", err=True)
    run(settings, http=http is not None)
