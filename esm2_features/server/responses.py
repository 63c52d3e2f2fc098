"""What was computed, as bytes: JSON, an Arrow stream, or npz, as a client accepts it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._arrow import vector_column
from esm2_features.exceptions import MissingDependencyError, import_optional
from esm2_features.server.errors import ApiError
from esm2_features.server.models import VOCABULARY
from esm2_features.server.requests import FeatureRequest

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
NPZ = "application/x-npz"
_NPZ_TOO = ("application/x-npz", "application/npz", "application/x-numpy-npz")
_LETTER = re.compile("<mask>|.")

Found = dict[str, Any]
"""What was computed for one sequence: vectors and matrices by layer, or an array."""


def found_of(job: FeatureRequest, results: list[list[Any]]) -> list[Found]:
    """Sort what was computed by sequence."""
    many: list[Found] = [{} for _ in job.sequences]
    for kind, of_all in zip(job.kinds, results, strict=True):
        for found, result in zip(many, of_all, strict=True):
            if kind[0] == "embed":
                for k, word in enumerate(job.poolings):
                    found[word] = {layer: result[i, k] for i, layer in enumerate(job.layers)}
            elif kind[0] == "residues":
                found["per_token"] = result
            else:
                found[kind[0]] = result
    if job.action == "predict":
        for found, sequence in zip(many, job.sequences, strict=True):
            found["tokens"] = _LETTER.findall(sequence)
    return many


def media_type(accept: str | None) -> str:
    """Choose what to answer in: JSON, unless something else is asked for by name."""
    wanted: list[tuple[float, int, str]] = []
    for i, part in enumerate((accept or "").split(",")):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        kind = {JSON: JSON, ARROW: ARROW, **dict.fromkeys(_NPZ_TOO, NPZ)}.get(name)
        if kind is not None and (weight := _weight(parameters)) > 0:
            wanted.append((-weight, i, kind))
    return min(wanted)[2] if wanted else JSON


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def as_json(value: object) -> bytes:
    """Write JSON; arrays of float32 as the shortest numbers that are read back the same."""
    import orjson

    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def as_npz(job: FeatureRequest, many: list[Found], about: dict[str, str]) -> Iterator[bytes]:
    """Write an npz archive.

    Vectors of whole sequences are rows of one array, ``mean_33``; what has a row for each residue
    is an array for each sequence, ``per_token_33_0``, ``contacts_0``.
    """
    arrays: dict[str, NDArray[Any]] = {
        "length": np.array(job.lengths),
        **{word: np.array(value) for word, value in about.items()},
    }
    for word in many[0]:
        if word in job.poolings:
            for layer in job.layers:
                arrays[f"{word}_{layer}"] = np.stack([found[word][layer] for found in many])
        elif word == "log_prob":
            arrays[word] = np.array([found[word] for found in many])
        elif word != "tokens":
            arrays.update(_one_each(word, many))
    if "logits" in many[0]:
        arrays["vocab_tokens"] = np.array(VOCABULARY)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    yield file.getvalue()


def _one_each(word: str, many: list[Found]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for i, found in enumerate(many):
        if word == "per_token":
            for layer, array in found[word].items():
                yield f"{word}_{layer}_{i}", array
        else:
            yield f"{word}_{i}", found[word]


def as_arrow(job: FeatureRequest, many: list[Found], about: dict[str, str]) -> Iterator[bytes]:
    """Write an Arrow stream: a row for each sequence, with its number and length."""
    try:
        pa = import_optional("pyarrow", extra="parquet", purpose="An Arrow answer")
    except MissingDependencyError:
        raise ApiError(
            406, "not_acceptable", "This server gives no Arrow answers. Accept JSON or npz."
        ) from None
    columns: dict[str, Any] = {
        "index": pa.array(np.arange(len(many), dtype=np.int32)),
        "length": pa.array(np.array(job.lengths, np.int32)),
    }
    for word in many[0]:
        if word == "tokens":
            columns[word] = pa.array([found[word] for found in many], pa.list_(pa.string()))
        elif word in job.poolings:
            for layer in job.layers:
                rows = np.stack([found[word][layer] for found in many])
                columns[f"{word}_{layer}"] = vector_column(rows)
        elif word == "log_prob":
            columns[word] = pa.array(np.array([found[word] for found in many]))
        elif word == "per_token":
            for layer in job.layers:
                columns[f"{word}_{layer}"] = _ragged(pa, [found[word][layer] for found in many])
        else:
            columns[word] = _ragged(pa, [found[word] for found in many])
    names = {"model": job.model, "vocab_tokens": "".join(VOCABULARY)}
    table = pa.table(columns).replace_schema_metadata({**about, **names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    yield sink.getvalue().to_pybytes()


def _ragged(pa: Any, arrays: list[NDArray[np.float32]]) -> Any:
    ends = np.cumsum([0, *(array.size for array in arrays)])
    flat = np.concatenate([array.ravel() for array in arrays])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(flat))
