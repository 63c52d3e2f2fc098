"""Headers of checkpoints: what they hold, read without the numbers.

They are read without torch, which a pipeline whose results are cached does not import, and checked
as a whole before any tensor is read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from esm2_features._checkpoints.catalogue import OFFICIAL, Architecture
from esm2_features._checkpoints.config import declared_beside, declared_inside
from esm2_features._checkpoints.contents import Contents, read_contents
from esm2_features._checkpoints.folder import weight_files
from esm2_features._checkpoints.slots import Slot
from esm2_features._checkpoints.trunk import find_network, listed
from esm2_features._files import sha256_of
from esm2_features.exceptions import CheckpointError

_logger = logging.getLogger("esm2_features")


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a checkpoint, which make a whole ESM-2 network."""

    architecture: Architecture
    names: dict[str, str]  # our name of each of their tensors; ``*`` in ours stands for every layer
    slots: dict[str, Slot]  # where they are, by their name
    files: tuple[Path, ...]  # the files that hold the weights
    heads_inside: bool  # the files give the number of heads, without a config.json


def read_header(path: Path) -> Header:
    """Read the header of a checkpoint, and raise CheckpointError unless it is a whole ESM-2."""
    contents = contents_of(path)
    inside = declared_inside(path, contents)
    beside = None if inside and path.is_file() else declared_beside(path, of_folder=path.is_dir())
    if inside and beside and inside != beside:
        raise CheckpointError(
            f"{path} holds a network of {inside}, and its config.json describes {beside}. Pass the "
            "file with the weights alone, or put the right config.json beside it.",
            path=str(path),
        )
    network = find_network(
        {name: slot.shape for name, slot in contents.slots.items()},
        inside or beside,
        path=str(path),
        same=lambda one, other: contents.slots[one] == contents.slots[other],
    )
    if network.positions_unclear and not (inside or beside or _is_official(contents)):
        raise CheckpointError(
            f"{path} may be ESM-1b or ESM-1v as well as ESM-2: it has learned positions, which "
            "old files of ESM-2 have without using them, and no rotary frequencies. Put its "
            "config.json beside it, which tells them apart.",
            path=str(path),
        )
    if network.extras:
        tell_once(
            f"{path} also holds {listed('tensors', network.extras)}; ESM-2 has none of them, and "
            "they are not used."
        )
    return Header(
        network.architecture,
        network.names,
        contents.slots,
        contents.files,
        bool(inside) or network.heads_inside,
    )


def _is_official(contents: Contents) -> bool:
    pins = {card.safetensors_sha256 for card in OFFICIAL.values()}
    return len(contents.files) == 1 and sha256_of(contents.files[0]) in pins


def contents_of(path: Path) -> Contents:
    """Read everything but the numbers of a file, or of the files in a folder."""
    try:
        if not path.exists():
            raise CheckpointError(f"There is no file or folder {path}.", path=str(path))
        return read_contents(weight_files(path))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Make it readable, or copy it anew.", path=str(path)
        ) from error


@cache
def tell_once(message: str) -> None:
    """Log a message at info level, unless this process has done so."""
    _logger.info(message)
