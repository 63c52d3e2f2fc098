"""The queue: what waits to be computed, and what is computed together.

Sequences of several requests that need the same computation of the same model go to the engine in
one call, up to a budget of tokens; the engine removes duplicates, reads the cache, and packs the
rest. Clients take turns, and so do the requests of a client, so that many or large ones do not hold
up those of others. What nobody waits for any more is dropped.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from esm2_features.server.errors import ApiError
from esm2_features.server.memory import Claim
from esm2_features.server.metrics import Metrics
from esm2_features.server.requests import Computation, FeatureRequest

Compute = Callable[[str, Computation, list[str]], Sequence[Any]]
"""Returns one result for each sequence, of a model and a computation."""


class _Entry:
    """One computation of one request."""

    def __init__(
        self,
        request: FeatureRequest,
        computation: Computation,
        deadline: float,
        client: str,
        claim: Claim | None,
    ) -> None:
        self.client = client
        self.n_bytes, self._claim = request.n_bytes, claim
        self.key = (request.model, computation)
        self.sequences = request.sequences
        self.tokens = [length + 2 for length in request.lengths]
        self.results: list[Any] = [None] * len(request.sequences)
        self.n_taken = 0  # sequences that were given to a worker
        self.n_missing = len(request.sequences)  # sequences without a result
        self.since = time.monotonic()
        self.deadline = deadline
        self.future: Future[list[Any]] = Future()

    @property
    def waiting_tokens(self) -> int:
        return sum(self.tokens[self.n_taken :])

    def start(self) -> bool:
        """Hold the memory of the request, once for all of its computations, if it fits."""
        return self._claim is None or self._claim.start(self.n_bytes)

    def finish(self, error: BaseException | None = None) -> None:
        """Hand over the results, or the error, unless nobody waits for them any more."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if error is None:
            self.future.set_result(self.results)
        else:
            self.future.set_exception(error)


_Slice = tuple[_Entry, int, int]
"""The sequences of an entry from the first number to before the second."""


