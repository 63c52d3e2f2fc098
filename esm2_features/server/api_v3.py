"""Version 3 of the hosted API: `POST /api/v3/{model}/{encode|predict|log_prob}/`.

Names and shapes are those that the service documents: `embeddings` and the like are lists of
layers; logits are of the 20 residues, in the order of ``vocab_tokens``; ``attentions`` say how
much is attended to each residue in each block, as means over heads and attending tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esm2_features._inputs.options import POOLING_OF
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import FeatureRequest
from esm2_features.server.responses import Found, as_json

_EMBEDDINGS = {
    **{word: f"{word}_embeddings" for word in POOLING_OF},
    "mean": "embeddings",
}


def parts(job: FeatureRequest, many: list[Found]) -> Iterator[bytes]:
    """Write an answer, one part for each sequence."""
    yield b'{"results":['
    for i, found in enumerate(many):
        start = {"sequence_index": i} if job.action == "encode" else {}
        yield (b"," if i else b"") + as_json({**start, **_named(found)})
    yield b"]}"


def _named(found: Found) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for word, value in found.items():
        if word in _EMBEDDINGS:
            written[_EMBEDDINGS[word]] = [
                {"layer": layer, "embedding": array} for layer, array in value.items()
            ]
        elif word == "per_token":
            written["per_token_embeddings"] = [
                {"layer": layer, "embeddings": array} for layer, array in value.items()
            ]
        elif word == "tokens":
            written["sequence_tokens"] = value
        else:
            written[word] = value
    if "logits" in found:
        written["vocab_tokens"] = VOCABULARY
    return written
