"""Servers on this machine: the real one, and a fake whose answers a test chooses."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import uvicorn

from esm2_features._cache.keys import SCHEMA
from esm2_features._checkpoints import open_checkpoint
from esm2_features.server.app import create_app
from esm2_features.server.settings import Settings

DIM, LAYERS = 192, 6
WORDS = ("mean", "bos", "eos", "max", "std", "parti")


@contextmanager
def served(**options: Any) -> Iterator[str]:
    """Run the real server, and yield its address."""
    options = {"models": {"mini": "mini"}, "devices": ("cpu",), "cache": None, **options}
    app = create_app(Settings(**options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Reply:
    """An answer: status, content, headers."""

    def __init__(
        self,
        status: int = 200,
        content: bytes = b"",
        media: str = "application/json",
        **headers: str,
    ) -> None:
        self.status, self.content, self.media = status, content, media
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refusal(status: int, code: str = "some_code", error: str = "No.", **facts: Any) -> Reply:
    """An error as the real server writes it; facts with a capital letter are headers."""
    headers = {key: facts.pop(key) for key in list(facts) if key[0].isupper()}
    body = {"error": error, "code": code, "status": status, **facts}
    return Reply(status, json.dumps(body).encode(), **headers)


def vector(item: dict[str, str], layer: int, word: str) -> np.ndarray:
    """The vector that the fake server returns for a sequence: random, but always the same."""
    seed = sum(map(ord, item["sequence"] + item.get("region", ""))) + 97 * layer
    return np.random.default_rng(seed + WORDS.index(word)).random(DIM, np.float32)


def vectors_of(body: dict[str, Any], **about: Any) -> Reply:
    """The answer of a server of this library."""
    params, items = body["params"], body["items"]
    arrays = {
        f"{word}_{layer}": np.stack([vector(item, layer, word) for item in items])
        for word in params["include"]
        for layer in params["repr_layers"]
    }
    file = io.BytesIO()
    np.savez(file, **{**ABOUT, **about, **arrays})
    return Reply(200, file.getvalue(), "application/x-npz")


ABOUT = {
    "checkpoint": open_checkpoint("mini").identity,
    "precision": "float32",
    "schema": str(SCHEMA),
}
STATED: dict[str, Any] = {
    "server": "esm2-features",
    "schema": SCHEMA,
    "precision": "float32",
    "max_items": 2,
    "max_answer_bytes": 1 << 28,
    "timeout": 600.0,
    "models": [{"model": "mini", "name": "mini", "checkpoint": ABOUT["checkpoint"]}],
}


class Fake:
    """A server that returns the given answers, and records the requests.

    Attributes
    ----------
    looks : dict of str to Reply
        Answers to GET, by address.
    script : list
        Answers to one POST after the other, or functions from a body to an answer; None closes the
        connection. When it is empty, the answers are those of a real server.
    asked : list of dict
        Bodies of the requests.
    headers : list of dict
        Headers of the requests.
    """

    def __init__(self) -> None:
        self.looks: dict[str, Reply] = {}
        self.script: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[dict[str, Any]], Reply | None] = vectors_of
        self.state(**STATED)
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.headers.append(dict(self.headers))
                self.send(fake.looks.get(self.path, refusal(404)))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.headers.append({**self.headers, "path": self.path})
                    fake.asked.append(body)
                    step = fake.script.pop(0) if fake.script else fake.answer
                self.send(step(body) if callable(step) else step)

            def send(self, reply: Reply | None) -> None:
                if reply is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.media)
                if "Content-Length" not in reply.headers:
                    self.send_header("Content-Length", str(len(reply.content)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.content)
                self.close_connection = "Content-Length" in reply.headers

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def state(self, **facts: Any) -> None:
        """Change what the server states about itself."""
        stated = {**STATED, **facts}
        self.looks["/api/v3/models/"] = Reply(200, json.dumps(stated).encode())

    @property
    def sequences(self) -> list[str]:
        """The sequences of all requests, in their order."""
        return [item["sequence"] for body in self.asked for item in body["items"]]


@contextmanager
def faked() -> Iterator[Fake]:
    """Run a fake server."""
    fake = Fake()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        thread.join()
        fake.server.server_close()
