"""What the methods of `Cache` tell, and how it reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what the command line says has to be instant
    from esm2_features._cache.keys import Spec


class SpaceInfo(NamedTuple):
    """What a cache holds of one model, layer and pooling.

    Attributes
    ----------
    spec : Spec
        Model, layer, pooling, precision, and the dtype that the vectors are kept in.
    rows : int
        Number of vectors.
    bytes : int
        Bytes of the vectors, their keys and checksums.
    """

    spec: Spec
    rows: int
    bytes: int


class CacheInfo(NamedTuple):
    """What a cache holds; ``print`` shows it as a table.

    Attributes
    ----------
    path : Path
        The folder.
    rows : int
        Number of vectors.
    bytes : int
        Size of the file, in bytes.
    spaces : tuple of SpaceInfo
        What there is by model, layer and pooling.
    """

    path: Path
    rows: int
    bytes: int
    spaces: tuple[SpaceInfo, ...]

    def __str__(self) -> str:
        """Lay it out as a table."""
        lines = [f"{self.path}: {vectors(self.rows)}, {readable(self.bytes)}"]
        if self.spaces:
            header = ("model", "layer", "pooling", "precision", "kept in", "vectors", "size")
            table = [
                header,
                *(
                    (*_words(space.spec), str(space.rows), readable(space.bytes))
                    for space in self.spaces
                ),
            ]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            for row in table:
                cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
                lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


class CacheCheck(NamedTuple):
    """What a reading of the whole cache found.

    Attributes
    ----------
    rows : int
        Number of vectors that are as they were written.
    damaged : tuple of str
        What is not, a sentence each.
    """

    rows: int
    damaged: tuple[str, ...]


class Pruned(NamedTuple):
    """What has gone from a cache.

    Attributes
    ----------
    rows : int
        Number of vectors.
    bytes : int
        Bytes by which the file is smaller.
    """

    rows: int
    bytes: int


class Conflict(NamedTuple):
    """A vector that contradicts the one that is there under the same key.

    Attributes
    ----------
    spec : Spec
        Model, layer, pooling, precision and dtype of both.
    key : str
        The key, 64 hexadecimal digits.
    row : int or None
        Its row in the file, from 0; None if it comes from another cache.
    difference : float
        The largest difference of any component.
    """

    spec: Spec
    key: str
    row: int | None
    difference: float

    def __str__(self) -> str:
        """Say which it is, and how far off."""
        name = f"key {self.key[:16]}..." if self.row is None else f"row {self.row}"
        return f"{name} differs by {self.difference:.3g} from {describe(self.spec)}"


class Imported(NamedTuple):
    """What came of taking in vectors.

    Attributes
    ----------
    added : int
        Number of vectors that are new.
    present : int
        Number of those that were there, equal but for rounding.
    conflicts : tuple of Conflict
        Those that contradict what was there.
    """

    added: int
    present: int
    conflicts: tuple[Conflict, ...]


def describe(spec: Spec) -> str:
    """Name what a spec stands for."""
    name, layer, pooling, precision, dtype = _words(spec)
    kept = "" if dtype == "float32" else f", kept in {dtype}"
    return f"{name}, layer {layer}, {pooling}, {precision}{kept}"


def vectors(count: int) -> str:
    """Count vectors in words."""
    return f"{count} vector" + ("" if count == 1 else "s")


def readable(count: int | None) -> str:
    """Write a number of bytes for people."""
    if count is None:
        return "unknown"
    unit, scale = next(
        (
            (unit, scale)
            for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6))
            if count >= scale
        ),
        ("kB", 1e3),
    )
    return f"{count / scale:.1f} {unit}"


def _words(spec: Spec) -> tuple[str, ...]:
    name = spec.model or spec.checkpoint
    return name, str(spec.layer), spec.pooling, spec.precision, spec.dtype
