"""The run: what is computed, what comes from the cache, and what happens when memory ends."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import bare_state, random_esm2
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_features._checkpoints import open_checkpoint
from esm2_features._engine import Engine
from esm2_features._inference.local import LocalBackend
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._inputs.words import is_missing_word
from esm2_features._model.packing import pack
from esm2_features._model.reference import Reference
from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    InvalidSequenceError,
    NumericalError,
    OutOfMemoryError,
    SequenceTooLongError,
    TruncationWarning,
)

SEQUENCES = ["MKTAYIAKQR", "GG", "MKTAYIAKQR", "W", "ACDEFGHIKLMNPQRSTVWY", "GSHMVLSEGE"]

peptide = st.text(alphabet=CANONICAL_RESIDUES, min_size=1, max_size=30)
peptides = st.lists(peptide.filter(lambda text: not is_missing_word(text)), min_size=1)


class RecordingBackend(LocalBackend):
    """Records which sequences went through the network, and can run out of memory."""

    most_tokens: int | None = None

    def forward(self, network, extractor, sharing, views, budget):
        self.__dict__.setdefault("batches", []).append(list(views))
        if self.most_tokens is not None and len(pack(views).tokens) > self.most_tokens:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
        return super().forward(network, extractor, sharing, views, budget)


class RecordingEngine(Engine):
    """An engine with such a backend."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.recorder.__class__ = RecordingBackend

    @property
    def recorder(self):
        return self.runner.backend

    @property
    def batches(self) -> list[list[str]]:
        return self.recorder.__dict__.get("batches", [])

    @property
    def computed(self) -> list[str]:
        return [sequence for batch in self.batches for sequence in batch]


@pytest.fixture
def engine(tiny_checkpoint, tmp_path):
    return lambda **options: RecordingEngine(tiny_checkpoint, **{"cache": tmp_path, **options})


def test__embed__equals_the_mean_over_residues_of_fair_esm(engine, tiny_checkpoint):
    reference = Reference(open_checkpoint(tiny_checkpoint))
    expected = [reference.layers(s)["2"][1:-1].mean(0) for s in SEQUENCES]
    np.testing.assert_allclose(engine().embed(SEQUENCES), expected, rtol=1e-5, atol=1e-5)


def test__embed__computes_each_distinct_sequence_once_and_never_again(engine):
    cold = engine()
    first = cold.embed(SEQUENCES)
    assert sorted(cold.computed) == sorted(set(SEQUENCES))
    warm = engine()
    np.testing.assert_array_equal(warm.embed(SEQUENCES[::-1]), first[::-1])
    assert warm.computed == []


def test__embed__without_a_cache_gives_the_same(engine):
    np.testing.assert_array_equal(engine(cache=None).embed(SEQUENCES), engine().embed(SEQUENCES))


@settings(max_examples=30, deadline=None)
@given(sequences=peptides, budget=st.integers(1, 200), data=st.data())
def test__embed__does_not_depend_on_order_budget_or_duplicates(
    tiny_checkpoint, sequences, budget, data
):
    alone = {
        s: Engine(tiny_checkpoint, cache=None, pooling=["mean", "std"]).embed([s])[0]
        for s in set(sequences)
    }
    shuffled = data.draw(st.permutations(sequences + sequences[:3]))
    engine = Engine(tiny_checkpoint, cache=None, pooling=["mean", "std"], batch_tokens=budget)
    for sequence, row in zip(shuffled, engine.embed(shuffled), strict=True):
        np.testing.assert_allclose(row, alone[sequence], rtol=0, atol=1e-6)


def test__embed__several_layers_and_poolings_come_from_one_pass(engine):
    several = engine(layers=[0, -1], pooling=["max", "mean"])
    rows = several.embed(SEQUENCES)
    assert sorted(several.computed) == sorted(set(SEQUENCES))
    singles = [
        engine(cache=None, layers=layer, pooling=pooling).embed(SEQUENCES)
        for layer in (0, 2)
        for pooling in ("max", "mean")
    ]
    np.testing.assert_allclose(rows, np.hstack(singles), rtol=0, atol=1e-6)
    assert several.feature_names[0] == "tiny_L0_max_0"
    assert several.feature_names[-1] == "tiny_L2_mean_31"
    assert len(several.feature_names) == rows.shape[1]


def test__embed__takes_what_is_there_and_computes_only_the_rest(engine):
    engine(layers=1).embed(SEQUENCES[:2])
    both = engine(layers=[1, 2])
    both.embed(SEQUENCES[:2])
    assert sorted(both.computed) == sorted(SEQUENCES[:2]), "layer 2 was missing"
    warm = engine(layers=[2, 1])
    warm.embed(SEQUENCES[:2])
    assert warm.computed == []


