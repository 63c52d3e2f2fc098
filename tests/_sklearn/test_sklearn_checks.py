"""scikit-learn's own checks of the estimator contract: all of them run, none may be skipped.

scikit-learn feeds its checks with numbers. Of an estimator that takes strings it checks no more
than that it can be cloned. So the checks are run twice: on `ESM2Transformer` as it is, and on
`NumericESM2`, which differs in one way only: each number that it is given becomes a protein.
"""

from __future__ import annotations

import functools
import zlib
from unittest import SkipTest

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.utils import check_array
from sklearn.utils import estimator_checks as checks

from esm2_features import (
    AlignedTransformer,
    DescriptorTransformer,
    ESM2LikelihoodTransformer,
    ESM2Transformer,
)
from esm2_features._inputs.containers import Column

_HEX_TO_RESIDUES = str.maketrans("0123456789abcdef", "ACDEFGHIKLMNPQRS")


def cell(number: np.float64) -> object:
    """Eight residues that stand for a number; NaN and infinity are left to be refused."""
    if np.isnan(number):
        return number
    if np.isinf(number):
        return f"{number:+}"
    return f"{zlib.crc32(number.tobytes()):08x}".translate(_HEX_TO_RESIDUES)


class TakesNumbers:
    """Takes numbers: every column is a chain, every number in it a protein.

    Only the reading of X is replaced, by scikit-learn's own validation of arrays. Columns that
    are not those of `fit`, missing values and the like meet the code of the transformer.
    """

    def _columns(self, X):
        names = getattr(X, "columns", None)
        numbers = check_array(X, dtype=np.float64, ensure_all_finite=False, estimator=self)
        numbers = numbers + 0.0  # of the two zeros, one
        if names is None:
            names = [None] * numbers.shape[1]
        return [
            Column(name, list(map(cell, column)))
            for name, column in zip(names, numbers.T, strict=True)
        ]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        tags.input_tags.string = False
        return tags


class NumericESM2(TakesNumbers, ESM2Transformer):
    pass


VARIANTS = [
    NumericESM2(cache=None),
    NumericESM2(cache=None, layers="all", pooling=["mean", "std", "cls"]),
    NumericESM2(cache=None, precision="bfloat16"),
    NumericESM2(cache="auto", layers=[0, -1], on_missing="nan"),  # the tests' own folder
]

# Those that scikit-learn keeps for itself and does not yield to others. Left out are the checks
# of its own table of parameters, and that names are refused before `fit`, which is not needed.
FURTHER_CHECKS = [
    checks.check_dataframe_column_names_consistency,
    checks.check_global_output_transform_pandas,
    checks.check_global_set_output_transform_polars,
    checks.check_set_output_transform,
    checks.check_set_output_transform_pandas,
    checks.check_set_output_transform_polars,
    checks.check_transformer_get_feature_names_out,
    checks.check_transformer_get_feature_names_out_pandas,
]

with pytest.warns(SkipTestWarning, match="Can't test estimator ESM2Transformer"):
    EMBEDDING_CHECKS = list(checks.estimator_checks_generator(ESM2Transformer(cache=None)))


def run(check, estimator) -> None:
    try:
        check(estimator)
    except SkipTest as skipped:
        pytest.fail(f"scikit-learn skipped a check: {skipped}")


def name_of(check) -> str:
    while isinstance(check, functools.partial):
        check = check.func
    return check.__name__


@pytest.fixture(autouse=True)
def _array_api(monkeypatch):
    # Without it, scikit-learn skips its check with the array API switched on.
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")


@pytest.mark.parametrize(("estimator", "check"), EMBEDDING_CHECKS)
def test__esm2_transformer__passes_what_scikit_learn_checks_of_it(
    estimator, check, tiny_checkpoint
):
    run(check, clone(estimator).set_params(model=tiny_checkpoint))


@checks.parametrize_with_checks(VARIANTS)
def test__numeric_esm2__passes_every_check(estimator, check, tiny_checkpoint):
    run(check, clone(estimator).set_params(model=tiny_checkpoint))


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")  # as it shall warn
@pytest.mark.parametrize("check", FURTHER_CHECKS, ids=lambda check: check.__name__)
def test__numeric_esm2__passes_further_checks(check, tiny_checkpoint):
    estimator = NumericESM2(tiny_checkpoint, cache=None)
    run(lambda estimator: check("NumericESM2", estimator), estimator)


