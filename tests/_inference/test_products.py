"""What else is read off a forward pass, against fair-esm on the same weights, packed together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import random_esm2, write_fair_esm
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_features import Engine
from esm2_features._checkpoints import open_checkpoint
from esm2_features._inference.local import LocalBackend
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, CANONICAL_TOKENS, encode
from esm2_features._inputs.views import SequenceView, window_weights, windows
from esm2_features._model.attention_maps import page_rank
from esm2_features._model.layout import Layout
from esm2_features._model.linear import _can_pack
from esm2_features._model.reference import Reference
from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    InvalidRegionError,
    OutOfMemoryError,
    SequenceTooLongError,
)

SEQUENCES = [
    "MKTAYIAKQR",
    "GG",
    "GSHMVL<mask>SE<mask>",
    "W",
    "ACDEFGHIKLMNPQRSTVWYXBUZO" * 3,
    "MKTAYIAKQR",
    "PEPTIDEPEP",
]
LAYERS, DIM, HEADS = 4, 64, 4
# Where products are packed (x86), batch mates change nothing by a bit; elsewhere, hardly.
EXACT = 0.0 if _can_pack(torch.zeros(1, 1)) else 1e-5


@pytest.fixture(scope="module")
def model():
    """A random network whose attention is not nearly uniform, so that contacts differ."""
    model = random_esm2(layers=LAYERS, dim=DIM, heads=HEADS, seed=5)
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.q_proj.weight *= 4
        model.contact_head.regression.weight *= 100
    return model


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return write_fair_esm(model, tmp_path_factory.mktemp("products") / "small.pt")


@pytest.fixture(scope="module")
def fair_esm(model):
    """What fair-esm gives for one sequence by itself."""

    @torch.no_grad()
    def of(sequence):
        tokens = torch.from_numpy(encode(sequence.replace("<mask>", "#"))).long()[None]
        found = model(tokens, repr_layers=range(LAYERS + 1), return_contacts=True)
        representations = {k: x[0, 1:-1].numpy() for k, x in found["representations"].items()}
        logits = found["logits"][0, 1:-1]
        return {
            "residues": representations,
            "logits": logits.numpy(),
            "log_probs": logits[:, CANONICAL_TOKENS].log_softmax(-1).numpy(),
            "tokens": logits.log_softmax(-1).numpy(),
            "contacts": found["contacts"][0].numpy(),
            "attentions": found["attentions"][0].numpy(),
        }

    return of


@pytest.fixture
def engine(checkpoint, tmp_path):
    return lambda **options: Engine(checkpoint, **{"cache": tmp_path, **options})


PARITY = [
    ("residues", {}, 1e-5, lambda it: it["residues"][LAYERS]),
    ("residues", {"layers": 2}, 1e-5, lambda it: it["residues"][2]),
    ("residues", {"layers": "all"}, 1e-5, lambda it: it["residues"]),
    ("residues", {"layers": [0, -1]}, 1e-5, lambda it: {k: it["residues"][k] for k in (0, 4)}),
    ("logits", {}, 1e-4, lambda it: it["logits"]),
    ("log_probs", {}, 1e-4, lambda it: it["log_probs"]),
    ("log_probs", {"over": "tokens"}, 1e-4, lambda it: it["tokens"]),
    ("contacts", {}, 1e-5, lambda it: it["contacts"]),
    ("attentions", {}, 1e-6, lambda it: it["attentions"]),
    ("attentions", {"layers": [3, 1]}, 1e-6, lambda it: it["attentions"][[2, 0]]),
]


@pytest.mark.parametrize("how", ["method", "stream"])
@pytest.mark.parametrize("batch_tokens", [1, 2048])
@pytest.mark.parametrize(("product", "options", "atol", "pick"), PARITY)
def test__products__equal_those_of_fair_esm(
    engine, fair_esm, product, options, atol, pick, batch_tokens, how
):
    one = engine(batch_tokens=batch_tokens)
    if how == "method":
        found = getattr(one, product)(SEQUENCES, **options)
    else:
        found = list(one.stream(iter(SEQUENCES), product, **options))
    assert len(found) == len(SEQUENCES)
    for sequence, ours in zip(SEQUENCES, found, strict=True):
        theirs = pick(fair_esm(sequence))
        if not isinstance(theirs, dict):
            ours, theirs = {0: ours}, {0: theirs}
        assert list(ours) == list(theirs)
        for key, array in ours.items():
            assert array.dtype == np.float32
            assert array.shape == theirs[key].shape
            np.testing.assert_allclose(array, theirs[key], atol=atol, rtol=1e-5)


def test__contacts__of_this_network_differ_enough_to_tell_right_from_wrong(fair_esm):
    contacts = fair_esm(SEQUENCES[4])["contacts"]
    assert contacts.std() > 0.1
    assert fair_esm(SEQUENCES[4])["attentions"].std() > 0.02


def test__products__are_those_of_a_list_of_nothing(engine):
    one = engine()
    for product in ("residues", "logits", "log_probs", "contacts", "attentions", "predict_masked"):
        assert getattr(one, product)([]) == []
        assert list(one.stream(iter([]), product)) == []


def test__products__of_equal_sequences_are_arrays_of_their_own(engine):
    first, second = engine().logits(["MKTA", "MKTA"])
    first[:] = 0
    assert (second != 0).all()
    one, other = engine(layers=[1, 2]).residues(["MKTA", "MKTA"])
    one[1][:] = 0
    assert (other[1] != 0).any()


def test__residues__are_of_the_engines_own_layers(engine):
    assert isinstance(engine(layers=2).residues(["MK"])[0], np.ndarray)
    assert list(engine(layers=[2]).residues(["MK"])[0]) == [2]
    assert list(engine(layers="all").residues(["MK"])[0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("product", ["embedding", "residues", "contacts"])
def test__stream__reads_no_further_ahead_than_a_portion(engine, monkeypatch, product):
    monkeypatch.setattr("esm2_features._inference.products._STREAM_SEQUENCES", 2)
    read = []

    def sequences():
        for sequence in ["MKTA", "GG", "ACD", "W"]:
            read.append(sequence)
            yield sequence

    stream = engine().stream(sequences(), product)
    next(stream)
    assert read == ["MKTA", "GG"]
    assert len(list(stream)) == 3


def test__stream__holds_no_more_results_than_a_portion(engine, monkeypatch):
    monkeypatch.setattr("esm2_features._inference.products._STREAM_BYTES", 1)
    one = engine()
    expected = one.contacts(SEQUENCES)
    portions = []
    results = one.runner.results
    monkeypatch.setattr(
        one.runner, "results", lambda *some: portions.append(some[0]) or results(*some)
    )
    found = list(one.stream(SEQUENCES, "contacts"))
    assert [len(portion) for portion in portions] == [1] * len(SEQUENCES)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test__stream__counts_rows_over_all_portions(engine, monkeypatch):
    monkeypatch.setattr("esm2_features._inference.products._STREAM_SEQUENCES", 2)
    with pytest.raises(InputError, match=r"in row 4|row 4") as caught:
        list(engine().stream(["MK", "GG", "AC", "W", "M1"], "logits"))
    assert caught.value.index == 4


# ------------------------------------------------------------------ masks


def test__predict_masked__is_the_distribution_at_each_mask(engine, fair_esm):
    masked = "GSHMVL<mask>SE<mask>"
    one = engine()
    other, found = one.predict_masked(["<mask>", masked])
    assert found.positions.tolist() == [6, 9]
    expected = np.exp(fair_esm(masked)["log_probs"][[6, 9]])
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    assert other.probabilities.shape == (1, 20)
    assert one.n_computed == 2
    again = one.predict_masked([masked])[0]
    assert one.n_computed == 2, "it was cached"
    np.testing.assert_array_equal(again.probabilities, found.probabilities)


def test__predict_masked__without_a_mask_names_the_row(engine):
    with pytest.raises(InputError, match=r"row 1 holds no <mask>"):
        engine().predict_masked(["MK<mask>", "MKT"])


@pytest.mark.parametrize("masked", [True, False])
def test__log_probs_at__are_those_of_one_residue_and_cached(engine, fair_esm, masked):
    protein = "MKTAYIAKQR"
    one = engine()
    where = [(protein, 0), (protein, 4), (protein, 4), ("GG", 1)]
    sites = [one.policy.site(*at, masked=masked) for at in where]
    found = one.runner.log_probs(sites)
    for row, (sequence, position) in enumerate(where):
        seen = sequence
        if masked:
            seen = f"{sequence[:position]}<mask>{sequence[position + 1 :]}"
        np.testing.assert_allclose(found[row], fair_esm(seen)["tokens"][position], atol=1e-4)
    # A masked copy for each position; otherwise one pass for each sequence.
    assert one.n_computed == (3 if masked else 2)
    again = one.runner.log_probs([sites[3], sites[1]])
    assert one.n_computed == (3 if masked else 2)
    np.testing.assert_array_equal(again, found[[3, 1]])


def test__log_probs_at__a_masked_position_is_one_for_all_residues_that_may_stand_there(engine):
    one = engine()
    sites = [one.policy.site(sequence, 1, masked=True) for sequence in ("MKTA", "MRTA", "MWTA")]
    one.runner.log_probs(sites)
    assert one.n_computed == 1


def test__log_probs_at__a_position_that_is_none_is_an_error(engine):
    with pytest.raises(IndexError, match="position 4 of a sequence of 4 residues"):
        engine().policy.site("MKTA", 4, masked=True)


def test__logits__without_a_head_say_so(tmp_path):
    import json

    from checkpoints import hugging_face_config, hugging_face_state
    from safetensors.torch import save_file

    model = random_esm2(2, 32, 2)
    state = {k: v for k, v in hugging_face_state(model).items() if not k.startswith("lm_head")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {**hugging_face_config(model), "architectures": ["EsmModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for call in (Engine.logits, Engine.log_probs):
        with pytest.raises(CheckpointError, match="no language-model head"):
            call(Engine(tmp_path, cache=None), ["MKTA"])


# ------------------------------------------------------------------ windows

LONG = "ACDEFGHIKLMNPQRSTVWYWVTSRQPNMLK"


@pytest.mark.parametrize("product", ["residues", "logits"])
def test__window__residues_are_the_weighted_mean_of_fair_esms_windows(engine, fair_esm, product):
    size = 12
    [found] = getattr(engine(too_long="window", max_residues=size), product)([LONG])
    width = found.shape[1]
    expected, total = np.zeros((len(LONG), width)), np.zeros((len(LONG), 1))
    for window in windows(len(LONG), size):
        theirs = fair_esm(LONG[window.start : window.stop])[product]
        theirs = theirs[LAYERS] if product == "residues" else theirs
        weights = window_weights(size)[:, None]
        expected[window.start : window.stop] += weights * theirs
        total[window.start : window.stop] += weights
    np.testing.assert_allclose(found, expected / total, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max", "std"])
def test__window__vectors_are_pooled_over_the_whole_sequence(engine, pooling):
    one = engine(too_long="window", max_residues=12, pooling=pooling)
    [residues] = one.residues([LONG])
    expected = getattr(residues, pooling)(0)
    np.testing.assert_allclose(one.embed([LONG])[0], expected, atol=1e-5)
    np.testing.assert_array_equal(one.embed([LONG]), one.embed([LONG]))


@pytest.mark.parametrize("pooling", ["cls", "eos"])
def test__window__special_tokens_are_the_mean_of_all_windows(engine, pooling):
    parts = [LONG[w.start : w.stop] for w in windows(len(LONG), 12)]
    expected = engine(pooling=pooling).embed(parts).mean(0)
    found = engine(too_long="window", max_residues=12, pooling=pooling).embed([LONG])[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test__window__what_fits_is_computed_and_cached_as_without(engine):
    plain = engine().embed(["MKTAYIAKQR"])
    one = engine(too_long="window", max_residues=10)
    np.testing.assert_array_equal(one.embed(["MKTAYIAKQR"]), plain)
    assert one.n_computed == 0


def test__window__is_part_of_the_key(engine):
    """Whole, and in windows of two sizes, a sequence has three vectors."""
    found = []
    for options in ({}, {"max_residues": 12}, {"max_residues": 16}):
        one = engine(**{"max_residues": None, "too_long": "window", **options})
        found.append(one.embed([LONG]))
        assert one.n_computed == 1
    assert not np.allclose(found[0], found[1], atol=1e-3)
    assert not np.allclose(found[1], found[2], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([1, 64, 4096]))
def test__window__vectors_do_not_depend_on_batch_mates(lengths, budget):
    sequences = [(CANONICAL_RESIDUES * 2)[:n] for n in lengths]
    options = {"max_residues": 12, "too_long": "window", "cache": None}
    alone = np.concatenate([Engine("mini", **options).embed([s]) for s in sequences])
    together = Engine("mini", batch_tokens=budget, **options).embed(sequences)
    np.testing.assert_allclose(together, alone, rtol=0, atol=EXACT)


@pytest.mark.parametrize("product", ["contacts", "attentions"])
def test__window__maps_are_refused(engine, product):
    one = engine(too_long="window", max_residues=12)
    with pytest.raises(SequenceTooLongError, match=f"{product} cannot be put together") as caught:
        getattr(one, product)(["MKTA", LONG])
    assert (caught.value.index, caught.value.length, caught.value.limit) == (1, len(LONG), 12)
    assert len(getattr(one, product)(["MKTA"])) == 1


def test__window__masked_residue_is_seen_in_the_window_around_it(engine, fair_esm):
    one = engine(too_long="window", max_residues=12)
    sites = [one.policy.site(LONG, position, masked=True) for position in (0, 16)]
    found = one.runner.log_probs(sites)
    for row, (position, start) in enumerate([(0, 0), (16, 10)]):
        part = LONG[start : start + 12]
        at = position - start
        seen = f"{part[:at]}<mask>{part[at + 1 :]}"
        np.testing.assert_allclose(found[row], fair_esm(seen)["tokens"][at], atol=1e-4)


# ------------------------------------------------------------------ parts, importance


@pytest.mark.parametrize("pooling", ["mean", "max", "std"])
@pytest.mark.parametrize(
    ("region", "positions"),
    [((2, 5), [2, 3, 4]), (7, [7]), ([8, 0, 8], [0, 8]), ("1:3,9", [1, 2, 9]), (None, range(10))],
)
def test__regions__are_pooled_with_the_whole_sequence_as_context(
    engine, fair_esm, pooling, region, positions
):
    one = engine(pooling=pooling)
    found = one.embed(["GG", "MKTAYIAKQR"], regions=[None, region])
    residues = fair_esm("MKTAYIAKQR")["residues"][LAYERS][list(positions)]
    np.testing.assert_allclose(found[1], getattr(residues, pooling)(0), atol=1e-5)


parts = st.none() | st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda p: (p[0], sum(p)))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(16, 40), parts), min_size=1, max_size=8),
    st.sampled_from([1, 100, 2048]),
)
def test__regions__vectors_do_not_depend_on_batch_mates(rows, budget):
    sequences = [(CANONICAL_RESIDUES * 3)[n : 2 * n] for n, _ in rows]
    regions = [region for _, region in rows]
    options = {"cache": None, "pooling": ["mean", "max", "std", "parti"]}
    together = Engine("mini", batch_tokens=budget, **options).embed(sequences, regions=regions)
    one = Engine("mini", **options)
    alone = [one.embed([s], regions=[r])[0] for s, r in zip(sequences, regions, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=0, atol=EXACT)


def test__regions__of_one_sequence_come_of_one_pass(engine):
    one = engine()
    regions = [(0, 3), (3, 6), 7, None]
    found = one.embed(["MKTAYIAKQR"] * 4, regions=regions)
    assert one.n_computed == 1
    for row, region in zip(found, regions, strict=True):
        np.testing.assert_allclose(row, one.embed(["MKTAYIAKQR"], regions=[region])[0], atol=1e-6)
    assert one.n_computed == 1, "each is cached"


def test__region__that_is_everything_is_no_region(engine):
    engine().embed(["MKTAYIAKQR"])
    one = engine(region=(0, 10))
    one.embed(["MKTAYIAKQR"])
    assert one.n_computed == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"region": (2, 5), "pooling": "cls"}, "special tokens belong to the whole"),
        ({"region": (5, 2)}, r"Got region=\(5, 2\)"),
        ({"region": (-3, 2)}, r"Got region=\(-3, 2\)"),
        ({"region": "heavy"}, "Got region='heavy'"),
        ({"too_long": "window", "pooling": "parti"}, "importance is read off attention"),
        ({"too_long": "cut"}, '"raise", "truncate", "window"'),
    ],
)
def test__options__that_cannot_be_are_refused_at_once(engine, options, match):
    with pytest.raises(InputError, match=match):
        engine(**options)


def test__region__beyond_a_sequence_names_the_row(engine):
    with pytest.raises(InvalidRegionError) as caught:
        engine(region=(2, 5)).embed(["MKTAYIAKQR", "GG"])
    assert (caught.value.index, caught.value.length) == (1, 2)


def test__regions__must_be_one_for_each_sequence(engine):
    with pytest.raises(InputError, match="Got 1 regions for 2 sequences"):
        engine().embed(["MK", "GG"], regions=[(0, 1)])


def test__regions__of_special_tokens_are_refused(engine):
    with pytest.raises(InputError, match="special tokens belong to the whole"):
        engine(pooling=["mean", "cls"]).embed(["MKTA"], regions=[(0, 2)])


@pytest.mark.parametrize("layer", [1, -1])
def test__parti__weights_residues_by_their_rank_in_fair_esms_attention(engine, fair_esm, layer):
    found = engine(pooling=["parti", "mean"], layers=layer).embed(SEQUENCES)
    for sequence, row in zip(SEQUENCES, found, strict=True):
        theirs = fair_esm(sequence)
        edges = torch.from_numpy(theirs["attentions"]).amax((0, 1))
        weights = page_rank(edges[None])[0, 1:-1].numpy()
        residues = theirs["residues"][LAYERS if layer == -1 else layer]
        expected = (weights[:, None] * residues).sum(0) / weights.sum()
        np.testing.assert_allclose(row[:DIM], expected, atol=1e-5)
        np.testing.assert_allclose(row[DIM:], residues.mean(0), atol=1e-5)


def test__parti__is_no_part_of_all(engine):
    assert engine(pooling="all").poolings == ("mean", "max", "std", "cls", "eos")
    one = engine(store="all", pooling="parti")
    one.embed(["MKTA"])
    assert {(it.spec.layer, it.spec.pooling) for it in one.cache.info().spaces} == {
        *((layer, word) for layer in range(5) for word in ("mean", "max", "std", "cls", "eos")),
        (4, "parti"),
    }


# ------------------------------------------------------------------ options of products


@pytest.mark.parametrize(
    ("product", "options", "error", "match"),
    [
        ("logits", {"layers": 1}, InputError, "Got layers=1, which means nothing for logits"),
        ("contacts", {"over": "tokens"}, InputError, "Got over='tokens', which means nothing"),
        ("embedding", {"layers": 1}, InputError, "Got layers=1, which means nothing"),
        ("predict_masked", {"over": "tokens"}, InputError, "means nothing for predict_masked"),
        ("log_probs", {"over": "letters"}, InputError, 'expected one of "residues", "tokens"'),
        ("attentions", {"layers": 0}, InputError, "the blocks of small are 1 to 4"),
        ("residues", {"layers": 9}, InputError, "Got layers=9"),
        ("embeddings", {}, InputError, "Got product='embeddings'"),
        ("residues", {"layers": "most"}, TypeError, "Got layers='most'"),
    ],
)
def test__stream__refuses_options_before_anything_is_read(engine, product, options, error, match):
    def never():
        raise AssertionError("it was read")
        yield

    with pytest.raises(error, match=match):
        engine().stream(never(), product, **options)


def test__products__of_an_engine_with_a_region_are_refused(engine):
    with pytest.raises(InputError, match="which is for pooling: logits are of every residue"):
        engine(region=(0, 2)).logits(["MKTA"])


def test__contacts__without_a_regression_say_so():
    with pytest.raises(CheckpointError, match="needs a contact regression"):
        Engine("mini", cache=None).contacts(["MKTA"])


def test__residues__of_the_embedded_model_equal_those_of_fair_esm():
    reference = Reference(open_checkpoint("mini"))
    sequences = ["GIGAVLKVLTTGLPALISWIKRKRQQ", "CYIQNCPLG", "RPKPQQFFGLM"]
    for sequence, logits in zip(
        sequences, Engine("mini", cache=None).logits(sequences), strict=True
    ):
        np.testing.assert_allclose(logits, reference.layers(sequence)["logits"][1:-1], atol=1e-4)


def test__views__in_the_cache_are_told_apart(engine):
    """The same residues as a whole, in part and in windows are different rows."""
    one = engine(max_residues=None)
    texts = [LONG, str(SequenceView(LONG, 0, ((0, 5),))), str(SequenceView(LONG, 12))]
    found = one.runner.embed(texts, one.columns)
    assert len({row.tobytes() for row in found}) == 3
    again = engine(max_residues=None)
    np.testing.assert_array_equal(again.runner.embed(texts, again.columns), found)


# ------------------------------------------------------------------ memory


class SmallBackend(LocalBackend):
    """Runs out of memory above so many parts of sequences, or tokens."""

    most_parts = most_tokens = 10**6

    def forward(self, network, extractor, sharing, views, budget):
        tokens = max(len(batch.tokens) for batch in Layout(views, budget).batches)
        if len(views) > self.most_parts or tokens > self.most_tokens:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")
        self.__dict__.setdefault("passes", []).append((len(views), tokens))
        return super().forward(network, extractor, sharing, views, budget)


def small(checkpoint, **options):
    """An engine with such a backend, and the backend."""
    engine = Engine(checkpoint, cache=None, **options)
    engine.runner.backend.__class__ = SmallBackend
    return engine, engine.runner.backend


def test__memory__parts_of_one_sequence_are_divided(checkpoint):
    regions = [(start, start + 5) for start in range(10)]
    sequences = ["MKTAYIAKQRQISFVKSHFSRQ"] * 10
    one, backend = small(checkpoint)
    backend.most_parts = 3
    found = one.embed(sequences, regions=regions)
    assert max(parts for parts, _ in backend.passes) <= 3
    expected = Engine(checkpoint, cache=None).embed(sequences, regions=regions)
    np.testing.assert_array_equal(found, expected)


def test__memory__windows_keep_to_the_budget(checkpoint):
    one, backend = small(checkpoint, max_residues=12, too_long="window", batch_tokens=30)
    found = one.embed([LONG * 4])
    assert max(tokens for _, tokens in backend.passes) <= 30
    whole = Engine(checkpoint, cache=None, max_residues=12, too_long="window")
    np.testing.assert_allclose(found, whole.embed([LONG * 4]), rtol=0, atol=EXACT)


def test__memory__windows_that_do_not_fit_together_go_one_by_one(checkpoint):
    one, backend = small(checkpoint, max_residues=12, too_long="window")
    backend.most_tokens = 14
    whole = Engine(checkpoint, cache=None, max_residues=12, too_long="window")
    np.testing.assert_allclose(one.embed([LONG]), whole.embed([LONG]), rtol=0, atol=EXACT)
    backend.most_tokens = 13
    with pytest.raises(OutOfMemoryError) as caught:
        one.embed([LONG + "M"])
    assert caught.value.length == len(LONG) + 1


def test__memory__residues_of_many_parts_are_not_copied_at_once(checkpoint, monkeypatch):
    monkeypatch.setattr("esm2_features._model.layout._COPIED_BYTES", 1)
    regions = [(start, start + 5) for start in range(10)]
    sequences = ["MKTAYIAKQRQISFVKSHFSRQ"] * 10
    options = {"cache": None, "pooling": ["mean", "std", "parti"]}
    found = Engine(checkpoint, **options).embed(sequences, regions=regions)
    monkeypatch.undo()
    expected = Engine(checkpoint, **options).embed(sequences, regions=regions)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


# ------------------------------------------------------------------ what is odd


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        ((2, 5), r"Got regions=\(2, 5\), which is one region"),
        ("25", "Got regions='25', which is one region"),
        (3, "Got regions=3, which is one region"),
        (np.int64(3), "which is one region"),
        (np.array(3), "which is one region"),
        ({0: (1, 3), 1: (2, 4)}, "Got dict as regions"),
        ({(1, 3), (2, 4)}, "Got set as regions"),
        (pd.DataFrame({"a": [1, 2], "b": [1, 2]}), "Got DataFrame as regions"),
        ((cell for cell in [1, 2]), "Got generator as regions"),
    ],
)
def test__regions__that_are_no_list_are_refused(engine, regions, match):
    with pytest.raises(TypeError, match=match):
        engine().embed(["MKTAYI", "GSHMVL"], regions=regions)


def test__regions__may_be_a_column_with_gaps(engine):
    one = engine()
    expected = one.embed(["MKTAYI", "GSHMVL"], regions=[None, 3])
    found = one.embed(["MKTAYI", "GSHMVL"], regions=pd.Series([None, 3]))
    np.testing.assert_array_equal(found, expected)


def test__store__all_keeps_all_of_whole_sequences_beside_parts(engine):
    engine(store="all").embed(["MKTAYI", "GSHMVL"], regions=[None, (1, 3)])
    one = engine(pooling="cls")
    one.embed(["MKTAYI"])
    assert one.n_computed == 0


@pytest.mark.parametrize("nothing", [[], (), np.array([], dtype=object), pd.Series([], dtype=str)])
def test__nothing__gives_nothing(engine, nothing):
    one = engine()
    assert one.embed(nothing).shape == (0, DIM)
    assert one.logits(nothing) == []
    assert list(one.stream(nothing)) == []


def test__parti__goes_with_windows_where_nothing_is_too_long(engine):
    one = engine(pooling="parti", too_long="window", max_residues=None)
    np.testing.assert_array_equal(one.embed([LONG]), engine(pooling="parti").embed([LONG]))


def test__message__without_weights_shows_sequences_as_they_were_written(tmp_path):
    # Weights of its own: a network that is in memory needs no file.
    moved = write_fair_esm(random_esm2(2, 32, 2, seed=99), tmp_path / "moved.pt")
    one = Engine(moved, cache=tmp_path / "cache")
    one.checkpoint.identity  # noqa: B018 - known from now on
    moved.unlink()
    with pytest.raises(CheckpointError, match=r"1 different sequences \(such as 'AC<mask>D'\)"):
        one.predict_masked(["AC<mask>D"])


def test__layers__that_can_be_read_once_are_remembered(engine):
    assert list(engine(layers=iter([0, 2])).residues(["MKTA"])[0]) == [0, 2]


def test__export__of_vectors_and_likelihoods_says_which_to_choose(engine, tmp_path):
    one = engine()
    one.embed(["MKTA"])
    one.predict_masked(["MK<mask>A"])
    with pytest.raises(InputError, match=r"Choose one \(pooling=\.\.\.\)"):
        one.cache.export(tmp_path / "x.parquet")
    one.cache.export(tmp_path / "x.parquet", pooling="log_probs")


@pytest.mark.parametrize("odd", [np.array("MKT"), bytearray(), "", {}])
def test__nothing__that_is_no_container_is_refused(engine, odd):
    with pytest.raises(TypeError):
        engine().embed(odd)
