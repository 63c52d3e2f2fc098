"""The server over a real socket: the bytes that other programs send, and the service's own SDK."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from esm2_features import Engine
from esm2_features.server.app import create_app
from esm2_features.server.models import LoadedModels
from esm2_features.server.queue import RequestQueue
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import new_token

SEQUENCE = "GIGAVLKVLTTGLPALISWIKRKRQQ"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket that accepts connections, even before the server runs."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture
def token(tmp_path: Path) -> str:
    return new_token(tmp_path / "tokens", "tests")


@pytest.fixture
def running(
    tiny_checkpoint: Path, tmp_path: Path, token: str, listening: socket.socket
) -> Iterator[uvicorn.Server]:
    """A server on this socket."""
    app = create_app(
        Settings(
            models={"tiny": str(tiny_checkpoint)},
            devices=("cpu",),
            cache=None,
            tokens=tmp_path / "tokens",
            max_items=3,
        )
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield server
    server.should_exit = True
    thread.join()


@pytest.fixture
def address(running: uvicorn.Server, listening: socket.socket, token: str) -> tuple[int, str]:
    """Its port, and a token for it."""
    return listening.getsockname()[1], token


def exchange(port: int, *sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes unchanged, and read one answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        file = connection.makefile("rb")
        for i, part in enumerate(sent):
            connection.sendall(part)
            if i + 1 < len(sent):
                assert file.readline() == b"HTTP/1.1 100 Continue\r\n"
                while file.readline() != b"\r\n":
                    pass
        status = int(file.readline().split()[1])
        headers = {}
        while (line := file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, file.read(int(headers["content-length"]))


def test_curl_as_documented(address):
    port, token = address
    body = b'{\n  "items": [\n    {\n      "sequence": "%s"\n    }\n  ]\n}' % SEQUENCE.encode()
    head = (
        f"POST /api/v3/tiny/encode/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "User-Agent: curl/8.5.0\r\nAccept: */*\r\n"
        f"Authorization: Token {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    status, headers, answer = exchange(port, head + body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(answer)["results"][0]["sequence_index"] == 0


def test_curl_with_a_large_body_expects_100_continue(address):
    port, token = address
    body = b'{"instances": [{"data": {"text": "%s"}}]}' % SEQUENCE.encode()
    head = (
        f"POST /api/v1/models/tiny/predict/ HTTP/1.1\r\nHost: localhost:{port}\r\n"
        "User-Agent: curl/7.81.0\r\nAccept: */*\r\n"
        f"Authorization: Token {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    ).encode()
    status, _, answer = exchange(port, head, body)
    assert status == 200
    assert json.loads(answer)["predictions"][0]["name"] == "0"


def test_curl_with_a_body_from_a_pipe_sends_chunks(address):
    port, token = address
    body = b'{"items": [{"sequence": "%s"}]}' % SEQUENCE.encode()
    head = (
        f"POST /api/v3/tiny/log_prob/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "User-Agent: curl/8.5.0\r\nAccept: */*\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n\r\n"
    ).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:], b""))
    status, _, answer = exchange(port, head + chunks)
    assert status == 200
    assert json.loads(answer)["results"][0]["log_prob"] < 0


def test_httr_as_documented(address):
    # POST(url, add_headers(.headers = headers), body = body, encode = "json")
    port, token = address
    body = b'{"items":[{"sequence":"MKT<mask>IALSYIFCLVFA"},{"sequence":"VLSP<mask>KAAW"}]}'
    head = (
        f"POST /api/v3/tiny/predict/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "User-Agent: libcurl/8.5.0 r-curl/5.2.1 httr/1.4.7\r\n"
        "Accept-Encoding: deflate, gzip, br, zstd\r\n"
        "Accept: application/json, text/xml, application/xml, */*\r\n"
        f"Content-Type: application/json\r\nAuthorization: Token {token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    status, headers, answer = exchange(port, head + body)
    assert (status, headers["content-type"]) == (200, "application/json")
    first, second = json.loads(answer)["results"]
    assert first["sequence_tokens"][3] == "<mask>"
    assert np.shape(second["logits"]) == (9, 20)


def test_sdk_of_version_1(address):
    # What biolmai 0.1.5 sends through aiohttp, for ESM2Embeddings().transform([...]).
    port, token = address
    body = b'{"instances": [{"data": {"text": "%s"}}]}' % SEQUENCE.encode()
    head = (
        f"POST /api/v1/models/tiny/transform/ HTTP/1.1\r\nHost: localhost:{port}\r\n"
        f"Authorization: Token {token}\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
        "User-Agent: Python/3.11 aiohttp/3.14.5\r\n"
        f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
    ).encode()
    status, headers, answer = exchange(port, head + body)
    # It reads JSON only under this type, and takes `error` out of what is no success.
    assert (status, headers["content-type"]) == (200, "application/json")
    assert list(json.loads(answer)["predictions"][0]["mean_representations"]) == ["2"]


def test_a_compressed_body_over_the_socket(address):
    port, token = address
    body = gzip.compress(b'{"items": [{"sequence": "%s"}]}' % SEQUENCE.encode())
    head = (
        f"POST /api/v3/tiny/encode/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Token {token}\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    assert exchange(port, head + body)[0] == 200


def test_a_content_length_that_is_too_large_is_an_error_before_the_body(address):
    port, token = address
    head = (
        f"POST /api/v3/tiny/encode/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Token {token}\r\nContent-Type: application/json\r\n"
        "Content-Length: 1000000000000\r\n\r\n"
    ).encode()
    status, _, answer = exchange(port, head)
    assert (status, json.loads(answer)["code"]) == (413, "body_too_large")


_SDK = """
import json, sys
from biolmai import Model, biolm
sequences = json.load(sys.stdin)
found = {
    "encode": biolm(entity="tiny", action="encode", type="sequence", items=sequences),
    "everything": Model("tiny").encode(
        type="sequence",
        items=sequences[0],
        params={"include": ["mean", "bos", "per_token", "contacts"], "repr_layers": [0, -1]},
    ),
    "predict": Model("tiny").predict(type="sequence", items=["MKT<mask>IALSYIFCLVFA"]),
    "errors": biolm(
        entity="tiny", action="encode", type="sequence", items=[sequences[0], "MK1"]
    ),
}
json.dump(found, sys.stdout)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("biolmai") is None, reason="the hosted service's SDK is not installed"
)
def test_the_service_s_own_sdk(address, tiny_checkpoint, tmp_path):
    port, token = address
    environment = {
        **os.environ,
        "BIOLMAI_BASE_API_URL": f"http://127.0.0.1:{port}/api/v3",
        "BIOLMAI_TOKEN": token,
        "BIOLMAI_THREADS": "1",  # it refuses its own default where there are few cores
        "HOME": str(tmp_path),
    }
    # More than fit into one request, so that it asks the schema and sends several; and long enough
    # for it to compress them.
    sequences = [SEQUENCE[i:] + SEQUENCE[:i] for i in range(8)]
    done = subprocess.run(
        [sys.executable, "-c", _SDK],
        input=json.dumps(sequences),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    vectors = [result["embeddings"][0]["embedding"] for result in found["encode"]]
    expected = Engine(tiny_checkpoint, device="cpu", cache=None).embed(sequences)
    np.testing.assert_array_equal(np.float32(vectors), expected)
    assert [part["layer"] for part in found["everything"]["bos_embeddings"]] == [0, 2]
    assert found["predict"]["sequence_tokens"][3] == "<mask>"
    good, bad = found["errors"]
    assert "embeddings" in good
    assert (bad["status_code"], bad["code"], bad["position"]) == (422, "invalid_sequence", 3)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Semaphore, threading.Event]]:
    """Say when the network is begun, and let it go on only when it is told to.

    To be asked for before the server, which looks its workers up when it starts.
    """
    begun, go_on = threading.Semaphore(0), threading.Event()
    compute = LoadedModels.compute

    def wait(self: LoadedModels, model: str, kind: Any, sequences: list[str]) -> Any:
        begun.release()
        assert go_on.wait(60)
        return compute(self, model, kind, sequences)

    monkeypatch.setattr(LoadedModels, "compute", wait)
    yield begun, go_on
    go_on.set()


