"""Options: what is accepted, and what is said of everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.options import absolute_layers, device_names, names, one_of, positive
from esm2_features.exceptions import InputError


@given(st.integers(0, 48), st.data())
def test__absolute_layers__negatives_count_from_the_end(depth, data):
    layer = data.draw(st.integers(-depth - 1, depth))
    assert absolute_layers(layer, depth=depth, model="m") == (list(range(depth + 1))[layer],)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (0, 1, 2, 3)), ([3, 0], (3, 0)), ((-1, -2), (3, 2)), (np.int64(2), (2,))],
)
def test__absolute_layers__accepts(layers, expected):
    assert absolute_layers(layers, depth=3, model="m") == expected


@pytest.mark.parametrize("layers", [4, -5, [0, 9], [], [3, -1]])
def test__absolute_layers__refuses_what_is_not_there(layers):
    with pytest.raises(InputError, match=r"Got layers="):
        absolute_layers(layers, depth=3, model="m")


@pytest.mark.parametrize("layers", ["last", 1.0, None, True, ["0"], "0"])
def test__absolute_layers__refuses_what_is_no_number(layers):
    with pytest.raises(TypeError, match='pass an int, a list of int, or "all"'):
        absolute_layers(layers, depth=3, model="m")


def test__absolute_layers__whole_message():
    with pytest.raises(InputError) as caught:
        absolute_layers(7, depth=6, model="esm2_t6_8M_UR50D")
    assert str(caught.value) == (
        "Got layers=7, but esm2_t6_8M_UR50D has the representations 0 (the embedding) to 6; "
        "negative numbers count from the end, down to -7."
    )


def test__names__one_word_or_several():
    assert names("pooling", "mean", ("mean", "max")) == ("mean",)
    assert names("pooling", ["max", "mean"], ("mean", "max")) == ("max", "mean")
    for wrong in ("median", ["mean", "mean"], [], [1], None):
        with pytest.raises(InputError, match="Got pooling="):
            names("pooling", wrong, ("mean", "max"))


def test__one_of__lists_the_choices():
    with pytest.raises(InputError, match='Got unknown=\'drop\'; expected one of "raise", "X"'):
        one_of("unknown", "drop", ("raise", "X"))


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
def test__positive__refuses(value):
    with pytest.raises(InputError, match="expected a positive whole number"):
        positive("batch_tokens", value)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:3", "mps", "all"])
def test__device_names__accepts_one(name):
    assert device_names(name) == (name,)


@pytest.mark.parametrize("given", ["cuda:0,cuda:1", "cuda:0, cuda:1", ["cuda:0", "cuda:1"]])
def test__device_names__accepts_several(given):
    assert device_names(given) == ("cuda:0", "cuda:1")
    assert device_names(["cpu", "cpu"]) == ("cpu", "cpu")


@pytest.mark.parametrize(
    "given", ["gpu", "cuda:", "cuda:x", "", None, 0, [], ["all", "cpu"], ["auto", "cpu"], "cpu,"]
)
def test__device_names__refuses(given):
    with pytest.raises(InputError, match="Got device="):
        device_names(given)


def test__device_names__refuses_a_card_that_is_named_twice():
    with pytest.raises(InputError, match="'cuda:1' stands twice"):
        device_names("cuda:1,cpu,cuda:1")
