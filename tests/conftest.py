"""What every test stands on: no network, a cache of its own, and one tiny checkpoint."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

# Before anything is imported, so that worker processes inherit it: no test may reach the
# user's own cache, official weights that happen to be on this machine, or the network.
_SCRATCH = tempfile.mkdtemp(prefix="esm2-features-tests-")
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
os.environ["ESM2_FEATURES_CACHE"] = str(Path(_SCRATCH) / "embeddings")
os.environ["ESM2_FEATURES_HOME"] = str(Path(_SCRATCH) / "home")
os.environ["ESM2_FEATURES_OFFLINE"] = "1"
os.environ["TORCH_HOME"] = str(Path(_SCRATCH) / "torch")
os.environ["HF_HOME"] = str(Path(_SCRATCH) / "huggingface")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests may have to share the machine
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Workers share the cores; each process that a test starts inherits its worker's share.
    _share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(_share))
for _variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(_variable, None)

import hypothesis  # noqa: E402
from checkpoints import random_esm2, write_fair_esm  # noqa: E402

from esm2_features import ESM2Transformer, read_fasta  # noqa: E402
from esm2_features._checkpoints.checkpoint import open_checkpoint  # noqa: E402
from esm2_features._inference.local import LocalBackend  # noqa: E402
from esm2_features._model.reference import Reference  # noqa: E402

hypothesis.settings.register_profile("untimed", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("untimed")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of 2 layers x 32, written as fair-esm writes its own."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    write_fair_esm(random_esm2(layers=2, dim=32, heads=2, seed=7), path)
    return path


@pytest.fixture
def esm2(tiny_checkpoint: Path) -> Callable[..., ESM2Transformer]:
    """Make an estimator of the tiny checkpoint, without a cache unless one is asked for."""

    def make(model: str | Path = tiny_checkpoint, **parameters: Any) -> ESM2Transformer:
        return ESM2Transformer(model, **{"device": "cpu", "cache": None, **parameters})

    return make


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sequences that go through the network, once for each pass."""
    sequences: list[str] = []
    forward = LocalBackend.forward

    def record(
        self: LocalBackend,
        network: Any,
        extractor: Any,
        sharing: int,
        views: list[str],
        budget: int,
    ) -> Any:
        sequences.extend({view.partition("@")[0] for view in views})
        return forward(self, network, extractor, sharing, views, budget)

    monkeypatch.setattr(LocalBackend, "forward", record)
    return sequences


@pytest.fixture(scope="session")
def residues(tiny_checkpoint: Path) -> Callable[..., NDArray[np.float32]]:
    """Representations of the residues, (residues, dim), as fair-esm computes them."""
    reference = Reference(open_checkpoint(tiny_checkpoint))
    return lambda sequence, layer=2: reference.layers(sequence)[str(layer)][1:-1]


@pytest.fixture
def shared_data() -> Path:
    """Real sequences, labels and embeddings, where they are at hand."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real data is not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def trained_checkpoint(shared_data: Path) -> Path:
    """A trained ESM-2 of 8M parameters, fine-tuned for classification."""
    return shared_data / "real_finetuned_esm2_t6_8M"


@pytest.fixture
def natural_proteins(shared_data: Path) -> list[str]:
    """Eight natural proteins of up to 700 residues."""
    proteins = [r.seq for r in read_fasta(shared_data / "natural_proteins.fasta.gz")]
    chosen = np.random.default_rng(0).permutation(len(proteins))
    return [proteins[i] for i in chosen if len(proteins[i]) <= 700][:8]


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "shared"
