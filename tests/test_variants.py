"""Scores of variants: equal to what fair-esm's own network gives, and nothing computed twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord

from esm2_features import Cache, Engine, _variants, scan_variants, score_variants
from esm2_features._checkpoints import open_checkpoint
from esm2_features._inference.runner import Runner
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, TOKENS
from esm2_features._model.reference import Reference
from esm2_features._variants import METHODS
from esm2_features.exceptions import (
    InputError,
    InvalidSequenceError,
    InvalidVariantError,
    SequenceTooLongError,
)

WILDTYPE = "MKTAYIAKQR"
SUBSTITUTIONS = ["K2R", "K2E", "Q9E:K2R", "R10W:M1V:A4G", "MKTAYLAKQR", "WT", "A4A", WILDTYPE]
MUTANTS = [
    "MRTAYIAKQR",
    "METAYIAKQR",
    "MRTAYIAKER",
    "VKTGYIAKQW",
    "MKTAYLAKQR",
    WILDTYPE,
    WILDTYPE,
    WILDTYPE,
]
MARGINALS = ["masked-marginals", "wildtype-marginals"]


class Oracle:
    """The three methods as they are defined, position by position, on fair-esm's network."""

    def __init__(self, path):
        self.reference = Reference(open_checkpoint(path))

    def log_probs(self, sequence, i, *, masked):
        read = sequence[:i] + "#" + sequence[i + 1 :] if masked else sequence
        logits = torch.from_numpy(self.reference.layers(read)["logits"])
        return torch.log_softmax(logits, dim=-1)[i + 1].numpy()

    def pll(self, sequence):
        return sum(
            self.log_probs(sequence, i, masked=True)[TOKENS.index(residue)]
            for i, residue in enumerate(sequence)
        )

    def score(self, wildtype, mutant, method):
        if method == "pseudo-perplexity":
            return self.pll(mutant) - self.pll(wildtype)
        score = 0.0
        for i, (before, after) in enumerate(zip(wildtype, mutant, strict=True)):
            if before != after:
                p = self.log_probs(wildtype, i, masked=method == "masked-marginals")
                score += p[TOKENS.index(after)] - p[TOKENS.index(before)]
        return score


class RecordingRunner(Runner):
    """Records which sites are computed, in which calls."""

    calls: list[list[str]]

    def log_probs(self, sites):
        self.calls.append(list(sites))
        return super().log_probs(sites)

    @property
    def asked(self):
        return Counter(site for call in self.calls for site in call)


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint):
    return Oracle(tiny_checkpoint)


@pytest.fixture
def engine(tiny_checkpoint):
    engine = Engine(tiny_checkpoint, device="cpu", cache=None)
    engine.runner.__class__, engine.runner.calls = RecordingRunner, []
    return engine


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__equals_the_definition_on_fair_esm(engine, oracle, method):
    scores = score_variants(engine, WILDTYPE, SUBSTITUTIONS, method)
    expected = [oracle.score(WILDTYPE, mutant, method) for mutant in MUTANTS]
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert (scores[-3:] == 0.0).all(), "the wild type, however it is written"
    assert np.abs(scores[:-3]).min() > 1e-3, "or the comparison says nothing"


def test__score_variants__of_insertions_and_deletions_is_the_ratio_of_pseudo_likelihoods(
    engine, oracle
):
    mutants = ["MKAYIAKQR", "MKTAYIIIAKQR", "M", WILDTYPE]
    with pytest.warns(
        UserWarning, match=r"row 0 \(the first of 3\) has 9 residues, the wild type 10"
    ):
        scores = score_variants(engine, WILDTYPE, mutants, "pseudo-perplexity")
    expected = [oracle.score(WILDTYPE, mutant, "pseudo-perplexity") for mutant in mutants]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__multiple_mutants_are_sums_of_single_ones_for_the_marginals_only(
    engine, method
):
    a, b, both = score_variants(engine, WILDTYPE, ["K2R", "Q9E", "K2R:Q9E"], method)
    assert np.isclose(a + b, both, rtol=0, atol=1e-6) == (method in MARGINALS)


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__offset_changes_the_numbering_and_no_score(engine, method):
    np.testing.assert_array_equal(
        score_variants(engine, WILDTYPE, ["M24V:K25R", "R33W"], method, offset=23),
        score_variants(engine, WILDTYPE, ["M1V:K2R", "R10W"], method),
    )


