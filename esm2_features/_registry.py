"""The networks in memory: one per checkpoint, device and precision in a process.

Estimators hold no weights. Fifty clones of one estimator find the same network here, and a
pickle of an estimator is a few hundred bytes.

Never here: what a network computes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING

from esm2_features.exceptions import ForkedProcessError, OutOfMemoryError

if TYPE_CHECKING:
    import torch

    from esm2_features._catalogue import ModelCard
    from esm2_features._checkpoint import Checkpoint
    from esm2_features._model import Network

_networks: dict[tuple[str, str, str], Network] = {}
_keys: dict[tuple[Hashable, str, str], tuple[str, str, str]] = {}
"""Key of the network that a source, on a device and in a precision, has led to: whoever only wants
to know whether it is there need not take the digest of a file."""
_lock = threading.Lock()
_owner: int | None = None
"""Process that has used a network. PyTorch's threads do not survive a fork."""


def get_network(checkpoint: Checkpoint, *, device: str, precision: str) -> Network:
    """Give the network of a checkpoint; load it if this process has not done so yet.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : str
    precision : str

    Returns
    -------
    network : Network

    Raises
    ------
    ForkedProcessError
        If this process was forked from one that has used a network: it would hang.
    CheckpointError, DownloadError
        If the weights cannot be found or read.
    InputError
        If there is no such device.
    OutOfMemoryError
        If the weights do not fit into its memory.
    """
    global _owner
    # Before the lock: a forked child may have inherited it locked.
    if _owner is not None and _owner != os.getpid():
        raise ForkedProcessError(
            "This process was forked from one that has already run a network, and PyTorch "
            "would hang in it. Start workers by joblib's default backend (loky), or with "
            'multiprocessing.get_context("spawn"), or run the first transform in the workers '
            "only. Results that are in the cache can be read in a forked process, too."
        )
    from esm2_features._devices import resolve_device

    with _lock:
        place = resolve_device(device)
        key = (checkpoint.identity, str(place), precision)
        if key not in _networks:
            _owner = os.getpid()
            _networks[key] = _load(checkpoint, place, precision)
        _keys[_seen(checkpoint.source), str(place), precision] = key
        return _networks[key]


def forget_network(checkpoint: Checkpoint, *, device: str, precision: str) -> None:
    """Let go of a network, so that its memory is free once nobody uses it any more.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : str
    precision : str
    """
    from esm2_features._devices import release_memory, resolve_device

    with _lock:
        place = resolve_device(device)
        if _networks.pop((checkpoint.identity, str(place), precision), None) is not None:
            release_memory(place)


def device_of_network(checkpoint: Checkpoint, *, device: str, precision: str) -> str | None:
    """Say where the network of a checkpoint is in memory. Loads nothing, and no torch.

    Parameters
    ----------
    checkpoint : Checkpoint
    device : str
    precision : str

    Returns
    -------
    device : str or None
        Such as ``"cpu"``; None if `get_network` would have to load it.

    Raises
    ------
    InputError
        If there is no such device.
    """
    if not _networks or _owner != os.getpid():
        return None
    from esm2_features._devices import resolve_device  # torch is there where a network is

    place = str(resolve_device(device))
    return place if _keys.get((_seen(checkpoint.source), place, precision)) in _networks else None


def _seen(source: Path | ModelCard) -> Hashable:
    """Tell a file from what has taken its place, without reading it."""
    if not isinstance(source, Path):
        return source
    try:
        found = source.stat()
    except OSError:
        return source
    return source, found.st_size, found.st_mtime_ns


def _load(checkpoint: Checkpoint, place: torch.device, precision: str) -> Network:
    from esm2_features._devices import exact_arithmetic, is_out_of_memory, release_memory
    from esm2_features._model import Network

    try:
        with exact_arithmetic(place):
            return Network(
                checkpoint.name, checkpoint.architecture, checkpoint.load(), place, precision
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(place)
        size = checkpoint.architecture.parameters * (4 if precision == "float32" else 2) / 1e9
        raise OutOfMemoryError(
            f"The weights of {checkpoint.name} ({size:.1f} GB in {precision}) do not fit into the "
            f'memory of {place}. Use a device with more memory (device="cpu", say), a smaller '
            "model, or close what else uses the memory.",
            length=0,
            device=str(place),
        ) from error
