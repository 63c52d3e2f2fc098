"""Responses of a server, read as vectors, or as errors that name our own rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inference.remote.connection import Response
from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.options import POOLING_OF
from esm2_features._inputs.rows import place_of
from esm2_features._inputs.views import SequenceView, positions_of
from esm2_features.exceptions import (
    InputError,
    InvalidSequenceError,
    NumericalError,
    OutOfMemoryError,
    SequenceTooLongError,
)

LayerPoolings = Sequence[tuple[int, str]]
"""Layer and pooling of each column."""

WORD_OF = {pooling: word for word, pooling in POOLING_OF.items()}
"""What the API calls a pooling."""
OF_RESIDUES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda x_RD: x_RD.mean(0),
    "max": lambda x_RD: x_RD.max(0),
    "std": lambda x_RD: x_RD.std(0),
}
"""Poolings that can be done here, where the residues are given."""


class UnreadableResponse(Exception):  # noqa: N818 - the end of a sentence
    """An answer that is none; its words end the sentence "The server answers ..."."""


def from_npz(
    answer: Response, n: int, columns: LayerPoolings, dim: int, about: Sequence[str]
) -> tuple[dict[str, str], NDArray[np.float32]]:
    """Read an answer of this library's server."""
    try:
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as arrays:
            server_info = {key: str(arrays[key]) for key in about}
            found = [
                np.asarray(arrays[f"{WORD_OF[pooling]}_{layer}"], np.float32)
                for layer, pooling in columns
            ]
    except Exception:  # zip, zlib and NumPy have error classes of their own
        raise UnreadableResponse("something else than vectors") from None
    if any(array.shape != (n, dim) for array in found):
        raise UnreadableResponse("vectors of another shape")
    return server_info, np.stack(found, axis=1)


def from_json(
    answer: Response,
    views: Sequence[SequenceView],
    columns: LayerPoolings,
    dim: int,
    by_residue: bool,
) -> NDArray[np.float32]:
    """Read an answer as the hosted service gives it."""
    results: Any = answer.json.get("results")
    vectors = np.empty((len(views), len(columns), dim), np.float32)
    try:
        for row, (result, view) in enumerate(zip(results, views, strict=True)):
            for column, (layer, pooling) in enumerate(columns):
                vector = _vector(result, view, layer, pooling, by_residue)
                if vector.shape != (dim,):  # which NumPy might broadcast
                    raise ValueError
                vectors[row, column] = vector
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnreadableResponse("something else than a vector for each sequence") from None
    return vectors


def _vector(
    result: dict[str, Any], view: SequenceView, layer: int, pooling: str, by_residue: bool
) -> NDArray[Any]:
    if pooling == "cls" or not by_residue:
        name = "bos_embeddings" if pooling == "cls" else "embeddings"
        return np.array(_by_layer(result[name])[layer]["embedding"], np.float32)
    name = "residue_embeddings" if "residue_embeddings" in result else "per_token_embeddings"
    residues = np.array(_by_layer(result[name])[layer]["embeddings"], np.float64)
    if len(residues) != len(view.sequence):  # with special tokens, say
        raise ValueError
    return OF_RESIDUES[pooling](residues[positions_of(view.spans)] if view.spans else residues)


def _by_layer(parts: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {part["layer"]: part for part in parts}


# ------------------------------------------------------------------ refusals


def refused(
    answer: Response, words: str, url: str, views: Sequence[SequenceView], numbers: Sequence[int]
) -> Exception | None:
    """Make the error of a refused request, in terms of our own rows."""
    said = answer.json
    if answer.status == 413 and said.get("code") == "out_of_memory":
        length = len(views[0].sequence)
        return OutOfMemoryError(
            f"The sequence in {place_of(numbers[0])}, of {length} residues, does not fit into the "
            f"memory of the device of {url}. What has come is in the cache, if there is one. Use a "
            'smaller model, or a lower max_residues with too_long="window" or '
            'too_long="truncate".',
            length=length,
            device=url,
        )
    if said.get("code") == "numerical_error":
        return NumericalError(f"{url}{words} Rows {listed(numbers)}; none of them was cached.")
    if answer.status not in (400, 422):
        return None
    at = said.get("row", _row_of_detail(said.get("detail")))
    if isinstance(at, int) and 0 <= at < len(views):
        return _of_row(said, words, url, numbers[at], views[at])
    return InputError(
        f"{url} refuses the sequences of the rows {listed(numbers)}, or what is asked of them "
        f"({answer.status}){words}"
    )


def _row_of_detail(detail: object) -> object:
    """Find the row in the first of pydantic's errors: ``"loc": ["body", "items", 1, ...]``."""
    match detail:
        case [{"loc": ["body", "items", row, *_]}, *_]:
            return row
    return None


def _of_row(said: dict[str, Any], words: str, url: str, row: int, view: SequenceView) -> InputError:
    """Name the row of the input, and not that of the request."""
    length, limit, place = len(view.sequence), said.get("limit"), said.get("position")
    if said.get("code") == "too_long" and isinstance(limit, int):
        return SequenceTooLongError(
            f"The sequence in {place_of(row)} has {length} residues, and {url} takes up to "
            f"{limit}. Start it with a larger --max-residues, or pass a lower max_residues= with "
            'too_long="truncate".',
            index=row,
            length=length,
            limit=limit,
        )
    start = f"{url} refuses the sequence in {place_of(row)}"
    end = f" (it counts rows of its own){words}"
    sent = view.sequence.replace(MASK, "<mask>")
    if isinstance(place, int) and 0 < place <= len(sent):
        residue = sent[place - 1]
        return InvalidSequenceError(
            f"{start}, for {residue!r} at position {place}{end}",
            index=row,
            position=place,
            residue=residue,
        )
    return InvalidSequenceError(start + end, index=row)


def listed(numbers: Sequence[int]) -> str:
    """Write the first few rows of a portion."""
    shown = ", ".join(str(number) for number in sorted(numbers)[:5])
    return shown if len(numbers) <= 5 else f"{shown}, ..."
