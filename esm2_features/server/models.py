"""The models of one device: loaded when they are first asked for, and let go of in turn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache, open_cache
from esm2_features._checkpoints.catalogue import EMBEDDED, OFFICIAL, Architecture
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK, TOKENS
from esm2_features.exceptions import CheckpointError, DownloadError, OutOfMemoryError
from esm2_features.server.errors import ApiError
from esm2_features.server.metrics import Metrics
from esm2_features.server.requests import Kind
from esm2_features.server.settings import Settings

if TYPE_CHECKING:
    from esm2_features._engine import Engine

VOCABULARY = [token for token in TOKENS if token in set(CANONICAL_RESIDUES)]
"""The 20 residues in the order in which the hosted service gives logits: that of the network."""
_COLUMNS = [TOKENS.index(token) for token in VOCABULARY]
_PLACE = {residue: i for i, residue in enumerate(CANONICAL_RESIDUES)}
_MAPS_BYTES = 1 << 28
"""Bytes of attention maps of one sequence that are held at a time."""
_CACHED = ("embed",)
_WITH_DIGESTS = (EMBEDDED.name, *OFFICIAL)


def identities_of(settings: Settings) -> dict[str, str]:
    """Look up what stands for the weights of those models whose digests are known."""
    from esm2_features._checkpoints import open_checkpoint

    known = {name: src for name, src in settings.models.items() if src in _WITH_DIGESTS}
    return {name: open_checkpoint(source).identity for name, source in known.items()}


def shapes_of(settings: Settings) -> dict[str, Architecture]:
    """Look up the shapes of all models that are served, without loading one."""
    found = {}
    for name, source in settings.models.items():
        card = EMBEDDED if source == EMBEDDED.name else OFFICIAL.get(source)
        if card is not None:
            found[name] = card.architecture
        else:
            from esm2_features._checkpoints import open_checkpoint

            found[name] = open_checkpoint(source).architecture
    return found


class LoadedModels:
    """The models of one device, of which a few are in memory. Its methods are for one thread."""

    def __init__(self, settings: Settings, device: str, metrics: Metrics) -> None:
        self._settings, self._device, self._metrics = settings, device, metrics
        self._cache: Cache | None = open_cache(settings.cache)
        self._engines: OrderedDict[str, dict[Kind, Engine]] = OrderedDict()
        self._names: tuple[str, ...] = ()
        self.identities: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def in_memory(self) -> tuple[str, ...]:
        """Names of the models that are in memory; from any thread."""
        with self._lock:
            return self._names

    def compute(self, model: str, kind: Kind, sequences: list[str]) -> Sequence[Any]:
        """Compute one thing for each sequence."""
        try:
            return self._compute(model, kind, sequences)
        except OutOfMemoryError as error:
            if error.length or len(self._engines) < 2:
                raise
            # The weights do not fit beside those of other models: make room.
            for other in [name for name in self._engines if name != model]:
                self._let_go(other, self._engines.pop(other))
            return self._compute(model, kind, sequences)

    def _compute(self, model: str, kind: Kind, sequences: list[str]) -> Sequence[Any]:
        engine = self._engine(model, kind)
        before = engine.n_computed
        try:
            results = _PRODUCTS[kind[0]](engine, kind, sequences)
            self.identities[model] = engine.checkpoint.identity  # known by now
            return results
        finally:
            computed = engine.n_computed - before
            counts = self._metrics.sequences
            if kind[0] in _CACHED:
                counts.labels(model, "network").inc(min(computed, len(sequences)))
                counts.labels(model, "cache").inc(max(0, len(sequences) - computed))
            else:
                counts.labels(model, "network").inc(len(sequences))

    def _engine(self, model: str, kind: Kind) -> Engine:
        from esm2_features._engine import Engine

        if model not in self._engines:
            while len(self._engines) >= self._settings.models_in_memory:
                self._let_go(*self._engines.popitem(last=False))
            self._engines[model] = {}
        self._engines.move_to_end(model)
        self._metrics.models.labels(model).set(1)
        with self._lock:
            self._names = tuple(self._engines)
        options: dict[str, Any] = {}
        if kind[0] == "embed":
            options = {"layers": list(kind[1]), "pooling": list(kind[2])}
        engines = self._engines[model]
        key = kind if options else ()
        if key not in engines:
            if len(engines) > 64:
                engines.clear()  # an engine is cheap; the network is not in it
            engines[key] = Engine(
                self._settings.models[model],
                precision=self._settings.precision,
                device=self._device,
                max_residues=None,  # the server has its own limit, and has looked
                cache=self._cache,
                **options,
            )
        return engines[key]

    def _let_go(self, model: str, engines: dict[Kind, Engine]) -> None:
        from esm2_features._inference.networks import forget_network

        for engine in list(engines.values())[:1]:
            forget_network(
                engine.checkpoint, device=self._device, precision=self._settings.precision
            )
        self._metrics.models.labels(model).set(0)


def _embed(engine: Engine, kind: Kind, sequences: list[str]) -> Sequence[Any]:
    _, layers, poolings = kind
    rows = engine._embed_normalised([view.replace("<mask>", MASK) for view in sequences])
    return list(rows.reshape(len(sequences), len(layers), len(poolings), -1))


def _residues(engine: Engine, kind: Kind, sequences: list[str]) -> Sequence[Any]:
    return engine.residues(sequences, layers=list(kind[1]))


def _contacts(engine: Engine, _: Kind, sequences: list[str]) -> Sequence[Any]:
    try:
        engine.checkpoint.contact_regression()
    except DownloadError:
        raise
    except CheckpointError:
        raise ApiError(
            422,
            "no_contacts",
            f"{engine.checkpoint.name} has no contact regression here. Leave out contacts.",
        ) from None
    return engine.contacts(sequences)


def _logits(engine: Engine, _: Kind, sequences: list[str]) -> Sequence[Any]:
    return [np.ascontiguousarray(logits[:, _COLUMNS]) for logits in engine.logits(sequences)]


def _log_prob(engine: Engine, _: Kind, sequences: list[str]) -> Sequence[Any]:
    """Sum the log-probabilities of the residues, none of which is masked for it.

    As the hosted service does: over the 20 residues, leaving out those that are none of them.
    """
    return [
        float(
            sum(
                row[_PLACE[letter]]
                for letter, row in zip(text, rows, strict=True)
                if letter in _PLACE
            )
        )
        for text, rows in zip(sequences, engine.log_probs(sequences), strict=True)
    ]


def _attentions(engine: Engine, _: Kind, sequences: list[str]) -> Sequence[Any]:
    """Say how much is attended to each residue in each block: means over heads and tokens.

    As the hosted service does for one sequence. Maps are large, so that a few blocks are looked
    at at a time, at the price of a pass for each few.
    """
    shape = engine.checkpoint.architecture
    longest = max(map(len, sequences)) + 2
    at_once = max(1, _MAPS_BYTES // (4 * shape.heads * longest**2))
    found: list[list[NDArray[np.float32]]] = [[] for _ in sequences]
    for first in range(1, shape.layers + 1, at_once):
        blocks = list(range(first, min(first + at_once, shape.layers + 1)))
        for i, maps in enumerate(engine.stream(iter(sequences), "attentions", layers=blocks)):
            found[i].append(maps.mean((1, 2))[:, 1:-1])
    return [np.concatenate(parts) for parts in found]


_PRODUCTS: dict[str, Callable[[Engine, Kind, list[str]], Sequence[Any]]] = {
    "embed": _embed,
    "residues": _residues,
    "contacts": _contacts,
    "logits": _logits,
    "log_prob": _log_prob,
    "attentions": _attentions,
}