class RequestQueue:
    """Computes what requests ask for, on one thread for each device."""

    def __init__(
        self,
        workers: Sequence[Compute],  # one for each device
        *,
        budget: int,  # tokens in a batch
        seconds: float = math.inf,  # that a batch may take: the budget is cut for slow computations
        wait: float,  # seconds that an entry waits for others to join its batch
        max_waiting: int,  # entries; those of one client are half of them at most
        metrics: Metrics,
    ) -> None:
        self._budget, self._wait, self._max_waiting = budget, wait, max_waiting
        self._seconds = seconds
        self._budgets: dict[tuple[str, str], int] = {}  # of each model and name of a computation
        self._metrics = metrics
        self._entries: deque[_Entry] = deque()
        self._turn = 0
        self._last_turns: dict[str, int] = {}  # of each client
        self._changed = threading.Condition()
        self._is_closing = False
        self._speed = 0.0  # tokens per second, a moving average
        metrics.waiting.set_function(lambda: len(self._entries))
        metrics.waiting_tokens.set_function(self._waiting_tokens)
        self._threads = [
            threading.Thread(target=self._work, args=[worker], name=f"worker-{i}", daemon=True)
            for i, worker in enumerate(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        request: FeatureRequest,
        *,
        deadline: float,
        client: str = "",
        claim: Claim | None = None,
    ) -> list[Future[list[Any]]]:
        """Queue the computations of a request; raise ApiError if the queue is full or closing.

        They start as soon as the memory of the request fits into the budget.
        """
        entries = [_Entry(request, one, deadline, client, claim) for one in request.computations]
        with self._changed:
            if self._is_closing:
                raise ApiError("stopping", retry_after=10)
            if self._is_full(client):
                self._drop()
            if self._is_full(client):
                raise ApiError("busy", n=len(self._entries), retry_after=self._seconds_left())
            self._entries.extend(entries)
            self._changed.notify_all()
        return [entry.future for entry in entries]

    def wake(self) -> None:
        """Let workers look again, because there may be memory now."""
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Accept no more requests, compute what is waiting, and wait for the threads to end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        latest = math.inf if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if timeout is None else max(0.0, latest - time.monotonic()))

    def _is_full(self, client: str) -> bool:
        """Whether the queue has no room, or none for a client."""
        own = sum(entry.client == client for entry in self._entries)
        return len(self._entries) >= self._max_waiting or 2 * own >= max(2, self._max_waiting)

    # ------------------------------------------------------------------ the workers

    def _work(self, compute: Compute) -> None:
        while (batch := self._next_batch()) is not None:
            model, computation = batch[0][0].key
            tokens = sum(sum(entry.tokens[start:stop]) for entry, start, stop in batch)
            self._metrics.batch_fill.observe(min(1.0, tokens / self._budget))
            self._metrics.batch_requests.observe(len(batch))
            start_time = time.perf_counter()
            self._compute(compute, batch)
            seconds = time.perf_counter() - start_time
            self._adapt((model, computation.name), tokens, seconds)
            self._metrics.tokens.labels(model).inc(tokens)
            self._metrics.busy.labels(model).inc(seconds)
            speed = tokens / max(seconds, 1e-6)
            self._speed = speed if not self._speed else 0.8 * self._speed + 0.2 * speed
            self._metrics.tokens_per_second.set(self._speed)
            del batch  # so that its results are not in memory until the next one

    def _adapt(self, kind: tuple[str, str], tokens: int, seconds: float) -> None:
        """Halve the budget of a computation that took too long, double that of a quick one."""
        budget = self._budget_of(kind)
        if seconds > self._seconds:
            self._budgets[kind] = max(budget // 2, self._budget // 64, 1)
        elif 2 * tokens > budget and 4 * seconds < self._seconds:
            self._budgets[kind] = min(2 * budget, self._budget)

    def _budget_of(self, kind: tuple[str, str]) -> int:
        start = self._budget if math.isinf(self._seconds) else max(1, self._budget // 8)
        return self._budgets.get(kind, start)

    def _compute(self, compute: Compute, batch: list[_Slice]) -> None:
        """Compute a batch; if it fails, each slice alone, so that others get their results."""
        model, computation = batch[0][0].key
        sequences = [text for entry, start, stop in batch for text in entry.sequences[start:stop]]
        try:
            results = iter(list(compute(model, computation, sequences)))
        except BaseException as error:
            if len(batch) > 1:
                for one in batch:
                    self._compute(compute, [one])
                return
            entry = batch[0][0]
            with self._changed:
                if entry in self._entries:
                    self._entries.remove(entry)
                entry.finish(error)
            return
        for entry, start, stop in batch:
            entry.results[start:stop] = [next(results) for _ in range(start, stop)]
            with self._changed:
                entry.n_missing -= stop - start
                if not entry.n_missing:
                    entry.finish()

    def _next_batch(self) -> list[_Slice] | None:
        """Wait for a batch; return None when the queue is closing and empty."""
        with self._changed:
            while True:
                self._drop()
                if not self._entries:
                    self._last_turns.clear()
                    if self._is_closing:
                        return None
                    self._changed.wait()
                    continue
                # The clients that have waited for longest come first; the order of a client's
                # own requests stays.
                waiting = sorted(self._entries, key=lambda e: self._last_turns.get(e.client, 0))
                first = next((entry for entry in waiting if entry.start()), None)
                if first is None:
                    self._changed.wait()
                    continue
                alike = [entry for entry in waiting if entry.key == first.key]
                tokens = sum(entry.waiting_tokens for entry in alike)
                model, computation = first.key
                room = self._budget_of((model, computation.name))
                remaining = first.since + self._wait - time.monotonic()
                if tokens < room and remaining > 0 and not self._is_closing:
                    self._changed.wait(remaining)
                    continue
                return self._take(alike, room)

    def _take(self, entries: Sequence[_Entry], room: int) -> list[_Slice]:
        """Take as many sequences as the budget has room for, and at least one."""
        batch: list[_Slice] = []
        self._turn += 1
        for entry in entries:
            if not entry.start():
                continue
            start = stop = entry.n_taken
            n = len(entry.tokens)
            while stop < n and (entry.tokens[stop] <= room or (not batch and stop == start)):
                room -= entry.tokens[stop]
                stop += 1
            if stop > start:
                batch.append((entry, start, stop))
                self._last_turns[entry.client] = self._turn
                entry.n_taken = stop
                self._entries.remove(entry)
                if stop < n:
                    self._entries.append(entry)  # behind the entries whose turn is next
            if room <= 0 or stop < n:
                break
        return batch

    def _drop(self) -> None:
        """Remove the entries that nobody waits for any more."""
        for entry in list(self._entries):
            if entry.future.done() or time.monotonic() > entry.deadline:
                self._entries.remove(entry)
                entry.future.cancel()

    def _waiting_tokens(self) -> int:
        with self._changed:
            return sum(entry.waiting_tokens for entry in self._entries)

    def _seconds_left(self) -> int:
        """Estimate how long the computation of all entries will take."""
        if not self._speed:
            return 5
        seconds = self._waiting_tokens() / self._speed / len(self._threads)
        return max(1, min(60, math.ceil(seconds)))
