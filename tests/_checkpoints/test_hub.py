"""Models by short names and by repositories of the Hugging Face hub, cached or downloaded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from checkpoints import bare_state, random_esm2, write_hugging_face

from esm2_features import Cache, Engine
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features.exceptions import CheckpointError, DownloadError, InputError
from esm2_features.server import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("card", OFFICIAL.values(), ids=lambda card: card.parameters)
def test__short_name__is_the_official_model_in_any_case(card):
    size = card.parameters
    for name in (size, size.lower(), f"esm2-{size.lower()}", f"ESM2-{size}", card.name.lower(),
                 f"facebook/{card.name}", f"facebook/{card.name}@main"):  # fmt: skip
        checkpoint = open_checkpoint(name)
        assert (checkpoint.name, checkpoint.identity) == (card.name, card.identity)


def test__short_name__is_taken_everywhere():
    assert Engine("8m").feature_names[0] == "esm2_t6_8M_UR50D_L6_mean_0"
    assert open_checkpoint("MINI").identity == open_checkpoint("mini").identity
    assert Settings(models={"esm2_t6_8M_UR50D": "8M"}).find("ESM2-8m") == "esm2_t6_8M_UR50D"
    assert Settings(models={"8M": "8M"}).find("esm2-8m") == "8M"
    assert Settings(models={"mini": "mini"}).find("650M") is None


def test__short_name__with_an_endpoint_is_never_a_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hugging_face(random_esm2(), Path("8M"))
    for name in ("8M", "facebook/esm2_t6_8M_UR50D"):
        engine = Engine(name, endpoint="http://127.0.0.1:9", cache=None)
        assert engine.checkpoint.name == "esm2_t6_8M_UR50D"


def test__short_name__means_the_same_vectors_in_a_cache(tmp_path):
    file = tmp_path / "vectors.npz"
    np.savez(file, sequence=np.array(["GSHM"]), embedding=np.ones((1, 320), np.float32))
    cache = Cache(tmp_path / "cache")
    cache.import_(file, model="8m", layer=6, pooling="mean")
    with pytest.raises(InputError, match="no vectors of model 650M"):
        cache.prune(model="650M")
    assert cache.prune(model="ESM2-8M").rows == 1


def test__short_name__gives_way_to_a_path_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_hugging_face(random_esm2(), Path("8M"))
    write_hugging_face(random_esm2(), Path("facebook/esm2_t6_8M_UR50D"))
    for name in ("8M", "facebook/esm2_t6_8M_UR50D"):
        assert open_checkpoint(name).architecture.dim == 32
    assert open_checkpoint("8m").architecture.dim == 320


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("facebook/esm1v_t33_650M_UR90S_1", "ESM-1v"),
        ("esm1b_t33_650M_UR50S", "ESM-1b"),
        ("esm_msa1b_t12_100M_UR50S", "MSA Transformer"),
        ("facebook/esmfold_v1", "ESMFold"),
        ("esmc_300m", "ESM C"),
        ("EvolutionaryScale/esm3-sm-open-v1", "ESM3"),
        ("westlake-repl/SaProt_650M_AF2", "SaProt"),
        ("Rostlab/prot_bert", "ProtBert"),
        ("Rostlab/prot_t5_xl_uniref50", "T5"),
    ],
)
def test__other_family__is_refused_by_name_and_not_looked_for(name, family):
    with pytest.raises(CheckpointError, match=f"That is .*{family}") as caught:
        open_checkpoint(name)
    assert not isinstance(caught.value, DownloadError)


# ------------------------------------------------------------------ the cache


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub: Path, seed: int = 0, ref: str = "main", commit: str = COMMIT) -> Path:
    """Put a network into the cache, as the hub's client does: links to blobs."""
    repository = hub / "models--me--my--net"
    snapshot = write_hugging_face(random_esm2(seed=seed), repository / "snapshots" / commit)
    for file in list(snapshot.iterdir()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        file.replace(blob)
        file.symlink_to(f"../../blobs/{blob.name}")
    (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    return snapshot


def test__repository__in_the_cache_is_used_under_its_own_name(hub):
    snapshot = put(hub)
    for model in ("me/my--net", snapshot, snapshot / "model.safetensors"):
        checkpoint = open_checkpoint(model)
        assert checkpoint.name == "my--net"
        assert checkpoint.source in (snapshot, snapshot / "model.safetensors")
    assert Engine("me/my--net", cache=None).feature_names[0] == "my--net_L2_mean_0"


def test__revision__is_a_branch_a_tag_or_a_commit(hub):
    put(hub)
    other = "f" * 40
    put(hub, seed=1, ref="refs/pr/1", commit=other)
    main, changed = bare_state(random_esm2()), bare_state(random_esm2(seed=1))
    for revision, expected in (
        ("", main),
        ("@main", main),
        (f"@{COMMIT}", main),
        ("@refs/pr/1", changed),
        (f"@{other[:7]}", changed),
    ):
        weights = open_checkpoint(f"me/my--net{revision}").load()
        assert weights["embed_tokens.weight"].equal(expected["embed_tokens.weight"])
    with pytest.raises(DownloadError, match=r"me/my--net \(v2\) .*is not here"):
        open_checkpoint("me/my--net@v2")


def test__repository__that_is_not_here_is_an_error_with_two_ways(hub):
    with pytest.raises(DownloadError) as caught:
        open_checkpoint("me/net@v1")
    for part in ("hf download me/net --revision v1", str(hub), "esm2-features[hub]", "OFFLINE"):
        assert part in str(caught.value)
    with pytest.raises(DownloadError, match='Did you mean model="esm2_t6_8M_UR50D"'):
        open_checkpoint("facebook/esm2_t6_8M")


def test__repository__of_which_only_settings_are_here_is_incomplete(hub):
    (put(hub) / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="has no whole checkpoint"):
        open_checkpoint("me/my--net")


@pytest.mark.parametrize("text", ["a/b/c", "../net", "./me/net", "me/net@../x", "me/net.pt", "/me"])
def test__path__is_not_taken_for_a_repository(text):
    with pytest.raises(CheckpointError, match="There is no file or folder") as caught:
        open_checkpoint(text)
    assert not isinstance(caught.value, DownloadError)


# ------------------------------------------------------------------ downloads


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, list[str]]]:
    """The part of the hub that its client asks, with one repository; yield address and requests."""
    folder = write_hugging_face(random_esm2(), tmp_path / "repository")
    for other in ("modeling.py", "training_args.bin", "tf_model.h5", "pytorch_model.bin"):
        (folder / other).write_text("nothing to be read")
    names = sorted(file.name for file in folder.iterdir())
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            requests.append(path)
            if path.startswith("/api/models/me/net/tree/"):
                files = [{"type": "file", "path": it, "oid": "0", "size": 1} for it in names]
                content = json.dumps(files).encode()
            elif path.startswith("/api/models/me/net"):
                about = {
                    "id": "me/net",
                    "sha": COMMIT,
                    "siblings": [{"rfilename": it} for it in names],
                }
                content = json.dumps(about).encode()
            elif path.startswith("/me/net/resolve/"):
                content = (folder / path.rpartition("/")[2]).read_bytes()
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        running.shutdown()
        thread.join()


