"""The server, in process: its answers and its errors."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import uvicorn
from pydantic import ValidationError
from starlette.testclient import TestClient

from esm2_features import Engine
from esm2_features._cache.keys import SCHEMA
from esm2_features._checkpoints.catalogue import slug
from esm2_features._inputs.alphabet import TOKENS
from esm2_features.exceptions import InputError, OutOfMemoryError
from esm2_features.server.api_versions import Instances
from esm2_features.server.app import _escape, create_app, run
from esm2_features.server.models import LoadedModels
from esm2_features.server.requests import Items, _limited
from esm2_features.server.settings import Settings, read_rate
from esm2_features.server.tokens import new_token

MELITTIN = "GIGAVLKVLTTGLPALISWIKRKRQQ"
SHORT = "MKTAYI"
BOTH = {"items": [{"sequence": MELITTIN}, {"sequence": SHORT}]}
ENCODE = "/api/v3/tiny/encode/"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    from checkpoints import random_esm2, write_fair_esm

    path = tmp_path_factory.mktemp("served") / "tiny.pt"
    write_fair_esm(random_esm2(layers=2, dim=32, heads=2, seed=7), path)

    def make(**options: Any) -> Settings:
        models = {"tiny": str(path), "esm2_t6_8M_UR50D": "esm2_t6_8M_UR50D", "mini": "mini"}
        return Settings(**{"models": models, "devices": ("cpu",), "cache": None, **options})

    return make


@pytest.fixture
def serve(settings: Callable[..., Settings]) -> Iterator[Callable[..., TestClient]]:
    open_clients = []

    def start(**options: Any) -> TestClient:
        app = create_app(settings(**options))
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        open_clients.append(client)
        return client.__enter__()

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def client(settings: Callable[..., Settings]) -> Iterator[TestClient]:
    app = create_app(settings())
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def engine(settings: Callable[..., Settings]) -> Callable[..., Engine]:
    path = settings().models["tiny"]
    return lambda **options: Engine(path, device="cpu", cache=None, **options)


def results(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return response.json()["results"]


def refused(response: Any, status: int, code: str) -> dict[str, Any]:
    body = response.json()
    assert (response.status_code, body["code"], body["status"]) == (status, code, status), body
    assert body["error"].endswith(".")
    return body


# ------------------------------------------------------------------ version 3


def test_encode_returns_the_mean_of_the_last_layer_by_default(client, engine):
    first, second = results(client.post(ENCODE, json=BOTH))
    assert list(first) == ["sequence_index", "embeddings"]
    assert (first["sequence_index"], second["sequence_index"]) == (0, 1)
    [mean] = second["embeddings"]
    assert mean["layer"] == 2
    # The JSON holds the shortest numbers that are the same float32.
    np.testing.assert_array_equal(
        np.float32(mean["embedding"]), engine().embed([MELITTIN, SHORT])[1]
    )


def test_encode_returns_every_output(client, engine):
    include = ["mean", "per_token", "bos", "contacts", "logits", "attentions", "eos", "max", "std"]
    params = {"include": include, "repr_layers": [-1, 0]}
    _, found = results(client.post(ENCODE, json={**BOTH, "params": params}))
    assert set(found) == {
        "sequence_index",
        "embeddings",
        "bos_embeddings",
        "eos_embeddings",
        "max_embeddings",
        "std_embeddings",
        "per_token_embeddings",
        "contacts",
        "attentions",
        "logits",
        "vocab_tokens",
    }
    one = engine(layers=[2, 0], pooling=["mean", "cls", "eos", "max", "std"])
    rows = one.embed([MELITTIN, SHORT])[1].reshape(2, 5, 32)
    for k, name in enumerate(["embeddings", *(f"{w}_embeddings" for w in ("bos", "eos", "max"))]):
        assert [part["layer"] for part in found[name]] == [2, 0]
        np.testing.assert_array_equal(
            np.float32([part["embedding"] for part in found[name]]), rows[:, k]
        )
    residues = one.residues([SHORT])[0]
    for part in found["per_token_embeddings"]:
        np.testing.assert_allclose(part["embeddings"], residues[part["layer"]], atol=1e-6)
    np.testing.assert_allclose(found["contacts"], one.contacts([SHORT])[0], atol=1e-6)
    maps = one.attentions([SHORT])[0]
    np.testing.assert_allclose(
        found["attentions"], [m.mean(0).mean(0)[1:-1] for m in maps], atol=1e-6
    )
    assert np.shape(found["attentions"]) == (2, len(SHORT))


def test_attentions_of_long_sequences_are_computed_a_few_blocks_at_a_time(client, monkeypatch):
    asked = {**BOTH, "params": {"include": ["attentions"]}}
    whole = results(client.post(ENCODE, json=asked))
    monkeypatch.setattr("esm2_features.server.models._MAPS_BYTES", 1)
    apart = results(client.post(ENCODE, json=asked))
    for one, other in zip(whole, apart, strict=True):
        np.testing.assert_allclose(one["attentions"], other["attentions"], atol=1e-7)


def test_predict_returns_logits_of_the_20_residues_in_the_order_of_the_network(client, engine):
    [found] = results(
        client.post("/api/v3/tiny/predict/", json={"items": [{"sequence": "MK<mask>AYI"}]})
    )
    assert found["vocab_tokens"] == list("LAGVSERTIDPKQNFYMHWC")
    assert found["sequence_tokens"] == ["M", "K", "<mask>", "A", "Y", "I"]
    logits = engine().logits(["MK<mask>AYI"])[0]
    picked = logits[:, [TOKENS.index(token) for token in found["vocab_tokens"]]]
    np.testing.assert_allclose(found["logits"], picked, atol=1e-6)
    assert set(found) == {"logits", "sequence_tokens", "vocab_tokens"}


def test_predict_also_returns_representations_on_request(client):
    body = {"items": [{"sequence": "MK<mask>AYI"}], "params": {"include": ["mean"]}}
    [found] = results(client.post("/api/v3/tiny/predict/", json=body))
    assert set(found) == {"embeddings", "logits", "sequence_tokens", "vocab_tokens"}


def test_log_prob_sums_the_log_probabilities_of_the_residues(client, engine):
    sequence = "MKXTAYI"
    [found] = results(
        client.post("/api/v3/tiny/log_prob/", json={"items": [{"sequence": sequence}]})
    )
    vocabulary = "LAGVSERTIDPKQNFYMHWC"
    logits = engine().logits([sequence])[0][:, 4:24].astype(float)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = sum(
        row[vocabulary.index(letter)]
        for letter, row in zip(sequence, log_probs, strict=True)
        if letter != "X"
    )
    assert list(found) == ["log_prob"]
    assert found["log_prob"] == pytest.approx(expected, abs=1e-4)


def test_schema_has_the_number_of_sequences_of_a_request(serve):
    client = serve(max_items=5, rate=(600, 60.0))
    schema = client.get("/api/v3/schema/tiny/encode/").json()
    assert schema["properties"]["items"]["maxItems"] == 5  # where the service's client looks
    assert schema["throttle_rate"] == "600/minute"
    assert "$ref" not in json.dumps(schema)
    assert client.get("/api/v3/schema/tiny/predict").status_code == 200
    refused(client.get("/api/v3/schema/tiny/fold/"), 404, "unknown_action")


def test_models_answer_to_slugs_and_official_names(client):
    listed = client.get("/api/v3/models/").json()["models"]
    assert {"tiny", "mini", "esm2-8m"} == {model["model"] for model in listed}
    for name in ("esm2-8m", "esm2_t6_8M_UR50D", "ESM2-8M"):
        assert client.get(f"/api/v3/schema/{name}/encode/").status_code == 200
        # Its weights are not here, which is another thing than an unknown name.
        body = refused(client.post(f"/api/v3/{name}/encode/", json=BOTH), 503, "model_unavailable")
        assert "/" not in body["error"]
    refused(client.post("/api/v3/esm2-650m/encode/", json=BOTH), 404, "unknown_model")
    assert slug("esm2_t36_3B_UR50D") == "esm2-3b"


# ------------------------------------------------------------------ versions 1 and 2


@pytest.mark.parametrize("action", ["predict", "transform"])
@pytest.mark.parametrize("end", ["", "/"])
def test_version_1_answers_as_documented(client, engine, action, end):
    body = {"instances": [{"data": {"text": MELITTIN}}, {"data": {"text": SHORT}}]}
    response = client.post(f"/api/v1/models/tiny/{action}{end}", json=body)
    assert response.status_code == 200
    first, second = response.json()["predictions"]
    assert list(first) == ["name", "mean_representations"]
    assert (first["name"], second["name"]) == ("0", "1")
    np.testing.assert_array_equal(
        np.float32(second["mean_representations"]["2"]), engine().embed([MELITTIN, SHORT])[1]
    )


def test_version_1_returns_maps_and_logits(client):
    include = ["mean", "bos", "per_token", "contacts", "attentions", "logits"]
    body = {
        "instances": [{"data": {"text": SHORT}}],
        "params": {"include": include, "repr_layers": [0, 1]},
    }
    [found] = client.post("/api/v1/models/tiny/predict/", json=body).json()["predictions"]
    assert set(found["bos_representations"]) == {"0", "1"}
    assert np.shape(found["representations"]["1"]) == (6, 32)
    assert np.shape(found["contacts"]) == (6, 6)
    assert np.shape(found["attentions"]) == (2, 6)
    assert np.shape(found["logits"]) == (6, 20)


def test_version_2_names_layers_as_keys(client):
    [found] = results(client.post("/api/v2/tiny/encode/", json={"items": [{"sequence": SHORT}]}))
    assert found["sequence_index"] == 0
    assert list(found["mean_representations"]) == ["2"]
    masked = {"items": [{"sequence": "M<mask>K"}]}
    [found] = results(client.post("/api/v2/tiny/predict", json=masked))
    assert found["sequence_tokens"] == ["M", "<mask>", "K"]
    assert found["alphabet_tokens"][0] == "L"
    refused(client.post("/api/v2/tiny/log_prob/", json=BOTH), 404, "unknown_action")


# ------------------------------------------------------------------ bodies


def test_r_may_write_a_list_of_one_as_its_element(client):
    # What jsonlite makes of params = list(include = "mean", repr_layers = -1), and of list().
    for params in ({"include": "mean", "repr_layers": -1.0}, []):
        response = client.post(ENCODE, json={**BOTH, "params": params})
        assert results(response) == results(client.post(ENCODE, json=BOTH))


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_bodies_may_be_compressed(client, name, pack):
    response = client.post(
        ENCODE,
        content=pack(json.dumps(BOTH).encode()),
        headers={"content-type": "application/json", "content-encoding": name},
    )
    assert len(results(response)) == 2


@pytest.mark.parametrize(
    ("body", "code", "row", "position"),
    [
        ({"items": [{"sequence": SHORT}, {"sequence": "MK1A"}]}, "invalid_sequence", 1, 3),
        ({"items": [{"sequence": SHORT}, {"sequence": " "}]}, "invalid_sequence", 1, None),
        ({"items": [{"sequence": "nan"}]}, "invalid_sequence", 0, None),
        ({"items": [{"sequence": "M" * 65}]}, "too_long", 0, None),
        ({"items": [{"sequence": 5}]}, "invalid_request", 0, None),
        ({"items": [{"seq": SHORT}]}, "invalid_request", 0, None),
        ({"items": []}, "invalid_request", None, None),
        ({"items": [{"sequence": SHORT}] * 9}, "too_many_items", None, None),
        ({"instances": []}, "invalid_request", None, None),
        ({**BOTH, "params": {"include": ["average"]}}, "invalid_request", None, None),
        ({**BOTH, "params": {"layers": [1]}}, "invalid_request", None, None),
        ({**BOTH, "params": {"repr_layers": [3]}}, "no_such_layer", None, None),
        ({**BOTH, "params": {"repr_layers": [True]}}, "invalid_request", None, None),
        ([], "invalid_request", None, None),
    ],
)
def test_errors_of_a_body_have_code_row_and_position(serve, body, code, row, position):
    said = refused(serve(max_residues=64, max_items=8).post(ENCODE, json=body), 422, code)
    assert (said.get("row"), said.get("position")) == (row, position)


def test_predict_needs_masks_and_log_prob_rejects_them(client):
    said = refused(client.post("/api/v3/tiny/predict/", json=BOTH), 422, "no_mask")
    assert said["row"] == 0
    body = {"items": [{"sequence": "MK<mask>A"}]}
    said = refused(client.post("/api/v3/tiny/log_prob/", json=body), 422, "masked")
    assert said["position"] == 3


def test_bodies_that_are_not_json_are_errors(client):
    kind = {"content-type": "application/json"}
    refused(client.post(ENCODE, content=b"{", headers=kind), 400, "invalid_json")
    refused(client.post(ENCODE, content=b"\xff\xfe", headers=kind), 400, "invalid_json")
    refused(client.post(ENCODE, content=b"[" * 100_000, headers=kind), 400, "invalid_json")
    plain = {"content-type": "text/plain"}
    refused(client.post(ENCODE, content=b"{}", headers=plain), 415, "unsupported_media_type")
    packed = {**kind, "content-encoding": "br"}
    refused(client.post(ENCODE, content=b"{}", headers=packed), 415, "unsupported_encoding")
    packed = {**kind, "content-encoding": "gzip"}
    refused(client.post(ENCODE, content=b"{}", headers=packed), 400, "invalid_body")


def test_unknown_addresses_and_methods_have_errors_of_the_same_shape(client):
    refused(client.get("/nowhere"), 404, "not_found")
    refused(client.get(ENCODE), 405, "method_not_allowed")
    refused(client.post("/api/v3/tiny/fold/", json=BOTH), 404, "unknown_action")


# ------------------------------------------------------------------ limits


def test_a_body_that_is_too_large_is_an_error_plain_chunked_or_compressed(serve):
    client = serve(max_body_bytes=10_000)
    kind = {"content-type": "application/json"}
    refused(client.post(ENCODE, content=b" " * 10_001, headers=kind), 413, "body_too_large")
    chunks = (b" " * 1000 for _ in range(11))
    refused(client.post(ENCODE, content=chunks, headers=kind), 413, "body_too_large")
    bomb = gzip.compress(b" " * 1_000_000)
    assert len(bomb) < 10_000
    packed = {**kind, "content-encoding": "gzip"}
    refused(client.post(ENCODE, content=bomb, headers=packed), 413, "body_too_large")


def test_an_answer_that_would_be_too_large_is_not_computed(serve, ran):
    client = serve(max_answer_bytes=4 * 32)
    results(client.post(ENCODE, json={"items": [{"sequence": SHORT}]}))
    ran.clear()
    refused(client.post(ENCODE, json=BOTH), 413, "answer_too_large")
    assert ran == []


def test_a_request_that_never_fits_into_the_memory_is_not_computed(serve, ran):
    client = serve(max_memory_bytes=400_000)
    results(client.post(ENCODE, json=BOTH))
    ran.clear()
    body = {"items": [{"sequence": "MK" * 150}], "params": {"include": ["contacts"]}}
    said = refused(client.post(ENCODE, json=body), 413, "needs_memory")
    assert "needs 2 MB" in said["error"]
    assert ran == []
    results(client.post(ENCODE, json=BOTH))


def test_a_body_that_does_not_fit_into_the_memory_is_refused_for_now(serve):
    client = serve(max_memory_bytes=400_000)
    body = {"items": [{"sequence": SHORT + " " * 100_000}]}
    response = client.post(ENCODE, json=body)
    refused(response, 503, "busy")
    assert int(response.headers["retry-after"]) >= 1
    results(client.post(ENCODE, json=BOTH))


@pytest.mark.parametrize(
    "content",
    [
        b'{"items":[' + b",".join([b'{"sequence":"A"}'] * 100_000) + b"]}",
        b'{"items":[' + b"1," * 100_000 + b"1]}",
        b'{"items":[' + b'"\\"",' * 100_000 + b'""]}',
        b'{"items":[{"sequence":"A"}],"x":{' + b'"":1,' * 100_000 + b'"":1}}',
    ],
)
def test_a_body_of_very_many_values_is_not_parsed(client, content):
    said = client.post(ENCODE, content=content, headers={"content-type": "application/json"})
    assert "values" in refused(said, 422, "too_many_items")["error"]


def test_texts_of_a_body_may_hold_any_number_of_signs(client):
    item = {"sequence": SHORT * 10, "region": ",".join(["1:3"] * 4000)}
    assert len(results(client.post(ENCODE, json={"items": [item] * 20}))) == 20
    said = client.post(ENCODE, json={"items": [{"sequence": '",{' * 5000}]})
    assert refused(said, 422, "invalid_sequence")["row"] == 0


def test_too_many_requests_get_the_time_to_retry(serve):
    client = serve(rate=(2, 60.0))
    for _ in range(2):
        results(client.post(ENCODE, json=BOTH))
    response = client.post(ENCODE, json=BOTH)
    refused(response, 429, "too_many_requests")
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert read_rate("2/minute") == (2, 60.0)


def test_the_log_shows_no_control_characters():
    record = logging.LogRecord("x", 20, "", 0, "%s %d", ("a\x9b31m\tb\n\x1b[0m", 5), None)
    assert _escape(record)
    assert record.getMessage() == r"a\x9b31m\tb\n\x1b[0m 5"


def test_a_token_has_a_rate_unless_none_is_asked_for(settings, tmp_path):
    path = tmp_path / "tokens.txt"
    new_token(path, "anna")
    assert settings().rate is None
    assert settings(tokens=path).rate == (600, 60.0)
    assert settings(tokens=path, rate=read_rate("auto")).rate_text == "600/minute"
    assert settings(tokens=path, rate=read_rate("none")).rate is None


def test_a_request_that_takes_too_long_times_out(serve, monkeypatch):
    import threading

    hold = threading.Event()
    monkeypatch.setattr(LoadedModels, "compute", lambda *_: [hold.wait()] * 2)
    client = serve(timeout=0.05)
    refused(client.post(ENCODE, json=BOTH), 504, "timeout")
    hold.set()


# ------------------------------------------------------------------ who may come in


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "tokens"
    return path, new_token(path, "alice")


def test_only_known_tokens_are_accepted(serve, tokens):
    path, token = tokens
    client = serve(tokens=path, host="0.0.0.0")
    for scheme in ("Token", "Bearer", "token"):
        headers = {"authorization": f"{scheme} {token}"}
        assert len(results(client.post(ENCODE, json=BOTH, headers=headers))) == 2
    for bad in ("", "Token", f"Token {token}x", f"Basic {token}", "Token é"):
        response = client.post(ENCODE, json=BOTH, headers={"authorization": bad.encode("latin-1")})
        refused(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    refused(client.get("/metrics"), 401, "unauthorized")
    refused(client.get("/status"), 401, "unauthorized")
    assert client.get("/healthz").status_code == 200
    assert client.get("/").status_code == 200


def test_a_token_whose_line_is_deleted_is_rejected(serve, tokens):
    path, token = tokens
    client = serve(tokens=path)
    headers = {"authorization": f"Token {token}"}
    assert client.get("/api/v3/models/", headers=headers).status_code == 200
    path.write_text("# nobody\n")
    refused(client.get("/api/v3/models/", headers=headers), 401, "unauthorized")


def test_rates_are_counted_for_each_token(serve, tokens):
    path, alice = tokens
    bob = new_token(path, "bob")
    client = serve(tokens=path, rate=(1, 60.0))
    statuses = [
        client.post(ENCODE, json=BOTH, headers={"authorization": f"Token {who}"}).status_code
        for who in (alice, alice, bob)
    ]
    assert statuses == [200, 429, 200]


def test_without_tokens_only_this_machine_is_served(client):
    with pytest.raises(InputError, match="without tokens"):
        Settings(host="0.0.0.0")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200
    refused(client.get("/healthz", headers={"host": "evil.example"}), 403, "wrong_host")


# ------------------------------------------------------------------ faults


def test_unexpected_errors_reveal_nothing(serve, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(LoadedModels, "compute", fail)
    said = refused(serve().post(ENCODE, json=BOTH), 500, "internal_error")
    assert "secret" not in str(said)


@pytest.mark.parametrize(("length", "status"), [(900, 413), (0, 503)])
def test_out_of_memory_is_reported(serve, monkeypatch, length, status):
    def fail(*_: object) -> None:
        raise OutOfMemoryError("on cuda:0", length=length, device="cuda:0")

    monkeypatch.setattr(LoadedModels, "compute", fail)
    response = serve().post(ENCODE, json=BOTH)
    said = refused(response, status, "out_of_memory")
    assert "cuda" not in str(said)
    assert ("retry-after" in response.headers) == (status == 503)


def test_contacts_of_a_model_without_regression_are_an_error(client):
    body = {**BOTH, "params": {"include": ["contacts"]}}
    refused(client.post("/api/v3/mini/encode/", json=body), 422, "no_contacts")


def test_a_model_makes_room_for_another(serve, ran):
    client = serve(models_in_memory=1)
    before = results(client.post(ENCODE, json=BOTH))
    results(client.post("/api/v3/mini/encode/", json=BOTH))
    there = {m["model"]: m["in_memory"] for m in client.get("/api/v3/models/").json()["models"]}
    assert there == {"tiny": False, "mini": True, "esm2-8m": False}
    assert results(client.post(ENCODE, json=BOTH)) == before  # it is loaded again
    assert len(ran) == 6


# ------------------------------------------------------------------ other answers


def test_npz_holds_the_same_numbers(client, engine):
    params = {"include": ["mean", "per_token", "logits"], "repr_layers": [1, 2]}
    headers = {"accept": "application/x-npz"}
    response = client.post(ENCODE, json={**BOTH, "params": params}, headers=headers)
    assert response.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(response.content)) as found:
        assert found["mean_2"].dtype == np.float32
        np.testing.assert_array_equal(found["mean_2"], engine().embed([MELITTIN, SHORT]))
        assert found["per_token_1_1"].shape == (6, 32)
        assert found["logits_0"].shape == (26, 20)
        assert found["length"].tolist() == [26, 6]
        assert "".join(found["vocab_tokens"]) == "LAGVSERTIDPKQNFYMHWC"


def test_checkpoint_precision_and_schema_are_stated_before_and_with_the_numbers(client, serve):
    mini = Engine("mini", cache=None).checkpoint.identity
    said = client.get("/api/v3/models/").json()
    assert (said["server"], said["precision"], said["max_items"]) == (
        "esm2-features",
        "float32",
        256,
    )
    found = {model["model"]: model["checkpoint"] for model in said["models"]}
    assert found["mini"] == mini
    assert found["esm2-8m"].startswith("sha256:46f002a9870c")
    for accept in ("application/x-npz", "application/vnd.apache.arrow.stream"):
        response = serve(precision="bfloat16").post(
            "/api/v3/mini/encode/", json=BOTH, headers={"accept": accept}
        )
        if accept.endswith("npz"):
            with np.load(io.BytesIO(response.content)) as arrays:
                about = {key: str(arrays[key]) for key in ("checkpoint", "precision", "schema")}
        else:
            metadata = pa.ipc.open_stream(response.content).schema.metadata
            about = {
                key: metadata[key.encode()].decode()
                for key in ("checkpoint", "precision", "schema")
            }
        assert about == {"checkpoint": mini, "precision": "bfloat16", "schema": str(SCHEMA)}


def test_the_digest_of_a_file_is_listed_once_it_is_known(serve, engine):
    client = serve()
    results(client.post(ENCODE, json=BOTH))
    found = {m["model"]: m["checkpoint"] for m in client.get("/api/v3/models/").json()["models"]}
    assert found["tiny"] == engine().checkpoint.identity


def test_regions_and_windows_are_pooled_as_the_engine_does(client, engine):
    items = [{"sequence": MELITTIN, "region": "3:9,1"}, {"sequence": SHORT, "region": None}]
    params = {"include": ["mean", "max"], "repr_layers": [1], "window": 12}
    found = results(client.post(ENCODE, json={"items": items, "params": params}))
    expected = engine(layers=1, pooling=["mean", "max"], max_residues=12, too_long="window").embed(
        [MELITTIN, SHORT], regions=["3:9,1", None]
    )
    for row, one in zip(expected.reshape(2, 2, 32), found, strict=True):
        for vector, name in zip(row, ("embeddings", "max_embeddings"), strict=True):
            np.testing.assert_array_equal(np.float32(one[name][0]["embedding"]), vector)


@pytest.mark.parametrize(
    ("item", "params", "code", "row"),
    [
        ({"region": "1:99"}, {}, "invalid_input", 0),
        ({"region": "3:3"}, {}, "invalid_input", 0),
        ({"region": "a:b"}, {}, "invalid_request", 0),
        ({"region": ""}, {}, "invalid_request", 0),
        ({"region": "1:3"}, {"include": ["bos", "mean"]}, "no_parts", None),
        ({"region": "1:3"}, {"include": ["contacts"]}, "no_parts", None),
        ({}, {"window": 0}, "invalid_request", None),
        ({}, {"window": 5, "include": ["per_token"]}, "no_parts", None),
        ({}, {"window": 5, "include": ["parti"]}, "no_parts", None),
    ],
)
def test_invalid_regions_and_windows_are_errors(client, item, params, code, row):
    body = {"items": [{"sequence": MELITTIN, **item}], "params": params}
    assert refused(client.post(ENCODE, json=body), 422, code).get("row") == row


@pytest.mark.parametrize("action", ["predict", "log_prob"])
def test_likelihoods_have_no_windows(client, action):
    sequence = "MK<mask>A" if action == "predict" else "MKA"
    body = {"items": [{"sequence": sequence}], "params": {"window": 2}}
    refused(client.post(f"/api/v3/tiny/{action}/", json=body), 422, "no_parts")


def test_arrow_holds_the_same_numbers(client, engine):
    params = {"include": ["mean", "contacts", "per_token"]}
    headers = {"accept": "application/vnd.apache.arrow.stream, application/json;q=0.5"}
    response = client.post(ENCODE, json={**BOTH, "params": params}, headers=headers)
    table = pa.ipc.open_stream(response.content).read_all()
    assert table.column_names == ["index", "length", "mean_2", "per_token_2", "contacts"]
    vectors = table["mean_2"].combine_chunks().flatten().to_numpy().reshape(2, 32)
    np.testing.assert_array_equal(vectors, engine().embed([MELITTIN, SHORT]))
    maps = np.float32(table["contacts"][1].as_py()).reshape(6, 6)
    np.testing.assert_allclose(maps, engine().contacts([SHORT])[0], atol=1e-6)
    assert table.schema.metadata[b"model"] == b"tiny"


@pytest.mark.parametrize("action", ["predict", "log_prob"])
@pytest.mark.parametrize("media", ["application/x-npz", "application/vnd.apache.arrow.stream"])
def test_every_action_has_every_format(client, action, media):
    body = {"items": [{"sequence": "MK<mask>A" if action == "predict" else "MKA"}]}
    response = client.post(f"/api/v3/tiny/{action}/", json=body, headers={"accept": media})
    assert response.status_code == 200
    assert response.headers["content-type"] == media


@pytest.mark.parametrize(
    "accept",
    ["*/*", "", "application/json, text/xml, application/xml, */*", "application/x-npz;q=0"],
)
def test_json_is_the_default_format(client, accept):
    response = client.post(ENCODE, json=BOTH, headers={"accept": accept})
    assert response.headers["content-type"] == "application/json"


# ------------------------------------------------------------------ watching


def test_health_metrics_and_status(serve):
    client = serve()
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    results(client.post(ENCODE, json={"items": [{"sequence": SHORT}] * 3}))
    client.post("/api/v3/made-up/encode/", json=BOTH)
    lines = client.get("/metrics").text.splitlines()
    name = "esm2_features_{}".format
    assert name('tokens_total{model="tiny"} 24.0') in lines
    assert name('sequences_total{model="tiny",source="network"} 1.0') in lines
    assert name('sequences_total{model="tiny",source="cache"} 2.0') in lines
    assert name("queue_requests 0.0") in lines
    assert not any("made-up" in line for line in lines)
    assert "in memory" in client.get("/status").text


def test_the_disk_cache_is_used(serve, tmp_path, ran):
    client = serve(cache=tmp_path / "cache")
    first = results(client.post(ENCODE, json=BOTH))
    assert results(client.post(ENCODE, json=BOTH)) == first
    assert sorted(ran) == sorted([MELITTIN, SHORT])


def test_every_answer_has_a_policy_for_browsers(client):
    answers = [client.get(path) for path in ("/", "/docs", "/status", "/healthz", "/nothing")]
    for answer in (*answers, client.post(ENCODE, json={}), client.post(ENCODE, json=BOTH)):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "'unsafe-inline'" not in answers[0].headers["content-security-policy"]


def test_supervisors_may_ask_for_the_head_only(client):
    for path in ("/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_descriptions_ask_for_a_token_where_there_are_tokens(serve, tmp_path):
    token = new_token(tmp_path / "tokens", "alice")
    client = serve(tokens=tmp_path / "tokens")
    for path in ("/openapi.json", "/docs", "/status", "/metrics", "/api/v3/models/"):
        assert client.get(path).status_code == 401, path
        headers = {"Authorization": f"Token {token}"}
        assert client.get(path, headers=headers).status_code == 200, path


@pytest.mark.parametrize("body", [Items, Instances])
@pytest.mark.parametrize("item", ["1", '{"sequence": 1}', "{}"])
def test_validation_stops_at_the_first_wrong_sequence(body, item):
    name = next(iter(body.model_fields))
    content = f'{{"{name}": [{",".join([item] * 256)}]}}'
    with pytest.raises(ValidationError) as caught:
        _limited(body, 256).model_validate_json(content)
    assert caught.value.error_count() <= 2  # of one sequence


def test_many_wrong_sequences_are_one_short_error(client):
    content = gzip.compress(b'{"items":[' + b"1," * 1_000_000 + b"1]}")
    assert len(content) < 16_000
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = client.post(ENCODE, content=content, headers=headers)
    assert answer.status_code == 422
    assert len(answer.content) < 1000


def test_a_region_of_many_parts_is_refused_or_joined(client):
    item = {"sequence": "A" * 2000, "region": ",".join(["0:2000"] * 40_000)}
    answer = client.post(ENCODE, json={"items": [item]})
    assert answer.status_code == 422
    parts = ",".join(["3:9", "0:1", "8:12", "1:3"] * 900)
    [joined] = results(client.post(ENCODE, json={"items": [{**item, "region": parts}]}))
    [whole] = results(client.post(ENCODE, json={"items": [{**item, "region": "0:12"}]}))
    assert joined == whole


@pytest.mark.parametrize("proxy", [None, "10.0.0.1"])
def test_only_the_named_proxy_says_who_the_client_is(settings, monkeypatch, proxy):
    given = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: given.update(options))
    run(settings(proxy=proxy))
    assert given["proxy_headers"] == (proxy is not None)
    assert given["forwarded_allow_ips"] == proxy


def test_the_address_of_a_server_has_brackets_for_ipv6(settings):
    assert settings(host="::1", port=80).address == "http://[::1]:80/"
    assert settings(port=80).address == "http://127.0.0.1:80/"


def test_pages_load_nothing_from_other_sites(client):
    for path in ("/", "/docs", "/status"):
        text = client.get(path).text
        assert text.startswith("<!doctype html>")
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text


def test_openapi_has_all_operations_and_examples_that_work(client):
    document = client.get("/openapi.json").json()
    assert {
        "/api/v1/models/{model}/predict/",
        "/api/v1/models/{model}/transform/",
        "/api/v2/{model}/encode/",
        "/api/v2/{model}/predict/",
        "/api/v3/{model}/encode/",
        "/api/v3/{model}/predict/",
        "/api/v3/{model}/log_prob/",
        "/api/v3/schema/{model}/{action}/",
        "/api/v3/models/",
        "/healthz",
        "/readyz",
    } == {path for path in document["paths"] if not re.match("/api/v1/(?!models)", path)}
    assert "HTTPValidationError" not in json.dumps(document)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            example = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if example is not None and ("{model}" in path or "/tiny/" in path):
                response = client.post(path.replace("{model}", "tiny"), json=example["example"])
                assert response.status_code == 200


@pytest.mark.parametrize(
    ("action", "sequence", "is_right"),
    [
        ("encode", "MKT", True),
        ("encode", " mkt*\n", True),
        ("encode", "M<mask>T", True),
        ("encode", "MJT", False),
        ("encode", "M-T", False),
        ("predict", "M<mask>T", True),
        ("predict", "MKT", False),
        ("log_prob", "MKT", True),
        ("log_prob", "M<mask>T", False),
    ],
)
def test_the_schema_accepts_what_the_server_accepts(client, action, sequence, is_right):
    jsonschema = pytest.importorskip("jsonschema")
    schema = client.get(f"/api/v3/schema/tiny/{action}/").json()
    for params in ({}, {"include": "mean", "repr_layers": [0, -3]}, []):
        body = {"items": [{"sequence": sequence}], "params": params}
        assert jsonschema.Draft202012Validator(schema).is_valid(body) == is_right
        response = client.post(f"/api/v3/tiny/{action}/", json=body)
        assert response.status_code == (200 if is_right else 422)
    deep = {"items": [{"sequence": sequence}], "params": {"repr_layers": [3]}}
    assert not jsonschema.Draft202012Validator(schema).is_valid(deep)
