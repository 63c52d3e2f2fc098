"""`Manifest`: how a folder of shards is made, and which shards are finished.

    OUT/proteins-00000.parquet             a shard
    OUT/_manifest/job.json                 model, parameters, columns, inputs, versions
    OUT/_manifest/proteins-00000.done.json its rows and residues, its size and SHA-256, and the
                                           records that were set aside
    OUT/_manifest/proteins-00001.failed.json   why it could not be computed
    OUT/_manifest/proteins.source.json     number of shards of an input, once its end was read

Several processes write here without talking to each other: each file is written as a whole,
`job.json` by the first process, the others by the process that has their content. Programs that
read folders of Parquet skip names that begin with an underscore.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from esm2_features._files import atomic_write, remove_parts, sha256_of
from esm2_features._inputs.messages import in_shell
from esm2_features.distributed.files import ENDING
from esm2_features.distributed.sources import InputFile, InputRange
from esm2_features.exceptions import InputError

FOLDER = "_manifest"
_FORMAT = 1
_COMPARED = ("model", "parameters", "columns")


@dataclass(frozen=True, slots=True)
class InvalidRecord:
    """A record that could not be embedded, and is not in its shard.

    Attributes
    ----------
    path, row : str, int
        The input, and the record's row in it, from 0.
    id : str
        Its id; empty if it has none.
    position : int or None
        Position of the invalid character, from 1, if there is one.
    error, message : str
        Name and text of the error.
    """

    path: str
    row: int
    id: str
    position: int | None
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class DoneShard:
    """A finished shard."""

    name: str  # of its file, without the ending
    rows: int
    residues: int
    input: str  # digest of its ids and sequences
    bytes: int  # size of its file
    sha256: str  # digest of its file, in hexadecimal
    seconds: float  # duration of its computation
    truncated: int  # number of sequences that were cut
    versions: dict[str, str]  # of Python and the libraries that computed it
    kept: str = ""  # digest of the ids and sequences without the invalid records
    invalid: tuple[InvalidRecord, ...] = ()  # records that were set aside

    def is_of(self, records: InputRange) -> bool:
        """Whether it was made of these records, as they are or with invalid ones corrected."""
        rows = {record.row for record in self.invalid}
        is_same = self.input == records.digest()
        return is_same or (bool(rows) and self.kept == records.digest(without=rows))


@dataclass(frozen=True, slots=True)
class FailedShard:
    """A shard that could not be computed, or an input that could not be read to its end.

    Attributes
    ----------
    name, path : str
        Name of the shard or of the input, and path of the input.
    row, id : int or None, str or None
        Row, from 0, and id of the invalid sequence in the input, if there is one.
    position : int or None
        Position of the invalid character in it, from 1, if there is one.
    error, message : str
        Name and text of the error.
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
    """An input that was read to its end."""

    stem: str
    records: int
    shards: int
    bytes: int
    changed: int  # time of the last change, in nanoseconds


