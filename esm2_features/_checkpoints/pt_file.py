"""PyTorch's ``.pt`` files, read without running code in them.

They are pickles, which can call any function. Headers are read without torch, with stand-ins for
tensors and a short list of allowed names; everything else by torch's own safe reader.
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
    """Load a ``.pt`` file of tensors and plain settings by torch."""
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
    except Exception:  # torch decides on all unusual files
        return load_pt(path, mmap=True)


def pt_state(contents: Any) -> Mapping[str, Any]:
    """Return the tensors by name in the contents of a ``.pt`` file."""
    if isinstance(contents, dict) and isinstance(contents.get("model"), dict):
        contents = contents["model"]
    return contents if isinstance(contents, dict) else {}


class _HeaderPickle(pickle.Unpickler):
    """Unpickle names and shapes without running code."""

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
        """Skip the bytes of tensors."""


def _stand_in(_storage: Any, _offset: Any, shape: Any, *_rest: Any) -> SimpleNamespace:
    return SimpleNamespace(shape=tuple(int(n) for n in shape))
