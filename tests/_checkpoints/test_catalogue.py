"""The table of models: digests that pin, shapes that are right, names in order."""

from __future__ import annotations

import json
import re

import pytest
from checkpoints import random_esm2

from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import (
    DEFAULT_MODEL,
    OFFICIAL,
    Architecture,
    available_models,
)
from esm2_features._checkpoints.headers import read_header


def test__available_models__are_all_names_smallest_first():
    cards = available_models()
    assert [card.name for card in cards] == ["mini", *OFFICIAL]
    sizes = [card.architecture.parameters for card in cards]
    assert sizes == sorted(sizes)
    assert DEFAULT_MODEL in OFFICIAL


@pytest.mark.parametrize("card", OFFICIAL.values(), ids=lambda card: card.name)
def test__official__shape_says_what_the_name_says(card):
    layers, millions = re.fullmatch(r"esm2_t(\d+)_(\d+[MB])_UR50D", card.name).groups()
    assert card.architecture.layers == int(layers)
    assert card.parameters == millions
    scale = {"M": 1e6, "B": 1e9}[millions[-1]]
    assert card.architecture.parameters / scale == pytest.approx(int(millions[:-1]), rel=0.08)


@pytest.mark.parametrize("shape", [(2, 32, 4), (3, 16, 2)])
def test__architecture__counts_the_parameters_of_fair_esm(shape):
    numbers = sum(parameter.numel() for parameter in random_esm2(*shape).parameters())
    assert Architecture(*shape).parameters == numbers


def test__embedded__shape_is_that_of_its_file():
    checkpoint = open_checkpoint("mini")
    assert read_header(checkpoint.source).architecture == checkpoint.architecture
    assert available_models()[0].architecture == checkpoint.architecture


def test__official__pins_are_the_public_ones(shared_data):
    public = json.loads((shared_data / "official_checkpoint_checksums.json").read_text())
    by_repository = {entry["hf_repo"]: entry for entry in public.values()}
    pinned = [card for card in OFFICIAL.values() if card.weights.sha256 is not None]
    assert {card.hf_repo for card in pinned} == set(by_repository)
    for card in pinned:
        entry = by_repository[card.hf_repo]
        for ours, theirs in (
            (card.weights, entry["weights"]),
            (card.regression, entry["contact_regression"]),
        ):
            assert ours.url.endswith(theirs["url_path"])
            assert (ours.sha256, ours.bytes) == (theirs["sha256"], theirs["bytes"])
        digests = [text.partition("sha256:")[2] for text in entry["hf_safetensors"]]
        assert digests == [card.safetensors_sha256] * len(digests)
        assert bool(digests) == (card.safetensors_sha256 is not None)
