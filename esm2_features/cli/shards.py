"""`esm2-features embed IN... OUT`: make or resume a folder of shards, or one task's share of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click

from esm2_features.cli.console import INTERRUPTED, CommandError, print_message
from esm2_features.cli.options import Decorator, callback_of, two_numbers

_DTYPES = ("float32", "float16")
_ENGINES = ("plain", "ray")
_CHECKS = ("auto", "digest", "size")
_SHARD_SIZE = 4096
_PATIENCE = 300
_MOST_SHOWN = 10

_FILE = re.compile(r"\.(npz|parquet|pq|csv|pt|fasta|fas|faa|fa|fsa|gz|bz2|xz|zst)$", re.IGNORECASE)
"""Endings of files: a last argument with one of them is an output whose -o was forgotten."""


def _parse_share(text: str) -> tuple[int, int]:
    task, tasks = two_numbers(text, "/") or (0, 0)
    if task >= tasks:
        raise click.BadParameter(
            f"{text!r} is not I/N: the number of this task, from 0, and the number of tasks, such "
            "as 0/8."
        )
    return task, tasks


SHARD_OPTIONS: dict[str, Decorator] = {
    "dtype": click.option(
        "--dtype",
        type=click.Choice(_DTYPES),
        default="float32",
        help="With a folder OUT: dtype of the vectors; float16 halves the files and rounds.",
    ),
    "with_sequence": click.option(
        "--with-sequence", is_flag=True, help="With a folder OUT: also write the sequences."
    ),
    "set_aside": click.option(
        "--set-aside",
        type=click.Choice(["record", "shard"]),
        default="record",
        help="With a folder OUT: what to leave out if a record is invalid: the record, or its "
        "whole shard.",
    ),
    "shard_size": click.option(
        "--shard-size",
        type=click.IntRange(min=1),
        metavar="N",
        default=_SHARD_SIZE,
        help="With a folder OUT: sequences in a shard. A row group of a Parquet file with no more "
        "rows is one shard.",
    ),
    "shard": click.option(
        "--shard",
        callback=callback_of(_parse_share),
        metavar="I/N",
        help="With a folder OUT: make only the share of task I (from 0) of N, for job arrays.",
    ),
    "check": click.option(
        "--check",
        type=click.Choice(_CHECKS),
        default="auto",
        help="With a folder OUT: how to check the files of finished shards, of which damaged ones "
        "are made again: by their SHA-256, or by their size only. auto is digest up to 10 GB.",
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
        help="With --engine ray: address of the cluster, such as auto; by default $RAY_ADDRESS, or "
        "a new cluster on this machine.",
    ),
    "workers": click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        default=1,
        help="With --engine ray: number of actors, each with its own model.",
    ),
    "gpus_per_worker": click.option(
        "--gpus-per-worker",
        type=click.IntRange(0, 1),
        default=0,
        help="With --engine ray: GPUs of each actor; with 0, the actors share all cores.",
    ),
    "patience": click.option(
        "--patience",
        type=click.IntRange(min=1),
        metavar="SECONDS",
        default=_PATIENCE,
        help="With --engine ray: how long to wait for a worker when none is left. Then the job "
        "ends, and the same command continues it.",
    ),
}
FILE_OPTIONS = ("kind", "force", "h5_keys")
"""Parameters that need one file OUT; the others are for both."""


def check_arguments(context: click.Context, inputs: Sequence[str], output: Path | None) -> None:
    """Check that arguments and options are those of `embed IN -o OUT` or of `embed IN... OUT`."""
    last = inputs[-1]
    if output is not None:
        if Path(inputs[0]).is_dir():
            raise click.UsageError(
                f"{inputs[0]} is a folder, but -o takes one file IN. Name a file, or write to a "
                "folder OUT: esm2-features embed IN... OUT"
            )
        _check_unused(context, SHARD_OPTIONS, "is for a folder OUT: esm2-features embed IN... OUT")
        if len(inputs) != 1:
            raise click.UsageError(
                "-o takes one file IN. Embed several files into a folder: esm2-features embed "
                "IN... OUT"
            )
        return
    _check_unused(context, FILE_OPTIONS, "is for one file OUT, with -o")
    if len(inputs) < 2:
        raise click.UsageError(
            "Missing option '-o' / '--output' for one file OUT, or a folder OUT after IN."
        )
    if _FILE.search(last) and not Path(last).is_dir():
        raise click.UsageError(
            f"The last argument, {last}, should be a folder OUT, but has the name of a file. To "
            "write one file, use -o."
        )
    if context.params["engine"] == "plain":
        _check_unused(
            context, ("address", "workers", "gpus_per_worker", "patience"), "is for --engine ray"
        )


def embed_into_folder(
    context: click.Context,
    inputs: Sequence[str],
    *,
    cache: str | None,
    column: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run `embed IN... OUT`."""
    from esm2_features._environment import keep_few_products
    from esm2_features.distributed.embed import embed_shards
    from esm2_features.distributed.job import describe_record

    keep_few_products()
    *sources, folder = inputs
    if _is_default(context, "cache"):
        cache = None
    options["shard"] = options["shard"] or (0, 1)
    if dry_run:
        from esm2_features.cli.estimate import print_shard_plan
        from esm2_features.distributed.plan import plan_shards

        options |= {"cache": cache, "sequence_column": column, "progress": print_message}
        print_shard_plan(plan_shards(sources, folder, **options), folder)
        return
    try:
        report = embed_shards(
            sources, folder, cache=cache, sequence_column=column, progress=print_message, **options
        )
    except KeyboardInterrupt as error:
        raise CommandError(
            f"Interrupted; finished shards are in {folder}: repeat the command.", INTERRUPTED
        ) from error
    rate = report.sequences / max(report.seconds, 1e-3)
    n_invalid = len(report.invalid)
    invalid = f", {n_invalid} records set aside" if n_invalid else ""
    for record in report.invalid[:_MOST_SHOWN]:
        print_message(describe_record(record))
    if n_invalid > _MOST_SHOWN:
        print_message(f"... and {n_invalid - _MOST_SHOWN} more")
    state = "complete" if report.complete else "not complete yet"
    click.echo(
        f"{report.computed} shards made, {report.present} there before, "
        f"{len(report.failed)} set aside; {report.sequences} sequences ({rate:.0f}/s){invalid} -> "
        f"{folder}, {state} ({report.seconds:.1f} s)",
        err=True,
    )
    n = len(report.failed) + n_invalid
    if n:
        raise CommandError(
            f"{n} {'was' if n == 1 else 'were'} set aside (see above, and {folder}/_manifest). "
            "Correct the input, and repeat the command: it computes what is missing.",
            1,
        )


def _is_default(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


def _check_unused(context: click.Context, names: Collection[str], why: str) -> None:
    """Raise UsageError if one of these options was given."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in names and not _is_default(context, name):
            raise click.UsageError(f"{parameter.opts[-1]} {why}.")
