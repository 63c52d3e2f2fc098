"""Limits of what a client may send, and how often."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable

from fastapi import Request

from esm2_features.server.errors import ApiError

_BODY_SECONDS = 60.0
_CLIENTS = 10_000
"""Clients whose rates are remembered."""
_WINDOW_BITS = {"identity": 0, "gzip": 31, "x-gzip": 31, "deflate": 15}
"""What zlib needs to know about each encoding; 0 for what is not compressed."""


async def read_json_body(request: Request, limit: int) -> bytes:
    """Read a body of JSON, which may be chunked and compressed; stop as soon as it is too large."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A page of another site can only send other types without a preflight request.
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError("unsupported_media_type")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise ApiError("body_too_large", most=limit)
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read(request, limit)
    except TimeoutError:
        raise ApiError("body_timeout", seconds=_BODY_SECONDS) from None


async def _read(request: Request, limit: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if encoding not in _WINDOW_BITS:
        raise ApiError("unsupported_encoding")
    bits = _WINDOW_BITS[encoding]
    decompressor = zlib.decompressobj(bits) if bits else None
    parts: list[bytes] = []
    received = size = 0
    async for chunk in request.stream():
        received += len(chunk)
        part = chunk
        if decompressor is not None:
            try:
                # A byte more than allowed shows that the body is too large; there is no need to
                # decompress the rest of it.
                part = decompressor.decompress(chunk, limit - size + 1)
            except zlib.error:
                raise ApiError("invalid_body") from None
            if decompressor.unused_data:
                raise ApiError("invalid_body")  # there are bytes behind the end
        size += len(part)
        if max(received, size) > limit:
            raise ApiError("body_too_large", most=limit)
        parts.append(part)
    if decompressor is not None and not decompressor.eof:
        raise ApiError("invalid_body")
    return b"".join(parts)


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
