"""Options: what is accepted, and what is said of everything else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features import Engine, ESM2LikelihoodTransformer, ESM2Transformer
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


MEANT = [
    *(("pooling", word, "mean") for word in ("average", "avg", "Mean", "mean_pooling", "meen")),
    *(("pooling", word, "cls") for word in ("bos", "CLS", "<cls>", "first")),
    *(("pooling", word, "eos") for word in ("last", "EOS", "end")),
    *(("pooling", word, "max") for word in ("maximum", "maxpool")),
    *(("pooling", word, "std") for word in ("sd", "variance")),
    *(("precision", word, "float16") for word in ("fp16", "half", "FLOAT16", "torch.float16")),
    *(("precision", word, "bfloat16") for word in ("bf16", "BFloat16")),
    *(("precision", word, "float32") for word in ("fp32", "float64", "single")),
    *(("cache_dtype", word, "float16") for word in ("fp16", "half")),
    *(
        ("unknown", word, meant)
        for word, meant in (("x", "X"), ("<mask>", "mask"), ("error", "raise"))
    ),
    *(("too_long", word, "window") for word in ("windows", "sliding")),
    *(("too_long", word, "truncate") for word in ("truncation", "crop")),
    *(("store", word, "all") for word in ("everything", "ALL")),
    *(
        ("device", word, meant)
        for word, meant in (("gpu", "cuda"), ("cuda0", "cuda:0"), ("1", "cuda:1"))
    ),
]


@pytest.mark.parametrize(("option", "given", "meant"), MEANT)
def test__error__asks_whether_another_word_was_meant(option, given, meant):
    with pytest.raises(InputError, match=f"Got {option}=") as caught:
        Engine("mini", **{"cache": None, option: given})
    assert str(caught.value).endswith(f' Did you mean "{meant}"?')
    # What is asked for is accepted.
    if option not in ("cache_dtype", "store", "device"):
        Engine("mini", **{"cache": None, option: meant})


@pytest.mark.parametrize(
    ("option", "given"), [("pooling", "sum"), ("precision", "int8"), ("unknown", 7)]
)
def test__error__asks_nothing_where_no_word_is_like_it(option, given):
    with pytest.raises(InputError) as caught:
        Engine("mini", cache=None, **{option: given})
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("given", [[2, 8], slice(2, 8), "(2, 8)"])
def test__region__that_is_written_otherwise(given):
    with pytest.raises(InputError, match=r"Did you mean \(2, 8\)\?"):
        Engine("mini", cache=None, region=given)


def test__layers__in_words():
    with pytest.raises(TypeError, match="Did you mean -1, the last layer"):
        Engine("mini", cache=None, layers="last")
    with pytest.raises(TypeError, match='Did you mean "all"'):
        Engine("mini", cache=None, layers="ALL")


def test__words__of_the_transformers():
    for parameters, meant in (
        ({"join": "concat"}, "concatenate"),
        ({"on_missing": "drop"}, "nan"),
        ({"on_missing": "zeros"}, "zero"),
    ):
        with pytest.raises(InputError, match=f'Did you mean "{meant}"'):
            ESM2Transformer("mini", cache=None, **parameters).fit(["MKT"])
    with pytest.raises(InputError, match='Did you mean "masked-marginals"'):
        ESM2LikelihoodTransformer("mini", cache=None, method="masked").fit(["MKT"])
    with pytest.raises(InputError, match='Did you mean "Site"'):
        ESM2Transformer("mini", cache=None, region="site").fit(
            pd.DataFrame({"s": ["MKT"], "Site": [1]})
        )
