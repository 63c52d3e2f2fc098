"""The hub's addresses, to which biolm-sdk talks; pages of other sites; servers under a path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
from serving import served
from starlette.testclient import TestClient

from esm2_features import Engine
from esm2_features.exceptions import InputError
from esm2_features.server.app import create_app
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import new_token

SITE = "https://notebooks.example.org"
BODY = {"items": [{"sequence": "MKTAYI"}, {"sequence": "GSHM"}]}
SDK = "biolm-sdk==1.7.0"


def client_of(**options):
    settings = Settings(
        models={"mini": "mini", "mine": "mini"}, devices=("cpu",), cache=None, **options
    )
    return TestClient(create_app(settings), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def client():
    with client_of() as found:
        yield found


@pytest.mark.parametrize("path", ["/api/v1/mini/encode", "/api/v1/mine/encode/"])
@pytest.mark.parametrize("word", ["per_residue", "per_token"])
def test__hub__gives_residues_under_its_own_name(client, path, word):
    params = {"include": ["mean", word], "repr_layers": [-1, 2]}
    found = client.post(path, json={**BODY, "params": params}).json()["results"]
    engine = Engine("mini", cache=None, layers=[6, 2])
    means = engine.embed(["MKTAYI", "GSHM"]).reshape(2, 2, -1)
    for i, sequence in enumerate(["MKTAYI", "GSHM"]):
        assert set(found[i]) == {"sequence_index", "embeddings", "residue_embeddings"}
        by_layer = engine.residues([sequence], layers=[6, 2])[0]
        for j, layer in enumerate([6, 2]):
            mean, residues = (found[i][key][j] for key in ("embeddings", "residue_embeddings"))
            assert (mean["layer"], residues["layer"]) == (layer, layer)
            np.testing.assert_allclose(mean["embedding"], means[i, j], atol=1e-5)
            np.testing.assert_allclose(residues["embeddings"], by_layer[layer], atol=1e-5)


def test__hub__a_word_may_stand_alone_and_parameters_may_be_missing(client):
    alone = client.post("/api/v1/mini/encode", json={**BODY, "params": {"include": "per_residue"}})
    assert list(alone.json()["results"][0]) == ["sequence_index", "residue_embeddings"]
    for params in ({}, []):
        plain = client.post("/api/v1/mini/encode", json={**BODY, "params": params})
        assert list(plain.json()["results"][0]) == ["sequence_index", "embeddings"]


def test__hub__per_residue_is_a_word_of_the_hub_only(client):
    body = {**BODY, "params": {"include": ["per_residue"]}}
    assert client.post("/api/v3/mini/encode/", json=body).status_code == 422


def test__hub__predicts_and_scores_as_version_3(client):
    masked = {"items": [{"sequence": "MK<mask>"}]}
    assert (
        client.post("/api/v1/mini/predict", json=masked).json()
        == client.post("/api/v3/mini/predict/", json=masked).json()
    )
    expected = client.post("/api/v3/mini/log_prob/", json=BODY).json()
    for action in ("log_prob", "score"):
        assert client.post(f"/api/v1/mini/{action}", json=BODY).json() == expected


def test__hub__errors_have_our_words(client):
    for path, status, code in [
        ("/api/v1/none/encode", 404, "unknown_model"),
        ("/api/v1/mini/fold", 404, "unknown_action"),
        ("/api/v1/none/fold", 404, "unknown_action"),
    ]:
        found = client.post(path, json=BODY)
        assert (found.status_code, found.json()["code"]) == (status, code)


def test__openapi__has_an_address_for_each_model_and_examples_that_work(client):
    paths = client.get("/openapi.json").json()["paths"]
    own = {
        f"/api/v1/{m}/{a}/"
        for m in ("mini", "mine")
        for a in ("encode", "predict", "log_prob", "score")
    }
    assert own <= set(paths)
    for path in own:
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert client.post(path, json=content["example"]).status_code == 200


def test__old_version_1__is_beside_the_hub(client):
    body = {"instances": [{"data": {"text": "MKT"}}]}
    assert "predictions" in client.post("/api/v1/models/mini/predict/", json=body).json()


def test__body__may_begin_with_a_byte_order_mark(client):
    content = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
    found = client.post(
        "/api/v3/mini/encode/", content=content, headers={"content-type": "application/json"}
    )
    assert found.status_code == 200


# ------------------------------------------------------------------ other sites, other paths


def preflight(client, origin):
    return client.options(
        "/api/v3/mini/encode/",
        headers={
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        },
    )


def test__origins__named_ones_may_use_the_server_and_others_may_not(tmp_path):
    token = new_token(tmp_path / "tokens", "tests")
    with client_of(origins=(SITE,), tokens=tmp_path / "tokens") as client:
        assert preflight(client, SITE).headers["access-control-allow-origin"] == SITE
        assert (
            "access-control-allow-origin" not in preflight(client, "https://evil.example").headers
        )
        for headers, status in (({}, 401), ({"authorization": f"Bearer {token}"}, 200)):
            found = client.post(
                "/api/v3/mini/encode/", json=BODY, headers={"origin": SITE, **headers}
            )
            assert found.status_code == status
            assert found.headers["access-control-allow-origin"] == SITE


def test__origins__there_are_none_unless_they_are_named(client):
    assert preflight(client, SITE).status_code == 405
    found = client.post("/api/v3/mini/encode/", json=BODY, headers={"origin": SITE})
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    "origin", ["*", "example.org", "https://example.org/", "https://*.org", "null", ""]
)
def test__origins__are_whole(origin):
    with pytest.raises(InputError, match="scheme and the host"):
        Settings(origins=(origin,))


@pytest.mark.parametrize("prefix", ["", "/esm2"])
def test__root_path__may_be_left_out_or_passed_on_by_the_proxy(tmp_path, prefix):
    token = new_token(tmp_path / "tokens", "tests")
    known = {"authorization": f"Token {token}"}
    with client_of(root_path="/esm2", tokens=tmp_path / "tokens") as client:
        for path in ("/api/v1/mini/encode", "/api/v3/mini/encode/"):
            assert client.post(prefix + path, json=BODY).status_code == 401
            found = client.post(
                prefix + path, json=BODY, headers={"authorization": f"Token {token}"}
            )
            assert found.status_code == 200
        for path in ("/status", "/openapi.json", "/docs", "/metrics", "/api/v3/models/"):
            assert client.get(prefix + path).status_code == 401
        assert client.get(f"{prefix}/").text.startswith("<!doctype html>")
        assert client.get(f"{prefix}/healthz").status_code == 200
        document = client.get(f"{prefix}/openapi.json", headers=known)
        assert document.json()["servers"] == [{"url": "/esm2"}]


@pytest.mark.parametrize("path", ["esm2", "/esm2/", "/api", "/api/v3", "//x", "/a b", "/a?b"])
def test__root_path__is_a_path_of_its_own(path):
    with pytest.raises(InputError, match="root_path"):
        Settings(root_path=path)


def test__endpoint__may_be_the_address_of_the_hub():
    with served() as url:
        for path in ("/api/v1", "/api/v3/", ""):
            remote = Engine("mini", endpoint=url + path, cache=None).embed(["MKTAYI"])
            np.testing.assert_allclose(
                remote, Engine("mini", cache=None).embed(["MKTAYI"]), atol=1e-6
            )


# ------------------------------------------------------------------ the SDK


@pytest.fixture(scope="module")
def sdk(tmp_path_factory) -> Path:
    """Make an environment for the SDK; its packages are not ours."""
    folder = tmp_path_factory.mktemp("sdk")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{SDK} cannot be installed")
    return python


PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from biolm.client import BioLM
from biolm.hub.discovery import list_models_from_openapi
# Batches of our own, and a rate: else it asks the hosted service for both, and waits.
items = [[{"sequence": "MKTAYI"}, {"sequence": "GSHM"}]]
options = {"entity": "mini", "rate_limit": "100/second"}
print(json.dumps({
    "models": list_models_from_openapi(sys.argv[1]),
    "right": BioLM(**options, action="encode", items=items,
                   params={"include": ["mean", "per_residue"], "repr_layers": [-1]}),
    "wrong": BioLM(**options, action="encode", items=[[{"sequence": "MKT1YI"}]]),
    "score": BioLM(**options, action="score", items=items),
}))
"""


@pytest.mark.slow
def test__sdk__lists_models_embeds_and_shows_errors(sdk, tmp_path):
    token = new_token(tmp_path / "tokens", "tests")
    with served() as url:
        address = f"{url}/api/v1"
        environment = {
            **os.environ,
            "BIOLM_BASE_API_URL": address,
            "BIOLM_TOKEN": token,
            "BIOLM_THREADS": "4",  # its default of 16 is an error on machines of two cores
            "HOME": str(tmp_path),
            "HTTPS_PROXY": "http://127.0.0.1:9",  # nothing leaves this machine
            "NO_PROXY": "127.0.0.1",
        }
        command = [sdk, "-c", PROGRAM, address]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        local = requests.post(f"{address}/mini/log_prob", json=BODY, timeout=60).json()["results"]
    assert [model["slug"] for model in found["models"]] == ["mini"]
    engine = Engine("mini", cache=None)
    for entry, sequence in zip(found["right"], ["MKTAYI", "GSHM"], strict=True):
        [residues] = entry["residue_embeddings"]
        np.testing.assert_allclose(
            residues["embeddings"], engine.residues([sequence])[0], atol=1e-5
        )
    assert "holds '1' at position 4" in json.dumps(found["wrong"])
    assert found["score"] == local
