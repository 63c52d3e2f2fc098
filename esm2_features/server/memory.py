"""The memory of requests under way: a budget in bytes, of which each client has a share."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

_SMALL = 64
_KEPT_FREE = 8


class MemoryBudget:
    """Bytes of all requests that are accepted and not yet answered; for any thread.

    A client holds up to half of the budget, and so does a request. The last eighth is for requests
    that need up to a 64th, so that large ones never keep all others waiting.

    Attributes
    ----------
    most, most_of_client : int
        Bytes of all requests, and of those of one client.
    n_held : int
        Bytes that are held now.
    on_release : callable
        Called with a number of bytes after they have been given back.
    """

    def __init__(self, most: int) -> None:
        self.most, self.most_of_client = most, most // 2
        self.n_held = 0
        self.on_release: Callable[[int], object] = lambda _: None
        self._of_client: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, client: str, n: int, *, before: int) -> bool:
        """Hold more bytes for a request, which holds some before, if they fit."""
        is_small = (before + n) * _SMALL <= self.most
        room = self.most if is_small else self.most - self.most // _KEPT_FREE
        with self._lock:
            if self.n_held + n > room or self._of_client[client] + n > self.most_of_client:
                return False
            self.n_held += n
            self._of_client[client] += n
            return True

    def give(self, client: str, n: int) -> None:
        """Give bytes of a client back."""
        with self._lock:
            self.n_held -= n
            self._of_client[client] -= n
            self._of_client += Counter()  # forgets clients that hold nothing
        self.on_release(n)


class Claim:
    """The memory of one request: its body as it arrives, then all that its answer needs."""

    def __init__(self, budget: MemoryBudget, client: str) -> None:
        self.budget, self.client = budget, client
        self.n_held = 0
        self._is_started = False

    def take(self, n: int) -> bool:
        """Hold more bytes, if they fit."""
        if not self.budget.take(self.client, n, before=self.n_held):
            return False
        self.n_held += n
        return True

    def start(self, n: int) -> bool:
        """Hold the bytes of the answer, once, if they fit."""
        self._is_started = self._is_started or self.take(n)
        return self._is_started

    def fits(self, n: int) -> bool:
        """Whether so many bytes would ever fit beside those that are held."""
        return self.n_held + n <= self.budget.most_of_client

    def release(self) -> None:
        """Give all bytes back."""
        n, self.n_held = self.n_held, 0
        if n:
            self.budget.give(self.client, n)
