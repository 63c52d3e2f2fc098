"""`Manifest`: how a folder of shards is made, and which shards are finished.

    OUT/proteins-00000.parquet             a shard
    OUT/_manifest/job.json                 model, parameters, columns, inputs, versions
    OUT/_manifest/proteins-00000.done.json its rows and residues, its size and SHA-256, and the
                                           records that were set aside
    OUT/_manifest/proteins-00001.failed.json   why it could not be computed
    OUT/_manifest/proteins.source.json     number of shards of an input, once its end was read
    OUT/_manifest/left_over/               shards behind the end of an input, see `left_over`

Several processes write here without talking to each other: each file is written as a whole,
`job.json` by the first process, the others by the process that has their content. Programs that
read folders of Parquet skip names that begin with an underscore.

A shard has the digest of the job's parameters in its record and in its file. It belongs to a job of
the same digest only, whatever has happened to `job.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from esm2_features._files import remove_parts, sha256_of
from esm2_features._inputs.messages import in_shell
from esm2_features.distributed.files import ENDING, ShardFile, ShardTable, checksums
from esm2_features.distributed.records import (
    FORMAT,
    DamagedRecordError,
    DoneShard,
    FailedShard,
    FolderError,
    JobRecord,
    ReadSource,
    parameters_digest,
    parse_record,
    read_content,
    read_record,
    write_record,
)
from esm2_features.distributed.sources import InputFile
from esm2_features.exceptions import InputError

FOLDER = "_manifest"
COMPARED = ("model", "parameters", "columns")
"""Parts of a job that its shards depend on."""
_NAME = re.compile(r"(.+)-(\d{5,9})")


class Manifest:
    """The records of a folder of shards; ``is_read_only`` writes none."""

    def __init__(self, output: Path, *, is_read_only: bool = False) -> None:
        self.output = output
        self._is_read_only = is_read_only
        self.reasons: dict[str, str] = {}
        """What is wrong with shards and records that are missing because of damage, by name."""
        self._folder = output / FOLDER

    # -------------------------------------------------------------- the job

    @cached_property
    def job(self) -> dict[str, Any]:
        """Model, parameters, columns, inputs and versions."""
        job = self._read_job()
        if job is None:
            start = f"{self.output} is no folder of shards: it has no {FOLDER}/job.json."
            if any(self._folder.glob("*.done.json")):
                raise InputError(
                    f"{self.output}/{FOLDER}/job.json is missing. Repeat the command that wrote "
                    "the shards, with the same parameters: it compares what is finished, and "
                    "writes the file again."
                )
            raise InputError(
                f"{start} Pass the folder that `esm2-features embed IN OUT` has written."
            )
        return job

    def _read_job(self) -> dict[str, Any] | None:
        path = self._folder / "job.json"
        job = read_content(path, has_digest=False)  # the format tells
        if job is None:
            return None
        version = job.get("format")
        if type(version) is int and version > FORMAT:
            raise InputError(
                f"{self.output} has format {version}, and this version of esm2-features reads up "
                f"to format {FORMAT}. Upgrade it: pip install --upgrade esm2-features."
            )
        parse_record(path, JobRecord, job)
        return job

    @cached_property
    def digest(self) -> str:
        """Digest of the job's parameters; empty in format 1, whose shards have none."""
        return parameters_digest(self.job) if self.job["format"] > 1 else ""

    def begin(self, job: dict[str, Any], sources: Iterable[InputFile]) -> str | None:
        """Write down the job; if there is one already, check that it is the same.

        If its file is missing, damaged or of another job beside finished shards, these are compared
        with the job. Return a sentence about that.
        """
        inputs = [_input_of(source) for source in sources]
        self._make_folder()
        content = {"format": FORMAT, **job, "inputs": inputs}
        path, note = self._folder / "job.json", None
        try:
            before = self._read_job()
            state = "was missing" if before is None else ""
            if before is not None and _differences(before, job) and self._has_shards_of(job):
                state = "was that of another job"
        except DamagedRecordError:
            state = "was damaged"
        n = self._compare_shards(job) if state else 0
        # Again, because another process may have begun the same job meanwhile.
        if state and (state != "was missing" or self._read_job() is None):
            if n or state != "was missing":
                # Whether the inputs are those of these shards is not known: they are read again.
                for source in () if self._is_read_only else self._folder.glob("*.source.json"):
                    source.unlink(missing_ok=True)
                content["inputs"] = [one | {"bytes": None, "changed": None} for one in inputs]
                wrote = "" if self._is_read_only else ", and wrote it again"
                note = f"{path} {state}: compared {n} finished shards{wrote}."
            if self._is_read_only:
                self.job = content
            else:
                write_record(path, content, once=state == "was missing")
        before = self.job
        differences = _differences(before, job)
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
            raise self._begun_otherwise(differences)
        return note

    def _compare_shards(self, job: dict[str, Any]) -> int:
        """Check that all finished shards have the parameters of a job; return their number."""
        digest, n = parameters_digest(job), 0
        for record in self._records():
            path = self.path_of(record.name)
            if record.parameters != digest and path.exists():
                if not record.parameters:
                    raise InputError(
                        f"{self._folder}/job.json is missing or damaged, and an earlier version of "
                        f"esm2-features made {path.name}: it does not say with what. Choose "
                        "another folder."
                    )
                differences = self._differences_of(path, job)
                raise self._begun_otherwise([f"of {path.name}, {one}" for one in differences])
            n += 1
        return n

    def _has_shards_of(self, job: dict[str, Any]) -> bool:
        """Whether there are finished shards, all of which have the parameters of a job."""
        digests = {one.parameters for one in self._records() if self.path_of(one.name).exists()}
        return digests == {parameters_digest(job)}

    def _differences_of(self, path: Path, job: dict[str, Any]) -> list[str]:
        """Say how the parameters of a shard differ from those of a job."""
        try:
            with ShardFile(path) as file:
                differences = _differences(file.about["job"], job)
        except (OSError, ValueError, KeyError):  # it is damaged as well
            differences = []
        return differences or ["the parameters are others"]

    def _begun_otherwise(self, differences: list[str]) -> InputError:
        return InputError(
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
        names = [item.name for item in output.iterdir()] if output.is_dir() else []
        # Another process may make the folder of the manifest now, so it is looked for afterwards.
        if names and not self._folder.is_dir():
            raise InputError(
                f"{output} holds other files, such as {min(names)}. Choose a folder that is empty "
                "or does not exist yet."
            )
        if not self._is_read_only:
            self._folder.mkdir(parents=True, exist_ok=True)

    # -------------------------------------------------------------- shards

    def path_of(self, name: str) -> Path:
        """Return the path of a shard."""
        return self.output / f"{name}{ENDING}"

    def done(self, name: str, *, by_digest: bool = False) -> DoneShard | None:
        """Return the record of a shard if it is finished and its file is there, else None.

        The size of the file is compared, and its SHA-256 if ``by_digest``. `reasons` then tells
        what is wrong. Raises InputError if it was made with other parameters.
        """
        path = self.path_of(name)
        record: DoneShard | None
        try:
            record = self._read(f"{name}.done.json", DoneShard)
        except DamagedRecordError as error:
            self.reasons[name] = str(error)
            return None
        if path.is_dir():
            raise FolderError(
                f"{path} is a folder, in the place of a shard. Move it to another place, and "
                "repeat the command."
            )
        if record is None or not path.exists():
            return None
        if record.parameters != self.digest:
            differences = "; ".join(self._differences_of(path, self.job))
            raise FolderError(
                f"{path} is of another job: {differences}. Repeat the command that wrote the "
                f"shards; if {FOLDER}/job.json is right, move this one to another place before."
            )
        if record.name != name:
            self.reasons[name] = f"{path} has the record of another shard, {record.name}."
        elif path.stat().st_size != record.bytes or self._is_too_small(record):
            self.reasons[name] = f"{path} has another size than when it was written."
        elif by_digest and not self.is_intact(record):
            self.reasons[name] = f"{path} has changed since it was written."
        else:
            return record
        return None

    def is_intact(self, record: DoneShard) -> bool:
        """Whether the file of a shard is what its record says, by its SHA-256."""
        try:
            with self.open_shard(record):
                return sha256_of(self.path_of(record.name)) == record.sha256
        except (OSError, ValueError):
            return False

    def open_shard(self, record: DoneShard) -> ShardFile:
        """Open the file of a shard; raise ValueError or OSError if it is not what its record says.

        What is read from it is compared with its checksums.
        """
        file = ShardFile(self.path_of(record.name), record.checksums)
        about = {"identity": self.job["model"]["identity"]}
        if record.parameters:
            about |= {"digest": record.parameters, "shard": record.name}
        try:
            file.compare(self.schema, record.rows, about)
        except ValueError:
            file.close()
            raise
        return file

    @cached_property
    def schema(self) -> Any:
        """Columns of the shards, a schema of PyArrow."""
        return ShardTable(**self.job["columns"], about={}).schema()

    def _is_too_small(self, record: DoneShard) -> bool:
        """Whether a file has fewer bytes than its vectors, which are not compressed."""
        columns: dict[str, Any] = self.job["columns"]
        width: int = {"float32": 4, "float16": 2}[columns["dtype"]] * columns["dim"]
        least: int = record.rows * width * len(columns["vectors"])
        return least > record.bytes

    def add(self, shard: DoneShard) -> DoneShard:
        """Record that the file of a shard is finished; its size and digests are added."""
        path = self.path_of(shard.name)
        while True:
            before = path.stat()
            record = replace(
                shard, bytes=before.st_size, sha256=sha256_of(path), checksums=checksums(path)
            )
            write_record(self._folder / f"{shard.name}.done.json", record)
            # A process that computed the same shard may have replaced the file meanwhile.
            after = path.stat()
            if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
                break
        (self._folder / f"{shard.name}.failed.json").unlink(missing_ok=True)
        return record

    def remove_parts(self) -> None:
        """Remove the files that killed processes had begun to write."""
        for folder in (self.output, self._folder):
            remove_parts(folder)

    def set_aside(self, failed: FailedShard) -> None:
        """Record that a shard could not be computed."""
        if not self._is_read_only:
            write_record(self._folder / f"{failed.name}.failed.json", failed)

    def failed(self) -> list[FailedShard]:
        """List the shards that could not be computed, and have not been since."""
        paths = sorted(self._folder.glob("*.failed.json"))
        return [record for path in paths if (record := self._read_or_none(path.name, FailedShard))]

    def bytes(self) -> int:
        """Return the size of all finished shards, by their files."""
        return sum(path.stat().st_size for path in self.output.glob(f"*{ENDING}"))

    def _read(self, name: str, kind: type[Any]) -> Any:
        return read_record(self._folder / name, kind, has_digest=bool(self.digest))

    def _read_or_none(self, name: str, kind: type[Any]) -> Any:
        """Read a record that can be made again."""
        try:
            return self._read(name, kind)
        except DamagedRecordError as error:
            self.reasons[name] = str(error)
            return None

    def _records(self) -> Iterator[DoneShard]:
        """Read all records of finished shards that are not damaged, whatever their job."""
        for path in sorted(self._folder.glob("*.done.json")):
            try:
                record = read_record(path, DoneShard, has_digest=False)
            except DamagedRecordError:
                continue  # its shard is computed again
            if record is not None:
                yield record

    # -------------------------------------------------------------- inputs

    def source(self, stem: str) -> ReadSource | None:
        """Return the size of an input, if it was read to its end."""
        read: ReadSource | None = self._read_or_none(f"{stem}.source.json", ReadSource)
        return read if read is None or read.stem == stem else None

    def add_source(self, read: ReadSource) -> None:
        """Record the size of an input."""
        if self._is_read_only:
            return
        if self.source(read.stem) != read:
            write_record(self._folder / f"{read.stem}.source.json", read)
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
        recorded: dict[str, list[int]] = {}
        for path in self._folder.glob("*.done.json"):
            if place := place_of(path.name.removesuffix(".done.json")):
                recorded.setdefault(place[0], []).append(place[1])
        for one in self.job["inputs"]:
            stem = one["stem"]
            read = self.source(stem)
            if read is None:
                missing.append(f"the rest of {one['file']}")
            there = set(recorded.get(stem, ()))
            for number in sorted(there) if read is None else range(read.shards):
                name = shard_name(stem, number)
                shard = self.done(name) if number in there else None
                if shard is None:
                    missing.append(name)
                else:
                    done.append(shard)
        return done, missing


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


def place_of(name: str) -> tuple[str, int] | None:
    """Return the stem and the number in the name of a shard; None for other names."""
    found = _NAME.fullmatch(name)
    if found is None or shard_name(found[1], int(found[2])) != name:
        return None
    return found[1], int(found[2])


def _input_of(source: InputFile) -> dict[str, Any]:
    size, changed = source.stamp()
    return {
        "file": source.path.name,
        "path": str(source.path.absolute()),
        "stem": source.stem,
        "bytes": size,
        "changed": changed,
    }


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Say how two jobs differ in what their shards depend on."""
    found = []
    for part in COMPARED:
        for name in {**old[part], **new[part]}:
            one, other = old[part].get(name), new[part].get(name)
            if part == "model":
                if old[part]["identity"] == new[part]["identity"]:
                    continue  # the same weights, perhaps under another name
                if (name == "identity") == (old[part]["name"] != new[part]["name"]):
                    continue
            if one != other:
                named = {"identity": "digest of the model", "name": "model"}.get(name, name)
                found.append(f"{named} was {one!r} and is {other!r}")
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
