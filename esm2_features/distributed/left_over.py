"""Shards that are left over in a folder: behind the end of an input, or of another job.

Programs that read the folder as Parquet would read their rows, too. They are moved, never deleted:

    OUT/_manifest/left_over/proteins-00005.parquet.old       the file
    OUT/_manifest/left_over/proteins-00005.done.json.old     its record
    OUT/_manifest/left_over/proteins-00005.reason.json       why it was moved
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path

from esm2_features.distributed.files import ENDING, METADATA, ShardFile
from esm2_features.distributed.manifest import FOLDER, Manifest, place_of
from esm2_features.distributed.records import write_record

_RECORDS = (".done.json", ".failed.json")


def move_left_over(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Move the shards that are left over; return their names, and those of files of others."""
    moved, foreign = [], []
    ends = {
        one["stem"]: None if (read := manifest.source(one["stem"])) is None else read.shards
        for one in manifest.job["inputs"]
    }
    records = manifest.output / FOLDER
    files = {path.name.removesuffix(ENDING): path for path in _files(manifest.output, ENDING)}
    names = dict.fromkeys(files)
    for ending in _RECORDS:
        names |= dict.fromkeys(path.name.removesuffix(ending) for path in _files(records, ending))
    for name in sorted(names):
        place = place_of(name)
        if place is not None and place[0] in ends:
            end = ends[place[0]]
            if end is None or place[1] < end:
                continue
            reason = f"The input ends before it: it has {end} shards."
        elif name in files and not _is_ours(files[name]):
            foreign.append(files[name].name)
            continue
        elif name not in files:  # a record of an input that could not be read
            continue
        else:
            reason = "It belongs to no input of the job."
        _move(manifest, name, reason)
        moved.append(name)
    return moved, foreign


def _files(folder: Path, ending: str) -> list[Path]:
    """List the files that programs read: names that begin with a dot or underscore are skipped."""
    return [path for path in folder.glob(f"*{ending}") if path.name[0] not in "._"]


def _is_ours(path: Path) -> bool:
    try:
        with ShardFile(path) as file:
            return METADATA.encode() in (file.schema.metadata or {})
    except (OSError, ValueError):
        return False


def _move(manifest: Manifest, name: str, reason: str) -> None:
    """Move a file and its records; a name that is taken gets a number."""
    aside = manifest.output / FOLDER / "left_over"
    aside.mkdir(exist_ok=True)
    # The file first: if this is interrupted, its record is found the next time.
    for path in (
        manifest.path_of(name),
        *(manifest.output / FOLDER / f"{name}{ending}" for ending in _RECORDS),
    ):
        names = itertools.chain(["old"], (f"old{k}" for k in itertools.count(2)))
        to = next(to for word in names if not (to := aside / f"{path.name}.{word}").exists())
        with suppress(FileNotFoundError):  # there is none, or another process has moved it
            path.rename(to)
    write_record(aside / f"{name}.reason.json", {"name": name, "reason": reason})
