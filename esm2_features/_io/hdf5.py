"""HDF5 files of one dataset for each sequence."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from esm2_features.exceptions import import_optional

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_h5() -> Any:
    """Import h5py, or name the extra that installs it."""
    return import_optional("h5py", extra="h5", purpose="Writing HDF5")


def h5_name(identifier: str) -> str:
    """Escape what HDF5 reads as a path: slashes, and a dot, which means the group itself."""
    return "%2E" if identifier == "." else identifier.replace("%", "%25").replace("/", "%2F")


def write_h5(
    part: Path, attributes: Mapping[str, Any], datasets: Iterable[tuple[str, str, NDArray[Any]]]
) -> None:
    """Write datasets, each with its name and the id of its sequence; empty attributes are left out.

    The id is the attribute ``id``, and ``original_id``, which biotrainer reads.
    """
    h5py = check_h5()
    with part.open("x+b", buffering=0) as raw:
        deferred = _DeferredErrors(raw)
        try:
            with h5py.File(deferred, "w", track_order=True) as file:
                file.attrs.update({name: value for name, value in attributes.items() if value})
                for name, identifier, array in datasets:
                    dataset = file.create_dataset(name, data=array)
                    dataset.attrs["id"] = dataset.attrs["original_id"] = identifier
                    deferred.raise_first()
        finally:
            deferred.raise_first()


class _DeferredErrors(io.RawIOBase):
    """A file whose writes always succeed, and whose first error is raised later.

    HDF5 keeps parts of its structure in memory, and crashes the process if it cannot write them
    when it closes the file. So the file is closed first, and the error raised afterwards.
    """

    def __init__(self, file: BinaryIO | io.FileIO) -> None:
        self._file = file
        self._failure: OSError | None = None

    def raise_first(self) -> None:
        """Raise the first error, if there was one."""
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
