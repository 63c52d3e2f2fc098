"""The reference says how to get fair-esm where it is missing, or another package hides it."""

from __future__ import annotations

import sys

import pytest

from esm2_features._checkpoints import open_checkpoint
from esm2_features._model.reference import Reference
from esm2_features.exceptions import MissingDependencyError


@pytest.fixture
def no_esm(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "esm"]:
        monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test_without_fair_esm_the_error_names_the_extra(no_esm):
    no_esm.setitem(sys.modules, "esm", None)
    with pytest.raises(MissingDependencyError, match=r"not installed.*esm2-features\[verify\]"):
        Reference(open_checkpoint("mini"))


def test_with_another_esm_the_error_names_its_path_and_the_remedy(no_esm, tmp_path):
    other = tmp_path / "esm" / "__init__.py"
    other.parent.mkdir()
    other.touch()
    no_esm.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"another package.*new environment") as raised:
        Reference(open_checkpoint("mini"))
    assert str(other) in str(raised.value)
    assert 'pip install "esm2-features[verify]"' in str(raised.value)


def test_a_broken_fair_esm_is_not_called_missing(no_esm, tmp_path):
    broken = tmp_path / "esm" / "__init__.py"
    broken.parent.mkdir()
    broken.write_text("import a_package_that_is_nowhere")
    no_esm.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_nowhere") as raised:
        Reference(open_checkpoint("mini"))
    assert not isinstance(raised.value, MissingDependencyError)
