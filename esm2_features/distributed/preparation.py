"""What precedes a job of shards: parameters, inputs and the folder are checked."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm2_features._arrow import import_parquet
from esm2_features._inference.remote.endpoint import hidden
from esm2_features._inputs.options import OPTIONS, one_of, positive
from esm2_features._inputs.records import kind_of_name
from esm2_features.distributed.files import DTYPES, ShardTable, vector_columns
from esm2_features.distributed.job import ShardJob
from esm2_features.distributed.manifest import COMPARED, Manifest
from esm2_features.distributed.sources import check_columns, find_sources, left_out, repeated
from esm2_features.distributed.worker import WorkerOptions, versions
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._engine import Engine
    from esm2_features.distributed.sources import InputFile

CHECKS = ("auto", "digest", "size")
_DIGEST_BYTES = 10 * 10**9
"""Size of a folder up to which finished shards are checked by their digests."""


def prepare(
    arguments: dict[str, Any], *, is_dry_run: bool = False
) -> tuple[ShardJob, WorkerOptions, Engine]:
    """Check the arguments of `embed_shards`, and begin the job or compare it with the folder."""
    from esm2_features._engine import Engine

    print_line = arguments["progress"] or (lambda _: None)
    options = engine_options(arguments) | {"verbose": arguments["progress"] is not None}
    options |= {"token": hidden(arguments["token"])}
    _check_share(arguments["shard"])
    size = positive("shard_size", arguments["shard_size"])
    one_of("dtype", arguments["dtype"], DTYPES)
    one_of("set_aside", arguments["set_aside"], ("record", "shard"))
    check = one_of("check", arguments["check"], CHECKS)
    import_parquet("Writing shards")
    engine = Engine(**options)
    inputs, folder = arguments["inputs"], Path(arguments["output"]).absolute()
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    columns = {name: arguments[name] for name in ("sequence_column", "id_column")}
    sources = find_sources(paths, **columns)
    _check_sources(sources, folder)
    for others in left_out(paths):
        print_line(f"Left out of the input folder: {others}.")
    for name in repeated(paths):
        print_line(f"{name}: embedded once.")
    identity = _identity_of(engine, is_remote=options["endpoint"] is not None)
    table = _table(engine, identity, arguments["dtype"], bool(arguments["with_sequence"]))
    job = _description(engine, identity, table)
    job["parameters"] |= {"shard_size": size, **columns}
    job = json.loads(json.dumps(job))
    manifest = Manifest(folder, is_read_only=is_dry_run)
    if note := manifest.begin(job, sources):
        print_line(note)
    table.about.update(digest=manifest.digest, job={part: job[part] for part in COMPARED})
    settings = WorkerOptions(
        options, engine.checkpoint.identity, folder, table, arguments["set_aside"]
    )
    by_digest = check == "digest" or (check == "auto" and manifest.bytes() <= _DIGEST_BYTES)
    share = arguments["shard"]
    return ShardJob(manifest, sources, size, share, by_digest=by_digest), settings, engine


def _identity_of(engine: Engine, *, is_remote: bool) -> str:
    """Return the identity of the weights, which a server may have of its own."""
    if is_remote:
        with engine.runner.backend.connect() as connection:
            if connection.identity is not None:
                return connection.identity
    return engine.checkpoint.identity


def engine_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Choose the arguments of a function that are parameters of `Engine`."""
    options = {name: value for name, value in arguments.items() if name in OPTIONS}
    paths = {name: options[name] for name in ("model", "cache") if options[name] is not None}
    return options | {name: os.fspath(path) for name, path in paths.items()}


def _table(engine: Engine, identity: str, dtype: str, with_sequence: bool) -> ShardTable:
    """Describe the columns of a shard."""
    checkpoint = engine.checkpoint
    about: dict[str, Any] = {
        "model": checkpoint.name,
        "identity": identity,
        "precision": engine.precision,
        "esm2-features": versions()["esm2-features"],
    }
    vectors = vector_columns(engine.layers, engine.poolings)
    return ShardTable(vectors, checkpoint.architecture.dim, dtype, with_sequence, about)


def _description(engine: Engine, identity: str, table: ShardTable) -> dict[str, Any]:
    """Describe the job, as the manifest keeps it."""
    return {
        "model": {"name": engine.checkpoint.name, "identity": identity},
        "parameters": {
            "layers": engine.layers,
            "pooling": engine.poolings,
            "region": engine.region,
            "precision": engine.precision,
            "max_residues": engine.max_residues,
            "too_long": engine.too_long,
            "unknown": engine.unknown,
            "cache_dtype": engine.cache_dtype,
        },
        "columns": {name: value for name, value in asdict(table).items() if name != "about"},
        "versions": versions(),
    }


def _check_share(shard: tuple[int, int]) -> None:
    is_pair = isinstance(shard, tuple) and len(shard) == 2
    if not is_pair or not all(type(n) is int for n in shard) or not 0 <= shard[0] < shard[1]:
        raise InputError(
            f"Got shard={shard!r}; expected (i, n): the number of this task, from 0 to n - 1, and "
            "the number of tasks."
        )


def _check_sources(sources: Sequence[InputFile], folder: Path) -> None:
    for source in sources:
        if folder in source.path.absolute().parents:
            raise InputError(
                f"{source.path} is an input, and lies in the output folder. Name other inputs, or "
                "another output folder."
            )
    kinds = {kind_of_name(source.path.name): source for source in reversed(sources)}
    for first in kinds.values():
        check_columns(first)
