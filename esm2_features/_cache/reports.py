"""Results of the methods of `Cache`, and their text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from esm2_features.exceptions import printable

if TYPE_CHECKING:  # the command line imports this module, which has to be quick
    from esm2_features._cache.keys import Spec


class SpaceInfo(NamedTuple):
    """Vectors of one model, layer and pooling in a cache.

    Attributes
    ----------
    spec : Spec
        Model, layer, pooling, precision and dtype.
    rows : int
        Number of vectors.
    bytes : int
        Bytes of the vectors, their keys and checksums.
    """

    spec: Spec
    rows: int
    bytes: int


class SetAside(NamedTuple):
    """A file that was set aside because it is damaged.

    Attributes
    ----------
    path : Path
        The file.
    bytes : int
        Its size, in bytes.
    """

    path: Path
    bytes: int


class CacheInfo(NamedTuple):
    """Result of `Cache.info`; ``print`` shows it as a table.

    Attributes
    ----------
    path : Path
        The folder.
    rows : int
        Number of vectors.
    bytes : int
        Size of the file, in bytes.
    spaces : tuple of SpaceInfo
        Contents by model, layer and pooling.
    set_aside : tuple of SetAside
        Files that were set aside as damaged, newest first; `Cache.recover` brings back their
        vectors, and `Cache.clear` removes them.
    """

    path: Path
    rows: int
    bytes: int
    spaces: tuple[SpaceInfo, ...]
    set_aside: tuple[SetAside, ...] = ()

    def __str__(self) -> str:
        """Format the contents as a table."""
        lines = [f"{printable(str(self.path))}: {vectors(self.rows)}, {readable(self.bytes)}"]
        if self.spaces:
            table = [("model", "layer", "pooling", "precision", "kept in", "vectors", "size")]
            for spec, rows, size in self.spaces:
                table.append((*spec.words, str(rows), readable(size)))
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            for row in table:
                cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
                lines.append("  ".join(cells).rstrip())
        lines += [
            f"Set aside as damaged: {printable(it.path.name)}, {readable(it.bytes)}"
            for it in self.set_aside
        ]
        if self.set_aside:
            lines.append("`esm2-features cache recover` brings back what is intact in them.")
        return "\n".join(lines)


class CacheCheck(NamedTuple):
    """Result of `Cache.verify`.

    Attributes
    ----------
    rows : int
        Number of intact vectors.
    damaged : tuple of str
        What is damaged, a sentence each.
    """

    rows: int
    damaged: tuple[str, ...]


class Pruned(NamedTuple):
    """Result of `Cache.prune`.

    Attributes
    ----------
    rows : int
        Number of vectors that were removed.
    bytes : int
        Bytes by which the file is smaller.
    """

    rows: int
    bytes: int


class RecoveredFile(NamedTuple):
    """What `Cache.recover` found in one file.

    Attributes
    ----------
    path : Path
        The file.
    added : int
        Number of vectors that it brought back.
    present : int
        Number of its intact vectors that the cache has already.
    lost : int
        Number of its vectors that are damaged, as far as can be told: a block of vectors whose keys
        cannot be read counts as one, and one of which no trace is left as none.
    error : str or None
        Why the file cannot be opened, such as a lack of permission.
    """

    path: Path
    added: int
    present: int
    lost: int
    error: str | None

    def __str__(self) -> str:
        """Say what was found, in one line."""
        if self.error is not None:
            return f"{self.path.name} cannot be opened: {self.error}"
        if not (self.added or self.present or self.lost):
            return f"{self.path.name}: no vector can be read"
        lost = "none" if not self.lost else f"at least {self.lost}"
        return (
            f"{self.path.name}: {vectors(self.added)} brought back, {self.present} there already, "
            f"{lost} lost"
        )


class Recovered(NamedTuple):
    """Result of `Cache.recover`.

    Attributes
    ----------
    added : int
        Number of vectors that were brought back.
    files : tuple of RecoveredFile
        The files that had been set aside, newest first.
    """

    added: int
    files: tuple[RecoveredFile, ...]


class Conflict(NamedTuple):
    """An imported vector that contradicts the stored one of the same key.

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
        """Name the vector, and its difference."""
        name = f"key {self.key[:16]}..." if self.row is None else f"row {self.row}"
        return f"{name} differs by {self.difference:.3g} from {describe(self.spec)}"


class Imported(NamedTuple):
    """Result of `Cache.import_`.

    Attributes
    ----------
    added : int
        Number of vectors that are new.
    present : int
        Number of vectors that were stored already, equal up to rounding.
    conflicts : tuple of Conflict
        Vectors that contradict stored ones.
    """

    added: int
    present: int
    conflicts: tuple[Conflict, ...]


def describe(spec: Spec) -> str:
    """Describe a spec in a few words."""
    name, layer, pooling, precision, dtype = spec.words
    kept = "" if dtype == "float32" else f", kept in {dtype}"
    return f"{name}, layer {layer}, {pooling}, {precision}{kept}"


def vectors(count: int) -> str:
    return f"{count} vector" + ("" if count == 1 else "s")


def readable(count: int | None) -> str:
    """Write a number of bytes for people."""
    if count is None:
        return "unknown"
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
