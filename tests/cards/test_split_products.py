"""float32 as sums of products in bfloat16: right numbers, or the card's own products."""

import numpy as np
import pytest
import torch
from cards.conftest import FIRST, LAYERS
from cards.stand_in import Machine
from cards.test_cards import EXTRACTORS, GEOMETRIES, TOLERANCE, VIEWS, assert_close

from esm2_features._model import split_products
from esm2_features._model.devices import computing


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_SPLIT_FLOAT32", "1")


def run(network_on, capability=(9, 0), precision="float32", views=VIEWS):
    machine = Machine(capability=capability)
    with machine.switched_on(), computing(FIRST):
        network = network_on(FIRST, precision)
        EXTRACTORS["vectors"](network, VIEWS)()
        machine.reset()
        found = EXTRACTORS["vectors"](network, views)()
    assert machine.races == []
    assert machine.waits == {}
    return found, machine.launches["mm"]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test__split_products__give_the_cpus_numbers(asked, network_on, on_cpu, geometry):
    views = GEOMETRIES[geometry]
    found, products = run(network_on, views=views)
    assert products >= 4 * LAYERS
    assert_close(found, on_cpu(EXTRACTORS["vectors"], views, None), TOLERANCE["float32"])


def test__split_products__are_divided_where_rows_are_many(asked, network_on, monkeypatch):
    whole, few = run(network_on)
    monkeypatch.setattr(split_products, "_COPIED_BYTES", 1 << 14)
    parts, many = run(network_on)
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6)
    assert many > few


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "float32"), ((9, 0), "float16"), ((9, 0), "bfloat16")]
)
def test__split_products__are_for_float32_on_cards_that_multiply_bfloat16(
    asked, network_on, capability, precision
):
    assert run(network_on, capability, precision)[1] == 0


def test__split_products__have_to_be_asked_for(network_on):
    assert run(network_on)[1] == 0


@pytest.mark.parametrize("order", [(0, 2, 1, 0, 1, 1), (0, 0, 1, 0, 1, 0)])
def test__split_products__that_are_wrong_are_not_used(
    asked, network_on, on_cpu, monkeypatch, caplog, order
):
    monkeypatch.setattr(split_products, "_OF_WEIGHT", order)
    found, products = run(network_on)
    assert products == 0
    assert "times the error" in caplog.text
    assert_close(found, on_cpu(EXTRACTORS["vectors"], VIEWS, None), TOLERANCE["float32"])


@pytest.mark.parametrize("terms", [320, 1280, 5120])
def test__split_products__are_as_exact_as_float32(terms):
    noise = torch.Generator().manual_seed(terms)
    x = torch.randn(40, terms, generator=noise) * torch.randn(40, terms, generator=noise).exp()
    weight = torch.randn(64, terms, generator=noise)
    exact = x.double() @ weight.double().T
    # Products of two numbers of 8 bits have 16, so that float32 holds them.
    parts = [
        split_products._side_by_side(one, order).float()
        for one, order in ((x, split_products._OF_X), (weight, split_products._OF_WEIGHT))
    ]
    errors = [
        (found.double() - exact).square().mean().sqrt()
        for found in (parts[0] @ parts[1].T, x @ weight.T)
    ]
    assert errors[0] <= 1.25 * errors[1]
