"""`Products`: what an engine computes besides embeddings, for containers and for streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._checkpoints import Checkpoint
from esm2_features._inference.cache_session import Columns
from esm2_features._inference.runner import Runner
from esm2_features._inputs.alphabet import CANONICAL_TOKENS, MASK
from esm2_features._inputs.containers import single_column
from esm2_features._inputs.options import absolute_layers, one_of
from esm2_features._inputs.policy import SequencePolicy, TruncationCounter
from esm2_features.exceptions import InputError, InvalidSequenceError

if TYPE_CHECKING:
    from esm2_features._inference.extractors import Extractor

PRODUCTS = (
    "embedding",
    "residues",
    "logits",
    "log_probs",
    "predict_masked",
    "contacts",
    "attentions",
)
"""What `Engine.stream` gives."""


_STREAM_SEQUENCES, _STREAM_BYTES = 4096, 1 << 28
"""Sequences that a stream holds at a time, and bytes of their results."""
_STREAM_MASKED = 64
"""Sequences with masks that it holds at a time: each mask is a row of its own."""

CACHED = ("embedding", "predict_masked")
"""Those of a fixed width a row, which go through the cache."""


class MaskedResidues(NamedTuple):
    """The residues that may stand at the masked positions of one sequence.

    Attributes
    ----------
    positions : ndarray of shape (n_masks,), intp
        Counted from 0.
    probabilities : ndarray of shape (n_masks, 20), float32
        Of the canonical residues, ``ACDEFGHIKLMNPQRSTVWY``; each row sums to 1.
    """

    positions: NDArray[np.intp]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Products:
    """Computes the products of one engine."""

    checkpoint: Checkpoint
    policy: SequencePolicy
    runner: Runner
    columns: Columns
    layers: object  # what "residues" gives if it is asked for no layers

    def compute(
        self, product: str, sequences: object, *, layers: object = None, over: object = None
    ) -> list[Any]:
        """Compute a product for each sequence of a container."""
        extractor = self._extractor(product, layers, over)
        residues = self.policy.normalise_column(sequences, owner="Engine")
        rows = range(len(residues))
        if extractor is None:
            return _predict_masked(self.policy, self.runner, residues, rows)
        return self.runner.results(self._whole(product, residues, rows), extractor)

    def stream(
        self, product: str, sequences: object, *, layers: object, over: object
    ) -> Iterator[Any]:
        """Compute a product, or embeddings, as they are asked for."""
        # Not a generator itself, so that wrong options and containers are errors here and now.
        one_of("product", product, PRODUCTS)
        extractor = self._extractor(product, layers, over)
        if not isinstance(sequences, Iterator):
            sequences = iter(single_column(sequences, owner="Engine").values)
        return self._stream(sequences, product, extractor)

    def _extractor(self, product: str, layers: object, over: object) -> Extractor | None:
        """Check the options of a product; make its extractor, or None if its rows are cached."""
        if product != "embedding":
            self.runner.backend.check_product(product)
            if self.policy.region is not None:
                raise InputError(
                    f"Got region={self.policy.region!r}, which is for pooling: {product} are of "
                    "every residue. Use an engine without a region, and take the part of the "
                    "result."
                )
        if product in CACHED:
            _check_unused(product, layers=layers, over=over)
            return None
        if product == "residues" and layers is None:
            layers = self.layers
        return _extractor_of(product, self.checkpoint, layers, over)

    def _whole(self, product: str, sequences: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Make views of whole sequences, in windows only if the product can be merged from them."""
        if product in ("contacts", "attentions"):
            self.policy.check_windows(sequences, rows=rows, product=product)
        return [view for view in self.policy.views(sequences) if view is not None]

    def _stream(
        self, remaining: Iterator[object], product: str, extractor: Extractor | None
    ) -> Iterator[Any]:
        policy, runner, counter = self.policy, self.runner, TruncationCounter()
        at_a_time = {
            "embedding": self.columns.rows_within(_STREAM_BYTES, most=_STREAM_SEQUENCES),
            "predict_masked": _STREAM_MASKED,
        }.get(product, _STREAM_SEQUENCES)
        while cells := list(islice(remaining, at_a_time)):
            rows = range(counter.total, counter.total + len(cells))
            residues = policy.normalise(cells, rows=rows, truncations=counter)
            if product == "embedding":
                yield from runner.embed(
                    policy.views(residues, rows=rows), self.columns, row_numbers=rows
                )
            elif extractor is None:
                yield from _predict_masked(policy, runner, residues, rows)
            else:
                views = self._whole(product, residues, rows)
                for portion in _portions(views, residues, extractor):
                    yield from runner.results(portion, extractor)
        counter.warn(policy.max_residues)