def test__embed__keeps_what_was_computed_before_an_error(engine, monkeypatch):
    failing = engine(batch_tokens=1)
    forward = RecordingBackend.forward

    def fail_at_the_shortest(self, network, extractor, sharing, views, budget):
        if views == ["W"]:
            raise KeyboardInterrupt
        return forward(self, network, extractor, sharing, views, budget)

    monkeypatch.setattr(RecordingBackend, "forward", fail_at_the_shortest)
    with pytest.raises(KeyboardInterrupt):
        failing.embed(SEQUENCES)
    monkeypatch.setattr(RecordingBackend, "forward", forward)
    resumed = engine()
    resumed.embed(SEQUENCES)
    assert resumed.computed == ["W"], "the longer ones came first and were written"


def test__embed__halves_a_batch_that_does_not_fit(engine):
    small = engine(cache=None)
    small.recorder.most_tokens = 24
    np.testing.assert_array_equal(small.embed(SEQUENCES), engine(cache=None).embed(SEQUENCES))
    assert len(small.batches) > 1


def test__embed__one_sequence_that_does_not_fit_is_an_error_that_names_it(engine):
    small = engine()
    small.recorder.most_tokens = 21
    with pytest.raises(OutOfMemoryError, match="One sequence of 20 residues") as caught:
        small.embed(SEQUENCES)
    assert (caught.value.length, caught.value.device) == (20, "cpu")


