"""Versions 1 and 2 of the hosted API: addresses, bodies and answers.

    POST /api/v1/models/{model}/{predict|transform}/
    POST /api/v2/{model}/{encode|predict}/

The published examples of version 1 have ``name`` and ``mean_representations`` only; its other
outputs have the names of version 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, StrictStr

from esm2_features._inputs.options import POOLING_OF
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import (
    AnyParams,
    ApiVersion,
    FeatureRequest,
    Item,
    Items,
    Params,
    Strict,
)
from esm2_features.server.responses import Result, json_parts

_BY_LAYER = {
    **{word: f"{word}_representations" for word in POOLING_OF},
    "per_token": "representations",
}


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


def _parts_v1(_: FeatureRequest, results: list[Result]) -> Iterator[bytes]:
    return json_parts(b'{"predictions":[', results, lambda i, r: {"name": str(i), **_named(r)})


def _parts_v2(_: FeatureRequest, results: list[Result]) -> Iterator[bytes]:
    return json_parts(b'{"results":[', results, lambda i, r: {"sequence_index": i, **_named(r)})


def _named(result: Result) -> dict[str, Any]:
    """Rename the outputs for one sequence."""
    written: dict[str, Any] = {}
    for word, value in result.items():
        if word in _BY_LAYER:
            written[_BY_LAYER[word]] = {str(layer): array for layer, array in value.items()}
        else:
            written["sequence_tokens" if word == "tokens" else word] = value
    if "logits" in result:
        written["alphabet_tokens"] = VOCABULARY
    return written


VERSION_1 = ApiVersion(
    number=1,
    path="/api/v1/models/{model}/",
    operations={"predict": "encode", "transform": "encode"},
    body=Instances,
    parts=_parts_v1,
)
VERSION_2 = ApiVersion(
    number=2,
    path="/api/v2/{model}/",
    operations={"encode": "encode", "predict": "predict"},
    body=Items,
    parts=_parts_v2,
)
