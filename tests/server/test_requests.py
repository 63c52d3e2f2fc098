"""Several outputs of a request are read off one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

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


def test_the_page_about_the_api_describes_them_once(client):
    text = client.get("/docs").text
    assert text.count("/api/v1/") - text.count("/api/v1/models/") == 4
