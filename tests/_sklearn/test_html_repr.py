"""What notebooks show of the transformers: scikit-learn's diagram, with the model and its state."""

from __future__ import annotations

import html
import os
import re

import pytest
from checkpoints import random_esm2, write_fair_esm
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline

from esm2_features import ESM2LikelihoodTransformer, ESM2Transformer
from esm2_features._checkpoints import checkpoint as _checkpoint
from esm2_features._inference import networks as _registry

SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGE"]

both = pytest.mark.parametrize("cls", [ESM2Transformer, ESM2LikelihoodTransformer])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A checkpoint that no other test has loaded, in a process that has loaded nothing."""
    monkeypatch.setattr(_registry, "_networks", {})
    monkeypatch.setattr(_registry, "_keys", {})
    path = tmp_path / "own.pt"
    write_fair_esm(random_esm2(layers=2, dim=32, heads=2, seed=12), path)
    return path


def captions(estimator):
    shown = re.findall(r'<div class="caption">(.*?)</div>', estimator._repr_html_())
    return [html.unescape(text) for text in shown]


@both
def test__html__shows_the_model_and_when_its_weights_are_loaded(cls, own):
    estimator = cls(own, device="cpu", cache=None)
    assert captions(estimator) == ["own: 0.0M parameters, weights not loaded"]
    estimator.fit(SEQUENCES)
    assert captions(estimator) == ["own: 0.0M parameters, weights not loaded"]
    estimator.transform(SEQUENCES)
    assert captions(estimator) == ["own: 0.0M parameters, weights loaded on cpu"]


def test__html__is_of_the_weights_in_the_precision_that_is_asked_for(own):
    ESM2Transformer(own, device="cpu", cache=None).transform(SEQUENCES)
    other = ESM2Transformer(own, device="cpu", cache=None, precision="bfloat16")
    assert captions(other) == ["own: 0.0M parameters, weights not loaded"]


def test__html__says_not_loaded_of_a_file_that_took_the_place_of_the_one_that_was(own):
    ESM2Transformer(own, device="cpu", cache=None).transform(SEQUENCES)
    os.utime(own, ns=(0, 0))  # as if another had been copied there
    captured = captions(ESM2Transformer(own, device="cpu", cache=None))
    assert captured == ["own: 0.0M parameters, weights not loaded"]


def test__html__says_not_loaded_in_a_process_that_cannot_use_what_its_parent_loaded(
    own, monkeypatch
):
    estimator = ESM2Transformer(own, device="cpu", cache=None)
    estimator.transform(SEQUENCES)
    monkeypatch.setattr(_registry.os, "getpid", lambda: -1)
    assert captions(estimator) == ["own: 0.0M parameters, weights not loaded"]


def test__html__of_official_models_says_their_size():
    assert captions(ESM2Transformer()) == [
        "esm2_t33_650M_UR50D: 651.0M parameters, weights not loaded"
    ]
    assert captions(ESM2Transformer("esm2_t48_15B_UR50D"))[0].startswith(
        "esm2_t48_15B_UR50D: 15.1B"
    )


def test__html__loads_nothing_and_takes_no_digest(own, monkeypatch):
    monkeypatch.setattr(_registry, "_load", None)
    monkeypatch.setattr(_checkpoint, "sha256_of", None)
    estimator = ESM2Transformer(own, device="cpu")
    assert captions(estimator) == ["own: 0.0M parameters, weights not loaded"]


@both
def test__html__shows_the_parameters(cls):
    shown = cls("mini", max_residues=77)._repr_html_()
    assert "max_residues" in shown
    assert "77" in shown


@both
def test__html__links_to_no_page_that_is_not_published(cls):
    assert cls("mini")._get_doc_link() == ""
    assert "href=" not in cls("mini")._repr_html_()
    pipeline = make_pipeline(cls("mini").fit(SEQUENCES), LogisticRegression())
    links = re.findall(r'href="([^"]+)"', pipeline._repr_html_())
    assert links  # those of scikit-learn's own estimators
    assert all(link.startswith("https://scikit-learn.org/") for link in links)


def test__html__in_a_pipeline_shows_each_model(own):
    union = FeatureUnion(
        [
            ("embedding", ESM2Transformer(own, device="cpu", cache=None)),
            ("likelihood", ESM2LikelihoodTransformer("mini", device="cpu", cache=None)),
        ]
    )
    pipeline = make_pipeline(union, LogisticRegression())
    shown = [text for text in captions(pipeline) if "weights" in text]
    assert shown == [
        "own: 0.0M parameters, weights not loaded",
        "mini: 2.7M parameters, weights not loaded",
    ]


@pytest.mark.parametrize(
    "wrong", [{"model": "no-such-model"}, {"model": 7}, {"model": "mini", "device": "toaster"}]
)
def test__html__of_parameters_that_cannot_be_is_shown_all_the_same(own, wrong):
    ESM2Transformer(own, device="cpu", cache=None).transform(SEQUENCES)
    estimator = ESM2Transformer(**wrong)
    assert captions(estimator) == []
    assert "ESM2Transformer" in estimator._repr_html_()
