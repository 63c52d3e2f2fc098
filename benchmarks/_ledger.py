"""The ledger: which part of a `transform` each moment of its time is booked to.

Parts are timed by wrapping the functions of `PARTS`, each exclusively: what a part calls of another
part counts there.

Never here: what is run meanwhile, and how its shares read.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import GeneratorType
from typing import Any
from unittest.mock import patch

FORWARD, REST = "forward pass", "the rest"

PARTS = (
    (FORWARD, "esm2_features._model.esm2", "ESM2Network.run"),
    ("pooling", "esm2_features._inference.extractors", "pool"),
    ("layout and packing", "esm2_features._model.layout", "Layout.__init__"),
    ("layout and packing", "esm2_features._model.layout", "Layout.merge_windows"),
    ("planning", "esm2_features._inference.local", "LocalConnection.compute"),
    ("planning", "esm2_features._inference.runner", "unique_views"),
    ("tokenising", "esm2_features._model.layout", "encode_all"),
    ("validation", "esm2_features._sklearn.base", "SequenceTransformer._columns"),
    ("validation", "esm2_features._sklearn.embedding", "ESM2Transformer._views"),
    ("cache keys", "esm2_features._inference.cache_session", "CacheSession.__init__"),
    ("cache look-ups", "esm2_features._inference.cache_session", "CacheSession.read"),
    ("cache claims", "esm2_features._inference.cache_session", "CacheSession.claim"),
    ("cache claims", "esm2_features._cache.claims", "Claims.release"),
    ("cache writes", "esm2_features._inference.cache_session", "CacheSession.add"),
    ("cache writes", "esm2_features._inference.cache_session", "CacheSession.wait_for_others"),
    ("cache writes", "esm2_features._inference.cache_session", "CacheSession.close"),
    # Under "planning", which calls them: the pass itself, and whether its numbers are finite.
    (REST, "esm2_features._inference.local", "LocalBackend.forward"),
    (REST, "esm2_features._inference.local", "check_finite"),
)
"""Parts of the time, module, and the function or method there whose time it is."""


class Ledger:
    """Books the time of one thread to the part that it is in.

    Work of other threads is not booked: it costs the job nothing, unless this one waits for it.

    Attributes
    ----------
    seconds : dict of str to float
        By part; together, the time since the ledger was opened.
    calls : dict of str to int
        How often each wrapped function was entered, by its name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._thread = threading.get_ident()
        self._inside = [REST]
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Book the time of the block."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._book()
        self._inside.append(name)
        try:
            yield
        finally:
            self._book()
            self._inside.pop()

    def close(self) -> None:
        """Book what is left."""
        self._book()

    def wrap(self, function: Callable[..., Any], part: str, name: str) -> Callable[..., Any]:
        """Make a function book its time, and the generator that it gives, each of its steps."""

        @functools.wraps(function)
        def booked(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            with self.part(part):
                given = function(*args, **options)
            return self._stepped(given, part) if isinstance(given, GeneratorType) else given

        return booked

    def _stepped(self, steps: Iterator[Any], part: str) -> Iterator[Any]:
        """Between two steps, time is that of whoever asked for them."""
        while True:
            with self.part(part):
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item

    def _book(self) -> None:
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now


def find(module: str, path: str) -> tuple[object, str]:
    """Look up who holds a function, and under what name.

    Parameters
    ----------
    module : str
    path : str
        Such as ``"ESM2Network.representations"``.

    Returns
    -------
    owner : module or class
    attribute : str

    Raises
    ------
    AttributeError
        If it is not there, because it was renamed.
    """
    owner: object = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for name in outer:
        owner = getattr(owner, name)
    # A class has the __init__ and __exit__ of its base, too, which are not what is meant.
    if attribute not in vars(owner):
        raise AttributeError(f"{module} has no {path} any longer. Mend PARTS in {__file__}.")
    return owner, attribute


@contextmanager
def booked() -> Iterator[Ledger]:
    """Book the time of the block, part by part.

    Yields
    ------
    ledger : Ledger

    Raises
    ------
    AttributeError
        If a function of `PARTS` does not exist.
    RuntimeError
        If one was never called: its time would be booked elsewhere, and nobody would know.
    """
    found = [(part, f"{module}.{path}", *find(module, path)) for part, module, path in PARTS]
    with ExitStack() as patches:
        # One pass at a time, in this thread: the workers of a CPU would not be booked.
        patches.enter_context(patch("esm2_features._model.devices._MOST_WORKERS", 1))
        ledger = Ledger()
        for part, name, owner, attribute in found:
            function = ledger.wrap(getattr(owner, attribute), part, name)
            patches.enter_context(patch.object(owner, attribute, function))
        yield ledger
        ledger.close()
    unused = [name for _, name, *_ in found if not ledger.calls[name]]
    if unused:
        raise RuntimeError(f"Nothing called {', '.join(unused)}. Mend PARTS in {__file__}.")


def seconds_of_wrapping(calls: int = 10_000) -> float:
    """Measure what it costs to time one call."""
    ledger = Ledger()
    nothing = ledger.wrap(lambda: None, REST, "nothing")
    start = time.perf_counter()
    for _ in range(calls):
        nothing()
    return (time.perf_counter() - start) / calls
