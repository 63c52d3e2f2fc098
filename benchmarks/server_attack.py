"""The server under attack: what another client waits for, and the server's memory.

One client attacks a server of `mini` in every way at once: bodies of 16 MB out of a few kilobytes,
regions of 300,000 parts, large requests whose answers are read or not, requests of ever new shapes,
and connections that never end a head or a body. Another client asks for ``/healthz`` and for the
vector of one new sequence ten times a second, each over a new connection.

    python -m benchmarks.server_attack                 a minute
    python -m benchmarks.server_attack --minutes 10    with the memory by the minute

Never here: an attack from many addresses, which is for a proxy or firewall to bear.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.client
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe
from benchmarks.serving import said, sequences
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features.server.tokens import new_token

_ENCODE = "/api/v3/mini/encode/"
_INTERVAL = 0.1
_LAYERS = list(range(7))

# ------------------------------------------------------------------ the client that attacks


def _request(token: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"POST {_ENCODE} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Token {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _protein(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(CANONICAL_RESIDUES, k=length))


def _large(rng: random.Random) -> bytes:
    """Return a body of a new shape, with an answer of up to 170 MB of JSON."""
    n, length = rng.randint(4, 32), rng.randint(100, 1000)
    items = [{"sequence": _protein(rng, length - i)} for i in range(n)]
    include = rng.choice(["per_token", "attentions", "logits", "mean"])
    layers = rng.sample(_LAYERS, rng.randint(1, 3))
    params = {"include": [include], "repr_layers": layers}
    return json.dumps({"items": items, "params": params}).encode()


async def _send(port: int, content: bytes, *, reads: bool = True) -> None:
    """Send something, and read the answer, or wait until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    try:
        writer.write(content)
        await writer.drain()
        while reads and await reader.read(1 << 20):
            pass
        if not reads:
            await asyncio.sleep(60)
    finally:
        writer.close()


