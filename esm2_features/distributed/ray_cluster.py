"""Shards on a Ray cluster: connecting to one or starting one, and its room for workers.

The driver reads the inputs and hands out tasks; an actor computes a shard of each, and writes it to
the folder, which all machines must see.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from esm2_features.distributed.manifest import Manifest
from esm2_features.distributed.ray_workers import ShardActor, Workers, answers
from esm2_features.distributed.worker import WorkerOptions
from esm2_features.exceptions import InputError, import_optional

if TYPE_CHECKING:
    from types import ModuleType

    from esm2_features.distributed.worker import Compute

_ANSWER_SECONDS = 20.0
"""How long a cluster may take to answer."""
_STORE_BYTES = 1 << 29
"""Shared memory of a cluster that is started here, which only holds tasks."""


@contextmanager
def on_cluster(
    settings: WorkerOptions,
    *,
    address: str | None,
    workers: int,
    gpus_per_worker: int,
    patience: int,
    print_line: Callable[[str], None],
) -> Iterator[Compute]:
    """Start actors, on an existing cluster or on one that lasts as long as this context."""
    ray = import_ray(is_local=not (address or os.environ.get("RAY_ADDRESS")))
    is_started = connect(ray, address=address, workers=workers)
    try:
        cpus = cpus_of_each(ray, workers=workers, gpus_per_worker=gpus_per_worker)
        # Not restarted by Ray, which would keep their tasks for them until there is room.
        options = {"max_restarts": 0, "num_cpus": cpus, "num_gpus": gpus_per_worker}
        remote = ray.remote(**options)(ShardActor)
        manifest = Manifest(settings.output)
        with Workers(
            ray,
            lambda: remote.remote(settings),
            workers,
            manifest,
            patience=patience,
            print_line=print_line,
        ) as crew:
            yield crew.compute
    finally:
        if is_started:
            ray.shutdown()


def import_ray(*, is_local: bool = False) -> ModuleType:
    """Import Ray, or raise MissingDependencyError.

    Ray listens on all addresses of a machine. A cluster that is started here gets a secret, so that
    nobody else can use it; Ray 2.52 and later reads it when it is imported.
    """
    # By default, Ray reports its use to a server.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not is_local:  # a cluster that does not answer would be asked 20 times, for 14 minutes
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    if is_local and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return import_optional("ray", extra="ray", purpose='engine="ray"')


def connect(ray: ModuleType, *, address: str | None, workers: int) -> bool:
    """Connect to a cluster, or start one here; return whether it has to be shut down."""
    if ray.is_initialized():
        if address is not None:
            raise InputError(
                f"Got address={address!r}, but this process is connected to Ray already. Leave "
                "the address out, or call ray.shutdown() first."
            )
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    known = address or os.environ.get("RAY_ADDRESS")
    if not known:
        options["num_cpus"] = max(os.cpu_count() or 1, workers)
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        host = (known or "").removeprefix("ray://")
        if ":" in host and not answers(host, seconds=_ANSWER_SECONDS):
            raise ConnectionError(f"nobody listens at {host}")
        ray.init(address=known or "local", **options)
    except ConnectionError as error:
        raise ConnectionError(
            f"There is no Ray cluster at {known}: {str(error).rstrip('.')}. Start it (ray start "
            '--head), correct address= or $RAY_ADDRESS, or compute without Ray: engine="plain".'
        ) from error
    return True


def cpus_of_each(ray: ModuleType, *, workers: int, gpus_per_worker: int) -> int:
    """Return the number of cores, and so threads, of an actor."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def room(cpus: int) -> int:
        """Return how many actors of so many cores fit on the nodes."""
        needs = {"CPU": cpus, "GPU": gpus_per_worker}
        return sum(
            min(int(node.get(kind, 0) // n) for kind, n in needs.items() if n) for node in nodes
        )

    if room(1) < workers:
        has = [f"{sum(node.get(kind, 0) for node in nodes):.0f} {kind}s" for kind in ("CPU", "GPU")]
        raise InputError(
            f"There is room for {room(1)} of workers={workers} on the cluster, which has "
            f"{' and '.join(has)}; a worker takes 1 CPU and gpus_per_worker={gpus_per_worker}. Ask "
            "for fewer, or for a larger cluster."
        )
    if gpus_per_worker:
        return 1
    most = int(sum(node.get("CPU", 0) for node in nodes) // workers)
    return next(cpus for cpus in range(most, 0, -1) if room(cpus) >= workers)
