"""Compare features honestly: families kept together, baselines beside them, and intervals."""

from esm2_features.model_selection.comparison import compare_features
from esm2_features.model_selection.families import cluster_sequences
from esm2_features.model_selection.model_files import load_model, save_model
from esm2_features.model_selection.result import FeatureComparison
from esm2_features.model_selection.saved_model import SavedModel
from esm2_features.model_selection.splits import (
    TrainTestIdentity,
    check_splits,
    train_test_identity,
)

__all__ = [
    "FeatureComparison",
    "SavedModel",
    "TrainTestIdentity",
    "check_splits",
    "cluster_sequences",
    "compare_features",
    "load_model",
    "save_model",
    "train_test_identity",
]