async def _attack(port: int, token: str) -> None:
    rng = random.Random(0)
    gzipped = "Content-Encoding: gzip"
    right = b'{"items":[' + b",".join([b'{"sequence":"MKV"}'] * 800_000) + b"]}"
    bombs = [
        _request(token, gzip.compress(body), gzipped)
        for body in (
            b'{"items":[' + b"1," * 8_000_000 + b"1]}",
            b'{"items":[{"sequence":"' + b"A" * 16_000_000 + b'"}]}',
            right,
        )
    ]
    bombs += [_request(token, right)]
    parts = json.dumps({"items": [{"sequence": "MKV", "region": ",".join(["0:2"] * 300_000)}]})
    regions = _request(token, parts.encode())

    def large() -> bytes:
        return _request(token, _large(rng))

    def half() -> bytes:
        whole = _request(token, b'{"items"', length=10**7)
        return whole[: rng.choice([0, 10, 100, len(whole)])]

    async def repeat(make: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            with suppress(OSError):
                await make()
            await asyncio.sleep(pause)

    endless = itertools.cycle(bombs)
    attacks: list[tuple[int, Callable[[], Awaitable[None]]]] = [
        (4, lambda: _send(port, next(endless))),
        (2, lambda: _send(port, regions)),
        (20, lambda: _send(port, large())),
        (8, lambda: _send(port, large(), reads=False)),
        (150, lambda: _send(port, half(), reads=False)),
    ]
    await asyncio.gather(*(repeat(make, 0.2) for n, make in attacks for _ in range(n)))


# ------------------------------------------------------------------ the server and its other client


@contextmanager
def _server(folder: Path, *options: str) -> Iterator[tuple[int, str, str, psutil.Process]]:
    """Run a server, and yield its port, the tokens of two clients, and its process."""
    path = folder / "tokens.txt"
    tokens = [new_token(path, name) for name in ("attacker", "other")]
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = "import sys; from esm2_features.cli import main; main(sys.argv[1:])"
    words = ["serve", "--model", "mini", "--device", "cpu", "--cache", "none", "--rate", "none"]
    words += ["--tokens", str(path), "--port", str(port), *options]
    with subprocess.Popen(
        [sys.executable, "-c", command, *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            for _ in range(600):
                time.sleep(0.1)
                with suppress(OSError):
                    _ask(port, tokens[1], "MKV")
                    break
            yield port, *tokens, psutil.Process(process.pid)
        finally:
            process.terminate()


def _ask(port: int, token: str, sequence: str | None) -> float:
    """Ask for the vector of a sequence, or else for ``/healthz``; return the seconds it took."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        if sequence is None:
            connection.request("GET", "/healthz")
        else:
            headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
            body = json.dumps({"items": [{"sequence": sequence}]})
            connection.request("POST", _ENCODE, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {text[:200]!r}")
    finally:
        connection.close()
    return time.perf_counter() - start


def _statuses(port: int, token: str) -> dict[str, int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics", headers={"Authorization": f"Token {token}"})
    text = connection.getresponse().read().decode()
    connection.close()
    lines = re.findall(r'requests_total\{.*status="(\d+)"\} ([0-9.]+)', text)
    counts: Counter[str] = Counter()
    for status, n in lines:
        counts[status] += int(float(n))
    return dict(counts)


def attacked(seconds: float, *options: str) -> dict[str, Any]:
    """Attack a server for some time.

    Parameters
    ----------
    seconds : float
    *options : str
        Of `esm2-features serve`.

    Returns
    -------
    found : dict
        Times of ``healthz`` and of ``one sequence`` in ms; ``resident_MB`` before the attack, and
        the largest and the mean of each minute; the number of ``answers`` by status; ``errors`` of
        the other client.
    """
    taken: dict[str, list[float]] = {"healthz": [], "one sequence": []}
    errors: list[str] = []
    sizes: list[list[int]] = []
    is_over = threading.Event()

    def probe(name: str, some: Iterator[str | None]) -> None:
        while not is_over.wait(_INTERVAL):
            try:
                taken[name].append(_ask(port, other, next(some)))
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                errors.append(f"{name}: {error!r}")

    with tempfile.TemporaryDirectory() as folder:  # noqa: SIM117
        with _server(Path(folder), *options) as (port, attacker, other, process):
            for _ in range(2):  # the network's own memory at its largest
                asyncio.run(_send(port, _request(other, _large(random.Random(1)))))
            before = process.memory_info().rss >> 20
            probes = [
                threading.Thread(target=probe, args=("healthz", itertools.repeat(None))),
                threading.Thread(target=probe, args=("one sequence", sequences(3))),
            ]
            attack = [sys.executable, "-m", "benchmarks.server_attack", "--attack", str(port)]
            with subprocess.Popen(attack, stdin=subprocess.PIPE, text=True) as attacking:
                assert attacking.stdin is not None
                attacking.stdin.write(attacker)
                attacking.stdin.close()
                start = time.monotonic()
                for thread in probes:
                    thread.start()
                while (passed := time.monotonic() - start) < seconds:
                    if passed // 60 >= len(sizes):
                        sizes.append([])
                    sizes[-1].append(process.memory_info().rss >> 20)
                    time.sleep(0.1)
                is_over.set()
                for thread in probes:
                    thread.join()
                assert attacking.poll() is None, "the attack has ended"
                attacking.terminate()
            statuses = _statuses(port, other)
    return {
        **{
            name: {**said(some, seconds), "max_ms": 1000 * max(some)}
            for name, some in taken.items()
        },
        "resident_MB": {
            "before": before,
            "largest": [max(minute) for minute in sizes],
            "mean": [sum(minute) // len(minute) for minute in sizes],
        },
        "answers": statuses,
        "errors": errors,
    }


def main() -> None:
    """Attack, and print a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--attack", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        asyncio.run(_attack(given.attack, sys.stdin.read()))
    found = attacked(60 * given.minutes)
    print(json.dumps({"machine": describe(), "load": os.getloadavg()[0], **found}, indent=1))


if __name__ == "__main__":
    main()
