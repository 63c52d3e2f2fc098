"""`Folders`: the files that agents may read and write."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esm2_features._arrow import open_parquet
from esm2_features._cache.reports import readable
from esm2_features._inputs.streams import open_bytes
from esm2_features._io.paths import check_inputs
from esm2_features.exceptions import InputError, printable, shorten

_PART = 1 << 20


@dataclass(frozen=True)
class Folders:
    """Folders that are open to agents; names of files begin in the first one.

    Attributes
    ----------
    paths : sequence of Path
        Folders that exist.
    max_bytes : int
        Bytes of a file that is read, decompressed.

    Raises
    ------
    InputError
        If a path is no folder.
    """

    paths: Sequence[Path] = ()
    max_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for path in self.paths:
            if not path.is_dir():
                raise InputError(f"Got --allow {path}, which is no folder. Create it first.")
        object.__setattr__(self, "paths", tuple(path.resolve() for path in self.paths))

    def to_read(self, name: str) -> str:
        """Find a file that may be read; raise InputError if it is elsewhere, or too large."""
        path = self._inside(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            where = ", ".join(map(str, self.paths))
            raise InputError(f"There is no file {_shown(name)} in {where}.") from None
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{_shown(name)} is no file, but a folder or a device. Give a file.")
        if status.st_size > self.max_bytes or self._is_larger(path):
            raise InputError(
                f"{_shown(name)} holds more than {readable(self.max_bytes)}, decompressed. Divide "
                "it, use `esm2-features embed` in a shell, or ask the user to start the server "
                "with a larger --max-file."
            )
        return str(path)

    def to_write(self, name: str, *, formats: Sequence[str], inputs: Sequence[str] = ()) -> Path:
        """Find where a file may be written; whether it exists is checked by who writes it."""
        path = self._inside(name)
        if path.suffix[1:] not in formats:
            endings = " or ".join(f".{one}" for one in formats)
            raise InputError(f"The output {_shown(name)} has to end in {endings}.")
        check_inputs(path, *inputs, called="The output")
        return path

    def shown(self, path: Path) -> str:
        """Write a path as a call may name it: relative to the first folder, or absolute."""
        home = self.paths[0]
        return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)

    def _inside(self, name: str) -> Path:
        """Resolve a name, with all links; raise InputError if that leads out of the folders."""
        if not self.paths:
            raise InputError(
                "No folder is open to this server, so it reads and writes no files. Ask the user "
                "to start it with --allow FOLDER, or pass sequences instead of a file."
            )
        try:
            tried = [(folder / name).resolve() for folder in self.paths]
            inside = [p for p in tried if any(p.is_relative_to(one) for one in self.paths)]
            found = [path for path in inside if os.path.lexists(path)]
        except (ValueError, RuntimeError, OSError) as error:  # NUL, surrogates, loops, long names
            reason = getattr(error, "strerror", None) or shorten(str(error), 80)
            raise InputError(f"{_shown(name)} cannot be the name of a file ({reason}).") from error
        if not inside:
            raise InputError(
                f"{_shown(name)} is not in a folder that is open to this server: "
                f"{', '.join(map(str, self.paths))}. Use a name in one of these, or ask the user "
                "to start the server with --allow FOLDER."
            )
        return (found or inside)[0]

    def _is_larger(self, path: Path) -> bool:
        """Whether a file holds more than ``max_bytes`` when it is decompressed."""
        with path.open("rb") as file:
            head = file.read(4)
        if head == b"PAR1":
            try:
                with open_parquet(path, "Reading Parquet") as opened:
                    groups = range(opened.metadata.num_row_groups)
                    rows = (opened.metadata.row_group(i).total_byte_size for i in groups)
                    return bool(sum(rows) > self.max_bytes)
            except Exception:  # Arrow's errors; whoever reads the file says what is wrong
                return False
        if head == b"PK\3\4":
            try:
                with zipfile.ZipFile(path) as archive:
                    sizes = [item.file_size for item in archive.infolist()]
            except Exception:  # as above
                return False
            if len(sizes) > 1:
                return sum(sizes) > self.max_bytes
        size = 0
        with open_bytes(str(path)) as stream:
            try:
                while part := stream.read(_PART):
                    size += len(part)
                    if size > self.max_bytes:
                        return True
            except Exception:  # of a decompressor; as above
                return False
        return False


def _shown(name: str) -> str:
    return repr(shorten(printable(name), 80))
