"""Errors come back from worker processes as they were raised."""

from __future__ import annotations

import inspect
import pickle

import joblib
import pytest

from esm2_features import ESM2Transformer, exceptions
from esm2_features.exceptions import Esm2FeaturesError, InvalidSequenceError

ERRORS = [
    kind
    for _, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, Esm2FeaturesError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test__errors__survive_pickling_with_message_and_attributes(kind):
    named = inspect.signature(kind.__init__).parameters.values()
    error = kind("what, where, remedy", **{p.name: 7 for p in named if p.kind == p.KEYWORD_ONLY})
    error.add_note("seen in a worker")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "what, where, remedy"
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", ERRORS)
def test__errors__are_documented_in_the_tree_and_have_a_built_in_type(kind):
    assert kind.__name__ in exceptions.__doc__
    others = {base for base in kind.__mro__ if base.__module__ == "builtins"}
    assert kind is Esm2FeaturesError or others - {Exception, BaseException, object}


def test__errors__of_a_worker_name_the_row():
    fit = joblib.delayed(ESM2Transformer("mini").fit)
    with pytest.raises(InvalidSequenceError) as caught:
        joblib.Parallel(n_jobs=2)(fit(["MKT", wrong]) for wrong in ("MK1", "MK2"))
    assert (caught.value.index, caught.value.position) == (1, 3)
