"""A key changes with everything that changes a number, and with nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from hashlib import blake2b

import numpy as np
import pytest

from esm2_features._cache.keys import Spec, computation_keys

SPEC = Spec(checkpoint="sha256:00", layer=6, pooling="mean", precision="float32")
OTHER = {
    "checkpoint": "sha256:01",
    "layer": 5,
    "pooling": "max",
    "precision": "bfloat16",
    "dtype": "float16",
}


def test__keys__are_256_bits_and_one_per_sequence():
    keys = SPEC.keys(["MK", "MKT", "MK"])
    assert (keys.shape, keys.dtype) == ((3, 32), np.uint8)
    assert keys[0].tobytes() == keys[2].tobytes() != keys[1].tobytes()


def test__keys__of_no_sequences():
    assert SPEC.keys([]).shape == computation_keys("sha256:00", "float32", []).shape == (0, 32)


def test__keys__are_taken_from_any_iterable():
    np.testing.assert_array_equal(SPEC.keys(iter(["MK", "A"])), SPEC.keys(["MK", "A"]))


@pytest.mark.parametrize("field", [field.name for field in fields(Spec) if field.compare])
def test__keys__change_with_every_field_that_is_compared(field):
    other = replace(SPEC, **{field: OTHER[field]})
    assert other != SPEC
    assert other.digest != SPEC.digest
    assert (other.keys(["MK"]) != SPEC.keys(["MK"])).any()


def test__keys__do_not_change_with_what_people_call_the_model():
    named = replace(SPEC, model="mini")
    assert named == SPEC
    assert hash(named) == hash(SPEC)
    assert named.digest == SPEC.digest
    np.testing.assert_array_equal(named.keys(["MK"]), SPEC.keys(["MK"]))
    assert [field.name for field in fields(Spec) if not field.compare] == ["model"]


def test__keys__are_digests_of_namespace_and_sequence():
    expected = blake2b(SPEC.digest + b"MKT", digest_size=32).digest()
    assert len(SPEC.digest) == 32
    assert SPEC.keys(["MKT"]).tobytes() == expected


def test__keys__are_the_same_in_every_version():
    """A change here orphans every cache in the world: raise the schema on purpose instead."""
    assert SPEC.keys(["MKTAYIAKQR"]).tobytes().hex() == (
        "9944fca0779d32d5a0ff0c1c3c1233fd6445bf2dfa33577ba40577ca44833be0"
    )


def test__computation_keys__change_with_weights_precision_and_sequence_alone():
    keys = computation_keys("sha256:00", "float32", ["MK", "MKT", "MK"])
    assert (keys.shape, keys.dtype) == ((3, 32), np.uint8)
    different = {
        bytes(key)
        for checkpoint in ("sha256:00", "sha256:01")
        for precision in ("float32", "bfloat16")
        for key in computation_keys(checkpoint, precision, ["MK", "MKT", "MK"])
    }
    assert len(different) == 2 * 2 * 2


def test__computation_keys__are_no_keys_of_vectors():
    assert (computation_keys("sha256:00", "float32", ["MK"]) != SPEC.keys(["MK"])).any()
