"""The errors of the API: their codes, texts and JSON, and the errors of the library as such.

    {"error": "what is wrong, where, and how to fix it", "code": "too_long", "status": 422, ...}

Clients of the hosted service read ``error``; programs read ``code``. Where one sequence is wrong,
``row`` (from 0) and ``position`` (from 1) locate it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    InvalidSequenceError,
    MissingSequenceError,
    NumericalError,
    OutOfMemoryError,
    SequenceTooLongError,
)

_log = logging.getLogger("esm2_features.server")

ERRORS = {  # code: status, and text, which must not reveal paths or other internals of the machine
    "http_error": (400, "The request is not valid."),
    "invalid_json": (400, "The body is not JSON. {reason}."),
    "invalid_body": (400, "The body does not match its Content-Encoding."),
    "unauthorized": (
        401,
        "Send a token that this server knows, as Authorization: Token ... (or Bearer ...).",
    ),
    "wrong_host": (403, "Without tokens, this server answers to 127.0.0.1 and localhost only."),
    "not_found": (404, "There is nothing at this address."),
    "unknown_model": (
        404,
        "This server has no such model; GET /api/v3/models/ lists those that it has.",
    ),
    "unknown_action": (404, "There is no such action; version {version} has {actions}."),
    "method_not_allowed": (405, "This address does not support this method."),
    "not_acceptable": (406, "This server cannot write Arrow. Accept JSON or npz."),
    "body_timeout": (408, "The body did not arrive within {seconds:g} s."),
    "body_too_large": (413, "The body has more than {most} bytes. Send fewer sequences at a time."),
    "answer_too_large": (
        413,
        "The answer would hold {numbers} numbers; this server sends up to {most} at a time. Send "
        "fewer sequences, or request fewer outputs.",
    ),
    "needs_memory": (
        413,
        "The request needs {need:.0f} MB of memory; this server has {budget:.0f} MB for all "
        "requests, and {most:.0f} MB for one. Send fewer sequences, or request fewer outputs.",
    ),
    "out_of_memory": (
        413,
        "A sequence of {length} residues does not fit into the memory of the server's device. "
        "Split the protein, or request fewer outputs.",
    ),
    "unsupported_media_type": (415, "Send JSON, with Content-Type: application/json."),
    "unsupported_encoding": (
        415,
        "This Content-Encoding is not supported. Send the body as it is, or use gzip or deflate.",
    ),
    "invalid_request": (422, "{at}{reason}."),
    "invalid_input": (422, "{reason}"),
    "too_many_items": (
        422,
        "The request has {n} sequences; this server accepts up to {most} at a time. Send several "
        "requests.",
    ),
    "invalid_sequence": (
        422,
        "The sequence in row {row} holds {residue!r} at position {position}, which stands for no "
        "residue. ESM-2 knows the 20 amino acids, X, B, U, Z, O, and <mask>.",
    ),
    "too_long": (
        422,
        "The sequence in row {row} has {length} residues; this server accepts up to {limit}. Split "
        "the protein into its domains.",
    ),
    "no_mask": (
        422,
        "The sequence in row {row} has no <mask>, so there is nothing to predict. Put <mask> in "
        "the place of each residue to predict.",
    ),
    "masked": (
        422,
        "The sequence in row {row} has a <mask>, so it has no likelihood. Use residues only.",
    ),
    "no_such_layer": (
        422,
        "{model} has no layer {layer}: its representations are 0 (the embedding) to {depth}, and "
        "negative numbers count from the end, down to -{n}.",
    ),
    "no_parts": (
        422,
        "region and window are for encode, and for outputs that are one vector per sequence: "
        "{outputs}.",
    ),
    "no_contacts": (422, "{model} has no contact regression here. Leave out contacts."),
    "too_many_requests": (
        429,
        "More than {most} requests in {seconds:g} s. Send more sequences in each request, or fewer "
        "requests.",
    ),
    "client_gone": (499, "The client has disconnected."),
    "internal_error": (500, "The server failed; its log has the reason."),
    "numerical_error": (
        500,
        "{model} computed infinities or NaN; the server's log has the details.",
    ),
    "starting": (503, "The server is starting."),
    "stopping": (503, "The server is going down."),
    "busy": (503, "{n} requests are waiting already. Try again later."),
    "model_unavailable": (
        503,
        "The server cannot load the weights of {model}, or they lack what was requested; its log "
        "has the reason. Use another model, or tell whoever runs the server.",
    ),
    "timeout": (
        504,
        "There was no result within {seconds:g} s. What was computed is in the cache, if there is "
        "one: try again, with fewer sequences at a time.",
    ),
}
_WHERE = ("row", "position", "limit")


class ErrorBody(BaseModel):
    """The JSON of an error."""

    error: str = Field(description="What is wrong, where, and how to fix it.")
    code: str = Field(description="The error for programs; each status lists its codes.")
    status: int = Field(description="The HTTP status.")
    row: int | None = Field(None, ge=0, description="Row of the wrong sequence, from 0.")
    position: int | None = Field(None, ge=1, description="Position of its character, from 1.")
    limit: int | None = Field(None, description="Longest sequence that is allowed, in residues.")


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the errors of an operation for OpenAPI, by their codes."""
    return {
        status: {
            "model": ErrorBody,
            "description": ", ".join(code for code, (of, _) in ERRORS.items() if of == status),
        }
        for status in statuses
    }


