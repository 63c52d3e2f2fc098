"""The proof passes on a sound network, and fails on one that is a little wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import bare_state, random_esm2, write_fair_esm

from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.esm2 import ESM2Network
from esm2_features.cli import verify as _verify
from esm2_features.cli.verify import Difference, Report, _compare, verify
from esm2_features.exceptions import InputError


def test__verify__passes_on_every_layer_and_precision(tiny_checkpoint):
    report = verify(tiny_checkpoint, precisions=["float32", "bfloat16", "float16"], device="cpu")
    assert report.passed, report.text
    assert [d.layer for d in report.differences] == [
        *("0", "1", "2", "logits", "attention", "contacts")
    ] * 3
    assert max(d.largest for d in report.differences if d.precision == "bfloat16") > 1e-4


def test__verify__passes_on_the_embedded_model():
    precisions = ["float32", "bfloat16", "float16"]
    sequences = ["MKTAYIAKQR", "GG", "MK<mask>LV", "XBUZO" * 30]
    report = verify("mini", precisions=precisions, device="cpu", sequences=sequences)
    assert report.passed, report.text
    assert "4 sequences of 2 to 150 residues" in report.text


def test__verify__names_the_layers_of_a_network_that_is_wrong(tiny_checkpoint, monkeypatch):
    wrong = random_esm2(2, 32, 2, seed=7)
    with torch.no_grad():
        wrong.layers[1].fc1.bias[0] += 1e-3

    def load(checkpoint, **_):
        return [
            ESM2Network(
                "wrong", Architecture(2, 32, 2), bare_state(wrong), torch.device("cpu"), "float32"
            )
        ]

    monkeypatch.setattr(_verify, "get_networks", load)
    report = verify(tiny_checkpoint, device="cpu")
    assert not report.passed
    assert [d.layer for d in report.differences if d.of_tolerance > 1] == ["2", "logits"]
    assert report.text.count("FAILED") == 3


def test__verify__sees_attention_and_contacts_that_are_wrong(tiny_checkpoint, monkeypatch):
    wrong = random_esm2(2, 32, 2, seed=7)
    with torch.no_grad():
        wrong.layers[1].self_attn.q_proj.bias[0] += 0.1

    def load(checkpoint, **_):
        return [
            ESM2Network(
                "wrong", Architecture(2, 32, 2), bare_state(wrong), torch.device("cpu"), "float32"
            )
        ]

    monkeypatch.setattr(_verify, "get_networks", load)
    report = verify(tiny_checkpoint, device="cpu")
    failed = {d.layer for d in report.differences if d.of_tolerance > 1}
    assert failed == {"2", "logits", "attention", "contacts"}


def test__verify__checks_the_published_values_where_there_are_some(tmp_path, monkeypatch):
    """With the shape of the real model and random weights, they must be checked and missed."""
    path = tmp_path / "random.pt"
    write_fair_esm(random_esm2(6, 320, 20, seed=0), path)
    monkeypatch.setattr(_verify, "_PUBLISHED_MODEL", str(path))
    report = verify(path, sequences=["MKTAYIAKQR"], device="cpu")
    failed = {d.layer for d in report.differences if d.of_tolerance > 1}
    assert failed == {"published", "pub.logits"}


def test__published__values_are_those_of_the_public_file(shared_data):
    import json

    published = json.loads((shared_data / "published_values_esm2_t6_8M.json").read_text())
    test = published["transformers_test_modeling_esm"]
    for key, values, (tokens, ours) in (
        ("masked_lm", "logits[:, :3, :3]_pt", _verify._PUBLISHED_LOGITS),
        ("no_head", "last_hidden_state[:, :3, :3]_pt", _verify._PUBLISHED_REPRESENTATION),
    ):
        assert test[key]["input_ids"] == [list(tokens)]
        assert test[key][values] == [list(row) for row in ours]


def test__compare__a_nan_does_not_pass():
    ours = np.array([[np.nan, 1.0]], dtype=np.float32)
    difference = _compare("float32", "0", ours, np.ones((1, 2), dtype=np.float32))
    assert not Report("", (difference,)).passed
    assert not Report("", (Difference("bfloat16", "0", 1.0, 1.0, float("nan")),)).passed


def test__verify__refuses_a_precision_that_is_none(tiny_checkpoint):
    with pytest.raises(InputError, match="Got precisions='float64'"):
        verify(tiny_checkpoint, precisions="float64")
