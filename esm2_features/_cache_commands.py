"""`esm2-features cache`: look at the cache, check it, tidy it up, share it.

Never here: what is done; every command is one call of `Cache`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._catalogue import OFFICIAL
from esm2_features._console import Stop, examples, readable
from esm2_features._options import CACHE_DTYPES, POOLINGS, PRECISIONS
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from esm2_features._cache import Cache
    from esm2_features._spec import Spec

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


def _opened(_: click.Context, __: click.Parameter, value: str) -> Cache:
    from esm2_features._cache import Cache

    if value == "none":
        raise click.BadParameter("'none' is no cache. Name a folder, or auto.")
    return Cache(None if value == "auto" else value)


_which: Callable[[Any], Any] = click.option(
    "--cache",
    callback=_opened,
    metavar="FOLDER|auto",
    default="auto",
    help="Which cache; auto is the user's cache folder, or $ESM2_FEATURES_CACHE.",
)
_model_help = "Only vectors of this model: its name, or its identity (sha256:...)."


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
@_which
def info(cache: Cache) -> None:
    """Show where the cache is, how large, and what it holds."""
    found = cache.info()
    click.echo(f"{found.path}: {found.rows} vectors, {readable(found.bytes)}")
    if found.spaces:
        header = ("model", "layer", "pooling", "precision", "kept in", "vectors", "size")
        rows = [
            (*_words(space.spec), str(space.rows), readable(space.bytes)) for space in found.spaces
        ]
        _show_table([header, *rows])


@cache.command(epilog=examples("esm2-features cache verify"))
@_which
def verify(cache: Cache) -> None:
    """Read every vector and compare it with its checksum.

    Nothing is changed. The exit code is 1 if something is damaged.
    """
    found = cache.verify()
    click.echo(f"{cache.path}: {found.rows} vectors are as they were written.")
    for sentence in found.damaged:
        click.echo(f"Damaged: {sentence}")
    if found.damaged:
        raise Stop(
            "The cache is damaged. Damaged vectors are never used; `esm2-features cache prune` "
            "removes them. If this happens often, check the disk.",
            1,
        )


@cache.command(
    epilog=examples(
        "esm2-features cache prune --max-bytes 20GB",
        "esm2-features cache prune --unused-days 365",
        "esm2-features cache prune --model esm2_t6_8M_UR50D",
    )
)
@_which
@click.option(
    "--max-bytes",
    callback=_bytes,
    metavar="SIZE",
    help="Keep so much, such as 20GB: what was not used for longest goes first.",
)
@click.option(
    "--unused-days",
    type=click.IntRange(min=0),
    metavar="N",
    help="Remove what was not used for more than N days.",
)
@click.option("--model", metavar="NAME", help="Remove all vectors of this model.")
def prune(cache: Cache, max_bytes: int | None, unused_days: int | None, model: str | None) -> None:
    """Remove what is damaged or not wanted, and give the space back.

    Without options, only damaged vectors go, and what lies scattered is joined.
    """
    gone = cache.prune(max_bytes=max_bytes, unused_days=unused_days, model=model)
    click.echo(f"{gone.rows} vectors removed; the file is {readable(max(0, gone.bytes))} smaller.")


@cache.command(epilog=examples("esm2-features cache export esm2.parquet --model esm2_t6_8M_UR50D"))
@click.argument("output", metavar="OUT.parquet", type=click.Path(path_type=Path))
@_which
@click.option("--model", metavar="NAME", help=_model_help)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def export(output: Path, cache: Cache, model: str | None, force: bool) -> None:
    """Write vectors to a Parquet file for another cache to import.

    Columns: key (a digest of the sequence and all that determines the vector), model, checkpoint,
    layer, pooling, precision, dtype, vector.
    """
    if output.exists() and not force:
        raise InputError(f"{output} exists already. Choose another name, or replace it: --force.")
    n = cache.export(output, model=model)
    click.echo(f"{n} vectors -> {output} ({readable(output.stat().st_size)})", err=True)


@cache.command(
    "import",
    epilog=examples(
        "esm2-features cache import vectors.parquet",
        "esm2-features cache import /data/other_cache",
        "esm2-features cache import FILE.npz --model esm2_t6_8M_UR50D --layer 6 --pooling mean",
    ),
)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@_which
@click.option(
    "--model",
    metavar="NAME",
    type=click.Choice(list(OFFICIAL)),
    help="Which official model the vectors are of; for .npz and .csv, as are the next four: "
    + ", ".join(OFFICIAL),
)
@click.option("--layer", type=int, default=-1, help="Their layer; negatives count from the end.")
@click.option("--pooling", type=click.Choice(POOLINGS), default="mean", help="Their pooling.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    help="Arithmetic that they were computed in.",
)
@click.option(
    "--cache-dtype",
    type=click.Choice(CACHE_DTYPES),
    default="float32",
    help="What to keep them in.",
)
@click.option("--replace", is_flag=True, help="Replace vectors that the new ones contradict.")
def import_(
    source: Path,
    cache: Cache,
    model: str | None,
    layer: int,
    pooling: str,
    precision: str,
    cache_dtype: str,
    replace: bool,
) -> None:
    """Take in vectors that were computed elsewhere.

    IN is a .parquet that `cache export` wrote; the folder of another cache; or sequences with
    vectors of an official model: .npz with arrays sequence and embedding, or .csv with a column
    sequence and one for each component. The exit code is 1 if vectors contradict those that are
    there by more than rounding; these stay, unless --replace is given.
    """
    found = cache.import_(
        source,
        model=model,
        layer=layer,
        pooling=pooling,
        precision=precision,
        cache_dtype=cache_dtype,
        replace=replace,
    )
    click.echo(f"{found.added} vectors are new, {found.present} were there -> {cache.path}")
    for conflict in found.conflicts[:_MOST_SHOWN]:
        click.echo(
            f"Contradiction: {', '.join(_words(conflict.spec))}: key {conflict.key[:16]}..., "
            f"largest difference {conflict.difference:.3g}"
        )
    if found.conflicts:
        kept = "The new ones replaced them." if replace else "Those that were there stay."
        raise Stop(f"{len(found.conflicts)} vectors contradict what was there. {kept}", 1)


@cache.command(epilog=examples("esm2-features cache clear --yes"))
@_which
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(cache: Cache, yes: bool) -> None:
    """Delete all vectors."""
    if not yes:
        click.confirm(f"Delete all vectors in {cache.path}?", abort=True)
    click.echo(f"{cache.clear()} vectors deleted from {cache.path}.")


def _words(spec: Spec) -> tuple[str, ...]:
    name = spec.model or spec.checkpoint
    return name, str(spec.layer), spec.pooling, spec.precision, spec.dtype


def _show_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
