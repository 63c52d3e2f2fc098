"""Without fair-esm, or with another package in its place, the error explains what to install."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from esm2_features._checkpoints import open_checkpoint
from esm2_features._model.reference import Reference
from esm2_features._verify import verify
from esm2_features.exceptions import MissingDependencyError


@pytest.fixture
def without_esm(monkeypatch):
    for name in [name for name in sys.modules if name == "esm" or name.startswith("esm.")]:
        monkeypatch.delitem(sys.modules, name)
    return monkeypatch


def test__reference__without_fair_esm_names_the_extra(without_esm, tiny_checkpoint):
    without_esm.setitem(sys.modules, "esm", None)
    with pytest.raises(MissingDependencyError, match="fair-esm, which is not installed") as caught:
        Reference(open_checkpoint(tiny_checkpoint))
    assert 'pip install "esm2-features[verify]"' in str(caught.value)
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("is_package", [True, False])
def test__reference__with_another_package_called_esm_names_it(
    without_esm, tiny_checkpoint, is_package
):
    other = ModuleType("esm")
    other.__file__ = "/site-packages/esm/__init__.py"
    if is_package:  # of which `esm.model` is not found, or is something else
        other.__path__ = []
    without_esm.setitem(sys.modules, "esm", other)
    with pytest.raises(MissingDependencyError, match="is not fair-esm's") as caught:
        verify(tiny_checkpoint, device="cpu")
    message = str(caught.value)
    assert "/site-packages/esm/__init__.py" in message
    assert "uninstall the other one first: pip uninstall esm fair-esm" in message
    assert 'pip install "esm2-features[verify]"' in message


def test__reference__with_another_network_of_that_name_names_it(without_esm, tiny_checkpoint):
    for name in ("esm", "esm.model", "esm.model.esm2"):
        module = ModuleType(name)
        module.__path__ = []
        without_esm.setitem(sys.modules, name, module)
    with pytest.raises(MissingDependencyError, match="a module without a file"):
        Reference(open_checkpoint(tiny_checkpoint))


def test__reference__with_a_fair_esm_that_lacks_something_names_that(
    without_esm, tiny_checkpoint, tmp_path
):
    (tmp_path / "esm").mkdir()
    (tmp_path / "esm" / "__init__.py").write_text("import a_package_that_is_nowhere\n")
    without_esm.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_nowhere") as raised:
        Reference(open_checkpoint(tiny_checkpoint))
    assert not isinstance(raised.value, MissingDependencyError)
