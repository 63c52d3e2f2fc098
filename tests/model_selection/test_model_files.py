"""Saved models: what comes back is what was saved, and what is wrong with a file is said."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
from checkpoints import random_esm2, write_fair_esm
from families import GLUCAGON, MAGAININ
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from esm2_features import Cache, DescriptorTransformer, ESM2Transformer
from esm2_features.exceptions import CheckpointError, InputError
from esm2_features.model_selection import load_model, save_model

X = pd.Series([MAGAININ, GLUCAGON, MAGAININ[::-1], GLUCAGON[::-1]], name="peptide")
LABELS = ["toxic", "not", "toxic", "not"]
NUMBERS = [1.0, 2.0, 1.5, 2.5]


def mini(**parameters):
    return ESM2Transformer("mini", cache=None, **parameters)


def edited(path, change):
    """Write what a file says of its model anew."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    facts = json.loads(members["esm2_features.json"])
    change(facts)
    members["esm2_features.json"] = json.dumps(facts).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.skops"


@pytest.fixture
def saved(path):
    pipeline = make_pipeline(DescriptorTransformer(), Ridge()).fit(X, NUMBERS)
    save_model(path, pipeline)
    return path


@pytest.mark.parametrize(
    "features", [mini, DescriptorTransformer, lambda: make_union(mini(), DescriptorTransformer())]
)
@pytest.mark.parametrize(("learner", "y"), [(LogisticRegression(), LABELS), (Ridge(), NUMBERS)])
def test__model__predicts_the_same_after_loading(path, features, learner, y):
    pipeline = make_pipeline(features(), StandardScaler(), learner).fit(X, y)
    save_model(path, pipeline, target="what")
    model = load_model(path)
    found = model.predict(X, neighbours=False)
    np.testing.assert_array_equal(found.pop("prediction"), pipeline.predict(X))
    assert (model.target, model.columns) == ("what", ["peptide"])
    if y is NUMBERS:
        assert (model.classes, found) == (None, {})
    else:
        np.testing.assert_array_equal(model.classes, ["not", "toxic"])
        shares = [found["probability_not"], found["probability_toxic"]]
        np.testing.assert_array_equal(np.transpose(shares), pipeline.predict_proba(X))


def test__search__is_saved_with_its_best_pipeline(path):
    search = GridSearchCV(make_pipeline(mini(), Ridge()), {"ridge__alpha": [1, 2]}, cv=2)
    save_model(path, search.fit(X, NUMBERS))
    model = load_model(path)
    assert list(model.checkpoints) == ["esm2transformer"]
    np.testing.assert_array_equal(model.predict(X)["prediction"], search.predict(X))


def test__nearest__training_sequence_has_its_identity_and_id(path):
    pipeline = make_pipeline(
        DescriptorTransformer(on_missing="nan"), FunctionTransformer(), Ridge()
    )
    pipeline = make_pipeline(DescriptorTransformer(on_missing="zero"), Ridge()).fit(X, NUMBERS)
    save_model(path, pipeline, sequences=X, ids=list("abcd"))
    found = load_model(path).predict([MAGAININ[:-1] + "K", None, "CYIQNCPLG"])
    np.testing.assert_allclose(found["identity"], [22 / 23, np.nan, 0])
    assert found["nearest"].tolist() == ["a", "", ""]


def test__nearest__without_ids_is_a_row(path):
    save_model(path, make_pipeline(DescriptorTransformer(), Ridge()).fit(X, NUMBERS), sequences=X)
    model = load_model(path)
    assert model.predict([GLUCAGON, "CYIQNCPLG"])["nearest"].tolist() == [1, -1]
    assert "nearest" not in model.predict([GLUCAGON], neighbours=False)


# ------------------------------------------------------------------ intervals


