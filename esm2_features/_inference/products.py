"""What can be asked of an engine, and with which options: the products."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._checkpoints import Checkpoint
from esm2_features._inputs.options import absolute_layers, one_of
from esm2_features.exceptions import InputError

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


CACHED = ("embedding", "predict_masked")
"""Those of a fixed width a row, which go through the cache."""


class MaskedResidues(NamedTuple):
    """What `Engine.predict_masked` finds may stand at the masked positions of one sequence.

    Attributes
    ----------
    positions : ndarray of shape (n_masks,), intp
        Counted from 0.
    probabilities : ndarray of shape (n_masks, 20), float32
        Of the canonical residues, ``ACDEFGHIKLMNPQRSTVWY``; each row sums to 1.
    """

    positions: NDArray[np.intp]
    probabilities: NDArray[np.float32]


def extractor_of(
    product: str, checkpoint: Checkpoint, *, layers: object = None, over: object = None
) -> Extractor:
    """Check what a product is told, and make its extractor."""
    check_unused(
        product,
        layers=layers if product not in ("residues", "attentions") else None,
        over=over if product != "log_probs" else None,
    )
    from esm2_features._inference import extractors as _extractors

    shape, name = checkpoint.architecture, checkpoint.name
    if product == "residues":
        wanted = absolute_layers(layers, depth=shape.layers, model=name)
        return _extractors.Residues(wanted, shape.dim, by_layer=not isinstance(layers, Integral))
    if product == "attentions":
        return _extractors.Attentions(_blocks(layers, shape.layers, name), shape.heads)
    if product == "contacts":
        return _extractors.Contacts(*checkpoint.contact_regression(), heads=shape.heads)
    if product == "log_probs":
        tokens = one_of("over", "residues" if over is None else over, ("residues", "tokens"))
        return _extractors.Logits("log_probs", tokens)
    return _extractors.Logits("logits")


def check_unused(product: str, **options: object) -> None:
    """Refuse options that mean nothing for a product."""
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
