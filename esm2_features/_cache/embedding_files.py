"""Files in which other programs keep vectors under the names of sequences.

    .h5      a dataset for each sequence: named by its id (UniProt, ProtSpace), or by a hash of it,
             with the id as the attribute original_id (biotrainer, bio_embeddings)
    .pt      one for each sequence, as fair-esm's scripts/extract.py writes: a dictionary of label,
             mean_representations, bos_representations and representations, by layer

They hold no sequences: these come from another file, and are found by id or hash. ``.pt`` files are
read without torch, and no code in them is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache.vector_files import unreadable
from esm2_features._checkpoints.pickles import Inert
from esm2_features._checkpoints.pt_file import read_pt
from esm2_features._checkpoints.slots import Slot
from esm2_features._inputs.records import read_records
from esm2_features.exceptions import CheckpointError, InputError, import_optional

H5_ENDINGS = (".h5", ".hdf5")
LONGEST = 1022
"""Residues to which scripts/extract.py cuts sequences, unless it is told otherwise."""

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
_POOL: dict[str, Any] = {"mean": np.mean, "max": np.max, "std": np.std}
_KEYS = {"mean_representations": "mean", "bos_representations": "cls"}


class NamedVectors(NamedTuple):
    """The vectors of one sequence."""

    names: tuple[str, ...]  # what it may be called in a file of sequences
    # (layer, pooling) -> (d,), or (L, d) for its residues; None is what the caller knows
    arrays: dict[tuple[int | None, str | None], NDArray[Any]]
    place: str  # for messages


class SequenceNames:
    """The sequences of a file by id, by accession and by hash."""

    def __init__(self, path: Path) -> None:
        self._sequences: dict[str, str] = {}
        for record in read_records(path).records:
            middle = record.id.split("|")[1:2] if record.id.count("|") == 2 else []
            for name in (record.id, sequence_hash(record.seq), record.description, *middle):
                self._sequences.setdefault(name, record.seq)

    def find(self, names: tuple[str, ...]) -> str | None:
        return next((self._sequences[name] for name in names if name in self._sequences), None)


def sequence_hash(sequence: str) -> str:
    """Return biotrainer's hash of a sequence."""
    return sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest()


def pooled(array: NDArray[Any], pooling: str, length: int, place: str) -> NDArray[np.float32]:
    """Make one vector of what a file has of a sequence."""
    if array.ndim == 2 and len(array) == length != 1 and pooling in _POOL:
        return np.asarray(_POOL[pooling](array.astype(np.float32), axis=0), np.float32)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1 or array.dtype.kind != "f":
        raise InputError(
            f"{place} has the shape {array.shape} and the dtype {array.dtype}, where a vector, or "
            f"{length} x d numbers for the residues, are needed. Reduce it to one vector."
        )
    with np.errstate(over="ignore"):  # becomes an infinity, which is named later
        return array.astype(np.float32)


def read_h5(path: Path) -> Iterator[NamedVectors]:
    """Read an HDF5 file, dataset by dataset."""
    h5py: Any = import_optional("h5py", extra="h5", purpose="Reading HDF5")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        for name, dataset in file.items():
            if not isinstance(dataset, h5py.Dataset):
                raise InputError(
                    f"{path} holds the group {name!r}, where a dataset for each sequence is "
                    "needed. Write the vectors side by side."
                )
            given = dataset.attrs.get("original_id", dataset.attrs.get("id", name))
            identifier = given.decode() if isinstance(given, bytes) else str(given)
            names = tuple(dict.fromkeys((identifier, name, unquote(name))))
            yield NamedVectors(names, {(None, None): dataset[()]}, f"{path}, {name}")


def read_extract_files(path: Path) -> Iterator[NamedVectors]:
    """Read a ``.pt`` file of scripts/extract.py, or all in a folder."""
    for file in sorted(path.glob("*.pt")) if path.is_dir() else [path]:
        try:
            contents, slots = read_pt(file)
        except (CheckpointError, OSError) as error:
            raise unreadable(file, error) from error
        contents = contents if isinstance(contents, Mapping) else {}
        label = contents.get("label")
        if isinstance(label, Inert):
            raise unreadable(file, TypeError(f"{type(label).__name__} is not expected in it"))
        arrays: dict[tuple[int | None, str | None], NDArray[Any]] = {}
        if isinstance(label, str):
            for key, pooling in _KEYS.items():
                for layer in dict(contents.get(key, {})):
                    arrays[int(layer), pooling] = _array(file, slots[f"{key}.{layer}"])
            for layer in dict(contents.get("representations", {})):
                array = _array(file, slots[f"representations.{layer}"])
                for pooling in _POOL:
                    arrays.setdefault((int(layer), pooling), array)
        if not arrays:
            raise InputError(
                f"{file} is no file of scripts/extract.py: it needs label, and "
                "mean_representations, bos_representations or representations."
            )
        yield NamedVectors((str(label), *str(label).split()[:1]), arrays, str(file))


def _array(path: Path, slot: Slot) -> NDArray[Any]:
    if slot.dtype not in _DTYPES or slot.strides is None:
        raise unreadable(path, TypeError(f"{slot.dtype} is not expected in it"))
    dtype = np.dtype(_DTYPES[slot.dtype])
    flat = np.fromfile(path, dtype, (slot.stop - slot.start) // dtype.itemsize, offset=slot.start)
    steps = [step * dtype.itemsize for step in slot.strides]
    return np.lib.stride_tricks.as_strided(flat, slot.shape, steps).copy()
