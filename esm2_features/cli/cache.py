"""`esm2-features cache`: look at the cache, check it, tidy it up, share it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._cache.reports import readable, vectors
from esm2_features._inputs.options import CACHE_DTYPES, POOLINGS, PRECISIONS
from esm2_features.cli.console import CommandError, examples
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from esm2_features._cache import Cache

_MOST_SHOWN = 10
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _bytes(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?B?)", value, re.IGNORECASE)
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None:
        raise click.BadParameter(f"{value!r} is no size such as 500MB or 20GB.")
    return int(float(found[1]) * unit)


def _folder(_: click.Context, __: click.Parameter, value: str) -> Cache:
    from esm2_features._cache import Cache

    return Cache(None if value == "auto" else value)


def _existing(context: click.Context, parameter: click.Parameter, value: str) -> Cache:
    cache = _folder(context, parameter, value)
    if not cache.file.exists():
        raise InputError(f"There is no cache in {cache.path}.")
    return cache


def _which(callback: Callable[..., Cache]) -> Callable[[Any], Any]:
    return click.option(
        "--cache",
        callback=callback,
        metavar="FOLDER|auto",
        default="auto",
        help="Which cache; auto is the user's cache folder, or $ESM2_FEATURES_CACHE.",
    )


def _only(verb: str) -> Callable[[Any], Any]:
    """Options that say which vectors are meant."""

    def add(command: Any) -> Any:
        for option in (
            click.option("--pooling", type=click.Choice(POOLINGS), help=f"{verb} of this pooling."),
            click.option("--layer", type=int, metavar="N", help=f"{verb} of this layer, from 0."),
            click.option(
                "--model",
                metavar="NAME",
                help=f"{verb} of this model: its name, or its identity (sha256:...).",
            ),
        ):
            command = option(command)
        return command

    return add


@click.group(
    epilog=examples(
        "esm2-features cache info",
        "esm2-features cache export vectors.parquet",
        "esm2-features cache import vectors.parquet",
    ),
)
def cache() -> None:
    """Look at the cache, check it, tidy it up, share it."""


@cache.command(epilog=examples("esm2-features cache info --cache /data/shared"))
@_which(_folder)
def info(cache: Cache) -> None:
    """Show where the cache is, how large, and what it holds."""
    if cache.file.exists():
        click.echo(str(cache.info()))
    else:
        click.echo(f"There is no cache in {cache.path}.")


@cache.command(epilog=examples("esm2-features cache verify"))
@_which(_existing)
def verify(cache: Cache) -> None:
    """Read every vector and compare it with its checksum.

    Nothing is changed. The exit code is 1 if something is damaged.
    """
    found = cache.verify()
    click.echo(f"{cache.path}: {vectors(found.rows)} as written.")
    for sentence in found.damaged:
        click.echo(f"Damaged: {sentence}")
    if found.damaged:
        raise CommandError(
            "The cache is damaged. Damaged vectors are never used; `esm2-features cache prune` "
            "removes them. If this happens often, check the disk.",
            1,
        )


@cache.command(
    epilog=examples(
        "esm2-features cache prune --max-bytes 20GB",
        "esm2-features cache prune --unused-days 365",
        "esm2-features cache prune --model esm2_t6_8M_UR50D --layer 5",
    )
)
@_which(_existing)
@click.option(
    "--max-bytes",
    callback=_bytes,
    metavar="SIZE",
    help="Keep so much, such as 20GB, and 4MB at least: what was not used for longest goes first.",
)
@click.option(
    "--unused-days",
    type=click.IntRange(min=0),
    metavar="N",
    help="Remove what was not used for more than N days.",
)
@_only("Remove vectors")
def prune(cache: Cache, **wanted: Any) -> None:
    """Remove what is damaged or not wanted, and give the space back.

    Without options, only damaged vectors go, and what lies scattered is joined.
    """
    gone = cache.prune(**wanted)
    click.echo(f"{vectors(gone.rows)} removed; the file is {readable(max(0, gone.bytes))} smaller.")


@cache.command(epilog=examples("esm2-features cache export esm2.parquet --model esm2_t6_8M_UR50D"))
@click.argument("output", metavar="OUT.parquet", type=click.Path(path_type=Path))
@_which(_existing)
@_only("Only vectors")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def export(output: Path, cache: Cache, force: bool, **wanted: Any) -> None:
    """Write vectors to a Parquet file for another cache to import.

    Columns: key (a digest of the sequence and all that determines the vector), model, checkpoint,
    layer, pooling, precision, dtype, vector. Sequences are not in it: a cache has but digests.
    """
    if output.exists() and not force:
        raise InputError(f"{output} exists already. Choose another name, or replace it: --force.")
    n = cache.export(output, **wanted)
    click.echo(f"{vectors(n)} -> {output} ({readable(output.stat().st_size)})", err=True)


@cache.command(
    "import",
    epilog=examples(
        "esm2-features cache import vectors.parquet",
        "esm2-features cache import /data/other_cache",
        "esm2-features cache import FILE.npz --model esm2_t6_8M_UR50D --layer 6 --pooling mean",
    ),
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@_which(_folder)
@click.option(
    "--model",
    metavar="NAME",
    help="Which official model the vectors are of; has to be said of .npz and .csv, and of nothing "
    "else, as the next four.",
)
@click.option("--layer", type=int, help="Their layer, which has to be said; -1 is the last.")
@click.option("--pooling", type=click.Choice(POOLINGS), help="Their pooling, as well.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Arithmetic that they were computed in, if not float32.",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(CACHE_DTYPES),
    help="What to keep them in, if not float32: only who asks for the same finds them.",
)
@click.option("--replace", is_flag=True, help="Replace vectors that the new ones contradict.")
def import_(source: Path, cache: Cache, replace: bool, **told: Any) -> None:
    """Take in vectors that were computed elsewhere. They are taken on trust.

    IN is a .parquet that `cache export` wrote; the folder of another cache; or sequences with
    vectors of an official model: .npz with arrays sequence and embedding, or .csv with a column
    sequence and one for each component. Vectors that contradict those that are there by more than
    rounding are reported with exit code 1, and left out, unless --replace is given.
    """
    found = cache.import_(source, replace=replace, **told)
    click.echo(f"{vectors(found.added)} new, {found.present} there already -> {cache.path}")
    for conflict in found.conflicts[:_MOST_SHOWN]:
        click.echo(f"{'Replaced' if replace else 'Left out'}: {conflict}")
    if len(found.conflicts) > _MOST_SHOWN:
        click.echo(f"... and {len(found.conflicts) - _MOST_SHOWN} more")
    if found.conflicts and not replace:
        raise CommandError(
            f"{vectors(len(found.conflicts))} of {source} left out, because of contradicting what "
            "was there, or each other.",
            1,
        )


@cache.command(epilog=examples("esm2-features cache clear --yes"))
@_which(_existing)
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(cache: Cache, yes: bool) -> None:
    """Delete all vectors."""
    if not yes:
        click.confirm(f"Delete all vectors in {cache.path}?", abort=True)
    click.echo(f"{vectors(cache.clear())} deleted from {cache.path}.")
