"""The counters of a server, for Prometheus."""

from __future__ import annotations

import sys
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)
_FILLS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counters of one server.

    Labels have few values: routes instead of addresses, and names of models that are served instead
    of names that were requested.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"esm2_features_{name}", text, labels, registry=self._registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"esm2_features_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            name = f"esm2_features_{name}"
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

        self.requests = counter("requests", "Requests", "route", "status")
        self.seconds = histogram(
            "request_seconds", "Seconds from a request's head to its answer", _SECONDS, "route"
        )
        self.waiting = gauge("queue_requests", "Requests in the queue")
        self.waiting_tokens = gauge("queue_tokens", "Tokens in the queue")
        self.batch_fill = histogram(
            "batch_fill_ratio", "Tokens of a batch, as a fraction of the budget", _FILLS
        )
        self.batch_requests = histogram(
            "batch_requests", "Requests whose sequences share a batch", _COUNTS
        )
        self.tokens = counter("tokens", "Tokens (residues + 2) of the answers", "model")
        self.busy = counter("busy_seconds", "Seconds in which workers computed", "model")
        self.tokens_per_second = gauge(
            "tokens_per_second", "Tokens per second of computation, a moving average"
        )
        self.sequences = counter(
            "sequences",
            "Sequences by the source of their vectors: the network, or the cache and duplicates",
            "model",
            "source",
        )
        self.models = gauge("model_in_memory", "Whether a model is in memory", "model")
        gauge("gpu_memory_bytes", "GPU memory of tensors").set_function(_gpu_bytes)

    def watch(self, waiting: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Set the functions that return the length of the queue, in requests and in tokens."""
        self.waiting.set_function(waiting)
        self.waiting_tokens.set_function(tokens)

    @property
    def text(self) -> bytes:
        """All counters in the format of Prometheus."""
        return generate_latest(self._registry)


def _gpu_bytes() -> float:
    """Return the bytes of tensors on all GPUs; 0 as long as no network has imported PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    cards = range(torch.cuda.device_count())
    return float(sum(torch.cuda.memory_allocated(card) for card in cards))
