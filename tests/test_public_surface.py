"""What can be imported, and what importing costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import esm2_features


def test__surface__is_what_all_says_sorted():
    assert esm2_features.__all__ == sorted(esm2_features.__all__)
    assert [name for name in dir(esm2_features) if not name.startswith("__")] == (
        esm2_features.__all__
    )
    for name in esm2_features.__all__:
        assert getattr(esm2_features, name) is not None


def test__surface__other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'ESMTransformer'"):
        _ = esm2_features.ESMTransformer


def test__surface__has_a_version():
    assert esm2_features.__version__


@pytest.mark.parametrize(
    "code",
    [
        "import esm2_features",
        "from esm2_features import *",
        "import esm2_features; esm2_features.ESM2Transformer('mini').fit(['MKT'])",
        "import esm2_features.cli",
    ],
)
def test__import__brings_no_torch(code):
    check = f"{code}\nimport sys\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)
