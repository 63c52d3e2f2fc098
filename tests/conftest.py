"""What every test stands on: no network, a cache of its own, and one tiny checkpoint."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before anything is imported, so that worker processes inherit it: no test may reach the
# user's own cache, official weights that happen to be on this machine, or the network.
_SCRATCH = tempfile.mkdtemp(prefix="esm2-features-tests-")
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
os.environ["ESM2_FEATURES_CACHE"] = str(Path(_SCRATCH) / "embeddings")
os.environ["ESM2_FEATURES_HOME"] = str(Path(_SCRATCH) / "home")
os.environ["ESM2_FEATURES_OFFLINE"] = "1"
os.environ["TORCH_HOME"] = str(Path(_SCRATCH) / "torch")
os.environ["HF_HOME"] = str(Path(_SCRATCH) / "huggingface")
for _variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(_variable, None)

from checkpoints import random_esm2, write_fair_esm  # noqa: E402

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of 2 layers x 32, written as fair-esm writes its own."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    write_fair_esm(random_esm2(layers=2, dim=32, heads=2, seed=7), path)
    return path


@pytest.fixture
def shared_data() -> Path:
    """Real sequences, labels and embeddings, where they are at hand."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real data is not beside this checkout")
    return SHARED_DATA
