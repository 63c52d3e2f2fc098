"""Version 3 of the hosted API: addresses, bodies and answers.

    POST /api/v3/{model}/{encode|predict|log_prob}/

Names and shapes are those of the service's documentation: `embeddings` and the like are lists with
an entry per layer; logits are those of the 20 residues, in the order of ``vocab_tokens``;
``attentions`` are how much each block attends to each residue, averaged over heads and tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esm2_features._inputs.options import POOLING_OF
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import ApiVersion, FeatureRequest, Items
from esm2_features.server.responses import Result, json_parts

_BY_LAYER = {  # output: name in the answer, and name of its array
    **{word: (f"{word}_embeddings", "embedding") for word in POOLING_OF},
    "mean": ("embeddings", "embedding"),
    "per_token": ("per_token_embeddings", "embeddings"),
}


def _parts(request: FeatureRequest, results: list[Result]) -> Iterator[bytes]:
    def entry(i: int, result: Result) -> dict[str, Any]:
        start = {"sequence_index": i} if request.action == "encode" else {}
        return {**start, **_named(result)}

    return json_parts(b'{"results":[', results, entry)


def _named(result: Result) -> dict[str, Any]:
    """Rename the outputs for one sequence."""
    written: dict[str, Any] = {}
    for word, value in result.items():
        if word in _BY_LAYER:
            name, key = _BY_LAYER[word]
            written[name] = [{"layer": layer, key: array} for layer, array in value.items()]
        else:
            written["sequence_tokens" if word == "tokens" else word] = value
    if "logits" in result:
        written["vocab_tokens"] = VOCABULARY
    return written


VERSION_3 = ApiVersion(
    number=3,
    path="/api/v3/{model}/",
    operations={"encode": "encode", "predict": "predict", "log_prob": "log_prob"},
    body=Items,
    parts=_parts,
)