def test__score_variants__is_per_row_in_the_order_of_the_variants(engine):
    scores = score_variants(engine, WILDTYPE, SUBSTITUTIONS)
    for variant, score in zip(SUBSTITUTIONS, scores, strict=True):
        np.testing.assert_allclose(score_variants(engine, WILDTYPE, [variant]), score, atol=1e-6)


def test__score_variants__takes_residues_that_are_not_canonical(engine, oracle):
    wildtype = "MKXAYIAKQR"
    scores = score_variants(engine, wildtype, ["X3T", "K2U", "mkxaybakqr"])
    expected = [
        oracle.score(wildtype, mutant, "masked-marginals")
        for mutant in ("MKTAYIAKQR", "MUXAYIAKQR", "MKXAYBAKQR")
    ]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", MARGINALS)
def test__scan_variants__is_the_score_of_every_single_substitution(engine, method):
    scan = scan_variants(engine, WILDTYPE, method)
    assert scan.shape == (10, 20)
    assert scan.dtype == np.float64
    names = [f"{w}{i}{m}" for i, w in enumerate(WILDTYPE, 1) for m in CANONICAL_RESIDUES]
    expected = score_variants(engine, WILDTYPE, names, method).reshape(10, 20)
    np.testing.assert_allclose(scan, expected, rtol=0, atol=1e-6)
    of_wildtype = [CANONICAL_RESIDUES.index(residue) for residue in WILDTYPE]
    assert (scan[np.arange(10), of_wildtype] == 0.0).all()


def test__model__may_be_a_name_or_a_path(tiny_checkpoint, engine):
    by_path = score_variants(tiny_checkpoint, WILDTYPE, ["K2R"])
    np.testing.assert_allclose(by_path, score_variants(engine, WILDTYPE, ["K2R"]), atol=1e-6)
    assert scan_variants(str(tiny_checkpoint), "MK").shape == (2, 20)
    assert score_variants("mini", WILDTYPE, ["K2R"]).shape == (1,)


def test__score_variants__in_windows_masks_a_residue_in_the_window_around_it(
    tiny_checkpoint, engine
):
    windows = Engine(tiny_checkpoint, cache=None, max_residues=6, too_long="window")
    np.testing.assert_allclose(
        score_variants(windows, WILDTYPE, ["I6L", "M1V", "R10W"]),
        [
            score_variants(engine, part, [variant])[0]
            for part, variant in [("TAYIAK", "I4L"), ("MKTAYI", "M1V"), ("YIAKQR", "R6W")]
        ],
        rtol=0,
        atol=1e-5,
    )


# ------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("method", MARGINALS)
def test__marginals__compute_each_mutated_position_once_and_no_other(engine, method):
    score_variants(engine, WILDTYPE, [*SUBSTITUTIONS, "K2M", "K2R"], method)
    masked = method == "masked-marginals"
    mutated = (0, 1, 3, 5, 8, 9)  # of A4A, only as A4G mutates it
    sites = [engine.policy.site(WILDTYPE, i, masked=masked) for i in mutated]
    assert engine.runner.asked == Counter(sites)


def test__pseudo_perplexity__computes_each_residue_of_each_distinct_mutant_once(engine):
    score_variants(engine, WILDTYPE, [*SUBSTITUTIONS, "K2R", "MRTAYIAKQR"], "pseudo-perplexity")
    assert engine.runner.asked == Counter(
        engine.policy.site(sequence, i, masked=True)
        for sequence in {WILDTYPE, *MUTANTS}
        for i in range(10)
    )


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__of_the_wild_type_alone_computes_nothing(engine, method):
    scores = score_variants(engine, WILDTYPE, ["WT", "K2K", WILDTYPE], method)
    assert scores.tolist() == [0.0, 0.0, 0.0]
    assert not engine.runner.asked


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__of_no_variants_is_empty(engine, method):
    assert score_variants(engine, WILDTYPE, [], method).shape == (0,)
    assert not engine.runner.asked


