"""Every kernel gives softmax(q k') v within each sequence, chosen by nothing but geometry."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test__attention__goes_packed_where_there_is_a_kernel(groups, qkv, dtype, monkeypatch):
    monkeypatch.setattr(_attention, "_packed_kernel", lambda *_: one_by_one)
    halves = [x.to(dtype) for x in qkv]
    packed = choose_attention(groups, CPU, dtype, WIDTH)(*halves)
    assert packed.dtype == dtype
    monkeypatch.setattr(_attention, "_packed_kernel", lambda *_: None)
    grouped = choose_attention(groups, CPU, dtype, WIDTH)(*halves)
    torch.testing.assert_close(packed, grouped, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("torchs", "flashs", "expected"),
    [("works", "works", "torch"), ("fails", "works", "flash"), (None, "works", "flash"),
     ("is wrong", "works", "flash"), ("is nan", "is wrong", None),
     ("fails", "fails", None), (None, None, None)],
)  # fmt: skip
def test__packed_kernel__is_the_first_that_is_there_and_right(
    torchs, flashs, expected, find_kernel
):
    found = find_kernel(torchs, flashs)
    assert (found and found.__name__) == expected


def test__packed_kernel__is_looked_for_again_if_memory_was_full(find_kernel):
    with pytest.raises(torch.OutOfMemoryError):
        find_kernel("has no memory", "works")


@pytest.fixture
def find_kernel(monkeypatch):
    """Find a kernel for a card, where there is none, among two with these faults."""

    def kernel(fault, name):
        def attend(q_TNH, k_TNH, v_TNH, edges, *rest):
            if fault == "fails":
                raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")
            if fault == "has no memory":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            found = one_by_one(q_TNH, k_TNH, v_TNH, edges, *rest)
            return {"is wrong": v_TNH, "is nan": found * torch.nan}.get(fault, found)

        attend.__name__ = name
        return attend

    to = torch.Tensor.to
    monkeypatch.setattr(_attention, "send", lambda array, _: torch.from_numpy(array))
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda x, target, *rest: x if target == torch.device("cuda", 0) else to(x, target, *rest),
    )

    def find(torchs, flashs, dtype=torch.float16):
        modules = {
            "torch.nn.attention.varlen": torchs
            and SimpleNamespace(varlen_attn=kernel(torchs, "torch")),
            "flash_attn": flashs
            and SimpleNamespace(flash_attn_varlen_func=kernel(flashs, "flash")),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        uncached = _attention._packed_kernel.__wrapped__
        assert uncached(CPU, dtype, WIDTH) is None
        return uncached(torch.device("cuda", 0), dtype, WIDTH)

    return find


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test__attention__on_apples_gpus_gets_contiguous_inputs(groups, qkv, dtype, monkeypatch):
    """PyTorch before 2.12 computes permuted ones wrongly there."""
    expected = choose_attention(groups, CPU, torch.float32, WIDTH)(*qkv)
    seen = []

    def attend(*qkv):
        seen.extend(x.is_contiguous() for x in qkv)
        return scaled_dot_product_attention(*qkv)

    monkeypatch.setattr(_attention, "scaled_dot_product_attention", attend)
    on_mps = [x.to(dtype).as_subclass(_OnMps) for x in qkv]
    found = choose_attention(groups, torch.device("mps"), dtype, WIDTH)(*on_mps)
    assert seen == [True] * 3 * len(groups)
    torch.testing.assert_close(found.as_subclass(torch.Tensor).float(), expected, rtol=0, atol=0.02)


class _OnMps(torch.Tensor):
    """A tensor that says it is on Apple's GPU."""

    device = torch.device("mps", 0)
    is_cpu = False
