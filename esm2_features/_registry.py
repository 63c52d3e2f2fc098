"""The networks in memory: one per checkpoint, device and precision in a process.

Estimators hold no weights. Fifty clones of one estimator find the same network here, and a
pickle of an estimator is a few hundred bytes.

Never here: what a network computes.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from esm2_features.exceptions import ForkedProcessError

if TYPE_CHECKING:
    from esm2_features._checkpoint import Checkpoint
    from esm2_features._model import Network

_networks: dict[tuple[str, str, str], Network] = {}
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
    CheckpointError
        If the weights cannot be found or read.
    InputError
        If there is no such device.
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
    from esm2_features._model import Network

    with _lock:
        place = resolve_device(device)
        key = (checkpoint.identity, str(place), precision)
        if key not in _networks:
            _networks[key] = Network(
                checkpoint.name, checkpoint.architecture, checkpoint.load(), place, precision
            )
            _owner = os.getpid()
        return _networks[key]


def release_networks() -> None:
    """Forget all networks, so that their memory can be freed."""
    with _lock:
        _networks.clear()