class ApiError(Exception):
    """An error that is sent to the client: a code of the table, and the facts of its text."""

    def __init__(
        self,
        code: str,
        text: str | None = None,  # instead of that of the table
        *,
        status: int | None = None,  # instead of that of the table
        retry_after: int | None = None,  # seconds
        **facts: object,
    ) -> None:
        usual_status, usual_text = ERRORS[code]
        super().__init__((text or usual_text).format(**facts))
        self.status = status or usual_status
        self.code = code
        self.retry_after = retry_after
        self.where = {name: facts[name] for name in _WHERE if name in facts}

    def response(self) -> Response:
        """Return the error as an HTTP response."""
        facts = {"error": str(self), "code": self.code, "status": self.status, **self.where}
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        content = json.dumps(facts)  # ASCII, whatever characters the request had
        return Response(content, self.status, headers, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Make an application write every error in the same shape."""
    for kind in (HTTPException, ApiError, Exception):
        app.add_exception_handler(kind, _handle)


async def _handle(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return api_error_of(error).response()
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    response = ApiError(code, status=error.status_code).response()
    response.headers.update(error.headers or {})
    return response


def api_error_of(error: BaseException, *, model: str = "") -> ApiError:
    """Translate an error into what a client may know; log what it may not."""
    match error:
        case ApiError():
            return error
        case ClientDisconnect():
            return ApiError("client_gone")
        case OutOfMemoryError(length=length) if length:
            return ApiError("out_of_memory", length=length)
        case InputError():
            return _input_error(error)
    expected = isinstance(error, OutOfMemoryError | CheckpointError | NumericalError)
    _log.error("%s", error, exc_info=None if expected else error)
    match error:
        case OutOfMemoryError():
            text = (
                "The weights of {model} do not fit into the memory of the server's device. Use a "
                "smaller model."
            )
            return ApiError("out_of_memory", text, status=503, retry_after=60, model=model)
        case CheckpointError():
            return ApiError("model_unavailable", retry_after=60, model=model)
        case NumericalError():
            return ApiError("numerical_error", model=model)
    return ApiError("internal_error")


def _input_error(error: InputError) -> ApiError:
    match error:
        case MissingSequenceError(index=row):
            text = "The sequence in row {row} is a word that stands for a missing value."
            return ApiError("invalid_sequence", text, row=row)
        case InvalidSequenceError(index=row, position=None):
            return ApiError("invalid_sequence", "The sequence in row {row} is empty.", row=row)
        case InvalidSequenceError(index=row, position=position, residue=residue):
            return ApiError("invalid_sequence", row=row, position=position, residue=residue)
        case SequenceTooLongError(index=row, length=length, limit=limit):
            return ApiError("too_long", row=row, length=length, limit=limit)
    index = getattr(error, "index", None)
    where: dict[str, Any] = {} if index is None else {"row": int(index)}
    return ApiError("invalid_input", reason=error, **where)
