"""Shards on a Ray cluster: actors, each with a model of its own.

The driver reads the inputs and hands out tasks; an actor computes a shard of each, and writes it to
the folder, which all machines must see. Each actor has two tasks at a time, so that it never waits
for the driver. An actor that dies is started again and gets its tasks again: computing a shard
twice does no harm.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from esm2_features._environment import keep_few_products, limit_openmp_spinning
from esm2_features.distributed.manifest import Manifest
from esm2_features.distributed.records import DoneShard, FailedShard
from esm2_features.distributed.worker import ShardWorker, Task, WorkerOptions
from esm2_features.exceptions import Esm2FeaturesError, InputError, import_optional

if TYPE_CHECKING:
    from types import ModuleType

    from esm2_features.distributed.worker import Compute

_TASKS_PER_ACTOR = 2
"""The one that it works on included."""
_RETRIES = 2
_STORE_BYTES = 1 << 29
"""Shared memory of a cluster that is started here, which only holds tasks."""


class ShardActor:
    """Runs in a process of the cluster."""

    def __init__(self, settings: WorkerOptions) -> None:
        keep_few_products()
        limit_openmp_spinning()
        self._settings = settings
        self._worker: ShardWorker | None = None

    def run(self, task: Task) -> DoneShard | FailedShard | Exception:
        """Compute a shard; errors that end the job are returned, because Ray would wrap them."""
        try:
            if self._worker is None:  # not in `__init__`, whose errors Ray retries for ever
                self._worker = ShardWorker(self._settings)
            return self._worker.run(task)
        except (Esm2FeaturesError, OSError) as error:
            return error


@contextmanager
def on_cluster(
    settings: WorkerOptions, *, address: str | None, workers: int, gpus_per_worker: int
) -> Iterator[Compute]:
    """Start actors, on an existing cluster or on one that lasts as long as this context."""
    ray = import_ray(is_local=not (address or os.environ.get("RAY_ADDRESS")))
    is_started = connect(ray, address=address, workers=workers)
    actors: list[Any] = []
    try:
        cpus = cpus_of_each(ray, workers=workers, gpus_per_worker=gpus_per_worker)
        options = {"max_restarts": -1, "max_task_retries": _RETRIES}
        remote = ray.remote(**options, num_cpus=cpus, num_gpus=gpus_per_worker)(ShardActor)
        actors += [remote.remote(settings) for _ in range(workers)]
        yield lambda tasks: _computed(ray, actors, tasks, Manifest(settings.output))
    finally:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        if is_started:
            ray.shutdown()


def import_ray(*, is_local: bool = False) -> ModuleType:
    """Import Ray, or raise MissingDependencyError.

    Ray listens on all addresses of a machine. A cluster that is started here gets a secret, so that
    nobody else can use it; Ray 2.52 and later reads it when it is imported.
    """
    # By default, Ray reports its use to a server.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
    ray.init(address=known or "local", **options)
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


def _computed(
    ray: ModuleType, actors: list[Any], tasks: Iterator[Task], manifest: Manifest
) -> Iterator[DoneShard | FailedShard]:
    """Hand out tasks, and yield their results as they arrive."""
    running: dict[Any, tuple[Any, Task]] = {}
    lost: list[Task] = []

    def hand_out(actor: Any) -> None:
        task = next(tasks, None)
        if task is not None:
            running[actor.run.remote(task)] = (actor, task)

    for actor in actors * _TASKS_PER_ACTOR:
        hand_out(actor)
    while running:
        [ready], _ = ray.wait(list(running), num_returns=1)
        actor, task = running.pop(ready)
        result = _result(ray, ready)
        hand_out(actor)
        if isinstance(result, ray.exceptions.RayError):
            lost.append(task)
        else:
            yield result
    # Only one of the two tasks of an actor made it die: each gets a last try alone.
    for task in lost:
        result = _result(ray, actors[0].run.remote(task))
        if isinstance(result, ray.exceptions.RayError):
            died = (
                "The worker died each time it computed this shard "
                f"({str(result).splitlines()[0]}). If memory was short, pass a smaller "
                "batch_tokens, or use fewer workers."
            )
            kind = type(result).__name__
            result = FailedShard(task.name, str(task.source), None, None, None, kind, died)
            manifest.set_aside(result)
        yield result


def _result(ray: ModuleType, reference: Any) -> Any:
    """Wait for a task; return its result, or the error of Ray if its actor died."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError:  # an unexpected exception in the actor
        raise
    except ray.exceptions.RayError as error:
        return error
    if isinstance(result, Exception):
        raise result
    return result
