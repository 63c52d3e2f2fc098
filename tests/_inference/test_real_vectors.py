"""Real vectors of real peptides: imported, they give published quality, without any weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from esm2_features import ESM2Transformer
from esm2_features._cache import Cache

MODEL = "esm2_t6_8M_UR50D"


def data_set(folder, name, part):
    with np.load(folder / f"real_esm2_t6_8M_{name}_{part}.npz") as arrays:
        return arrays["sequence"], arrays["label"], arrays["embedding"]


@pytest.fixture
def no_weights(monkeypatch):
    def loaded(*args, **kwargs):
        raise AssertionError("a vector was missing, and the network was asked for")

    monkeypatch.setattr("esm2_features._inference.local.get_networks", loaded)


@pytest.mark.parametrize(
    ("name", "auc"), [("bitter", 0.974), ("umami", 0.961), ("bbp", 0.936), ("quorum", 0.975)]
)
def test__imported_vectors__classify_as_well_as_they_do_elsewhere(
    tmp_path, shared_data, no_weights, name, auc
):
    cache = Cache(tmp_path)
    for part in ("train", "test"):
        imported = cache.import_(
            shared_data / f"real_esm2_t6_8M_{name}_{part}.npz", model=MODEL, layer=6, pooling="mean"
        )
        assert imported.conflicts == ()
    transformer = ESM2Transformer(MODEL, cache=cache)
    pipeline = make_pipeline(
        transformer, StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)
    )
    sequences, labels, _ = data_set(shared_data, name, "train")
    pipeline.fit(sequences, labels)
    sequences, labels, vectors = data_set(shared_data, name, "test")
    np.testing.assert_array_equal(transformer.transform(sequences), vectors)
    found = roc_auc_score(labels, pipeline.predict_proba(sequences)[:, 1])
    assert found == pytest.approx(auc, abs=0.002)
