"""Split sequences so that relatives stay together, and find out which did not."""

from esm2_features.model_selection.families import cluster_sequences
from esm2_features.model_selection.splits import (
    TrainTestIdentity,
    check_splits,
    train_test_identity,
)

__all__ = ["TrainTestIdentity", "check_splits", "cluster_sequences", "train_test_identity"]