def _portions(
    views: Sequence[str], sequences: Sequence[str], extractor: Extractor
) -> Iterator[list[str]]:
    """Divide views so that the results of a portion fit into memory."""
    portion: list[str] = []
    size = 0
    for view, sequence in zip(views, sequences, strict=True):
        more = extractor.bytes(len(sequence))
        if portion and size + more > _STREAM_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(view)
        size += more
    if portion:
        yield portion


def _extractor_of(product: str, checkpoint: Checkpoint, layers: object, over: object) -> Extractor:
    """Check the options of a product that is not cached, and make its extractor."""
    _check_unused(
        product,
        layers=layers if product not in ("residues", "attentions") else None,
        over=over if product != "log_probs" else None,
    )
    from esm2_features._inference import extractors

    shape, name = checkpoint.architecture, checkpoint.name
    if product == "residues":
        wanted = absolute_layers(layers, depth=shape.layers, model=name)
        return extractors.Residues(wanted, shape.dim, by_layer=not isinstance(layers, Integral))
    if product == "attentions":
        return extractors.Attentions(_blocks(layers, shape.layers, name), shape.heads)
    if product == "contacts":
        return extractors.Contacts(*checkpoint.contact_regression(), heads=shape.heads)
    if product == "log_probs":
        tokens = one_of("over", "residues" if over is None else over, ("residues", "tokens"))
        return extractors.Logits("log_probs", tokens)
    return extractors.Logits("logits")


def _check_unused(product: str, **options: object) -> None:
    """Raise InputError for an option that a product does not have."""
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"Got {name}={value!r}, which means nothing for {product}. Leave it out."
            )


def _blocks(layers: object, depth: int, name: str) -> tuple[int, ...]:
    """Blocks whose attention is asked for; all of them by default."""
    if layers is None or (isinstance(layers, str) and layers == "all"):
        return tuple(range(1, depth + 1))
    chosen = absolute_layers(layers, depth=depth, model=name)
    if 0 in chosen:
        raise InputError(
            f"Got layers={layers!r}, but representation 0, the embedding, comes of no attention: "
            f"the blocks of {name} are 1 to {depth}."
        )
    return chosen


def _predict_masked(
    policy: SequencePolicy, runner: Runner, sequences: Sequence[str], rows: Sequence[int]
) -> list[MaskedResidues]:
    """Predict what stands at the masks of normalised sequences; ``rows`` are for messages."""
    positions = [
        np.flatnonzero(np.frombuffer(sequence.encode(), np.uint8) == ord(MASK))
        for sequence in sequences
    ]
    for row, masks in zip(rows, positions, strict=True):
        if not len(masks):
            raise InvalidSequenceError(
                f"The sequence in row {row} holds no <mask>, so there is nothing to predict. "
                "Put <mask> in the place of each residue that is asked for.",
                index=row,
            )
    if not positions:
        return []
    sites = [
        policy.site(sequence, position, masked=True)
        for sequence, masks in zip(sequences, positions, strict=True)
        for position in masks.tolist()
    ]
    log_probs = runner.log_probs(sites)[:, CANONICAL_TOKENS]
    probabilities = np.exp(log_probs - log_probs.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    parts = np.split(probabilities, np.cumsum([len(masks) for masks in positions])[:-1])
    return [MaskedResidues(*pair) for pair in zip(positions, parts, strict=True)]