def asking(port: int, token: str, action: str) -> bytes:
    body = b'{"items": [{"sequence": "%s"}]}' % SEQUENCE.encode()
    return (
        f"POST /api/v3/tiny/{action}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Token {token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def test_requests_of_clients_that_disconnect_are_not_computed(held, ran, monkeypatch, address):
    port, token = address
    begun, go_on = held
    dropped = threading.Event()
    submit = RequestQueue.submit

    def watch(self: RequestQueue, job: Any, **options: Any) -> Any:
        futures = submit(self, job, **options)
        if job.action == "log_prob":
            futures[0].add_done_callback(lambda _: dropped.set())
        return futures

    monkeypatch.setattr(RequestQueue, "submit", watch)
    with socket.create_connection(("127.0.0.1", port)) as first:
        first.sendall(asking(port, token, "encode"))
        assert begun.acquire(timeout=60)
        with socket.create_connection(("127.0.0.1", port)) as second:
            second.sendall(asking(port, token, "log_prob"))
        assert dropped.wait(60)
        go_on.set()
        assert first.recv(12) == b"HTTP/1.1 200"
    assert ran == [SEQUENCE]


def test_a_server_that_stops_answers_the_accepted_requests(held, address, running):
    port, token = address
    begun, go_on = held
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(asking(port, token, "encode"))
        assert begun.acquire(timeout=60)
        running.should_exit = True
        go_on.set()
        answer = connection.makefile("rb").read()  # until it closes
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"]}")


def test_a_client_that_leaves_within_its_body_is_no_error(address, caplog):
    port, token = address
    head = (
        f"POST /api/v3/tiny/encode/ HTTP/1.1\r\nHost: localhost:{port}\r\n"
        f"Authorization: Token {token}\r\nContent-Type: application/json\r\n"
        "Content-Length: 1000\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head + b'{"items": [')
    body = json.dumps({"items": [{"sequence": SEQUENCE}]}).encode()
    whole = head.replace(b"Content-Length: 1000", b"Content-Length: %d" % len(body)) + body
    assert exchange(port, whole)[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
