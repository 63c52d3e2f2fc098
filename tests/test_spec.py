"""A key changes with everything that changes a number, and with nothing else."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from esm2_features._spec import Spec

SPEC = Spec(checkpoint="sha256:00", layer=6, pooling="mean", precision="float32")
OTHER = {"checkpoint": "sha256:01", "layer": 5, "pooling": "max", "precision": "bfloat16"}


def test__keys__are_256_bits_and_one_per_sequence():
    keys = SPEC.keys(["MK", "MKT", "MK"])
    assert [len(key) for key in keys] == [32, 32, 32]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("field", [field.name for field in fields(Spec)])
def test__keys__change_with_every_field(field):
    assert replace(SPEC, **{field: OTHER[field]}).keys(["MK"]) != SPEC.keys(["MK"])


def test__keys__are_the_same_in_every_version():
    """A change here orphans every cache in the world: raise the schema on purpose instead."""
    assert SPEC.keys(["MKTAYIAKQR"])[0].hex() == (
        "0cf4a41d556b93c4cabe2d046e31e888038134badfefd0dc69d1bf11e4bf6280"
    )