@pytest.mark.parametrize("estimator", VARIANTS, ids=str)
def test__numeric_esm2__is_given_the_checks_that_matter(estimator):
    """Nobody notices when a tag or a release of scikit-learn stops most checks: count them."""
    yielded = [name_of(check) for _, check in checks.estimator_checks_generator(estimator)]
    assert len(yielded) >= 40
    assert set(yielded) >= {
        "check_estimators_pickle",
        "check_fit_idempotent",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_transformer_general",
        "check_transformers_unfitted_stateless",
    }


class NumericLikelihood(TakesNumbers, ESM2LikelihoodTransformer):
    pass


class NumericVariants(NumericLikelihood):
    """Has a wild type as long as the eight residues of a number, for as many chains as come."""

    def _wildtypes(self, engine, n_chains, names=()):
        self_of_chains = clone(self).set_params(wildtype=["ACDEFGHI"] * n_chains)
        return ESM2LikelihoodTransformer._wildtypes(self_of_chains, engine, n_chains, names)


LIKELIHOODS = [
    NumericLikelihood(cache="auto"),
    NumericLikelihood(cache=None, method="wildtype-marginals", on_missing="zero"),
    NumericVariants(cache=None, wildtype="ACDEFGHI"),
    NumericVariants(cache="auto", wildtype="ACDEFGHI", method="pseudo-perplexity"),
]

with pytest.warns(SkipTestWarning, match="Can't test estimator ESM2LikelihoodTransformer"):
    LIKELIHOOD_CHECKS = list(
        checks.estimator_checks_generator(ESM2LikelihoodTransformer(cache=None))
    )


@pytest.mark.parametrize(("estimator", "check"), LIKELIHOOD_CHECKS)
def test__esm2_likelihood__passes_what_scikit_learn_checks_of_it(estimator, check, tiny_checkpoint):
    run(check, clone(estimator).set_params(model=tiny_checkpoint))


@checks.parametrize_with_checks(LIKELIHOODS)
def test__numeric_likelihood__passes_every_check(estimator, check, tiny_checkpoint):
    run(check, clone(estimator).set_params(model=tiny_checkpoint))


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")  # as it shall warn
@pytest.mark.parametrize("check", FURTHER_CHECKS, ids=lambda check: check.__name__)
def test__numeric_likelihood__passes_further_checks(check, tiny_checkpoint):
    estimator = NumericVariants(tiny_checkpoint, cache=None, wildtype="ACDEFGHI")
    run(lambda estimator: check("NumericVariants", estimator), estimator)


@pytest.mark.parametrize("estimator", LIKELIHOODS, ids=str)
def test__numeric_likelihood__is_given_the_checks_that_matter(estimator):
    test__numeric_esm2__is_given_the_checks_that_matter(estimator)


class NumericDescriptors(TakesNumbers, DescriptorTransformer):
    pass


class NumericAligned(TakesNumbers, AlignedTransformer):
    pass


BASELINES = [
    NumericDescriptors(),
    NumericDescriptors(["properties", "kmers", "length"], k=(1, 2), on_missing="nan"),
    NumericDescriptors("kmers", k=2, kmer_values="count", sparse_output=True),
    NumericAligned(),
    NumericAligned("blosum62", on_missing="zero"),
]

with pytest.warns(SkipTestWarning, match="Can't test estimator (Descriptor|Aligned)Transformer"):
    BASELINE_CHECKS = [
        pair
        for estimator in (DescriptorTransformer(), AlignedTransformer())
        for pair in checks.estimator_checks_generator(estimator)
    ]


@pytest.mark.parametrize(("estimator", "check"), BASELINE_CHECKS)
def test__baselines__pass_what_scikit_learn_checks_of_them(estimator, check):
    run(check, clone(estimator))


@checks.parametrize_with_checks(BASELINES)
def test__numeric_baselines__pass_every_check(estimator, check):
    run(check, estimator)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")  # as it shall warn
@pytest.mark.parametrize("check", FURTHER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("cls", [NumericDescriptors, NumericAligned])
def test__numeric_baselines__pass_further_checks(check, cls):
    run(lambda estimator: check(cls.__name__, estimator), cls())


@pytest.mark.parametrize("estimator", BASELINES, ids=str)
def test__numeric_baselines__are_given_the_checks_that_matter(estimator):
    """Those that learn the length of sequences are not checked without `fit`."""
    yielded = {name_of(check) for _, check in checks.estimator_checks_generator(estimator)}
    assert len(yielded) >= 35
    assert yielded >= {
        "check_estimators_pickle",
        "check_fit_idempotent",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_transformer_general",
    }
