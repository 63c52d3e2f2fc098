"""Bodies in chunks of any size, plain or compressed, up to the limit and beyond."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from esm2_features.server.errors import ApiError
from esm2_features.server.limits import read_json_body
from esm2_features.server.memory import Claim, MemoryBudget

BODY = random.Random(0).randbytes(5000) + b"A" * 20_000
PACK = {"identity": bytes, "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
COMPRESSED = [name for name in PACK if name != "identity"]


def read(chunks: list[bytes], encoding: str, limit: int = len(BODY)) -> bytes:
    """Read a body that arrives in these chunks."""
    headers = {b"content-type": b"application/json", b"content-encoding": encoding.encode()}
    messages = _messages(chunks)
    request = Request({"type": "http", "headers": list(headers.items())}, messages.__anext__)
    claim = Claim(MemoryBudget(1 << 30), "")
    return asyncio.run(read_json_body(request, limit, claim))


async def _messages(chunks: list[bytes]) -> AsyncIterator[dict[str, Any]]:
    for chunk in chunks:
        yield {"type": "http.request", "body": chunk, "more_body": True}
    yield {"type": "http.request", "body": b"", "more_body": False}


def chunked(content: bytes, size: int) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("encoding", PACK)
def test_a_body_may_have_as_many_bytes_as_the_limit(encoding, size):
    chunks = chunked(PACK[encoding](BODY), size)
    assert read(chunks, encoding) == BODY
    with pytest.raises(ApiError) as error:
        read(chunks, encoding, len(BODY) - 1)
    assert error.value.code == "body_too_large"


@pytest.mark.parametrize("size", [7, 10**6])
@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_compressed_body_that_is_damaged_is_an_error(encoding, size):
    packed = PACK[encoding](BODY)
    for damaged in (packed[:-1], packed + b"x", b"x" + packed, packed[:40] + packed[60:], b""):
        with pytest.raises(ApiError) as error:
            read(chunked(damaged, size), encoding)
        assert error.value.code == "invalid_body"
    with pytest.raises(ApiError) as error:
        read([*chunked(packed, size), b"x"], encoding)
    assert error.value.code == "invalid_body"


@pytest.mark.parametrize("encoding", COMPRESSED)
def test_a_small_body_that_decompresses_to_a_large_one_is_an_error(encoding):
    bomb = PACK[encoding](b" " * 10**8)
    assert len(bomb) < 200_000
    with pytest.raises(ApiError) as error:
        read([bomb], encoding, 200_000)
    assert error.value.code == "body_too_large"
