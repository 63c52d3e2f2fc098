"""The versions of the hosted API: addresses, bodies and answers.

    POST /api/v1/models/{model}/{predict|transform}/
    POST /api/v2/{model}/{encode|predict}/
    POST /api/v3/{model}/{encode|predict|log_prob}/
    POST /api/v1/{model}/{encode|predict|log_prob}       the hub, to which biolm-sdk talks

The published examples of version 1 have ``name`` and ``mean_representations`` only; its other
outputs have the names of version 2. Names and shapes of version 3 are those of the service's
documentation: `embeddings` and the like are lists with an entry per layer; logits are those of the
20 residues, in the order of ``vocab_tokens``; ``attentions`` are how much each block attends to
each residue, averaged over heads and tokens. The hub has those of version 3, but for residues.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from pydantic import Field, StrictStr

from esm2_features._inputs.options import POOLING_OF
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import (
    AnyParams,
    ApiVersion,
    FeatureRequest,
    HubItems,
    Item,
    Items,
    Params,
    Strict,
)
from esm2_features.server.responses import Result, json_parts

_REPRESENTATIONS = {  # output: name in the answers of versions 1 and 2
    **{word: f"{word}_representations" for word in POOLING_OF},
    "per_token": "representations",
}
_EMBEDDINGS = {  # output: name in the answers of version 3, and name of its array
    **{word: (f"{word}_embeddings", "embedding") for word in POOLING_OF},
    "mean": ("embeddings", "embedding"),
    "per_token": ("per_token_embeddings", "embeddings"),
}
_HUB_EMBEDDINGS = _EMBEDDINGS | {"per_token": ("residue_embeddings", "embeddings")}


class Text(Strict):
    """The innermost part of a body of version 1."""

    text: StrictStr = Field(min_length=1, description="A protein in one-letter code.")


class Instance(Strict):
    """A sequence of version 1."""

    data: Text


class Instances(Strict):
    """The body of version 1."""

    instances: list[Instance] = Field(min_length=1)
    params: AnyParams = Field(default_factory=Params)

    @property
    def sequences(self) -> list[Item]:
        """The sequences, as in version 2."""
        return [Item.model_construct(sequence=one.data.text) for one in self.instances]

    @staticmethod
    def example(sequence: str) -> dict[str, Any]:
        """Return the body for one sequence."""
        return {"instances": [{"data": {"text": sequence}}]}


def _parts(
    number: int,
    request: FeatureRequest,
    results: list[Result],
    embeddings: dict[str, tuple[str, str]] = _EMBEDDINGS,
) -> Iterator[bytes]:
    """Write a JSON object with one list, which has an entry for each sequence."""
    yield b'{"predictions":[' if number == 1 else b'{"results":['
    for i, result in enumerate(results):
        entry: dict[str, Any] = {"name": str(i)} if number == 1 else {"sequence_index": i}
        if number == 3 and request.action != "encode":
            entry = {}
        if i:
            yield b","
        yield from json_parts(entry | _named(number, result, embeddings))
    yield b"]}"


def _named(number: int, result: Result, embeddings: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Rename the outputs for one sequence."""
    named: dict[str, Any] = {}
    for word, value in result.items():
        if word not in _REPRESENTATIONS:
            named["sequence_tokens" if word == "tokens" else word] = value
        elif number < 3:
            named[_REPRESENTATIONS[word]] = {str(layer): array for layer, array in value.items()}
        else:
            name, key = embeddings[word]
            named[name] = [{"layer": layer, key: array} for layer, array in value.items()]
    if "logits" in result:
        named["alphabet_tokens" if number < 3 else "vocab_tokens"] = VOCABULARY
    return named


VERSION_1 = ApiVersion(
    number=1,
    path="/api/v1/models/{model}/",
    operations={"predict": "encode", "transform": "encode"},
    body=Instances,
    parts=partial(_parts, 1),
)
VERSION_2 = ApiVersion(
    number=2,
    path="/api/v2/{model}/",
    operations={"encode": "encode", "predict": "predict"},
    body=Items,
    parts=partial(_parts, 2),
)
VERSION_3 = ApiVersion(
    number=3,
    path="/api/v3/{model}/",
    operations={"encode": "encode", "predict": "predict", "log_prob": "log_prob"},
    body=Items,
    parts=partial(_parts, 3),
)
HUB = ApiVersion(
    number="1 of the hub",
    path="/api/v1/{model}/",
    operations={**VERSION_3.operations, "score": "log_prob"},
    body=HubItems,
    parts=partial(_parts, 3, embeddings=_HUB_EMBEDDINGS),
)