def test__embed__other_errors_are_not_taken_for_memory(engine, monkeypatch):
    def fail(self, network, extractor, sharing, views, budget):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(RecordingBackend, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        engine().embed(SEQUENCES)


def test__embed__no_sequences_give_no_rows(engine):
    assert engine(pooling=["mean", "max"]).embed([]).shape == (0, 64)


def test__embed__refuses_a_single_string(engine):
    with pytest.raises(TypeError, match=r"Pass a list: \[sequence\]"):
        engine().embed("MKT")
    with pytest.raises(TypeError, match=r"Pass a list: \[sequence\]"):
        engine().stream("MKT")  # at once, not when the first row is asked for


def test__embed__never_takes_the_names_of_columns_for_sequences(engine):
    frame = pd.DataFrame({"HEAVY": SEQUENCES})
    np.testing.assert_array_equal(engine().embed(frame), engine().embed(SEQUENCES))
    with pytest.raises(TypeError, match=r"list\(d.values\(\)\)"):
        engine().embed({"HEAVY": "MKTA"})
    with pytest.raises(TypeError, match="dict"):
        engine().stream({"HEAVY": "MKTA"})
    with pytest.raises(InputError, match="takes one column of sequences, but got 2"):
        engine().embed(pd.DataFrame({"heavy": SEQUENCES, "light": SEQUENCES}))


def test__embed__after_a_batch_that_did_not_fit_the_budget_stays_low(engine):
    small = engine(cache=None, batch_tokens=60)
    small.recorder.most_tokens = 24
    small.embed(["MKTAYIAKQR"] + [f"MKTAYIAKQ{a}" for a in CANONICAL_RESIDUES])
    too_large = [b for b in small.batches if sum(len(s) + 2 for s in b) > 24]
    assert len(too_large) <= 2


def test__embed__numbers_that_are_none_are_an_error_and_not_cached(engine, monkeypatch):
    monkeypatch.setattr(
        "esm2_features._model.pooling._OF_RESIDUES", {"mean": lambda x_BRD: x_BRD.mean(1) / 0.0}
    )
    with pytest.raises(NumericalError, match="infinities or NaN in float32 for a sequence of"):
        engine().embed(SEQUENCES)
    assert engine().cache.info().rows == 0


def test__embed__an_overflow_in_float16_is_an_error_with_a_remedy_that_helps(tmp_path):
    network = random_esm2(2, 32, 2, seed=7)
    with torch.no_grad():
        network.layers[0].fc1.bias += 7e4  # float16 ends at 65,504
    path = tmp_path / "large.pt"
    torch.save({"model": bare_state(network)}, path)
    options = {"device": "cpu", "cache": None}
    with pytest.raises(NumericalError, match='use precision="float32" or "bfloat16"'):
        Engine(path, precision="float16", **options).embed(SEQUENCES)
    for remedy in ("float32", "bfloat16"):
        assert np.isfinite(Engine(path, precision=remedy, **options).embed(SEQUENCES)).all()


def test__embed__dna_is_embedded_with_a_warning(engine):
    with pytest.warns(UserWarning, match="row 1 holds the letters ACGTUN only: is it DNA"):
        engine().embed(["MKTAYIAKQR", "ACGTACGTACGTACGTACGTA"])


def test__embed__is_exact_under_autocast_and_with_another_default_device(tiny_checkpoint):
    exact = Engine(tiny_checkpoint, cache=None).embed(SEQUENCES)
    code = f"""
import numpy as np, torch
from esm2_features import Engine
with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
    rows = Engine({str(tiny_checkpoint)!r}, cache=None).embed({SEQUENCES!r})
np.testing.assert_array_equal(rows, np.array({exact.tolist()!r}, np.float32))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test__stream__gives_the_rows_of_embed_and_reads_only_what_it_needs(engine, monkeypatch):
    monkeypatch.setattr("esm2_features._inference.products._STREAM_SEQUENCES", 4)
    taken = []

    def source():
        for sequence in SEQUENCES * 3:
            taken.append(sequence)
            yield sequence

    stream = engine().stream(source())
    first = next(stream)
    assert len(taken) == 4
    rows = np.stack([first, *stream])
    np.testing.assert_array_equal(rows, engine().embed(SEQUENCES * 3))


def test__stream__errors_name_the_row_of_the_whole_input(engine, monkeypatch):
    monkeypatch.setattr("esm2_features._inference.products._STREAM_SEQUENCES", 2)
    with pytest.raises(InvalidSequenceError, match="row 5") as caught:
        list(engine().stream(["MK", "MK", "MK", "MK", "MK", "M1"]))
    assert caught.value.index == 5
    with pytest.raises(SequenceTooLongError) as too_long:
        list(engine(max_residues=3).stream(["MK", "MK", "MKTA"]))
    assert too_long.value.index == 2


def test__truncate__is_said_once_for_all_windows_of_a_stream(engine, monkeypatch):
    monkeypatch.setattr("esm2_features._inference.products._STREAM_SEQUENCES", 2)
    cutting = engine(max_residues=5, too_long="truncate")
    with pytest.warns(TruncationWarning, match="4 of 6 sequences were cut") as caught:
        rows = list(cutting.stream(SEQUENCES))
    assert len(caught) == 1
    np.testing.assert_array_equal(rows, engine().embed([s[:5] for s in SEQUENCES]))


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("layers", 3, InputError),
        ("layers", "last", TypeError),
        ("pooling", "median", InputError),
        ("precision", "float64", InputError),
        ("device", "gpu", InputError),
        ("batch_tokens", 0, InputError),
        ("max_residues", -1, InputError),
        ("too_long", "drop", InputError),
        ("unknown", "drop", InputError),
        ("cache", 3, TypeError),
    ],
)
def test__options__are_checked_when_the_engine_is_made(engine, option, value, error):
    with pytest.raises(error, match=option):
        engine(**{option: value})


def test__options__a_device_that_is_not_there_is_named(engine):
    with pytest.raises(InputError, match=r"device='cuda:63', which this machine cannot use"):
        engine(device="cuda:63", cache=None).embed(["MK"])


def test__model__an_official_name_never_falls_back_to_another_model():
    with pytest.raises(CheckpointError, match="esm2_t6_8M_UR50D") as caught:
        Engine("esm2_t6_8M_UR50D", cache=None).embed(["MK"])
    assert "ESM2_FEATURES_OFFLINE" in str(caught.value)


@pytest.mark.parametrize("setting", ["set_float32_matmul_precision", "fp32_precision"])
def test__precision__float32_is_exact_whatever_the_user_has_set(setting, tiny_checkpoint):
    """In a process of its own, because the settings are those of a process."""
    import torch

    current, exact = "torch.get_float32_matmul_precision()", "highest"
    if hasattr(torch.backends.mkldnn, "matmul"):  # since PyTorch 2.9
        current = "(torch.backends.cuda.matmul.fp32_precision, "
        current += "torch.backends.mkldnn.matmul.fp32_precision)"
        exact = ("ieee", "ieee")
    elif setting == "fp32_precision":
        pytest.skip("this PyTorch has no such setting")
    lines = {
        "set_float32_matmul_precision": 'torch.set_float32_matmul_precision("medium")',
        "fp32_precision": 'torch.backends.cuda.matmul.fp32_precision = "tf32"; '
        'torch.backends.mkldnn.matmul.fp32_precision = "bf16"',
    }
    code = f"""
import torch
from esm2_features import Engine
from esm2_features._inference.local import LocalBackend
class Spy(LocalBackend):
    def forward(self, network, *rest):
        run = network.run
        def spied(*args):
            seen.append({current})
            yield from run(*args)
        network.run = spied
        return super().forward(network, *rest)
seen = []
exact = Engine({str(tiny_checkpoint)!r}, cache=None).embed(["MKTAYIAKQR"])
{lines[setting]}
before = {current}
assert before != {exact!r}, before
engine = Engine({str(tiny_checkpoint)!r}, cache=None)
engine.runner.backend.__class__ = Spy
again = engine.embed(["MKTAYIAKQR"])
after = {current}
assert seen == [{exact!r}], seen
assert after == before, after
assert (exact == again).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
