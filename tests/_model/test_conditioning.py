"""A conditioned block computes the same function, and rounds less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import bare_state, random_esm2
from exactness import assert_as_exact_as_fair_esm, opened, references_of, rows_of

from esm2_features import Engine
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.conditioning import PAIR_ORDER, PROBE, condition
from esm2_features._model.esm2 import ESM2Network

CPU = torch.device("cpu")
NATURAL = [
    PROBE,
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV" * 4,
    "GIGAVLKVLTTGLPALISWIKRKRQQ",
    "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQ",
]


def with_common_channels(seed: int, size: float):
    """A network whose channels 3 and 40 are large in all tokens, as in trained ones."""
    network = random_esm2(4, 64, 4, seed=seed)
    with torch.no_grad():
        network.layers[0].fc2.bias[[3, 40]] += size
    return network


def built(network, monkeypatch=None) -> ESM2Network:
    if monkeypatch is not None:
        monkeypatch.setattr("esm2_features._model.esm2.condition", lambda *_: None)
    shape = Architecture(network.num_layers, network.embed_dim, network.attention_heads)
    return ESM2Network("random", shape, bare_state(network), CPU, "float32")


def test__condition__leaves_the_function_as_it_is():
    network = with_common_channels(1, 30.0)
    state = {name: tensor.float() for name, tensor in bare_state(network).items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    x_TD = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)) * 5 + 3
    turns_T1P = torch.ones(20, 1, 8, dtype=torch.complex64)
    condition(state, "layers.1", 4, x_TD, turns_T1P)
    order = state.pop(f"layers.1.{PAIR_ORDER}")
    assert sorted(order.tolist()) == list(range(8))
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    attention = "layers.1.self_attn"
    parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert changed == {f"{attention}_layer_norm.bias", *(f"{attention}.{x}.bias" for x in parts)}

    shape = Architecture(4, 64, 4)
    exact = references_of(opened(network))[0].layers(NATURAL[1])
    opened_anew = type("Opened", (), {"architecture": shape, "load": lambda: dict(state)})
    rearranged = references_of(opened_anew)[0].layers(NATURAL[1])
    for name, expected in exact.items():  # the new biases are float32
        np.testing.assert_allclose(rearranged[name], expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("size", [0.0, 10.0, 30.0])
def test__condition__rounds_less(size, monkeypatch):
    network = with_common_channels(2, size)
    exact, float32 = references_of(opened(network))
    references = [(exact.layers(s), float32.layers(s)) for s in NATURAL]

    def ratios(ours: ESM2Network) -> dict[str, float]:
        rows = zip(rows_of(ours, NATURAL), references, strict=True)
        return assert_as_exact_as_fair_esm(
            ((x, *pair) for x, pair in rows), rms=np.inf, largest=np.inf
        )

    conditioned, plain = ratios(built(network)), ratios(built(network, monkeypatch))
    assert conditioned["4"] < 0.95 * plain["4"], (conditioned, plain)


def test__condition__keeps_a_network_that_is_not_finite(monkeypatch):
    """What an infinite weight spoils is reported where it is computed, as without this step."""
    network = random_esm2(2, 32, 2, seed=3)
    with torch.no_grad():
        network.embed_tokens.weight[4] = torch.inf  # leucine, which is in the probe
    rows = rows_of(built(network), ["GGAG", "GLG"])
    assert np.isfinite(rows[0]["2"]).all()
    assert not np.isfinite(rows[1]["2"]).all()


def test__network__is_as_exact_as_fair_esm_on_a_trained_one(trained_checkpoint, natural_proteins):
    checkpoint = open_checkpoint(trained_checkpoint)
    network = ESM2Network("trained", checkpoint.architecture, checkpoint.load(), CPU, "float32")
    exact, float32 = references_of(checkpoint)
    ratios = assert_as_exact_as_fair_esm(
        (ours, exact.layers(sequence), float32.layers(sequence))
        for sequence, ours in zip(natural_proteins, rows_of(network, natural_proteins), strict=True)
    )
    assert np.mean(list(ratios.values())[1:]) < 1  # 0.8 on AMD Zen 4


def test__network__gives_the_same_bits_in_any_batch_on_a_trained_one(
    trained_checkpoint, natural_proteins
):
    checkpoint = open_checkpoint(trained_checkpoint)
    network = ESM2Network("trained", checkpoint.architecture, checkpoint.load(), CPU, "float32")
    together = rows_of(network, natural_proteins)
    for sequence, rows in zip(natural_proteins[:4], together, strict=False):
        [alone] = rows_of(network, [sequence])
        for layer, expected in rows.items():
            np.testing.assert_array_equal(alone[layer], expected)


def test__half_precision__errs_on_a_trained_one_by_what_the_guide_says(trained_checkpoint):
    parent = "MSKGEELFTGVVPILVELDGDVNGHKFSVSGEGEGDATYGKLTLKFICTT"
    mutants = [
        f"{parent[:i]}{'A' if parent[i] != 'A' else 'W'}{parent[i + 1 :]}" for i in range(50)
    ]
    vectors = {
        precision: Engine(trained_checkpoint, precision=precision, device="cpu", cache=None).embed(
            mutants
        )
        for precision in ("float32", "float16", "bfloat16")
    }
    exact = vectors["float32"]
    spread = np.sqrt(((exact - exact.mean(0)) ** 2).mean())
    share = {p: np.sqrt(((x - exact) ** 2).mean()) / spread for p, x in vectors.items()}
    assert 0.01 < share["bfloat16"] < 0.25
    assert 4 < share["bfloat16"] / share["float16"] < 16
