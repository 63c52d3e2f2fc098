"""Rounding and checking of results, before they are used or kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.views import parse, shown
from esm2_features.exceptions import NumericalError


def round_vectors(vectors: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Round vectors to the dtype that they are kept in; too large numbers become infinite."""
    if dtype == "float32":
        return vectors
    with np.errstate(over="ignore"):
        return vectors.astype(dtype).astype(np.float32)


def check_finite(
    results: Any, views: Sequence[str], *, model: str, precision: str, dtype: str
) -> Any:
    """Give the results of a batch back, or raise NumericalError if one holds NaN or infinity."""
    if isinstance(results, np.ndarray) and np.isfinite(results).all():
        return results  # the usual case, all at once
    for view, result in zip(views, results, strict=True):
        arrays = result.values() if isinstance(result, dict) else [result]
        if not all(np.isfinite(array).all() for array in arrays):
            sequence = parse(view).sequence
            kept = f", kept in {dtype}," if dtype != "float32" else ""
            if precision == "float16":
                remedy = 'Numbers above 65,504 overflow: use precision="float32" or "bfloat16"'
                remedy += ', and cache_dtype="float32".' if kept else "."
            elif kept:
                remedy = f'Numbers above 65,504 overflow in {dtype}: use cache_dtype="float32".'
            else:
                remedy = "The weights are damaged: copy or download the checkpoint again."
            raise NumericalError(
                f"{model} gave infinities or NaN in {precision}{kept} for a sequence of "
                f"{len(sequence)} residues ({shown(sequence)!r}). Nothing of its batch was cached. "
                f"{remedy}"
            )
    return results
