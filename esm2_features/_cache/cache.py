"""`Cache`: vectors of sequences on disk, shared by processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import maintenance, recovery
from esm2_features._cache.connection import CacheConnection, is_damage
from esm2_features._cache.exchange import merge_parts, source_parts, stored_parts
from esm2_features._cache.file import default_folder
from esm2_features._cache.keys import KEY_BYTES, KeyedVectors, Spec
from esm2_features._cache.parquet import write_parquet
from esm2_features._cache.pruning import Pruning
from esm2_features._cache.reports import CacheCheck, CacheInfo, Imported, Pruned, Recovered
from esm2_features._cache.store import VectorStore
from esm2_features._files import expanded
from esm2_features._inputs.options import cache_limit
from esm2_features.exceptions import InputError


class Cache:
    """Vectors on disk, each with a checksum, shared by threads and processes.

    Making a cache opens nothing. The first write creates its folder and file, readable for their
    owner only, or for the group of an existing folder to which the group may write. Two caches are
    equal, and pickled, by their path and limit.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The folder. By default ``$ESM2_FEATURES_CACHE``, or else one in the user's cache folder.
    max_bytes : int, optional
        Largest size of the file in bytes, at least 4 MiB; no limit by default. Vectors that were
        not used for the longest time, in days, are deleted, so that the file is no larger after a
        write. A limit that is lower than before holds from the next write.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    file : Path
        The SQLite file in it, absolute.
    max_bytes : int or None
        The limit.

    Raises
    ------
    InputError
        If ``max_bytes`` is too small, or ``path`` is a word such as ``"auto"`` instead of a folder.

    See Also
    --------
    ESM2Transformer : Takes a cache, or its folder, as ``cache``.

    Examples
    --------
    >>> import tempfile
    >>> from esm2_features import Cache, Engine
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = Cache(folder)
    ...     for _ in range(2):
    ...         engine = Engine("mini", cache=cache)
    ...         _ = engine.embed(["MKTAYIAKQR", "GSHM"])
    ...         print(engine.n_computed)
    ...     print(cache.info().rows, cache.verify())
    ...     print(cache.export(f"{folder}/mini.parquet", model="mini"))
    ...     print(Cache(f"{folder}/another").import_(f"{folder}/mini.parquet"))
    ...     print(cache.prune(model="mini", layer=6).rows, cache.clear())
    2
    0
    2 CacheCheck(rows=2, damaged=())
    2
    Imported(added=2, present=0, conflicts=())
    2 0
    """

    __module__ = "esm2_features"

    def __init__(
        self, path: str | os.PathLike[str] | None = None, max_bytes: int | None = None
    ) -> None:
        if isinstance(path, str) and path in ("", "auto", "none", "None"):
            raise InputError(
                f"Got {path!r} as the folder of a cache: cache=None is no cache, and Cache() the "
                f'user\'s own. If a folder of this name is meant, write "./{path}".'
            )
        cache_limit(max_bytes)
        self.path = Path(expanded(default_folder() if path is None else path)).absolute()
        self.file = self.path / "embeddings.sqlite3"
        self.max_bytes = max_bytes
        self._link = CacheConnection(self.file)
        self._vectors = VectorStore(max_bytes)

    def __repr__(self) -> str:
        limit = "" if self.max_bytes is None else f", max_bytes={self.max_bytes}"
        return f"Cache({str(self.path)!r}{limit})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cache):
            return NotImplemented
        return (self.path, self.max_bytes) == (other.path, other.max_bytes)

    def __hash__(self) -> int:
        return hash(self.path)

    def __reduce__(self) -> tuple[type[Cache], tuple[str, int | None]]:
        return type(self), (str(self.path), self.max_bytes)

    def __deepcopy__(self, memo: dict[int, object]) -> Cache:
        return self  # clones of an estimator share the connections, and warn once between them

    def _get_many(
        self, spec: Spec, keys: NDArray[np.uint8], out: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Read vectors into ``out`` (n, dim), and return which of them were there (n,)."""
        hit = np.zeros(len(keys), np.bool_)
        read = partial(self._vectors.read, spec=spec, keys=keys, out=out, hit=hit)
        if len(keys) and self._link.attempt("read", read):
            self._link.warn(
                "value",
                f"The cache {self.file} holds damaged vectors, which are computed again and "
                "overwritten where that is allowed. If this happens often, check the disk.",
            )
        return hit

    def _listed_many(self, spec: Spec, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which vectors should be there (n,); read none of them, and change nothing."""
        listed = np.zeros(len(keys), np.bool_)
        # A file without a byte is begun by whoever opens it.
        if not self.file.exists() or not self.file.stat().st_size:
            return listed
        list_into = partial(self._vectors.list_into, spec=spec, keys=keys, listed=listed)
        try:
            self._link.run("read", list_into, mend=False)
        except OSError as error:
            self._link.warn("listed", f"{error}.")
        return listed

    def _put_many(self, parts: Sequence[KeyedVectors], *, last_chance: bool = False) -> bool:
        """Write vectors in one transaction, and return whether that worked; warn if it did not."""
        for part in parts:
            if part.rows.ndim != 2 or part.keys.shape != (len(part.rows), KEY_BYTES):
                raise ValueError(
                    f"Got keys of shape {part.keys.shape} and rows of shape {part.rows.shape}, "
                    f"but expected (n, {KEY_BYTES}) and (n, dim)"
                )
        if not any(len(part.keys) for part in parts):
            return True
        write = partial(self._vectors.write, parts=parts)
        dropped = self._link.attempt("written", write, insist=last_chance)
        self._warn_of_little_room(dropped or 0)
        return dropped is not None

    def info(self) -> CacheInfo:
        """Count vectors and bytes by model, layer and pooling.

        Returns
        -------
        info : CacheInfo
            Empty if there is no file yet.

        Raises
        ------
        CacheVersionError
            If the file belongs to another program or version.
        OSError
            If it cannot be read.

        Examples
        --------
        The example of the class uses it.
        """
        spaces = self._link.run("read", maintenance.count, mend=False)
        size = 0 if spaces is None else self.file.stat().st_size
        spaces = spaces or ()
        rows = sum(space.rows for space in spaces)
        return CacheInfo(self.path, rows, size, spaces, recovery.set_aside(self.file))

    def verify(self) -> CacheCheck:
        """Compare every vector with its checksum, and change nothing.

        Others can use the cache meanwhile. SQLite's own check of the structure, for which they
        have to wait, is made of files of up to 256 MB.

        Returns
        -------
        check : CacheCheck
            ``check.damaged`` is empty if all is well; `prune` removes damaged vectors.

        Raises
        ------
        CacheVersionError, OSError
            As `info`.

        Examples
        --------
        The example of the class uses it.
        """
        try:
            return maintenance.check(partial(self._link.run, "read", mend=False))
        except OSError as error:
            if not is_damage(error.__cause__):
                raise
            return CacheCheck(0, (f"{error}.",))

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        unused_days: int | None = None,
        model: str | None = None,
        layer: int | None = None,
        pooling: str | None = None,
    ) -> Pruned:
        """Remove damaged and selected vectors, and shrink the file.

        It works in steps of about 0.1 s, between which others can use the cache, and also on a
        full disk. A `CacheWarning` says if it could not be finished, or if a file that was begun by
        an earlier version keeps its size for lack of room.

        Parameters
        ----------
        max_bytes : int, optional
            Size of the file to keep, in bytes, at least 4 MiB; vectors that were not used for the
            longest time are removed first. By default the limit of this cache.
        unused_days : int, optional
            Remove vectors that were not used for longer than this. Days that cannot be right, in
            the future or before 2025, count as today.
        model : str, optional
            Remove vectors of the model with this name or identity (``"sha256:..."``).
        layer : int, optional
            Remove vectors of this layer, from 0, only.
        pooling : str, optional
            Remove vectors of this pooling only.

        Returns
        -------
        pruned : Pruned
            Number of vectors that were removed, and bytes by which the file was cut, from 0.

        Raises
        ------
        InputError
            If the selected vectors do not exist, or a number is out of range.
        CacheVersionError, OSError
            As `info`, or if the file cannot be written and nothing was removed.

        Examples
        --------
        The example of the class uses it.
        """
        cache_limit(max_bytes)
        if unused_days is not None and unused_days < 0:
            raise InputError(f"Got unused_days={unused_days!r}; expected None or a number from 0.")
        if not self.file.exists():
            return Pruned(0, 0)
        return Pruning(partial(self._link.run, "written")).prune(
            max_bytes=self.max_bytes if max_bytes is None else max_bytes,
            unused_days=unused_days,
            model=model,
            layer=layer,
            pooling=pooling,
        )

    def clear(self) -> int:
        """Delete all vectors, also those in files that were set aside, and shrink the file.

        Returns
        -------
        n : int
            Number of deleted vectors, without those in files that were set aside.

        Raises
        ------
        CacheVersionError, OSError
            As `info`, or if a file cannot be written or removed.

        Examples
        --------
        The example of the class uses it.
        """
        n = self._link.run("cleared", maintenance.clear) or 0
        for path, _ in recovery.set_aside(self.file):
            recovery.remove(path)
        return n

    def recover(self, *, remove: bool = False) -> Recovered:
        """Bring back intact vectors from files that were set aside as damaged.

        Vectors that the cache has already stay as they are.

        Parameters
        ----------
        remove : bool, default=False
            Whether to remove each file of which all that is intact was brought back.

        Returns
        -------
        recovered : Recovered
            Numbers of vectors that were brought back, and lost, by file.

        Raises
        ------
        CacheVersionError, OSError
            As `info`, or if the cache cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(Cache(folder).recover())
        Recovered(added=0, files=())
        """
        recovered, dropped = recovery.recover(self._link, self._vectors.merge, remove_files=remove)
        self._warn_of_little_room(dropped)
        return recovered

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        layer: int | None = None,
        pooling: str | None = None,
    ) -> int:
        """Write vectors to a Parquet file, which `import_` reads bit for bit.

        The file holds no sequences, only their digests, as the cache does.

        Parameters
        ----------
        path : str or path-like
            The file, ``.parquet``; an existing one is replaced when the new one is complete.
        model : str, optional
            Name or identity of the model to export. By default all, which must have one width.
        layer : int, optional
            Number of the layer to export, from 0; all by default.
        pooling : str, optional
            Pooling to export; all by default.

        Returns
        -------
        n : int
            Number of vectors. Damaged ones are left out, with a `CacheWarning`.

        Raises
        ------
        InputError
            If there are no such vectors, their widths differ, or ``path`` has another ending.
        MissingDependencyError
            If pyarrow is not installed.
        CacheVersionError, OSError
            If the cache cannot be read, or the file cannot be written.

        Examples
        --------
        The example of the class uses it.
        """
        target = Path(path)
        if target.suffix.lower() != ".parquet":
            raise InputError(f"{target} does not end in .parquet, which is what is written.")
        if not self.info().rows:
            raise InputError(f"The cache {self.path} holds no vectors.")
        parts = stored_parts(self._link, model=model, layer=layer, pooling=pooling)
        return write_parquet(target, parts)

    def import_(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        layer: int | None = None,
        pooling: str | None = None,
        precision: str | None = None,
        cache_dtype: str | None = None,
        sequences: str | os.PathLike[str] | None = None,
        replace: bool = False,
    ) -> Imported:
        """Add vectors that were computed elsewhere, without checking that they are right.

        Parameters
        ----------
        path : str or path-like
            A file of `export` (``.parquet``), the folder of another cache, or sequences with
            their vectors: ``.npz`` with arrays ``sequence`` (n,) and ``embedding`` (n, dim), or
            ``.csv`` with a column ``sequence`` and dim columns of numbers. Or vectors under the
            names of ``sequences``: HDF5 as of UniProt, ProtSpace and biotrainer (``.h5``), or a
            folder of fair-esm's ``.pt``.
        model : str, optional
            Official name of the model, not for caches and what they export, as the next four.
        layer : int, optional
            Layer, required, but for ``.pt``; negative numbers count from the end.
        pooling : str, optional
            Pooling, required, but for ``.pt``.
        precision : str, optional
            Precision of the forward pass; ``"float32"`` by default.
        cache_dtype : {"float32", "float16"}, optional
            Precision to store; ``"float32"`` by default. A transformer only finds vectors of its
            own ``cache_dtype``.
        sequences : str or path-like, optional
            File of the sequences, for ``.h5`` and ``.pt``, such as FASTA. They are found by id.
        replace : bool, default=False
            Whether a vector that contradicts a stored one replaces it. Vectors that differ by
            rounding only, as between two machines, never do.

        Returns
        -------
        imported : Imported
            Numbers of new and of known vectors, and those that contradict stored ones.

        Raises
        ------
        InputError
            If the file has a fault; what was read before it stays.
        TypeError
            If a path is none.
        MissingDependencyError
            If pyarrow or h5py is needed and not installed.
        CacheVersionError, OSError
            If the file cannot be read, or the cache cannot be written.

        Examples
        --------
        The example of the class uses it.
        """
        given = {"model": model, "layer": layer, "pooling": pooling, "precision": precision}
        given["cache_dtype"] = cache_dtype
        parts = source_parts(Path(path), self.file.name, given, sequences)
        # Rows are named of files of sequences, whose order people see.
        merge = partial(self._vectors.merge, replace=replace)
        imported, dropped = merge_parts(self._link, merge, parts, with_rows=model is not None)
        self._warn_of_little_room(dropped)
        return imported

    def _warn_of_little_room(self, dropped: int) -> None:
        if dropped:
            self._link.warn(
                "room",
                f"The cache {self.file} may not be larger than max_bytes={self.max_bytes}, which "
                "is less than what is used in a day: vectors that were written or used today had "
                "to make room, and will be computed again. Raise max_bytes, or store less.",
            )