class Manifest:
    """The records of a folder of shards."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._folder = output / FOLDER

    # -------------------------------------------------------------- the job

    @cached_property
    def job(self) -> dict[str, Any]:
        """Model, parameters, columns, inputs and versions."""
        path = self._folder / "job.json"
        job = _read(path)
        if job is None:
            raise InputError(
                f"{self.output} is no folder of shards: it has no {FOLDER}/{path.name}. Pass the "
                "folder that `esm2-features embed IN OUT` has written."
            )
        if job.get("format") != _FORMAT:
            raise InputError(
                f"{self.output} has format {job.get('format')}, and this version of "
                f"esm2-features reads format {_FORMAT}. Upgrade it: pip install --upgrade "
                "esm2-features."
            )
        return job

    def begin(self, job: dict[str, Any], sources: Iterable[InputFile]) -> None:
        """Write down the job; if there is one already, check that it is the same."""
        inputs = [_input_of(source) for source in sources]
        self._make_folder()
        self._write("job.json", {"format": _FORMAT, **job, "inputs": inputs}, once=True)
        before = self.job
        differences = [
            f"{name} was {old!r} and is {new!r}"
            for part in _COMPARED
            for name, old, new in _differences(part, before[part], job[part])
        ]
        old_names, new_names = ([one["file"] for one in of] for of in (before["inputs"], inputs))
        if old_names != new_names:
            removed = sorted(set(old_names) - set(new_names))
            added = sorted(set(new_names) - set(old_names))
            differences.append(
                f"the inputs were {len(old_names)} files and are {len(new_names)}"
                + (f", without {_some(removed)}" if removed else "")
                + (f", with {_some(added)}" if added else "")
                + ("" if removed or added else ", in another order")
            )
        if differences:
            raise InputError(
                f"{self.output} was begun with something else: {'; '.join(differences)}. Repeat "
                "the command with the same parameters and inputs, or choose another folder."
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
                f"{output} holds other files, such as {odd}. Choose a folder that is empty or does "
                "not exist yet."
            )
        self._folder.mkdir(parents=True, exist_ok=True)

    def _write(self, name: str, content: dict[str, Any], *, once: bool = False) -> None:
        with atomic_write(self._folder / name, once=once, sync=True) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    # -------------------------------------------------------------- shards

    def path_of(self, name: str) -> Path:
        """Return the path of a shard."""
        return self.output / f"{name}{ENDING}"

    def done(self, name: str) -> DoneShard | None:
        """Return the record of a shard if it is finished and its file is there, else None."""
        record = _read(self._folder / f"{name}.done.json")
        try:
            size = self.path_of(name).stat().st_size
        except FileNotFoundError:
            return None
        if record is None or record["bytes"] != size:
            return None
        invalid = tuple(InvalidRecord(**one) for one in record.get("invalid", ()))
        return DoneShard(**(record | {"invalid": invalid}))

    def add(self, shard: DoneShard) -> DoneShard:
        """Record that the file of a shard is finished; its size and digest are added."""
        path = self.path_of(shard.name)
        while True:
            before = path.stat()
            record = asdict(shard) | {"bytes": before.st_size, "sha256": sha256_of(path)}
            self._write(f"{shard.name}.done.json", record)
            # A process that computed the same shard may have replaced the file meanwhile.
            after = path.stat()
            if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
                break
        (self._folder / f"{shard.name}.failed.json").unlink(missing_ok=True)
        remove_parts(path)
        return replace(shard, bytes=record["bytes"], sha256=record["sha256"])

    def set_aside(self, failed: FailedShard) -> None:
        """Record that a shard could not be computed."""
        self._write(f"{failed.name}.failed.json", asdict(failed))

    def failed(self) -> list[FailedShard]:
        """List the shards that could not be computed, and have not been since."""
        records = (_read(path) for path in sorted(self._folder.glob("*.failed.json")))
        return [FailedShard(**record) for record in records if record is not None]

    # -------------------------------------------------------------- inputs

    def source(self, stem: str) -> ReadSource | None:
        """Return the size of an input, if it was read to its end."""
        record = _read(self._folder / f"{stem}.source.json")
        return None if record is None else ReadSource(**record)

    def add_source(self, read: ReadSource) -> None:
        """Record the size of an input."""
        if self.source(read.stem) != read:
            self._write(f"{read.stem}.source.json", asdict(read))
        (self._folder / f"{read.stem}.failed.json").unlink(missing_ok=True)

    def is_unchanged(self, source: InputFile) -> bool:
        """Whether size and time of an input are those of when it was last read."""
        read = self.source(source.stem)
        known = self._inputs[source.stem] if read is None else asdict(read)
        return source.stamp() == (known["bytes"], known["changed"])

    @cached_property
    def _inputs(self) -> dict[str, dict[str, Any]]:
        return {one["stem"]: one for one in self.job["inputs"]}

    def shards(self) -> tuple[list[DoneShard], list[str]]:
        """List the finished shards, in the order of the inputs, and the names of the missing."""
        done: list[DoneShard] = []
        missing: list[str] = []
        recorded = self._recorded()
        for one in self.job["inputs"]:
            stem = one["stem"]
            read = self.source(stem)
            if read is None:
                missing.append(f"the rest of {one['file']}")
            for number in sorted(recorded.get(stem, ())) if read is None else range(read.shards):
                name = shard_name(stem, number)
                shard = self.done(name)
                if shard is None:
                    missing.append(name)
                else:
                    done.append(shard)
        return done, missing

    def _recorded(self) -> dict[str, list[int]]:
        """Return the numbers of the shards that have a record, by the stem of their input."""
        numbers: dict[str, list[int]] = {}
        for path in self._folder.glob("*.done.json"):
            stem, _, number = path.name.removesuffix(".done.json").rpartition("-")
            numbers.setdefault(stem, []).append(int(number))
        return numbers


def failure(
    name: str, path: Path, error: Exception, *, ids: Sequence[str] = (), first: int = 0
) -> FailedShard:
    """Describe the error of a shard; ``first`` is the row of ``ids[0]``."""
    row = getattr(error, "index", None)
    identifier = None if row is None or not ids else ids[row - first]
    position = getattr(error, "position", None)
    return FailedShard(
        name, str(path), row, identifier, position, type(error).__name__, in_shell(error)
    )


def shard_name(stem: str, number: int) -> str:
    """Name a shard. The number of shards is not in it: of a FASTA file, it is not known yet."""
    return f"{stem}-{number:05d}"


def _input_of(source: InputFile) -> dict[str, Any]:
    size, changed = source.stamp()
    return {
        "file": source.path.name,
        "path": str(source.path.absolute()),
        "stem": source.stem,
        "bytes": size,
        "changed": changed,
    }


def _differences(
    part: str, old: dict[str, Any], new: dict[str, Any]
) -> list[tuple[str, object, object]]:
    if part == "model":
        if old["identity"] == new["identity"]:
            return []  # the same weights, perhaps under another name
        if old["name"] != new["name"]:
            return [("model", old["name"], new["name"])]
        return [("digest of the model", old["identity"], new["identity"])]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [(name, old.get(name), new.get(name)) for name in names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read(path: Path) -> dict[str, Any] | None:
    """Read a file of the manifest; return None if there is none."""
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}). Delete it, and repeat the command to write it again."
        ) from error
    return record
