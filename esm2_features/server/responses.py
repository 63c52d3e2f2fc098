"""Results as bytes: JSON, an Arrow stream, or npz, as the client accepts."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from esm2_features._arrow import vector_column
from esm2_features.exceptions import MissingDependencyError, import_optional
from esm2_features.server.errors import ApiError
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import ApiVersion, FeatureRequest

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
NPZ = "application/x-npz"
_MEDIA = {JSON: JSON, ARROW: ARROW}
_MEDIA |= dict.fromkeys((NPZ, "application/npz", "application/x-numpy-npz"), NPZ)
_TOKEN = re.compile("<mask>|.")

_SENT_AT_ONCE = 1 << 18
_SEND_SECONDS = 60.0
"""Seconds in which a client has to take so many bytes."""

Result = dict[str, Any]
"""The outputs for one sequence by name: an array, or a dictionary of arrays by layer."""


class PartedResponse(Response):
    """An answer in parts, which is given up if the client does not take it."""

    def __init__(self, parts: Sequence[bytes], media_type: str) -> None:
        length = str(sum(map(len, parts)))
        super().__init__(media_type=media_type, headers={"content-length": length})
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the parts, as fast as the client takes them."""
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        try:
            for part in self._parts:
                for start in range(0, len(part), _SENT_AT_ONCE):
                    piece = part[start : start + _SENT_AT_ONCE]
                    async with asyncio.timeout(_SEND_SECONDS):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None
        await send({"type": "http.response.body", "body": b""})


def by_sequence(request: FeatureRequest, results: list[list[Any]]) -> list[Result]:
    """Group the results of all computations by sequence."""
    grouped: list[Result] = [{} for _ in request.sequences]
    for computation, values in zip(request.computations, results, strict=True):
        for result, value in zip(grouped, values, strict=True):
            if computation.name == "embed":  # an array of shape (layers, poolings, dim)
                for k, word in enumerate(request.poolings):
                    result[word] = {layer: value[i, k] for i, layer in enumerate(request.layers)}
            else:
                result[computation.name] = value
    if request.action == "predict":
        for result, sequence in zip(grouped, request.sequences, strict=True):
            result["tokens"] = _TOKEN.findall(sequence)
    return grouped


def media_type(accept: str | None) -> str:
    """Choose the format of the answer: JSON, unless another one is accepted by its name."""
    best = (0.0, JSON)
    for part in (accept or "").lower().split(","):
        name, _, parameters = part.partition(";")
        known = _MEDIA.get(name.strip())
        quality = re.search(r"(?:^|;)\s*q=(\d+(?:\.\d*)?)?", parameters)
        weight = 1.0 if quality is None else float(quality[1] or 0)
        if known is not None and weight > best[0]:
            best = (weight, known)
    return best[1]


def as_json(value: object) -> bytes:
    """Write JSON; float32 as the shortest numbers that are read back as the same float32."""
    import orjson

    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def write(
    media: str,
    version: ApiVersion,
    request: FeatureRequest,
    results: list[Result],
    about: dict[str, str],
) -> Iterator[bytes]:
    """Write the results in a format, in parts; ``about`` is what binary formats have besides."""
    if media == JSON:
        return version.parts(request, results)
    return (_as_arrow if media == ARROW else _as_npz)(request, results, about)


def _columns(request: FeatureRequest, results: list[Result]) -> Iterator[tuple[str, Any]]:
    """Name the outputs: arrays with a row per sequence, or lists with an array per sequence."""
    for word in results[0]:
        values = [result[word] for result in results]
        if word in request.poolings:
            for layer in request.layers:
                yield f"{word}_{layer}", np.stack([vectors[layer] for vectors in values])
        elif word == "per_token":
            for layer in request.layers:
                yield f"{word}_{layer}", [rows[layer] for rows in values]
        else:
            yield word, np.array(values) if word == "log_prob" else values


def _as_npz(
    request: FeatureRequest, results: list[Result], about: dict[str, str]
) -> Iterator[bytes]:
    """Write an npz archive.

    Vectors of whole sequences are the rows of one array, ``mean_33``; outputs with a row for each
    residue are one array per sequence, ``per_token_33_0``, ``contacts_0``.
    """
    arrays: dict[str, Any] = {"length": np.array(request.lengths)}
    arrays |= {name: np.array(value) for name, value in about.items()}
    for name, values in _columns(request, results):
        if isinstance(values, np.ndarray):
            arrays[name] = values
        elif name != "tokens":
            arrays |= {f"{name}_{i}": array for i, array in enumerate(values)}
    if "logits" in results[0]:
        arrays["vocab_tokens"] = np.array(VOCABULARY)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    yield file.getvalue()


def _as_arrow(
    request: FeatureRequest, results: list[Result], about: dict[str, str]
) -> Iterator[bytes]:
    """Write an Arrow stream: a row for each sequence, with its number and length."""
    try:
        pa = import_optional("pyarrow", extra="parquet", purpose="An Arrow answer")
    except MissingDependencyError:
        raise ApiError("not_acceptable") from None
    columns: dict[str, Any] = {
        "index": pa.array(np.arange(len(results), dtype=np.int32)),
        "length": pa.array(np.array(request.lengths, np.int32)),
    }
    for name, values in _columns(request, results):
        if name == "tokens":
            columns[name] = pa.array(values, pa.list_(pa.string()))
        elif isinstance(values, list):  # matrices of any length, flat
            ends = np.cumsum([0, *(array.size for array in values)])
            flat = np.concatenate([array.ravel() for array in values])
            columns[name] = pa.LargeListArray.from_arrays(
                pa.array(ends, pa.int64()), pa.array(flat)
            )
        elif values.ndim == 2:
            columns[name] = vector_column(values)
        else:
            columns[name] = pa.array(values)
    names = {"model": request.model, "vocab_tokens": "".join(VOCABULARY)}
    table = pa.table(columns).replace_schema_metadata({**about, **names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    yield sink.getvalue().to_pybytes()
