"""Files of one array for each sequence, written one at a time.

    .npz   an archive of arrays, each under its id; `numpy.load` reads one at a time
    .h5    a dataset for each id, in input order; attributes of the file describe them
    .npy   a folder of one .npy for each id; if an id cannot be the name of a file, ids.csv maps
           files to ids
    .pt    a folder of one .pt for each header, with the keys of fair-esm's scripts/extract.py

Nothing is compressed: most bits of such numbers are noise. In HDF5, a ``/`` in a name would make a
group, so the name of a dataset has ``%2F`` instead (and ``%25`` for ``%``; `urllib.parse.unquote`
gives the id), and its attributes ``id`` and ``original_id`` have the id itself.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esm2_features._io.features import save_pt
from esm2_features._io.hdf5 import check_h5, h5_name, write_h5
from esm2_features._io.paths import Output, atomic_output, check_output, file_names, write_index
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    # The command line imports this module for the names of formats, and must start quickly.
    import numpy as np
    from numpy.typing import NDArray

    _Each = Iterable[NDArray[np.float32]]

ARRAY_FORMATS = ("npz", "h5", "npy", "pt")
"""Names of the formats; each is also its ending, after a dot."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """Description of the arrays in a file."""

    # ``"residues"``, ``"logits"``, ``"log_probs"``, ``"contacts"`` or ``"attentions"``
    product: str
    ids: Sequence[str]  # one for each sequence, all different
    labels: Sequence[str]  # the whole header of each, id included
    model: str
    precision: str
    layers: Sequence[int] = ()  # along the first axis; () if the product has no layers
    tokens: Sequence[str] = ()  # along the last axis; () if it is neither tokens nor residues


def check_array_output(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the name of the option
    force: bool = False,
) -> Output:
    """Check, before anything is computed, that arrays can be written."""
    output = check_output(path, formats=ARRAY_FORMATS, format=format, force=force)
    if output.format == "h5":
        check_h5()
    return output


def check_ids(output: Output, ids: Iterable[str]) -> None:
    """Check, before anything is computed, that the names of arrays will differ."""
    if output.format != "npz":
        return
    known = set(ids)
    twins = [name for name in known if name + ".npy" in known]
    if twins:
        raise InputError(
            f"numpy.load cannot distinguish the ids {min(twins)!r} and {min(twins) + '.npy'!r}, "
            "because it drops the ending .npy. Rename one, or choose another format than npz."
        )


def write_arrays(output: Output, contents: Arrays, arrays: _Each) -> int:
    """Write an array for each id, one at a time, completely or not at all; return their number."""
    with atomic_output(output) as part:
        _WRITERS[output.format](part, contents, arrays)
    return len(contents.ids)


# ------------------------------------------------------------------ formats


def _write_npz(part: Path, contents: Arrays, arrays: _Each) -> None:
    import numpy as np

    # Not np.savez: it needs all arrays at once, and an id could be the name of its parameter.
    with zipfile.ZipFile(part, "x", allowZip64=True) as archive:
        for identifier, array in zip(contents.ids, arrays, strict=True):
            with archive.open(f"{identifier}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _write_npy(part: Path, contents: Arrays, arrays: _Each) -> None:
    import numpy as np

    for name, array in zip(write_index(part, contents.ids, "npy"), arrays, strict=True):
        rows = np.ascontiguousarray(array)
        # Not np.save, whose error on a full disk does not have the system's message.
        with (part / f"{name}.npy").open("xb") as file:
            header = np.lib.format.header_data_from_array_1_0(rows)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(rows.data)


def _write_pt(part: Path, contents: Arrays, arrays: _Each) -> None:
    import torch

    names = file_names(contents.labels)
    for label, name, array in zip(contents.labels, names, arrays, strict=True):
        values: object
        if contents.product == "residues":
            of_layers = array.reshape(len(contents.layers), *array.shape[-2:])
            # Copied: torch.save would write the whole array that a view belongs to.
            rows = zip(contents.layers, of_layers, strict=True)
            key, values = "representations", {layer: torch.tensor(row) for layer, row in rows}
        else:
            key, values = contents.product, torch.tensor(array)
        save_pt(part / f"{name}.pt", {"label": label, key: values})


def _write_h5(part: Path, contents: Arrays, arrays: _Each) -> None:
    from importlib.metadata import version

    attributes = {
        "product": contents.product,
        "model": contents.model,
        "precision": contents.precision,
        "esm2_features": version("esm2-features"),
        "layers": list(contents.layers),
        "tokens": list(contents.tokens),
    }
    names = map(h5_name, contents.ids)
    write_h5(part, attributes, zip(names, contents.ids, arrays, strict=True))


_WRITERS = {"npz": _write_npz, "h5": _write_h5, "npy": _write_npy, "pt": _write_pt}
