"""The description of the API, as OpenAPI has it: bodies, answers and errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from esm2_features.server.errors import ERROR_SCHEMA
from esm2_features.server.requests import request_schema
from esm2_features.server.responses import ARROW, JSON, NPZ
from esm2_features.server.settings import Settings

_EXAMPLE = "MKTAYIAKQRQISFVKSHFSRQ"
ASKED = (400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504)
"""Statuses that a request for computing may get, besides 200."""
_MEANINGS = {
    400: "The body cannot be read.",
    401: "A token is missing, or is not good.",
    403: "Without tokens, the server answers to its own machine only.",
    404: "There is no such model or action.",
    406: "This server does not give what is accepted.",
    408: "The body did not come in time.",
    413: "The body or the answer would be too large, or does not fit into memory.",
    415: "The body is not JSON, or compressed in a way that is not known.",
    422: "A sequence or a parameter is wrong; `row` and `position` say where.",
    429: "Too many requests; `Retry-After` says when to come again.",
    500: "The server failed.",
    503: "Too much waits, or the model cannot be loaded; `Retry-After` says when to come again.",
    504: "It took too long.",
}


def responses(
    meaning: str, *statuses: int, media: tuple[str, ...] = (JSON,)
) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of an operation."""
    found: dict[int | str, dict[str, Any]] = {
        status: {
            "description": _MEANINGS[status],
            "content": {JSON: {"schema": ERROR_SCHEMA}},
        }
        for status in statuses
    }
    content: dict[str, Any] = {
        kind: {"schema": {"type": "object"} if kind == JSON else {"type": "string"}}
        for kind in media
    }
    return {200: {"description": meaning, "content": content}, **found}


RESULTS = (JSON, ARROW, NPZ)
"""Types of the answers to requests for computing."""


def body(version: int, action: str, *, depth: int, settings: Settings) -> dict[str, Any]:
    """Describe the body of requests."""
    sequence = _EXAMPLE.replace("T", "<mask>", 1) if action == "predict" else _EXAMPLE
    example: dict[str, Any] = (
        {"instances": [{"data": {"text": sequence}}]}
        if version == 1
        else {"items": [{"sequence": sequence}]}
    )
    schema = request_schema(version, action, depth=depth, settings=settings)
    content = {JSON: {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> None:
    """Make the description, without what FastAPI would answer by itself, which it never does."""
    document = app.openapi()  # kept by the application
    for methods in document["paths"].values():
        for operation in methods.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    document.pop("components", None)
