"""`ESM2LikelihoodTransformer`: its numbers, and that it is a transformer like its sibling."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from test_variants import Oracle

from esm2_features import Engine, ESM2LikelihoodTransformer, ESM2Transformer, score_variants
from esm2_features._inference.runner import Runner
from esm2_features._inputs.alphabet import MASK, TOKENS
from esm2_features._inputs.policy import SequencePolicy
from esm2_features._inputs.views import parse
from esm2_features._sklearn.likelihood import _edits
from esm2_features._variants import METHODS
from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    InvalidSequenceError,
    InvalidVariantError,
    MissingSequenceError,
    SequenceTooLongError,
    TruncationWarning,
)

WILDTYPE = "MKTAYIAKQR"
VARIANTS = ["MRTAYIAKQR", "MKTAYIAKQR", "MKTGYIAKEW", "MRTAYIAKQR"]
INDELS = ["MKAYIAKQR", "MKTAYIIIAKQR", "MKTAYIAKQR", "M"]
MARGINALS = ["masked-marginals", "wildtype-marginals"]
PARAMETERS = [*inspect.signature(ESM2LikelihoodTransformer).parameters]
SITE = SequencePolicy().site
NAMES = ["mean_log_prob", "pseudo_perplexity", "llr", "n_mutations"]


@pytest.fixture
def likelihood(tiny_checkpoint):
    """Make a transformer of the tiny checkpoint, without a cache unless one is asked for."""

    def make(model=tiny_checkpoint, **parameters):
        return ESM2LikelihoodTransformer(model, **{"device": "cpu", "cache": None, **parameters})

    return make


@pytest.fixture(scope="module")
def oracle(tiny_checkpoint):
    return Oracle(tiny_checkpoint)


@pytest.fixture
def asked(monkeypatch):
    """What is asked of the runner, as a list of sites for each call."""
    calls = []
    log_probs = Runner.log_probs

    def recorded(self, sites):
        calls.append(list(sites))
        return log_probs(self, sites)

    monkeypatch.setattr(Runner, "log_probs", recorded)
    return calls


def mean_log_prob(oracle, sequence, context, *, masked):
    return np.mean(
        [
            oracle.log_probs(context, i, masked=masked)[TOKENS.index(residue)]
            for i, residue in enumerate(sequence)
            if residue != "#"
        ]
    )


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("method", METHODS)
def test__transform__with_a_wild_type_equals_the_definition_on_fair_esm(likelihood, oracle, method):
    rows = likelihood(wildtype=WILDTYPE, method=method).transform(VARIANTS)
    masked = method != "wildtype-marginals"
    for row, sequence in zip(rows, VARIANTS, strict=True):
        context = sequence if method == "pseudo-perplexity" else WILDTYPE
        mean = mean_log_prob(oracle, sequence, context, masked=masked)
        llr = oracle.score(WILDTYPE, sequence, method)
        n_mutations = sum(a != b for a, b in zip(WILDTYPE, sequence, strict=True))
        expected = [mean, np.exp(-mean), llr, n_mutations]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
    assert rows.dtype == np.float32
    assert rows[1, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test__transform__without_a_wild_type_sees_each_sequence_in_its_own_context(
    likelihood, oracle, method
):
    sequences = [*VARIANTS, *INDELS]
    rows = likelihood(method=method).transform(sequences)
    masked = method != "wildtype-marginals"
    means = [mean_log_prob(oracle, s, s, masked=masked) for s in sequences]
    expected = np.column_stack([means, np.exp(-np.array(means))])
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)


def test__transform__of_insertions_and_deletions_counts_edits(likelihood, oracle):
    with pytest.warns(UserWarning, match=r"row 0 \(the first of 3\) .*per_residue=True"):
        rows = likelihood(wildtype=WILDTYPE, method="pseudo-perplexity").transform(INDELS)
    expected = [oracle.score(WILDTYPE, mutant, "pseudo-perplexity") for mutant in INDELS]
    np.testing.assert_allclose(rows[:, 2], expected, rtol=0, atol=1e-4)
    assert rows[:, 3].tolist() == [1, 2, 0, 9]


@pytest.mark.parametrize("method", METHODS)
def test__llr__is_what_score_variants_gives(likelihood, tiny_checkpoint, method):
    rows = likelihood(wildtype=WILDTYPE, method=method).transform(VARIANTS)
    scores = score_variants(tiny_checkpoint, WILDTYPE, VARIANTS, method)
    np.testing.assert_allclose(rows[:, 2], scores, rtol=0, atol=1e-5)


def test__transform__leaves_masks_out_of_the_mean(likelihood, oracle):
    [row] = likelihood().transform(["MKTA<mask>IAKQR"])
    expected = mean_log_prob(oracle, "MKTA#IAKQR", "MKTA#IAKQR", masked=True)
    np.testing.assert_allclose(row[0], expected, rtol=0, atol=1e-4)
    unknown = likelihood(unknown="mask").transform(["MKTAJIAKQR"])
    np.testing.assert_allclose(unknown[0], row, rtol=0, atol=1e-6)


def table_of_edits(first, second):
    """Wagner and Fischer's algorithm as it is written in textbooks."""
    table = [[i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            substituted = table[i - 1][j - 1] + (a != b)
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, substituted)
    return table[-1][-1]


@given(
    first=st.text(alphabet="ACD", min_size=1, max_size=12),
    second=st.text(alphabet="ACD", min_size=1, max_size=12),
)
def test__edits__is_the_distance_of_levenshtein_or_counts_substitutions(first, second):
    if len(first) == len(second):
        assert _edits(first, second) == sum(a != b for a, b in zip(first, second, strict=True))
    else:
        assert _edits(first, second) == table_of_edits(first, second)


# ------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("method", MARGINALS)
def test__marginals__with_a_wild_type_compute_the_wild_type_only(likelihood, asked, method):
    likelihood(wildtype=WILDTYPE, method=method).transform(VARIANTS)
    masked = method == "masked-marginals"
    assert asked == [[SITE(WILDTYPE, i, masked=masked) for i in range(10)]]


@pytest.mark.parametrize(
    "parameters",
    [{"wildtype": WILDTYPE, "method": "pseudo-perplexity"}, {}, {"method": METHODS[1]}],
)
def test__own_context__computes_each_residue_of_each_distinct_sequence_once(
    likelihood, asked, parameters
):
    likelihood(**parameters).transform(VARIANTS)
    sites = [site for call in asked for site in call]
    masked = parameters.get("method") != "wildtype-marginals"
    once = [SITE(s, i, masked=masked) for s in set(VARIANTS) for i in range(10)]
    assert sorted(sites) == sorted(once)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wildtype", [None, WILDTYPE])
def test__warm_cache__needs_neither_weights_nor_torch(likelihood, tmp_path, method, wildtype):
    cold = likelihood("mini", wildtype=wildtype, method=method, cache=tmp_path)
    expected = cold.transform(VARIANTS)
    code = (
        "import sys, numpy as np\n"
        "from esm2_features import ESM2LikelihoodTransformer\n"
        "from esm2_features._inference import networks\n"
        f"warm = ESM2LikelihoodTransformer('mini', wildtype={wildtype!r}, method={method!r}, "
        f"cache={str(tmp_path)!r}, device='cpu')\n"
        f"np.save({str(tmp_path / 'rows.npy')!r}, warm.fit_transform({VARIANTS!r}))\n"
        "assert 'torch' not in sys.modules and not networks._networks"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)


def test__fit__loads_nothing_and_imports_no_torch():
    code = (
        "import sys\n"
        "from esm2_features import ESM2LikelihoodTransformer, ESM2Transformer\n"
        "fitted = ESM2LikelihoodTransformer(wildtype='MKT').fit(['MKV', 'MKT'])\n"
        "assert len(fitted.get_feature_names_out()) == 4\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------ chains and missing values


def test__chains__have_a_wild_type_each_and_columns_of_their_own(likelihood):
    frame = pd.DataFrame({"heavy": VARIANTS, "light": ["DIQ", "DIE", "AIQ", "DIQ"]})
    both = likelihood(wildtype=[WILDTYPE, "DIQ"]).set_output(transform="pandas").fit(frame)
    rows = both.transform(frame)
    assert rows.columns.tolist() == [f"{c}__{name}" for c in ("heavy", "light") for name in NAMES]
    heavy = likelihood(wildtype=WILDTYPE).transform(frame["heavy"])
    light = likelihood(wildtype=("DIQ",)).transform(frame["light"])
    np.testing.assert_allclose(rows, np.hstack([heavy, light]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("on_missing", "fill"), [("nan", np.nan), ("zero", 0.0)])
@pytest.mark.parametrize("wildtype", [None, WILDTYPE])
def test__missing__rows_are_filled_and_the_others_as_ever(likelihood, on_missing, fill, wildtype):
    filling = likelihood(wildtype=wildtype, on_missing=on_missing)
    rows = filling.fit_transform([None, *VARIANTS, np.nan])
    assert np.array_equal(rows[[0, -1]], np.full((2, rows.shape[1]), fill), equal_nan=True)
    expected = likelihood(wildtype=wildtype).transform(VARIANTS)
    np.testing.assert_allclose(rows[1:-1], expected, rtol=0, atol=1e-6)
    assert filling.transform([None]).shape == (1, rows.shape[1])
    with pytest.raises(MissingSequenceError, match="row 0"):
        likelihood(wildtype=wildtype).fit([None, *VARIANTS])


# ------------------------------------------------------------------ what is refused

BAD_INPUT = [
    ({"method": "masked"}, VARIANTS, InputError, "method='masked'; expected one of"),
    ({"model": "mimi"}, VARIANTS, CheckpointError, 'Did you mean model="mini"'),
    ({"precision": "float64"}, VARIANTS, InputError, "precision='float64'"),
    ({"on_missing": "drop"}, VARIANTS, InputError, "on_missing='drop'"),
    ({"wildtype": ""}, VARIANTS, InvalidSequenceError, "Empty sequence in the wild type"),
    ({"wildtype": "MK<mask>"}, VARIANTS, InvalidSequenceError, "wild type holds a <mask>"),
    ({"wildtype": 7}, VARIANTS, TypeError, "as text in the wild type, got int"),
    ({"wildtype": [None]}, VARIANTS, TypeError, "Got None as the wild type"),
    ({"wildtype": []}, VARIANTS, InputError, r"Got 0 wild type\(s\) for 1 chain\(s\)"),
    ({"wildtype": [WILDTYPE] * 2}, VARIANTS, InputError, "one for each column of X"),
    ({"wildtype": WILDTYPE, "max_residues": 9}, ["MKT"], SequenceTooLongError, "The wild type has"),
    ({"wildtype": "MKT", "too_long": "truncate"}, ["MKT"], InputError, 'too_long="truncate" with'),
    ({}, ["MKT", "<mask><mask>"], InvalidSequenceError, "row 1 holds nothing but <mask>"),
    ({}, "MKT", TypeError, "ESM2LikelihoodTransformer needs protein sequences"),
]


@pytest.mark.parametrize(("parameters", "X", "error", "message"), BAD_INPUT)
def test__fit_and_transform__refuse_bad_input_before_anything_is_computed(
    likelihood, asked, parameters, X, error, message
):
    for refuse in (likelihood(**parameters).fit, likelihood(**parameters).transform):
        with pytest.raises(error, match=message):
            refuse(X)
    assert asked == []


@pytest.mark.parametrize("method", MARGINALS)
def test__marginals__refuse_another_length_with_its_row(likelihood, asked, method):
    estimator = likelihood(wildtype=WILDTYPE, method=method)
    for refuse in (estimator.fit, estimator.transform):
        with pytest.raises(InvalidVariantError, match='pass method="pseudo-perplexity"') as caught:
            refuse([*VARIANTS, " mktayiakq*"])
        error = caught.value
        assert (error.index, error.variant) == (4, " mktayiakq*")
        assert (error.expected, error.found) == ("10 residues", "9 residues")
    assert asked == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("AI", "row 2 of column 'light' has 2 residues, the wild type has 3"),
        ("A<mask>Q", "row 2 of column 'light' holds a <mask> at position 2"),
    ],
)
def test__variant__of_several_chains_is_named_by_row_and_column(likelihood, bad, message):
    frame = pd.DataFrame({"heavy": VARIANTS, "light": ["DIQ", "DIE", bad, "DIQ"]})
    with pytest.raises(InvalidVariantError, match=message) as caught:
        likelihood(wildtype=[WILDTYPE, "DIQ"]).fit(frame)
    assert (caught.value.index, caught.value.variant) == (2, bad)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("D!Q", InvalidSequenceError, "'!' at position 2 of the wild type of 'light' is not"),
        ("<mask>IQ", InvalidSequenceError, "The wild type of 'light' holds a <mask>"),
        ("M" * 11, SequenceTooLongError, "The wild type of 'light' has 11 residues"),
        (None, TypeError, "Got None as the wild type of 'light'"),
    ],
)
def test__wildtype__of_several_chains_is_named_by_its_column(likelihood, bad, error, message):
    frame = pd.DataFrame({"heavy": VARIANTS, "light": ["DIQ", "DIE", "AIQ", "DIQ"]})
    estimator = likelihood(wildtype=[WILDTYPE, bad], max_residues=10)
    with pytest.raises(error, match=message):
        estimator.fit(frame)
    with pytest.raises(error, match=message.replace("light", "x1")):
        estimator.fit(frame.to_numpy())


