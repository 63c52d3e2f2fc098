"""Maps are softmax of products; what is made of them block by block equals what is made at once."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from esm.modules import ContactPredictionHead

from esm2_features._model import attention as _attention
from esm2_features._model.attention import attention_maps, choose_attention
from esm2_features._model.attention_maps import AllMaps, ContactMaps, Importance, page_rank
from esm2_features._model.packing import pack

SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGE", "ACD", "W"]
LAYERS, HEADS, WIDTH = 3, 4, 8


@pytest.fixture
def packed():
    """A batch, and the queries and keys of its blocks."""
    batch = pack(SEQUENCES)
    generator = torch.Generator().manual_seed(0)
    shape = LAYERS, 2, len(batch.tokens), HEADS, WIDTH
    return batch, torch.randn(shape, generator=generator)


def plain(x_TNH, batch):
    """The tokens of each sequence, as (heads, tokens, width)."""
    sizes = [len(sequence) + 2 for sequence in SEQUENCES]
    return [part.transpose(0, 1) for part in x_TNH.split(sizes)]


def all_maps(batch, qk):
    """Attention maps of each sequence: (layers, heads, tokens, tokens)."""
    per_layer = [
        [
            (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1)
            for q, k in zip(plain(q_TNH, batch), plain(k_TNH, batch), strict=True)
        ]
        for q_TNH, k_TNH in qk
    ]
    return [torch.stack(of_one) for of_one in zip(*per_layer, strict=True)]


def passed(maps, qk):
    for layer, (q_TNH, k_TNH) in enumerate(qk, start=1):
        maps(layer, q_TNH, k_TNH)
    return maps


@pytest.fixture(params=["at once", "a head at a time"])
def portions(request, monkeypatch):
    if request.param == "a head at a time":
        monkeypatch.setattr(_attention, "_MAP_BYTES", 1)


@pytest.mark.usefixtures("portions")
def test__attention_maps__are_those_that_attend_uses(packed):
    batch, qk = packed
    q_TNH, k_TNH = qk[0]
    v_TNH = torch.randn(q_TNH.shape, generator=torch.Generator().manual_seed(1))
    a_TNH = choose_attention(batch.groups, v_TNH.device, v_TNH.dtype, WIDTH)(q_TNH, k_TNH, v_TNH)
    for group in batch.groups:
        v = v_TNH[group.start : group.stop].view(group.count, group.tokens, HEADS, WIDTH)
        a = a_TNH[group.start : group.stop].view(group.count, group.tokens, HEADS, WIDTH)
        seen = torch.zeros(group.count, HEADS)
        for sequences, heads, maps in attention_maps(q_TNH, k_TNH, group):
            seen[sequences, heads] += 1
            found = maps @ v.transpose(1, 2)[sequences, heads]
            torch.testing.assert_close(found, a.transpose(1, 2)[sequences, heads])
        assert (seen == 1).all()


@pytest.mark.usefixtures("portions")
def test__all_maps__are_given_in_the_order_asked(packed):
    batch, qk = packed
    maps = passed(AllMaps(batch.groups, [3, 1], heads=HEADS), qk).maps()
    for found, expected in zip(maps, all_maps(batch, qk), strict=True):
        np.testing.assert_allclose(found, expected[[2, 0]], atol=1e-6)


@pytest.mark.usefixtures("portions")
def test__contacts__equal_those_of_fair_esm_from_all_maps(packed):
    batch, qk = packed
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(1, LAYERS * HEADS, generator=generator)
    bias = torch.randn(1, generator=generator)
    maps = passed(ContactMaps(batch.groups, weight, bias, heads=HEADS), qk)
    head = ContactPredictionHead(LAYERS * HEADS, True, True, eos_idx=2)
    head.load_state_dict({"regression.weight": weight, "regression.bias": bias})
    tokens = torch.from_numpy(batch.tokens).split([len(s) + 2 for s in SEQUENCES])
    for found, own_maps, of_one in zip(
        maps.probabilities()(), all_maps(batch, qk), tokens, strict=True
    ):
        expected = head(of_one[None], own_maps[None])[0].detach()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test__page_rank__equals_that_of_networkx():
    edges = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0)) ** 4
    for found, graph in zip(page_rank(edges), edges.double().numpy(), strict=True):
        nodes = nx.from_numpy_array(graph, create_using=nx.DiGraph)
        expected = nx.pagerank(nodes, alpha=0.85, tol=1e-12, max_iter=1000)
        np.testing.assert_allclose(found, list(expected.values()), atol=1e-8)


def test__page_rank__of_a_graph_does_not_depend_on_the_others():
    edges = torch.rand(20, 9, 9, generator=torch.Generator().manual_seed(0)) ** 8
    alone = torch.cat([page_rank(graph[None]) for graph in edges])
    assert torch.equal(page_rank(edges), alone)


@pytest.mark.usefixtures("portions")
def test__importance__is_the_rank_in_the_largest_attention_of_all_blocks_and_heads(packed):
    batch, qk = packed
    ranks = passed(Importance(batch.groups), qk).ranks()
    largest = [maps.amax((0, 1)) for maps in all_maps(batch, qk)]
    expected = torch.cat([page_rank(edges[None])[0] for edges in largest]).float()
    torch.testing.assert_close(ranks, expected)
