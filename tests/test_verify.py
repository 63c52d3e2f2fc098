"""The proof passes on a sound network, and fails on one that is a little wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from checkpoints import bare_state, random_esm2, write_fair_esm

from esm2_features import _verify, verify
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.esm2 import ESM2Network
from esm2_features._verify import Verification, VerifiedLayer, _Distances
from esm2_features.exceptions import CheckpointError, InputError

PRECISIONS = ["float32", "bfloat16", "float16"]


def test__verify__passes_on_every_layer_and_precision(tiny_checkpoint):
    verification = verify(tiny_checkpoint, precisions=PRECISIONS, device="cpu")
    assert verification.passed, str(verification)
    names = ["0", "1", "2", "logits", "attention", "contacts"]
    assert [(row.precision, row.layer) for row in verification.rows] == [
        (precision, name) for precision in PRECISIONS for name in names
    ]
    largest = {
        p: max(r.ours_largest for r in verification.rows if r.precision == p) for p in PRECISIONS
    }
    assert largest["bfloat16"] > 4 * largest["float16"] > 100 * largest["float32"]


def test__verify__passes_on_the_embedded_model():
    sequences = ["MKTAYIAKQR", "GG", "MK<mask>LV", "XBUZO" * 30]
    verification = verify("mini", precisions=PRECISIONS, device="cpu", sequences=sequences)
    assert verification.passed, str(verification)
    assert "13 sequences of 1 to 1022 residues" in str(verification)


@pytest.mark.parametrize(
    "precision",
    [pytest.param(p, marks=() if p == "float32" else pytest.mark.slow) for p in PRECISIONS],
)
def test__verify__passes_on_a_trained_network_without_a_head(trained_checkpoint, precision):
    sequences = None if precision == "float32" else ["MKTAYIAKQR" * 9, "GIGAVLKVLTTGLPALISWIKRKRQQ"]
    verification = verify(
        trained_checkpoint, precisions=precision, device="cpu", sequences=sequences
    )
    assert verification.passed, str(verification)
    names = [*map(str, range(7)), "attention", "contacts"]
    assert [row.layer for row in verification.rows] == names


def test__verify__goes_without_what_a_checkpoint_has_not(tmp_path):
    network = random_esm2(2, 32, 2, seed=7)
    torch.save({"model": bare_state(network)}, tmp_path / "no_contacts.pt")
    sequences = ["MKTAYIAKQR"]
    verification = verify(tmp_path / "no_contacts.pt", sequences=sequences, device="cpu")
    assert verification.passed
    assert [row.layer for row in verification.rows] == ["0", "1", "2", "logits", "attention"]


def verify_instead(wrong, checkpoint, monkeypatch):
    """Compare another network with the references of a checkpoint."""

    def load(*_, **__):
        shape, device = Architecture(2, 32, 2), torch.device("cpu")
        return [ESM2Network("wrong", shape, bare_state(wrong), device, "float32")]

    monkeypatch.setattr(_verify, "get_networks", load)
    return verify(checkpoint, device="cpu")


def test__verify__names_the_layers_of_a_network_that_is_wrong(tiny_checkpoint, monkeypatch):
    wrong = random_esm2(2, 32, 2, seed=7)
    with torch.no_grad():
        wrong.layers[1].fc1.bias[0] += 1e-3

    report = verify_instead(wrong, tiny_checkpoint, monkeypatch)
    assert not report.passed
    assert [row.layer for row in report.rows if row.of_allowed > 1] == ["2", "logits"]
    assert str(report).count("FAILED") == 3


def test__verify__sees_attention_and_contacts_that_are_wrong(tiny_checkpoint, monkeypatch):
    wrong = random_esm2(2, 32, 2, seed=7)
    with torch.no_grad():
        wrong.layers[1].self_attn.q_proj.bias[0] += 0.1

    report = verify_instead(wrong, tiny_checkpoint, monkeypatch)
    failed = {row.layer for row in report.rows if row.of_allowed > 1}
    assert failed == {"2", "logits", "attention", "contacts"}


def test__verify__checks_the_published_values_where_there_are_some(tmp_path, monkeypatch):
    """With the shape of the real model and random weights, they must be checked and missed."""
    path = tmp_path / "random.pt"
    write_fair_esm(random_esm2(6, 320, 20, seed=0), path)
    monkeypatch.setattr(_verify, "_PUBLISHED_MODEL", str(path))
    report = verify(path, sequences=["MKTAYIAKQR"], device="cpu")
    failed = {row.layer for row in report.rows if row.of_allowed > 1}
    assert failed == {"published", "pub.logits"}


def test__published__values_are_those_of_the_public_file(shared_data):
    published = json.loads((shared_data / "published_values_esm2_t6_8M.json").read_text())
    test = published["transformers_test_modeling_esm"]
    for key, values, (tokens, ours) in (
        ("masked_lm", "logits[:, :3, :3]_pt", _verify._PUBLISHED_LOGITS),
        ("no_head", "last_hidden_state[:, :3, :3]_pt", _verify._PUBLISHED_REPRESENTATION),
    ):
        assert test[key]["input_ids"] == [list(tokens)]
        assert test[key][values] == [list(row) for row in ours]


def test__verification__a_nan_does_not_pass():
    distances, theirs = _Distances(), _Distances()
    for values in ([1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]):
        distances.add(np.array([values], np.float32), np.ones((1, 2)))
        theirs.add(np.ones((1, 2), np.float32), np.ones((1, 2)))
    assert math.isnan(distances.largest)
    row = VerifiedLayer("float32", "0", 0.0, 0.0, 0.0, 0.0, distances.of_allowed(theirs))
    assert not Verification("", (row,)).passed
    assert "FAILED" in str(Verification("", (row,)))


def test__distances__are_measured_by_fair_esm_or_by_a_rounding_where_it_is_exact():
    exact = np.full((4, 3), 2.0)
    theirs, ours = _Distances(), _Distances()
    theirs.add(exact, exact)
    ours.add(exact + 2.0**-24, exact)
    assert ours.of_allowed(theirs) == pytest.approx(0.5 / 1.25)
    theirs.add(exact + 1e-5, exact)
    ours.add(exact + 3e-5, exact)
    assert ours.of_allowed(theirs) == pytest.approx(3 / 1.25, rel=1e-3)


def test__verify__refuses_a_precision_that_is_none(tiny_checkpoint):
    with pytest.raises(InputError, match="Got precisions='float64'"):
        verify(tiny_checkpoint, precisions="float64")


def test__verify__refuses_an_empty_list(tiny_checkpoint):
    with pytest.raises(InputError, match="no sequences to compare"):
        verify(tiny_checkpoint, sequences=[])


@pytest.mark.parametrize("sequence", ["M", pytest.param("MKTAYIAKQR", marks=pytest.mark.slow)])
def test__verify__is_not_decided_by_a_few_residues(trained_checkpoint, sequence):
    verification = verify(trained_checkpoint, sequences=[sequence], device="cpu")
    assert verification.passed, str(verification)
    assert "10 sequences of 1 to 1022 residues" in str(verification)


def test__verify__reports_a_regression_that_is_damaged(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model": bare_state(random_esm2(2, 32, 2, seed=7))}, path)
    (tmp_path / "weights-contact-regression.pt").write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="contact-regression"):
        verify(path, device="cpu")
