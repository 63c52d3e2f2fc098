"""The manifest: what a folder of shards is made of, and which shards are done.

    OUT/proteins-00000.parquet             a shard
    OUT/_manifest/job.json                 model, parameters, columns, inputs, versions
    OUT/_manifest/proteins-00000.done.json its rows and residues, its size and SHA-256
    OUT/_manifest/proteins-00001.failed.json   why there is none yet
    OUT/_manifest/proteins.source.json     how many shards the input has, once its end was seen

Several processes write here without a word between them: each file is written as a whole,
`job.json` by whoever is first, and all others by whoever has what they tell. Programs that read
folders of Parquet pass over names that begin with an underscore.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from esm2_features._files import atomic_write, remove_parts, sha256_of
from esm2_features.distributed.files import ENDING
from esm2_features.distributed.sources import InputFile
from esm2_features.exceptions import Esm2FeaturesError, InputError

FOLDER = "_manifest"
_FORMAT = 1
_COMPARED = ("model", "parameters", "columns")


@dataclass(frozen=True, slots=True)
class DoneShard:
    """A shard that is there."""

    name: str  # of its file, without the ending
    rows: int  # number of its sequences
    residues: int  # number of their residues
    input: str  # digest of the ids and sequences it was made of
    bytes: int  # size of its file
    sha256: str  # digest of its file, in hexadecimal
    seconds: float  # time it took to make it
    truncated: int  # number of sequences that were cut, as was asked for
    versions: dict[str, str]  # of this library, of Python and of what the numbers come from


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard, or the rest of an input, that was set aside.

    Attributes
    ----------
    name : str
        Of the shard, or of the input that could not be read to its end.
    path : str
        The input.
    row : int or None
        Row of the offending sequence in the input, from 0, where it is one.
    id : str or None
        Its id.
    position : int or None
        Position of the offending character in it, from 1, where it is one.
    error : str
        Name of the error.
    message : str
        What it says.
    """

    name: str
    path: str
    row: int | None
    id: str | None
    position: int | None
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class ReadSource:
    """An input whose end was seen."""

    stem: str
    records: int
    shards: int
    bytes: int  # size of the file
    changed: int  # time of its last change, in nanoseconds


