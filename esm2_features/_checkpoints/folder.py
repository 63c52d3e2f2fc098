"""The files of a checkpoint in a folder, under the names that transformers and PEFT give them."""

from __future__ import annotations

import re
from pathlib import Path

from esm2_features._checkpoints.contents import read_json
from esm2_features.exceptions import CheckpointError, shorten

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LONGEST_NAME = 255  # of a file
_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_NOT_WEIGHTS = re.compile(
    r"training_args|optimizer|scheduler|scaler|random_states|rng_state|adapter"
)
# Names that say nothing, so that the folder's is used.
_GENERIC = frozenset(
    (*_WEIGHTS, *_ADAPTER_WEIGHTS, *(f"{name}.index.json" for name in _WEIGHTS), ADAPTER_CONFIG)
)


def name_of(path: Path) -> str:
    """Return what features of a checkpoint are called: its stem, its folder, or its repository."""
    folder = path if path.is_dir() else path.parent
    if path != folder and path.name not in _GENERIC:
        return path.stem
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.split("--", 2)[-1]
    return folder.name


def as_folder(path: Path) -> Path:
    """Return the folder of an adapter for any of its files, and anything else as it is."""
    is_adapter = path.name in (ADAPTER_CONFIG, *_ADAPTER_WEIGHTS)
    return path.parent if is_adapter and path.with_name(ADAPTER_CONFIG).is_file() else path


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the weights of a checkpoint, which is a folder or a file."""
    if path.name.endswith(".index.json"):
        return _shards(path)
    if not path.is_dir():
        return (path,)
    for name in _WEIGHTS:
        if (path / name).is_file():
            return (path / name,)
        if (index := path / f"{name}.index.json").is_file():
            return _shards(index)
    raise _no_weights(path)


def adapter_file(folder: Path) -> Path:
    """Return the file that holds the weights of an adapter."""
    found = [folder / name for name in _ADAPTER_WEIGHTS if (folder / name).is_file()]
    if not found:
        raise CheckpointError(
            f"{folder} has {ADAPTER_CONFIG}, but none of {', '.join(_ADAPTER_WEIGHTS)}. Is the "
            "adapter complete? Copy or download it again.",
            path=str(folder),
        )
    return found[0]


def _shards(index: Path) -> tuple[Path, ...]:
    folder, where = index.parent, read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(
            f"{index} has no weight_map, which names the files of the weights. Copy or download "
            "it again.",
            path=str(folder),
        )
    names = sorted({str(name) for name in where.values()})
    for name in names:
        if len(name) > _LONGEST_NAME or Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(
                f"{index} names the file {shorten(name)!r}, which is not in {folder}. Is the "
                "checkpoint complete? Copy or download it again.",
                path=str(folder),
            )
    return tuple(folder / name for name in names)


def _no_weights(folder: Path) -> CheckpointError:
    config = "" if (folder / "config.json").is_file() else "it has no config.json and "
    inside = sorted(folder.iterdir())
    candidates = [
        it for it in inside if it.suffix in _SUFFIXES and not _NOT_WEIGHTS.search(it.name)
    ] + [
        it for it in inside if it.is_dir() and any((it / name).exists() for name in _GENERIC)
    ]  # fmt: skip
    if candidates:
        more = " (or another one in it)" if len(candidates) > 1 else ""
        remedy = f"Did you mean {candidates[-1]}{more}?"
    elif any(it.suffix == ".distcp" for it in inside):
        remedy = (
            "It is a distributed checkpoint: make one file of it with "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pt`."
        )
    elif any(it.name in ("tf_model.h5", "flax_model.msgpack") for it in inside):
        remedy = (
            "Its weights are TensorFlow's or Flax's: load them with transformers 4 (from_tf=True "
            "or from_flax=True), and save them into a new folder with save_pretrained."
        )
    else:
        remedy = "Pass the folder that model.save_pretrained(folder) wrote, or the file itself."
    return CheckpointError(
        f"{folder} is not a whole checkpoint: {config}it holds no model.safetensors and no "
        f"pytorch_model.bin, whole or in shards. {remedy}",
        path=str(folder),
    )
