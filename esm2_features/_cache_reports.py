"""What the methods of `Cache` tell, and how it reads.

Never here: how it is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what the command line says has to be instant
    from esm2_features._spec import Spec


class SpaceInfo(NamedTuple):
    """What a cache holds of one model, layer and pooling."""

    spec: Spec
    rows: int  # number of vectors
    bytes: int  # of the vectors, their keys and checksums


class CacheInfo(NamedTuple):
    """What a cache holds; ``print`` shows it as a table."""

    path: Path  # the folder
    rows: int  # number of vectors
    bytes: int  # size of the file
    spaces: tuple[SpaceInfo, ...]  # by model, layer and pooling

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
    """What a reading of the whole cache found."""

    rows: int  # number of vectors that are as they were written
    damaged: tuple[str, ...]  # what is not, a sentence each


class Pruned(NamedTuple):
    """What has gone from a cache."""

    rows: int  # number of vectors
    bytes: int  # by which the file is smaller


class Conflict(NamedTuple):
    """A vector that contradicts the one that is there under the same key."""

    spec: Spec
    key: str  # hexadecimal
    row: int | None  # of the file, from 0; None if it comes from another cache
    difference: float  # the largest of any component

    def __str__(self) -> str:
        """Say which it is, and how far off."""
        name = f"key {self.key[:16]}..." if self.row is None else f"row {self.row}"
        return f"{name} differs by {self.difference:.3g} from {describe(self.spec)}"


class Imported(NamedTuple):
    """What came of taking in vectors."""

    added: int  # number of vectors that are new
    present: int  # that were there, equal but for rounding
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
        ((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if count >= scale),
        ("kB", 1e3),
    )
    return f"{count / scale:.1f} {unit}"


def _words(spec: Spec) -> tuple[str, ...]:
    name = spec.model or spec.checkpoint
    return name, str(spec.layer), spec.pooling, spec.precision, spec.dtype