def test__pseudo_perplexity__is_asked_in_calls_of_bounded_size(engine, monkeypatch):
    whole = score_variants(engine, WILDTYPE, SUBSTITUTIONS, "pseudo-perplexity")
    assert len(engine.runner.calls) == 1
    engine.runner.calls.clear()
    monkeypatch.setattr(_variants, "_ROWS_AT_A_TIME", 25)
    parts = score_variants(engine, WILDTYPE, SUBSTITUTIONS, "pseudo-perplexity")
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    assert [len(call) for call in engine.runner.calls] == [20, 20, 20]
    engine.runner.calls.clear()
    monkeypatch.setattr(_variants, "_ROWS_AT_A_TIME", 1)
    score_variants(engine, WILDTYPE, ["K2R"], "pseudo-perplexity")
    assert [len(call) for call in engine.runner.calls] == [10, 10]


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__with_a_warm_cache_computes_nothing(tiny_checkpoint, tmp_path, method):
    cold = Engine(tiny_checkpoint, cache=Cache(tmp_path))
    scores = score_variants(cold, WILDTYPE, SUBSTITUTIONS, method)
    assert cold.n_computed > 0
    warm = Engine(tiny_checkpoint, cache=Cache(tmp_path))
    np.testing.assert_array_equal(score_variants(warm, WILDTYPE, SUBSTITUTIONS, method), scores)
    assert warm.n_computed == 0


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "variants",
    [
        tuple(SUBSTITUTIONS),
        iter(SUBSTITUTIONS),
        np.array(SUBSTITUTIONS),
        np.array(SUBSTITUTIONS, dtype=object),
        pd.Series(SUBSTITUTIONS, index=range(10, 18)),
        pd.Series(SUBSTITUTIONS, dtype="string"),
        pl.Series(SUBSTITUTIONS),
        pa.array(SUBSTITUTIONS),
        pa.chunked_array([SUBSTITUTIONS]),
        dict.fromkeys(SUBSTITUTIONS).keys(),
        np.array(SUBSTITUTIONS, dtype="S"),
        [variant.encode() for variant in SUBSTITUTIONS],
        [*map(bytearray, (variant.encode() for variant in SUBSTITUTIONS))],
        [*SUBSTITUTIONS[:4], SeqRecord(Seq(MUTANTS[4])), *SUBSTITUTIONS[5:]],
    ],
    ids=lambda variants: type(variants).__name__,
)
def test__score_variants__takes_any_iterable_of_text(engine, variants):
    scores = score_variants(engine, WILDTYPE, variants)
    np.testing.assert_array_equal(scores, score_variants(engine, WILDTYPE, SUBSTITUTIONS))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ("K2R", r"Got a single string as variants, 'K2R'. Pass a list: \['K2R'\]"),
        (b"K2R", "Got a single string"),
        ({"K2R": 1.5}, "Got dict as variants. Pass a list, or one column"),
        ({"K2R"}, "Got set as variants"),
        (frozenset({"K2R"}), "Got frozenset as variants"),
        ({"K2R": 1.5}.items(), "Got dict_items as variants"),
        (Seq(WILDTYPE), "Got a single string"),
        (SeqRecord(Seq(WILDTYPE)), "Got SeqRecord as variants"),
        (pd.DataFrame({"K2R": ["Q9E"]}), "Got DataFrame as variants"),
        (pl.DataFrame({"K2R": ["Q9E"]}), "Got DataFrame as variants"),
        (pa.table({"K2R": ["Q9E"]}), "Got Table as variants"),
        (None, "Got NoneType as variants"),
        (3, "Got int as variants"),
    ],
)
def test__score_variants__refuses_what_is_no_list_of_variants(engine, variants, message):
    with pytest.raises(TypeError, match=message):
        score_variants(engine, WILDTYPE, variants)


