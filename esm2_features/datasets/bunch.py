"""Data sets in the shapes of scikit-learn's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from esm2_features.exceptions import import_optional


class Target(NamedTuple):
    """The column to predict."""

    name: str
    values: NDArray[Any]
    classes: list[str] | None = None  # None for a measured quantity


def text_array(cells: Any) -> NDArray[np.object_]:
    """Make an array of text, of shape (n,)."""
    return np.array(list(cells), dtype=object)


def make_bunch(
    source: Callable[..., Any],
    columns: dict[str, NDArray[Any]],
    target: Target,
    return_X_y: bool,
    as_frame: bool,
) -> Any:
    """Return what scikit-learn's data sets return; DESCR is the docstring of ``source``."""
    names: Sequence[str] = list(columns)
    data: Any
    values: Any = target.values
    frame = None
    if as_frame:
        purpose = f"{source.__name__}(as_frame=True)"
        pandas: Any = import_optional("pandas", extra="pandas", purpose=purpose)
        frame = pandas.DataFrame({**columns, target.name: target.values})
        data, values = frame[names], frame[target.name]
    else:
        data = np.empty((len(values), len(names)), dtype=object)
        for j, name in enumerate(names):
            data[:, j] = columns[name]
    if return_X_y:
        return data, values
    return Bunch(
        data=data,
        target=values,
        frame=frame,
        feature_names=names,
        target_names=target.classes or [target.name],
        DESCR=inspect.cleandoc(source.__doc__ or ""),
    )
