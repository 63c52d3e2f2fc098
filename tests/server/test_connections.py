"""Connections of clients that do not end their heads or bodies, do not read, or are too many."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from esm2_features.server import connections
from esm2_features.server.app import create_app
from esm2_features.server.connections import BoundedProtocol, bounded_protocol
from esm2_features.server.settings import Settings

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /api/v3/mini/encode/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
    b"Content-Type: application/json\r\n\r\n"
)
STEP = 0.15


@asynccontextmanager
async def serving(most: int = 100, **options: Any) -> AsyncIterator[int]:
    app = create_app(Settings(models={"mini": "mini"}, cache=None, **options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_level="error", ws="none", http=bounded_protocol(most))
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await task


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", STEP)
    monkeypatch.setattr(connections, "_LATEST_BODY", 2 * STEP)
    monkeypatch.setattr(connections, "_READ_SECONDS", STEP)
    monkeypatch.setattr(connections, "_CLOSE_SECONDS", STEP)


async def seconds_until_closed(port: int, *pieces: bytes) -> float:
    """Send the pieces, one after the other, and wait until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.monotonic()

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(STEP / 4)

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(30):
            while await reader.read(1 << 16):
                pass
    except ConnectionResetError:
        pass
    finally:
        sending.cancel()
        writer.close()
    return time.monotonic() - start


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [HEALTH[:20]],
        [HEALTH[i : i + 1] for i in range(len(HEALTH) - 1)],  # a byte at a time
        [HEALTH, HEALTH[:-1]],  # the second request of a connection
        [POST],
        [POST, *([b" "] * 60)],
        [POST.replace(b"/api/v3/mini/encode/", b"/nothing"), *([b" "] * 60)],  # nobody reads it
    ],
)
@pytest.mark.usefixtures("times")
def test_heads_and_bodies_have_their_time(pieces):
    async def run() -> float:
        async with serving() as port:
            return await seconds_until_closed(port, *pieces)

    assert STEP <= asyncio.run(run()) < 20 * STEP


@pytest.mark.usefixtures("times")
def test_a_connection_is_kept_between_requests():
    async def run() -> None:
        async with serving() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(HEALTH)
                assert b"200" in await reader.readuntil(b"}")
                await asyncio.sleep(2 * STEP)
            writer.close()

    asyncio.run(run())


@pytest.mark.usefixtures("times")
def test_a_client_that_sends_requests_and_reads_no_answers_is_cut_off():
    async def run() -> None:
        async with serving() as port:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setblocking(False)
                with pytest.raises(ConnectionError):
                    await asyncio.wait_for(_send_without_end(client), 30)

    asyncio.run(run())


async def _send_without_end(client: socket.socket) -> None:
    while True:
        many = HEALTH.replace(b"/healthz", b"/docs") * 1000
        await asyncio.get_running_loop().sock_sendall(client, many)


def test_too_many_connections_are_refused_and_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "last_log", 0.0)

    async def run() -> None:
        async with serving(most=16) as port:
            kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            for reader, writer in kept:
                writer.write(HEALTH)
                await reader.readuntil(b"}")
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert b"503" in await reader.read()
                writer.close()
            kept.pop()[1].close()
            await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEALTH)
            assert b"200" in await reader.readuntil(b"}")
            for _, one in [*kept, (reader, writer)]:
                one.close()

    asyncio.run(run())
    assert sum("Refused a connection" in record.message for record in caplog.records) == 1


def test_no_more_connections_than_the_system_lets_open(monkeypatch):
    resource = pytest.importorskip("resource", reason="limits are POSIX")
    limits = [(256, 900)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert bounded_protocol(1024).most == 900 - 640
    assert limits[-1] == (900, 900)
    limits.append((256, resource.RLIM_INFINITY))
    assert bounded_protocol(1024).most == 1024
    assert limits[-1] == (1664, resource.RLIM_INFINITY)
    limits.append((4096, 4096))
    assert bounded_protocol(1024).most == 1024
    assert limits[-1] == (4096, 4096)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.slow
def test_sigterm_ends_the_server_though_clients_do_not_read():
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = "import sys; from esm2_features.cli import main; main(sys.argv[1:])"
    words = ["serve", "--model", "mini", "--device", "cpu", "--port", str(port), "--grace", "3"]
    server = [sys.executable, "-c", command, *words, "--cache", "none"]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while b"running on" not in process.stderr.readline():
            assert process.poll() is None
        items = [{"sequence": "MK" * 500}] * 4
        include = {"include": ["per_token"], "repr_layers": list(range(7))}
        body = json.dumps({"items": items, "params": include}).encode()
        head = POST.replace(b"100", str(len(body)).encode())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head + body)
            assert client.recv(20).startswith(b"HTTP/1.1 200")
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert time.monotonic() - start < 4
