"""`embed_shards` and `embed_ray_dataset`: inputs that are larger than memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._inputs.options import one_of, positive
from esm2_features.distributed.files import DTYPES, vector_columns
from esm2_features.distributed.job import ShardReport
from esm2_features.distributed.preparation import engine_options, prepare
from esm2_features.distributed.ray_batches import BatchEmbedder
from esm2_features.distributed.ray_cluster import import_ray, on_cluster
from esm2_features.distributed.worker import ShardWorker
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    import ray.data


__all__ = ["embed_ray_dataset", "embed_shards"]

SHARD_SIZE = 4096
ENGINES = ("plain", "ray")
PATIENCE = 300


def embed_shards(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    layers: int | Sequence[int] | Literal["all"] = -1,
    pooling: str | Sequence[str] = "mean",
    region: tuple[int, int] | str | None = None,
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
    sequence_column: str | None = None,
    id_column: str | None = None,
    set_aside: Literal["record", "shard"] = "record",
    shard_size: int = SHARD_SIZE,
    shard: tuple[int, int] = (0, 1),
    check: Literal["auto", "digest", "size"] = "auto",
    engine: Literal["plain", "ray"] = "plain",
    address: str | None = None,
    workers: int = 1,
    gpus_per_worker: int = 0,
    patience: int = PATIENCE,
    endpoint: str | None = None,
    token: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ShardReport:
    r"""Embed files of any size into a folder of Parquet files, the shards.

    Memory does not grow with the input. Shards that are done are not computed again: after an
    interruption, repeat the call. A record that is invalid, and a shard that cannot be read, are
    set aside and reported; correct the input, and repeat the call.

    Parameters
    ----------
    inputs : str, path-like, or iterable of them
        FASTA and Parquet files, folders of such files, and patterns such as ``"data/*.fasta.gz"``;
        also CSV, TSV and Excel tables, and what Biopython reads (GenBank, UniProt, mmCIF, PDB), by
        their names. All of them may be compressed. A file that is named twice is embedded once,
        under its first name.
    output : str or path-like
        The folder of shards: new, empty, or begun with the same parameters and inputs.
    model, layers, pooling, region, precision, device : as in `Engine`
        What is computed. Each of several layers or poolings gets a column of its own.
    batch_tokens, max_residues, too_long, unknown : as in `Engine`
        How sequences are batched, and what happens to long ones and unknown letters.
    cache, cache_dtype, store : as in `Engine`
        No cache by default: the shards hold the vectors already. With one, sequences that occur in
        several shards are computed once, and an interrupted shard loses nothing.
    dtype : {"float32", "float16"}, default="float32"
        Type of the vectors in the files. ``"float16"`` halves their size, and rounds to about 3
        digits.
    with_sequence : bool, default=False
        Also write the sequences.
    sequence_column, id_column : str or None, default=None
        Columns of tables. By default those with a usual name, such as "sequence" and "id"; without
        a column of ids, rows are numbered from 0.
    set_aside : {"record", "shard"}, default="record"
        What is left out if a record is invalid: the record, or the shard that it belongs to. A
        shard in which all are invalid is always left out.
    shard_size : int, default=4096
        Sequences of a shard. A row group of a Parquet file is a shard if it has no more rows.
    shard : (int, int), default=(0, 1)
        Number of this task, from 0, and number of tasks: each computes its own share of the shards.
    check : {"auto", "digest", "size"}, default="auto"
        How the files of finished shards are checked: by their SHA-256, which takes about a second
        for each gigabyte, or by their size only. Damaged ones are computed again. ``"auto"`` is
        ``"digest"`` for folders of up to 10 GB.
    engine : {"plain", "ray"}, default="plain"
        ``"plain"`` computes in this process, ``"ray"`` in actors of Ray, each with a model of its
        own. All of them must see ``output``; ``inputs`` are read by this process.
    address : str or None, default=None
        Address of a Ray cluster, such as ``"auto"`` or ``"ray://host:10001"``. By default, the
        cluster that this process is connected to, that of ``$RAY_ADDRESS``, or a new one on this
        machine.
    workers, gpus_per_worker : int, default=1, 0
        Number of actors, and GPUs of each (0 or 1). Without GPUs, they share all cores.
    patience : int, default=300
        Seconds to wait for a worker when all of them have died, or none could be started, because
        the cluster has no room. Then the job ends, and can be continued.
    endpoint, token : as in `Engine`
        A server that computes the vectors. What it refuses is set aside. Actors of Ray read the
        token from their own ``$ESM2_FEATURES_TOKEN``.
    progress : callable, optional
        Called with a line of text about each shard, and about workers that die.

    Returns
    -------
    report : ShardReport
        What was computed, and what failed.

    Raises
    ------
    InputError
        If there is no such input, a parameter has an invalid value, the folder was begun with other
        parameters or inputs, or an input differs from the one that finished shards were made of.
    OSError
        If a shard cannot be written (finished ones stay). ``ConnectionError`` if there is no
        cluster at the address, its head is lost, or it has had no worker for ``patience`` seconds.
    EndpointError
        If the server cannot be reached, or is of another kind.
    TypeError, CheckpointError, OutOfMemoryError, ForkedProcessError, CacheVersionError
        As in `Engine` and `Engine.embed`.
    MissingDependencyError
        If PyArrow is not installed, or Ray with ``engine="ray"``.

    Warns
    -----
    TruncationWarning
        If sequences were cut, with ``too_long="truncate"``.

    See Also
    --------
    open_embeddings : Reads the folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from esm2_features import distributed
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "two.fasta").write_text(">oxt\nCYIQNCPLG\n>avp\nCYFQNCPRG\n")
    >>> report = distributed.embed_shards(folder / "two.fasta", folder / "out", model="mini")
    >>> report.computed, report.sequences, report.complete
    (1, 2, True)
    >>> distributed.embed_shards(folder / "two.fasta", folder / "out", model="mini").computed
    0
    """
    arguments = locals()
    _check_workers(engine, address, workers, gpus_per_worker)
    positive("patience", patience)
    job, settings, model_engine = prepare(arguments)
    if engine == "plain":
        worker = ShardWorker(settings, model_engine)
        return job.run(lambda tasks: map(worker.run, tasks), progress=progress)
    with on_cluster(
        settings,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        patience=patience,
        print_line=progress or (lambda _: None),
    ) as compute:
        return job.run(compute, progress=progress)


def embed_ray_dataset(
    ds: ray.data.Dataset,
    *,
    sequence_column: str = "sequence",
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    layers: int | Sequence[int] | Literal["all"] = -1,
    pooling: str | Sequence[str] = "mean",
    region: tuple[int, int] | str | None = None,
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
    r"""Add columns of vectors to a Ray data set.

    The columns are computed when rows of the result are needed. An invalid sequence ends the job,
    as errors do in Ray; `embed_shards` sets it aside.

    Parameters
    ----------
    ds : ray.data.Dataset
        A data set with a column of sequences.
    sequence_column : str, default="sequence"
        Name of this column.
    model, layers, pooling, region, precision, device : as in `Engine`
        What is computed. Each of several layers or poolings gets a column of its own.
    batch_tokens, max_residues, too_long, unknown, cache : as in `Engine`
        How it is computed. No cache by default.
    dtype : {"float32", "float16"}, default="float32"
        Type of the vectors.
    batch_size : int, default=4096
        Sequences that an actor gets at a time.
    workers : int, default=1
        Number of actors, each with a model of its own.
    cpus_per_worker, gpus_per_worker : int, default=1, 0
        Cores, and so threads, of an actor, and its GPUs (0 or 1). Leave some cores to Ray for
        reading.

    Returns
    -------
    ds : ray.data.Dataset
        With the column ``embedding``, or one such as ``embedding_layer6_mean`` for each of several
        layers or poolings: lists of a fixed size.

    Raises
    ------
    InputError, TypeError, CheckpointError
        As in `Engine`.
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

    options = engine_options(locals())
    _check_workers("ray", None, workers, gpus_per_worker)
    positive("cpus_per_worker", cpus_per_worker)
    positive("batch_size", batch_size)
    one_of("dtype", dtype, DTYPES)
    from ray.data import ActorPoolStrategy

    engine = Engine(**options)
    vectors = vector_columns(engine.layers, engine.poolings)
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


def _check_workers(engine: str, address: str | None, workers: int, gpus_per_worker: int) -> None:
    """Check the options of Ray, and that it is installed if it is needed."""
    one_of("engine", engine, ENGINES)
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
