r"""Jobs that are larger than memory, or than one process: shards, and Ray.

>>> import tempfile
>>> from pathlib import Path
>>> from esm2_features import distributed, open_embeddings
>>> folder = Path(tempfile.mkdtemp())
>>> _ = (folder / "peptides.fasta").write_text(">oxt\nCYIQNCPLG\n>avp\nCYFQNCPRG\n")
>>> report = distributed.embed_shards(folder / "peptides.fasta", folder / "out", model="mini")
>>> report.computed, report.sequences, report.complete
(1, 2, True)
>>> open_embeddings(folder / "out").get(["avp"]).shape
(1, 192)

Nothing of Ray is imported before it is asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from esm2_features._arrow import import_parquet
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._inputs.options import one_of, positive
from esm2_features.distributed.files import DTYPES, ShardTable, vector_columns
from esm2_features.distributed.job import ShardJob, ShardReport
from esm2_features.distributed.manifest import Manifest
from esm2_features.distributed.ray_batches import BatchEmbedder
from esm2_features.distributed.ray_cluster import import_ray, on_cluster
from esm2_features.distributed.sources import check_columns, find_sources
from esm2_features.distributed.worker import ShardWorker, WorkerOptions, versions
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    import ray.data

    from esm2_features._engine import Engine
    from esm2_features.distributed.sources import InputFile

__all__ = ["embed_ray_dataset", "embed_shards"]

SHARD_SIZE = 4096
ENGINES = ("plain", "ray")


def embed_shards(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    layers: int | Sequence[int] | Literal["all"] = -1,
    pooling: str | Sequence[str] = "mean",
    region: tuple[int, int] | None = None,
    precision: str = "float32",
    device: str | list[str] = "auto",
    batch_tokens: int | Literal["auto"] = "auto",
    max_residues: int | None = 1022,
    too_long: Literal["raise", "truncate", "window"] = "raise",
    unknown: Literal["raise", "X", "mask"] = "raise",
    cache: str | os.PathLike[str] | None = None,
    cache_dtype: Literal["float32", "float16"] = "float32",
    store: Literal["requested", "all"] = "requested",
    dtype: Literal["float32", "float16"] = "float32",
    with_sequence: bool = False,
    sequence_column: str = "sequence",
    id_column: str = "id",
    shard_size: int = SHARD_SIZE,
    shard: tuple[int, int] = (0, 1),
    engine: Literal["plain", "ray"] = "plain",
    address: str | None = None,
    workers: int = 1,
    gpus_per_worker: int = 0,
    progress: Callable[[str], None] | None = None,
) -> ShardReport:
    r"""Embed files of any size into a folder of Parquet files.

    Memory does not grow with the input. What is there already is not computed again: after an
    interruption, or for what was set aside, repeat the call. A shard that cannot be read, or holds
    a sequence that is wrong, is set aside and reported, and the rest goes on.

    Parameters
    ----------
    inputs : str, path-like, or iterable of them
        Files of FASTA (also compressed) or Parquet, folders of such files, patterns such as
        ``"data/*.fasta.gz"``.
    output : str or path-like
        The folder of shards: new, empty, or begun with the same parameters and inputs.
    model : str or path-like, default="esm2_t33_650M_UR50D"
        As in `Engine`.
    layers : int, list of int or "all", default=-1
        As in `Engine`; each of several layers gets a column of its own.
    pooling : str, list of str or "all", default="mean"
        As in `Engine`; each of several poolings gets a column of its own.
    region : (int, int), optional
        As in `Engine`.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        As in `Engine`.
    device : str or list of str, default="auto"
        As in `Engine`.
    batch_tokens : int or "auto", default="auto"
        As in `Engine`.
    max_residues : int or None, default=1022
        As in `Engine`.
    too_long : {"raise", "truncate", "window"}, default="raise"
        As in `Engine`.
    unknown : {"raise", "X", "mask"}, default="raise"
        As in `Engine`.
    cache : "auto", path or None, default=None
        As in `Engine`, but none by default: the shards are what is kept, and a cache would take as
        much room again. With one, sequences that occur in several shards are computed once, and
        an interruption loses nothing of the shard that is being made.
    cache_dtype : {"float32", "float16"}, default="float32"
        As in `Engine`.
    store : {"requested", "all"}, default="requested"
        As in `Engine`.
    dtype : {"float32", "float16"}, default="float32"
        What vectors are written as. ``"float16"`` takes half the room, and rounds to about 3
        digits.
    with_sequence : bool, default=False
        Write the sequences, too.
    sequence_column : str, default="sequence"
        Column of Parquet files that holds the sequences.
    id_column : str, default="id"
        Column of Parquet files that holds the ids.
    shard_size : int, default=4096
        Sequences of a shard. A row group of a Parquet file is a shard if it has no more rows.
    shard : (int, int), default=(0, 1)
        Which task this is, from 0, and how many there are: each makes its own share of the shards.
    engine : {"plain", "ray"}, default="plain"
        ``"plain"`` computes in this process, ``"ray"`` in actors of Ray, each with a model of its
        own. All of them have to see ``output``; ``inputs`` are read here.
    address : str or None, default=None
        Of a cluster of Ray, such as ``"auto"`` or ``"ray://host:10001"``. By default the one that
        this process is connected to, that of ``$RAY_ADDRESS``, or a new one on this machine.
    workers : int, default=1
        Number of actors. Without GPUs, they share all cores.
    gpus_per_worker : int, default=0
        1 gives each actor a GPU.
    progress : callable, optional
        Gets a line of text about each shard.

    Returns
    -------
    report : ShardReport
        What was made, and what was set aside.

    Raises
    ------
    InputError
        If an input stands for no file, a parameter has a value that it cannot have, the folder was
        begun with something else, or an input is not what finished shards were made of.
    TypeError
        If a parameter is of a type that it cannot have.
    CheckpointError
        If ``model`` is no checkpoint, or its weights cannot be loaded.
    OSError
        If a shard cannot be written; those that are there stay. Or if there is no cluster at the
        address.
    OutOfMemoryError
        If the weights do not fit into memory.
    ForkedProcessError, CacheVersionError
        As `Engine` does.
    MissingDependencyError
        If PyArrow is not installed, or Ray, and it is asked for.

    Warns
    -----
    TruncationWarning
        If sequences were cut, because ``too_long="truncate"`` asked for it.

    See Also
    --------
    open_embeddings : Reads what was written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from esm2_features import distributed
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "two.fasta").write_text(">oxt\nCYIQNCPLG\n>avp\nCYFQNCPRG\n")
    >>> report = distributed.embed_shards(folder / "two.fasta", folder / "out", model="mini")
    >>> sorted(path.name for path in (folder / "out").glob("*.parquet"))
    ['two-00000.parquet']
    >>> distributed.embed_shards(folder / "two.fasta", folder / "out", model="mini").computed
    0
    """
    from esm2_features._engine import Engine

    options: dict[str, Any] = {
        "model": os.fspath(model),
        "layers": layers,
        "pooling": pooling,
        "region": region,
        "precision": precision,
        "device": device,
        "batch_tokens": batch_tokens,
        "max_residues": max_residues,
        "too_long": too_long,
        "unknown": unknown,
        "cache": cache if cache is None else os.fspath(cache),
        "cache_dtype": cache_dtype,
        "store": store,
        "verbose": progress is not None,
    }
    share = _share(shard)
    size = positive("shard_size", shard_size)
    one_of("dtype", dtype, DTYPES)
    one_of("engine", engine, ENGINES)
    _check_crew(engine, address, workers, gpus_per_worker)
    import_parquet("Writing shards")
    model_engine = Engine(**options)
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    sources = find_sources(given, sequence_column=sequence_column, id_column=id_column)
    folder = Path(output).absolute()
    _check_sources(sources, folder)
    job, table = _job(model_engine, dtype=dtype, with_sequence=with_sequence)
    job["parameters"] |= {
        "shard_size": size,
        "sequence_column": sequence_column,
        "id_column": id_column,
    }
    manifest = Manifest(folder)
    manifest.begin(json.loads(json.dumps(job)), sources)
    settings = WorkerOptions(options, model_engine.checkpoint.identity, folder, table)
    work = ShardJob(manifest, sources, size=size, share=share)
    if engine == "plain":
        worker = ShardWorker(settings, model_engine)
        return work.run(lambda tasks: map(worker.run, tasks), progress=progress)
    with on_cluster(
        settings, address=address, workers=workers, gpus_per_worker=gpus_per_worker
    ) as compute:
        return work.run(compute, progress=progress)


def embed_ray_dataset(
    ds: ray.data.Dataset,
    *,
    sequence_column: str = "sequence",
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    layers: int | Sequence[int] | Literal["all"] = -1,
    pooling: str | Sequence[str] = "mean",
    region: tuple[int, int] | None = None,
    precision: str = "float32",
    device: str | list[str] = "auto",
    batch_tokens: int | Literal["auto"] = "auto",
    max_residues: int | None = 1022,
    too_long: Literal["raise", "truncate", "window"] = "raise",
    unknown: Literal["raise", "X", "mask"] = "raise",
    cache: str | os.PathLike[str] | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    batch_size: int = SHARD_SIZE,
    workers: int = 1,
    cpus_per_worker: int = 1,
    gpus_per_worker: int = 0,
) -> ray.data.Dataset:
    r"""Add columns of vectors to a data set of Ray.

    Nothing is computed before rows of the result are asked for. What Ray does with errors holds
    here: a wrong sequence ends the job. `embed_shards` sets it aside.

    Parameters
    ----------
    ds : ray.data.Dataset
        With a column of sequences.
    sequence_column : str, default="sequence"
        Its name.
    model : str or path-like, default="esm2_t33_650M_UR50D"
        As in `Engine`.
    layers : int, list of int or "all", default=-1
        As in `Engine`; each of several layers gets a column of its own.
    pooling : str, list of str or "all", default="mean"
        As in `Engine`; each of several poolings gets a column of its own.
    region : (int, int), optional
        As in `Engine`.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        As in `Engine`.
    device : str or list of str, default="auto"
        As in `Engine`.
    batch_tokens : int or "auto", default="auto"
        As in `Engine`.
    max_residues : int or None, default=1022
        As in `Engine`.
    too_long : {"raise", "truncate", "window"}, default="raise"
        As in `Engine`.
    unknown : {"raise", "X", "mask"}, default="raise"
        As in `Engine`.
    cache : "auto", path or None, default=None
        As in `Engine`, but none by default.
    dtype : {"float32", "float16"}, default="float32"
        What vectors are written as.
    batch_size : int, default=4096
        Sequences that an actor gets at a time.
    workers : int, default=1
        Number of actors, each with a model of its own.
    cpus_per_worker : int, default=1
        Cores, and so threads, of an actor. Leave some to Ray for reading.
    gpus_per_worker : int, default=0
        1 gives each actor a GPU.

    Returns
    -------
    ds : ray.data.Dataset
        With the column ``embedding``, or one such as ``embedding_layer6_mean`` for each of several
        layers or poolings: lists of a fixed size.

    Raises
    ------
    InputError
        If a parameter has a value that it cannot have.
    TypeError
        If a parameter is of a type that it cannot have.
    CheckpointError
        If ``model`` is no checkpoint.
    MissingDependencyError
        If Ray is not installed.

    Examples
    --------
    >>> from esm2_features import distributed
    >>> import ray  # doctest: +SKIP
    >>> ds = ray.data.read_parquet("proteins/")  # doctest: +SKIP
    >>> ds = distributed.embed_ray_dataset(ds, model="mini", workers=2)  # doctest: +SKIP
    >>> ds.write_parquet("vectors/")  # doctest: +SKIP
    """
    from esm2_features._engine import Engine

    _check_crew("ray", None, workers, gpus_per_worker)
    positive("cpus_per_worker", cpus_per_worker)
    positive("batch_size", batch_size)
    one_of("dtype", dtype, DTYPES)
    options: dict[str, Any] = {
        "model": os.fspath(model),
        "layers": layers,
        "pooling": pooling,
        "region": region,
        "precision": precision,
        "device": device,
        "batch_tokens": batch_tokens,
        "max_residues": max_residues,
        "too_long": too_long,
        "unknown": unknown,
        "cache": cache if cache is None else os.fspath(cache),
    }
    engine = Engine(**options)
    vectors = vector_columns(engine.layers, engine.poolings)
    from ray.data import ActorPoolStrategy

    return ds.map_batches(
        BatchEmbedder,
        fn_constructor_args=(options, sequence_column, vectors, dtype),
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cpus_per_worker,
        num_gpus=gpus_per_worker or None,
        udf_modifying_row_count=False,
    )


def _job(engine: Engine, *, dtype: str, with_sequence: bool) -> tuple[dict[str, Any], ShardTable]:
    """Say what is asked for, as the manifest keeps it, and what a shard looks like."""
    checkpoint = engine.checkpoint
    vectors = vector_columns(engine.layers, engine.poolings)
    job: dict[str, Any] = {
        "model": {"name": checkpoint.name, "identity": checkpoint.identity},
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
        "columns": {
            "vectors": vectors,
            "dim": checkpoint.architecture.dim,
            "dtype": dtype,
            "with_sequence": bool(with_sequence),
        },
        "versions": versions(),
    }
    about = {"model": checkpoint.name, "identity": checkpoint.identity}
    about |= {"precision": engine.precision, "esm2-features": job["versions"]["esm2-features"]}
    table = ShardTable(vectors, checkpoint.architecture.dim, dtype, bool(with_sequence), about)
    return job, table


def _check_crew(engine: str, address: str | None, workers: int, gpus_per_worker: int) -> None:
    """Refuse options of Ray without it, and Ray where it is not installed."""
    positive("workers", workers)
    if type(gpus_per_worker) is not int or gpus_per_worker not in (0, 1):
        raise InputError(
            f"Got gpus_per_worker={gpus_per_worker!r}; expected 0 or 1: a model is on one device."
        )
    if engine == "ray":
        import_ray(is_local=not (address or os.environ.get("RAY_ADDRESS")))
    elif address is not None or workers != 1 or gpus_per_worker:
        raise InputError(
            'Got address, workers or gpus_per_worker with engine="plain", which computes in this '
            'process. Pass engine="ray".'
        )


def _share(shard: tuple[int, int]) -> tuple[int, int]:
    is_pair = isinstance(shard, tuple) and len(shard) == 2
    if not is_pair or not all(type(n) is int for n in shard) or not 0 <= shard[0] < shard[1]:
        raise InputError(
            f"Got shard={shard!r}; expected (i, n): which task this is, from 0 to n - 1, and of "
            "how many."
        )
    return shard


def _check_sources(sources: Sequence[InputFile], folder: Path) -> None:
    for source in sources:
        if folder in source.path.absolute().parents:
            raise InputError(
                f"{source.path} is an input, and lies in the folder that is written to. Let IN "
                "name other files only, or write elsewhere."
            )
    first = next((source for source in sources if source.is_parquet), None)
    if first is not None:
        check_columns(first)
