"""Answers in parts: what clients that read, and those that do not, get."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from esm2_features.server import responses
from esm2_features.server.responses import PartedResponse


def test_all_parts_are_sent_in_pieces():
    sent = []

    async def send(message):
        sent.append(message)

    parts = [b"a" * 700_000, b"", b"b" * 10]
    asyncio.run(PartedResponse(parts, "application/json")({}, None, send))
    start, *pieces, end = sent
    headers = dict(start["headers"])
    assert headers[b"content-length"] == b"700010"
    assert headers[b"content-type"] == b"application/json"
    assert b"".join(piece["body"] for piece in pieces) == b"".join(parts)
    assert max(len(piece["body"]) for piece in pieces) <= 1 << 18
    assert all(piece["more_body"] for piece in pieces)
    assert not end.get("more_body")


def test_a_client_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(responses, "_SEND_SECONDS", 0.01)
    taken = []

    async def send(message):
        if message["type"] == "http.response.body":
            taken.append(len(message["body"]))
            if len(taken) > 1:
                await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        asyncio.run(PartedResponse([b"a" * 1_000_000], "application/json")({}, None, send))
    assert len(taken) == 2