@pytest.mark.parametrize("method", METHODS)
def test__mask__beside_a_wild_type_is_refused_with_its_row(likelihood, method):
    estimator = likelihood(wildtype=WILDTYPE, method=method, unknown="mask")
    with pytest.raises(InvalidVariantError, match="row 1 holds a <mask> at position 3") as caught:
        estimator.fit([WILDTYPE, "MKJAYIAKQR"])
    assert caught.value.index == 1


def test__too_long__truncate_is_refused_with_a_wild_type_only(likelihood):
    cutting = likelihood(max_residues=8, too_long="truncate")
    with pytest.warns(TruncationWarning) as warned:
        rows = cutting.fit(VARIANTS).transform(VARIANTS)
    assert len(warned) == 1
    expected = likelihood().transform([variant[:8] for variant in VARIANTS])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="mutations could be cut off"):
        cutting.set_params(wildtype=WILDTYPE).fit(VARIANTS)


@pytest.mark.parametrize("wildtype", [None, WILDTYPE])
def test__too_long__is_cut_by_nobody_where_a_wild_type_is_given(likelihood, wildtype):
    estimator = likelihood(wildtype=wildtype, max_residues=11)
    with pytest.raises(SequenceTooLongError, match="row 1 has 12 residues, more than") as caught:
        estimator.fit([WILDTYPE, "M" * 12])
    assert ("truncate" in str(caught.value)) == (wildtype is None)
    assert 'too_long="window"' in str(caught.value)


