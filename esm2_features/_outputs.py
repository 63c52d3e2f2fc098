"""How features are written: one file for all sequences, or one for each.

    .npz      arrays id (n,), embedding (n, d) float32, feature (d,)
    .parquet  columns id and embedding (lists of d float32); names in the schema's metadata
    .csv      a column id and one for each feature; the numbers read back as the same float32
    .pt       a folder of one .pt for each sequence, as fair-esm's scripts/extract.py writes

`prepare` finds what is wrong with an output before hours of computing, `write` writes it. An
output is there as a whole or not at all: it grows under a temporary name in the same folder,
and takes its own name when it is complete.

Never here: where features come from.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO

from esm2_features.exceptions import InputError, import_optional

if TYPE_CHECKING:
    # Only for types: what this module says of formats is in the help, which has to be instant.
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("npz", "parquet", "csv", "pt")
"""Names of the formats; each is also its ending, after a dot."""

_NAMES_IN_EXTRACT = {"mean": "mean_representations", "cls": "bos_representations"}
"""The poolings that fair-esm's extract script has, and what it calls them in its files."""

_LONGEST_STEM = 200
"""Characters of a label in a file name: file systems end at 255, and numbers may follow."""

_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f]|^\.+" + (r'|[<>:"|?*]' if os.name == "nt" else ""))
"""What leads out of a folder, hides a file, or cannot be in its name (Windows knows more of it)."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of some sequences, and what they are features of.

    Attributes
    ----------
    ids : sequence of str
        One for each sequence, all different.
    labels : sequence of str
        The whole header of each, id included.
    values : ndarray of shape (n, layers x poolings x dim), float32
    names : sequence of str
        One for each column.
    layers : sequence of int
        Counted from 0, in the order of the columns.
    poolings : sequence of str
        In the order of the columns of one layer.
    """

    ids: Sequence[str]
    labels: Sequence[str]
    values: NDArray[np.float32]
    names: Sequence[str]
    layers: Sequence[int]
    poolings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Output:
    """A place that `prepare` found fit to be written to.

    Attributes
    ----------
    path : Path
        The file; the folder if the format is ``"pt"``.
    format : str
        One of `FORMATS`.
    force : bool
        Whether what is there may be replaced.
    """

    path: Path
    format: str
    force: bool = False


def prepare(
    path: str | os.PathLike[str],
    *,
    poolings: Iterable[str],
    format: str | None = None,  # noqa: A002 - the name of the option
    force: bool = False,
) -> Output:
    """Check, before anything is computed, that an output can be written.

    Parameters
    ----------
    path : str or path-like
        The file or, for ``.pt``, the folder.
    poolings : iterable of str
        What will be written: ``.pt`` has no place for some.
    format : str, optional
        One of `FORMATS`; by default it is told by the path's ending.
    force : bool, default=False
        Whether an output that is there already may be replaced.

    Returns
    -------
    output : Output

    Raises
    ------
    InputError
        If the ending says nothing, the folder is not there or may not be written to, the
        place is taken, or the format cannot hold the poolings.
    MissingDependencyError
        If the format needs a package that is not installed.
    """
    if os.fspath(path) == "-" or os.fspath(path).startswith(("/dev/", "/proc/")):
        raise InputError(
            f"The output {os.fspath(path)!r} is no file. Features are written as a whole, to a "
            "file or a folder with a name."
        )
    # A link stays a link: what it points to is replaced.
    place = Path(path).resolve()
    kind = format or _format_of(path)
    if kind == "pt":
        _check_extract_has(poolings)
    if kind == "parquet":
        _parquet()
    _check_folder(place.parent)
    if os.path.lexists(place):
        _check_replaceable(place, kind, force)
    return Output(place, kind, force)


def write(output: Output, features: Features) -> None:
    """Write features, completely or not at all.

    Parameters
    ----------
    output : Output
    features : Features

    Raises
    ------
    OSError
        If it cannot be written, for want of room, say; nothing is left behind then.
    """
    with _growing(output.path) as part:
        if output.format == "pt":
            part.mkdir()
            _write_pt(part, features)
        else:
            with part.open("xb") as file:
                _WRITERS[output.format](file, features)
        # Hours may have gone by since `prepare` looked.
        if os.path.lexists(output.path):
            _check_replaceable(output.path, output.format, output.force)


# ------------------------------------------------------------------ formats


def _write_npz(file: BinaryIO, features: Features) -> None:
    import numpy as np

    # Text of a fixed width, not objects: np.load refuses pickles, and rightly so.
    np.savez(
        file,
        id=np.array(features.ids, dtype=np.str_),
        embedding=features.values,
        feature=np.array(features.names, dtype=np.str_),
    )


def _write_parquet(file: BinaryIO, features: Features) -> None:
    import pyarrow as pa

    embedding = pa.FixedSizeListArray.from_arrays(
        pa.array(features.values.ravel()), features.values.shape[1]
    )
    table = pa.table({"id": pa.array(features.ids, pa.string()), "embedding": embedding})
    table = table.replace_schema_metadata({"feature_names": json.dumps(list(features.names))})
    # A dictionary of values that never repeat is only a detour.
    _parquet().write_table(table, file, use_dictionary=False)


