"""The server under load, next to the same engine called in process.

Clients send one sequence in each request, one request after the other, and wait for the answer.
Every sequence is new, and nothing is cached, so that what is measured is the way to the network and
back. The clients' process shares the machine with the server.

    python -m benchmarks.serving
    python -m benchmarks.serving --models mini,t12_35M --clients 1,8,64 --seconds 15
    python -m benchmarks.serving --minutes 5          the server's memory under load, with a cache

Never here: what the network takes, which other benchmarks measure.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe
from benchmarks.workloads import write_checkpoint
from esm2_features import Engine
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES

_UNBATCHED = ("--batch-tokens", "1", "--wait", "0")
_LENGTHS = (10, 200)


def sequences(seed: int) -> Iterator[str]:
    """Draw random sequences without end, of lengths from peptides to domains."""
    rng = random.Random(seed)
    while True:
        yield "".join(rng.choices(CANONICAL_RESIDUES, k=rng.randint(*_LENGTHS)))


@contextmanager
def serving(model: str, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server, and wait until it is ready and its model is loaded.

    Parameters
    ----------
    model : str
        As ``--model`` of `esm2-features serve`, called ``m``.
    *options : str

    Yields
    ------
    port : int
    process : psutil.Process
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    command = "import sys; from esm2_features.cli import main; main(sys.argv[1:])"
    words = ["serve", "--model", f"m={model}", "--device", "cpu", "--port", str(port), *options]
    with subprocess.Popen(
        [sys.executable, "-c", command, *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            for _ in range(600):
                time.sleep(0.1)
                try:
                    asyncio.run(_clients(port, 1, seconds=0.1, seed=0))
                    break
                except OSError:
                    continue
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()


async def _client(port: int, some: Iterator[str], until: float, taken: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    for sequence in some:
        begun = time.perf_counter()
        if begun > until:
            break
        body = json.dumps({"items": [{"sequence": sequence}]}).encode()
        writer.write(
            f"POST /api/v3/m/encode/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(size)
        taken.append(time.perf_counter() - begun)
    writer.close()


async def _clients(port: int, count: int, *, seconds: float, seed: int) -> list[float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(
        *(_client(port, sequences(1000 * seed + i), until, taken) for i in range(count))
    )
    return taken


def said(taken: list[float], seconds: float) -> dict[str, float]:
    """Sum up what requests have taken: requests per second, percentiles in milliseconds."""
    ordered = sorted(taken)
    return {
        "per_second": round(len(taken) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1),
    }


def in_process(checkpoint: str, seconds: float) -> dict[str, dict[str, float]]:
    """Call the engine without a server: one sequence at a time, and 64 at a time."""
    engine = Engine(checkpoint, device="cpu", cache=None)
    engine.embed(["MKTAYIAKQR"])
    found = {}
    for count in (1, 64):
        some, taken = sequences(7), []
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            before = time.perf_counter()
            engine.embed(list(itertools.islice(some, count)))
            taken += [time.perf_counter() - before] * count
        found[f"in process, {count} at a time"] = said(taken, time.perf_counter() - begun)
    return found


def load(
    models: list[str], clients: list[int], seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """Measure each model: in process, and served with batching and without."""
    records = []
    for model in models:
        checkpoint = "mini" if model == "mini" else str(write_checkpoint(model, folder))
        found: dict[str, Any] = in_process(checkpoint, seconds)
        for word, options in (("batching", ()), ("no batching", _UNBATCHED)):
            with serving(checkpoint, "--cache", "none", *options) as (port, _):
                for count in clients:
                    begun = time.perf_counter()
                    taken = asyncio.run(_clients(port, count, seconds=seconds, seed=count))
                    name = f"{word}, {count} client{'s' * (count > 1)}"
                    found[name] = said(taken, time.perf_counter() - begun)
        for name, numbers in found.items():
            print(
                f"{model:9} {name:25} {numbers['per_second']:8.1f} /s   "
                f"p50 {numbers['p50_ms']:8.1f} ms   p99 {numbers['p99_ms']:8.1f} ms",
                flush=True,
            )
        records.append({"model": model, "found": found})
    return records


def memory(minutes: float) -> dict[str, Any]:
    """Watch the memory of a server of `mini` with a cache, under eight clients."""
    sizes: list[float] = []

    async def watched(port: int, process: psutil.Process) -> list[float]:
        async def watch() -> None:
            while True:
                sizes.append(process.memory_info().rss / 1e6)
                await asyncio.sleep(60 * minutes / 20)

        watching = asyncio.create_task(watch())
        taken = await _clients(port, 8, seconds=60 * minutes, seed=5)
        watching.cancel()
        return taken

    with tempfile.TemporaryDirectory() as cache, serving("mini", "--cache", cache) as (port, one):
        taken = asyncio.run(watched(port, one))
    print(f"{len(taken)} requests in {minutes:g} min; resident MB: {[round(s) for s in sizes]}")
    return {"requests": len(taken), "minutes": minutes, "resident_MB": [round(s) for s in sizes]}


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="mini,t12_35M")
    parser.add_argument("--clients", default="1,8,64")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--minutes", type=float, help="watch the memory for so long instead")
    given = parser.parse_args()
    result: dict[str, Any] = {"machine": describe(), "load": os.getloadavg()[0]}
    if given.minutes:
        result["memory"] = memory(given.minutes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            clients = [int(count) for count in given.clients.split(",")]
            models = given.models.split(",")
            result["records"] = load(models, clients, given.seconds, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