@pytest.mark.parametrize("method", METHODS)
def test__score_variants__refuses_a_bad_variant_before_anything_is_computed(engine, method):
    with pytest.raises(InvalidVariantError) as caught:
        score_variants(engine, WILDTYPE, ["K2R", "Q9E", "A2R"], method)
    assert (caught.value.index, caught.value.expected, caught.value.found) == (2, "K", "A")
    assert not engine.runner.asked


@pytest.mark.parametrize("method", MARGINALS)
def test__marginals__refuse_another_length_and_name_the_method_for_it(engine, method):
    with pytest.raises(InvalidVariantError, match='pass method="pseudo-perplexity"') as caught:
        score_variants(engine, WILDTYPE, ["K2R", b" mktayiakq*"], method)
    error = caught.value
    assert error.variant == " mktayiakq*", "as it was given"
    assert (error.index, error.expected, error.found) == (1, "10 residues", "9 residues")
    assert not engine.runner.asked


@pytest.mark.parametrize(
    ("wildtype", "error", "message"),
    [
        ({WILDTYPE: 1}, TypeError, "Got dict as wild types. Pass a list"),
        ([WILDTYPE] * 3, InputError, "Got 3 wild types and 1 variants; pass one for each"),
        ([None], TypeError, "Got None as the wild type of row 0; pass one"),
        (["MK1"], InvalidSequenceError, "^'1' at position 3 of the wild type of row 0 is not a"),
        (None, TypeError, "Got None as the wild type; pass one"),
        (np.nan, TypeError, "Got nan as the wild type; pass one"),
        (7, TypeError, "as text in the wild type, got int"),
        ("", InvalidSequenceError, "^Empty sequence in the wild type. "),
        ("MK1", InvalidSequenceError, "^'1' at position 3 of the wild type is not a residue"),
        ("MK<mask>A", InvalidSequenceError, "^The wild type holds a <mask> at position 3"),
        ("M" * 1023, SequenceTooLongError, "^The wild type has 1023 residues"),
    ],
)
def test__wildtype__is_one_sequence_without_masks(engine, wildtype, error, message):
    with pytest.raises(error, match=message) as caught:
        score_variants(engine, wildtype, ["WT"])
    assert error in (TypeError, InputError) or caught.value.index == 0
    if isinstance(wildtype, list | dict):
        error, message = TypeError, "pass one sequence, as text|as text in the wild type, got dict"
    with pytest.raises(error, match=message):
        scan_variants(engine, wildtype)


OTHERS = [WILDTYPE, "GSHMVLSEGE", WILDTYPE, "GSHMVLSEGE", WILDTYPE]
OF_OTHERS = ["K2R", "S2A", "MKTAYIAKQE", "WT", "K2R:Q9E"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [list, np.array, pd.Series, pl.Series, pa.array, tuple])
def test__wildtype__of_each_row(engine, method, kind):
    scores = score_variants(engine, kind(OTHERS), OF_OTHERS, method)
    one_by_one = [
        score_variants(engine, wildtype, [variant], method)[0]
        for wildtype, variant in zip(OTHERS, OF_OTHERS, strict=True)
    ]
    np.testing.assert_allclose(scores, one_by_one, atol=1e-6)


@pytest.mark.parametrize(
    ("variants", "row", "said"),
    [
        (["K2R", "S2A", "A2G", "WT", "WT"], 2, "'A2G' in row 2 replaces A at position 2"),
        (["K2R", "S2A", "WT", "S2", "WT"], 3, "'S2' in row 3 cannot be read"),
        (["K2R", "S2A", "WT", "GSHM", "WT"], 3, "in row 3 has 4 residues, the wild type has 10"),
        (["K2R", "S2A", "WT", "MK1:", "WT"], 3, "row 3"),
    ],
)
def test__wildtype__of_each_row__errors_name_the_row(engine, variants, row, said):
    with pytest.raises(InvalidVariantError, match=said) as caught:
        score_variants(engine, OTHERS, variants)
    assert caught.value.index == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"too_long": "truncate", "max_residues": 8}, 'Got too_long="truncate" with a wild type'),
        ({"too_long": "truncate", "max_residues": None}, 'Got too_long="truncate"'),
        ({"region": (0, 5)}, r"Got region=\(0, 5\), which is for pooling"),
    ],
)
def test__engine__whose_options_would_lose_mutations_is_refused_at_once(
    tiny_checkpoint, options, message
):
    engine = Engine(tiny_checkpoint, cache=None, **options)
    with pytest.raises(InputError, match=message):
        score_variants(engine, None, ["MKTAYIAKQRAAAW"])
    with pytest.raises(InputError, match=message):
        scan_variants(engine, None)


