"""Every kernel gives softmax(q k') v within each sequence, chosen by nothing but geometry."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from esm2_features._model import attention as _attention
from esm2_features._model.attention import choose_attention
from esm2_features._model.packing import pack

CPU = torch.device("cpu")
HEADS, WIDTH = 4, 24
LENGTHS = (300, 129, 127, 126, 126, 126, 40, 40, 3, 1)  # 128 tokens are 126 residues


@pytest.fixture
def groups():
    return pack(["A" * n for n in LENGTHS]).groups


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS) + 2 * len(LENGTHS)
    return torch.randn(3, tokens, HEADS, WIDTH, generator=generator).unbind()


def one_by_one(q_TNH, k_TNH, v_TNH, edges, same_edges, longest, same_longest):
    """What a kernel for packed sequences does, with the arguments that it takes."""
    assert edges.dtype == torch.int32
    assert torch.equal(edges, same_edges)
    assert longest == same_longest == edges.diff().max()
    parts = [x_TNH.split(edges.diff().tolist()) for x_TNH in (q_TNH, k_TNH, v_TNH)]
    return torch.cat(
        [
            ((q.transpose(0, 1) @ k.permute(1, 2, 0) / WIDTH**0.5).softmax(-1) @ v.transpose(0, 1))
            .transpose(0, 1)
            for q, k, v in zip(*parts, strict=True)
        ]
    )  # fmt: skip


def exact(groups, qkv):
    lengths = torch.tensor([0, *(g.tokens for g in groups for _ in range(g.count))])
    edges = lengths.cumsum(0).to(torch.int32)
    longest = int(lengths.max())
    return one_by_one(*(x.double() for x in qkv), edges, edges, longest, longest)


@pytest.mark.parametrize("held", [1, 1 << 12, 1 << 19])
def test__attention__on_a_cpu_is_softmax_of_products(groups, qkv, held, monkeypatch):
    monkeypatch.setattr(_attention, "_SHORT_MAPS", held)
    found = choose_attention(groups, CPU, torch.float32, WIDTH)(*qkv)
    torch.testing.assert_close(found.double(), exact(groups, qkv), rtol=0, atol=2e-6)


def test__attention__gives_rows_of_no_sequence_zeros_and_not_what_memory_held(
    groups, qkv, monkeypatch
):
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: torch.full(x.shape, torch.nan))
    padded = [torch.cat([x, torch.randn(5, HEADS, WIDTH)]) for x in qkv]
    found = choose_attention(groups, CPU, torch.float32, WIDTH)(*padded)
    assert (found[-5:] == 0).all()
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test__attention__in_half_precision_goes_packed_where_there_is_a_kernel(
    groups, qkv, dtype, monkeypatch
):
    monkeypatch.setattr(_attention, "_packed_kernel", lambda *_: one_by_one)
    halves = [x.to(dtype) for x in qkv]
    packed = choose_attention(groups, CPU, dtype, WIDTH)(*halves)
    assert packed.dtype == dtype
    monkeypatch.setattr(_attention, "_packed_kernel", lambda *_: None)
    grouped = choose_attention(groups, CPU, dtype, WIDTH)(*halves)
    torch.testing.assert_close(packed, grouped, rtol=0, atol=0.02)


def test__attention__in_float32_never_goes_packed(groups, qkv, monkeypatch):
    monkeypatch.setattr(_attention, "_packed_kernel", lambda *_: pytest.fail("asked for"))
    choose_attention(groups, CPU, torch.float32, WIDTH)(*qkv)


@pytest.mark.parametrize(
    ("torchs", "flashs", "expected"),
    [("works", "works", "torch"), ("fails", "works", "flash"), (None, "works", "flash"),
     ("fails", "fails", None), (None, None, None)],
)  # fmt: skip
def test__packed_kernel__is_the_first_that_is_there_and_works(
    torchs, flashs, expected, monkeypatch
):
    def kernel(works, name):
        def attend(q_TNH, *rest):
            assert q_TNH.shape == (2, 1, WIDTH)
            if works == "fails":
                raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
            return q_TNH

        attend.__name__ = name
        return attend

    modules = {
        "torch.nn.attention.varlen": torchs
        and SimpleNamespace(varlen_attn=kernel(torchs, "torch")),
        "flash_attn": flashs and SimpleNamespace(flash_attn_varlen_func=kernel(flashs, "flash")),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    find = _attention._packed_kernel.__wrapped__
    assert find(CPU, torch.float16, WIDTH) is None
    for make in ("zeros", "tensor"):  # there is no card to put the trial on
        on_cpu = getattr(torch, make)
        monkeypatch.setattr(torch, make, lambda *a, f=on_cpu, device, **k: f(*a, **k))
    found = find(torch.device("cuda", 0), torch.float16, WIDTH)
    assert (found and found.__name__) == expected
