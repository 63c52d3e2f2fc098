"""The counters of a server, for Prometheus."""

from __future__ import annotations

import sys
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        named: dict[str, Any] = {"namespace": "esm2_features", "registry": self._registry}
        self.requests = Counter("requests", "Requests", ["route", "status"], **named)
        text = "Seconds from a request's head to its answer"
        self.seconds = Histogram("request_seconds", text, ["route"], buckets=_SECONDS, **named)
        self.waiting = Gauge("queue_requests", "Requests in the queue", **named)
        self.waiting_tokens = Gauge("queue_tokens", "Tokens in the queue", **named)
        text = "Tokens of a batch, as a fraction of the budget"
        self.batch_fill = Histogram("batch_fill_ratio", text, buckets=_FILLS, **named)
        text = "Requests whose sequences share a batch"
        self.batch_requests = Histogram("batch_requests", text, buckets=_COUNTS, **named)
        self.tokens = Counter("tokens", "Tokens (residues + 2) of the answers", ["model"], **named)
        text = "Seconds in which workers computed"
        self.busy = Counter("busy_seconds", text, ["model"], **named)
        text = "Tokens per second of computation, a moving average"
        self.tokens_per_second = Gauge("tokens_per_second", text, **named)
        text = "Sequences by the source of their vectors: the network, or the cache and duplicates"
        self.sequences = Counter("sequences", text, ["model", "source"], **named)
        self.models = Gauge("model_in_memory", "Whether a model is in memory", ["model"], **named)
        memory = Gauge("gpu_memory_bytes", "GPU memory of tensors", **named)
        memory.set_function(_gpu_bytes)

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
