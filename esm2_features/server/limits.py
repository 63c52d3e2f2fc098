"""How much a client may send, and how often."""

from __future__ import annotations

import math
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator

from esm2_features.server.errors import ApiError

_AT_A_TIME = 1 << 16
_CLIENTS = 10_000
"""Clients whose rates are remembered."""


async def read_body(
    chunks: AsyncIterator[bytes], *, length: str | None, encoding: str | None, limit: int
) -> bytes:
    """Read a body that may come in chunks and compressed, and stop as soon as it is too large."""
    if length is not None and length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    kind = (encoding or "identity").strip().lower()
    if kind not in ("identity", "gzip", "x-gzip", "deflate"):
        raise ApiError(
            415,
            "unsupported_encoding",
            "The body's Content-Encoding is unknown here. Send it plain, or by gzip or deflate.",
        )
    packed = None if kind == "identity" else zlib.decompressobj(15 if kind == "deflate" else 31)
    parts: list[bytes] = []
    seen = size = 0
    async for chunk in chunks:
        seen += len(chunk)
        if seen > limit:
            raise _too_large(limit)
        for part in [chunk] if packed is None else _unpacked(packed, chunk):
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    if packed is not None and not packed.eof:
        raise _damaged()
    return b"".join(parts)


def _unpacked(packed: zlib._Decompress, chunk: bytes) -> Iterator[bytes]:
    """Unpack a little at a time, so that a small body never becomes a large one at once."""
    while True:
        if packed.eof:
            if chunk:
                raise _damaged()  # something stands behind the end
            return
        try:
            part = packed.decompress(chunk, _AT_A_TIME)
        except zlib.error:
            raise _damaged() from None
        yield part
        chunk = packed.unconsumed_tail or packed.unused_data
        if not chunk and len(part) < _AT_A_TIME:
            return


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"The body has more than {limit} bytes. Send fewer sequences at a time.",
    )


def _damaged() -> ApiError:
    return ApiError(400, "invalid_body", "The body is not what its Content-Encoding says.")


class RateLimiter:
    """How often each client may come: so many requests at once, and then as many in that time."""

    def __init__(
        self, rate: tuple[int, float], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds = rate
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count a request."""
        now = self._clock()
        left, since = self._left.pop(client, (float(self._most), now))
        left = min(self._most, left + (now - since) * self._most / self._seconds)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)  # who has not come for longest has most likely all
        if left < 1:
            raise ApiError(
                429,
                "too_many_requests",
                f"More than {self._most} requests in {self._seconds:g} s. Send more sequences in "
                "each, or come less often.",
                retry_after=math.ceil((1 - left) * self._seconds / self._most),
            )