def test__interval__weights_families_equally(path):
    pipeline = make_pipeline(DescriptorTransformer(), Ridge()).fit(X, NUMBERS)
    # 19 families of one row with small residuals, in order; and one of 80 rows with large ones.
    residuals = [*(-np.arange(1, 20)), *np.full(80, 100), np.nan]
    save_model(path, pipeline, residuals=residuals, groups=[*range(19), *[19] * 80, 7])
    model = load_model(path)
    for coverage, width in ((0.9, 19), (0.5, 11), (0.95, 100)):
        found = model.predict(X, coverage=coverage)
        np.testing.assert_allclose(found["high"] - found["low"], 2 * width)
        np.testing.assert_allclose(found["high"] - found["prediction"], width)


def test__interval__holds_the_share_of_new_families_that_it_promises():
    from esm2_features.model_selection.intervals import half_width

    generator = np.random.default_rng(0)
    held = []
    for _ in range(400):
        of_family = generator.normal(size=41) * generator.gamma(1, size=41)
        groups = np.repeat(np.arange(40), generator.integers(1, 30, 40))
        residuals = of_family[groups] + generator.normal(scale=0.1, size=len(groups))
        width = half_width(residuals.tolist(), groups.tolist(), 0.9)
        held.append(abs(of_family[40] + generator.normal(scale=0.1)) <= width)
    assert 0.87 <= np.mean(held) <= 0.96


def test__interval__of_too_few_families_is_infinite_and_said(path):
    pipeline = make_pipeline(DescriptorTransformer(), Ridge()).fit(X, NUMBERS)
    save_model(path, pipeline, residuals=[1, 2, 3, 4], groups=[0, 0, 1, 2])
    model = load_model(path)
    with pytest.warns(UserWarning, match=r"90% are infinite.* Pass coverage=0\.75 or less\."):
        assert np.isinf(model.predict(X)["high"]).all()
    assert np.isfinite(model.predict(X, coverage=0.75)["high"]).all()
    with pytest.raises(InputError, match=r"Did you mean 0\.9\?"):
        model.predict(X, coverage=90)


# ------------------------------------------------------------------ this machine, and others


def test__file__holds_no_token_and_no_object_of_a_cache(path, tmp_path):
    cache = Cache(tmp_path / "cache")
    esm = ESM2Transformer("mini", cache=cache)
    pipeline = make_pipeline(esm, Ridge()).fit(X, NUMBERS)
    esm.set_params(endpoint="http://127.0.0.1:9", token="mystery")
    save_model(path, pipeline)
    assert (esm.cache, repr(esm.token)) == (cache, "<hidden>")
    loaded = load_model(path, parameters={"endpoint": None}).estimator[0]
    assert (loaded.cache, loaded.token) == (str(cache.path), None)
    with zipfile.ZipFile(path) as archive:
        assert all(b"mystery" not in archive.read(name) for name in archive.namelist())


def test__parameters__change_transformers(path):
    save_model(path, make_pipeline(mini(), Ridge()).fit(X, NUMBERS))
    assert load_model(path, parameters={"batch_tokens": 99}).estimator[0].batch_tokens == 99
    with pytest.raises(InputError, match="Got the parameter 'cash', which no transformer of"):
        load_model(path, parameters={"cash": None})


