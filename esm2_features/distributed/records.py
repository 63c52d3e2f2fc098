"""Records of a folder of shards: small JSON files with a digest of their own, checked when read.

Each record is a dataclass, whose fields are also the schema of its file. Fields that this version
does not know are ignored. Files of format 1 have no digest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from esm2_features._files import atomic_write
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features.distributed.sources import InputRange

FORMAT = 2
_MOST_SHARDS = 10**7
"""Shards of an input; more are a damaged record."""

Record = TypeVar("Record")


class FolderError(InputError):
    """Something in the folder of shards is in the way."""


class DamagedRecordError(FolderError):
    """A record that cannot be believed."""


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
    parameters: str = ""  # digest of the job's parameters; empty in format 1
    checksums: tuple[int, ...] = ()  # of parts of the file, see `files.checksums`

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

    def __post_init__(self) -> None:
        if self.shards > min(self.records, _MOST_SHARDS):
            raise ValueError(f"it has {self.shards} shards of {self.records} records")


@dataclass(frozen=True, slots=True)
class JobInput:
    """An input of a job. Without a size and a time, its shards have to be compared with it."""

    file: str
    path: str
    stem: str
    bytes: int | None
    changed: int | None

    def __post_init__(self) -> None:
        if not self.stem or self.stem[0] in "._" or set(self.stem) & set("/\\\0"):
            raise ValueError(f"'stem' is {self.stem!r}")


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    identity: str


@dataclass(frozen=True, slots=True)
class _Columns:
    vectors: tuple[str, ...]
    dim: int
    dtype: str
    with_sequence: bool

    def __post_init__(self) -> None:
        if not self.vectors or not self.dim or self.dtype not in ("float32", "float16"):
            raise ValueError(f"'columns' are {self.vectors}, of {self.dim} {self.dtype}")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What is computed, and of which inputs."""

    format: int
    model: _Model
    parameters: dict[str, Any]
    columns: _Columns
    versions: dict[str, str]
    inputs: tuple[JobInput, ...]

    def __post_init__(self) -> None:
        stems = [one.stem for one in self.inputs]
        if len(set(stems)) < len(stems):
            raise ValueError("two of its inputs have the same 'stem'")


def parameters_digest(job: dict[str, Any]) -> str:
    """Return the digest of what shards depend on beside their sequences, in hexadecimal."""
    parts = job["model"]["identity"], job["parameters"], job["columns"]
    return _digest(parts)


def write_record(path: Path, content: Any, *, once: bool = False) -> None:
    """Write a record, a dataclass or a dict, with its digest."""
    _check_file(path)
    content = content if isinstance(content, dict) else asdict(content)
    content = content | {"digest": _digest(content)}
    with atomic_write(path, once=once, sync=True) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def read_content(path: Path, *, has_digest: bool) -> dict[str, Any] | None:
    """Read the content of a record, without its digest; return None if there is no file."""
    _check_file(path)
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        version = content.get("format")
        if type(version) is int and version > FORMAT:
            return content  # whose digest may be made in another way
        digest = content.pop("digest", None)
        if digest != _digest(content) and (has_digest or version == FORMAT or digest is not None):
            raise ValueError("its digest is that of another content")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    return content


def read_record(path: Path, kind: type[Record], *, has_digest: bool) -> Record | None:
    """Read a record and check its fields; return None if there is no file."""
    content = read_content(path, has_digest=has_digest)
    return None if content is None else parse_record(path, kind, content)


def parse_record(path: Path, kind: type[Record], content: dict[str, Any]) -> Record:
    """Make a dataclass of the content of a record; raise DamagedRecordError if it does not fit."""
    try:
        record: Record = _parsed(kind, content, "it")
    except ValueError as error:
        raise _damaged(path, error) from error
    return record


def _check_file(path: Path) -> None:
    is_link_to_nothing = path.is_symlink() and not path.exists()
    if path.is_dir() or is_link_to_nothing:
        what = "link to nothing" if is_link_to_nothing else "folder"
        raise FolderError(
            f"{path} is a {what}, in the place of a file of the job. Move it to another place, and "
            "repeat the command that wrote the shards."
        )


def _parsed(kind: Any, value: Any, name: str) -> Any:
    """Convert a value of JSON to a type of a field, or raise ValueError."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None else _parsed(args[0], value, name)
    if is_dataclass(kind) and isinstance(value, dict):
        assert isinstance(kind, type)
        for field in fields(kind):
            if field.default is MISSING and field.name not in value:
                raise ValueError(f"it has no {field.name!r}")
        hints = {key: hint for key, hint in get_type_hints(kind).items() if key in value}
        return kind(**{key: _parsed(hint, value[key], key) for key, hint in hints.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(_parsed(args[0], one, name) for one in value)
    if origin is dict and isinstance(value, dict):
        return {key: _parsed(args[1], one, name) for key, one in value.items()}
    is_number = type(value) is int or (kind is float and type(value) is float)
    if kind in (int, float) and is_number and 0 <= value < 2**63:
        return value
    if kind in (str, bool, NoneType) and type(value) is kind:
        return value
    raise ValueError(f"{name!r} is {str(value)[:40]!r}")


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _damaged(path: Path, reason: object) -> DamagedRecordError:
    return DamagedRecordError(
        f"{path} is damaged, or was edited ({str(reason)[:100]}). Repeat the command that wrote "
        "the shards, with the same parameters: it compares what is finished, and writes the file "
        "again."
    )