def open_elsewhere(model: str, tmp_path: Path, **environment: str) -> str:
    """Open a model in a process of its own, which is online; return what it prints."""
    script = (
        "import sys\n"
        "from esm2_features._checkpoints import open_checkpoint\n"
        "from esm2_features.exceptions import DownloadError\n"
        "try:\n"
        "    checkpoint = open_checkpoint(sys.argv[1])\n"
        "    print(checkpoint.name, checkpoint.source)\n"
        "except DownloadError as error:\n"
        "    print(error)\n"
    )
    for name in ("ESM2_FEATURES_OFFLINE", "HF_HUB_OFFLINE"):
        environment.setdefault(name, "0")
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", script, model]
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        command, env=env | environment, cwd=root, capture_output=True, text=True, check=True
    )
    return run.stdout


def test__repository__is_downloaded_without_code_and_only_once(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    address, requests = server
    name, path = open_elsewhere("me/net", tmp_path, HF_ENDPOINT=address).split()
    assert name == "net"
    assert open_checkpoint(path).load().keys() == bare_state(random_esm2()).keys()
    fetched = {path.rpartition("/")[2] for path in requests if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}
    requests.clear()
    assert open_elsewhere("me/net", tmp_path, HF_ENDPOINT=address).split() == ["net", path]
    assert not requests
    answer = open_elsewhere("me/gone", tmp_path, HF_ENDPOINT=address)
    assert "404" in answer
    assert "hf download me/gone" in answer


def test__repository__needs_the_extra_to_be_downloaded(tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ModuleNotFoundError('none here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = open_elsewhere("me/net", tmp_path, PYTHONPATH=path)
    assert "huggingface_hub, which downloads it, is not installed" in answer
    assert 'pip install "esm2-features[hub]"' in answer
