"""Limits of what a client may send, and how often."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from codecs import BOM_UTF8
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fastapi import Request

from esm2_features.server.errors import ApiError
from esm2_features.server.memory import Claim

BODY_SECONDS = 60.0
_DECOMPRESSED_AT_ONCE = 1 << 16
_COPIES = 4
"""Bytes of memory for each byte of a body, with what is read from it."""
_CLIENTS = 10_000
"""Clients whose rates are remembered."""
_WINDOW_BITS = {"identity": 0, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""What zlib needs to know about each encoding; 0 for what is not compressed."""


async def read_json_body(request: Request, limit: int, claim: Claim) -> bytes:
    """Read a body of JSON, which may be chunked and compressed; stop as soon as it is too large."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another site can only send other types without a preflight request.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError("unsupported_media_type")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise ApiError("body_too_large", most=limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = b"".join([part async for part in _parts(request, limit, claim)])
            return content.removeprefix(BOM_UTF8)
    except TimeoutError:
        raise ApiError("body_timeout", seconds=BODY_SECONDS) from None


async def _parts(request: Request, limit: int, claim: Claim) -> AsyncIterator[bytes]:
    """Decompress a body, little by little, so that other requests have their turns."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if encoding not in _WINDOW_BITS:
        raise ApiError("unsupported_encoding")
    bits = _WINDOW_BITS[encoding]
    decompressor = zlib.decompressobj(bits) if bits else None
    received = size = 0
    async for chunk in request.stream():
        received += len(chunk)
        for part in [chunk] if decompressor is None else _decompressed(decompressor, chunk):
            size += len(part)
            if max(received, size) > limit:
                raise ApiError("body_too_large", most=limit)
            if not claim.take(_COPIES * len(part)):
                text = "The memory for requests is in use. Try again later."
                raise ApiError("busy", text, retry_after=5)
            yield part
            await asyncio.sleep(0)
    if decompressor is not None and not decompressor.eof:
        raise ApiError("invalid_body")


def _decompressed(decompressor: Any, chunk: bytes) -> Iterator[bytes]:
    part = b" " * _DECOMPRESSED_AT_ONCE
    try:
        while chunk or len(part) == _DECOMPRESSED_AT_ONCE:  # there may be more
            part = decompressor.decompress(chunk, _DECOMPRESSED_AT_ONCE)
            chunk = decompressor.unconsumed_tail
            yield part
    except zlib.error:
        raise ApiError("invalid_body") from None
    if decompressor.unused_data:
        raise ApiError("invalid_body")  # there are bytes behind the end


class RateLimiter:
    """Token buckets: each client may send so many requests at once, and regains them with time."""

    def __init__(
        self, rate: tuple[int, float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds = rate
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests, at this time

    def take(self, client: str) -> None:
        """Count a request; raise ApiError if the client has none left."""
        now = self._clock()
        left, since = self._left.pop(client, (float(self._most), now))
        left = min(self._most, left + (now - since) * self._most / self._seconds)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)  # the client that has been away for longest
        if left < 1:
            raise ApiError(
                "too_many_requests",
                most=self._most,
                seconds=self._seconds,
                retry_after=math.ceil((1 - left) * self._seconds / self._most),
            )
