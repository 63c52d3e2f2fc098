"""What a file of a checkpoint holds: tensors, settings, or something else altogether."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esm2_features._checkpoints.pt_file import CONVERT, read_pt
from esm2_features._checkpoints.slots import Slot
from esm2_features.exceptions import CheckpointError

_LONGEST_HEADER_BYTES = 100 << 20
_LONGEST_JSON_BYTES = 16 << 20

# How files begin that are something else, and what helps.
_OTHERS = (
    (
        b"version https://git-lfs",
        "is a pointer of git-lfs, not the file itself. In the clone, run `git lfs pull`, or "
        "download the file from its page",
    ),
    (b"<", "is a web page (or XML). Download the file itself, not the page that shows it"),
    (b"\x89HDF", f"is an HDF5 file, as Keras and TensorFlow write them. {CONVERT}"),
    (b"GGUF", "is a GGUF file, of quantised weights. Use the weights that it was made of"),
    (b"\x1f\x8b", "is compressed by gzip. Run gunzip on it first"),
    (b"\xfd7zXZ", "is compressed by xz. Run unxz on it first"),
    (b"BZh", "is compressed by bzip2. Run bunzip2 on it first"),
    (b'{"error', "is an error message of a server. Download the file again"),
)


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of one or several files, and what they say of themselves."""

    files: tuple[Path, ...]
    slots: dict[str, Slot]  # tensors by name
    metadata: dict[str, Any] = field(default_factory=dict)  # of safetensors
    settings: Any = None  # of a PyTorch file: all that is no tensor


def read_contents(files: tuple[Path, ...]) -> Contents:
    """Read everything but the numbers of the files that make one checkpoint."""
    slots: dict[str, Slot] = {}
    metadata: dict[str, Any] = {}
    settings: Any = None
    for file in files:
        if is_safetensors(file):
            slots |= _read_safetensors(file, metadata)
        else:
            found = read_pt(file)
            slots |= found.slots
            settings = found.contents
    return Contents(files, slots, metadata, settings)


def is_safetensors(file: Path) -> bool:
    """Tell safetensors from PyTorch files by their first bytes; refuse what is neither."""
    with file.open("rb") as stream:
        head = stream.read(256)
    size = file.stat().st_size
    if not size:
        raise CheckpointError(f"{file} is empty. Copy or download it again.", path=str(file))
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, remedy in _OTHERS:
        if start.startswith(beginning):
            raise CheckpointError(f"{file} ({size} bytes) {remedy}.", path=str(file))
    if head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":
        return False
    return file.suffix == ".safetensors" or head[8:9] == b"{"


def _read_safetensors(file: Path, metadata: dict[str, Any]) -> dict[str, Slot]:
    """Read the header of one file: 8 bytes of length, then JSON; offsets count from its end."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER_BYTES):
            raise CheckpointError(
                f"{file} is not a safetensors file, or was cut short: it says that its header has "
                f"{length} bytes, and the file has {size}. Copy or download it again.",
                path=str(file),
            )
        content = stream.read(length)
    slots = {}
    try:
        entries = json.loads(content)
        metadata |= entries.pop("__metadata__", {})
        for name, entry in entries.items():
            start, stop = (8 + length + whole(offset) for offset in entry["data_offsets"])
            shape = tuple(whole(n) for n in entry["shape"])
            if not 8 + length <= start <= stop:
                raise ValueError(f"{name} lies at {entry['data_offsets']}")
            slots[name] = Slot(file, str(entry["dtype"]), shape, start, stop)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} has a damaged safetensors header: {error!r}. Copy or download it again.",
            path=str(file),
        ) from error
    promised = max((slot.stop for slot in slots.values()), default=0)
    if promised > size:
        raise CheckpointError(
            f"{file} was cut short: it promises {promised} bytes and has {size}. "
            "Copy or download it again.",
            path=str(file),
        )
    return slots


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise CheckpointError if the file holds anything else."""
    try:
        if file.stat().st_size > _LONGEST_JSON_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes are too long for settings")
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        is_safetensors(file)  # says what it is, where that is known
        raise CheckpointError(
            f"{file} is not JSON: {error}. Copy or download it again.", path=str(file)
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} is JSON, but not an object. Copy or download it again.", path=str(file)
        )
    return content


def whole(number: Any) -> int:
    """Read a whole number, which may be written as text or with a decimal point."""
    if isinstance(number, str) or (isinstance(number, float) and number.is_integer()):
        return int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{number!r} is not a whole number")
    return number
