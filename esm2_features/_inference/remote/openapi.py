"""`encode_operation`: what the OpenAPI document of a hub says about a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from esm2_features._inference.remote.endpoint import HUB

_NODES = 100_000


class Operation(NamedTuple):
    """How a foreign server is asked for the vectors of a model."""

    path: str
    max_items: int  # sequences of a request
    per_residue: str  # the output that has a vector for each residue


def encode_operation(document: dict[str, Any], model: str) -> Operation | None:
    """Find the operation that computes vectors; None if there is none."""
    path = f"{HUB}/{model}/encode"
    try:
        found = document["paths"].get(path) or document["paths"][f"{path}/"]
        body = found["post"]["requestBody"]["content"]["application/json"]["schema"]
        schema = _without_references(body, document, iter(range(_NODES)))
        items = schema["properties"]["items"]
        max_items = max(1, int(items.get("maxItems", 1)))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, StopIteration):
        return None
    word = "per_residue" if "'per_residue'" in str(schema) else "per_token"
    return Operation(path, max_items, word)


def _without_references(node: Any, document: dict[str, Any], left: Iterator[int]) -> Any:
    """Replace each ``$ref`` of a JSON Schema by what it refers to, in so many nodes at most."""
    next(left)
    if isinstance(node, list):
        return [_without_references(part, document, left) for part in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target: Any = document
        for key in str(node["$ref"]).removeprefix("#/").split("/"):
            target = target[key]
        return _without_references(target, document, left)
    return {key: _without_references(part, document, left) for key, part in node.items()}
