"""PyTorch's ``.pt`` files, read without running anything that is in them.

They are pickles, and a pickle can name any function to be called. There are two readers.
The first is for headers and needs no torch: it puts inert stand-ins where tensors are, and
gives up at the first name that is not on its short list. The second is torch's own safe
reader, which refuses all but tensors and plain settings; it has the last word.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from esm2_features.exceptions import CheckpointError

_LONGEST_HEADER_BYTES = 100 << 20


def load_pt(path: Path, *, mmap: bool = False) -> Any:
    """Load a ``.pt`` file by torch, with nothing in it but tensors and plain settings."""
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=mmap and zipfile.is_zipfile(path),  # older files are one pickle
            )
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            looks_like_zip = file.read(2) == b"PK"
        if looks_like_zip and not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} was cut short: the end of the archive is missing "
                f"({path.stat().st_size} bytes). Copy or download it again.",
                path=str(path),
            ) from error
        # torch's own message goes on to recommend how to run the file's code all the same.
        detail = next((line for line in str(error).splitlines() if "nsupported" in line), "")
        raise CheckpointError(
            f"{path} is refused: it is no checkpoint, or holds more than tensors and plain "
            f"settings, and reading that could run code. {detail.strip()} "
            "Get it from its official source, or as safetensors.",
            path=str(path),
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise whatever the bytes lead to
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint: {error}. "
            "Is it complete? Copy or download it again.",
            path=str(path),
        ) from error


def read_pt_without_tensors(path: Path) -> Any:
    """Read a ``.pt`` file with stand-ins that have a ``shape`` in place of tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = (it for it in archive.infolist() if it.filename.endswith("/data.pkl"))
            if entry.file_size > _LONGEST_HEADER_BYTES:
                raise pickle.UnpicklingError("too long for names and shapes")
            with archive.open(entry) as file:
                return _HeaderPickle(file).load()
    except Exception:  # whatever is unusual, torch is the judge of it
        return load_pt(path, mmap=True)


def pt_state(contents: Any) -> Mapping[str, Any]:
    """Tensors by name in the contents of a ``.pt`` file."""
    if isinstance(contents, dict) and isinstance(contents.get("model"), dict):
        contents = contents["model"]
    return contents if isinstance(contents, dict) else {}


class _HeaderPickle(pickle.Unpickler):
    """Reads the pickle in a ``.pt`` file without running anything that it names."""

    def find_class(self, module: str, name: str) -> Any:
        inert = {
            "collections.OrderedDict": OrderedDict,
            "argparse.Namespace": argparse.Namespace,
            "torch._utils._rebuild_tensor_v2": _stand_in,
        }
        if f"{module}.{name}" in inert:
            return inert[f"{module}.{name}"]
        if module == "torch" and name.endswith("Storage"):
            return name  # a string: it cannot be called
        raise pickle.UnpicklingError(f"{module}.{name} is not expected in a checkpoint")

    def persistent_load(self, pid: Any) -> None:
        """Leave the bytes of tensors where they are."""


def _stand_in(_storage: Any, _offset: Any, shape: Any, *_rest: Any) -> SimpleNamespace:
    return SimpleNamespace(shape=tuple(int(n) for n in shape))
