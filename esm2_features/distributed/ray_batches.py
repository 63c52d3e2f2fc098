"""`BatchEmbedder`: what Ray calls for each batch of a data set, in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esm2_features._arrow import vector_column
from esm2_features._inputs.cells import as_text
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    import pyarrow as pa


class BatchEmbedder:
    """Adds columns of vectors to tables; ``map_batches`` makes one in each actor."""

    def __init__(
        self, options: dict[str, Any], column: str, vectors: tuple[str, ...], dtype: str
    ) -> None:
        from esm2_features._engine import Engine

        self._engine = Engine(**options)
        self._column, self._vectors, self._dtype = column, vectors, dtype

    def __call__(self, table: pa.Table) -> pa.Table:
        import numpy as np

        from esm2_features.distributed.files import rounded

        if self._column not in table.column_names:
            raise InputError(
                f"The data set has no column {self._column!r}; its columns are "
                f"{', '.join(table.column_names)}. Choose one: sequence_column=."
            )
        taken = [name for name in self._vectors if name in table.column_names]
        if taken:
            raise InputError(f"The data set has a column {taken[0]!r} already. Rename it.")
        cells = table.column(self._column).to_pylist()
        sequences = [as_text(cell) if isinstance(cell, bytes) else cell for cell in cells]
        values = self._engine.embed(sequences)
        parts = np.split(values, len(self._vectors), axis=1)
        remedy = 'Pass dtype="float32".'
        for name, part in zip(self._vectors, parts, strict=True):
            kept = rounded(
                part, self._dtype, lambda row: f"the sequence {sequences[row][:60]!r}", remedy
            )
            table = table.append_column(name, vector_column(kept))
        return table
