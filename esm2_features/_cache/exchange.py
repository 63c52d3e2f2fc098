"""Vectors on their way into a cache, or out of one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import maintenance
from esm2_features._cache.connection import CacheConnection
from esm2_features._cache.embedding_files import (
    H5_ENDINGS,
    LONGEST,
    NamedVectors,
    SequenceNames,
    pooled,
    read_extract_files,
    read_h5,
)
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._cache.parquet import read_parquet
from esm2_features._cache.reports import Conflict, Imported
from esm2_features._cache.vector_files import check_ending, check_finite, read_vectors
from esm2_features._checkpoints.catalogue import OFFICIAL, full_name
from esm2_features._inputs.options import (
    CACHE_DTYPES,
    POOLINGS,
    PRECISIONS,
    absolute_layers,
    one_of,
)
from esm2_features._inputs.residues import normalise
from esm2_features.exceptions import CacheWarning, InputError, InvalidSequenceError

_ROWS = 4096  # vectors of a file in one part
_BLOCKS = 64  # blocks that are read at a time, 16 MB at most


def stored_parts(link: CacheConnection, **wanted: Any) -> Iterator[KeyedVectors]:
    """Yield all intact vectors of a cache with this model, layer and pooling, block by block.

    Vectors that others write meanwhile move to blocks with higher numbers: they may be yielded
    twice, but at least once.
    """
    list_all = partial(maintenance.contents, **wanted)
    for spec, _ in link.run("read", list_all, mend=False) or []:
        list_more = partial(maintenance.blocks_after, spec=spec, most=_BLOCKS)
        last = 0
        while numbers := link.run("read", partial(list_more, after=last), mend=False):
            last = numbers[-1]
            read = partial(maintenance.read_parts, spec=spec, numbers=numbers)
            parts, damaged = link.run("read", read, mend=False) or ([], 0)
            if damaged:
                link.warn(
                    "export",
                    f"The cache {link.file} holds damaged vectors, which are left out. "
                    "`esm2-features cache prune` removes them.",
                )
            yield from parts


def merge_parts(
    link: CacheConnection,
    merge: Callable[..., tuple[int, list[Conflict], int]],
    parts: Iterable[KeyedVectors],
    *,
    with_rows: bool,
) -> tuple[Imported, int]:
    """Add vectors to a cache; also return how many vectors of today had to make room.

    Conflicts name the row of the file if `with_rows`.
    """
    n, added, dropped, conflicts = 0, 0, 0, list[Conflict]()
    for part in parts:
        new, contradicting, of_today = link.run("written", partial(merge, part=part)) or (0, [], 0)
        for conflict in contradicting:
            row = n + conflict.row if with_rows and conflict.row is not None else None
            conflicts.append(conflict._replace(row=row))
        n, added, dropped = n + len(part.keys), added + new, dropped + of_today
    return Imported(added, n - added - len(conflicts), tuple(conflicts)), dropped


def source_parts(
    path: Path, cache_name: str, given: Mapping[str, Any], sequences: Any = None
) -> Iterator[KeyedVectors]:
    """Read the vectors of a file, of a folder of .pt, or of a cache in files of this name."""
    folder = path.parent if path.name == cache_name else path
    if not folder.is_dir() or any(folder.glob("*.pt")):
        return read_parts(folder, given, sequences)
    check_given(folder, {**given, "sequences": sequences})
    file = folder.absolute() / cache_name
    if not file.exists():
        raise InputError(
            f"There is no cache in {folder}: it has no {cache_name}, and no .pt of fair-esm's "
            "extract.py."
        )
    return stored_parts(CacheConnection(file))


def read_parts(
    path: Path, given: Mapping[str, Any], sequences: Any = None
) -> Iterator[KeyedVectors]:
    """Read the vectors of a file, or of a folder of .pt, in parts of up to 4096."""
    path.stat()  # a wrong name is the first error
    if path.suffix.lower() in (*H5_ENDINGS, ".pt") or path.is_dir():
        yield from _named_parts(path, given, sequences)
        return
    if sequences is not None:
        raise InputError(f"Got sequences={str(sequences)!r}, but {path} has its own. Leave it out.")
    if path.suffix.lower() == ".parquet":
        check_given(path, given)
        for part in read_parquet(path):
            _check_range(path, part)
            yield part
        return
    check_ending(path)
    spec, dim = _spec_of(path, given)
    table = read_vectors(path, dim=dim)
    sequences = [_normalised(path, row, text) for row, text in enumerate(table.sequences)]
    for start in range(0, len(sequences), _ROWS):
        some = slice(start, start + _ROWS)
        part = KeyedVectors(spec, spec.keys(sequences[some]), table.rows[some])
        _check_range(path, part)
        yield part


def _named_parts(
    path: Path, given: Mapping[str, Any], sequences_file: Any
) -> Iterator[KeyedVectors]:
    """Read vectors that are under the names of sequences, in parts of up to 4096."""
    if sequences_file is None:
        raise InputError(
            f"{path} has the names of sequences, and no sequences. Give the file that they are in: "
            "sequences=."
        )
    known = SequenceNames(Path(sequences_file))
    is_h5 = path.suffix.lower() in H5_ENDINGS
    waiting: dict[Spec, tuple[list[str], list[NDArray[np.float32]]]] = {}
    n = n_left_out = 0
    for n, found in enumerate(read_h5(path) if is_h5 else read_extract_files(path), start=1):
        text = known.find(found.names)
        sequence = None if text is None else _normalised(Path(found.place), n - 1, text)
        if sequence is None or (not is_h5 and len(sequence) > LONGEST):
            n_left_out += 1
            continue
        for spec, vector in _vectors_of(path, given, found, len(sequence)):
            texts, rows = waiting.setdefault(spec, ([], []))
            texts.append(sequence)
            rows.append(vector)
            if len(rows) == _ROWS:
                yield _part(path, spec, *waiting.pop(spec))
    if n_left_out == n:
        raise InputError(
            f"None of the {n} names in {path} is in {sequences_file}. Give the file of sequences "
            "that the vectors were computed of."
        )
    if n_left_out:
        warnings.warn(
            f"{n_left_out} of {n} vectors of {path} are left out: their names are not in "
            f"{sequences_file}, or they have more than {LONGEST} residues, which extract.py cuts.",
            CacheWarning,
            stacklevel=2,
        )
    for spec, (texts, rows) in waiting.items():
        yield _part(path, spec, texts, rows)


def _vectors_of(
    path: Path, given: Mapping[str, Any], found: NamedVectors, length: int
) -> Iterator[tuple[Spec, NDArray[np.float32]]]:
    """Yield the vectors of one sequence that are wanted: all, or those of the given layer."""
    for (layer, pooling), array in found.arrays.items():
        wanted = ((given["layer"], layer), (given["pooling"], pooling))
        if any(own is not None and it is not None and own != it for own, it in wanted):
            continue
        about = {
            "layer": given["layer"] if layer is None else layer,
            "pooling": given["pooling"] if pooling is None else pooling,
        }
        spec, dim = _spec_of(path, {**given, **about})
        vector = pooled(array, spec.pooling, length, found.place)
        if len(vector) != dim:
            raise InputError(
                f"{found.place} has {len(vector)} components, and {spec.model} has {dim}. Choose "
                "the model that the vectors were computed with."
            )
        check_finite(Path(found.place), vector[None])
        yield spec, vector


def _part(
    path: Path, spec: Spec, texts: list[str], rows: list[NDArray[np.float32]]
) -> KeyedVectors:
    part = KeyedVectors(spec, spec.keys(texts), np.stack(rows))
    _check_range(path, part)
    return part


def check_given(path: Path, given: Mapping[str, object]) -> None:
    """Raise InputError on options that the file answers itself."""
    options = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    if options:
        raise InputError(
            f"Got {options}, but {path} says that of each of its vectors. Leave it out."
        )


def _spec_of(path: Path, given: Mapping[str, Any]) -> tuple[Spec, int]:
    """Make the spec, and the width, of vectors of an official model."""
    absent = [name for name in ("model", "layer", "pooling") if given[name] is None]
    if absent:
        raise InputError(
            f"{path} does not say what its vectors are: {' and '.join(absent)} must be given, too. "
            f"The model is one of {', '.join(OFFICIAL)}; vectors of other checkpoints come in by "
            ".parquet, from a cache that has them."
        )
    card = OFFICIAL[one_of("model", full_name(given["model"]) or given["model"], tuple(OFFICIAL))]
    depth = card.architecture.layers
    if not isinstance(given["layer"], Integral):
        raise InputError(f"Got layer={given['layer']!r}; expected one number.")
    [layer] = absolute_layers(given["layer"], depth=depth, model=card.name, option="layer")
    spec = Spec(
        checkpoint=card.identity,
        layer=layer,
        pooling=one_of("pooling", given["pooling"], POOLINGS),
        precision=one_of("precision", given["precision"] or "float32", PRECISIONS),
        dtype=one_of("cache_dtype", given["cache_dtype"] or "float32", CACHE_DTYPES),
        model=card.name,
    )
    return spec, card.architecture.dim


def _normalised(path: Path, row: int, text: str) -> str:
    try:
        return normalise(text, index=row)
    except InvalidSequenceError as error:
        what = "the sequence is empty"
        if error.residue:
            what = f"{error.residue!a} at position {error.position} of {text[:60]!a} is no residue"
        raise InputError(f"{path}, row {row}: {what}. Correct it, or remove the row.") from error


def _check_range(path: Path, part: KeyedVectors) -> None:
    """Raise InputError on numbers that are too large for the dtype of the spec."""
    largest = np.finfo(part.spec.dtype).max
    fits = (np.abs(part.rows) <= largest).all(axis=1)
    if not fits.all():
        bad = int(np.argmin(fits))
        raise InputError(
            f"{path} holds a vector with the component {np.abs(part.rows[bad]).max():.6g} (key "
            f"{part.keys[bad].tobytes().hex()[:16]}...), and {part.spec.dtype} reaches "
            f"{largest:.6g}. "
            'Keep these vectors in float32: cache_dtype="float32".'
        )
