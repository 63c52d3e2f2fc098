"""What is counted while a server runs, for Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_FILLS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_MANY = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one server.

    Labels have few values: routes, not addresses; models that are served, not what was asked for.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        name = "esm2_features_{}".format
        self.requests = Counter(
            name("requests"), "Requests", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            name("request_seconds"),
            "Seconds from a request's head to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(name("queue_requests"), "Requests that wait", registry=registry)
        self.waiting_tokens = Gauge(name("queue_tokens"), "Tokens that wait", registry=registry)
        self.batch_fill = Histogram(
            name("batch_fill_ratio"),
            "Tokens of a batch, as a part of what it may hold",
            buckets=_FILLS,
            registry=registry,
        )
        self.batch_requests = Histogram(
            name("batch_requests"),
            "Requests whose sequences are computed together",
            buckets=_MANY,
            registry=registry,
        )
        self.tokens = Counter(
            name("tokens"), "Tokens (residues + 2) answered for", ["model"], registry=registry
        )
        self.busy = Counter(
            name("busy_seconds"), "Seconds in which workers computed", ["model"], registry=registry
        )
        self.tokens_per_second = Gauge(
            name("tokens_per_second"), "Tokens in a second of computing, lately", registry=registry
        )
        self.sequences = Counter(
            name("sequences"),
            "Sequences by where their vectors came from: the network, or the cache and duplicates",
            ["model", "source"],
            registry=registry,
        )
        self.models = Gauge(
            name("model_in_memory"), "Whether a model is in memory", ["model"], registry=registry
        )
        memory = Gauge(name("gpu_memory_bytes"), "Memory that tensors take", registry=registry)
        memory.set_function(_gpu_bytes)

    def watch(self, waiting: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Say where the length of the queue is to be had."""
        self.waiting.set_function(waiting)
        self.waiting_tokens.set_function(tokens)

    @property
    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


def _gpu_bytes() -> float:
    """Bytes that tensors take on the cards, if a network has brought PyTorch at all."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    cards = range(torch.cuda.device_count())
    return float(sum(torch.cuda.memory_allocated(card) for card in cards))
