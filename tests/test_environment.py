"""A process of our own sets what the user has not set, before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from esm2_features._environment import keep_few_products, limit_openmp_spinning


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of it is set, and what a test sets is gone after it."""
    names = (
        "LRU_CACHE_CAPACITY",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
        "GOMP_SPINCOUNT",
        "OMP_WAIT_POLICY",
    )
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test__products_that_torch_prepares__are_few_unless_the_user_says_so(monkeypatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    keep_few_products()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"


def test__threads_that_wait__sleep_soon_unless_the_user_says_how(monkeypatch):
    limit_openmp_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    limit_openmp_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "5"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    limit_openmp_spinning()
    assert "GOMP_SPINCOUNT" not in os.environ


def test__command_line__says_so_before_torch_is_there():
    code = (
        "import os, sys; from click.testing import CliRunner; from esm2_features.cli import main;"
        "CliRunner().invoke(main, ['models']);"
        "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000", "False"]
