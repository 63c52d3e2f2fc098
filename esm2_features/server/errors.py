"""What the server refuses, and the one shape in which it says so.

    {"error": "what is wrong, where, and how to mend it", "code": "too_long", "status": 422, ...}

``error`` is what clients of the hosted service look for; ``code`` is for programs; ``row`` (from 0)
and ``position`` (from 1) say where, if it is one sequence that is at fault.
"""

from __future__ import annotations

import json
import logging

from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    InvalidSequenceError,
    NumericalError,
    OutOfMemoryError,
    SequenceTooLongError,
)

_log = logging.getLogger("esm2_features.server")


class ApiError(Exception):
    """A request that is not answered."""

    def __init__(
        self,
        status: int,  # HTTP's
        code: str,  # what programs look at
        message: str,  # what people read: nothing of the machine's insides
        *,
        retry_after: int | None = None,  # seconds after which it may be tried again
        **where: int | str,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.where = where

    @property
    def body(self) -> bytes:
        """The answer, as JSON."""
        facts = {"error": str(self), "code": self.code, "status": self.status, **self.where}
        return json.dumps(facts).encode()  # in ASCII, whatever a request held

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with it."""
        found = {"content-type": "application/json"}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        return found


ERROR_SCHEMA = {
    "type": "object",
    "required": ["error", "code", "status"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong, where, and how to mend it."},
        "code": {"type": "string", "description": "The same for programs."},
        "status": {"type": "integer"},
        "row": {"type": "integer", "minimum": 0, "description": "The sequence at fault, from 0."},
        "position": {"type": "integer", "minimum": 1, "description": "Its character, from 1."},
        "limit": {"type": "integer", "description": "Residues that are taken at most."},
    },
}


def api_error_of(error: BaseException, *, model: str = "") -> ApiError:
    """Say of an error of the library what a client may know; the log gets all of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidSequenceError):
        return _invalid(error)
    if isinstance(error, SequenceTooLongError):
        return ApiError(
            422,
            "too_long",
            f"The sequence in row {error.index} has {error.length} residues; this server takes up "
            f"to {error.limit}. Split the protein into its domains.",
            row=error.index,
            limit=error.limit,
        )
    if isinstance(error, OutOfMemoryError):
        if error.length:
            return ApiError(
                413,
                "out_of_memory",
                f"A sequence of {error.length} residues does not fit into the memory of the "
                "server's device. Split the protein, or ask for less of it.",
            )
        _log.error("%s", error)
        return ApiError(
            503,
            "out_of_memory",
            f"The weights of {model} do not fit into the memory of the server's device. Ask for a "
            "smaller model.",
            retry_after=60,
        )
    if isinstance(error, CheckpointError):
        _log.error("%s", error)
        return ApiError(
            503,
            "model_unavailable",
            f"The weights of {model} cannot be loaded on this server, or lack what was asked for; "
            "its log says why. Ask for another model, or tell who runs the server.",
            retry_after=60,
        )
    if isinstance(error, NumericalError):
        _log.error("%s", error)
        return ApiError(
            500, "numerical_error", f"{model} gave infinities or NaN; the server's log says more."
        )
    if isinstance(error, InputError):
        index = getattr(error, "index", None)
        where = {} if index is None else {"row": int(index)}
        return ApiError(422, "invalid_input", str(error), **where)
    _log.error("An unforeseen error", exc_info=error)
    return ApiError(500, "internal_error", "The server failed; its log says why.")


def _invalid(error: InvalidSequenceError) -> ApiError:
    if error.position is None:
        return ApiError(
            422,
            "invalid_sequence",
            f"The sequence in row {error.index} is empty.",
            row=error.index,
        )
    return ApiError(
        422,
        "invalid_sequence",
        f"The sequence in row {error.index} holds {error.residue!r} at position {error.position}, "
        "which stands for no residue. ESM-2 knows the 20 amino acids, X, B, U, Z, O, and <mask>.",
        row=error.index,
        position=error.position,
    )
