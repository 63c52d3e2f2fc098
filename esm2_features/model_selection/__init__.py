"""Split sequences so that relatives stay together, and find out which did not."""

from esm2_features.model_selection.families import cluster_sequences
from esm2_features.model_selection.model_files import load_model, save_model
from esm2_features.model_selection.saved_model import SavedModel
from esm2_features.model_selection.splits import (
    TrainTestIdentity,
    check_splits,
    train_test_identity,
)

__all__ = [
    "SavedModel",
    "TrainTestIdentity",
    "check_splits",
    "cluster_sequences",
    "load_model",
    "save_model",
    "train_test_identity",
]
