"""`open_embeddings`: a folder of shards as an array, by number and by id, or as a data set.

Opening a folder reads the manifest only. Rows are read a row group at a time, and compared with
their checksums; the last few groups stay in memory, so that neighbouring rows are read once.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._arrow import import_parquet
from esm2_features.distributed.manifest import Manifest
from esm2_features.distributed.records import DoneShard
from esm2_features.exceptions import InputError, import_optional

if TYPE_CHECKING:
    import polars as pl

    from esm2_features.distributed.files import ShardFile

_GROUPS_KEPT = 8
_SHOWN = 3


class Embeddings:
    r"""The vectors of a folder of shards; made by `open_embeddings`.

    They have a length and a shape, can be indexed by number (``x[7]``, ``x[10:20]``, ``x[[5, 3]]``)
    and by id (`get`), and convert to an array (``np.asarray(x)``). Rows are in the order of the
    inputs.

    Parameters
    ----------
    path, column, allow_partial : as in `open_embeddings`
        The folder, and what to read of it.

    Attributes
    ----------
    path : Path
        The folder.
    job : dict
        How it was made: ``model``, ``parameters``, ``columns``, ``inputs``, ``versions``.
    shards : list of DoneShard
        The finished shards, in the order of the rows.
    missing : list of str
        Names of missing shards; empty unless ``allow_partial``.
    columns : tuple of str
        Columns of vectors.
    column : str or None
        The column that is read; None if there are several and none was chosen.
    dtype : numpy.dtype
        float32 or float16.

    Raises
    ------
    InputError
        As in `open_embeddings`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from esm2_features import distributed, open_embeddings
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "two.fasta").write_text(">oxt\nCYIQNCPLG\n>avp\nCYFQNCPRG\n")
    >>> _ = distributed.embed_shards(folder / "two.fasta", folder / "out", model="mini")
    >>> x = open_embeddings(folder / "out")
    >>> x.shape, x[0].shape, x[-1:].dtype
    ((2, 192), (192,), dtype('float32'))
    >>> x.get(["avp", "oxt", "avp"]).shape
    (3, 192)
    >>> x.dataset().to_table(["id", "length"]).to_pylist()
    [{'id': 'oxt', 'length': 9}, {'id': 'avp', 'length': 9}]
    >>> x.scan().select("id").collect()["id"].to_list()
    ['oxt', 'avp']
    >>> out = np.lib.format.open_memmap(folder / "x.npy", "w+", x.dtype, x.shape)
    >>> x.to_numpy(out) is out
    True
    >>> x.verify()
    []
    """

    def __init__(
        self, path: Path, *, column: str | None = None, allow_partial: bool = False
    ) -> None:
        import_parquet("Reading shards")
        self.path = path
        self._manifest = Manifest(path)
        self.job = self._manifest.job
        self.shards, self.missing = self._manifest.shards()
        if self.missing and not allow_partial:
            raise self._incomplete()
        self.columns = tuple(self.job["columns"]["vectors"])
        if column is not None and column not in self.columns:
            raise InputError(
                f"Got column={column!r}, and {path} has the columns {', '.join(self.columns)}."
            )
        self.column = self.columns[0] if len(self.columns) == 1 else column
        self.dtype = np.dtype(self.job["columns"]["dtype"])
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])
        self._groups: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._edges: dict[int, NDArray[np.intp]] = {}

    # -------------------------------------------------------------- by number

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of components, (int, int)."""
        return len(self), int(self.job["columns"]["dim"])

    @property
    def ids(self) -> NDArray[np.object_]:
        """Ids of all rows, ndarray of shape (n,), object; they are all in memory."""
        ids = [self._column_of(shard, "id").to_numpy(zero_copy_only=False) for shard in self.shards]
        return np.concatenate([np.empty(0, object), *ids]).astype(object)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Return a row by its number, or an array of rows by a slice, numbers or a mask."""
        if isinstance(rows, Integral) and not isinstance(rows, bool):
            row: NDArray[Any] = self._rows(np.array([self._checked(int(rows))]))[0]
            return row
        if isinstance(rows, slice):
            return self._rows(np.arange(*rows.indices(len(self))))
        wanted = np.asarray(rows)
        if wanted.dtype == bool and wanted.shape == (len(self),):
            return self._rows(np.flatnonzero(wanted))
        if wanted.ndim != 1 or (wanted.size and not np.issubdtype(wanted.dtype, np.integer)):
            raise TypeError(
                "Index rows by a number, a slice, a list of numbers or a mask of their length, and "
                "by ids, with get(ids)."
            )
        return self._rows(np.array([self._checked(int(row)) for row in wanted], np.intp))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("The rows are in files: an array of them is a copy.")
        values = self.to_numpy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def to_numpy(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read all rows into one array, which can be a file.

        Parameters
        ----------
        out : ndarray of shape (n, dim), optional
            The array to write to, such as one of ``np.lib.format.open_memmap``, for more rows than
            fit into memory.

        Returns
        -------
        values : ndarray of shape (n, dim), float32 or float16
            ``out``, if it was given.

        Raises
        ------
        InputError
            If ``out`` has another shape, there are several columns and none was chosen, or a shard
            cannot be read.

        Examples
        --------
        The example of the class uses it.
        """
        values = np.empty(self.shape, self.dtype) if out is None else out
        if values.shape != self.shape:
            raise InputError(f"Got an array of shape {values.shape} for rows of {self.shape}.")
        for k, start in enumerate(self._starts[:-1].tolist()):
            for g, at in enumerate(self._edges_of(k)[:-1].tolist()):
                group = self._group(k, g)
                values[start + at : start + at + len(group)] = group
        return values

    # -------------------------------------------------------------- by id

    def get(self, ids: Sequence[str]) -> NDArray[Any]:
        """Read rows by their ids.

        Each call searches the ids of all shards, so pass many ids at a time.

        Parameters
        ----------
        ids : sequence of str
            The ids; they may repeat.

        Returns
        -------
        values : ndarray of shape (n, dim), float32 or float16
            In the order of ``ids``.

        Raises
        ------
        InputError
            If there is no such id, or several rows have it.
        TypeError
            If ``ids`` is a single string.

        Examples
        --------
        The example of the class uses it.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if isinstance(ids, str):
            raise TypeError(f"get needs a list of ids; for one, pass [{ids!r}].")
        wanted = list(map(str, ids))
        unique = list(dict.fromkeys(wanted))
        rows = np.full(len(unique), -1, np.intp)
        values = pa.array(unique, pa.string())
        for start, shard in zip(self._starts.tolist(), self.shards, strict=False):
            # For each row of the shard, the number of its id in `unique`, or None.
            numbers = pc.index_in(self._column_of(shard, "id"), value_set=values)
            inside = np.flatnonzero(numbers.is_valid().to_numpy(zero_copy_only=False))
            present = numbers.drop_null().to_numpy(zero_copy_only=False).astype(np.intp)
            # An id may occur twice in this shard, or also in one before.
            twice = np.flatnonzero((rows[present] >= 0) | (np.bincount(present)[present] > 1))
            if len(twice):
                name = unique[present[twice[0]]]
                raise InputError(
                    f"Several rows of {self.path} have the id {name!r}. Index rows by their "
                    "numbers, or filter dataset()."
                )
            rows[present] = start + inside
        if (rows < 0).any():
            absent = [unique[i] for i in np.flatnonzero(rows < 0)]
            more = f", and {len(absent) - _SHOWN} others" if len(absent) > _SHOWN else ""
            shown = ", ".join(map(repr, absent[:_SHOWN]))
            raise InputError(f"No row of {self.path} has the id {shown}{more}.")
        numbers = pc.index_in(pa.array(wanted, pa.string()), value_set=values)
        return self._rows(rows[numbers.to_numpy()])

    # -------------------------------------------------------------- for other libraries

    def dataset(self) -> Any:
        """Open the shards as a data set of PyArrow, to filter and to join.

        PyArrow checks the checksums of pages, which do not cover all of a file. Call `verify`
        first where damage is likely.

        Returns
        -------
        dataset : pyarrow.dataset.Dataset
            With the columns ``id``, ``length`` and those of the vectors.

        Examples
        --------
        The example of the class uses it.
        """
        import pyarrow.dataset as ds

        files = [str(self._manifest.path_of(shard.name)) for shard in self.shards]
        schema = None if files else self._manifest.schema
        options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
        format_ = ds.ParquetFileFormat(default_fragment_scan_options=options)
        return ds.dataset(files, schema=schema, format=format_)

    def scan(self) -> pl.LazyFrame:
        """Open the shards as a lazy frame of Polars.

        Polars checks no checksums. Call `verify` first where damage is likely.

        Returns
        -------
        frame : polars.LazyFrame
            With the columns ``id``, ``length`` and those of the vectors.

        Raises
        ------
        MissingDependencyError
            If Polars is not installed.

        Examples
        --------
        The example of the class uses it.
        """
        module = import_optional("polars", extra="polars", purpose="Scanning with Polars")
        files = [self._manifest.path_of(shard.name) for shard in self.shards]
        frame = (
            module.scan_parquet(files)
            if files
            else module.from_arrow(self._manifest.schema.empty_table())
        )
        return frame.lazy()  # type: ignore[no-any-return]

    def verify(self) -> list[str]:
        """Compare the file of each shard with its checksum, and with the job.

        Returns
        -------
        damaged : list of str
            Names of files that have changed. Repeat the command that wrote them, with ``--check
            digest`` (``check="digest"``): it computes them again.

        Examples
        --------
        The example of the class uses it.
        """
        return [
            self._manifest.path_of(shard.name).name
            for shard in self.shards
            if not self._manifest.is_intact(shard)
        ]

    # -------------------------------------------------------------- reading

    def _checked(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return row % len(self)

    def _rows(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Read rows anywhere, each row group once."""
        values = np.empty((len(rows), self.shape[1]), self.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for k in np.unique(shards).tolist():
            of_shard = np.flatnonzero(shards == k)
            inside = rows[of_shard] - self._starts[k]
            edges = self._edges_of(k)
            groups = np.searchsorted(edges, inside, side="right") - 1
            for g in np.unique(groups).tolist():
                of_group = groups == g
                values[of_shard[of_group]] = self._group(k, g)[inside[of_group] - edges[g]]
        return values

    def _edges_of(self, k: int) -> NDArray[np.intp]:
        """Return the first row of each row group of a shard, and the number of its rows."""
        if k not in self._edges:
            self._edges[k] = self._read(self.shards[k], lambda f: np.cumsum([0, *f.group_rows]))
        return self._edges[k]

    def _group(self, k: int, g: int) -> NDArray[Any]:
        """Read the vectors of a row group, unless they are in memory."""
        if self.column is None:
            raise InputError(
                f"{self.path} has the columns of vectors {', '.join(self.columns)}. Choose one: "
                "open_embeddings(path, column=...)."
            )
        name = self.column
        if (k, g) not in self._groups:
            cells = self._read(self.shards[k], lambda file: file.column(name, [g]))
            self._groups[k, g] = cells.flatten().to_numpy().reshape(-1, self.shape[1])
            while len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end((k, g))
        return self._groups[k, g]

    def _column_of(self, shard: DoneShard, name: str) -> Any:
        return self._read(shard, lambda file: file.column(name))

    def _read(self, shard: DoneShard, read: Callable[[ShardFile], Any]) -> Any:
        """Read from the file of a shard; what is read is compared with its checksums."""
        path = self._manifest.path_of(shard.name)
        try:
            with self._manifest.open_shard(shard) as file:
                return read(file)
        except (OSError, ValueError) as error:  # Arrow's errors are one of the two
            raise InputError(
                f"{path} cannot be read, or is damaged ({error}). Repeat the command that wrote "
                "it, with --check digest: it computes damaged shards again."
            ) from error

    def _incomplete(self) -> InputError:
        shown = ", ".join(self.missing[:_SHOWN]) + (", ..." if len(self.missing) > _SHOWN else "")
        reasons = self._manifest.reasons
        because = f" {next(iter(reasons.values()))}" if reasons else ""
        if failed := self._manifest.failed():
            first = failed[0]
            because += f" {len(failed)} were set aside, such as {first.name}: {first.message}"
        return InputError(
            f"{self.path} is not complete: {shown} missing.{because} Repeat the command that wrote "
            "it, or open the finished shards: allow_partial=True."
        )


def open_embeddings(
    path: str | os.PathLike[str], *, column: str | None = None, allow_partial: bool = False
) -> Embeddings:
    r"""Open a folder of shards, without reading it.

    Parameters
    ----------
    path : str or path-like
        A folder that `embed_shards` or ``esm2-features embed IN OUT`` has written.
    column : str, optional
        The column of vectors to read, if there are several layers or poolings.
    allow_partial : bool, default=False
        Open a folder in which shards are missing.

    Returns
    -------
    embeddings : Embeddings
        Rows of vectors by number and by id, in the order of the inputs.

    Raises
    ------
    InputError
        If it is no folder of shards, shards are missing, or there is no such column.
    MissingDependencyError
        If PyArrow is not installed.

    See Also
    --------
    embed_shards : Writes such a folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from esm2_features import distributed, open_embeddings
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "two.fasta").write_text(">oxt\nCYIQNCPLG\n>avp\nCYFQNCPRG\n")
    >>> _ = distributed.embed_shards(folder / "two.fasta", folder / "out", model="mini")
    >>> open_embeddings(folder / "out")[:].shape
    (2, 192)
    """
    return Embeddings(Path(path), column=column, allow_partial=allow_partial)
