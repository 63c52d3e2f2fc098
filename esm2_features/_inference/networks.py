"""The networks in memory: one per checkpoint, device and precision in a process.

Estimators hold no weights. Fifty clones of one estimator find the same network here, and a
pickle of an estimator is a few hundred bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esm2_features.exceptions import ForkedProcessError, OutOfMemoryError

if TYPE_CHECKING:
    from esm2_features._checkpoints import Checkpoint
    from esm2_features._checkpoints.catalogue import ModelCard
    from esm2_features._model.devices import DeviceMap
    from esm2_features._model.esm2 import ESM2Network

_networks: dict[tuple[str, str, str], ESM2Network] = {}
_keys: dict[tuple[Hashable, str, str], tuple[str, str, str]] = {}
"""Key of the network that a source, on a device and in a precision, has led to: whoever only wants
to know whether it is there need not claim the digest of a file."""
_lock = threading.Lock()
_owner: int | None = None
"""Process that has used a network. PyTorch's threads do not survive a fork."""


def get_networks(
    checkpoint: Checkpoint, *, devices: Sequence[str], precision: str
) -> list[ESM2Network]:
    """Give the networks of a checkpoint on several devices."""
    _check_forked()
    from esm2_features._model.devices import resolve_devices

    return [
        get_network(checkpoint, device=device, precision=precision)
        for device in resolve_devices(devices)
    ]


def get_network(checkpoint: Checkpoint, *, device: str, precision: str) -> ESM2Network:
    """Give the network of a checkpoint; load it if this process has not done so yet."""
    global _owner
    _check_forked()
    from esm2_features._model.devices import resolve_device_map

    with _lock:
        device_map = resolve_device_map(device)
        key = (checkpoint.identity, str(device_map), precision)
        if key not in _networks:
            _owner = os.getpid()
            _networks[key] = _load(checkpoint, device_map, precision)
        _keys[_seen(checkpoint.source), str(device_map), precision] = key
        return _networks[key]


def _check_forked() -> None:
    """Refuse to run, or wait for a lock that was inherited locked, in a forked process."""
    if _owner is not None and _owner != os.getpid():
        raise ForkedProcessError(
            "This process was forked from one that has already run a network, and PyTorch "
            "would hang in it. Start workers by joblib's default backend (loky), or with "
            'multiprocessing.get_context("spawn"), or run the first transform in the workers '
            "only. Results that are in the cache can be read in a forked process, too."
        )


def forget_network(checkpoint: Checkpoint, *, device: str, precision: str) -> None:
    """Let go of a network, so that its memory is free once nobody uses it any more."""
    from esm2_features._model.devices import release_memory, resolve_device_map

    with _lock:
        device_map = resolve_device_map(device)
        if _networks.pop((checkpoint.identity, str(device_map), precision), None) is not None:
            release_memory(device_map.home)


def devices_of_network(
    checkpoint: Checkpoint, *, devices: Sequence[str], precision: str
) -> list[str]:
    """Say where the network of a checkpoint is in memory. Loads nothing, and no torch."""
    if not _networks or _owner != os.getpid():
        return []
    from esm2_features._model.devices import resolve_devices  # torch is there where a network is

    device_maps = list(dict.fromkeys(resolve_devices(devices)))
    keys = [
        _keys.get((_seen(checkpoint.source), device_map, precision)) for device_map in device_maps
    ]
    return device_maps if all(key in _networks for key in keys) else []


def _seen(source: Path | ModelCard) -> Hashable:
    """Tell a file from what has replaced it, without reading it."""
    if not isinstance(source, Path):
        return source
    try:
        found = source.stat()
    except OSError:
        return source
    return source, found.st_size, found.st_mtime_ns


def _load(checkpoint: Checkpoint, device_map: DeviceMap, precision: str) -> ESM2Network:
    from esm2_features._model.devices import exact_arithmetic, is_out_of_memory, release_memory
    from esm2_features._model.esm2 import ESM2Network

    try:
        with exact_arithmetic(device_map.home):
            return ESM2Network(
                checkpoint.name, checkpoint.architecture, checkpoint.load(), device_map, precision
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        for device in device_map.devices:
            release_memory(device)
        size = checkpoint.architecture.parameters * (4 if precision == "float32" else 2) / 1e9
        raise OutOfMemoryError(
            f"The weights of {checkpoint.name} ({size:.1f} GB in {precision}) do not fit into the "
            f"memory of {device_map}. Divide the network between cards "
            '(device="cuda:0+cuda:1"), leave its blocks in the host\'s memory (device="cuda+cpu"), '
            "use a device with more memory, a smaller model, or close what else uses the memory.",
            length=0,
            device=str(device_map),
        ) from error