def test__pseudo_perplexity__is_finite_in_float32_however_unlikely_a_sequence_is(
    likelihood, monkeypatch
):
    means = {WILDTYPE: -5.0, "MRTAYIAKQR": -300.0, "MKTGYIAKEW": -1e6}

    def log_probs(_, sites):
        views = [parse(site) for site in sites]
        assert all(view.sequence[view.spans[0][0]] == MASK for view in views)
        # Which of them a masked sequence is of follows from the residues that it still has.
        matching = [
            next(
                mean
                for sequence, mean in means.items()
                if all(a in (b, MASK) for a, b in zip(view.sequence, sequence, strict=True))
            )
            for view in views
        ]
        return np.repeat(np.array(matching, np.float32)[:, None], 33, axis=1)

    monkeypatch.setattr(Runner, "log_probs", log_probs)
    rows = likelihood().transform(list(means))
    largest = np.finfo(np.float32).max
    assert rows[:, 1].tolist() == [np.float32(np.exp(5.0)), largest, largest]


# ------------------------------------------------------------------ scikit-learn


def test__init__stores_each_parameter_as_it_is_and_takes_all_but_the_model_by_name():
    values = {name: object() for name in PARAMETERS}
    estimator = ESM2LikelihoodTransformer(**values)
    assert vars(estimator).keys() == values.keys()
    assert all(getattr(estimator, name) is value for name, value in values.items())
    kinds = [p.kind for p in inspect.signature(ESM2LikelihoodTransformer).parameters.values()]
    assert set(kinds[1:]) == {inspect.Parameter.KEYWORD_ONLY}


