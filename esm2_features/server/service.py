"""`FeatureService`: answers requests for features, with the models and the queue of a server."""

import asyncio
import threading
import time
from collections import ChainMap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from esm2_features._cache.keys import SCHEMA
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL, ModelCard, slug
from esm2_features.server.errors import ApiError, api_error_of
from esm2_features.server.limits import read_json_body
from esm2_features.server.memory import Claim, MemoryBudget
from esm2_features.server.metrics import Metrics
from esm2_features.server.models import LoadedModels
from esm2_features.server.queue import RequestQueue
from esm2_features.server.requests import Action, ApiVersion, FeatureRequest, read_request
from esm2_features.server.responses import StreamedResponse, by_sequence, media_type, write
from esm2_features.server.settings import Settings

_BATCH_SECONDS = 0.2
"""Seconds that a batch may take, so that other clients need not wait for longer."""
CLOSE_SECONDS = 2
_READ_AT_ONCE = 1 << 16
"""Bytes of a body that is read without a thread."""
_LARGE_ANSWER = 1 << 26


class FeatureService:
    """Answers requests for features: the models, queue and counters of one server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        # Opening them reads no weights.
        self.checkpoints = {name: open_checkpoint(src) for name, src in settings.models.items()}
        self.devices = [LoadedModels(settings, name, self.metrics) for name in settings.devices]
        self.memory = MemoryBudget(settings.max_memory_bytes)
        self.queue: RequestQueue | None = None
        # One thread reads large bodies and writes answers, so that the event loop stays free.
        self._thread = ThreadPoolExecutor(1, "bodies")

    def start(self) -> None:
        self.queue = RequestQueue(
            [models.compute for models in self.devices],
            budget=self.settings.batch_tokens,
            seconds=_BATCH_SECONDS,
            wait=self.settings.wait,
            max_waiting=self.settings.max_waiting,
            metrics=self.metrics,
        )
        self.memory.on_release = self._released

    def _released(self, n: int) -> None:
        """Start what has been waiting for memory; give that of a large answer to the system."""
        if self.queue is not None:
            self.queue.wake()
        if n >= _LARGE_ANSWER:
            threading.Thread(target=_trim, daemon=True).start()

    def close(self) -> None:
        """Finish what is waiting, and end the threads."""
        if self.queue is not None:
            self.queue.close(CLOSE_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def find(self, model: str) -> str:
        """Return the name under which a model is served; raise ApiError if it is not."""
        name = self.settings.find(model)
        if name is None:
            raise ApiError("unknown_model")
        return name

    def identity(self, name: str) -> str | None:
        """Return the digest of a model's weights, or None if it is not known yet."""
        checkpoint = self.checkpoints[name]
        if isinstance(checkpoint.source, ModelCard) or checkpoint.name == EMBEDDED_MODEL:
            return checkpoint.identity
        # That of other files is known once they have been read.
        return ChainMap(*(models.identities for models in self.devices)).get(name)

    def in_memory(self) -> set[str]:
        """Return the models that are in memory, on any device."""
        return {name for models in self.devices for name in models.in_memory}

    async def answer(
        self, request: Request, version: ApiVersion, action: Action, model: str
    ) -> Response:
        """Read a request, wait until it is computed, and write the results."""
        deadline = time.monotonic() + self.settings.timeout
        name = self.find(model)
        try:
            claim: Claim = request.scope["claim"]
            content = await read_json_body(request, self.settings.max_body_bytes, claim)
            read = partial(
                read_request,
                content,
                version=version,
                action=action,
                model=name,
                shape=self.checkpoints[name].architecture,
                settings=self.settings,
            )
            if len(content) <= _READ_AT_ONCE:
                wanted = read()
            else:
                loop = asyncio.get_running_loop()
                wanted = await loop.run_in_executor(self._thread, read)
            if not claim.fits(wanted.n_bytes):
                raise ApiError(
                    "needs_memory",
                    need=(claim.n_held + wanted.n_bytes) / 1e6,
                    budget=self.memory.most / 1e6,
                    most=self.memory.most_of_client / 1e6,
                )
            media = media_type(request.headers.get("accept"))
            results = by_sequence(wanted, await self._computed(request, wanted, deadline))
            about = {
                "checkpoint": self.identity(name) or "",
                "precision": self.settings.precision,
                "schema": str(SCHEMA),
            }
            parts = write(media, version, wanted, results, about)
            response = StreamedResponse(parts, media, self._thread)
            await response.prepare()
            return response
        except Exception as error:
            raise api_error_of(error, model=slug(name)) from error

    async def _computed(
        self, request: Request, wanted: FeatureRequest, deadline: float
    ) -> list[list[Any]]:
        """Wait for the results; drop the request when time is up or the client is gone."""
        if self.queue is None:
            raise ApiError("starting", retry_after=1)
        client = request.scope.get("client_name", "")
        claim = request.scope["claim"]
        futures = self.queue.submit(wanted, deadline=deadline, client=client, claim=claim)
        results: asyncio.Future[Any] = asyncio.gather(*map(asyncio.wrap_future, futures))
        # asyncio logs exceptions that nobody has retrieved.
        results.add_done_callback(lambda done: done.cancelled() or done.exception())
        gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
        seconds = max(0.0, deadline - time.monotonic())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait([results, gone], timeout=seconds, return_when=first)
            if results.done() and not results.cancelled():
                return list(results.result())
            if gone.done():
                raise ApiError("client_gone")
            raise ApiError("timeout", seconds=self.settings.timeout)
        finally:
            gone.cancel()
            results.cancel()
            for future in futures:
                future.cancel()


def _trim() -> None:
    import torch

    from esm2_features._model.devices import release_memory

    release_memory(torch.device("cpu"))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
