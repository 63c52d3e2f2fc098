"""From a file to vectors with keys: what a cache takes in.

Never here: formats, caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from esm2_features._catalogue import OFFICIAL
from esm2_features._options import CACHE_DTYPES, POOLINGS, PRECISIONS, absolute_layers, one_of
from esm2_features._parquet_file import read_parquet
from esm2_features._residues import normalise
from esm2_features._spec import Part, Spec
from esm2_features._vector_files import read_vectors
from esm2_features.exceptions import InputError

_ROWS = 4096
"""Vectors that are handed on at a time."""


def read_parts(
    path: Path,
    *,
    model: str | None,
    layer: int,
    pooling: str,
    precision: str,
    dtype: str,
) -> Iterator[Part]:
    """Read the vectors of a file.

    Parameters
    ----------
    path : Path
        ``.parquet``, as a cache exports it, which says what its vectors are; or ``.npz`` or
        ``.csv`` with sequences, which does not.
    model : str or None
        Official name of the model that computed them.
    layer, pooling, precision, dtype
        The rest of their `Spec`; a negative layer counts from the end.

    Yields
    ------
    part : Part

    Raises
    ------
    InputError
        If the file does not hold what it should, or a parameter cannot be.
    MissingDependencyError
        If pyarrow is needed and not installed.
    OSError
        If there is no such file, or it may not be read.
    """
    if path.suffix.lower() == ".parquet":
        if model is not None:
            raise InputError(
                f"Got model={model!r}, but {path} says of each vector which model it is of. Leave "
                "it out."
            )
        for part in read_parquet(path):
            _check_range(path, part)
            yield part
        return
    card = OFFICIAL.get(model or "")
    if card is None:
        raise InputError(
            f"Got model={model!r}; {path} does not say which model computed its vectors. Name one "
            f"of {', '.join(OFFICIAL)}. Vectors of other checkpoints are exported from a cache "
            "that has them, as .parquet."
        )
    shape = card.architecture
    [number] = absolute_layers(layer, depth=shape.layers, model=card.name)
    spec = Spec(
        checkpoint=card.identity,
        layer=number,
        pooling=one_of("pooling", pooling, POOLINGS),
        precision=one_of("precision", precision, PRECISIONS),
        dtype=one_of("cache_dtype", dtype, CACHE_DTYPES),
        model=card.name,
    )
    found = read_vectors(path, dim=shape.dim)
    sequences = [normalise(text, index=row) for row, text in enumerate(found.sequences)]
    for start in range(0, len(sequences), _ROWS):
        some = slice(start, start + _ROWS)
        part = Part(spec, spec.keys(sequences[some]), found.rows[some])
        _check_range(path, part)
        yield part


def _check_range(path: Path, part: Part) -> None:
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
