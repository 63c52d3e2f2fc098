"""Slots: where the numbers of tensors lie in files, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from esm2_features.exceptions import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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


def read_slot(name: str, slot: Slot) -> Tensor:
    """Read one tensor into memory of its own; raise CheckpointError if it is damaged."""
    import torch

    if slot.dtype not in _FLOATS:
        raise CheckpointError(
            f"{slot.file} stores {name} as {slot.dtype}. Weights must be float16, bfloat16, "
            "float32 or float64: use a checkpoint that is not quantised.",
            path=str(slot.file),
        )
    count = prod(slot.shape)
    needed, promised = count * DTYPE_BYTES[slot.dtype], slot.stop - slot.start
    filled = promised
    if needed == promised or (slot.strides is not None and needed < promised):
        flat = torch.empty(
            promised // DTYPE_BYTES[slot.dtype],
            dtype=getattr(torch, _FLOATS[slot.dtype]),
            device="cpu",
        )
        with slot.file.open("rb") as stream:
            stream.seek(slot.start)
            filled = stream.readinto(flat.view(torch.uint8).numpy().data)
        if filled == promised:
            if slot.strides is None or not count:
                return flat.view(slot.shape)
            return flat.as_strided(slot.shape, slot.strides).contiguous()
    raise CheckpointError(
        f"{slot.file} is damaged: {name} takes {needed} bytes, and the file has {filled} of "
        f"{promised} for it. Copy or download it again.",
        path=str(slot.file),
    )
