"""Rows of vectors, which may be larger than memory, and how they are scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from esm2_features._inputs.containers import labels_of
from esm2_features._inputs.rows import labelled, place_of
from esm2_features.exceptions import InputError

SCALES = ("standardize", "whiten")
METRICS = ("cosine", "euclidean")

_CHUNK_ROWS, _CHUNK_NUMBERS = 8192, 1 << 22
_LEAST_VARIANCE = 1e-8
"""Of a direction, as a part of the largest: what is below is rounding, and is not whitened."""


class Vectors:
    """An argument that holds a vector in each row; rows are read and checked in chunks."""

    def __init__(self, given: Any, name: str) -> None:
        self.name = name
        self.labels = labels_of(given)
        self.columns = list(map(str, getattr(given, "columns", ()))) if _is_frame(given) else None
        self._rows = _rows_of(given, name)
        shape = tuple(self._rows.shape)
        if len(shape) != 2 or not shape[1]:
            one = f" For a single vector, pass [{name}]." if len(shape) == 1 and shape[0] else ""
            raise InputError(
                f"Got {name} of shape {shape}; expected one vector in each row, of shape "
                f"(n, components).{one}"
            )
        self.shape: tuple[int, int] = int(shape[0]), int(shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def chunks(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield the first row of each chunk, and its vectors."""
        size = max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // self.shape[1]))
        for start in range(0, len(self), size):
            rows = np.asarray(self._rows[start : start + size])
            if rows.dtype.kind not in "fiub":
                raise TypeError(
                    f"Got {self.name} of type {rows.dtype}; expected numbers. Leave out columns of "
                    f"text, and convert numbers: {self.name}.astype(float)."
                )
            with np.errstate(over="ignore"):
                is_finite = np.isfinite(rows.astype(np.float32, copy=False))
            if not is_finite.all():
                row, component = np.argwhere(~is_finite)[0].tolist()
                raise InputError(
                    f"The vector in {self.place(start + row)} holds {rows[row, component]} in "
                    f"component {component}, which is no finite number of float32. Rows of NaN "
                    'come of missing sequences (on_missing="nan"): leave them out, with the mask '
                    f"np.isfinite({self.name}).all(axis=1)."
                )
            yield start, rows.astype(np.float64)

    def place(self, row: int) -> str:
        with labelled(self.labels):
            return f"{place_of(row)} of {self.name}"


class Scaling:
    """Moves and scales vectors as the targets want it, so that distances are Euclidean."""

    def __init__(self, targets: Vectors, scale: str | None, metric: str) -> None:
        n, width = targets.shape
        self.scale, self.is_cosine = scale, metric == "cosine"
        self.mean, self.deviation = np.zeros(width), np.ones(width)
        self.rotation: NDArray[np.float64] | None = None
        self.unit = 1.0  # of distances
        if scale is None and self.is_cosine:
            return
        least = {None: 1, "standardize": 2, "whiten": width + 1}[scale]
        if n < least:
            remedy = 'scale="standardize"' if scale == "whiten" and n > 1 else "scale=None"
            raise InputError(
                f'scale="{scale}" needs at least {least} targets of {width} components, and got '
                f"{n}: from fewer, all are at the same distance. Pass {remedy}."
            )
        scaler = StandardScaler()
        for _, rows in targets.chunks():
            scaler.partial_fit(rows)
        self.mean = scaler.mean_
        if scale is None:
            # Moved and scaled as a whole, which distances do not notice but float32 does.
            self.unit = float(np.sqrt(scaler.var_.mean())) or 1.0
            self.deviation = np.full(width, self.unit)
            return
        self.deviation = scaler.scale_
        if scale == "whiten":
            covariance = np.zeros((width, width))
            for _, rows in targets.chunks():
                standardized = self._standardized(rows)
                covariance += standardized.T @ standardized / n
            variances, directions = np.linalg.eigh(covariance)
            kept = variances > _LEAST_VARIANCE * variances[-1]
            if kept.any():
                self.rotation = directions[:, kept] / np.sqrt(variances[kept])

    @property
    def width(self) -> int:
        return len(self.mean) if self.rotation is None else self.rotation.shape[1]

    def transform(
        self, vectors: Vectors, start: int, rows: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Scale the rows of a chunk that begins with the row ``start``."""
        scaled = self._standardized(rows)
        if self.rotation is not None:
            scaled = scaled @ self.rotation
        if not self.is_cosine:
            return scaled
        norms = np.linalg.norm(scaled, axis=1, keepdims=True)
        # Zero is also refused before scaling: it stands for a sequence that is missing.
        is_zero = np.asarray(~rows.any(axis=1))
        lacking = np.flatnonzero(is_zero | (norms[:, 0] <= (0 if self.scale is None else 1e-10)))
        if len(lacking):
            row = int(lacking[0])
            what = (
                'is zero, as those of missing sequences are (on_missing="zero")'
                if is_zero[row]
                else "equals the mean of the targets"
            )
            raise InputError(
                f"The vector in {vectors.place(start + row)} {what}, so it has no direction, and "
                'no cosine to others. Leave it out, or pass metric="euclidean".'
            )
        return np.asarray(scaled / norms)

    def distances(self, squared: NDArray[np.float64]) -> NDArray[np.float32]:
        """Turn squared distances of scaled vectors into distances of the metric."""
        distances = squared / 2 if self.is_cosine else np.sqrt(squared) * self.unit
        return distances.astype(np.float32)

    def _standardized(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return (rows - self.mean) / self.deviation


def _is_frame(given: Any) -> bool:
    return hasattr(type(given), "columns") and hasattr(type(given), "to_numpy")


def _rows_of(given: Any, name: str) -> Any:
    """Give an array, or what is indexed like one and stays where it is."""
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        raise TypeError(
            f"Got a path as {name}. Open it: open_embeddings(path) for a folder of shards, "
            'np.load(path, mmap_mode="r") for a .npy file.'
        )
    if hasattr(type(given), "nnz"):
        raise TypeError(f"Got sparse data as {name}. Pass {name}.toarray().")
    is_pandas = hasattr(type(given), "iloc")
    if not _is_frame(given) and not is_pandas and len(getattr(given, "shape", ())) == 2:
        return given
    try:
        if _is_frame(given):
            options = {"dtype": np.float64, "na_value": np.nan} if is_pandas else {}
            return given.to_numpy(**options)
        return np.asarray(list(given) if np.ndim(given) == 1 else given)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Got {type(given).__name__} as {name}, which cannot be read as vectors ({error}). "
            "Pass an array of shape (n, components), or a frame with columns of numbers only."
        ) from error
