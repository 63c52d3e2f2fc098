"""Downloads against hosts that cut, lie, ignore and refuse; all on the loopback interface."""

from __future__ import annotations

import hashlib
import http.server
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from checkpoints import bare_state, random_esm2, write_fair_esm

from esm2_features._checkpoints import Checkpoint
from esm2_features._checkpoints.catalogue import Architecture, ModelCard, RemoteFile
from esm2_features._checkpoints.download import obtain, own_folder
from esm2_features._files import sha256_of
from esm2_features.exceptions import CheckpointError, DownloadError

CONTENT = random.Random(0).randbytes(500_000)
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Host:
    """A server of one file, with the vices that a test gives it."""

    content: bytes = CONTENT
    status: int = 200
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes of the body before each hang-up
    promise: int | None = None  # Content-Length of whole answers, whatever the truth
    shifted: int = 0  # by how much a partial answer starts too early
    url: str = ""
    asked: list[str] = field(default_factory=list)  # the Range of each request
    arrived: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event | None = None  # answers wait for it


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        host: Host = self.server.host
        wanted = self.headers.get("Range", "")
        host.asked.append(wanted)
        host.arrived.set()
        if host.gate is not None:
            host.gate.wait()
        if host.status != 200:
            self.send_error(host.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        body, length = host.content, len(host.content)
        if start and host.ranges and start >= length:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{length}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if start and host.ranges:
            start -= host.shifted
            body = body[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{length - 1}/{length}")
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(host.promise or length))
        self.end_headers()
        self.wfile.write(body[: host.cuts.pop(0)] if host.cuts else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *args: None  # clients that hang up are part of the tests
    server.host = Host(url=f"http://127.0.0.1:{server.server_port}/models/tiny.pt")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.host
    if server.host.gate is not None:
        server.host.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("ESM2_FEATURES_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("ESM2_FEATURES_OFFLINE", raising=False)
    return tmp_path / "own" / "checkpoints"


def card_of(url: str, content: bytes = CONTENT) -> ModelCard:
    file = RemoteFile(url, hashlib.sha256(content).hexdigest(), len(content))
    return ModelCard("tiny", "0M", Architecture(2, 32, 4), weights=file, hf_repo="facebook/tiny")


def download(card: ModelCard) -> Path:
    return obtain(card, card.weights)


def assert_only(folder: Path, *names: str) -> None:
    """Apart from the lock, these files are in the folder and no others."""
    assert {it.name for it in folder.iterdir() if it.suffix != ".lock"} == set(names)


# ------------------------------------------------------------------ hosts that can be coped with


def test_file_is_fetched_once_and_announced(host, home, capsys):
    card = card_of(host.url)
    assert download(card) == home / "tiny.pt"
    assert (home / "tiny.pt").read_bytes() == CONTENT
    message = capsys.readouterr().err
    for fact in ("downloading tiny.pt", "500.0 kB", host.url, str(home / "tiny.pt")):
        assert fact in message
    assert download(card) == home / "tiny.pt"
    assert capsys.readouterr().err == ""
    assert host.asked == [""]
    assert_only(home, "tiny.pt")


def test_cut_transfer_is_resumed_where_it_broke(host, home):
    host.cuts = [200_000, 100_000]
    assert download(card_of(host.url)).read_bytes() == CONTENT
    first, second, third = host.asked
    assert first == ""
    resumed = [int(it.removeprefix("bytes=").removesuffix("-")) for it in (second, third)]
    assert 0 < resumed[0] <= 200_000 < resumed[1] + 100_000
    assert resumed[0] < resumed[1]
    assert_only(home, "tiny.pt")


def test_later_run_resumes_what_an_earlier_one_left(host, home, capsys):
    home.mkdir(parents=True)
    (home / "tiny.pt.part").write_bytes(CONTENT[:123_456])
    assert download(card_of(host.url)).read_bytes() == CONTENT
    assert host.asked == ["bytes=123456-"]
    assert "of which 123.5 kB are here already" in capsys.readouterr().err


def test_complete_part_is_not_fetched_again(host, home):
    home.mkdir(parents=True)
    (home / "tiny.pt.part").write_bytes(CONTENT)
    assert download(card_of(host.url)).read_bytes() == CONTENT
    assert host.asked == []


def test_host_that_ignores_ranges_sends_it_all_again(host, home):
    host.ranges = False
    host.cuts = [200_000]
    assert download(card_of(host.url)).read_bytes() == CONTENT
    assert len(host.asked) == 2
    assert host.asked[1].startswith("bytes=")


def test_host_that_answers_with_another_range_is_asked_for_all(host, home):
    host.cuts = [200_000]
    host.shifted = 10
    assert download(card_of(host.url)).read_bytes() == CONTENT
    assert host.asked[2] == ""


@pytest.mark.parametrize("promise", [len(CONTENT) // 2, 2 * len(CONTENT)])
def test_host_that_lies_about_the_length_is_not_believed(host, home, promise):
    host.promise = promise
    assert download(card_of(host.url)).read_bytes() == CONTENT
    assert_only(home, "tiny.pt")


def test_file_without_known_size_and_digest_is_fetched(host, home):
    host.cuts = [200_000]
    card = card_of(host.url)
    card = replace(card, weights=RemoteFile(host.url))
    assert download(card).read_bytes() == CONTENT


def test_part_of_unknown_size_that_is_complete_is_taken(host, home):
    home.mkdir(parents=True)
    (home / "tiny.pt.part").write_bytes(CONTENT)
    card = replace(card_of(host.url), weights=RemoteFile(host.url))
    assert download(card).read_bytes() == CONTENT
    assert host.asked == [f"bytes={len(CONTENT)}-"]


def test_checkpoint_loads_by_way_of_a_download(host, home, tmp_path):
    model = random_esm2()
    host.content = write_fair_esm(model, tmp_path / "release.pt").read_bytes()
    card = card_of(host.url, host.content)
    weights = Checkpoint("tiny", card.architecture, card).load()
    assert all(torch.equal(weights[name], it) for name, it in bare_state(model).items())


# ------------------------------------------------------------------ hosts that cannot


def test_host_that_keeps_cutting_leaves_a_part_to_resume(host, home):
    host.cuts = [70_000] * 5
    with pytest.raises(DownloadError, match=r"was cut 5 times.*run again to resume"):
        download(card_of(host.url))
    assert len(host.asked) == 5
    assert_only(home, "tiny.pt.part")
    assert CONTENT.startswith((home / "tiny.pt.part").read_bytes())
    assert download(card_of(host.url)).read_bytes() == CONTENT


@pytest.mark.parametrize("longer", [0, 1000])
def test_wrong_bytes_are_deleted(host, home, longer):
    host.content = b"x" * (len(CONTENT) + longer)
    with pytest.raises(DownloadError, match=r"is not tiny\.pt") as caught:
        download(card_of(host.url))
    assert (caught.value.path, caught.value.url) == (str(home / "tiny.pt"), host.url)
    assert card_of(host.url).weights.sha256 in str(caught.value)
    assert_only(home)


def test_page_of_a_proxy_is_recognised_and_deleted(host, home):
    host.content = b"<html>Please log in</html>"
    host.ranges = False
    with pytest.raises(DownloadError, match="gives 26 bytes instead of 500000"):
        download(card_of(host.url))
    assert_only(home)


def test_part_that_is_longer_than_the_file_is_dropped(host, home):
    home.mkdir(parents=True)
    (home / "tiny.pt.part").write_bytes(CONTENT + b"more")
    assert download(card_of(host.url)).read_bytes() == CONTENT


def test_damaged_part_is_dropped_and_the_next_run_succeeds(host, home):
    home.mkdir(parents=True)
    (home / "tiny.pt.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError, match="Run again to start afresh"):
        download(card_of(host.url))
    assert download(card_of(host.url)).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_refusal_is_reported_at_once(host, home, status):
    host.status = status
    with pytest.raises(DownloadError, match=f"answered {status} .*tiny.pt"):
        download(card_of(host.url))
    assert len(host.asked) == 1
    assert_only(home)


def test_disk_without_room_is_reported_before_the_transfer(host, home):
    card = card_of(host.url)
    card = replace(card, weights=replace(card.weights, bytes=10**18))
    with pytest.raises(DownloadError, match=r"tiny\.pt needs 1000000000\.0 GB more"):
        download(card)
    assert_only(home)


def test_folder_that_cannot_be_made_is_reported(host, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ESM2_FEATURES_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot be written: .*ESM2_FEATURES_HOME"):
        download(card_of(host.url))


# ------------------------------------------------------------------ offline


def assert_tells_three_ways(message: str, card: ModelCard, home: Path, tmp_path: Path) -> None:
    assert f"copy {card.weights.url}\n     to {home / 'tiny.pt'}" in message
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / "tiny.pt") in message
    assert 'model="/path/to/tiny.pt"' in message


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_is_an_error_at_once(host, home, tmp_path, monkeypatch, value):
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", value)
    card = replace(card_of(host.url), safetensors_sha256="0" * 64)
    with pytest.raises(DownloadError, match="ESM2_FEATURES_OFFLINE forbids") as caught:
        download(card)
    assert_tells_three_ways(str(caught.value), card, home, tmp_path)
    assert "hf download facebook/tiny" in str(caught.value)
    assert host.asked == []
    assert not home.exists()


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_offline_can_be_switched_off(host, monkeypatch, value):
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", value)
    assert download(card_of(host.url)).read_bytes() == CONTENT


def test_host_that_cannot_be_reached_is_an_error_at_once(home, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port  # nobody listens there once it is closed
    card = card_of(f"http://127.0.0.1:{port}/models/tiny.pt")
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        download(card)
    assert_tells_three_ways(str(caught.value), card, home, tmp_path)
    assert_only(home)


def test_file_that_is_there_is_used_offline(home, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", "1")
    home.mkdir(parents=True)
    (home / "tiny.pt").write_bytes(CONTENT)
    assert download(card_of("http://127.0.0.1:9/tiny.pt")) == home / "tiny.pt"


# ------------------------------------------------------------------ many processes


def test_processes_that_start_together_download_once(host, home):
    host.gate = threading.Event()
    script = (
        "import sys\n"
        "from esm2_features._checkpoints.catalogue import *\n"
        "from esm2_features._checkpoints.download import obtain\n"
        "file = RemoteFile(sys.argv[1], sys.argv[2], int(sys.argv[3]))\n"
        "card = ModelCard('tiny', '0M', Architecture(2, 32, 4), weights=file)\n"
        "print(obtain(card, file))\n"
    )
    file = card_of(host.url).weights
    command = [sys.executable, "-c", script, file.url, file.sha256, str(file.bytes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, cwd=ROOT, **pipes) as first,
        subprocess.Popen(command, cwd=ROOT, **pipes) as second,
    ):
        assert host.arrived.wait(60)
        # The host answers only now that one has asked and the other one waits for it.
        lines = {first: first.stderr.readline(), second: second.stderr.readline()}
        host.gate.set()
        paths = [process.communicate()[0].strip() for process in (first, second)]
    assert sorted(line.split()[1] for line in lines.values()) == ["downloading", "waiting"]
    assert paths == [str(home / "tiny.pt")] * 2
    assert host.asked == [""]
    assert (home / "tiny.pt").read_bytes() == CONTENT


# ------------------------------------------------------------------ places


def test_folders_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_HOME", "~/models")
    assert own_folder() == Path.home() / "models" / "checkpoints"
    monkeypatch.delenv("ESM2_FEATURES_HOME")
    assert own_folder().name == "checkpoints"
    assert "esm2_features" in own_folder().parts


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        ("XDG_CACHE_HOME", "torch/hub/checkpoints/tiny.pt"),
        (
            "XDG_CACHE_HOME",
            "huggingface/hub/models--facebook--tiny/snapshots/1/model.safetensors",
        ),
        ("HF_HOME", "hub/models--facebook--tiny/snapshots/1/model.safetensors"),
        ("HUGGINGFACE_HUB_CACHE", "models--facebook--tiny/snapshots/1/model.safetensors"),
    ],
)
def test_caches_of_other_tools_are_found_where_they_say(tmp_path, monkeypatch, variable, place):
    for name in ("TORCH_HOME", "HF_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setenv(variable, str(tmp_path / "caches"))
    path = tmp_path / "caches" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    card = replace(card_of("http://127.0.0.1:9/tiny.pt"), safetensors_sha256=sha256_of(path))
    assert download(card) == path


def test_torch_hub_would_find_it_too(tmp_path):
    path = Path(torch.hub.get_dir()) / "checkpoints" / "tiny.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert download(card_of("http://127.0.0.1:9/tiny.pt")) == path


def test_damaged_file_of_ours_is_an_error_and_stays(host, home):
    home.mkdir(parents=True)
    (home / "tiny.pt").write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match="is not the official file"):
        download(card_of(host.url))
    assert host.asked == []
