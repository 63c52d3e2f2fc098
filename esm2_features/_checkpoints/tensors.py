"""The numbers of tensors, read into memory of their own."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from esm2_features._checkpoints.slots import DTYPE_BYTES, Slot
from esm2_features.exceptions import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
