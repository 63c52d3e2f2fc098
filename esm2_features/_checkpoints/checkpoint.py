"""`open_checkpoint`: from the name of a model or a path to its architecture, identity and tensors.

Opening is cheap: a name touches no file, and of a path only the header is read.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from esm2_features._checkpoints.catalogue import (
    EMBEDDED,
    EMBEDDED_MODEL,
    OFFICIAL,
    Architecture,
    ModelCard,
)
from esm2_features._checkpoints.download import locate, obtain
from esm2_features._checkpoints.headers import (
    Header,
    Slot,
    is_safetensors,
    read_header,
    read_pt_header,
)
from esm2_features._checkpoints.names import CONTACTS, EMBEDDING, TIED
from esm2_features._checkpoints.pt_file import load_pt, pt_state
from esm2_features._files import sha256_of
from esm2_features.exceptions import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDED_FILE = Path(__file__).parents[1] / "data" / f"{EMBEDDED_MODEL}.safetensors"
_SUFFIXES = (".pt", ".pth", ".safetensors")
_REGRESSION = "-contact-regression.pt"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Checkpoint:
    """Weights to load; made by `open_checkpoint`."""

    name: str  # of the model, or the stem of the file or folder; for feature names
    architecture: Architecture  # the shape of the network; known without torch
    source: Path | ModelCard  # a local file or folder, or an official model

    @cached_property
    def identity(self) -> str:
        """Digest of the weights, ``"sha256:<hex>"``.

        Local files that hold the weights of an official model, in either format, share that
        model's identity.
        """
        if isinstance(self.source, ModelCard):
            return self.source.identity
        return _identity(self.source, self.fingerprint())

    def fingerprint(self) -> Hashable:
        """Something that changes with the files of the checkpoint; no file is read."""
        if isinstance(self.source, ModelCard):
            return self.source
        # A file's config.json, if it has one, says how many heads the network has.
        beside = [self.source, self.source.with_name("config.json")]
        files = sorted(self.source.iterdir()) if self.source.is_dir() else beside
        return self.source, *(_stat_of(file) for file in files if file.exists())

    @property
    def to_fetch(self) -> int | None:
        """Bytes to download before weights can be loaded (int); None if they are here.

        If the size of the file is unknown, the size of the weights in memory.
        """
        if isinstance(self.source, Path) or (weights := self.source.weights) is None:
            return None
        if locate(self.source, weights) is not None:
            return None
        return weights.bytes or 4 * self.architecture.parameters

    def load(self) -> dict[str, Tensor]:
        """Load the weights onto the CPU, in the stored dtype, under fair-esm's names.

        Each tensor owns its memory, so that a network that empties the dictionary while it re-packs
        the weights never holds two copies.
        """
        path = self._locate("weights")
        header, weights = _read(path)
        if header.architecture != self.architecture or (
            "identity" in vars(self)  # promised to the cache before now
            and path == self.source
            and _identity_of(header) != self.identity
        ):
            raise CheckpointError(
                f"{path} is not what it was, or should be: it holds {header.architecture}, and "
                f"{self.architecture} with the digest {self.identity} was expected. If the file "
                "was replaced on purpose, open it anew.",
                path=str(path),
            )
        tied = weights.pop(TIED, None)
        if tied is not None and not tied.equal(weights[EMBEDDING]):
            raise CheckpointError(
                f"{path} has an output matrix of its own, where ESM-2 uses its embedding again. "
                "Use a checkpoint of ESM-2 itself.",
                path=str(path),
            )
        return weights

    def contact_regression(self) -> tuple[Tensor, Tensor]:
        """Load weight (1, layers * heads) and bias (1,) of the contact regression."""
        path = self._locate("regression")
        beside = path.with_name(path.stem + _REGRESSION)
        if path.is_file() and beside.is_file():
            path = beside
        if path.name.endswith(_REGRESSION):
            found = dict(pt_state(load_pt(path)))
        else:
            found = _read(path, contacts=True)[1]
        shapes = [tuple(found[name].shape) for name in CONTACTS if name in found]
        wanted = [(1, self.architecture.layers * self.architecture.heads), (1,)]
        if shapes != wanted:
            state = f"one of shapes {shapes}, not {wanted}" if shapes else "none"
            remedy = f"put fair-esm's {beside.name} beside the weights, or save a Hugging Face "
            remedy += "folder with its contact head"
            if self.source == _EMBEDDED_FILE:
                remedy = "the demonstration model ships without"
            raise CheckpointError(
                f"Predicting contacts needs a contact regression, and {path} has {state}: "
                f"{remedy}. All official models, used by name, have one.",
                path=str(path),
            )
        return found[CONTACTS[0]], found[CONTACTS[1]]

    def _locate(self, which: Literal["weights", "regression"]) -> Path:
        if isinstance(self.source, Path):
            return self.source
        file = self.source.weights if which == "weights" else self.source.regression
        if file is None:
            raise CheckpointError(f"{self.name} has no official {which}.", path=self.name)
        path = obtain(self.source, file)
        if file.sha256 is None:
            warnings.warn(
                f"No public source states the digest of the {which} of {self.name}: {path} is "
                "used as it is, and its name stands for it in the cache.",
                UserWarning,
                stacklevel=3,
            )
        return path


def open_checkpoint(model: str | os.PathLike[str] | Checkpoint) -> Checkpoint:
    """Open a model by its name or by a path, or take one that is open; loads nothing."""
    if isinstance(model, Checkpoint):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"Got model={model!r}; pass the name of a model or a path.")
    text = os.fspath(model)
    if isinstance(model, str) and text == EMBEDDED_MODEL:
        return Checkpoint(text, EMBEDDED.architecture, _EMBEDDED_FILE)
    if isinstance(model, str) and text in OFFICIAL:
        return Checkpoint(text, OFFICIAL[text].architecture, OFFICIAL[text])
    # Absolute: the weights may be loaded after the working directory has changed.
    path = Path(text).expanduser().absolute()
    if not text or not path.exists():
        raise _unknown(text, path)
    name = path.name if path.is_dir() else path.stem
    if path.name == "model.safetensors":  # as in any Hugging Face folder: says nothing
        name = path.parent.name
    return Checkpoint(name, read_header(path).architecture, path)


def _unknown(text: str, path: Path) -> CheckpointError:
    known = {name.lower(): name for name in (*OFFICIAL, EMBEDDED_MODEL)}
    asked = Path(text).name.removesuffix(path.suffix).lower()
    close = difflib.get_close_matches(asked, known, n=1)
    hint = f' Did you mean model="{known[close[0]]}"?' if close else ""
    if text.endswith(_SUFFIXES) or os.sep in text or "/" in text:
        return CheckpointError(f"There is no file or folder {path}.{hint}", path=str(path))
    return CheckpointError(
        f"There is no model {text!r}.{hint} Known names: {', '.join(known.values())}. "
        "Or pass the path of a .pt file, a .safetensors file or a Hugging Face folder.",
        path=text,
    )


# ------------------------------------------------------------------ identity


def _stat_of(file: Path) -> tuple[str, int, int, int, int]:
    stat = file.stat()
    times = stat.st_mtime_ns, stat.st_ctime_ns
    return os.path.realpath(file), stat.st_size, *times, stat.st_ino


@cache
def _identity(source: Path, _fingerprint: Hashable) -> str:
    return _identity_of(read_header(source))


@cache
def _digest(path: str, *_stat: int) -> str:
    """Digest of a file, for as long as it looks untouched."""
    return sha256_of(Path(path))


def _identity_of(header: Header) -> str:
    digests = [_digest(*_stat_of(file)) for file in header.files]
    for card in OFFICIAL.values():
        pins = [card.weights and card.weights.sha256], [card.safetensors_sha256]
        if digests in pins and header.architecture == card.architecture:
            return card.identity
    if not header.heads_inside:
        # Another config.json beside the same file would make another network of it.
        digests.append(f"heads:{header.architecture.heads}")
    if len(digests) > 1:
        digests = [hashlib.sha256(" ".join(digests).encode()).hexdigest()]
    return f"sha256:{digests[0]}"


# ------------------------------------------------------------------ tensors


def _read(path: Path, *, contacts: bool = False) -> tuple[Header, dict[str, Tensor]]:
    """Read the contact regression of a checkpoint, or everything else in it."""
    state: dict[str, Tensor] = {}
    if is_safetensors(path):
        header = read_header(path)
    else:
        # Not mapped, unless little of it is needed: the touched pages of a mapping count as
        # memory besides the tensors that are made of them, twice the weights at the peak.
        contents = load_pt(path, mmap=contacts)
        header = read_pt_header(path, contents)
        state.update(pt_state(contents))
        del contents  # each tensor below is freed with its last reader
    weights: dict[str, Tensor] = {}
    storages: set[int] = set()
    for theirs, ours in header.names.items():
        if (ours in CONTACTS) != contacts:
            continue
        if theirs in header.slots:
            tensor = _read_slot(theirs, header.slots[theirs])
        else:
            tensor = _own(state.pop(theirs), storages)
        if "*" in ours:
            for i in range(header.architecture.layers):
                weights[ours.replace("*", str(i))] = tensor.clone()
        else:
            weights[ours] = tensor.clone() if contacts else tensor
        if not tensor.is_floating_point():
            raise _quantised(path, theirs, str(tensor.dtype))
    return header, weights


def _own(tensor: Tensor, storages: set[int]) -> Tensor:
    """Copy a tensor that shares its memory with others."""
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
    storages.add(storage.data_ptr())
    return tensor if alone and tensor.is_contiguous() else tensor.clone().contiguous()


def _read_slot(name: str, slot: Slot) -> Tensor:
    import torch

    if slot.dtype not in _DTYPES:
        raise _quantised(slot.file, name, slot.dtype)
    tensor = torch.empty(slot.shape, dtype=getattr(torch, _DTYPES[slot.dtype]), device="cpu")
    with slot.file.open("rb") as stream:
        stream.seek(slot.start)
        filled = stream.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
    if not filled == tensor.nbytes == slot.stop - slot.start:
        raise CheckpointError(
            f"{slot.file} is damaged: {name} takes {tensor.nbytes} bytes, and the file has "
            f"{filled} of {slot.stop - slot.start} for it. Copy or download it again.",
            path=str(slot.file),
        )
    return tensor


def _quantised(path: Path, name: str, dtype: str) -> CheckpointError:
    return CheckpointError(
        f"{path} stores {name} as {dtype}. Weights must be float16, bfloat16, float32 or float64: "
        "use a checkpoint that is not quantised.",
        path=str(path),
    )
