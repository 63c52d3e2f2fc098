"""The operations of BioLM's hub, beside those of the hosted service."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from esm2_features import Engine
from esm2_features.server.app import create_app
from esm2_features.server.settings import Settings

SEQUENCE = "GIGAVLKVLTTGLPALISWIKRKRQQ"


@pytest.fixture
def client(tiny_checkpoint: Path) -> Iterator[TestClient]:
    models = {"tiny": str(tiny_checkpoint), "esm2_t6_8M_UR50D": "esm2_t6_8M_UR50D"}
    app = create_app(Settings(models=models, devices=("cpu",), cache=None))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as found:
        yield found


def body(*include, sequence=SEQUENCE):
    params = {"params": {"include": list(include)}} if include else {}
    return {"items": [{"sequence": sequence}], **params}


@pytest.mark.parametrize("end", ["", "/"])
def test_answers_are_those_of_version_3(client, end):
    masked = body(sequence="MK<mask>AYI")
    for action, sent in {"encode": body(), "predict": masked, "log_prob": body()}.items():
        found = client.post(f"/api/v1/tiny/{action}{end}", json=sent)
        assert found.status_code == 200
        assert found.content == client.post(f"/api/v3/tiny/{action}/", json=sent).content


def test_vectors_of_residues_have_the_name_by_which_they_were_asked_for(client, tiny_checkpoint):
    expected = Engine(tiny_checkpoint, device="cpu", cache=None).residues([SEQUENCE])[0]
    for include in (["per_residue"], ["per_token"], ["per_token", "mean", "per_residue"]):
        [result] = client.post("/api/v1/tiny/encode", json=body(*include)).json()["results"]
        names = {"per_residue": "residue_embeddings", "per_token": "per_token_embeddings"}
        wanted = {names[word] for word in include if word in names}
        assert {name for name in result if name in names.values()} == wanted
        for name in wanted:
            [layer] = result[name]
            assert layer["layer"] == 2
            np.testing.assert_allclose(layer["embeddings"], expected, atol=1e-6)


def test_npz_has_them_by_the_same_name(client):
    found = client.post(
        "/api/v1/tiny/encode", json=body("per_residue"), headers={"Accept": "application/x-npz"}
    )
    with np.load(io.BytesIO(found.content)) as arrays:
        assert arrays["per_residue_2_0"].shape == (len(SEQUENCE), 32)


def test_both_names_count_in_the_size_of_an_answer(tiny_checkpoint):
    numbers = len(SEQUENCE) * 32
    settings = Settings(
        models={"tiny": str(tiny_checkpoint)},
        devices=("cpu",),
        cache=None,
        max_answer_bytes=4 * numbers,
    )
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert client.post("/api/v1/tiny/encode", json=body("per_residue")).status_code == 200
        both = client.post("/api/v1/tiny/encode", json=body("per_residue", "per_token"))
        assert (both.status_code, both.json()["code"]) == (413, "answer_too_large")


def test_older_versions_do_not_know_per_residue(client):
    for path in ("/api/v3/tiny/encode/", "/api/v2/tiny/encode/"):
        assert client.post(path, json=body("per_residue")).status_code == 422


def test_version_1_is_beside_the_hub(client):
    found = client.post(
        "/api/v1/models/tiny/predict", json={"instances": [{"data": {"text": SEQUENCE}}]}
    )
    assert list(found.json()) == ["predictions"]


def test_its_client_finds_the_models_in_the_openapi_document(client):
    # What `biolm model list` does with it.
    paths = client.get("/openapi.json").json()["paths"]
    found = {
        match.groups()
        for path, methods in paths.items()
        if "post" in methods and (match := re.match(r"^/api/v1/([^/]+)/([^/]+)/?$", path))
    }
    actions = ("encode", "predict", "log_prob")
    assert found == {(model, action) for model in ("tiny", "esm2-8m") for action in actions}


@pytest.mark.parametrize(
    ("path", "sent", "status", "code"),
    [
        ("tiny/fold", body(), 404, "unknown_action"),
        ("nope/encode", body(), 404, "unknown_model"),
        ("tiny/encode", body(sequence="MK1"), 422, "invalid_sequence"),
        ("tiny/encode", body("per_atom"), 422, "invalid_request"),
        ("tiny/encode", {"instances": []}, 422, "invalid_request"),
    ],
)
def test_errors_have_the_text_where_its_client_looks_for_it(client, path, sent, status, code):
    found = client.post(f"/api/v1/{path}", json=sent)
    assert (found.status_code, found.json()["code"]) == (status, code)
    assert found.json()["error"].endswith(".")


def test_the_page_about_the_api_describes_them_once(client):
    text = client.get("/docs").text
    assert text.count("/api/v1/") - text.count("/api/v1/models/") == 3


# ------------------------------------------------------------------ several outputs


def test_several_outputs_are_read_off_one_forward_pass(client, ran):
    include = ["mean", "bos", "eos", "max", "std", "per_token", "contacts", "logits"]
    params = {"include": include, "repr_layers": [0, 1, -1]}
    sequences = [SEQUENCE, "MKTAYI", "M<mask>TX", SEQUENCE]
    items = [{"sequence": text} for text in sequences]
    found = client.post("/api/v3/tiny/encode/", json={"items": items, "params": params}).json()
    assert len(ran) == len(set(sequences))
    # They are those of a pass for each.
    alone = [
        client.post(
            "/api/v3/tiny/encode/", json={"items": items, "params": {**params, "include": word}}
        ).json()["results"]
        for word in include
    ]
    for i, result in enumerate(found["results"]):
        assert set(result) == set().union(*(results[i] for results in alone))
        for results in alone:
            for name, value in results[i].items():
                if name.endswith("embeddings"):
                    assert [part["layer"] for part in value] == [0, 1, 2]
                    for part, other in zip(result[name], value, strict=True):
                        for key in part:
                            np.testing.assert_allclose(part[key], other[key], atol=1e-5)
                elif name == "vocab_tokens":
                    assert result[name] == value
                else:
                    np.testing.assert_allclose(result[name], value, atol=1e-5)


@pytest.mark.parametrize(
    ("include", "passes"),
    [
        (["mean", "logits"], 1),
        (["mean", "per_token"], 1),
        (["contacts", "logits"], 1),
        (["parti", "logits", "per_token"], 2),
        (["mean", "attentions"], 2),
    ],
)
def test_passes_of_a_request(client, ran, include, passes):
    assert client.post("/api/v3/tiny/encode/", json=body(*include)).status_code == 200
    assert len(ran) == passes


def test_masks_and_vectors_share_a_pass(client, ran):
    sent = {"items": [{"sequence": "MK<mask>AYI"}], "params": {"include": ["mean"]}}
    [result] = client.post("/api/v3/tiny/predict/", json=sent).json()["results"]
    assert {"logits", "embeddings", "sequence_tokens"} <= set(result)
    assert len(ran) == 1


def test_outputs_come_in_the_order_that_they_have_always_had(client):
    include = ["logits", "attentions", "contacts", "per_token", "parti", "mean"]
    [result] = client.post("/api/v3/tiny/encode/", json=body(*include)).json()["results"]
    names = ["parti_embeddings", "embeddings", "per_token_embeddings", "contacts", "attentions"]
    assert list(result) == ["sequence_index", *names, "logits", "vocab_tokens"]
