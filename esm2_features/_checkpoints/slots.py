"""Slots: where the numbers of tensors lie in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DTYPE_BYTES = {
    "C128": 16, "C64": 8, "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2,
}  # fmt: skip
"""Bytes of a number, by safetensors' name of its type; 1 for all others."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in a file."""

    file: Path
    dtype: str  # as safetensors spells it, such as ``"F32"``
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    stop: int
    strides: tuple[int, ...] | None = None  # elements; None is row by row
