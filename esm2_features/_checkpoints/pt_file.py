"""PyTorch's files: names, shapes and places of their tensors, read without running code in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from esm2_features._checkpoints.pickles import (
    DEEPEST,
    LONGEST_PICKLE_BYTES,
    Inert,
    InertUnpickler,
    StoredTensor,
)
from esm2_features._checkpoints.slots import DTYPE_BYTES, Slot
from esm2_features.exceptions import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Entries of training loops that hold tensors beside the weights.
_OF_TRAINING = ("optimizer", "lr_scheduler", "scheduler", "grad_scaler", "scaler")

CONVERT = (
    "If it is your own, save its weights alone, in the program that made it: "
    'torch.save(model.state_dict(), "weights.pt"), or '
    'safetensors.torch.save_model(model, "weights.safetensors").'
)


class PtFile(NamedTuple):
    """What a PyTorch file holds: settings as plain data, and the places of all tensors."""

    contents: Any
    slots: dict[str, Slot]  # by the path to them, such as ``state_dict.esm.encoder...``


def read_pt(path: Path) -> PtFile:
    """Read everything but the numbers of a PyTorch file."""
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                contents, storages = _read_zip(path, file)
            else:
                file.seek(0)
                contents, storages = _read_legacy(path, file)
        slots = dict(_slots(path, contents, storages))
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # damaged files raise whatever the bytes lead to
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({_shortened(error)}): it was cut "
            f"short, or torch.save did not write it. Copy or download it again. {CONVERT}",
            path=str(path),
        ) from error
    return PtFile(contents, slots)


# ------------------------------------------------------------------ the two layouts

Storages = dict[str, tuple[int, int]]
"""First byte, and number of bytes, of each storage."""


def _read_zip(path: Path, file: BinaryIO) -> tuple[Any, Storages]:
    """Read the archive that torch writes since release 1.6; its entries are not compressed."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise CheckpointError(
                f"{path} is a zip archive, but not of torch.save: unpack it, and pass the folder "
                "or the file with the weights.",
                path=str(path),
            )
        if "constants.pkl" in entries:
            raise CheckpointError(
                f"{path} is a compiled program (TorchScript). Save its weights alone: "
                'torch.save(torch.jit.load(file).state_dict(), "weights.pt").',
                path=str(path),
            )
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise CheckpointError(
                f"{path} was written on a machine of another byte order. Save it as safetensors "
                "there, which are the same everywhere.",
                path=str(path),
            )
        if any(entry.compress_type for entry in entries.values()):
            raise CheckpointError(
                f"{path} was compressed after torch.save wrote it. Unpack it, and pack it again "
                "without compression (zip -0), or use the original file.",
                path=str(path),
            )
        if entries["data.pkl"].file_size > LONGEST_PICKLE_BYTES:
            raise pickle.UnpicklingError("too long for names and shapes")
        with archive.open(entries["data.pkl"]) as stream:
            contents = InertUnpickler(path, stream).load()
    storages = {}
    for name, entry in entries.items():
        if name.startswith("data/"):
            file.seek(entry.header_offset + 26)
            lengths = file.read(4)  # of the name and of padding, which differ from the directory's
            start = entry.header_offset + 30
            start += int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            storages[name.removeprefix("data/")] = (start, entry.file_size)
    return contents, storages


def _read_legacy(path: Path, file: BinaryIO) -> tuple[Any, Storages]:
    """Read what torch wrote before: five pickles, and then the storages, each with its length."""
    if file.read(2)[:1] != b"\x80":
        raise pickle.UnpicklingError("it does not begin as a pickle")
    file.seek(0)
    if InertUnpickler(path, file).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("a pickle, but not of torch.save")
    for _ in range(2):  # the version, and facts about the machine
        InertUnpickler(path, file).load()
    unpickler = InertUnpickler(path, file)
    contents = unpickler.load()
    storages = {}
    for key in InertUnpickler(path, file).load():
        count = int.from_bytes(file.read(8), "little")
        size = count * DTYPE_BYTES.get(unpickler.storages[str(key)], 1)
        storages[str(key)] = (file.tell(), size)
        file.seek(size, 1)
    return contents, storages


# ------------------------------------------------------------------ tensors in the contents


def _slots(path: Path, contents: Any, storages: Storages) -> Iterator[tuple[str, Slot]]:
    for name, tensor in _tensors(contents, "", DEEPEST, set()):
        itemsize = DTYPE_BYTES.get(tensor.storage.dtype, 1)
        start, size = storages[tensor.storage.key]
        first = tensor.offset * itemsize
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        stop = first + (last + 1) * itemsize if prod(tensor.shape) else first
        # A tensor may look at less than its storage, but not at more, nor at one number often.
        if min(tensor.strides, default=0) < 0 or not 0 <= first <= stop <= size:
            raise ValueError(f"{name} lies outside of its storage")
        yield (
            name,
            Slot(path, tensor.storage.dtype, tensor.shape, start + first, start + stop,
                 tensor.strides),
        )  # fmt: skip


def _tensors(
    found: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors in dictionaries, lists and modules, by the path to them."""
    if isinstance(found, StoredTensor):
        yield name, found
        return
    modules = [vars(found).get(part) for part in _PARTS] if isinstance(found, Inert) else []
    for holder in [found, *modules]:
        if isinstance(holder, list | tuple):
            items: Any = enumerate(holder)
        else:
            items = holder.items() if isinstance(holder, dict) else ()
        if not depth or id(holder) in seen:
            continue
        seen.add(id(holder))
        for key, value in items:
            word = str(key) if isinstance(key, str | int) else "?"
            if not name and word.lower().startswith(_OF_TRAINING) and not hasattr(value, "shape"):
                continue
            yield from _tensors(value, f"{name}.{word}" if name else word, depth - 1, seen)


_PARTS = ("_parameters", "_buffers", "_modules", "_items")
"""What a stand-in has of a pickled module, and of a dictionary of another kind."""


def settings_of(found: Any) -> dict[str, Any]:
    """Return the attributes of an object in a pickle, or the entries of a dictionary."""
    if isinstance(found, dict):
        return found
    return dict(vars(found)) if isinstance(found, Inert) else {}


def _shortened(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) < 120 else f"{text[:117]}..."
