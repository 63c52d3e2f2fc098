"""Cells: what one value of a container is, of whichever library."""

from __future__ import annotations

import sys
from numbers import Number

import numpy as np


def is_missing(value: object) -> bool:
    """Whether a cell holds a missing value; words for one are told by their column."""
    if isinstance(value, str):
        return False
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, Number | np.datetime64 | np.timedelta64):
        return bool(value != value)
    if is_record(value):
        return is_missing(value.seq)  # type: ignore[attr-defined]
    return type(value).__name__ in ("NAType", "NaTType")


def is_record(value: object) -> bool:
    """Whether an object has a sequence as its ``.seq``, as Biopython's records have."""
    return hasattr(value, "seq")


def is_biopython_seq(value: object) -> bool:
    """Whether an object is Biopython's ``Seq``."""
    # Whoever made a Seq has imported its module.
    module = sys.modules.get("Bio.Seq")
    return module is not None and isinstance(value, module.Seq | module.MutableSeq)


def as_text(value: object) -> str:
    """Write a cell, of whatever type, or its record, as text."""
    if is_record(value):
        value = value.seq  # type: ignore[attr-defined]
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "surrogateescape")  # what is not ASCII is refused by name
    return str(value)


def text_of(value: object) -> str:
    """Give the text of a cell, or of its record; empty if it has none."""
    if is_record(value):
        value = value.seq  # type: ignore[attr-defined]
    is_text = isinstance(value, str | bytes | bytearray) or is_biopython_seq(value)
    try:
        return as_text(value) if is_text else ""
    except ValueError:  # a Seq of Biopython may know its length only
        return ""
