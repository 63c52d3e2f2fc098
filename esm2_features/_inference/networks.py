"""The networks in memory: one per checkpoint, device and precision in a process.

Estimators hold no weights. Fifty clones of one estimator find the same network here, and a
pickle of an estimator is a few hundred bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from esm2_features.exceptions import ForkedProcessError, OutOfMemoryError

if TYPE_CHECKING:
    from esm2_features._checkpoints import Checkpoint
    from esm2_features._model.devices import DeviceMap
    from esm2_features._model.esm2 import ESM2Network

_Key = tuple[str, "DeviceMap", str]
"""Identity of the weights, where they are, and the precision."""
_networks: dict[_Key, ESM2Network] = {}
_keys: dict[tuple[Hashable, DeviceMap, str], _Key] = {}
"""Keys of networks by the fingerprint of a source, for which no digest is needed."""
_lock = threading.Lock()
_owner: int | None = None
"""Process that has used a network. PyTorch's threads do not survive a fork."""


def get_networks(
    checkpoint: Checkpoint, *, devices: Sequence[str], precision: str
) -> list[ESM2Network]:
    """Give the network of a checkpoint on each device; load it if this process has not done so."""
    global _owner
    _check_forked()
    from esm2_features._model.devices import resolve_devices

    source = checkpoint.fingerprint()

    networks = []
    with _lock:
        identity = checkpoint.identity
        for device_map in resolve_devices(devices, precision):
            key = (identity, device_map, precision)
            if key not in _networks:
                _owner = os.getpid()
                _networks[key] = _load(checkpoint, device_map, precision)
            _keys[source, device_map, precision] = key
            networks.append(_networks[key])
    return networks


def _check_forked() -> None:
    """Raise ForkedProcessError in a process forked from one that has run a network."""
    if _owner is not None and _owner != os.getpid():
        raise ForkedProcessError(
            "This process was forked from one that has already run a network, and PyTorch "
            "would hang in it. Start workers by joblib's default backend (loky), or with "
            'multiprocessing.get_context("spawn"), or run the first transform in the workers '
            "only. Results that are in the cache can be read in a forked process, too."
        )


def forget_network(checkpoint: Checkpoint, *, device: str, precision: str) -> None:
    """Forget a network, so that its memory is free once nobody uses it any more."""
    from esm2_features._model.devices import release_memory, resolve_device_map

    with _lock:
        device_map = resolve_device_map(device)
        if _networks.pop((checkpoint.identity, device_map, precision), None) is not None:
            release_memory(device_map.home)


def devices_of_network(
    checkpoint: Checkpoint, *, devices: Sequence[str], precision: str
) -> list[str]:
    """List the devices on which the network of a checkpoint is in memory, without loading it."""
    if not _networks or _owner != os.getpid():
        return []
    from esm2_features._model.devices import resolve_devices  # torch is there where a network is

    source = checkpoint.fingerprint()
    device_maps = list(dict.fromkeys(resolve_devices(devices, precision)))
    keys = [_keys.get((source, device_map, precision)) for device_map in device_maps]
    return [str(one) for one in device_maps] if all(key in _networks for key in keys) else []


def _load(checkpoint: Checkpoint, device_map: DeviceMap, precision: str) -> ESM2Network:
    from esm2_features._model.devices import exact_arithmetic, is_out_of_memory, release_memory
    from esm2_features._model.esm2 import ESM2Network
    from esm2_features._model.half_precision import warn_if_slow

    if precision != "float32" and device_map.home.type == "cpu":
        warn_if_slow(precision)
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