class Manifest:
    """What is known of a folder of shards."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._folder = output / FOLDER

    # -------------------------------------------------------------- the job

    @cached_property
    def job(self) -> dict[str, Any]:
        """What was asked for."""
        path = self._folder / "job.json"
        found = _read(path)
        if found is None:
            raise InputError(
                f"{self.output} is no folder of shards: it has no {FOLDER}/{path.name}. Give the "
                "folder that `esm2-features embed IN OUT` has written."
            )
        if found.get("format") != _FORMAT:
            raise InputError(
                f"{self.output} has format {found.get('format')}, and this version of "
                f"esm2-features reads format {_FORMAT}. Upgrade it: pip install --upgrade "
                "esm2-features."
            )
        return found

    def begin(self, job: dict[str, Any], sources: Iterable[InputFile]) -> None:
        """Write down what is asked for; if something was asked for before, it must be the same."""
        inputs = [_input_of(source) for source in sources]
        self._make_folder()
        with atomic_write(self._folder / "job.json", once=True, sync=True) as file:
            file.write(_json({"format": _FORMAT, **job, "inputs": inputs}))
        there = self.job
        differences = [
            f"{name} was {old!r} and is {new!r}"
            for part in _COMPARED
            for name, old, new in _differences(part, there[part], job[part])
        ]
        names = [[one["file"] for one in some] for some in (there["inputs"], inputs)]
        if names[0] != names[1]:
            gone = sorted(set(names[0]) - set(names[1]))
            come = sorted(set(names[1]) - set(names[0]))
            differences.append(
                f"the inputs were {len(names[0])} files and are {len(names[1])}"
                + (f", without {_some(gone)}" if gone else "")
                + (f", with {_some(come)}" if come else "")
                + ("" if gone or come else ", in another order")
            )
        if differences:
            raise InputError(
                f"{self.output} was begun with something else: {'; '.join(differences)}. Repeat "
                "it with what it was begun with, or give another folder."
            )

    def _make_folder(self) -> None:
        output = self.output
        if output.exists() and not output.is_dir():
            raise InputError(
                f"{output} is a file, and shards go into a folder. Name a folder, or write one "
                "file: -o OUT.parquet."
            )
        if not output.parent.is_dir():
            raise InputError(f"There is no folder {output.parent} to write to. Make it first.")
        if output.is_dir() and not self._folder.is_dir() and any(output.iterdir()):
            odd = min(item.name for item in output.iterdir())
            raise InputError(
                f"{output} holds other things ({odd}, say). Choose a folder that is empty or does "
                "not exist yet."
            )
        self._folder.mkdir(parents=True, exist_ok=True)

    # -------------------------------------------------------------- shards

    def path_of(self, name: str) -> Path:
        """Say where a shard is."""
        return self.output / f"{name}{ENDING}"

    def done(self, name: str) -> DoneShard | None:
        """Look whether a shard is there."""
        found = _read(self._folder / f"{name}.done.json")
        if found is None:
            return None
        shard = DoneShard(**found)
        try:
            size = self.path_of(name).stat().st_size
        except FileNotFoundError:
            return None
        return shard if size == shard.bytes else None

    def add(self, shard: DoneShard) -> DoneShard:
        """Write down that the file of a shard is there."""
        path = self.path_of(shard.name)
        while True:
            before = path.stat()
            there = asdict(shard) | {"bytes": before.st_size, "sha256": sha256_of(path)}
            with atomic_write(self._folder / f"{shard.name}.done.json", sync=True) as file:
                file.write(_json(there))
            # Who computed the same shard at the same time may have replaced the file.
            after = path.stat()
            if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
                break
        self._forget(shard.name)
        remove_parts(path)
        return DoneShard(**there)

    def set_aside(self, failed: FailedShard) -> None:
        """Write down that a shard could not be made."""
        with atomic_write(self._folder / f"{failed.name}.failed.json", sync=True) as file:
            file.write(_json(asdict(failed)))

    def failed(self) -> list[FailedShard]:
        """List what was set aside, and has not been made since."""
        found = (_read(path) for path in sorted(self._folder.glob("*.failed.json")))
        return [FailedShard(**one) for one in found if one is not None]

    def _forget(self, name: str) -> None:
        (self._folder / f"{name}.failed.json").unlink(missing_ok=True)

    # -------------------------------------------------------------- sources

    def source(self, stem: str) -> ReadSource | None:
        """Say how much there is in an input, if that is known."""
        found = _read(self._folder / f"{stem}.source.json")
        return None if found is None else ReadSource(**found)

    def add_source(self, read: ReadSource) -> None:
        """Write down how much there is in an input."""
        if self.source(read.stem) != read:
            with atomic_write(self._folder / f"{read.stem}.source.json", sync=True) as file:
                file.write(_json(asdict(read)))
        self._forget(read.stem)

    def is_as_it_was(self, source: InputFile) -> bool:
        """Whether an input is, by size and time, the one that was seen before."""
        read = self.source(source.stem)
        if read is not None:
            return source.seen() == (read.bytes, read.changed)
        entry = self._inputs[source.stem]
        return source.seen() == (entry["bytes"], entry["changed"])

    @cached_property
    def _inputs(self) -> dict[str, dict[str, Any]]:
        return {one["stem"]: one for one in self.job["inputs"]}

    def shards(self) -> tuple[list[DoneShard], list[str]]:
        """List the shards in the order of the inputs."""
        done: list[DoneShard] = []
        missing: list[str] = []
        known = self._known()
        for one in self.job["inputs"]:
            stem = one["stem"]
            read = self.source(stem)
            if read is None:
                wanted = sorted(known.get(stem, ()))
                missing.append(f"the rest of {one['file']}")
            else:
                wanted = list(range(read.shards))
            for number in wanted:
                name = shard_name(stem, number)
                shard = self.done(name)
                if shard is None:
                    missing.append(name)
                else:
                    done.append(shard)
        return done, missing

    def _known(self) -> dict[str, list[int]]:
        """Numbers of the shards that have a record, by the stem of their source."""
        found: dict[str, list[int]] = {}
        for path in self._folder.glob("*.done.json"):
            stem, _, number = path.name.removesuffix(".done.json").rpartition("-")
            found.setdefault(stem, []).append(int(number))
        return found


def failure(
    name: str, path: Path, error: Exception, *, ids: Sequence[str] = (), first: int = 0
) -> FailedShard:
    """Take down why there is no shard."""
    row = getattr(error, "index", None)
    identifier = None if row is None or not ids else ids[row - first]
    position = getattr(error, "position", None)
    return FailedShard(name, str(path), row, identifier, position, type(error).__name__, str(error))


def shard_name(stem: str, number: int) -> str:
    """Name a shard: it needs no total, which is not known of a FASTA file."""
    return f"{stem}-{number:05d}"


def _input_of(source: InputFile) -> dict[str, Any]:
    size, changed = source.seen()
    path = str(source.path.absolute())
    return {
        "file": source.path.name,
        "path": path,
        "stem": source.stem,
        "bytes": size,
        "changed": changed,
    }


def _differences(
    part: str, old: dict[str, Any], new: dict[str, Any]
) -> list[tuple[str, object, object]]:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if part == "model" and "identity" in names:
        names = ["identity"] if "name" not in names else ["name"]
    elif part == "model":  # the same weights under another name
        names = []
    shown = {"name": "model", "identity": "digest of the model"} if part == "model" else {}
    return [(shown.get(name, name), old.get(name), new.get(name)) for name in names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(content)
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it is no object")
    return found


def _damaged(path: Path, reason: object) -> Esm2FeaturesError:
    return InputError(
        f"{path} is damaged ({reason}). Delete it, and repeat the command: what it tells is "
        "found out again."
    )
