"""`compare_features`: honest folds, honest choices, and what they give."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pandas as pd
import pytest
import sklearn
from families import RESIDUES, families_of, random_sequence
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, RepeatedKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from esm2_features import DescriptorTransformer, ESM2DifferenceTransformer
from esm2_features.exceptions import InputError, InvalidSequenceError, LeakageWarning
from esm2_features.model_selection import FeatureComparison, compare_features
from esm2_features.model_selection.nested import nested_folds
from esm2_features.model_selection.result import Row
from esm2_features.model_selection.targets import read_targets

COMPOSITION = {"composition": DescriptorTransformer("composition")}
QUICK = {
    "groups": None,
    "layers": [1, 2],
    "poolings": "mean",
    "baselines": COMPOSITION,
    "learner": LogisticRegression(),
    "cv": 3,
    "n_bootstrap": 20,
}


def unrelated(n: int, *, seed: int = 0, length: tuple[int, int] = (12, 20)) -> list[str]:
    rng = random.Random(seed)
    return [random_sequence(rng, rng.randint(*length)) for _ in range(n)]


def charged(n: int = 60, seed: int = 0) -> tuple[list[str], list[str]]:
    """Sequences of two classes that differ in their content of lysine."""
    rng = random.Random(seed)
    sequences = unrelated(n, seed=seed)
    labels = ["toxic" if i % 2 else "safe" for i in range(n)]
    return [
        "".join("K" if label == "toxic" and rng.random() < 0.2 else letter for letter in sequence)
        for sequence, label in zip(sequences, labels, strict=True)
    ], labels


@pytest.fixture
def compare(esm2):
    def run(X, y, **parameters):
        parameters = {**QUICK, "transformer": esm2(), **parameters}
        return compare_features(X, y, **parameters)

    return run


# ------------------------------------------------------------------ what it gives


def test__results__are_those_of_all_layers_poolings_and_baselines(compare):
    X, y = charged()
    comparison = compare(X, y, layers="all", poolings=["mean", "std"], baselines="auto")
    frame = comparison.to_frame()
    embeddings = frame[frame.kind == "embedding"]
    assert set(zip(embeddings.layer, embeddings.pooling, strict=True)) == {
        (layer, pooling) for layer in range(3) for pooling in ("mean", "std")
    }
    assert set(frame[frame.kind == "baseline"].features) == {
        "length", "composition", "properties", "1- to 3-mers",
    }  # fmt: skip
    assert (frame.kind == "procedure").sum() == 4
    assert (frame.low <= frame.score).all()
    assert (frame.score <= frame.high).all()
    assert frame.set_index("features").score["composition"] > 0.7
    assert (comparison.task, comparison.scoring) == ("classification", "roc_auc")
    assert comparison.classes.tolist() == ["safe", "toxic"]
    assert "1- to 3-mers" in str(comparison)
    assert comparison.verdict in str(comparison)


def test__aligned_baselines__are_of_sequences_of_one_length(compare):
    X = unrelated(30, length=(15, 15))
    comparison = compare(X, [i % 2 for i in range(30)], baselines="auto")
    assert {"one-hot", "BLOSUM62"} <= set(comparison.results["features"])


def test__a_given_baseline__is_the_only_one(compare):
    X, y = charged()
    comparison = compare(X, y)
    assert comparison.results["kind"].count("baseline") == 1
    alone = compare(X, y, baselines={})
    assert "baseline" not in alone.verdict
    assert alone.results["kind"].count("procedure") == 2
    with pytest.raises(InputError, match="'layer 2, mean', which is taken"):
        compare(X, y, baselines={"layer 2, mean": COMPOSITION["composition"]})
    with pytest.raises(InputError, match="'x' is no transformer"):
        compare(X, y, baselines={"x": 3})
    with pytest.raises(InputError, match='expected "auto"'):
        compare(X, y, baselines="none")


def test__each_sequence__goes_through_the_network_once(compare, ran):
    X, y = charged(40)
    compare([*X, X[0]], [*y, y[0]], layers="all", poolings=["mean", "max"], baselines={})
    assert sorted(ran) == sorted(set(X))


def test__a_score__is_that_of_nested_cross_validation_by_scikit_learn(compare):
    X, y = charged(90)
    groups = np.arange(90) // 2
    comparison = compare(X, y, groups=groups, layers=[2], learner=None)
    features, target = COMPOSITION["composition"].fit_transform(X), np.array(y)
    areas = []
    for train, test in comparison.splits:
        inner = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
            # A weight of 20**-0.5 on standardised features is a C that is 20 times smaller.
            {"logisticregression__C": np.logspace(-1, 3, 5) / 20},
            scoring="neg_log_loss",
            cv=list(inner.split(train, target[train], groups[train])),
        ).fit(features[train], target[train])
        areas.append(roc_auc_score(target[test], search.predict_proba(features[test])[:, 1]))
    found = comparison.to_frame().set_index("features").score
    assert found["composition"] == pytest.approx(np.mean(areas), abs=5e-3)


def test__numbers__are_predicted(compare):
    X, _ = charged(60)
    y = [sequence.count("K") + 0.1 * len(sequence) for sequence in X]
    comparison = compare(X, y, learner=None)
    assert (comparison.task, comparison.scoring) == ("regression", "spearman")
    assert comparison.predictions.shape == (60,)
    assert np.corrcoef(comparison.predictions, y)[0, 1] > 0.5
    assert isinstance(comparison.estimator[-1], Ridge)
    assert "rank correlation" in comparison.verdict


def test__the_estimator__predicts_new_sequences(compare):
    X, y = charged(80)
    comparison = compare(X, y, baselines={})
    again = pickle.loads(pickle.dumps(comparison)).estimator
    new, labels = charged(20, seed=1)
    probabilities = again.predict_proba(new)
    np.testing.assert_allclose(probabilities, comparison.estimator.predict_proba(new))
    assert again.classes_.tolist() == ["safe", "toxic"]
    assert roc_auc_score(labels, probabilities[:, 1]) > 0.6
    esm2 = comparison.estimator["features"]["esm2"][0]
    assert esm2.cache is None  # as it was given; the comparison had one of its own


def test__predictions__are_out_of_fold_and_of_what_the_inner_folds_chose(compare):
    X, y = charged(60)
    comparison = compare(X, y)
    assert comparison.predictions.shape == (60, 2)
    np.testing.assert_allclose(comparison.predictions.sum(axis=1), 1)
    areas = [
        roc_auc_score(np.array(y)[test] == "toxic", comparison.predictions[test, 1])
        for _, test in comparison.splits
    ]
    best = comparison.to_frame().set_index("features").score["best of these, chosen inside"]
    assert best == pytest.approx(np.mean(areas))


def test__differences_of_mutants__are_compared(esm2, compare):
    rng = random.Random(0)
    wildtypes = [sequence for sequence in unrelated(12) for _ in range(4)]
    mutants = [
        "".join(rng.choice(RESIDUES) if i == 5 else a for i, a in enumerate(s)) for s in wildtypes
    ]
    X = pd.DataFrame({"wildtype": wildtypes, "mutant": mutants})
    y = [rng.random() for _ in wildtypes]
    transformer = ESM2DifferenceTransformer(esm2().model, device="cpu", cache=None)
    comparison = compare(X, y, transformer=transformer, groups=X["wildtype"], learner=Ridge())
    assert len(np.unique(comparison.groups)) == 12
    assert comparison.estimator.predict(X).shape == (48,)
    found = compare(X, y, transformer=transformer, learner=Ridge(), groups="auto")
    assert len(np.unique(found.groups)) <= 12


def test__a_published_split__is_the_only_test_set(compare):
    X, y = charged(60)
    comparison = compare(X, y, cv=[(np.arange(40), np.arange(40, 60))])
    assert np.isnan(comparison.predictions[:40]).all()
    assert not np.isnan(comparison.predictions[40:]).any()
    with pytest.raises(InputError, match="Row 0 is in several test sets"):
        compare(X, y, cv=RepeatedKFold(n_splits=3, n_repeats=2))
    with pytest.raises(InputError, match="without splits"):
        compare(X, y, cv=[])


def test__other_learners_and_scores(compare):
    X, y = charged(60)
    forest = RandomForestClassifier(10, random_state=0)
    comparison = compare(X, y, learner=forest, scoring="balanced_accuracy", layers=[2])
    assert isinstance(comparison.estimator[-1], RandomForestClassifier)
    assert comparison.scoring == "balanced_accuracy"
    with pytest.raises(InputError, match="is no classifier"):
        compare(X, y, learner=Ridge())
    with pytest.raises(InputError, match="CalibratedClassifierCV"):
        compare(X, y, learner=LinearSVC())
    for scoring in ("no_score", "r2_typo"):
        with pytest.raises(InputError, match=scoring):
            compare(X, y, scoring=scoring)
    three = [["a", "b", "c"][i % 3] for i in range(60)]
    with pytest.raises(InputError, match="scoring='precision', which cannot score y: Target is"):
        compare(X, three, scoring="precision")


def test__three_classes(compare):
    X = [*charged(40)[0], *unrelated(20, seed=5, length=(30, 35))]
    y = [*charged(40)[1], *["long"] * 20]
    comparison = compare(X, y)
    assert comparison.scoring == "roc_auc_ovr"
    assert comparison.predictions.shape == (60, 3)


def test__frames_by_default__change_nothing(compare):
    X, y = charged(40)
    plain = compare(X, y)
    with sklearn.config_context(transform_output="pandas"):
        comparison = compare(X, y)
        comparison.estimator.predict(X)
    assert comparison.results == plain.results


def test__processes__change_nothing(compare):
    X, y = charged(40)
    parameters = {"layers": [2]}
    assert compare(X, y, n_jobs=2, **parameters).results == compare(X, y, **parameters).results


def test__plots(compare):
    X, y = charged(60)
    comparison = compare(X, y, layers="all", poolings=["mean", "max"])
    labels = [text.get_text() for text in comparison.plot_scores().get_yticklabels()]
    assert {"composition", "embedding, chosen inside"} <= set(labels)
    assert sum("(the best)" in label for label in labels) == 1
    ax = comparison.plot_layers()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        *("mean", "max", "baseline: composition")
    ]
    assert comparison.plot_layers(ax) is ax


# ------------------------------------------------------------------ what it may say


def test__no_signal__is_told_from_no_chance(compare):
    """The best of many embeddings looks better than chance; what is chosen inside does not."""
    X = unrelated(60)
    y = np.random.default_rng(3).permutation(60) % 2
    comparison = compare(X, y, layers="all", poolings=["mean", "max", "std"])
    assert "cannot be told from chance" in comparison.verdict
    assert "ahead of" not in comparison.verdict


class _Answer(TransformerMixin, BaseEstimator):
    """Features that hold the answer, or nothing, and learn nothing."""

    def __init__(self, letter):
        self.letter = letter

    def fit(self, X, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def transform(self, X):
        return np.array([[text.count(self.letter) + 0.001 * i % 0.003] for i, text in enumerate(X)])


def test__verdict__says_behind_and_ahead_where_the_interval_says_so(compare):
    X = [sequence.replace("K", "R") for sequence in unrelated(90)]
    y = [i % 2 for i in range(90)]
    X = [text[:5] + "K" + text[6:] if label else text for text, label in zip(X, y, strict=True)]
    behind = compare(X, y, layers=[0], poolings="max", baselines={"answer": _Answer("K")})
    assert "this is behind the 1.000" in behind.verdict
    ahead = compare(X, y, layers=[0], poolings="mean", baselines={"nothing": _Answer("Z")})
    assert "this is ahead of the" in ahead.verdict
    assert "not clearly different from the better of the two" in ahead.verdict


def made(scores: dict[str, tuple[str, int | None, float]]) -> FeatureComparison:
    """A comparison of these kinds, layers and scores, whose draws are all alike."""
    rows = [
        Row(name, kind, layer, "mean" if layer is not None else None, score, score, score)
        for name, (kind, layer, score) in scores.items()
    ]
    draws = {row.features: np.full(20, row.score) for row in rows}
    results = dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True))
    return FeatureComparison(
        *("classification", "roc_auc", "tiny", results, draws, None, None, [], None, None, None)
    )


def test__verdict__says_if_another_baseline_is_as_good():
    procedures = {
        "embedding, chosen inside": ("procedure", None, 0.9),
        "baseline, chosen inside": ("procedure", None, 0.7),
        "embedding + baseline": ("procedure", None, 0.9),
        "layer 0, mean": ("embedding", 0, 0.9),
        "composition": ("baseline", None, 0.7),
    }
    alone = made(procedures)
    assert "ahead of the 0.700 of baseline features" in alone.verdict
    assert "but not clearly" not in alone.verdict
    as_good = made({**procedures, "k-mers": ("baseline", None, 0.9)})
    assert "but not clearly of the best baseline, k-mers (0.900);" in as_good.verdict
    both = made(
        {
            **procedures,
            "embedding + baseline": ("procedure", None, 0.95),
            "k-mers": ("baseline", None, 0.97),
        }
    )
    assert both.verdict.count("but not clearly of the best baseline, k-mers (0.970)") == 2


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.9], "no other layer was compared"),
        ([0.9, 0.8], "adds nothing here"),
        ([0.8, 0.9], "all earlier layers are behind"),
        ([0.8, 0.9, 0.9], "all earlier layers are behind"),
        ([0.8, 0.9, 0.85], "all earlier layers are behind"),
    ],
)
def test__advice__on_layers(scores, said):
    layers = {f"layer {i}, mean": ("embedding", i, score) for i, score in enumerate(scores)}
    assert said in made(layers).layer_advice


def test__the_shallowest_layer__is_not_clearly_behind_the_best():
    comparison = made(
        {f"layer {i}, mean": ("embedding", i, score) for i, score in enumerate((0.7, 0.88, 0.9))}
    )
    assert comparison.shallowest_layer == 2
    comparison.draws["layer 1, mean"][:10] += 0.1  # ahead of layer 2 in half of the draws
    assert comparison.shallowest_layer == 1
    assert "layer 1 is not clearly behind it, and takes 50% less" in comparison.layer_advice


# ------------------------------------------------------------------ families


def test__families__are_on_one_side_of_all_folds(compare):
    X = families_of(0, 40, (15, 20))
    y = [text.count("K") > 0 for text in X]
    comparison = compare(X, y, groups="auto")
    folds = nested_folds(3, read_targets(y, len(X), "auto"), comparison.groups, 0)
    for splits in ([*folds.outer], *folds.inner):
        for train, test in splits:
            assert not set(comparison.groups[train]) & set(comparison.groups[test])
    for (train, _), inner in zip(folds.outer, folds.inner, strict=False):
        for a, b in inner:
            assert {*a, *b} == set(train)


def test__relatives_without_groups__are_warned_of(compare):
    X = families_of(0, 30, (15, 20))
    y = [text.count("K") > 0 for text in X]
    with pytest.warns(LeakageWarning, match="Test rows have relatives in the training set"):
        compare(X, y, layers=[2])
    groups = np.arange(len(X)) // 2
    n = len(X) // 2
    split = np.arange(n + n % 2 + 1), np.arange(n + n % 2 + 1, len(X))
    with pytest.warns(LeakageWarning, match="a relative of row"):
        compare(X, y, groups=groups, cv=[split])


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"groups": [0] * 30}, "There are 1 families.*at least 3"),
        ({"groups": [0, 1] * 15}, "There are 2 families.*groups=None"),
        ({"groups": [0, 1, 2] * 10, "cv": 4}, "4 folds cannot be made of 3 families"),
        ({"groups": [0, 1, 2] + [2] * 27, "cv": [(range(2, 30), range(2))]}, "or one family"),
        ({"groups": [0, 1]}, "Got 2 groups for 30 rows"),
        ({"cv": 1}, "1 folds cannot be made of 30 rows"),
        ({"cv": 31}, "31 folds cannot be made"),
        ({"cv": 2.5}, "cv=2.5"),
        ({"cv": "five"}, "cv='five'"),
        ({"groups": [None, *range(29)]}, "The group of row 0 is missing"),
        ({"n_bootstrap": 0}, "n_bootstrap=0"),
        ({"random_state": -1}, "random_state=-1"),
        ({"layers": 9}, "9"),
        ({"poolings": "median"}, "median"),
    ],
)
def test__wrong_parameters__are_refused(compare, parameters, said):
    X, _ = charged(30)
    with pytest.raises(InputError, match=said):
        compare(X, [0.5 * i for i in range(30)], **{"learner": Ridge(), **parameters})


def test__wrong_sequences__are_named_by_row(compare):
    X, y = charged(30)
    wrong = pd.Series([*X[:7], "MK1", *X[8:]], index=[f"p{i}" for i in range(30)])
    for groups in (None, "auto"):
        with pytest.raises(InvalidSequenceError, match=r"row 7 \(index 'p7'\)"):
            compare(wrong, y, groups=groups)
    with pytest.raises(InputError, match=r"missing in row 3 \(index 'p3'\)"):
        compare(wrong, [*y[:3], None, *y[4:]])


def test__columns_of_labels__are_refused(compare):
    X, y = charged(30)
    with pytest.raises(InputError, match="labels"):
        compare(["train" if label == "toxic" else "test" for label in y], y)
    with pytest.raises(InputError, match="'set'"):
        compare(pd.DataFrame({"sequence": X, "set": ["train"] * 30}), y)


def test__several_columns__need_groups(esm2, compare):
    X = pd.DataFrame({"heavy": unrelated(30), "light": unrelated(30, seed=1)})
    y = [i % 2 for i in range(30)]
    with pytest.raises(InputError, match=r"X has 2 columns.*Pass groups"):
        compare(X, y, groups="auto")
    assert compare(X, y, groups=None, layers=[2]).groups is None


def test__other_transformers__are_refused(compare):
    X, y = charged(30)
    with pytest.raises(TypeError, match="ESM2Transformer"):
        compare(X, y, transformer=DescriptorTransformer())
