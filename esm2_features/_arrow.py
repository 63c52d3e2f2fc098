"""Vectors as Arrow's lists of a fixed size, and the import of PyArrow's Parquet."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from esm2_features.exceptions import import_optional

if TYPE_CHECKING:
    from numpy.typing import NDArray


def vector_column(rows: NDArray[Any]) -> Any:
    """Make a column of vectors, each a list of dim components, of an array of shape (n, dim)."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def import_parquet(purpose: str) -> ModuleType:
    """Import PyArrow's Parquet, or name the extra that installs it."""
    return import_optional("pyarrow.parquet", extra="parquet", purpose=purpose)
