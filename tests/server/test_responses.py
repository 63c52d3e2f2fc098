"""Answers in parts: what clients that read, and those that do not, get."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.requests import ClientDisconnect

from esm2_features.server import responses
from esm2_features.server.responses import StreamedResponse, as_json, json_parts


def respond(parts: Iterator[bytes], send) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(1) as writer:
            response = StreamedResponse(parts, "application/json", writer)
            await response.prepare()
            await response({}, None, send)

    asyncio.run(run())


@pytest.mark.parametrize("sizes", [[], [10], [700_000, 0, 10], [1 << 18], [1 << 19], [1] * 1000])
def test_all_parts_are_sent_in_pieces(sizes):
    sent = []

    async def send(message):
        sent.append(message)

    parts = [bytes([i % 256]) * size for i, size in enumerate(sizes)]
    respond(iter(parts), send)
    start, *pieces, end = sent
    headers = dict(start["headers"])
    # The length is known where one piece is all.
    known = None if sum(sizes) > 1 << 18 else str(sum(sizes)).encode()
    assert headers.get(b"content-length") == known
    assert headers[b"content-type"] == b"application/json"
    assert b"".join(piece["body"] for piece in pieces) == b"".join(parts)
    assert max((len(piece["body"]) for piece in pieces), default=0) <= 1 << 18
    assert all(piece["more_body"] for piece in pieces)
    assert not end.get("more_body")


def test_a_client_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(responses, "_SEND_SECONDS", 0.01)
    monkeypatch.setattr(responses, "_SLOWEST", 1 << 30)
    taken = []

    async def send(message):
        if message["type"] == "http.response.body":
            taken.append(len(message["body"]))
            if len(taken) > 1:
                await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        respond(iter([b"a" * 1_000_000]), send)
    assert len(taken) == 2


@pytest.mark.parametrize("shape", [(3,), (20_000,), (1, 40_000), (300, 200), (5, 2, 9000)])
def test_arrays_in_parts_are_the_json_of_the_whole(shape):
    array = np.random.default_rng(0).random(shape, np.float32)
    value = {"a": [{"layer": 1, "x": array}, {}], "b": {"1": array}, "c": [], "d": {}, "e": 1.5}
    parts = list(json_parts(value))
    assert b"".join(parts) == as_json(value)
    assert json.loads(b"".join(parts))["e"] == 1.5
    if array.ndim > 1 and len(array) > 1:
        assert max(map(len, parts)) < len(as_json(array))
