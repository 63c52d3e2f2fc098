"""From a file to vectors with keys: what a cache takes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._cache.parquet import read_parquet
from esm2_features._cache.vector_files import check_ending, read_vectors
from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features._inputs.options import (
    CACHE_DTYPES,
    POOLINGS,
    PRECISIONS,
    absolute_layers,
    one_of,
)
from esm2_features._inputs.residues import normalise
from esm2_features.exceptions import InputError, InvalidSequenceError

_ROWS = 4096
"""Vectors that are handed on at a time."""


def read_parts(path: Path, given: Mapping[str, Any]) -> Iterator[KeyedVectors]:
    """Read the vectors of a file."""
    path.stat()  # a name that is wrong is what is said first
    if path.suffix.lower() == ".parquet":
        check_given(path, given)
        for part in read_parquet(path):
            _check_range(path, part)
            yield part
        return
    check_ending(path)
    spec, dim = _spec_of(path, given)
    found = read_vectors(path, dim=dim)
    sequences = [_normalised(path, row, text) for row, text in enumerate(found.sequences)]
    for start in range(0, len(sequences), _ROWS):
        some = slice(start, start + _ROWS)
        part = KeyedVectors(spec, spec.keys(sequences[some]), found.rows[some])
        _check_range(path, part)
        yield part


def check_given(path: Path, given: Mapping[str, object]) -> None:
    """Refuse to be given what a file says itself."""
    said = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    if said:
        raise InputError(f"Got {said}, but {path} says that of each of its vectors. Leave it out.")


def _spec_of(path: Path, given: Mapping[str, Any]) -> tuple[Spec, int]:
    """Make the spec, and the width, of vectors of an official model."""
    absent = [name for name in ("model", "layer", "pooling") if given[name] is None]
    if absent:
        raise InputError(
            f"{path} does not say what its vectors are: {' and '.join(absent)} must be given, too. "
            f"The model is one of {', '.join(OFFICIAL)}; vectors of other checkpoints come in by "
            ".parquet, from a cache that has them."
        )
    card = OFFICIAL[one_of("model", given["model"], tuple(OFFICIAL))]
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
    """Refuse what the numbers that it is to be kept in cannot hold."""
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
