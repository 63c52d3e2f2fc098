"""`Workers`: actors on a Ray cluster, which compute shards, die, and are replaced.

Each actor has a model of its own, and two tasks at a time, so that it never waits for the driver.
When one dies, its tasks are given to those that live, each alone, because one of them may be what
killed it; computing a shard twice does no harm. A new actor is asked for at once, and used as soon
as the cluster has room for it.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from esm2_features._environment import keep_few_products, limit_openmp_spinning
from esm2_features.distributed.manifest import Manifest
from esm2_features.distributed.records import DoneShard, FailedShard
from esm2_features.distributed.worker import ShardWorker, Task, WorkerOptions
from esm2_features.exceptions import Esm2FeaturesError

if TYPE_CHECKING:
    from types import ModuleType

_TASKS_PER_ACTOR = 2
"""The one that it works on included."""
_TRIES = 3
"""How often an actor may die of a task that it has alone."""
_NAMED = 5


class ShardActor:
    """Runs in a process of the cluster."""

    def __init__(self, settings: WorkerOptions) -> None:
        keep_few_products()
        limit_openmp_spinning()
        self._settings = settings
        self._worker: ShardWorker | None = None

    def is_ready(self) -> bool:
        return True

    def run(self, task: Task) -> DoneShard | FailedShard | Exception:
        """Compute a shard; errors that end the job are returned, because Ray would wrap them."""
        try:
            if self._worker is None:  # not in `__init__`, whose errors Ray hides
                self._worker = ShardWorker(self._settings)
            return self._worker.run(task)
        except (Esm2FeaturesError, OSError) as error:
            return error


@dataclass(eq=False)
class _Actor:
    handle: Any
    tasks: dict[Any, Task] = field(default_factory=dict)  # by the reference of the result
    is_alone: bool = False  # with a task of which an actor may have died


class Workers:
    """The actors of a job."""

    look_seconds: ClassVar[float] = 5.0
    silent_seconds: ClassVar[float] = 60.0

    def __init__(
        self,
        ray: ModuleType,
        make: Callable[[], Any],  # starts an actor
        n: int,
        manifest: Manifest,
        *,
        patience: int,  # seconds without any worker
        print_line: Callable[[str], None],
    ) -> None:
        self._ray, self._make, self._n = ray, make, n
        self._manifest = manifest
        self._patience, self._print_line = patience, print_line
        self._starting: dict[Any, _Actor] = {}  # by the reference of the answer
        self._living: list[_Actor] = []
        self._again: deque[Task] = deque()  # whose actor died
        self._deaths: Counter[str] = Counter()
        self._head = Head(ray)
        self._why = ""  # the last actor died
        self._last_life = self._last_word = time.monotonic()
        self._wait_for_word = self.silent_seconds

    def compute(self, tasks: Iterator[Task]) -> Iterator[DoneShard | FailedShard]:
        """Hand out tasks, and yield their results as they arrive."""
        first = next(tasks, None)
        if first is None:
            return
        tasks = itertools.chain([first], tasks)
        self._last_life = self._last_word = time.monotonic()
        for _ in range(self._n):
            self._start()
        while True:
            self._hand_out(tasks)
            running = {ref: actor for actor in self._living for ref in actor.tasks}
            if self._living and not running and not self._again:
                return
            ready, _ = self._ray.wait(
                [*running, *self._starting], num_returns=1, timeout=self.look_seconds
            )
            for ref in ready:
                if ref in self._starting:
                    self._welcome(ref)
                else:
                    yield from self._result(running[ref], ref)
                    self._last_word, self._wait_for_word = time.monotonic(), self.silent_seconds
            self._look_around()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        """End all actors."""
        if self._head.is_lost:
            return  # nobody would hear it
        for actor in [*self._living, *self._starting.values()]:
            self._ray.kill(actor.handle, no_restart=True)

    # -------------------------------------------------------------- actors

    def _start(self) -> None:
        actor = _Actor(self._make())
        self._starting[actor.handle.is_ready.remote()] = actor

    def _welcome(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._bury(actor, error)
        else:
            self._living.append(actor)
            self._last_life = time.monotonic()
            if self._why and len(self._living) == self._n:
                self._why = ""
                self._print_line(f"All {self._n} workers are there again.")

    def _bury(self, actor: _Actor, error: Exception) -> None:
        """Replace an actor that died; its tasks are computed again."""
        with suppress(Exception):
            self._ray.kill(actor.handle, no_restart=True)
        if actor in self._living:
            self._living.remove(actor)
        self._why = _first_line(error)
        names = [task.name for task in actor.tasks.values()]
        self._again += actor.tasks.values()
        given = f"; computed again: {', '.join(names)}" if names else ""
        self._print_line(
            f"A worker died ({self._why}){given}. {len(self._living)} of {self._n} workers go on; "
            "another one is started where there is room."
        )
        self._start()

    # -------------------------------------------------------------- tasks

    def _hand_out(self, tasks: Iterator[Task]) -> None:
        for n in range(_TASKS_PER_ACTOR):
            for actor in self._living:
                if len(actor.tasks) > n or actor.is_alone:
                    continue
                if self._again and actor.tasks:
                    continue  # it gets one of these when it is idle
                actor.is_alone = bool(self._again)
                task = self._again.popleft() if self._again else next(tasks, None)
                if task is not None:
                    actor.tasks[actor.handle.run.remote(task)] = task

    def _result(self, actor: _Actor, ref: Any) -> Iterator[DoneShard | FailedShard]:
        task = actor.tasks[ref]
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError:  # an unexpected exception in the actor
            raise
        except self._ray.exceptions.RayError as error:
            if actor.is_alone:
                self._deaths[task.name] += 1
                if self._deaths[task.name] == _TRIES:
                    del actor.tasks[ref]
                    yield self._failed(task, error)
            self._bury(actor, error)
            return
        del actor.tasks[ref]
        actor.is_alone = False
        if isinstance(result, Exception):
            raise result
        yield result

    def _failed(self, task: Task, error: Exception) -> FailedShard:
        died = (
            f"The worker died each time it computed this shard ({_first_line(error)}). If memory "
            "was short, pass a smaller batch_tokens, or use fewer workers."
        )
        failed = FailedShard(
            task.name, str(task.source), None, None, None, type(error).__name__, died
        )
        self._manifest.set_aside(failed)
        return failed

    # -------------------------------------------------------------- waiting

    def _look_around(self) -> None:
        """Say what is waited for, and raise ConnectionError when it is in vain."""
        now = time.monotonic()
        if self._living:
            self._last_life = now
        if self._head.look(now):
            raise ConnectionError(
                f"The head of the Ray cluster at {self._head.address} has not answered for "
                f"{self._head.patience:.0f} s. {self._advice()}"
            )
        if now - self._last_life > self._patience:
            because = f" The last one died: {self._why}." if self._why else ""
            raise ConnectionError(
                f"The Ray cluster has had no worker for {self._patience:.0f} s.{because} "
                f"{self._advice()}"
            )
        if now - self._last_word > self._wait_for_word:
            self._last_word = now
            self._wait_for_word *= 2
            self._print_line(self._state(now))

    def _state(self, now: float) -> str:
        names = [task.name for actor in self._living for task in actor.tasks.values()]
        if names:
            state = f"{len(self._living)} of {self._n} workers compute {_some(names)}"
        else:
            wait = now - self._last_life
            state = (
                f"No worker for {wait:.0f} s: the cluster has no room, or its nodes are starting; "
                f"waiting for up to {self._patience:.0f} s (patience=)"
            )
        again = [task.name for task in self._again]
        return f"{state}{f'; waiting: {_some(again)}' if again else ''}."

    def _advice(self) -> str:
        names = [task.name for actor in self._living for task in actor.tasks.values()]
        names += [task.name for task in self._again]
        begun = f" ({_some(names)} among them)" if names else ""
        done, _ = self._manifest.shards()
        return (
            f"{len(done)} finished shards are in {self._manifest.output}; the others{begun} are "
            "missing. Repeat the command when the cluster is there again, or without Ray: it "
            "computes what is missing."
        )


class Head:
    """Whether the head of the cluster answers.

    Ray ends this process without a word to it when the head has been lost for a minute.
    """

    patience: ClassVar[float] = 25.0

    def __init__(self, ray: ModuleType) -> None:
        self.address = ""
        self.is_lost = False
        with suppress(Exception):  # a client of Ray (ray://) notices by itself
            self.address = str(ray.get_runtime_context().gcs_address or "")
        self._last_look = self._last_answer = time.monotonic()

    def look(self, now: float) -> bool:
        """Ask the head every few seconds; return whether it is lost."""
        if self.address and now - self._last_look > Workers.look_seconds / 2:
            if answers(self.address, seconds=2.0):
                self._last_answer = time.monotonic()
            self._last_look = time.monotonic()
            self.is_lost = self._last_look - self._last_answer > self.patience
        return self.is_lost


def answers(address: str, *, seconds: float) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), seconds):
            return True
    except (OSError, ValueError, OverflowError):  # the last two of a port that is none
        return False


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