@pytest.mark.parametrize("sequences", [(WILDTYPE, ["WT", "M" * 12]), ("M" * 12, ["WT"])])
def test__too_long__is_refused_without_the_advice_to_cut(tiny_checkpoint, sequences):
    engine = Engine(tiny_checkpoint, cache=None, max_residues=11)
    with pytest.raises(SequenceTooLongError, match="has 12 residues, more than") as caught:
        score_variants(engine, *sequences, "pseudo-perplexity")
    assert 'Pass too_long="window"' in str(caught.value)
    assert "truncate" not in str(caught.value)
    assert (caught.value.index, caught.value.length, caught.value.limit) == (
        len(sequences[1]) - 1,
        12,
        11,
    )


@pytest.mark.parametrize("offset", [1.0, "1", None, True])
def test__offset__must_be_a_whole_number(engine, offset):
    with pytest.raises(TypeError, match="expected a whole number"):
        score_variants(engine, WILDTYPE, ["K2R"], offset=offset)


def test__offset__may_be_a_whole_number_of_numpy(engine):
    assert score_variants(engine, WILDTYPE, ["M2V"], offset=np.int64(1)).shape == (1,)


def test__method__must_be_one_that_there_is(engine):
    with pytest.raises(InputError, match='expected one of "masked-marginals", "wildtype-marg'):
        score_variants(engine, WILDTYPE, ["K2R"], "masked")
    with pytest.raises(InputError, match='expected one of "masked-marginals", "wildtype-marg'):
        scan_variants(engine, WILDTYPE, "wt-marginals")
    with pytest.raises(InputError, match="19 L x L forward passes"):
        scan_variants(engine, WILDTYPE, "pseudo-perplexity")


def test__model__that_is_none_is_refused_as_an_engine_refuses_it():
    with pytest.raises(TypeError, match="Got model=3"):
        score_variants(3, WILDTYPE, ["K2R"])


def test__per_residue__is_the_difference_of_means(engine, oracle):
    mutants = ["MKAYIAKQR", "MKTAYIIIAKQR", "MKTAY", WILDTYPE, "MRTAYIAKQR"]
    scores = score_variants(engine, WILDTYPE, mutants, "pseudo-perplexity", per_residue=True)
    of_wildtype = oracle.pll(WILDTYPE) / len(WILDTYPE)
    expected = [oracle.pll(mutant) / len(mutant) - of_wildtype for mutant in mutants]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert scores[3] == 0


@pytest.mark.parametrize("method", METHODS)
def test__per_residue__of_substitutions_divides_by_the_length(engine, method):
    variants = ["K2R", "K2R:Q9E", "WT"]
    sums = score_variants(engine, WILDTYPE, variants, method)
    means = score_variants(engine, WILDTYPE, variants, method, per_residue=True)
    np.testing.assert_allclose(means, sums / len(WILDTYPE), rtol=0, atol=1e-9)


def test__pseudo_perplexity__of_equal_lengths_does_not_warn(engine):
    score_variants(engine, WILDTYPE, ["MRTAYIAKQR", "K2R"], "pseudo-perplexity")


@pytest.mark.parametrize("method", METHODS)
def test__words__for_the_wild_type_have_the_score_0(engine, method):
    words = ["wildtype", "native", "_sy", "p.=", "K2=", "parent"]
    assert score_variants(engine, WILDTYPE, words, method).tolist() == [0] * 6
