"""`ESM2Transformer` keeps scikit-learn's contract, and what its own documentation says."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from checkpoints import random_esm2, write_fair_esm
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from esm2_features import Cache, ESM2Transformer
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL, OFFICIAL
from esm2_features._inference import networks as _registry
from esm2_features.exceptions import (
    CheckpointError,
    DownloadError,
    InputError,
    InvalidSequenceError,
    MissingSequenceError,
    SequenceTooLongError,
    TruncationWarning,
)

HEAVY = ["MKTAYIAKQR", "GSHMVLSEGE", "ACDEFGHIKL", "MMMMKKKK"]
LIGHT = ["DIQMTQ", "EIVLTQ", "QSALTQ", "SYELTQ"]
FRAME = pd.DataFrame(
    {"heavy": HEAVY, "light": LIGHT, "mass": [1.5, 2.5, 3.5, 4.5]}, index=["a", "b", "c", "d"]
)
CHAINS = ["heavy", "light"]
PARAMETERS = [*inspect.signature(ESM2Transformer).parameters]

# Sums of one row are taken in another order when it is computed in another batch.
ATOL = 1e-6


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine on which no official weights lie in any of the folders that are searched."""
    for variable in ("TORCH_HOME", "HF_HUB_CACHE", "ESM2_FEATURES_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "nothing here"))


def python(code: str, *arguments: object) -> str:
    """Run code in a process of its own and give what it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ATOL)


# ------------------------------------------------------------------ parameters


def test__init__stores_each_parameter_as_it_is():
    values = {name: object() for name in PARAMETERS}
    estimator = ESM2Transformer(**values)
    assert vars(estimator).keys() == values.keys()
    assert all(getattr(estimator, name) is value for name, value in values.items())


def test__init__takes_all_but_the_model_by_name():
    kinds = [p.kind for p in inspect.signature(ESM2Transformer).parameters.values()]
    assert kinds[0] is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds[1:]) == {inspect.Parameter.KEYWORD_ONLY}


def test__init__has_the_documented_defaults():
    assert ESM2Transformer().get_params() == {
        "model": "esm2_t33_650M_UR50D",
        "chains": None,
        "layers": -1,
        "pooling": "mean",
        "region": None,
        "join": "concatenate",
        "linker_length": 25,
        "precision": "float32",
        "device": "auto",
        "batch_tokens": "auto",
        "max_residues": 1022,
        "too_long": "raise",
        "unknown": "raise",
        "on_missing": "raise",
        "cache": "auto",
        "cache_dtype": "float32",
        "store": "requested",
        "verbose": False,
        "endpoint": None,
        "token": None,
    }


def test__clone__has_equal_parameters_and_nothing_else(tmp_path):
    estimator = ESM2Transformer("mini", layers=[0, 2], pooling=["cls"], cache=Cache(tmp_path))
    cloned = clone(estimator.fit(HEAVY))
    assert cloned.get_params() == estimator.get_params()
    assert vars(cloned).keys() == set(PARAMETERS)


def test__set_params__changes_what_a_fitted_one_gives(esm2):
    estimator = esm2().fit(HEAVY).set_params(layers=0, pooling="max")
    assert_equal(estimator.transform(HEAVY), esm2(layers=0, pooling="max").transform(HEAVY))
    with pytest.raises(ValueError, match="Invalid parameter 'layer'"):
        estimator.set_params(layer=0)


BAD_PARAMETERS = [
    ({"model": 3}, TypeError, "Got model=3; pass the name of a model or a path"),
    ({"model": "esm2_t6_8m"}, CheckpointError, 'Did you mean model="esm2_t6_8M_UR50D"'),
    ({"model": "mimi"}, CheckpointError, 'Did you mean model="mini"'),
    ({"model": "no/such/model.pt"}, CheckpointError, r"no file or folder .*no/such/model\.pt"),
    ({"model": Path(__file__)}, CheckpointError, "test_embedding.py"),
    ({"layers": 3}, InputError, r"layers=3, but tiny has the representations 0 .* to 2"),
    ({"layers": [0, -4]}, InputError, r"layers=\[0, -4\]"),
    ({"layers": [2, -1]}, InputError, "occurs twice"),
    ({"layers": []}, InputError, "at least one"),
    ({"layers": "last"}, TypeError, "layers='last'"),
    ({"layers": 1.0}, TypeError, r"layers=1\.0"),
    ({"layers": True}, TypeError, "layers=True"),
    ({"pooling": "average"}, InputError, "pooling='average'; expected one of \"mean\""),
    ({"pooling": ["mean", "mean"]}, InputError, "occurs twice"),
    ({"pooling": []}, InputError, "at least one"),
    ({"region": (5, 2)}, InputError, r"region=\(5, 2\)"),
    ({"region": 7}, InputError, "region=7"),
    ({"join": "glue"}, InputError, "join='glue'"),
    ({"linker_length": 10}, InputError, 'linker_length=10 with join="concatenate"'),
    ({"precision": "float64"}, InputError, "precision='float64'"),
    ({"device": "tpu"}, InputError, "device='tpu'"),
    ({"batch_tokens": 0}, InputError, "batch_tokens=0"),
    ({"batch_tokens": "many"}, InputError, "batch_tokens='many'"),
    ({"max_residues": 0}, InputError, "max_residues=0"),
    ({"max_residues": 10.5}, InputError, r"max_residues=10\.5"),
    ({"too_long": "cut"}, InputError, "too_long='cut'"),
    ({"unknown": "drop"}, InputError, "unknown='drop'"),
    ({"on_missing": "drop"}, InputError, "on_missing='drop'"),
    ({"on_missing": None}, InputError, "on_missing=None"),
    ({"cache": 3}, TypeError, "cache=3"),
    ({"cache": ""}, InputError, "cache=None is no cache"),
]


@pytest.mark.parametrize(
    ("parameter", "error", "message"),
    BAD_PARAMETERS,
    ids=[next(iter(parameter)) for parameter, *_ in BAD_PARAMETERS],
)
def test__fit__refuses_a_bad_parameter(esm2, parameter, error, message):
    estimator = esm2(**parameter)  # __init__ takes anything
    with pytest.raises(error, match=message):
        estimator.fit(HEAVY)
    with pytest.raises(error, match=message):
        estimator.transform(HEAVY)


# ------------------------------------------------------------------ fit


def test__fit__loads_nothing_and_imports_no_torch():
    code = (
        "import sys\n"
        "from esm2_features import ESM2Transformer\n"
        "for model in ('mini', *sys.argv[1:]):\n"
        "    fitted = ESM2Transformer(model).fit(['MKT', 'GSH'])\n"
        "    print(fitted.n_features_in_, len(fitted.get_feature_names_out()))\n"
        "print('torch' in sys.modules)"
    )
    assert python(code, DEFAULT_MODEL).split("\n") == ["1 192", "1 1280", "False"]


def test__fit__returns_itself_and_ignores_y(esm2):
    estimator = esm2()
    assert estimator.fit(HEAVY, y=object()) is estimator
    assert_equal(estimator.fit_transform(HEAVY, [0, 1, 0, 1]), estimator.transform(HEAVY))


def test__fit__forgets_the_names_of_an_earlier_fit(esm2):
    estimator = esm2().fit(FRAME[CHAINS])
    assert estimator.n_features_in_ == 2
    assert estimator.feature_names_in_.tolist() == CHAINS
    assert estimator.feature_names_in_.dtype == object
    estimator.fit(HEAVY)
    assert estimator.n_features_in_ == 1
    assert not hasattr(estimator, "feature_names_in_")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("MKT", TypeError),
        ([1.5], TypeError),
        ([], ValueError),
        (["MK1"], InvalidSequenceError),
        ([None], MissingSequenceError),
        (["M" * 1023], SequenceTooLongError),
    ],
)
def test__fit__refuses_what_transform_refuses(esm2, bad, error):
    with pytest.raises(error):
        esm2().fit(bad)
    with pytest.raises(error):
        esm2().transform(bad)


# ------------------------------------------------------------------ transform


def test__transform__needs_no_fit(esm2):
    assert_equal(esm2().transform(HEAVY), esm2().fit(LIGHT).transform(HEAVY))


def test__transform__gives_float32_rows_contiguous_and_one_for_each_sequence(esm2):
    for X, width in ((HEAVY, 32), (FRAME[CHAINS], 64)):
        embedding = esm2().fit_transform(X)
        assert type(embedding) is np.ndarray
        assert embedding.shape == (4, width)
        assert embedding.dtype == np.float32
        assert embedding.flags.c_contiguous
        assert np.isfinite(embedding).all()


@pytest.mark.parametrize(
    "X",
    [
        tuple(HEAVY),
        np.array(HEAVY),
        np.array(HEAVY, dtype=object)[:, None],
        pd.Series(HEAVY, name="seq", dtype="category"),
        pd.Index(HEAVY),
        FRAME[["heavy"]],
        pl.Series("seq", HEAVY),
        pl.DataFrame({"MKT": HEAVY}),
        [f" {sequence.lower()}*\n" for sequence in HEAVY],
    ],
    ids=lambda X: type(X).__name__,
)
def test__transform__is_the_same_for_every_container(esm2, X):
    assert_equal(esm2().fit(X).transform(X), esm2().transform(HEAVY))


def test__transform__keeps_order_and_duplicates(esm2):
    rows = [3, 0, 0, 2, 1, 3]
    alone = np.concatenate([esm2().transform([sequence]) for sequence in HEAVY])
    assert_equal(esm2(batch_tokens=20).transform([HEAVY[row] for row in rows]), alone[rows])
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test__transform__does_not_depend_on_batch_tokens(esm2):
    expected = esm2().transform(HEAVY + LIGHT)
    for batch_tokens in (1, 23, 10_000):
        assert_equal(esm2(batch_tokens=batch_tokens).transform(HEAVY + LIGHT), expected)


def test__transform__leaves_its_input_as_it_is(esm2):
    frame, rows = FRAME[CHAINS].copy(), [None, " mkt*"]
    esm2().fit_transform(frame)
    esm2(on_missing="nan").fit_transform(rows)
    pd.testing.assert_frame_equal(frame, FRAME[CHAINS])
    assert rows == [None, " mkt*"]


def test__transform__in_half_precision_is_near_and_another_number(esm2):
    exact = esm2().transform(HEAVY)
    for precision in ("bfloat16", "float16"):
        coarse = esm2(precision=precision).transform(HEAVY)
        assert coarse.dtype == np.float32
        assert 1e-5 < np.abs(coarse - exact).max() < 0.2


def test__transform__writes_nothing_where_there_is_no_terminal(esm2, capsys):
    esm2(verbose=True).fit_transform(HEAVY)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------ layers and pooling


@pytest.mark.parametrize(
    ("layers", "absolute"),
    [(-1, [2]), (0, [0]), (-3, [0]), ([2, 0], [2, 0]), ((-1, -2), [2, 1]), ("all", [0, 1, 2])],
    ids=str,
)
def test__layers__are_concatenated_in_the_order_asked_for(esm2, layers, absolute):
    singles = [esm2(layers=layer).transform(HEAVY) for layer in absolute]
    assert_equal(esm2(layers=layers).transform(HEAVY), np.hstack(singles))


def test__pooling__is_concatenated_within_each_layer(esm2):
    layers, poolings = [2, 0], ["max", "mean", "std", "cls", "eos"]
    estimator = esm2(layers=layers, pooling=poolings).fit(HEAVY)
    singles = [
        esm2(layers=layer, pooling=pooling).fit(HEAVY) for layer in layers for pooling in poolings
    ]
    assert_equal(estimator.transform(HEAVY), np.hstack([e.transform(HEAVY) for e in singles]))
    names = np.concatenate([single.get_feature_names_out() for single in singles])
    assert estimator.get_feature_names_out().tolist() == names.tolist()
    assert names[0] == "tiny_L2_max_0"
    assert names[-1] == "tiny_L0_eos_31"


# ------------------------------------------------------------------ several chains


def test__chains__are_embedded_each_by_itself_and_concatenated(esm2):
    expected = np.hstack([esm2().transform(HEAVY), esm2().transform(LIGHT)])
    estimator = esm2().fit(FRAME[CHAINS])
    assert_equal(estimator.transform(FRAME[CHAINS]), expected)
    names = estimator.get_feature_names_out()
    assert names.dtype == object
    assert names[[0, 31, 32, 63]].tolist() == [
        "heavy__tiny_L2_mean_0",
        "heavy__tiny_L2_mean_31",
        "light__tiny_L2_mean_0",
        "light__tiny_L2_mean_31",
    ]


def test__chains__without_names_are_numbered(esm2):
    estimator = esm2().fit(FRAME[CHAINS].to_numpy())
    assert estimator.get_feature_names_out()[[0, 32]].tolist() == [
        "x0__tiny_L2_mean_0",
        "x1__tiny_L2_mean_0",
    ]
    assert estimator.get_feature_names_out(CHAINS)[32] == "light__tiny_L2_mean_0"
    with pytest.raises(ValueError, match="input_features should have length equal"):
        estimator.get_feature_names_out(["heavy"])


def test__chains__must_be_those_of_fit(esm2):
    estimator = esm2().fit(FRAME[CHAINS])
    with pytest.raises(ValueError, match="must be in the same order as they were in fit"):
        estimator.transform(FRAME[CHAINS[::-1]])
    renamed = FRAME[CHAINS].set_axis(["heavy", "kappa"], axis=1)
    with pytest.raises(ValueError, match=r"unseen at fit time:\n- kappa\n.*missing:\n- light"):
        estimator.transform(renamed)
    with pytest.raises(ValueError, match="yet now missing:\n- light"):
        estimator.transform(FRAME[["heavy"]])
    with pytest.raises(ValueError, match="X has 1 features, but ESM2Transformer is expecting 2"):
        estimator.transform(HEAVY)
    with pytest.raises(ValueError, match="X has 2 features, but ESM2Transformer is expecting 1"):
        esm2().fit(HEAVY).transform(FRAME[CHAINS])


def test__chains__that_lost_their_names_are_warned_of(esm2):
    estimator = esm2().fit(FRAME[CHAINS])
    with pytest.warns(UserWarning, match="X does not have valid feature names") as caught:
        embedding = estimator.transform(FRAME[CHAINS].to_numpy())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert_equal(embedding, estimator.transform(FRAME[CHAINS]))


def test__one_chain__may_have_any_name(esm2):
    estimator = esm2().fit(FRAME["heavy"])
    assert estimator.feature_names_in_.tolist() == ["heavy"]
    assert_equal(
        estimator.transform(FRAME["heavy"].rename("vh")), estimator.transform(FRAME["heavy"])
    )
    assert_equal(estimator.transform(HEAVY), estimator.transform(FRAME["heavy"]))


def test__get_feature_names_out__before_fit_is_that_of_one_chain(esm2):
    names = esm2().get_feature_names_out()
    assert names.tolist() == esm2().fit(HEAVY).get_feature_names_out().tolist()


# ------------------------------------------------------------------ missing, empty, invalid, long


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=repr)
def test__on_missing__raise_names_the_row(esm2, missing):
    with pytest.raises(MissingSequenceError, match=r"row 1 \(the first of 2\)") as caught:
        esm2().transform(["MKT", missing, "GSH", missing])
    assert caught.value.index == 1
    frame = pd.DataFrame({"heavy": ["MKT", "GSH"], "light": ["MKT", missing]}, dtype=object)
    with pytest.raises(MissingSequenceError, match="row 1 of column 'light'"):
        esm2().fit(frame)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=repr)
@pytest.mark.parametrize(("on_missing", "fill"), [("nan", np.nan), ("zero", 0.0)])
def test__on_missing__fills_the_rows_and_leaves_the_others(esm2, missing, on_missing, fill):
    embedding = esm2(on_missing=on_missing).fit_transform([HEAVY[0], missing, HEAVY[1], missing])
    np.testing.assert_array_equal(embedding[[1, 3]], np.full((2, 32), fill))
    assert_equal(embedding[[0, 2]], esm2().transform(HEAVY[:2]))
    assert embedding.dtype == np.float32


def test__on_missing__fills_only_the_chain_that_is_missing(esm2):
    frame = pd.DataFrame({"heavy": [HEAVY[0], None, None], "light": [None, LIGHT[1], None]})
    embedding = esm2(on_missing="nan").fit_transform(frame)
    assert np.isnan(embedding).tolist() == [
        [False] * 32 + [True] * 32,
        [True] * 32 + [False] * 32,
        [True] * 64,
    ]
    assert_equal(embedding[0, :32], esm2().transform(HEAVY[:1])[0])
    assert_equal(embedding[1, 32:], esm2().transform(LIGHT[1:2])[0])


@pytest.mark.parametrize("cached", [False, True])
def test__on_missing__fills_a_column_in_which_all_are_missing(esm2, tmp_path, cached):
    estimator = esm2(on_missing="zero", cache=tmp_path if cached else None)
    frame = pd.DataFrame({"heavy": [np.nan, np.nan], "light": [np.nan, np.nan]})
    assert not estimator.fit_transform(frame["heavy"]).any()
    embedding = estimator.fit_transform(frame)
    assert embedding.shape == (2, 64)
    assert not embedding.any()
    frame["light"] = LIGHT[:2]
    assert_equal(estimator.fit_transform(frame)[:, 32:], esm2().transform(LIGHT[:2]))


@pytest.mark.parametrize("on_missing", ["raise", "nan"])
@pytest.mark.parametrize("empty", ["", "  ", "*"])
def test__empty_sequence__is_refused_with_its_row(esm2, empty, on_missing):
    with pytest.raises(InvalidSequenceError, match="Empty sequence in row 2") as caught:
        esm2(on_missing=on_missing).fit(["MKT", "GSH", empty])
    assert (caught.value.index, caught.value.position, caught.value.residue) == (2, None, "")


@pytest.mark.parametrize(
    ("sequence", "position", "residue"), [("MKJ", 3, "J"), ("M-K", 2, "-"), ("M*KT*", 2, "*")]
)
def test__invalid_letter__is_refused_with_row_position_and_letter(
    esm2, sequence, position, residue
):
    with pytest.raises(InvalidSequenceError, match=f"position {position} .* in row 1 ") as caught:
        esm2().transform(["MKT", sequence])
    assert caught.value.index == 1
    assert (caught.value.position, caught.value.residue) == (position, residue)


def test__invalid_letter__in_a_frame_is_refused_with_row_and_column(esm2):
    frame = pd.DataFrame({"heavy": ["MKT", "ACD", "GSH"], "light": ["MKT", None, "GS1"]})
    with pytest.raises(InvalidSequenceError, match="row 2 of column 'light'") as caught:
        esm2(on_missing="nan").fit(frame)
    assert caught.value.index == 2  # the row in the frame, missing ones counted


@pytest.mark.parametrize(("unknown", "written"), [("X", "X"), ("mask", "<mask>")])
def test__unknown__is_the_same_as_writing_it(esm2, unknown, written):
    estimator = esm2(unknown=unknown)
    expected = esm2().transform([f"MK{written}T", f"{written * 2}GSH"])
    assert_equal(estimator.fit_transform(["MKJT", "J?GSH"]), expected)
    assert np.abs(expected[0] - esm2().transform(["MKT"])[0]).max() > 0.01


def test__too_long__is_refused_with_row_length_and_limit(esm2):
    with pytest.raises(SequenceTooLongError, match="row 1 has 11 residues") as caught:
        esm2(max_residues=10).fit(["M" * 10, "M" * 11])
    assert (caught.value.index, caught.value.length, caught.value.limit) == (1, 11, 10)


def test__too_long__truncate_is_the_same_as_cutting_and_warns_once(esm2):
    estimator = esm2(max_residues=5, too_long="truncate", pooling=["mean", "eos"])
    with pytest.warns(TruncationWarning, match="3 of 4 sequences were cut") as caught:
        embedding = estimator.transform(["MKT", *HEAVY[:3]])
    assert len(caught) == 1
    expected = esm2(pooling=["mean", "eos"]).transform(["MKT", *(s[:5] for s in HEAVY[:3])])
    assert_equal(embedding, expected)


def test__too_long__truncate_warns_once_in_fit_transform(esm2):
    with pytest.warns(TruncationWarning, match="4 of 4 sequences") as caught:
        esm2(max_residues=5, too_long="truncate").fit_transform(HEAVY)
    assert len(caught) == 1


def test__max_residues__counts_residues_and_none_allows_any_length(esm2):
    long = "MKTAYIAKQR" * 103  # 1030
    with pytest.raises(SequenceTooLongError):
        esm2().transform([long])
    embedding = esm2(max_residues=None).transform([long, long[:1022]])
    assert_equal(embedding[1], esm2().transform([f"{long[:1022]}*"])[0])
    assert np.abs(embedding[0] - embedding[1]).max() > 1e-4


# ------------------------------------------------------------------ pipelines


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        ("heavy", ["esm__tiny_L2_mean_0"]),
        (["heavy"], ["esm__tiny_L2_mean_0"]),
        (CHAINS, ["esm__heavy__tiny_L2_mean_0", "esm__light__tiny_L2_mean_0"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test__column_transformer__embeds_columns_beside_numbers(esm2, selection, names, library):
    table = library(FRAME.to_dict("list"))
    transformer = ColumnTransformer([("esm", esm2(), selection), ("rest", "passthrough", ["mass"])])
    out = transformer.fit_transform(table)
    assert_equal(out[:, :-1], esm2().transform(FRAME[selection]))
    assert out[:, -1].tolist() == FRAME["mass"].tolist()
    assert_equal(transformer.transform(table), out)
    found = transformer.get_feature_names_out()
    assert [*found[:-1:32]] == names
    assert found[-1] == "rest__mass"


def test__column_transformer__gives_frames_with_the_index(esm2):
    transformer = ColumnTransformer([("esm", esm2(), CHAINS)], remainder="passthrough")
    out = transformer.set_output(transform="pandas").fit_transform(FRAME)
    assert out.index.tolist() == FRAME.index.tolist()
    assert out["remainder__mass"].tolist() == FRAME["mass"].tolist()
    assert_equal(out.iloc[:, :-1], esm2().transform(FRAME[CHAINS]))


def test__feature_union__of_two_layers_is_both(esm2):
    union = FeatureUnion([("first", esm2(layers=0)), ("last", esm2())])
    assert_equal(union.fit_transform(HEAVY), esm2(layers=[0, -1]).transform(HEAVY))
    assert union.get_feature_names_out()[[0, 32]].tolist() == [
        "first__tiny_L0_mean_0",
        "last__tiny_L2_mean_0",
    ]


def test__grid_search__in_two_processes_fills_one_cache_with_each_vector_once(esm2, tmp_path):
    X, y = HEAVY + LIGHT, [0] * 4 + [1] * 4
    pipeline = Pipeline([("esm", esm2(cache=tmp_path)), ("classify", LogisticRegression())])
    grid = {
        "esm__layers": [1, -1],
        "esm__pooling": ["mean", ["mean", "max"]],
        "classify__C": [0.1, 10.0],
    }
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 8
    assert search.predict(X).tolist() == y
    # sequences x (2 layers x 2 poolings), whatever C and the folds were
    assert Cache(tmp_path).info().rows == 8 * 4


def test__cross_val_score__scores_every_fold(esm2):
    pipeline = make_pipeline(esm2(), LogisticRegression())
    scores = cross_val_score(pipeline, np.array(HEAVY + LIGHT), [0] * 4 + [1] * 4, cv=4)
    assert scores.shape == (4,)
    assert scores.mean() > 0.5  # the two kinds differ in length and letters


def test__metadata_routing__passes_by(esm2):
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = LogisticRegression().set_fit_request(sample_weight=True)
        pipeline = make_pipeline(esm2(), classifier)
        pipeline.fit(HEAVY, [0, 0, 1, 1], sample_weight=[1.0, 1.0, 1.0, 9.0])
        weighted = pipeline.predict_proba(HEAVY)
        pipeline.fit(HEAVY, [0, 0, 1, 1], sample_weight=[1.0, 1.0, 1.0, 1.0])
        assert np.abs(weighted - pipeline.predict_proba(HEAVY)).max() > 0.01
        routing = esm2().get_metadata_routing()
        assert not routing.fit.requests
        assert not routing.transform.requests


# ------------------------------------------------------------------ output and looks


@pytest.mark.parametrize(
    "X", [FRAME["heavy"], FRAME[["heavy"]], FRAME[CHAINS]], ids=["s", "1", "2"]
)
def test__set_output__pandas_keeps_the_index(esm2, X):
    estimator = esm2().set_output(transform="pandas")
    out = estimator.fit_transform(X)
    assert isinstance(out, pd.DataFrame)
    assert out.index.tolist() == ["a", "b", "c", "d"]
    assert out.columns.tolist() == estimator.get_feature_names_out().tolist()
    assert set(out.dtypes) == {np.dtype(np.float32)}
    estimator.set_output(transform="default")
    assert_equal(out, estimator.transform(X))
    assert isinstance(estimator.transform(X), np.ndarray)


@pytest.mark.parametrize(
    "X",
    [pl.Series("seq", HEAVY), pl.DataFrame({"a": HEAVY, "b": LIGHT})],
    ids=["Series", "two columns"],
)
def test__set_output__polars_has_the_names(esm2, X):
    estimator = esm2().set_output(transform="polars")
    out = estimator.fit_transform(X)
    assert isinstance(out, pl.DataFrame)
    assert out.columns == estimator.get_feature_names_out().tolist()
    assert set(out.dtypes) == {pl.Float32}
    assert_equal(out.to_numpy(), esm2().transform(X))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test__set_output__works_without_fit(esm2, library):
    out = esm2().set_output(transform=library).transform(HEAVY)
    assert list(out.columns) == esm2().get_feature_names_out().tolist()
    assert_equal(out.to_numpy(), esm2().transform(HEAVY))


def test__repr__shows_what_differs_from_the_defaults():
    assert repr(ESM2Transformer("mini", layers=0)) == "ESM2Transformer(layers=0, model='mini')"


# ------------------------------------------------------------------ weights, pickles, processes


@pytest.fixture
def own_network(tmp_path):
    """A checkpoint that no other test has loaded; its network is forgotten afterwards."""
    path = write_fair_esm(random_esm2(layers=2, dim=32, heads=2, seed=11), tmp_path / "own.pt")
    before = set(_registry._networks)
    yield path
    for key in set(_registry._networks) - before:
        del _registry._networks[key]


def test__weights__are_loaded_once_for_fifty_clones_in_eight_threads(esm2, own_network):
    estimator = esm2(own_network).fit(HEAVY)
    before = set(_registry._networks)
    with ThreadPoolExecutor(8) as threads:
        rows = list(threads.map(lambda _: clone(estimator).transform(HEAVY[:1]), range(50)))
    [key] = set(_registry._networks) - before
    network = _registry._networks[key]
    assert_equal(np.concatenate(rows), np.repeat(rows[0], 50, axis=0))
    clone(estimator).set_params(layers=0, pooling="max").transform(HEAVY)
    assert set(_registry._networks) - before == {key}
    assert _registry._networks[key] is network


def test__weights__are_never_on_the_instance(esm2, own_network):
    estimator = esm2(own_network).fit(HEAVY)
    attributes = dict(vars(estimator))
    estimator.transform(HEAVY)
    assert vars(estimator) == attributes


@pytest.mark.parametrize("cached", ["path", "Cache", "none"])
def test__pickle__is_small_and_works(esm2, tmp_path, cached):
    cache = {"path": tmp_path / "cache", "Cache": Cache(tmp_path / "cache"), "none": None}[cached]
    estimator = esm2(cache=cache).fit(FRAME[CHAINS])
    embedding = estimator.transform(FRAME[CHAINS])
    pickled = pickle.dumps(estimator)
    assert len(pickled) < 2000
    assert_equal(pickle.loads(pickled).transform(FRAME[CHAINS]), embedding)
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    assert (tmp_path / "estimator.joblib").stat().st_size < 2000
    restored = joblib.load(tmp_path / "estimator.joblib")
    assert_equal(restored.transform(FRAME[CHAINS]), embedding)
    assert restored.get_params() == estimator.get_params()
    assert restored.feature_names_in_.tolist() == CHAINS


def test__pickle__works_in_another_process(esm2, tmp_path):
    pipeline = make_pipeline(esm2(cache=tmp_path / "cache"), LogisticRegression())
    joblib.dump(pipeline.fit(HEAVY, [0, 1, 0, 1]), tmp_path / "pipeline.joblib")
    code = (
        "import joblib, sys\n"
        "pipeline = joblib.load(sys.argv[1])\n"
        "print(pipeline.predict_proba(sys.argv[2:])[:, 1].tolist(), 'torch' in sys.modules)"
    )
    printed = python(code, tmp_path / "pipeline.joblib", *HEAVY)
    probabilities, torch_imported = printed.rsplit(" ", 1)
    assert_equal(json.loads(probabilities), pipeline.predict_proba(HEAVY)[:, 1])
    assert torch_imported == "False"


FORKED = """
import os, sys
from esm2_features import ESM2Transformer
from esm2_features.exceptions import ForkedProcessError

estimator = ESM2Transformer(sys.argv[1], cache=sys.argv[2], device="cpu")
parents = estimator.transform(["MKT", "GSH"])
child = os.fork()
if child == 0:
    try:
        print("cached", (estimator.transform(["GSH", "MKT"]) == parents[::-1]).all(), flush=True)
        try:
            estimator.transform(["MKT", "ACD"])
        except ForkedProcessError:
            print("refused", flush=True)
    finally:
        os._exit(0)
os.waitpid(child, 0)
print("parent", estimator.transform(["ACD"]).shape)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test__forked_child__reads_the_cache_and_refuses_to_compute(tiny_checkpoint, tmp_path):
    printed = python(FORKED, tiny_checkpoint, tmp_path)
    assert printed.split("\n") == ["cached True", "refused", "parent (1, 32)"]


# ------------------------------------------------------------------ the cache

WARM = """
import sys
import numpy as np
from esm2_features import ESM2Transformer
from esm2_features._inference import networks as _registry

cache, *models = sys.argv[1:]
for model in models:
    rows = ESM2Transformer(model, cache=cache).fit_transform(["MKT", "GSH", "MKT"])
    np.save(f"{cache}/{models.index(model)}.npy", rows)
print("torch" in sys.modules, len(_registry._networks))
"""


def test__warm_cache__needs_neither_weights_nor_torch(esm2, tiny_checkpoint, tmp_path, nowhere):
    official = "esm2_t30_150M_UR50D"  # its weights are not on this machine, only two vectors
    made_up = np.random.default_rng(0).normal(size=(2, 640)).astype(np.float32)
    spec = Spec(OFFICIAL[official].identity, 30, "mean", "float32")
    Cache(tmp_path)._put_many([KeyedVectors(spec, spec.keys(["MKT", "GSH"]), made_up)])
    expected = [
        esm2(model, cache=tmp_path).transform(["MKT", "GSH"]) for model in ("mini", tiny_checkpoint)
    ]
    assert python(WARM, tmp_path, "mini", tiny_checkpoint, official) == "False 0"
    for i, rows in enumerate([*expected, made_up]):
        np.testing.assert_array_equal(np.load(tmp_path / f"{i}.npy"), rows[[0, 1, 0]])


@pytest.mark.parametrize("cached", [False, True])
def test__official_name__without_weights_is_an_error_and_never_another_model(
    tmp_path, nowhere, cached
):
    estimator = ESM2Transformer(cache=tmp_path if cached else None).fit(HEAVY)
    networks = set(_registry._networks)
    with pytest.raises(DownloadError, match="ESM2_FEATURES_OFFLINE") as caught:
        estimator.transform(HEAVY)
    assert DEFAULT_MODEL in str(caught.value)
    assert set(_registry._networks) == networks
    assert Cache(tmp_path).info().rows == 0


@pytest.mark.parametrize(
    "parameters",
    [{"layers": 1}, {"pooling": "max"}, {"precision": "bfloat16"}, {"model": "own"}],
    ids=lambda parameters: next(iter(parameters)),
)
def test__cache__is_never_shared_by_what_changes_a_number(esm2, tmp_path, own_network, parameters):
    if "model" in parameters:  # another content under the same name
        parameters = {"model": own_network.rename(own_network.with_name("tiny.pt"))}
    esm2(cache=tmp_path).transform(HEAVY)
    assert Cache(tmp_path).info().rows == 4
    other = esm2(cache=tmp_path, **parameters).transform(HEAVY)
    assert Cache(tmp_path).info().rows == 8
    assert_equal(other, esm2(**parameters).transform(HEAVY))
    assert np.abs(other - esm2().transform(HEAVY)).max() > 1e-5


# No machine has that many cards: computing would be an error, so the cache has answered.
NO_DEVICE = {"device": "cuda:99"}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"batch_tokens": 7},
        {"max_residues": 500},
        {"max_residues": None},
        {"unknown": "X"},
        {"on_missing": "zero"},
        {"verbose": True},
        {"layers": [2]},
        {"model": "copy"},
    ],
    ids=lambda parameters: next(iter(parameters), "device"),
)
def test__cache__is_shared_by_what_changes_no_number(esm2, tmp_path, tiny_checkpoint, parameters):
    if "model" in parameters:
        parameters = {"model": shutil.copy(tiny_checkpoint, tmp_path / "renamed.pt")}
    expected = esm2(cache=tmp_path).transform(HEAVY)
    estimator = esm2(cache=tmp_path, **NO_DEVICE, **parameters)
    np.testing.assert_array_equal(estimator.fit_transform(HEAVY[::-1]), expected[::-1])
    with pytest.raises(InputError, match="cuda:99"):
        estimator.transform(LIGHT)


