"""Paths of outputs: checked before anything is computed, and written completely or not at all.

An output is a file or a folder of files. It grows under a temporary name in the same folder, and is
renamed when it is complete.
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
from esm2_features._io.cells import harmless
from esm2_features.exceptions import InputError

_FOLDERS = ("npy", "pt")
"""Formats that are folders of one file for each sequence."""

_INDEXED = ("npy", "png")
"""Formats whose files do not hold their id, so that their folder may have an index."""

_INDEX, _COLUMNS = "ids.csv", ("file", "id")

_LONGEST_STEM = 200
"""Most characters of a label in a file name: file systems allow 255, and numbers may follow."""

_UNFIT = re.compile(r"[/\\\x00-\x1f\x7f]|^\.+" + (r'|[<>:"|?*]' if os.name == "nt" else ""))
"""What would leave the folder, hide the file, or is not allowed in its name (more on Windows)."""


@dataclass(frozen=True, slots=True)
class Output:
    """A checked path for an output."""

    path: Path  # the file or the folder
    format: str  # one of the formats of the caller
    force: bool = False  # whether an existing output may be replaced
    is_folder: bool = False  # of files that all end in the name of the format


def check_output(
    path: str | os.PathLike[str],
    *,
    formats: Sequence[str],
    format: str | None = None,  # noqa: A002 - the name of the option
    force: bool = False,
    is_folder: bool | None = None,
) -> Output:
    """Check that an output can be written to a path."""
    if os.fspath(path) == "-" or os.fspath(path).startswith(("/dev/", "/proc/")):
        raise InputError(
            f"The output {os.fspath(path)!r} is no file. Results are written completely or not at "
            "all, so they need a file or a folder with a name."
        )
    target = _resolve(path)  # a link stays a link: what it points to is replaced
    chosen = format or _format_of(path, formats)
    output = Output(target, chosen, force, chosen in _FOLDERS if is_folder is None else is_folder)
    _check_folder(target.parent)
    if os.path.lexists(target):
        _check_replaceable(output)
    return output


def check_inputs(output: Path, *inputs: str, called: str = "OUT") -> None:
    """Raise InputError if writing the output would replace an input."""
    for path in inputs:
        if not (output.exists() and Path(path).exists()):
            continue
        if output.samefile(path) or _resolve(output) in _resolve(path).parents:
            relation = "" if output.samefile(path) else " the folder of"
            raise InputError(
                f"{called} is{relation} IN, {path}, which would be lost. Choose another name."
            )


def check_nesting(one: Path, other: Path) -> None:
    """Raise InputError if two outputs are the same, or one lies in the other."""
    if _resolve(one) == _resolve(other):
        raise InputError(f"Pictures and numbers have the same name, {one}. Choose another one.")
    for inner, outer in ((one, other), (other, one)):
        if _resolve(outer) in _resolve(inner).parents:
            raise InputError(
                f"Pictures and numbers: {inner} would be in {outer}, but each is replaced as a "
                "whole. Write them side by side."
            )


@contextmanager
def atomic_output(output: Output) -> Iterator[Path]:
    """Yield a temporary path beside an output, and rename it when the block has ended."""

    def check() -> None:  # hours may have passed since `check_output`
        if os.path.lexists(output.path):
            _check_replaceable(output)

    with atomic_path(output.path, folder=output.is_folder, check=check) as part:
        yield part


def file_names(labels: Iterable[str]) -> list[str]:
    """Make a file name of each label, without an ending.

    A label that can be a file name stays as it is, as in fair-esm's script. Names also differ on
    file systems that ignore case.
    """
    wanted = list(labels)
    stems = [_UNFIT.sub(lambda match: "_" * len(match[0]), label) for label in wanted]
    stems = [stem[:_LONGEST_STEM] for stem in stems]
    names, taken = [""] * len(stems), set[str]()
    # Labels that stay as they are come first, so that no other label takes their name.
    for i in sorted(range(len(stems)), key=lambda i: stems[i] != wanted[i]):
        numbered = itertools.chain([stems[i]], (f"{stems[i]}-{k}" for k in itertools.count(2)))
        names[i] = next(name for name in numbered if name.casefold() not in taken)
        taken.add(names[i].casefold())
    return names


def write_index(folder: Path, ids: Sequence[str], ending: str) -> list[str]:
    """Make `file_names` of ids; write which belongs to which id, unless all are the same."""
    names = file_names(ids)
    if names != list(ids):
        with (folder / _INDEX).open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(
                zip((f"{name}.{ending}" for name in names), map(harmless, ids), strict=True)
            )
    return names


def _resolve(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).resolve()
    except (RuntimeError, OSError) as error:  # a loop of links; the class depends on Python
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
        f"The output {os.fspath(path)!r} ends in {ending!r}, which is not a format. "
        f"Let it end in {remedy}."
    )


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise InputError(f"There is no folder {folder} to write to. Create it first.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, so nothing can be written into it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} may not be written to. Choose another one.")


def _check_replaceable(output: Output) -> None:
    """Raise InputError without ``force``, and if the existing path is no output of this kind."""
    path, ending = output.path, output.format
    existing = "a folder" if path.is_dir() else "a file" if path.is_file() else "no file"
    wanted = "a folder" if output.is_folder else "a file"
    if existing != wanted:
        raise InputError(
            f"{path} is {existing}, but the format {ending} is {wanted}. Choose another name."
        )
    # Replacing a folder deletes it, so it must not hold anything else.
    items = path.iterdir() if output.is_folder else ()
    odd = [
        f"the folder {item.name}" if item.is_dir() else item.name
        for item in items
        if not _is_part_of_output(item, ending)
    ]
    if odd:
        raise InputError(
            f"{path} holds other things than .{ending} files, such as {min(odd)}, so it is not "
            "replaced. Choose a folder that does not exist yet."
        )
    if not output.force:
        raise InputError(f"{path} exists already. Choose another name, or replace it: --force.")


def _is_part_of_output(item: Path, ending: str) -> bool:
    """Whether an item of a folder can be a file or the index of an output of this format."""
    if not item.is_file():  # a folder may hold anything, whatever its name
        return False
    if item.suffix == f".{ending}":
        return True
    if item.name != _INDEX or ending not in _INDEXED:
        return False
    with item.open(encoding="utf-8", errors="replace", newline="") as file:
        header, *rows = [tuple(row) for row in csv.reader(file)] or [()]
    return header == _COLUMNS and all(
        len(row) == 2 and Path(row[0]).name == row[0] and (item.parent / row[0]).is_file()
        for row in rows
    )
