"""The models of one device: loaded when first used, and removed when others need the room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import open_cache
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK, TOKENS
from esm2_features.exceptions import CheckpointError, DownloadError, OutOfMemoryError
from esm2_features.server.errors import ApiError
from esm2_features.server.metrics import Metrics
from esm2_features.server.requests import Computation
from esm2_features.server.settings import Settings

if TYPE_CHECKING:
    from esm2_features._engine import Engine

VOCABULARY = [token for token in TOKENS if token in set(CANONICAL_RESIDUES)]
"""The 20 residues in the order of the hosted service's logits, which is that of the network."""
_COLUMNS = [TOKENS.index(token) for token in VOCABULARY]
_MAPS_BYTES = 1 << 28
"""Bytes of attention maps of one sequence that are in memory at a time."""
_MOST_ENGINES = 64


class LoadedModels:
    """The models of one device, a few of which are in memory.

    `compute` is for the one thread of the device, `in_memory` for any thread.
    """

    def __init__(self, settings: Settings, device: str, metrics: Metrics) -> None:
        self._settings, self._device, self._metrics = settings, device, metrics
        self._cache = open_cache(settings.cache)
        # The engines of each model, least recently used first; the network is shared by them.
        self._engines: OrderedDict[str, dict[Computation | None, Engine]] = OrderedDict()
        self.in_memory: tuple[str, ...] = ()  # names of models; replaced as a whole
        self.identities: dict[str, str] = {}  # digests of the weights of models that have run

    def compute(self, model: str, computation: Computation, sequences: list[str]) -> Sequence[Any]:
        """Return one result for each sequence."""
        try:
            return self._compute(model, computation, sequences)
        except OutOfMemoryError as error:
            if error.length or len(self._engines) < 2:
                raise
            # The weights do not fit beside those of other models: remove these.
            for other in [name for name in self._engines if name != model]:
                self._remove(other)
            return self._compute(model, computation, sequences)

    def _compute(self, model: str, computation: Computation, sequences: list[str]) -> Sequence[Any]:
        engine = self._engine(model, computation)
        before = engine.n_computed
        try:
            compute = _COMPUTE.get(computation.name, _several)
            results = compute(engine, computation, sequences)
            self.identities[model] = engine.checkpoint.identity
            return results
        finally:
            # Only embeddings are cached.
            n = n_network = len(sequences)
            if computation.name == "embed":
                n_network = min(n, engine.n_computed - before)
                self._metrics.sequences.labels(model, "cache").inc(n - n_network)
            self._metrics.sequences.labels(model, "network").inc(n_network)

    def _engine(self, model: str, computation: Computation) -> Engine:
        from esm2_features._engine import Engine

        if model not in self._engines:
            while len(self._engines) >= self._settings.models_in_memory:
                self._remove(next(iter(self._engines)))
            self._engines[model] = {}
        self._engines.move_to_end(model)
        self._metrics.models.labels(model).set(1)
        self.in_memory = tuple(self._engines)
        options: dict[str, Any] = {}
        if computation.name == "embed":
            options = {"layers": list(computation.layers), "pooling": list(computation.poolings)}
        engines = self._engines[model]
        key = computation if options else None
        if key not in engines:
            if len(engines) > _MOST_ENGINES:
                engines.clear()  # they hold no weights
            engines[key] = Engine(
                self._settings.models[model],
                precision=self._settings.precision,
                device=self._device,
                max_residues=None,  # `read_request` has checked the length
                cache=self._cache,
                **options,
            )
        return engines[key]

    def _remove(self, model: str) -> None:
        from esm2_features._inference.networks import forget_network

        for engine in list(self._engines.pop(model).values())[:1]:
            forget_network(
                engine.checkpoint, device=self._device, precision=self._settings.precision
            )
        self._metrics.models.labels(model).set(0)


# ------------------------------------------------------------------ what is computed


def _embed(engine: Engine, computation: Computation, sequences: list[str]) -> Sequence[Any]:
    rows = engine.runner.embed([view.replace("<mask>", MASK) for view in sequences], engine.columns)
    _, layers, poolings = computation
    return list(rows.reshape(len(sequences), len(layers), len(poolings), -1))


