"""`ModelTransformer`: the transformers that run a network, with its options and its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from esm2_features._checkpoints import open_checkpoint
from esm2_features._engine import Engine
from esm2_features._inference.networks import devices_of_network
from esm2_features._inference.remote.endpoint import hidden
from esm2_features._inputs.options import ON_MISSING, device_names, one_of
from esm2_features._inputs.policy import TruncationCounter
from esm2_features._inputs.rows import labelled
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


class EmbeddingTransformer(ModelTransformer):
    """Base of the transformers whose features are layers of a network, pooled."""

    def precompute(
        self,
        X: object,
        *,
        layers: int | Sequence[int] | Literal["all"] = "all",
        pooling: str | Sequence[str] = "all",
    ) -> Self:
        """Fill the cache with several layers and poolings, one forward pass per sequence.

        After it, a search over these layers and poolings only reads. The parameters of the
        transformer stay as they are, and nothing is held in memory.

        Parameters
        ----------
        X : sequences of length n, or frame of shape (n, n_chains)
            As in `fit`.
        layers : int, list of int or "all", default="all"
            Representations to compute.
        pooling : str, list of str or "all", default="all"
            Poolings to compute; "all" is those that ``region`` and ``join`` allow.

        Returns
        -------
        self : object
            This transformer.

        Raises
        ------
        InputError
            If there is no cache, or a parameter or a sequence is wrong.
        TypeError
            If X is not a container of sequences.
        CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError
            As in `transform`; so are CacheVersionError and EndpointError.

        Notes
        -----
        A vector takes 4 bytes per component (2 in float16), so all of a model's take
        20 x dim x (layers + 1) bytes per sequence: 45 kB for ``esm2_t6_8M_UR50D``, 870 kB for
        ``esm2_t33_650M_UR50D``. Name the layers that you will ask for, if that is too much.

        Examples
        --------
        >>> import tempfile
        >>> from esm2_features import Cache, ESM2Transformer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     esm = ESM2Transformer("mini", cache=folder)
        ...     _ = esm.precompute(["MKTAYIAKQR", "GSHM"], layers=[3, 6], pooling=["mean", "max"])
        ...     Cache(folder).info().rows  # 2 sequences x 2 layers x 2 poolings
        8
        """
        engine = self._engine(layers=layers, pooling=pooling)
        truncations = TruncationCounter()
        chains = self._columns(X)
        with labelled(chains[0].labels):
            views = self._views(engine, self._as_fitted(chains, X), truncations)
        truncations.warn(engine.max_residues)
        row_of: dict[str, int] = {}
        in_a_row = len(views) // len(chains[0].values)
        for i, view in enumerate(views):
            if view:
                row_of.setdefault(view, i // in_a_row)
        # Sorted, all regions of a sequence are neighbours, and so come from one forward pass.
        distinct = sorted(row_of)
        engine.runner.fill_cache(
            distinct, engine.columns, row_numbers=[row_of[view] for view in distinct]
        )
        return self
