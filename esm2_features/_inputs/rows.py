"""Rows, and what messages call them: their number, and the label that the user knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from esm2_features.exceptions import shorten

_LABELS: ContextVar[Sequence[object] | None] = ContextVar("labels", default=None)
_LONGEST_SHOWN = 40


@contextmanager
def labelled(labels: Sequence[object] | None) -> Iterator[None]:
    """Let messages name rows by their labels, too; None if they have none."""
    token = _LABELS.set(labels)
    try:
        yield
    finally:
        _LABELS.reset(token)


def place_of(index: int, column: str | None = None) -> str:
    """Name the row and column of a cell, for a message."""
    labels = _LABELS.get()
    place = f"row {index}" + (f" of column {column!r}" if column is not None else "")
    if labels is None or index >= len(labels):
        return place
    return f"{place} (index {shorten(repr(_plain(labels[index])), _LONGEST_SHOWN)})"


def first_place(rows: Sequence[int], column: str | None = None) -> str:
    """Name the first of several rows, and count them."""
    others = f" (the first of {len(rows)})" if len(rows) > 1 else ""
    return place_of(rows[0], column) + others


def _plain(label: object) -> object:
    """Turn a scalar of NumPy into one of Python, which is shown without its type."""
    if isinstance(label, tuple):
        return tuple(map(_plain, label))
    return label.item() if hasattr(type(label), "dtype") and hasattr(label, "item") else label