def _per_token(engine: Engine, computation: Computation, sequences: list[str]) -> Sequence[Any]:
    return engine.residues(sequences, layers=list(computation.layers))


def _contact_regression(engine: Engine) -> Any:
    try:
        return engine.checkpoint.contact_regression()
    except DownloadError:
        raise
    except CheckpointError:
        raise ApiError("no_contacts", model=engine.checkpoint.name) from None


def _contacts(engine: Engine, _: Computation, sequences: list[str]) -> Sequence[Any]:
    _contact_regression(engine)
    return engine.contacts(sequences)


def _logits(engine: Engine, _: Computation, sequences: list[str]) -> Sequence[Any]:
    return list(map(_of_residues, engine.logits(sequences)))


def _of_residues(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(logits[:, _COLUMNS])


def _several(engine: Engine, computation: Computation, sequences: list[str]) -> Sequence[Any]:
    """Compute several outputs in one forward pass, which is not looked up in the cache."""
    from esm2_features._inference.extractors import Contacts, Logits, PooledVectors, Residues
    from esm2_features._inference.several import Several

    names, layers = computation.name.split("+"), computation.layers
    shape = engine.checkpoint.architecture
    parts: dict[str, Any] = {}
    if "embed" in names:
        columns = tuple((layer, how) for layer in layers for how in computation.poolings)
        parts["vectors"] = PooledVectors(columns, shape.dim)
    if "per_token" in names:
        parts["residues"] = Residues(layers, shape.dim, by_layer=True)
    if "contacts" in names:
        weight, bias = _contact_regression(engine)
        parts["contacts"] = Contacts(weight, bias, heads=shape.heads)
    if "logits" in names:
        parts["logits"] = Logits("logits")
    found = engine.runner.results(
        [text.replace("<mask>", MASK) for text in sequences], Several(**parts)
    )
    for outputs in found:
        if "vectors" in outputs:
            vectors = outputs.pop("vectors")
            outputs["embed"] = vectors.reshape(len(layers), len(computation.poolings), -1)
        if "per_token" in names:
            outputs["per_token"] = {layer: outputs.pop(layer) for layer in layers}
        if "logits" in outputs:
            outputs["logits"] = _of_residues(outputs["logits"])
    return found


def _log_prob(engine: Engine, _: Computation, sequences: list[str]) -> Sequence[Any]:
    """Sum the log-probabilities of the residues, without masking any.

    As the hosted service does: the softmax is over the 20 residues, and X and the like are left
    out of the sum.
    """
    totals = []
    for text, rows in zip(sequences, engine.log_probs(sequences), strict=True):
        letters = zip(rows, map(CANONICAL_RESIDUES.find, text), strict=True)
        totals.append(float(sum(row[column] for row, column in letters if column >= 0)))
    return totals


def _attentions(engine: Engine, _: Computation, sequences: list[str]) -> Sequence[Any]:
    """Average the attention to each residue over heads and tokens, in each block.

    As the hosted service does for one sequence. Returns arrays of shape (layers, residues).
    """
    # Maps are large: a few blocks are computed at a time, at the price of one pass for each few.
    shape = engine.checkpoint.architecture
    longest = max(map(len, sequences)) + 2
    at_once = max(1, _MAPS_BYTES // (4 * shape.heads * longest**2))
    means: list[list[NDArray[np.float32]]] = [[] for _ in sequences]
    for first in range(1, shape.layers + 1, at_once):
        blocks = list(range(first, min(first + at_once, shape.layers + 1)))
        for i, maps in enumerate(engine.stream(iter(sequences), "attentions", layers=blocks)):
            means[i].append(maps.mean((1, 2))[:, 1:-1])
    return [np.concatenate(parts) for parts in means]


_COMPUTE: dict[str, Callable[[Engine, Computation, list[str]], Sequence[Any]]] = {
    "embed": _embed,
    "per_token": _per_token,
    "contacts": _contacts,
    "logits": _logits,
    "log_prob": _log_prob,
    "attentions": _attentions,
}
