"""`DevicePool`: several devices, or parts of the cores of one, share the batches of one run.

Each worker has a `BatchLoop` of its own on the network of its device, and takes the next batch
when it is done with one: a slow device holds up nobody. Batches come in the order of what a token
of them costs, which grows with the length, so the last ones are over soon. joblib runs the workers,
on threads: a network is in memory once for each device, and its passes let go of Python's lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from joblib import Parallel, delayed

from esm2_features._inference.batch_loop import BatchLoop
from esm2_features._model.interruption import CALLED_OFF

_Results = tuple[list[int], Sequence[Any]]


class DevicePool:
    """Workers that share the batches of one run; to be used once."""

    def __init__(self, loops: Sequence[BatchLoop]) -> None:
        self._loops = list(loops)
        self._idle: SimpleQueue[BatchLoop] = SimpleQueue()
        self._done: deque[_Results] = deque()
        self._stop = threading.Event()
        self._called_off = threading.Event()
        for loop in loops:
            self._idle.put(loop)

    def run(self, which: Sequence[int]) -> Generator[_Results, None, None]:
        """Yield the results of batches as they arrive."""
        plan = max(self._loops, key=lambda loop: loop.budget).plan(which)
        workers = Parallel(
            n_jobs=len(self._loops),
            require="sharedmem",
            return_as="generator_unordered",
            pre_dispatch="n_jobs",  # what has not begun can still be called off
        )
        trouble: BaseException | None = None
        reports = workers(delayed(self._compute)(batch) for batch in self._until_stopped(plan))
        try:
            for error in reports:
                trouble = trouble or error
                yield from self._finished()
        except KeyboardInterrupt as error:
            trouble = error
        finally:
            self._stop.set()
            self._called_off.set()  # ends passes that are still under way
            for _ in reports:  # joblib warns of what it was not asked for
                pass
            for _ in self._loops:  # each comes back
                self._idle.get()
        yield from self._finished()
        if trouble is not None:
            raise trouble

    def _until_stopped(self, plan: Sequence[list[int]]) -> Iterator[list[int]]:
        for batch in plan:
            if self._stop.is_set():
                return
            yield batch

    def _compute(self, batch: list[int]) -> BaseException | None:
        """Compute a batch with an idle worker; return its error, if there is one."""
        loop = self._idle.get()
        CALLED_OFF.set(self._called_off)
        try:
            self._done.extend(loop.run(batch))
        except BaseException as error:
            self._stop.set()
            return error
        finally:
            self._idle.put(loop)
        return None

    def _finished(self) -> Iterator[_Results]:
        while self._done:
            yield self._done.popleft()
