"""The queue: what waits to be computed, and what is computed together.

Sequences of several requests that ask the same of the same model go to the engine in one call, up
to a budget of tokens: it removes duplicates, reads the cache, and packs the rest. Requests take
turns, so that a large one does not hold up the small ones behind it. What nobody waits for any
more is not computed.
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
from esm2_features.server.metrics import Metrics
from esm2_features.server.requests import FeatureRequest, Kind

Compute = Callable[[str, Kind, list[str]], Sequence[Any]]
"""Gives one result for each sequence: of a model, of a kind."""


class _QueuedRequest:
    """One kind of thing that one request wants of its sequences."""

    def __init__(self, job: FeatureRequest, kind: Kind, deadline: float) -> None:
        self.key = (job.model, kind)
        self.sequences = job.sequences
        self.tokens = [length + 2 for length in job.lengths]
        self.results: list[Any] = [None] * len(job.sequences)
        self.taken = 0  # sequences that were given to a worker
        self.left = len(job.sequences)  # sequences that have no result
        self.since = time.monotonic()
        self.deadline = deadline
        self.future: Future[list[Any]] = Future()

    @property
    def is_dead(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done() or time.monotonic() > self.deadline

    @property
    def waiting_tokens(self) -> int:
        return sum(self.tokens[self.taken :])


_Piece = tuple[_QueuedRequest, int, int]
"""Some of the sequences of an ask, from the first to before the second number."""


class RequestQueue:
    """Computes what requests ask for, on one thread for each device."""

    def __init__(
        self,
        workers: Sequence[Compute],  # as `Compute`, one for each device
        *,
        budget: int,  # tokens in a batch
        wait: float,  # seconds that an ask waits for others to go with it
        most: int,  # asks that may wait
        metrics: Metrics,
    ) -> None:
        self._budget, self._wait, self._most = budget, wait, most
        self._metrics = metrics
        self._asks: deque[_QueuedRequest] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._speed = 0.0
        metrics.watch(lambda: len(self._asks), self._waiting_tokens)
        self._threads = [
            threading.Thread(target=self._work, args=[worker], name=f"worker-{i}", daemon=True)
            for i, worker in enumerate(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: FeatureRequest, *, deadline: float) -> list[Future[list[Any]]]:
        """Queue what a request asks for."""
        asks = [_QueuedRequest(job, kind, deadline) for kind in job.kinds]
        with self._changed:
            if self._closing:
                raise ApiError(503, "stopping", "The server is going down.", retry_after=10)
            if len(self._asks) >= self._most:
                self._bury()
            if len(self._asks) >= self._most:
                raise ApiError(
                    503,
                    "busy",
                    f"{len(self._asks)} requests wait already. Try again later.",
                    retry_after=self._seconds_left(),
                )
            self._asks.extend(asks)
            self._changed.notify_all()
        return [ask.future for ask in asks]

    def close(self) -> None:
        """Take nothing more, compute what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------------ the workers

    def _work(self, compute: Compute) -> None:
        while (pieces := self._next()) is not None:
            model, _ = pieces[0][0].key
            tokens = sum(sum(ask.tokens[start:stop]) for ask, start, stop in pieces)
            self._metrics.batch_fill.observe(min(1.0, tokens / self._budget))
            self._metrics.batch_requests.observe(len(pieces))
            begun = time.perf_counter()
            try:
                self._compute(compute, pieces)
            finally:
                seconds = time.perf_counter() - begun
            self._metrics.tokens.labels(model).inc(tokens)
            self._metrics.busy.labels(model).inc(seconds)
            speed = tokens / max(seconds, 1e-6)
            self._speed = speed if not self._speed else 0.8 * self._speed + 0.2 * speed
            self._metrics.tokens_per_second.set(self._speed)

    def _compute(self, compute: Compute, pieces: list[_Piece]) -> None:
        """Compute pieces together; if that fails, each by itself, so that one spoils no other."""
        model, kind = pieces[0][0].key
        sequences = [text for ask, start, stop in pieces for text in ask.sequences[start:stop]]
        try:
            results = list(compute(model, kind, sequences))
        except BaseException as error:
            if len(pieces) > 1:
                for piece in pieces:
                    self._compute(compute, [piece])
                return
            ask = pieces[0][0]
            with self._changed:
                if ask in self._asks:
                    self._asks.remove(ask)
                _settle(ask, error)
            return
        at = 0
        for ask, start, stop in pieces:
            ask.results[start:stop] = results[at : at + stop - start]
            at += stop - start
            with self._changed:
                ask.left -= stop - start
                if not ask.left:
                    _settle(ask)

    def _next(self) -> list[_Piece] | None:
        """Wait for something to do; None when there will be nothing more."""
        with self._changed:
            while True:
                self._bury()
                if not self._asks:
                    if self._closing:
                        return None
                    self._changed.wait()
                    continue
                first = self._asks[0]
                alike = [ask for ask in self._asks if ask.key == first.key]
                there = sum(ask.waiting_tokens for ask in alike)
                remaining = first.since + self._wait - time.monotonic()
                if there < self._budget and remaining > 0 and not self._closing:
                    self._changed.wait(remaining)
                    continue
                return self._taken(alike)

    def _taken(self, asks: Sequence[_QueuedRequest]) -> list[_Piece]:
        """Take as many sequences as the budget has room for, and one at least."""
        pieces: list[_Piece] = []
        room = self._budget
        for ask in asks:
            start = stop = ask.taken
            while stop < len(ask.tokens) and (
                ask.tokens[stop] <= room or (not pieces and stop == start)
            ):
                room -= ask.tokens[stop]
                stop += 1
            if stop > start:
                pieces.append((ask, start, stop))
                ask.taken = stop
                self._asks.remove(ask)
                if stop < len(ask.tokens):
                    self._asks.append(ask)  # behind those who have waited for their turn
            if room <= 0 or stop < len(ask.tokens):
                break
        return pieces

    def _bury(self) -> None:
        """Drop what nobody waits for any more."""
        dead = [ask for ask in self._asks if ask.is_dead]
        for ask in dead:
            self._asks.remove(ask)
            ask.future.cancel()

    def _waiting_tokens(self) -> int:
        with self._changed:
            return sum(ask.waiting_tokens for ask in self._asks)

    def _seconds_left(self) -> int:
        """Guess how long what waits will take."""
        tokens = sum(ask.waiting_tokens for ask in self._asks)
        if not self._speed:
            return 5
        return max(1, min(60, math.ceil(tokens / self._speed / len(self._threads))))


def _settle(ask: _QueuedRequest, error: BaseException | None = None) -> None:
    """Give what was computed to who waits for it, unless nobody does any more."""
    if ask.future.done() or not ask.future.set_running_or_notify_cancel():
        return
    if error is None:
        ask.future.set_result(ask.results)
    else:
        ask.future.set_exception(error)
