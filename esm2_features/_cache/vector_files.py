"""Files of sequences with vectors that were computed elsewhere.

    .npz               arrays sequence (n,) and embedding (n, d)
    .csv, .csv.gz      a column sequence, and one for each of the d components

Every value is checked; errors name the row, from 0. A file is held in memory as a whole.
"""

from __future__ import annotations

import csv
import io
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features.exceptions import InputError, shorten

_NO_COMPONENTS = ("sequence", "id", "label")


class SequenceVectors(NamedTuple):
    """Sequences and the vectors that somebody computed of them."""

    sequences: list[str]  # not normalised
    rows: NDArray[np.float32]  # (n, dim)


def read_vectors(path: Path, *, dim: int) -> SequenceVectors:
    """Read sequences, and vectors that were computed of them elsewhere."""
    check_ending(path)
    is_npz = path.name.lower().endswith(".npz")
    vectors = _read_npz(path, dim) if is_npz else _read_csv(path, dim)
    if not vectors.sequences:
        raise InputError(f"{path} holds no sequences. Give a file that has some.")
    check_finite(path, vectors.rows)
    return vectors


def check_ending(path: Path) -> None:
    """Raise InputError on another ending of the name."""
    if not path.name.lower().endswith((".npz", ".csv", ".csv.gz")):
        raise InputError(
            f"{path} ends in {path.suffix!r}. Vectors come from .parquet, as exported from a "
            "cache, from .npz, .csv or .csv.gz, with sequences, or from .h5 or .pt, with a file of "
            "sequences. Convert it to one of these."
        )


def _read_npz(path: Path, dim: int) -> SequenceVectors:
    recipe = "np.savez(path, sequence=np.array(sequences, dtype=np.str_), embedding=vectors)"
    with path.open("rb") as file:
        try:
            with np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
                names = archive.files
                arrays = [archive[name] for name in ("sequence", "embedding") if name in names]
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise TypeError("a member is no array")
        except ValueError as error:  # with allow_pickle=False, of an array of objects above all
            raise InputError(
                f"{path} cannot be read ({error}). Objects are never read, because they could "
                f"run programs: write text and numbers, {recipe}."
            ) from error
        except Exception as error:  # zip, zlib and numpy have error classes of their own
            raise unreadable(path, error) from error
    if len(arrays) < 2:
        raise InputError(
            f"{path} needs the arrays 'sequence' and 'embedding', and holds {listed(names)}. "
            f"Write it with {recipe}."
        )
    sequence, embedding = arrays
    if sequence.dtype.kind not in "US" or embedding.dtype.kind != "f":
        raise InputError(
            f"{path}: the array 'sequence' is {sequence.dtype} and 'embedding' is "
            f"{embedding.dtype}, where text and float32 (or float64, float16) are needed. Write "
            f"it with {recipe}."
        )
    if sequence.ndim != 1 or embedding.shape != (len(sequence), dim):
        raise InputError(
            f"{path}: 'sequence' has the shape {sequence.shape} and 'embedding' "
            f"{embedding.shape}, where (n,) and (n, {dim}) are needed: one row for each sequence, "
            f"and the {dim} components of the model. Choose the model it was computed with."
        )
    if sequence.dtype.kind == "U" and sequence.dtype.itemsize:
        points = np.ascontiguousarray(sequence, sequence.dtype.newbyteorder("=")).view(np.uint32)
        if points.max(initial=0) > sys.maxunicode:  # which Python's texts must not have
            raise unreadable(path, ValueError("its text has characters beyond Unicode"))
    texts = sequence.tolist()
    if sequence.dtype.kind == "S":
        # Other bytes than ASCII survive as surrogates, for the error about residues.
        texts = [text.decode("ascii", "surrogateescape") for text in texts]
    with np.errstate(over="ignore"):  # becomes an infinity, which `check_finite` names
        return SequenceVectors(texts, np.ascontiguousarray(embedding, np.float32))


def _read_csv(path: Path, dim: int) -> SequenceVectors:
    records = _records(path)
    _, header = next(records, (0, []))
    if header.count("sequence") != 1:
        raise InputError(
            f"{path} needs one column 'sequence', and its columns are {listed(header)}. Name "
            "the columns in its first line, and separate them by commas."
        )
    components = [i for i, name in enumerate(header) if name not in _NO_COMPONENTS]
    if len(components) != dim:
        raise InputError(
            f"{path} has {len(components)} columns besides sequence, id and label, and the model "
            f"has {dim} components. They are {listed([header[i] for i in components])}. Remove "
            "what is no component, or choose the model the vectors were computed with."
        )
    sequences = []
    values = array("f")  # grows in place: a list of numbers would take ten times the room
    for row, (line, cells) in enumerate(records):
        if len(cells) != len(header):
            raise InputError(
                f"{path}, row {row} (line {line}): there are {len(cells)} cells under "
                f"{len(header)} columns. Fill in the row, or remove it."
            )
        sequences.append(cells[header.index("sequence")])
        for i in components:
            try:
                values.append(float(cells[i]))
            except ValueError:
                raise InputError(
                    f"{path}, row {row} (line {line}): {shorten(cells[i])!a} in the column "
                    f"{shorten(header[i])!a} is no number. Write it like -0.25, or remove the row."
                ) from None
    return SequenceVectors(sequences, np.frombuffer(values, np.float32).reshape(-1, dim))


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a CSV file that are not blank, with the number of their last line."""
    from xopen import xopen  # imported here because only files need it

    path.open("rb").close()  # an OSError here is no damage
    try:
        # "-sig" drops the byte order mark that spreadsheets write; threads=0: errors in place.
        with xopen(path, "rb", threads=0) as binary:
            text = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(text)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except Exception as error:  # every decompressor has an error class of its own
        raise unreadable(path, error) from error


def check_finite(path: Path, rows: NDArray[np.float32], start: int = 0) -> None:
    """Raise InputError on NaN or infinity; `start` is the row of the first vector."""
    finite = np.isfinite(rows)
    if not finite.all():
        row, component = np.argwhere(~finite)[0]
        raise InputError(
            f"{path}, row {start + row}: component {component} of the vector is "
            f"{rows[row, component]}, which is no finite float32. Remove the row, or compute its "
            "vector again."
        )


def unreadable(path: Path, error: Exception) -> InputError:
    """Make the error of a damaged file."""
    return InputError(
        f"{path} cannot be read ({error}). It is damaged, was cut short, or is no "
        f"{path.suffix} file: copy it again, or write it again."
    )


def listed(names: Iterable[str]) -> str:
    """List names; of many, the first and the last few, where the odd one mostly is."""
    shown = [ascii(shorten(name)) for name in names]
    if len(shown) > 8:
        shown[4:-3] = ["..."]
    return ", ".join(shown) or "none"
