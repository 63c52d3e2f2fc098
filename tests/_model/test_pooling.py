"""Each reduction against its definition, sequence by sequence, without cls and eos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esm2_features._inputs.options import POOLINGS
from esm2_features._model.layout import Layout
from esm2_features._model.pooling import pool

SEQUENCES = ["MKTAY", "GGGGG", "AC", "W"]
DEFINITIONS = {
    "mean": lambda x: x[1:-1].mean(0),
    "max": lambda x: x[1:-1].max(0),
    "std": lambda x: x[1:-1].std(0),
    "cls": lambda x: x[0],
    "eos": lambda x: x[-1],
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test__pool__equals_its_definition(pooling):
    layout = Layout(SEQUENCES)
    x_TD = torch.randn(len(layout.batches[0].tokens), 8, generator=torch.Generator().manual_seed(0))
    parts = x_TD.split([len(s) + 2 for s in SEQUENCES])
    expected = np.stack([DEFINITIONS[pooling](part.numpy()) for part in parts])
    np.testing.assert_allclose(pool(x_TD, layout.segments, pooling), expected, atol=1e-6)


def test__pool__spread_of_one_residue_is_zero():
    assert (pool(torch.randn(3, 4), Layout(["W"]).segments, "std") == 0).all()
