"""Headers of checkpoints: fair-esm's ``.pt`` files, and safetensors.

They are read without torch, which a pipeline whose results are cached does not import, and checked
as a whole before any tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._checkpoints.names import Shape, read_architecture, translate
from esm2_features._checkpoints.pt_file import pt_state, read_pt_without_tensors
from esm2_features.exceptions import CheckpointError

_DEEPEST = 1000  # layers; more than that is a damaged or a hostile file
_LONGEST_HEADER_BYTES = 100 << 20

_CONFIG_OF_ESM2: dict[str, tuple[object, ...]] = {
    # Required values, for keys that a Hugging Face config.json has.
    "model_type": ("esm",),
    "position_embedding_type": ("rotary",),
    "emb_layer_norm_before": (False, None),
    "token_dropout": (True,),
    "layer_norm_eps": (1e-5,),
    "rope_theta": (1e4,),
    "vocab_size": (33,),
    "is_folding_model": (False, None),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in a safetensors file."""

    file: Path
    dtype: str  # as the format spells it, such as ``"F32"``
    shape: Shape
    start: int  # bytes from the start of the file
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a checkpoint, which make a whole ESM-2 network."""

    architecture: Architecture
    names: dict[str, str]  # our name of each of their tensors; ``*`` in ours stands for every layer
    slots: dict[str, Slot]  # by their name; empty for a ``.pt`` file
    files: tuple[Path, ...]  # the files that hold the weights
    heads_inside: bool  # the files give the number of heads, without a config.json


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint, and raise CheckpointError unless it is a whole ESM-2."""
    try:
        if not path.exists():
            raise CheckpointError(f"There is no file or folder {path}.", path=str(path))
        if is_safetensors(path):
            return _read_safetensors(path)
        return read_pt_header(path, read_pt_without_tensors(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", path=str(path)) from error


def is_safetensors(path: Path) -> bool:
    """Whether a checkpoint is a safetensors file or a folder, and not a ``.pt`` file."""
    return path.is_dir() or path.suffix == ".safetensors"


# ------------------------------------------------------------------ .pt


def read_pt_header(path: Path, contents: Any) -> Header:
    """Make the header of the contents of a ``.pt`` file: tensors, or stand-ins with a shape."""
    state = pt_state(contents).items()
    shapes = {str(name): tuple(it.shape) for name, it in state if hasattr(it, "shape")}
    config = contents.get("cfg") if isinstance(contents, dict) else None
    settings = config.get("model") if isinstance(config, dict) else None
    declared = None
    if settings is not None:
        keys = ("encoder_layers", "encoder_embed_dim", "encoder_attention_heads")
        declared = _architecture(path, [getattr(settings, key, None) for key in keys])
        if getattr(settings, "token_dropout", None) is not True:
            raise _not_esm2(path, "token_dropout", getattr(settings, "token_dropout", None))
    return _header(path, shapes, declared, files=(path,))


# ------------------------------------------------------------------ safetensors


def _read_safetensors(path: Path) -> Header:
    files = _shards(path) if path.is_dir() else (path,)
    slots: dict[str, Slot] = {}
    metadata: dict[str, Any] = {}
    for file in files:
        slots |= _read_slots(file, metadata)
    shapes = {name: slot.shape for name, slot in slots.items()}

    inside = beside = None
    if "layers" in metadata:
        if metadata.get("architecture", "esm2") != "esm2":
            raise _not_esm2(path, "architecture", metadata["architecture"], "esm2")
        inside = _architecture(path, [metadata.get(key) for key in ("layers", "dim", "heads")])
    if inside is None and path.is_dir():
        beside = _read_config(path / "config.json")
    elif inside is None and (config := path.with_name("config.json")).is_file():
        # Beside a single file, it may be about something else altogether.
        beside = _read_config(config) if _read_json(config).get("model_type") == "esm" else None
    return _header(
        path,
        shapes,
        inside or beside,
        files=files,
        slots=slots,
        # Rotary frequencies give the number of heads, too.
        heads_inside=beside is None or any(name.endswith("inv_freq") for name in shapes),
    )


def _shards(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a Hugging Face checkpoint: it has no config.json. Pass the folder "
            "that has one, or the file with the weights itself.",
            path=str(folder),
        )
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",)
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds no model.safetensors. If it has a pytorch_model.bin, convert it: "
            "EsmForMaskedLM.from_pretrained(folder).save_pretrained(folder).",
            path=str(folder),
        )
    names = sorted({str(name) for name in _read_json(index).get("weight_map", {}).values()})
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{index} names the file {name!r}, which is not in {folder}. Is the checkpoint "
                "complete? Copy or download it again.",
                path=str(folder),
            )
    return tuple(folder / name for name in names)


def _read_slots(file: Path, metadata: dict[str, Any]) -> dict[str, Slot]:
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
            start, stop = (8 + length + int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(n) for n in entry["shape"])
            if not 8 + length <= start <= stop:
                raise ValueError(f"{name} lies at {entry['data_offsets']}")
            slots[name] = Slot(file, str(entry["dtype"]), shape, start, stop)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
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


def _read_config(file: Path) -> Architecture:
    config = _read_json(file)
    for key, allowed in _CONFIG_OF_ESM2.items():
        if config.get(key, allowed[0]) not in allowed:
            raise _not_esm2(file, key, config[key], allowed[0])
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    return _architecture(file, [config.get(key) for key in keys])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}.", path=str(file)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is JSON, but not an object.", path=str(file))
    return content


# ------------------------------------------------------------------ both


def _header(
    path: Path,
    shapes: Mapping[str, Shape],
    declared: Architecture | None,
    *,
    files: tuple[Path, ...],
    slots: dict[str, Slot] | None = None,
    heads_inside: bool = True,
) -> Header:
    architecture = declared
    if architecture is None and (told := read_architecture(shapes, path=str(path))) is not None:
        architecture = _architecture(path, [told.layers, told.dim, told.heads])
    if architecture is None:
        raise CheckpointError(
            f"Nothing tells how many attention heads {path} has. Put its config.json beside it, "
            'or store the metadata "layers", "dim" and "heads" in it.',
            path=str(path),
        )
    names = translate(shapes, architecture, path=str(path))
    return Header(architecture, names, slots or {}, files, heads_inside)


def _architecture(path: Path, numbers: list[Any]) -> Architecture:
    """Make an architecture of what a file declares, if that is one at all."""
    try:
        layers, dim, heads = (int(number) for number in numbers)
        possible = 0 < layers <= _DEEPEST and heads > 0 and dim > 0 and dim % (2 * heads) == 0
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise CheckpointError(
            f"{path} does not describe an ESM-2 network: layers, width and heads are {numbers}, "
            "and the width must be a multiple of twice the heads.",
            path=str(path),
        )
    return Architecture(layers, dim, heads)


def _not_esm2(path: Path, key: str, found: object, expected: object = True) -> CheckpointError:
    return CheckpointError(
        f"{path} is not an ESM-2 model: its {key} is {found!r}, and ESM-2's is {expected!r}. "
        "Other models of the ESM family compute other numbers and are not supported.",
        path=str(path),
    )
