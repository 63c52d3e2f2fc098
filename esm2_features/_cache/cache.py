"""`Cache`: vectors of sequences on disk, shared by processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from esm2_features._cache import maintenance as _upkeep
from esm2_features._cache.connection import CacheConnection, is_damage
from esm2_features._cache.exchange import check_told, read_parts
from esm2_features._cache.keys import KEY_BYTES, KeyedVectors, Spec
from esm2_features._cache.parquet import write_parquet
from esm2_features._cache.reports import CacheCheck, CacheInfo, Conflict, Imported, Pruned
from esm2_features._cache.store import VectorStore
from esm2_features._inputs.options import cache_limit
from esm2_features.exceptions import InputError

_WORDS = ("", "auto", "none", "None")
"""What somebody may mean who does not mean a folder."""

_AT_A_TIME = 64
"""Blocks that are exported from one lookup, 16 MB at most."""


class Cache:
    """Vectors on disk, each with a checksum.

    A light handle: making one opens nothing, and the first write creates folder and file, for
    their owner only (and for the group of a folder that was there, if it may make files in it).
    Threads may share it and forked processes inherit it; a pickle carries path and limit alone, by
    which two are equal.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The folder; if not given, the one that the environment variable ``ESM2_FEATURES_CACHE``
        names, or else one in the user's cache folder. One that exists keeps its permissions.
    max_bytes : int, optional
        Size that the file may reach, in bytes, at least 4 MiB. What was not used for longest
        makes room; days are counted, for all that was written together. By default there is no
        limit.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    file : Path
        The SQLite file in it, absolute.
    max_bytes : int or None
        The limit, if there is one.

    Raises
    ------
    InputError
        If ``max_bytes`` is too small, or ``path`` a word that is no folder's, such as ``"auto"``.

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
    2
    0
    """

    __module__ = "esm2_features"

    def __init__(
        self, path: str | os.PathLike[str] | None = None, max_bytes: int | None = None
    ) -> None:
        if isinstance(path, str) and path in _WORDS:
            raise InputError(
                f"Got {path!r} as the folder of a cache: cache=None is no cache, and Cache() the "
                f'user\'s own. If a folder of this name is meant, write "./{path}".'
            )
        cache_limit(max_bytes)
        folder = default_folder() if path is None else Path(path)
        self.path = folder.expanduser().absolute()
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
        """Read vectors."""
        hit = np.zeros(len(keys), np.bool_)
        if len(keys) and self._link.attempt(
            "read", lambda connection: self._vectors.read(connection, spec, keys, out, hit)
        ):
            self._link.warn(
                "value",
                f"The cache {self.file} holds damaged vectors, which are computed again and "
                "overwritten where that is allowed. If this happens often, check the disk.",
            )
        return hit

    def _listed_many(self, spec: Spec, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Say which vectors should be there; reads none of them, and changes nothing."""
        listed = np.zeros(len(keys), np.bool_)
        # A file without a byte is begun by whoever opens it.
        if not self.file.exists() or not self.file.stat().st_size:
            return listed
        try:
            self._link.run(
                "read",
                lambda connection: self._vectors.list_into(connection, spec, keys, listed),
                mend=False,
            )
        except OSError as error:
            self._link.warn("listed", f"{error}.")
        return listed

    def _put_many(self, parts: Sequence[KeyedVectors], *, last_chance: bool = False) -> bool:
        """Write vectors over what is there, in one transaction. Failure is a `CacheWarning`."""
        for part in parts:
            if part.rows.ndim != 2 or part.keys.shape != (len(part.rows), KEY_BYTES):
                raise ValueError(
                    f"Got keys of shape {part.keys.shape} and rows of shape {part.rows.shape}, "
                    f"but expected (n, {KEY_BYTES}) and (n, dim)"
                )
        if not any(len(part.keys) for part in parts):
            return True
        write = partial(self._vectors.write, parts=parts, wait=not last_chance)
        dropped = self._link.attempt("written", write, insist=last_chance)
        self._warn_of_little_room(dropped or 0)
        return dropped is not None

    # -------------------------------------------------------------- the whole

    def info(self) -> CacheInfo:
        """Count vectors and bytes by model, layer and pooling.

        Returns
        -------
        info : CacheInfo
            A cache that is not there yet has none.

        Raises
        ------
        CacheVersionError
            If the file belongs to another program or version.
        OSError
            If it cannot be read.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     _ = Engine("mini", cache=cache).embed(["MKTAYIAKQR", "GSHM"])
        ...     cache.info().rows
        2
        """
        found = self._link.run("read", _upkeep.count, mend=False)
        size = 0 if found is None else self.file.stat().st_size
        return CacheInfo(self.path, sum(space.rows for space in found or ()), size, found or ())

    def verify(self) -> CacheCheck:
        """Read every vector and compare it with its checksum. Nothing is changed.

        Returns
        -------
        check : CacheCheck
            ``check.damaged`` is empty if all is well; `prune` removes what is damaged.

        Raises
        ------
        CacheVersionError
            If the file belongs to another program or version.
        OSError
            If it cannot be read.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     _ = Engine("mini", cache=cache).embed(["MKTAYIAKQR", "GSHM"])
        ...     cache.verify()
        CacheCheck(rows=2, damaged=())
        """
        try:
            check = self._link.run("read", _upkeep.check, mend=False)
        except OSError as error:
            if not is_damage(error.__cause__):
                raise
            return CacheCheck(0, (f"{error}.",))
        return check or CacheCheck(0, ())

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        unused_days: int | None = None,
        model: str | None = None,
        layer: int | None = None,
        pooling: str | None = None,
    ) -> Pruned:
        """Remove what is damaged or not wanted, tidy up, and give the space back.

        Parameters
        ----------
        max_bytes : int, optional
            Size that the file may keep, in bytes, at least 4 MiB; what was not used for longest
            goes first. By default that of this cache, if it has one.
        unused_days : int, optional
            Vectors that were not used for longer than this go.
        model : str, optional
            Name or identity (``"sha256:..."``) of a model whose vectors go: all of them, or
            those of the layer and pooling.
        layer : int, optional
            Number of a layer, from 0, whose vectors go.
        pooling : str, optional
            A pooling whose vectors go.

        Returns
        -------
        pruned : Pruned
            What has gone.

        Raises
        ------
        InputError
            If something is to go that is not there, or a number cannot be.
        CacheVersionError
            If the file belongs to another program or version.
        OSError
            If it cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     _ = Engine("mini", cache=cache).embed(["MKTAYIAKQR", "GSHM"])
        ...     cache.prune(model="mini", layer=6).rows
        2
        """
        cache_limit(max_bytes)
        if unused_days is not None and unused_days < 0:
            raise InputError(f"Got unused_days={unused_days!r}; expected None or a number from 0.")
        if not self.file.exists():
            return Pruned(0, 0)
        before = self.file.stat().st_size
        prune = partial(
            _upkeep.prune,
            max_bytes=self.max_bytes if max_bytes is None else max_bytes,
            unused_days=unused_days,
            model=model,
            layer=layer,
            pooling=pooling,
        )
        rows = self._link.run("written", prune) or 0
        return Pruned(rows, before - self.file.stat().st_size)

    def clear(self) -> int:
        """Delete all vectors, and give the space back.

        Returns
        -------
        n : int
            Number of vectors that were deleted. A damaged file is set aside, with a warning.

        Raises
        ------
        CacheVersionError
            If the file belongs to another program or version.
        OSError
            If they cannot be deleted: who asks for it must know, so a warning would not do.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     _ = Engine("mini", cache=cache).embed(["MKTAYIAKQR", "GSHM"])
        ...     cache.clear()
        2
        """
        return self._link.run("cleared", _upkeep.clear) or 0

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        layer: int | None = None,
        pooling: str | None = None,
    ) -> int:
        """Write vectors to a Parquet file, from which `import_` reads them back bit for bit.

        Sequences are not in it, as they are not in the cache: only their digests are.

        Parameters
        ----------
        path : str or path-like
            The file, ``.parquet``; one that is there is replaced when the new one is complete.
        model : str, optional
            Name or identity of the model whose vectors are written; all by default, which must
            then be of one width.
        layer : int, optional
            Number of the layer, from 0, whose vectors are written; all by default.
        pooling : str, optional
            The pooling whose vectors are written; all by default.

        Returns
        -------
        n : int
            Number of vectors. Damaged ones are left out, with a `CacheWarning`.

        Raises
        ------
        InputError
            If there is nothing to export, vectors differ in width, or the file's name ends
            otherwise.
        MissingDependencyError
            If pyarrow is not installed.
        CacheVersionError, OSError
            If the cache cannot be read, or the file not be written.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     _ = Engine("mini", cache=cache).embed(["MKTAYIAKQR", "GSHM"])
        ...     cache.export(f"{folder}/mini.parquet", model="mini")
        2
        """
        target = Path(path)
        if target.suffix.lower() != ".parquet":
            raise InputError(f"{target} does not end in .parquet, which is what is written.")
        if not self.info().rows:
            raise InputError(f"The cache {self.path} holds no vectors.")
        return write_parquet(target, self._parts(model=model, layer=layer, pooling=pooling))

    def _parts(self, **wanted: Any) -> Iterator[KeyedVectors]:
        """Yield all that is wanted and intact, some blocks at a time.

        What others write anew meanwhile is yielded when its turn comes: twice, perhaps, but once
        at least, because a vector only ever moves to a block with a higher number.
        """
        list_all = partial(_upkeep.contents, **wanted)
        for spec, _ in self._link.run("read", list_all, mend=False) or []:
            list_more = partial(_upkeep.blocks_after, spec=spec, most=_AT_A_TIME)
            last = 0
            while numbers := self._link.run("read", partial(list_more, after=last), mend=False):
                last = numbers[-1]
                read = partial(_upkeep.read_parts, spec=spec, numbers=numbers)
                parts, damaged = self._link.run("read", read, mend=False) or ([], 0)
                if damaged:
                    self._link.warn(
                        "export",
                        f"The cache {self.file} holds damaged vectors, which are left out. "
                        "`esm2-features cache prune` removes them.",
                    )
                yield from parts

    def import_(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        layer: int | None = None,
        pooling: str | None = None,
        precision: str | None = None,
        cache_dtype: str | None = None,
        replace: bool = False,
    ) -> Imported:
        """Take in vectors that were computed elsewhere. They are taken on trust.

        Parameters
        ----------
        path : str or path-like
            What `export` wrote (``.parquet``), another cache (its folder), or sequences with
            their vectors: ``.npz`` with arrays ``sequence`` (n,) and ``embedding`` (n, dim), or
            ``.csv`` with a column ``sequence`` and dim columns of numbers.
        model : str, optional
            Official name of the model that computed them: needed for ``.npz`` and ``.csv``, which
            do not say it, and for nothing else, as are the next four.
        layer : int, optional
            Their layer; negatives count from the end. It has to be said.
        pooling : str, optional
            Their pooling. It has to be said.
        precision : str, optional
            Arithmetic that they were computed in; ``"float32"`` by default.
        cache_dtype : {"float32", "float16"}, optional
            What to keep them in; ``"float32"`` by default. Only a transformer with the same
            ``cache_dtype`` finds them.
        replace : bool, default=False
            Whether a vector that contradicts the one that is there replaces it. Vectors of one
            key that differ by rounding, as those of two machines do, do not: the older one stays.

        Returns
        -------
        imported : Imported
            How many are new, how many were there, and those that contradict what was there.

        Raises
        ------
        InputError
            If the file does not hold what it should; what was read before stays.
        MissingDependencyError
            If pyarrow is needed and not installed.
        CacheVersionError, OSError
            If the file cannot be read, or the cache not be written.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache(folder)
        ...     _ = Engine("mini", cache=cache).embed(["MKTAYIAKQR", "GSHM"])
        ...     _ = cache.export(f"{folder}/mini.parquet")
        ...     Cache(f"{folder}/another").import_(f"{folder}/mini.parquet")
        Imported(added=2, present=0, conflicts=())
        """
        source = Path(path)
        if source.name == self.file.name:
            source = source.parent
        told = {
            "model": model,
            "layer": layer,
            "pooling": pooling,
            "precision": precision,
            "cache_dtype": cache_dtype,
        }
        if source.is_dir():
            check_told(source, told)
            other = Cache(source.absolute())
            if not other.file.exists():
                raise InputError(f"There is no cache in {source}: it has no {other.file.name}.")
            parts = other._parts()
        else:
            parts = read_parts(source, told)
        n, added, dropped, conflicts = 0, 0, 0, list[Conflict]()
        for part in parts:
            merge = partial(self._vectors.merge, part=part, replace=replace)
            new, contradicting, of_today = self._link.run("written", merge) or (0, [], 0)
            for conflict in contradicting:
                # Only a file of sequences has an order that people see.
                row = None if model is None or conflict.row is None else n + conflict.row
                conflicts.append(conflict._replace(row=row))
            n, added, dropped = n + len(part.keys), added + new, dropped + of_today
        self._warn_of_little_room(dropped)
        return Imported(added, n - added - len(conflicts), tuple(conflicts))

    def _warn_of_little_room(self, dropped: int) -> None:
        if dropped:
            self._link.warn(
                "room",
                f"The cache {self.file} may not be larger than max_bytes={self.max_bytes}, which "
                "is less than what is used in a day: vectors that were written or used today had "
                "to make room, and will be computed again. Raise max_bytes, or store less.",
            )


# One for each folder, however often it is named: what has been warned of, and which failing disk
# is left alone for a while, is remembered from one call to the next.
_OPEN: dict[Path, Cache] = {}


def open_cache(cache: str | os.PathLike[str] | Cache | None) -> Cache | None:
    """Turn what users pass as ``cache=`` into a `Cache`."""
    if cache is None or isinstance(cache, Cache):
        return cache
    if not isinstance(cache, str | os.PathLike):
        raise TypeError(f'Got cache={cache!r}; pass None, "auto", the path of a folder, or a Cache')
    opened = Cache(None if cache == "auto" else cache)
    return _OPEN.setdefault(opened.path, opened)


def default_folder() -> Path:
    """Say which folder is "auto": ``ESM2_FEATURES_CACHE``, or else one in the user's caches."""
    chosen = os.environ.get("ESM2_FEATURES_CACHE")
    return Path(chosen or platformdirs.user_cache_path("esm2_features") / "embeddings")
