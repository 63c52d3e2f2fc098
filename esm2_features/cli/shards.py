"""`esm2-features embed IN... OUT`: a folder of shards, made, resumed, or a task's share of it.

Exit code 1 if something was set aside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from esm2_features.cli.console import INTERRUPTED, CommandError, as_options

if TYPE_CHECKING:
    from esm2_features.distributed.job import ShardReport

_DTYPES = ("float32", "float16")
_ENGINES = ("plain", "ray")
_SHARD_SIZE = 4096

_FILE = re.compile(r"\.(npz|parquet|pq|csv|pt|fasta|fas|faa|fa|fsa|gz|bz2|xz|zst)$", re.IGNORECASE)
"""What a folder is not called, but a file whose -o was forgotten is."""

Decorator = Callable[[Any], Any]


def share_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Read ``i/n``."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", value)
    if found is None or int(found[1]) >= int(found[2]):
        raise click.BadParameter(
            f"{value!r} is not i/n: which task this is, from 0, and of how many, such as 0/8."
        )
    return int(found[1]), int(found[2])


_OPTIONS: dict[str, Decorator] = {
    "dtype": click.option(
        "--dtype",
        type=click.Choice(_DTYPES),
        default="float32",
        help="With a folder OUT: what vectors are written as; float16 halves it, and rounds.",
    ),
    "with_sequence": click.option(
        "--with-sequence", is_flag=True, help="With a folder OUT: write the sequences, too."
    ),
    "sequence_column": click.option(
        "--sequence-column",
        metavar="NAME",
        default="sequence",
        help="With a folder OUT: column of Parquet files that holds the sequences.",
    ),
    "id_column": click.option(
        "--id-column",
        metavar="NAME",
        default="id",
        help="With a folder OUT: column of Parquet files that holds the ids.",
    ),
    "shard_size": click.option(
        "--shard-size",
        type=click.IntRange(min=1),
        metavar="N",
        default=_SHARD_SIZE,
        help="With a folder OUT: sequences of a shard. A row group of a Parquet file is a shard, "
        "if it has no more.",
    ),
    "shard": click.option(
        "--shard",
        callback=share_of,
        metavar="I/N",
        default=None,
        help="With a folder OUT: make the share of task I (from 0) of N, for job arrays.",
    ),
    "engine": click.option(
        "--engine",
        type=click.Choice(_ENGINES),
        default="plain",
        help="With a folder OUT: compute in this process, or in actors of a Ray cluster.",
    ),
    "address": click.option(
        "--address",
        metavar="ADDRESS",
        default=None,
        help="With --engine ray: the cluster, such as auto; by default $RAY_ADDRESS, or one that "
        "is started on this machine.",
    ),
    "workers": click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        help="With --engine ray: number of actors, each with a model of its own.",
    ),
    "gpus_per_worker": click.option(
        "--gpus-per-worker",
        type=click.IntRange(0, 1),
        default=0,
        help="With --engine ray: GPUs of an actor; without, actors share all cores.",
    ),
}

SHARD_OPTIONS = tuple(_OPTIONS)


def shard_options(command: Any) -> Any:
    """Add the options that only a folder of shards has."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


def split(context: click.Context, inputs: Sequence[str], output: Path | None) -> dict[str, Any]:
    """Tell `embed IN -o OUT` from `embed IN... OUT`, and refuse options of the other."""
    given = {name: context.params[name] for name in _OPTIONS}
    if output is None:
        _refuse(context, ("kind", "force"), "is for one file OUT, with -o")
        if len(inputs) < 2:
            raise click.UsageError(
                "Missing option '-o' / '--output' for one file OUT, or a folder OUT after IN.",
                context,
            )
        if _FILE.search(inputs[-1]) and not Path(inputs[-1]).is_dir():
            raise click.UsageError(
                f"The last argument, {inputs[-1]}, should be a folder OUT, and is called like a "
                "file. For one file, write it with -o.",
                context,
            )
        if given["engine"] == "plain":
            _refuse(context, ("address", "workers", "gpus_per_worker"), "is for --engine ray")
        return given
    if Path(inputs[0]).is_dir():
        raise click.UsageError(
            f"{inputs[0]} is a folder, and -o writes what is in one file. Name a file, or a "
            "folder OUT: esm2-features embed IN... OUT",
            context,
        )
    _refuse(context, _OPTIONS, "is for a folder OUT: esm2-features embed IN... OUT")
    if len(inputs) != 1:
        raise click.UsageError(
            "With -o there is one file IN. Several go into a folder: esm2-features embed IN... OUT",
            context,
        )
    return {}


def embed_into_folder(
    context: click.Context, inputs: Sequence[str], *, cache: str | None, **options: Any
) -> None:
    """Do what `embed IN... OUT` says."""
    from esm2_features._environment import keep_few_products
    from esm2_features.distributed.embed import embed_shards

    keep_few_products()
    *sources, folder = inputs
    if _is_default(context, "cache"):
        cache = None
    options["shard"] = options["shard"] or (0, 1)
    try:
        report = embed_shards(
            sources,
            folder,
            cache=cache,
            progress=_say,
            **options,
        )
    except KeyboardInterrupt as error:
        raise CommandError(
            f"Interrupted; finished shards are in {folder}: repeat the command.", INTERRUPTED
        ) from error
    click.echo(_summary(report, folder), err=True)
    if report.failed:
        n = len(report.failed)
        raise CommandError(
            f"{n} {'was' if n == 1 else 'were'} set aside (above, and in {folder}/_manifest). "
            "Mend what is wrong, and repeat the command: it does what is missing.",
            1,
        )


def _say(line: str) -> None:
    click.echo(as_options(line), err=True)


def _summary(report: ShardReport, folder: str) -> str:
    rate = report.sequences / max(report.seconds, 1e-3)
    state = "complete" if report.complete else "not complete yet"
    return (
        f"{report.computed} shards made, {report.present} there before, "
        f"{len(report.failed)} set aside; {report.sequences} sequences ({rate:.0f}/s) -> "
        f"{folder}, {state} ({report.seconds:.1f} s)"
    )


def _is_default(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


def _refuse(context: click.Context, names: Sequence[str] | dict[str, Any], why: str) -> None:
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in names and not _is_default(context, name):
            raise click.UsageError(f"{parameter.opts[-1]} {why}.", context)
