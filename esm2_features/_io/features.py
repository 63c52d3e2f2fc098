"""Files of features: one for all sequences, or one for each.

.npz      arrays id (n,), embedding (n, d) float32, feature (d,)
.parquet  columns id and embedding (lists of d float32); names in the schema's metadata
.csv      a column id and one for each feature; the numbers read back as the same float32
.h5       a dataset (d,) for each sequence, named by its id, or by biotrainer's hash of it; the
          attribute original_id has the id
.pt       a folder of one .pt for each sequence, as fair-esm's scripts/extract.py writes
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from esm2_features._arrow import import_parquet, vector_column
from esm2_features._io.cells import harmless
from esm2_features._io.hdf5 import check_h5, h5_name, write_h5
from esm2_features._io.paths import Output, atomic_output, check_output, file_names
from esm2_features.exceptions import InputError, shorten

if TYPE_CHECKING:
    # The command line imports this module for the names of formats, and must start quickly.
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("npz", "parquet", "csv", "h5", "pt")
"""Names of the formats; each is also its ending, after a dot."""

H5_KEYS = ("id", "hash")
"""What a dataset of HDF5 can be named by."""

_MOST_NAMES = 1000
_MOST_ID_BYTES = 64 << 20
"""Bytes of the ids in an .npz, above which they must not be 10 times what their letters need."""

_NAMES_IN_EXTRACT = {"mean": "mean_representations", "cls": "bos_representations"}
"""The poolings of fair-esm's extract script, and their keys in its files."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of sequences, and the names of rows and columns."""

    ids: Sequence[str]  # one for each sequence, all different
    labels: Sequence[str]  # the whole header of each, id included
    values: NDArray[np.float32]
    names: Sequence[str]  # one for each column
    layers: Sequence[int]  # counted from 0, in the order of the columns
    poolings: Sequence[str]  # in the order of the columns of one layer
    sequences: Sequence[str] = ()  # as they are in the file, for hashes
    h5_keys: str = "id"  # one of `H5_KEYS`


def check_features_output(
    path: str | os.PathLike[str],
    *,
    poolings: Iterable[str],
    format: str | None = None,  # noqa: A002 - the name of the option
    force: bool = False,
) -> Output:
    """Check, before anything is computed, that features can be written."""
    output = check_output(path, formats=FORMATS, format=format, force=force)
    odd = [pooling for pooling in poolings if pooling not in _NAMES_IN_EXTRACT]
    if output.format == "pt" and odd:
        raise InputError(
            f"The format pt is that of fair-esm's extract script, which has no place for the "
            f"pooling {', '.join(odd)}, only for {' and '.join(_NAMES_IN_EXTRACT)}. "
            "Choose one of these, or another format."
        )
    if output.format == "parquet":
        import_parquet("Writing Parquet")
    if output.format == "h5":
        check_h5()
    return output


def check_feature_ids(output: Output, ids: Sequence[str]) -> None:
    """Check, before anything is computed, that ids fit into the array of an .npz.

    All of its items are as long as the longest one.
    """
    longest = max(ids, key=len)
    needed = 4 * len(longest) * len(ids)
    if output.format == "npz" and needed > max(_MOST_ID_BYTES, 40 * sum(map(len, ids))):
        raise InputError(
            f"The id {shorten(longest)!r} has {len(longest)} characters. An .npz gives every id "
            f"the room of the longest one, {needed >> 20} MB here. Shorten it (an id ends at "
            "the first white space of a header), or write .parquet or .csv."
        )


def write_features(output: Output, features: Features) -> None:
    """Write features, completely or not at all."""
    with atomic_output(output) as part:
        if output.is_folder:
            _write_pt(part, features)
        elif output.format == "h5":
            _write_features_h5(part, features)
        else:
            with part.open("xb") as file:
                _WRITERS[output.format](file, features)


# ------------------------------------------------------------------ formats


def _write_npz(file: BinaryIO, features: Features) -> None:
    import numpy as np

    # Text of a fixed width: np.load refuses arrays of objects, which are pickles.
    np.savez(
        file,
        id=np.array(features.ids, dtype=np.str_),
        embedding=features.values,
        feature=np.array(features.names, dtype=np.str_),
    )


def _write_parquet(file: BinaryIO, features: Features) -> None:
    import pyarrow as pa

    ids, embedding = pa.array(features.ids, pa.string()), vector_column(features.values)
    table = pa.table({"id": ids, "embedding": embedding})
    table = table.replace_schema_metadata({"feature_names": json.dumps(list(features.names))})
    # Values hardly repeat, so a dictionary would only make the file larger.
    import_parquet("Writing Parquet").write_table(table, file, use_dictionary=False)


def _write_csv(file: BinaryIO, features: Features) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *features.names])
    # str() of a float32 has enough digits to read the same float32 back.
    for identifier, row in zip(features.ids, features.values, strict=True):
        writer.writerow([harmless(identifier), *map(str, row)])
    text.flush()
    text.detach()


def _write_features_h5(part: Path, features: Features) -> None:
    from importlib.metadata import version

    attributes = {"feature_names": list(features.names), "esm2_features": version("esm2-features")}
    if len(features.names) > _MOST_NAMES:  # an attribute of HDF5 has at most 64 kB
        del attributes["feature_names"]
    names = [h5_name(identifier) for identifier in features.ids]
    rows = zip(names, features.ids, features.values, strict=True)
    if features.h5_keys == "hash":
        hashes = [sha256(f"{text}_{len(text)}".encode()).hexdigest() for text in features.sequences]
        # Records of one sequence have one dataset, under the id of the first.
        first = dict(reversed(list(zip(hashes, rows, strict=True))))
        rows = ((key, *first[key][1:]) for key in dict.fromkeys(hashes))  # type: ignore[assignment]
    write_h5(part, attributes, rows)


def _write_pt(folder: Path, features: Features) -> None:
    import torch

    n, layers, poolings = len(features.labels), features.layers, features.poolings
    vectors = features.values.reshape(n, len(layers), len(poolings), -1)
    for i, name in enumerate(file_names(features.labels)):
        contents: dict[str, object] = {"label": features.labels[i]}
        for j, pooling in enumerate(poolings):
            contents[_NAMES_IN_EXTRACT[pooling]] = {
                # Copied: torch.save would write the whole array that a view belongs to.
                layer: torch.tensor(vectors[i, k, j])
                for k, layer in enumerate(layers)
            }
        save_pt(folder / f"{name}.pt", contents)


def save_pt(path: Path, contents: dict[str, object]) -> None:
    """Write a file for `torch.load`."""
    import torch

    serialised = io.BytesIO()
    torch.save(contents, serialised)
    # torch.save reports a full disk as a RuntimeError, so Python writes the file.
    path.write_bytes(serialised.getbuffer())


_WRITERS = {"npz": _write_npz, "parquet": _write_parquet, "csv": _write_csv}
