"""Fused kernels give PyTorch's numbers; Triton's interpreter runs them on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip(
    "triton", "3.9", reason="fused kernels are in Triton; interpreters before 3.9 were not tried"
)

from esm2_features._model import triton_kernels
from esm2_features._model.fusion import _TOLERANCE, _worst_error

CPU = torch.device("cpu")
SHAPES = [(320, 20), (480, 20), (640, 20), (1280, 20), (2560, 40), (5120, 40), (64, 2), (12, 3)]
"""Widths and heads of the official models, and of small ones that fill no block of threads."""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("dim", "heads"), SHAPES)
def test__triton_kernels__err_by_rounding_alone(dim, heads, dtype):
    assert 0 < _worst_error(triton_kernels, CPU, dtype, dim, heads) <= _TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test__turn__leaves_values_as_they_are(dtype):
    qkv = torch.randn(3, 6, 8).to(dtype)
    values = qkv[:, 4:].clone()
    triton_kernels.turn_(qkv[:, :4], torch.polar(torch.ones(3, 1, 4), torch.rand(3, 1, 4)))
    assert torch.equal(qkv[:, 4:], values)


def test__add_norm__leaves_the_residual_stream_as_it_is_and_takes_large_numbers():
    x, y = torch.full((2, 20), 1e4) + torch.arange(20), torch.ones(2, 20, dtype=torch.float16)
    weight, bias, before = torch.ones(20), torch.zeros(20), x.clone()
    added, normed = triton_kernels.add_norm(x, y, weight, bias, torch.float16)
    assert torch.equal(x, before)
    assert torch.equal(added, x + 1)
    expected = torch.nn.functional.layer_norm(x + 1, (20,))
    torch.testing.assert_close(normed.float(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("turn_", lambda *_: None),
        ("add_norm", lambda x, y, *_: (x, x)),
        ("add_norm", lambda x, y, w, b, dtype: (x, torch.full_like(x, torch.nan))),
    ],
)
def test__worst_error__sees_a_kernel_that_is_wrong(name, fault, monkeypatch):
    monkeypatch.setattr(triton_kernels, name, fault)
    assert _worst_error(triton_kernels, CPU, torch.bfloat16, 64, 2) > _TOLERANCE[torch.bfloat16]
