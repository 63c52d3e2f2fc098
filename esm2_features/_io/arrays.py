"""Files of one array for each sequence, written as they come.

    .npz   an archive of arrays, each under its id; `numpy.load` reads one at a time
    .h5    a dataset for each id, in input order, and what they are in the attributes of the file
    .npy   a folder of one .npy for each id; where an id cannot be the name of a file, ids.csv
           says which file is whose
    .pt    a folder of one .pt for each header, with the keys of fair-esm's scripts/extract.py

One array is held at a time (for .pt, also the file that is made of it), besides the ids and
headers of all.

None is compressed: most bits of such numbers are noise, which no compression shrinks. In HDF5,
where a ``/`` would make a group, it is ``%2F`` in the name of a dataset (and ``%`` is ``%25``, so
`urllib.parse.unquote` gives the id); the attribute ``id`` has it as it is.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from esm2_features._io.features import save_pt
from esm2_features._io.paths import Output, atomic_output, check_output, file_names, write_index
from esm2_features.exceptions import InputError, import_optional

if TYPE_CHECKING:
    # Only for types: what this module says of formats is in the help, which has to be instant.
    import numpy as np
    from numpy.typing import NDArray

    _Add = Callable[[NDArray[np.float32]], object]

ARRAY_FORMATS = ("npz", "h5", "npy", "pt")
"""Names of the formats; each is also its ending, after a dot."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """What the arrays of a file are, besides their numbers."""

    # ``"residues"``, ``"logits"``, ``"log_probs"``, ``"contacts"`` or ``"attentions"``
    product: str
    ids: Sequence[str]  # one for each sequence, all different
    labels: Sequence[str]  # the whole header of each, id included
    model: str
    precision: str
    # those that the first axis is of, if there are several; () if no layer can be chosen
    layers: Sequence[int] = ()
    tokens: Sequence[str] = ()  # what the last axis is of, if it is tokens or residues


def check_array_output(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the name of the option
    force: bool = False,
) -> Output:
    """Check, before anything is computed, that arrays can be written."""
    output = check_output(path, formats=ARRAY_FORMATS, format=format, force=force)
    if output.format == "h5":
        import_optional("h5py", extra="h5", purpose="Writing HDF5")
    return output


def check_ids(output: Output, ids: Iterable[str]) -> None:
    """Check, before anything is computed, that a format can tell ids apart."""
    if output.format != "npz":
        return
    known = set(ids)
    twins = [name for name in known if name + ".npy" in known]
    if twins:
        raise InputError(
            f"The ids {min(twins)!r} and {min(twins) + '.npy'!r} are the same to numpy.load, which "
            "drops the ending .npy. Rename one, or choose another format than npz."
        )


def write_arrays(output: Output, contents: Arrays, arrays: Iterable[NDArray[np.float32]]) -> int:
    """Write arrays as they come, completely or not at all."""
    n = 0
    with atomic_output(output) as part, _WRITERS[output.format](part, contents) as add:
        for array in arrays:
            add(array)
            n += 1
        assert n == len(contents.ids), f"{n} arrays of {len(contents.ids)} sequences"
    return n


# ------------------------------------------------------------------ formats


@contextmanager
def _npz(part: Path, contents: Arrays) -> Iterator[_Add]:
    import numpy as np

    names = iter(contents.ids)
    # Not np.savez, which holds all arrays, and has parameters that an id could be called.
    with zipfile.ZipFile(part, "x", allowZip64=True) as archive:

        def add(array: NDArray[np.float32]) -> None:
            with archive.open(f"{next(names)}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)

        yield add


@contextmanager
def _npy(part: Path, contents: Arrays) -> Iterator[_Add]:
    import numpy as np

    write_index(part, contents.ids, "npy")
    names = iter(file_names(contents.ids))

    def add(array: NDArray[np.float32]) -> None:
        rows = np.ascontiguousarray(array)
        # Not np.save, which hides from whoever has no room what the system said of it.
        with (part / f"{next(names)}.npy").open("xb") as file:
            header = np.lib.format.header_data_from_array_1_0(rows)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(rows.data)

    yield add


@contextmanager
def _pt(part: Path, contents: Arrays) -> Iterator[_Add]:
    import torch

    named = zip(contents.labels, file_names(contents.labels), strict=True)

    def add(array: NDArray[np.float32]) -> None:
        label, name = next(named)
        values: object
        if contents.product == "residues":
            of_layers = array.reshape(len(contents.layers), *array.shape[-2:])
            # Copied, because a view would be saved with all that it is a view of.
            rows = zip(contents.layers, of_layers, strict=True)
            key, values = "representations", {layer: torch.tensor(row) for layer, row in rows}
        else:
            key, values = contents.product, torch.tensor(array)
        save_pt(part / f"{name}.pt", {"label": label, key: values})

    yield add


@contextmanager
def _h5(part: Path, contents: Arrays) -> Iterator[_Add]:
    h5py: Any = import_optional("h5py", extra="h5", purpose="Writing HDF5")
    names = iter(contents.ids)
    with part.open("x+b", buffering=0) as raw:
        patient = _Patient(raw)
        try:
            with h5py.File(patient, "w", track_order=True) as file:
                for name, value in _attributes(contents).items():
                    file.attrs[name] = value

                def add(array: NDArray[np.float32]) -> None:
                    identifier = next(names)
                    dataset = file.create_dataset(_h5_name(identifier), data=array)
                    dataset.attrs["id"] = identifier
                    patient.complain()

                yield add
        finally:
            patient.complain()


def _attributes(contents: Arrays) -> dict[str, object]:
    """List what a file says of its arrays."""
    from importlib.metadata import version

    lists = {"layers": list(contents.layers), "tokens": list(contents.tokens)}
    return {
        "product": contents.product,
        "model": contents.model,
        "precision": contents.precision,
        "esm2_features": version("esm2-features"),
        **{name: values for name, values in lists.items() if values},
    }


def _h5_name(identifier: str) -> str:
    """Escape what HDF5 reads as a path: slashes, and the dot that stands for the group itself."""
    return "%2E" if identifier == "." else identifier.replace("%", "%25").replace("/", "%2F")


class _Patient(io.RawIOBase):
    """A file that takes everything, and says later what it could not write.

    HDF5 keeps parts of its structure in memory, and when these cannot be written, the process
    ends in a segmentation fault. So it is told that all is well, and closed, before the error.
    """

    def __init__(self, file: BinaryIO | io.FileIO) -> None:
        self._file = file
        self._failure: OSError | None = None

    def complain(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0
        while self._failure is None and done < len(view):
            try:
                done += self._file.write(view[done:]) or 0
            except OSError as error:
                self._failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0

    def readinto(self, buffer: Any) -> int | None:
        return self._file.readinto(buffer)  # type: ignore[union-attr]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


_WRITERS = {"npz": _npz, "h5": _h5, "npy": _npy, "pt": _pt}
