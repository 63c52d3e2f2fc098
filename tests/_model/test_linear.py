"""A packed product is the plain one, and a row of it depends on nothing but itself."""

from __future__ import annotations

import math

import pytest
import torch

from esm2_features._model import linear
from esm2_features._model.linear import FeedForward, Linear, _can_pack

SHAPES = [(8, 5), (640, 320), (1280, 641), (320, 1280), (64, 2000)]

needs_packing = pytest.mark.skipif(
    not _can_pack(torch.zeros(1, 1)), reason="this processor or PyTorch does not pack products"
)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test__linear__equals_its_definition(shape, gelu):
    weight, bias, x = random(*shape) / shape[1] ** 0.5, random(shape[0]), random(77, shape[1])
    expected = x.double() @ weight.double().T + bias.double()
    if gelu:
        expected = torch.nn.functional.gelu(expected)
    result = Linear(weight, bias)(x, gelu=gelu)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test__linear__a_row_does_not_depend_on_the_others(shape, dtype):
    weight, bias = random(*shape).to(dtype), random(shape[0]).to(dtype)
    layer, x = Linear(weight, bias), random(300, shape[1]).to(dtype)
    whole = layer(x, gelu=True)
    for rows in (1, 2, 7, 33, 299):
        assert torch.equal(layer(x[:rows], gelu=True), whole[:rows])
        assert torch.equal(layer(x[-rows:], gelu=True), whole[-rows:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test__linear__adds_to_the_residual_stream_and_leaves_it_as_it_is(shape, dtype):
    layer = Linear(random(*shape).to(dtype), random(shape[0]).to(dtype))
    x, stream = random(77, shape[1]).to(dtype), random(77, shape[0])
    before = stream.clone()
    for rows in (1, 77):
        added = layer(x[:rows], onto=stream[:rows])
        assert added.dtype == torch.float32
        torch.testing.assert_close(added, stream[:rows] + layer(x[:rows]), rtol=0, atol=0)
    assert torch.equal(stream, before)


@needs_packing
def test__linear__long_sums_are_as_exact_as_the_plain_product():
    weight, bias, x = random(256, 5120) / 5120**0.5, torch.zeros(256), random(512, 5120)
    exact = x.double() @ weight.double().T
    ours = (Linear(weight, bias)(x) - exact).abs().max()
    # oneDNN in PyTorch 2.5 to 2.9 is less exact: 2.8 times the error of the plain product.
    times = 2 if torch.__version__ >= (2, 13) else 3
    assert ours < times * (x @ weight.T - exact).abs().max()


@pytest.mark.parametrize("rows", [1, 64])
def test__linear__its_gelu_is_as_exact_as_fair_esms(rows):
    x = torch.linspace(-6, 6, 64 * rows).view(rows, 64)
    ours = Linear(torch.eye(64), torch.zeros(64))(x, gelu=True)
    exact = torch.nn.functional.gelu(x.double())
    theirs = x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
    assert (ours - exact).square().mean() <= 1.1 * (theirs - exact).square().mean()
    assert (ours - exact).abs().max() < 4e-7


@needs_packing
def test__linear__strips_of_rows_give_the_same_bits(monkeypatch):
    weight, bias, x = random(640, 640) / 25, random(640), random(500, 640)
    stream = random(500, 640)
    layer = Linear(weight, bias)
    whole = layer(x, gelu=True), layer(x, onto=stream)
    monkeypatch.setattr("esm2_features._model.linear._NUMBERS_OF_A_THREAD", 1)
    assert torch.equal(layer(x, gelu=True), whole[0])
    assert torch.equal(layer(x, onto=stream), whole[1])


# ------------------------------------------------------------------ feed-forward


def layers(dim, dtype=torch.float32):
    tensors = (
        random(4 * dim, dim) / dim**0.5,
        random(4 * dim),
        random(dim, 4 * dim) / dim,
        random(dim),
    )
    return [tensor.to(dtype) for tensor in tensors]


@pytest.fixture(params=["packed", "plain"])
def packing(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(linear, "_can_pack", lambda weight: False)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [16, 64, 100, 320, 480])
@pytest.mark.parametrize("rows", [1, 2, 65, 300])
def test__feed_forward__has_the_bits_of_its_layers(dim, rows, dtype, monkeypatch):
    monkeypatch.setattr(linear, "_ROWS_OF_A_THREAD", 64)
    w1, b1, w2, b2 = layers(dim, dtype)
    x, stream = random(rows, dim).to(dtype), random(rows, dim)
    before = x.clone(), stream.clone()
    found = FeedForward(w1, b1, w2, b2)(x, stream)
    expected = Linear(w2, b2)(Linear(w1, b1)(x, gelu=True), onto=stream)
    assert torch.equal(found, expected)
    assert torch.equal(x, before[0])
    assert torch.equal(stream, before[1])


@pytest.mark.parametrize("dim", [64, 320])
def test__feed_forward__is_its_definition(dim):
    w1, b1, w2, b2 = layers(dim)
    x, stream = random(77, dim), random(77, dim)
    functional = torch.nn.functional
    hidden = functional.gelu(functional.linear(x.double(), w1.double(), b1.double()))
    expected = functional.linear(hidden, w2.double(), b2.double()) + stream
    found = FeedForward(w1, b1, w2, b2)(x, stream)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@needs_packing
def test__feed_forward__a_row_does_not_depend_on_the_others():
    layer, x, stream = FeedForward(*layers(320)), random(1200, 320), random(1200, 320)
    whole = layer(x, stream)
    for rows in (1, 2, 33, 1025):
        assert torch.equal(layer(x[:rows], stream[:rows]), whole[:rows])
        assert torch.equal(layer(x[-rows:], stream[-rows:]), whole[-rows:])