def test__cache__keys_are_of_the_residues_that_were_embedded(esm2, tmp_path):
    cut, written = esm2(cache=tmp_path).transform(["MKTAY", "MKXT"])
    estimator = esm2(cache=tmp_path, max_residues=5, too_long="truncate", unknown="X", **NO_DEVICE)
    with pytest.warns(TruncationWarning):
        rows = estimator.transform(["MKTAYIAKQR", "MKJT"])
    np.testing.assert_array_equal(rows, [cut, written])


def test__cache__computes_what_is_missing_and_no_more(esm2, tmp_path):
    esm2(cache=tmp_path, layers=0).transform(HEAVY[:2])
    estimator = esm2(cache=tmp_path, layers=[0, 1])
    assert_equal(estimator.transform(HEAVY), esm2(layers=[0, 1]).transform(HEAVY))
    assert Cache(tmp_path).info().rows == 8


def test__too_long__truncate_warns_once_for_several_chains(esm2):
    estimator = esm2(max_residues=5, too_long="truncate").fit(FRAME[CHAINS])
    with pytest.warns(TruncationWarning, match="8 of 8 sequences were cut") as caught:
        estimator.transform(FRAME[CHAINS])
    assert len(caught) == 1


@pytest.mark.parametrize("text", ["2:5,7:9", "2:5, 7:9", "7:9,2:3,3:5", "2,3,4,7:9"])
def test__region__several_parts_for_all_rows(esm2, text):
    X = pd.DataFrame({"sequence": ["MKTAYIAKQR", "GSHMVLSEGE"], "site": ["2:5,7:9"] * 2})
    expected = esm2(region="site").fit_transform(X)
    assert_equal(esm2(region=text).fit_transform(X["sequence"]), expected)


@pytest.mark.parametrize("text", ["5:2,7:9", "2:", "2:5:7", ":", "1:2,,3:4", "2:5,7:7"])
def test__region__parts_that_are_none(esm2, text):
    with pytest.raises(InputError, match=r"Got region=.* several parts as text"):
        esm2(region=text).fit(["MKTAYIAKQR"])


def test__search__with_a_missing_checkpoint_has_one_short_error(tmp_path, monkeypatch):
    """Its traceback ends in `transform`, and has no causes: scikit-learn prints all of it."""
    monkeypatch.setenv("ESM2_FEATURES_OFFLINE", "1")
    for name in ("ESM2_FEATURES_HOME", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        ESM2Transformer("esm2_t6_8M_UR50D", cache=None).transform(["MKTAYIAKQR"])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert caught.traceback[-1].name == "transform"