def test__parameters__that_its_sibling_has_too_have_the_same_defaults():
    sibling = ESM2Transformer().get_params()
    own = ESM2LikelihoodTransformer().get_params()
    assert own.keys() - sibling.keys() == {"wildtype", "wildtype_column", "method", "per_residue"}
    assert {name: sibling[name] for name in own if name in sibling} == {
        name: value for name, value in own.items() if name in sibling
    }


def test__clone_and_pickle__keep_parameters_and_give_the_same(likelihood):
    fitted = likelihood(wildtype=[WILDTYPE], method="wildtype-marginals").fit(VARIANTS)
    cloned = clone(fitted)
    assert cloned.get_params() == fitted.get_params()
    assert vars(cloned).keys() == set(PARAMETERS)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(VARIANTS), fitted.transform(VARIANTS))
    assert len(pickle.dumps(fitted)) < 2000, "no weights"


def test__get_feature_names_out__has_two_names_and_two_more_with_a_wild_type(likelihood):
    assert likelihood().get_feature_names_out().tolist() == NAMES[:2]
    assert likelihood(wildtype=WILDTYPE).get_feature_names_out().tolist() == NAMES
    frame = likelihood().set_output(transform="polars").fit_transform(VARIANTS)
    assert frame.columns == NAMES[:2]


