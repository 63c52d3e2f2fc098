"""Warnings of a half precision that gains nothing, and what is said to users of cards."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from esm2_features import Engine
from esm2_features._inference import progress
from esm2_features._inference.local import LocalConnection
from esm2_features._inference.networks import forget_network
from esm2_features._model import half_precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test__gain__is_measured_once(precision):
    half_precision.gain.cache_clear()
    times = half_precision.gain(precision)
    assert 0.001 < times < 1000
    assert half_precision.gain(precision) == times


@pytest.mark.parametrize(("times", "warns"), [(0.54, True), (1.1, True), (2.0, False)])
def test__network__in_half_precision_warns_where_it_gains_nothing(
    tiny_checkpoint, monkeypatch, times, warns
):
    monkeypatch.setattr(half_precision, "gain", lambda precision: times)
    engine = Engine(tiny_checkpoint, precision="bfloat16", cache=None)
    forget_network(engine.checkpoint, device="cpu", precision="bfloat16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.embed(["MKTAYI"])
        engine.embed(["GSHM"])
    assert len(caught) == warns
    if warns:
        assert f"{times:.2g} times as fast" in str(caught[0].message)


def test__float32__is_not_measured(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(half_precision, "gain", pytest.fail)
    engine = Engine(tiny_checkpoint, cache=None)
    forget_network(engine.checkpoint, device="cpu", precision="float32")
    engine.embed(["MKTAYI"])


@pytest.mark.parametrize(("verbose", "said"), [(True, 1), (False, 0)])
def test__advice__is_given_once_to_those_who_watch(
    tiny_checkpoint, monkeypatch, capsys, verbose, said
):
    monkeypatch.setattr(LocalConnection, "advice", half_precision.ON_A_CARD)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.advise.cache_clear()
    engine = Engine(tiny_checkpoint, cache=None, verbose=verbose)
    engine.embed(["MKTAYI"])
    engine.embed(["GSHM"])
    assert capsys.readouterr().err.count("Cards multiply") == said


@pytest.mark.parametrize(
    ("device", "precision", "is_advised"),
    [("cuda", "float32", True), ("cuda", "float16", False), ("cpu", "float32", False)],
)
def test__advice__is_for_cards_in_float32(tiny_checkpoint, device, precision, is_advised):
    backend = Engine(tiny_checkpoint, precision=precision, cache=None).runner.backend
    networks = [SimpleNamespace(device=torch.device(device))]
    advice = LocalConnection(backend, networks, [1], [1]).advice
    assert (advice == half_precision.ON_A_CARD) == is_advised