def _write_csv(file: BinaryIO, features: Features) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *features.names])
    # The text of a float32 has as many digits as it takes to read the same float32 back.
    for identifier, row in zip(features.ids, features.values, strict=True):
        writer.writerow([identifier, *map(str, row)])
    text.flush()
    text.detach()


def _write_pt(folder: Path, features: Features) -> None:
    import torch

    n, layers, poolings = len(features.labels), features.layers, features.poolings
    vectors = features.values.reshape(n, len(layers), len(poolings), -1)
    for i, name in enumerate(file_names(features.labels)):
        contents: dict[str, object] = {"label": features.labels[i]}
        for j, pooling in enumerate(poolings):
            contents[_NAMES_IN_EXTRACT[pooling]] = {
                # Copied, because a view would be saved with all that it is a view of.
                layer: torch.tensor(vectors[i, k, j])
                for k, layer in enumerate(layers)
            }
        serialised = io.BytesIO()
        torch.save(contents, serialised)
        # Not by torch, which reports a full disk as a RuntimeError of its own.
        (folder / f"{name}.pt").write_bytes(serialised.getbuffer())


_WRITERS: dict[str, Callable[[BinaryIO, Features], None]] = {
    "npz": _write_npz,
    "parquet": _write_parquet,
    "csv": _write_csv,
}


def file_names(labels: Iterable[str]) -> list[str]:
    """Make a file name of each label, without an ending.

    A label that can be a file name stays as it is, as fair-esm would write it. Names differ
    even where a file system tells no upper from lower case.

    Parameters
    ----------
    labels : iterable of str
        All different.

    Returns
    -------
    names : list of str
        All different, none of which leads out of its folder or is hidden.

    Examples
    --------
    >>> file_names(["sp|P01308|INS_HUMAN", "../etc/passwd", "a/b", "a_b"])
    ['sp|P01308|INS_HUMAN', '___etc_passwd', 'a_b-2', 'a_b']
    """
    wanted = list(labels)
    stems = [_UNFIT.sub(lambda found: "_" * len(found[0]), label) for label in wanted]
    stems = [stem[:_LONGEST_STEM] for stem in stems]
    names, taken = [""] * len(stems), set[str]()
    # Labels that stay as they are come first, so that no other takes their name.
    for i in sorted(range(len(stems)), key=lambda i: stems[i] != wanted[i]):
        numbered = itertools.chain([stems[i]], (f"{stems[i]}-{k}" for k in itertools.count(2)))
        names[i] = next(name for name in numbered if name.casefold() not in taken)
        taken.add(names[i].casefold())
    return names


# ------------------------------------------------------------------ places


@contextmanager
def _growing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, and move what is there to ``path`` at the end."""
    # Not `tempfile`, whose files are their owner's only: an output has the usual permissions.
    part = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        if path.is_dir():  # a folder cannot be replaced in one step, so one is always there
            aside = path.rename(part.with_suffix(".old"))
            try:
                part.rename(path)
            except OSError:
                aside.rename(path)
                raise
            shutil.rmtree(aside)
        else:
            part.replace(path)
    except OSError as error:
        if error.filename is None:  # what a full disk says does not say where it is
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _format_of(path: str | os.PathLike[str]) -> str:
    ending = Path(path).suffix
    if ending[1:] in FORMATS:
        return ending[1:]
    endings = ", ".join(f".{name}" for name in FORMATS[:-1])
    raise InputError(
        f"The output {os.fspath(path)!r} ends in {ending!r}, which says no format. "
        f"Let it end in {endings} (a file) or .{FORMATS[-1]} (a folder), or name a format."
    )


def _check_extract_has(poolings: Iterable[str]) -> None:
    odd = [pooling for pooling in poolings if pooling not in _NAMES_IN_EXTRACT]
    if odd:
        raise InputError(
            f"The format pt is that of fair-esm's extract script, which has no place for the "
            f"pooling {', '.join(odd)}, only for {' and '.join(_NAMES_IN_EXTRACT)}. "
            "Choose one of these, or another format."
        )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f"There is no folder {folder} to write to. Make it first.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, so nothing can be written into it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} may not be written to. Choose another one.")


def _check_replaceable(place: Path, kind: str, force: bool) -> None:
    """Refuse to replace what was not asked for, and what was not written by `write`."""
    there = "a folder" if place.is_dir() else "a file" if place.is_file() else "no file"
    wanted = "a folder" if kind == "pt" else "a file"
    if there != wanted:
        raise InputError(
            f"{place} is {there}, and the format {kind} is {wanted}. Choose another name."
        )
    # To replace a folder is to delete it: never one that holds anything else.
    odd = [item.name for item in place.iterdir() if item.suffix != ".pt"] if kind == "pt" else []
    if odd:
        raise InputError(
            f"{place} holds other things than features ({min(odd)}, say), so it will not be "
            "replaced. Choose a folder that does not exist yet."
        )
    if not force:
        raise InputError(f"{place} exists already. Choose another name, or replace it: --force.")


def _parquet() -> ModuleType:
    return import_optional("pyarrow.parquet", extra="parquet", purpose="Writing Parquet")
