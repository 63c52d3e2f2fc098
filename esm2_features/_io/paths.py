"""Where an output goes: checked before hours of computing, and there when it is complete.

An output is a file, or a folder of files, as a whole or not at all: it grows under a temporary
name in the same folder, and takes its own name at the end.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esm2_features._files import atomic_path
from esm2_features.exceptions import InputError

_FOLDERS = ("npy", "pt")
"""Formats, of features and of other things, that are folders of one file for each sequence."""

_INDEXED = ("npy", "png")
"""Those of these whose files do not say what they are of: a folder of them may have an index."""

_INDEX, _COLUMNS = "ids.csv", ("file", "id")

_LONGEST_STEM = 200
"""Characters of a label in a file name: file systems end at 255, and numbers may follow."""

_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f]|^\.+" + (r'|[<>:"|?*]' if os.name == "nt" else ""))
"""What leads out of a folder, hides a file, or cannot be in its name (Windows knows more of it)."""


@dataclass(frozen=True, slots=True)
class Output:
    """A place that is fit to be written to."""

    path: Path  # the file or the folder
    format: str  # which of the formats of whoever writes
    force: bool = False  # whether what is there may be replaced
    # whether it is a folder, of files that all end in the name of the format
    is_folder: bool = False


def check_output(
    path: str | os.PathLike[str],
    *,
    formats: Sequence[str],
    format: str | None = None,  # noqa: A002 - the name of the option
    force: bool = False,
    is_folder: bool | None = None,
) -> Output:
    """Check that there is a place for an output."""
    if os.fspath(path) == "-" or os.fspath(path).startswith(("/dev/", "/proc/")):
        raise InputError(
            f"The output {os.fspath(path)!r} is no file. Results are written as a whole, to a "
            "file or a folder with a name."
        )
    # A link stays a link: what it points to is replaced.
    place = _resolved(path)
    kind = format or _format_of(path, formats)
    output = Output(place, kind, force, kind in _FOLDERS if is_folder is None else is_folder)
    _check_folder(place.parent)
    if os.path.lexists(place):
        _check_replaceable(output)
    return output


def check_inputs(output: Path, *inputs: str, called: str = "OUT") -> None:
    """Refuse to replace what is read."""
    for path in inputs:
        if not (output.exists() and Path(path).exists()):
            continue
        if output.samefile(path) or _resolved(output) in _resolved(path).parents:
            is_in = "" if output.samefile(path) else " the folder of"
            raise InputError(
                f"{called} is{is_in} IN, {path}, which would be lost. Choose another name."
            )


def check_nesting(one: Path, other: Path) -> None:
    """Refuse two outputs of which one is the other, or is in it, and would go with it."""
    first, second = _resolved(one), _resolved(other)
    if first == second:
        raise InputError(f"Pictures and numbers have the same name, {one}. Choose another one.")
    if first in second.parents or second in first.parents:
        inner, outer = (other, one) if first in second.parents else (one, other)
        raise InputError(
            f"Of pictures and numbers, {inner} would be in {outer}, and each is replaced as a "
            "whole. Give them places side by side."
        )


@contextmanager
def atomic_output(output: Output) -> Iterator[Path]:
    """Give a temporary name beside an output, and move what is there to its own at the end."""

    def check() -> None:  # hours may have gone by since `check_output` looked
        if os.path.lexists(output.path):
            _check_replaceable(output)

    with atomic_path(output.path, folder=output.is_folder, check=check) as part:
        yield part


def file_names(labels: Iterable[str]) -> list[str]:
    """Make a file name of each label, without an ending.

    A label that can be a file name stays as it is, as fair-esm would write it. Names differ
    even where a file system tells no upper from lower case.
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


def write_index(folder: Path, ids: Sequence[str], ending: str) -> None:
    """Write which file is of which id, unless all are called by their ids."""
    names = file_names(ids)
    if names == list(ids):
        return
    with (folder / _INDEX).open("x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(zip((f"{name}.{ending}" for name in names), ids, strict=True))


def _resolved(path: str | os.PathLike[str]) -> Path:
    """Follow links to the place that a path means."""
    try:
        return Path(path).resolve()
    except (RuntimeError, OSError) as error:  # which of them, depends on the version of Python
        raise InputError(
            f"{os.fspath(path)} leads nowhere ({error}). Remove the link, or choose another name."
        ) from error


def _format_of(path: str | os.PathLike[str], formats: Sequence[str]) -> str:
    ending = Path(path).suffix
    if ending[1:] in formats:
        return ending[1:]
    files = ", ".join(f".{name}" for name in formats if name not in _FOLDERS)
    folders = " or ".join(f".{name}" for name in formats if name in _FOLDERS)
    remedy = f"{files} (a file) or {folders} (a folder), or name a format" if folders else files
    raise InputError(
        f"The output {os.fspath(path)!r} ends in {ending!r}, which says no format. "
        f"Let it end in {remedy}."
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f"There is no folder {folder} to write to. Make it first.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, so nothing can be written into it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} may not be written to. Choose another one.")


def _check_replaceable(output: Output) -> None:
    """Refuse to replace what was not asked for, and what was not written from here."""
    place, kind = output.path, output.format
    there = "a folder" if place.is_dir() else "a file" if place.is_file() else "no file"
    wanted = "a folder" if output.is_folder else "a file"
    if there != wanted:
        raise InputError(
            f"{place} is {there}, and the format {kind} is {wanted}. Choose another name."
        )
    # To replace a folder is to delete it: never one that holds anything else.
    items = place.iterdir() if output.is_folder else ()
    odd = [
        f"the folder {item.name}" if item.is_dir() else item.name
        for item in items
        if not _is_from_here(item, kind)
    ]
    if odd:
        raise InputError(
            f"{place} holds other things than .{kind} files ({min(odd)}, say), so it will not be "
            "replaced. Choose a folder that does not exist yet."
        )
    if not output.force:
        raise InputError(f"{place} exists already. Choose another name, or replace it: --force.")


def _is_from_here(item: Path, kind: str) -> bool:
    """Whether something in a folder may have been written from here, as files of this format."""
    if not item.is_file():  # a folder, whatever it is called, may hold anything
        return False
    if item.suffix == f".{kind}":
        return True
    if item.name != _INDEX or kind not in _INDEXED:
        return False
    with item.open(encoding="utf-8", errors="replace", newline="") as file:
        header, *rows = [tuple(row) for row in csv.reader(file)] or [()]
    return header == _COLUMNS and all(
        len(row) == 2 and Path(row[0]).name == row[0] and (item.parent / row[0]).is_file()
        for row in rows
    )