def test__other_weights__under_the_same_name_are_an_error(path, tmp_path):
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    write_fair_esm(random_esm2(seed=0), one)
    write_fair_esm(random_esm2(seed=1), other)
    pipeline = make_pipeline(ESM2Transformer(one, cache=None), Ridge()).fit(X, NUMBERS)
    save_model(path, pipeline)
    expected = load_model(path).predict(X)["prediction"]
    kept = one.rename(tmp_path / "kept.pt")
    other.rename(one)
    with pytest.raises(CheckpointError, match=r"trained with other weights.* Train anew, or give"):
        load_model(path)
    found = load_model(path, parameters={"model": str(kept)}).predict(X)["prediction"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("package", ["scikit-learn", "esm2_features"])
def test__other_versions__are_a_warning(saved, package):
    edited(saved, lambda facts: facts["versions"].update({package: "99.1.0"}))
    with pytest.warns(UserWarning, match=f"{package} 99.1.0, and this is .* or train anew"):
        load_model(saved)


def test__patch_releases__are_the_same(saved):
    import sklearn

    number = ".".join([*sklearn.__version__.split(".")[:2], "99"])
    edited(saved, lambda facts: facts["versions"].update({"scikit-learn": number}))
    load_model(saved)


def test__newer_format__is_an_error(saved):
    edited(saved, lambda facts: facts.update(format=2, more=1))
    with pytest.raises(InputError, match=r"newer version of this library.* Update it"):
        load_model(saved)


# ------------------------------------------------------------------ what is no model


def test__foreign_files__are_an_error(tmp_path, path):
    import skops.io

    pickled = pickle.dumps(Ridge())
    table, other = tmp_path / "x.xlsx", tmp_path / "other.skops"
    pd.DataFrame({"a": [1]}).to_excel(table)
    skops.io.dump(Ridge(), other)
    for data in (b"", b"text\n", pickled, b"PK\x03\x04", table.read_bytes(), other.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"no saved model.*Give a file that save_model"):
            load_model(path)


def test__damaged_files__are_an_error(saved):
    data = saved.read_bytes()
    generator = np.random.default_rng(0)
    for cut in (len(data) // 3, len(data) - 30):
        saved.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"model\.skops"):
            load_model(saved)
    for at in generator.integers(0, len(data), 40):
        saved.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            load_model(saved)
        except InputError as error:
            assert "model.skops" in str(error)  # noqa: PT017 - some bytes are not read


def test__types__that_may_do_harm_are_loaded_only_if_trusted(path):
    forest = make_pipeline(DescriptorTransformer(), RandomForestClassifier(3, random_state=0))
    save_model(path, forest.fit(X, LABELS))
    with pytest.raises(InputError, match=r"sklearn\.tree\._tree\.Tree.* pass trusted=\['sklearn"):
        load_model(path)
    model = load_model(path, trusted=["sklearn.tree._tree.Tree"])
    np.testing.assert_array_equal(model.predict(X)["prediction"], forest.predict(X))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_pipeline(mini(), LogisticRegression()), "is not fitted"),
        (lambda: Ridge().fit([[1.0]], [1.0]), "has no transformer of sequences"),
        (lambda: LABELS, "cannot be saved"),
    ],
)
def test__estimators__that_are_no_fitted_pipelines_are_an_error(path, make, said):
    with pytest.raises(InputError, match=said):
        save_model(path, make())
    assert not path.exists()


def test__functions__are_an_error_if_skops_cannot_save_them(path):
    steps = DescriptorTransformer(), FunctionTransformer(lambda values: values), Ridge()
    with pytest.raises(InputError, match="skops cannot save"):
        save_model(path, make_pipeline(*steps).fit(X, NUMBERS))
    assert not path.exists()


def test__lengths__that_differ_are_an_error(path):
    pipeline = make_pipeline(DescriptorTransformer(), Ridge()).fit(X, NUMBERS)
    with pytest.raises(InputError, match="Got 4 sequences and 1 ids"):
        save_model(path, pipeline, sequences=X, ids=["a"])
    with pytest.raises(InputError, match="Got 2 residuals and 3 groups"):
        save_model(path, pipeline, residuals=[1, 2], groups=[1, 2, 3])


def test__existing_files__are_replaced_only_if_asked(saved):
    pipeline = make_pipeline(DescriptorTransformer(), Ridge()).fit(X, NUMBERS)
    with pytest.raises(InputError, match="exists already"):
        save_model(saved, pipeline)
    save_model(saved, pipeline, force=True)
    with pytest.raises(InputError, match=r"Let it end in \.skops"):
        save_model(saved.with_suffix(".pkl"), pipeline)
