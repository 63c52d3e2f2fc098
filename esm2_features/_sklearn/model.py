"""`ModelTransformer`: the transformers that run a network, with its options and its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._checkpoints import open_checkpoint
from esm2_features._engine import Engine
from esm2_features._inference.networks import devices_of_network
from esm2_features._inference.remote.endpoint import hidden
from esm2_features._inputs.options import ON_MISSING, device_names, one_of
from esm2_features._sklearn.base import SequenceTransformer
from esm2_features.exceptions import Esm2FeaturesError


class ModelTransformer(SequenceTransformer[Engine]):
    """Base of the transformers whose features are those of a network."""

    model: str | os.PathLike[str]
    precision: str
    device: str | Sequence[str]

    def __setattr__(self, name: str, value: object) -> None:
        """Hide a token, because parameters are printed and pickled."""
        super().__setattr__(name, hidden(value) if name == "token" else value)

    def _engine_parameters(self, changed: dict[str, object], own: Sequence[str]) -> dict[str, Any]:
        """Give the parameters that are the engine's, some of them changed."""
        if self.on_missing not in ON_MISSING:
            one_of("on_missing", self.on_missing, ON_MISSING)
        own = ("chains", "on_missing", *own)
        parameters = {**self.get_params(deep=False), **changed}
        return {name: value for name, value in parameters.items() if name not in own}

    def _caption(self) -> str | None:
        """Name the model, its size, and whether it is in memory; None if there is no such model."""
        try:
            checkpoint = open_checkpoint(self.model)
            places = devices_of_network(
                checkpoint, devices=device_names(self.device), precision=self.precision
            )
        except (Esm2FeaturesError, TypeError):
            return None  # whoever computes with it is told; a picture is no place for errors
        millions = checkpoint.architecture.parameters / 1e6
        size = f"{millions:.1f}M" if millions < 1000 else f"{millions / 1000:.1f}B"
        state = f"weights loaded on {', '.join(places)}" if places else "weights not loaded"
        if getattr(self, "endpoint", None) is not None:
            state = f"computed by {self.endpoint}"
        return f"{checkpoint.name}: {size} parameters, {state}"

    def _weights_digest(self) -> str | None:
        is_remote = getattr(self, "endpoint", None) is not None
        return None if is_remote else open_checkpoint(self.model).identity

    def _features(
        self, engine: Engine, views: list[str | None], n_chains: int, fill: float
    ) -> NDArray[np.float32]:
        """Compute the features of views, (views, d)."""
        rows = [i // n_chains for i in range(len(views))] if n_chains > 1 else None
        return engine.runner.embed(views, engine.columns, fill=fill, row_numbers=rows)

    def _names(self, engine: Engine, chain: int) -> list[str]:  # noqa: ARG002
        return engine.feature_names
