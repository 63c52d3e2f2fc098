"""Results as bytes: JSON, an Arrow stream, or npz, as the client accepts."""

from __future__ import annotations

import asyncio
import io
import re
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from esm2_features._arrow import vector_column
from esm2_features.exceptions import MissingDependencyError, import_optional
from esm2_features.server.errors import ApiError
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import COMPUTATIONS, ApiVersion, FeatureRequest

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
NPZ = "application/x-npz"
_MEDIA = {JSON: JSON, ARROW: ARROW}
_MEDIA |= dict.fromkeys((NPZ, "application/npz", "application/x-numpy-npz"), NPZ)
_TOKEN = re.compile("<mask>|.")

_SENT_AT_ONCE = 1 << 18
_SEND_SECONDS = 30.0
_SLOWEST = 1 << 18
"""A client has so many seconds, and one more for so many bytes, to take its answer."""
_NUMBERS_AT_ONCE = 1 << 14
_BATCH_BYTES = 1 << 23

Result = dict[str, Any]
"""The outputs for one sequence by name: an array, or a dictionary of arrays by layer."""


class StreamedResponse(Response):
    """An answer that is written while it is sent, and given up if the client is too slow.

    A thread writes it in small parts, so that neither the memory nor the event loop has to bear a
    large one.
    """

    def __init__(self, parts: Iterator[bytes], media_type: str, writer: Executor) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._parts, self._writer = _joined(parts), writer
        self._first: list[bytes] = []

    async def prepare(self) -> None:
        """Write the beginning, so that errors are raised before anything is sent."""
        self._first = [part for part in (await self._next(), await self._next()) if part]
        if len(self._first) < 2:
            self.headers["content-length"] = str(sum(map(len, self._first)))

    async def _next(self) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, next, self._parts, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the parts, as fast as the client takes them."""
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        latest = time.monotonic() + _SEND_SECONDS
        part = b" "
        while part:
            part = self._first.pop(0) if self._first else await self._next()
            latest += len(part) / _SLOWEST
            body = {"type": "http.response.body", "body": part, "more_body": bool(part)}
            try:
                async with asyncio.timeout(latest - time.monotonic()):
                    await send(body)
            except TimeoutError:
                raise ClientDisconnect from None


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Join small parts, and cut large ones."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        while len(buffer) >= _SENT_AT_ONCE:
            yield bytes(buffer[:_SENT_AT_ONCE])
            del buffer[:_SENT_AT_ONCE]
    if buffer:
        yield bytes(buffer)


def by_sequence(request: FeatureRequest, results: list[list[Any]]) -> list[Result]:
    """Group the results of all computations by sequence."""
    grouped: list[Result] = [{} for _ in request.sequences]
    for name, values in _by_output(request, results):
        for result, value in zip(grouped, values, strict=True):
            if name == "embed":  # an array of shape (layers, poolings, dim)
                for k, word in enumerate(request.poolings):
                    result[word] = {layer: value[i, k] for i, layer in enumerate(request.layers)}
            else:
                result[name] = value
    if request.action == "predict":
        for result, sequence in zip(grouped, request.sequences, strict=True):
            result["tokens"] = _TOKEN.findall(sequence)
    return grouped


def _by_output(
    request: FeatureRequest, results: list[list[Any]]
) -> Iterator[tuple[str, list[Any]]]:
    """Take computations of several outputs apart; the order is always the same."""
    found: dict[str, list[Any]] = {}
    for computation, values in zip(request.computations, results, strict=True):
        names = computation.name.split("+")
        for name in names:
            found[name] = [one[name] for one in values] if len(names) > 1 else values
    return ((name, found[name]) for name in COMPUTATIONS if name in found)


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


def json_parts(value: object) -> Iterator[bytes]:
    """Write JSON, large arrays in parts."""
    if isinstance(value, dict):
        yield b"{"
        for i, (key, one) in enumerate(value.items()):
            yield (b"," if i else b"") + as_json(str(key)) + b":"
            yield from json_parts(one)
        yield b"}"
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for i, one in enumerate(value):
            yield b"," if i else b"["
            yield from json_parts(one)
        yield b"]"
    elif isinstance(value, np.ndarray) and value.size > _NUMBERS_AT_ONCE:
        step = max(1, _NUMBERS_AT_ONCE // value[0].size)
        for start in range(0, len(value), step):
            yield (b"," if start else b"[") + as_json(value[start : start + step])[1:-1]
        yield b"]"
    else:
        yield as_json(value)


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
    file = _Pipe()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            yield file.taken()
    yield file.taken()


class _Pipe(io.RawIOBase):
    """A file that is written at one end, and taken from at the other."""

    def __init__(self) -> None:
        self._content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._content += data
        return len(data)

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        content, self._content = bytes(self._content), bytearray()
        return content


def _as_arrow(
    request: FeatureRequest, results: list[Result], about: dict[str, str]
) -> Iterator[bytes]:
    """Write an Arrow stream: a row for each sequence, with its number and length."""
    try:
        pa = import_optional("pyarrow", extra="parquet", purpose="An Arrow answer")
    except MissingDependencyError:
        raise ApiError("not_acceptable") from None
    schema = None
    file = _Pipe()
    names = {"model": request.model, "vocab_tokens": "".join(VOCABULARY)}
    for start, stop in _batches(results):
        columns: dict[str, Any] = {
            "index": pa.array(np.arange(start, stop, dtype=np.int32)),
            "length": pa.array(np.array(request.lengths[start:stop], np.int32)),
        }
        for name, values in _columns(request, results[start:stop]):
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
        table = pa.table(columns).replace_schema_metadata({**about, **names})
        if schema is None:
            schema = table.schema
            writer = pa.ipc.new_stream(file, schema)
        writer.write_table(table)
        yield file.taken()
    writer.close()
    yield file.taken()


def _batches(results: list[Result]) -> Iterator[tuple[int, int]]:
    """Divide the results into batches of a few megabytes."""
    start = size = 0
    for stop, result in enumerate(results, start=1):
        size += sum(
            array.nbytes
            for value in result.values()
            for array in (value.values() if isinstance(value, dict) else [value])
            if isinstance(array, np.ndarray)
        )
        if size >= _BATCH_BYTES or stop == len(results):
            yield start, stop
            start, size = stop, 0
