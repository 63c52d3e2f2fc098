"""`esm2-features cache`: inspect, verify, prune and share the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features._cache.reports import readable, vectors
from esm2_features._files import expanded
from esm2_features._inputs.options import CACHED_POOLINGS, POOLINGS
from esm2_features.cli.console import CommandError, examples
from esm2_features.cli.options import (
    INPUT,
    PATH,
    Decorator,
    add_options,
    callback_of,
    force_option,
    parse_size,
    run_option,
)
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._cache import Cache

_MOST_SHOWN = 10


def _cache_option(*, must_exist: bool = True) -> Decorator:
    def open_cache(name: str) -> Cache:
        from esm2_features._cache import Cache
        from esm2_features._cache.recovery import set_aside

        cache = Cache(None if name == "auto" else expanded(name))
        if must_exist and not cache.file.exists() and not set_aside(cache.file):
            raise InputError(f"There is no cache in {cache.path}.")
        return cache

    return run_option(
        "cache",
        callback=callback_of(open_cache),
        metavar="FOLDER|auto",
        help="Which cache. auto is the user's cache folder, or $ESM2_FEATURES_CACHE.",
    )


def _selection_options(what: str) -> Decorator:
    """Add the options that select vectors."""
    return add_options(
        [
            click.option(
                "--model",
                metavar="NAME",
                help=f"{what} of this model: its name, or its identity (sha256:...).",
            ),
            click.option("--layer", type=int, metavar="N", help=f"{what} of this layer, from 0."),
            click.option(
                "--pooling", type=click.Choice(CACHED_POOLINGS), help=f"{what} of this pooling."
            ),
        ]
    )


@click.group(
    epilog=examples(
        "esm2-features cache info",
        "esm2-features cache export vectors.parquet",
        "esm2-features cache import vectors.parquet",
    )
)
def cache() -> None:
    """Inspect, verify, prune and share the cache."""


@cache.command(epilog=examples("esm2-features cache info --cache /data/shared"))
@_cache_option(must_exist=False)
def info(cache: Cache) -> None:
    """Show where the cache is, how large it is, and what it holds."""
    report = cache.info()
    if cache.file.exists() or report.set_aside:
        click.echo(str(report))
    else:
        click.echo(f"There is no cache in {cache.path}.")


@cache.command(epilog=examples("esm2-features cache verify"))
@_cache_option()
def verify(cache: Cache) -> None:
    """Read every vector and compare it with its checksum.

    Nothing is changed. The exit code is 1 if something is damaged.
    """
    report = cache.verify()
    click.echo(f"{cache.path}: {vectors(report.rows)} as written.")
    for sentence in report.damaged:
        click.echo(f"Damaged: {sentence}")
    if report.damaged:
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
@_cache_option()
@click.option(
    "--max-bytes",
    callback=callback_of(parse_size),
    metavar="SIZE",
    help="Keep at most this much, such as 20GB, but at least 4MB. The vectors that were not used "
    "for the longest time are removed first.",
)
@click.option(
    "--unused-days",
    type=click.IntRange(min=0),
    metavar="N",
    help="Remove vectors that were not used for more than N days.",
)
@_selection_options("Remove vectors")
def prune(cache: Cache, **options: Any) -> None:
    """Remove damaged and unwanted vectors, and free their disk space.

    Without options, only damaged vectors are removed, and small blocks are joined.
    """
    report = cache.prune(**options)
    click.echo(f"{vectors(report.rows)} removed; the file is {readable(report.bytes)} smaller.")


@cache.command(epilog=examples("esm2-features cache export esm2.parquet --model esm2_t6_8M_UR50D"))
@click.argument("output", metavar="OUT.parquet", type=PATH)
@_cache_option()
@_selection_options("Only vectors")
@force_option
def export(output: Path, cache: Cache, force: bool, **options: Any) -> None:
    """Write vectors to a Parquet file that another cache can import.

    Columns: key (a digest of the sequence and all that determines the vector), model, checkpoint,
    layer, pooling, precision, dtype, vector. There are no sequences: a cache only has digests.
    """
    if output.exists() and not force:
        raise InputError(f"{output} exists already. Choose another name, or replace it: --force.")
    n = cache.export(output, **options)
    click.echo(f"{vectors(n)} -> {output} ({readable(output.stat().st_size)})", err=True)


@cache.command(
    "import",
    epilog=examples(
        "esm2-features cache import vectors.parquet",
        "esm2-features cache import /data/other_cache",
        "esm2-features cache import FILE.npz --model esm2_t6_8M_UR50D --layer 6 --pooling mean",
        "esm2-features cache import extracted/ --model esm2_t6_8M_UR50D --sequences proteins.fasta",
    ),
)
@click.argument("source", metavar="IN", type=PATH)
@_cache_option(must_exist=False)
@click.option(
    "--model",
    metavar="NAME",
    help="Official model that computed the vectors. This and the next four options are not for "
    ".parquet and caches.",
)
@click.option(
    "--layer", type=int, help="Layer of the vectors (required, but for .pt); -1 is the last."
)
@click.option(
    "--pooling", type=click.Choice(POOLINGS), help="Pooling of the vectors (required, but for .pt)."
)
@run_option("precision", default=None, help="Arithmetic of the vectors, if not float32.")
@run_option(
    "cache_dtype",
    default=None,
    help="dtype to keep the vectors in, if not float32. A run only uses vectors that are kept in "
    "its own --cache-dtype.",
)
@click.option(
    "--sequences",
    metavar="FILE",
    type=INPUT,
    help="File of the sequences whose names .h5 and .pt have, such as FASTA.",
)
@click.option("--replace", is_flag=True, help="Replace vectors that the new ones contradict.")
def import_(source: Path, cache: Cache, replace: bool, **options: Any) -> None:
    """Import vectors that were computed elsewhere. They are trusted, not computed again.

    IN is a .parquet that `cache export` wrote, the folder of another cache, or vectors of an
    official model: .npz with arrays sequence and embedding; .csv with a column sequence and one for
    each component; .h5 with a dataset for each id (UniProt, ProtSpace) or hash (biotrainer); or a
    folder of .pt, as fair-esm's scripts/extract.py writes. Vectors that differ by more than
    rounding from those in the cache are left out and reported with exit code 1, unless --replace is
    given.
    """
    report = cache.import_(source, replace=replace, **options)
    click.echo(f"{vectors(report.added)} new, {report.present} there already -> {cache.path}")
    for conflict in report.conflicts[:_MOST_SHOWN]:
        click.echo(f"{'Replaced' if replace else 'Left out'}: {conflict}")
    if len(report.conflicts) > _MOST_SHOWN:
        click.echo(f"... and {len(report.conflicts) - _MOST_SHOWN} more")
    if report.conflicts and not replace:
        raise CommandError(
            f"{vectors(len(report.conflicts))} of {source} left out: they contradict vectors in "
            "the cache, or each other.",
            1,
        )


@cache.command(
    epilog=examples("esm2-features cache recover", "esm2-features cache recover --remove")
)
@_cache_option()
@click.option(
    "--remove", is_flag=True, help="Remove each file when its intact vectors are brought back."
)
def recover(cache: Cache, remove: bool) -> None:
    """Bring back intact vectors from files that were set aside as damaged.

    `cache info` lists these files. Vectors that the cache has already stay as they are. The exit
    code is 1 if a file cannot be opened.
    """
    report = cache.recover(remove=remove)
    for file in report.files:
        click.echo(f"{file}.")
    click.echo(f"{vectors(report.added)} brought back -> {cache.path}")
    unreadable = sum(file.error is not None for file in report.files)
    if unreadable:
        raise CommandError(f"{unreadable} of {len(report.files)} files cannot be opened.", 1)


@cache.command(epilog=examples("esm2-features cache clear --yes"))
@_cache_option()
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def clear(cache: Cache, yes: bool) -> None:
    """Delete all vectors, also those in files that were set aside as damaged."""
    if not yes:
        click.confirm(f"Delete all vectors in {cache.path}?", abort=True)
    click.echo(f"{vectors(cache.clear())} deleted from {cache.path}.")