def test__feature_union__with_embeddings_is_the_augmented_regression():
    variants = [f"{WILDTYPE[:i]}{a}{WILDTYPE[i + 1 :]}" for i in (1, 4, 8) for a in "AEGLRW"]
    fitness = [variant.count("A") - variant.count("W") for variant in variants]
    union = FeatureUnion(
        [
            ("embedding", ESM2Transformer("mini", cache=None)),
            ("llr", ESM2LikelihoodTransformer("mini", wildtype=WILDTYPE, cache=None)),
        ]
    )
    augmented = make_pipeline(union, StandardScaler(), Ridge()).fit(variants, fitness)
    names = augmented[:-1].get_feature_names_out()
    assert names[-2:].tolist() == ["llr__llr", "llr__n_mutations"]
    assert augmented[-1].coef_.shape == names.shape == (196,)
    assert augmented.score(variants, fitness) > 0.5


def test__grid_search__chooses_among_the_methods(likelihood, tmp_path):
    likely = likelihood(wildtype=WILDTYPE, cache=tmp_path)
    pipeline = make_pipeline(likely, StandardScaler(), Ridge())
    search = GridSearchCV(
        pipeline, {"esm2likelihoodtransformer__method": list(METHODS)}, cv=2, error_score="raise"
    )
    search.fit(VARIANTS, [0.0, 1.0, 2.0, 3.0])
    assert search.best_params_["esm2likelihoodtransformer__method"] in METHODS
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("method", METHODS)
def test__per_residue__makes_llr_a_mean(likelihood, tiny_checkpoint, method):
    variants = INDELS if method == "pseudo-perplexity" else VARIANTS
    rows = likelihood(wildtype=WILDTYPE, method=method, per_residue=True).fit_transform(variants)
    scores = score_variants(
        Engine(tiny_checkpoint, cache=None), WILDTYPE, variants, method, per_residue=True
    )
    np.testing.assert_allclose(rows[:, 2], scores, rtol=0, atol=1e-5)


def test__per_residue__without_a_wild_type_is_refused(likelihood):
    with pytest.raises(InputError, match="Got per_residue=True without a wildtype"):
        likelihood(per_residue=True).fit(VARIANTS)


# ------------------------------------------------------------------ a wild type for each row


PAIRS = pd.DataFrame(
    {
        "wildtype": [WILDTYPE, "GSHMVLSEGE", WILDTYPE],
        "sequence": ["MRTAYIAKQR", "GSHMVLSEGK", WILDTYPE],
    }
)


@pytest.mark.parametrize("method", METHODS)
def test__wildtype_column__gives_each_row_its_own(likelihood, method):
    features = likelihood(wildtype_column="wildtype", method=method).fit_transform(PAIRS)
    for i, row in PAIRS.iterrows():
        of_one = likelihood(wildtype=row["wildtype"], method=method).transform([row["sequence"]])
        np.testing.assert_allclose(features[i], of_one[0], atol=1e-5)


def test__wildtype_column__is_no_chain(likelihood):
    fitted = likelihood(wildtype_column="wildtype").fit(PAIRS)
    assert fitted.get_feature_names_out().tolist() == NAMES
    assert fitted.n_features_in_ == 2


def test__wildtype_column__missing_on_either_side_is_a_missing_row(likelihood):
    X = PAIRS.astype(object)
    X.loc[0, "wildtype"] = None
    X.loc[1, "sequence"] = None
    features = likelihood(wildtype_column="wildtype", on_missing="nan").transform(X)
    assert np.isnan(features).all(axis=1).tolist() == [True, True, False]
    with pytest.raises(MissingSequenceError):
        likelihood(wildtype_column="wildtype").transform(X)


@pytest.mark.parametrize(
    ("parameters", "X", "said"),
    [
        ({"wildtype_column": "wt"}, PAIRS, "wildtype_column='wt' and the columns"),
        ({"wildtype_column": "wildtype"}, PAIRS[["wildtype"]], "Pass a frame with this column"),
        ({"wildtype_column": "wildtype", "wildtype": WILDTYPE}, PAIRS, "Pass one wild type for"),
        (
            {"wildtype_column": "wildtype"},
            PAIRS.assign(sequence=["MK", "GSHMVLSEGK", WILDTYPE]),
            "row 0 of column 'sequence' has 2 residues",
        ),
        ({"wildtype_column": "wildtype", "too_long": "truncate"}, PAIRS, 'too_long="truncate"'),
    ],
)
def test__wildtype_column__wrong_input_is_named(likelihood, parameters, X, said):
    with pytest.raises(InputError, match=said):
        likelihood(**parameters).fit(X)
