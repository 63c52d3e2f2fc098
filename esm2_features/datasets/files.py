"""Files of data sets: their folder, download and verification.

Size and SHA-256 of each decompressed table are pinned, not those of the file: a copy from elsewhere
and a newer archive of the same tables are valid, too.

A download goes into ``<file>.parts``, under a lock, so that processes that start
together fetch once; parts that are complete are not fetched again. The file gets its name when its
tables are proved.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from platformdirs import user_cache_path

from esm2_features._environment import is_offline
from esm2_features._files import atomic_write, download_lock, tell
from esm2_features.exceptions import DatasetError

HOST = "https://raw.githubusercontent.com"

_AT_ONCE = 8  # downloads of small parts
_CHUNK_BYTES = 1 << 16
_TIMEOUT_SECONDS = (10, 30)  # to connect, and of silence


@dataclass(frozen=True)
class Provider:
    """A source of the parts of a file."""

    repository: str  # on GitHub: ``owner/name``
    revision: str  # a commit or branch
    paths: tuple[str, ...]  # the parts, as paths in the repository

    def urls(self) -> list[str]:
        """Return the addresses of the parts."""
        return [f"{HOST}/{self.repository}/{self.revision}/{quote(path)}" for path in self.paths]

    def place(self) -> str:
        """Describe the source in a few words."""
        what, *more = self.paths
        if more:
            folders = sorted({path.rpartition("/")[0] or "the top folder" for path in self.paths})
            what = f"{len(self.paths)} files in {' and '.join(folders)}"
        return f"{what} of https://github.com/{self.repository} at {self.revision}"


class Pin(NamedTuple):
    """Size and digest of a table, decompressed."""

    size: int
    sha256: str


@dataclass(frozen=True)
class DataFile:
    """A file of tables, in the form that this library reads."""

    name: str  # its name: ``.csv.gz``, which holds one table, or ``.zip``, which holds several
    columns: tuple[str, ...]  # of each table, in this order
    # By the path in the ``.zip``; for a ``.csv.gz``, by ``""``.
    tables: Mapping[str, Pin]
    sources: tuple[Provider, ...]  # tried in this order
    # Makes the rows of the table from the parts of a source; None if the only part is the file.
    convert: Callable[[Sequence[Path]], Iterator[Sequence[str]]] | None
    size: str  # of the download, for people


def data_folder(data_home: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the data sets."""
    chosen = data_home or os.environ.get("ESM2_FEATURES_DATA")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("ESM2_FEATURES_HOME") or user_cache_path("esm2_features")
    return Path(home).expanduser() / "datasets"


def read_table(
    file: DataFile,
    table: str = "",
    *,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
) -> list[list[str]]:
    """Read a table, and download its file if it is missing."""
    folder = data_folder(data_home)
    path = folder / file.name
    if not path.is_file():
        if not download_if_missing:
            raise _missing(file, path, "download_if_missing=False forbids to fetch it")
        _fetch(file, path)
    try:
        content = _proved(file, table, path)
    except _WrongFileError as error:
        raise _error(
            file,
            path,
            f"{path} is not the published file: {error}. Delete it and run again to fetch it anew, "
            "or restore it from where it came from.",
        ) from error
    header, *rows = csv.reader(io.StringIO(content.decode("ascii")))
    assert tuple(header) == file.columns, "a digest was pinned for other columns"
    return rows


def csv_rows(file: Traversable) -> Iterator[dict[str, str]]:
    """Return the rows of a CSV file by the names of the columns."""
    return csv.DictReader(io.StringIO(file.read_text(encoding="ascii")))


def write_table(columns: Sequence[str], rows: Iterator[Sequence[str]], path: Path) -> None:
    """Write a ``.csv.gz`` whose bytes depend only on columns and rows."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="ascii", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


# ------------------------------------------------------------------ is it the right one?


class _WrongFileError(Exception):
    """A file is not the pinned one; the message names the difference."""


def _proved(file: DataFile, table: str, path: Path) -> bytes:
    """Return the bytes of a table; raise unless they are the pinned ones."""
    what = f"its table {table}" if table else "it"
    pin = file.tables[table]
    packed = io.BytesIO(path.read_bytes())  # trouble with the disk is not that of the content
    try:
        content = _unpacked(packed, path.suffix, table, pin.size + 1)
    except Exception as error:  # all is in memory: whatever is raised, the bytes are its cause
        why = str(error) or type(error).__name__
        raise _WrongFileError(f"{what} cannot be unpacked: {why}") from error
    if len(content) > pin.size:
        raise _WrongFileError(f"{what} has, unpacked, more than the {pin.size} bytes expected")
    found = hashlib.sha256(content).hexdigest()
    if found != pin.sha256:
        raise _WrongFileError(
            f"the sha256 of the {len(content)} bytes that {what} has, unpacked, is {found}, "
            f"expected {pin.sha256}"
        )
    return content


def _unpacked(packed: io.BytesIO, suffix: str, table: str, most: int) -> bytes:
    """Unpack the first ``most`` bytes of a table: a few bytes can unpack to gigabytes."""
    if suffix != ".zip":
        with gzip.open(packed) as unpacked:
            return unpacked.read(most)
    with zipfile.ZipFile(packed) as archive:
        method = archive.getinfo(table).compress_type
        if method not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            # bzip2 and LZMA, which zipfile knows too, it unpacks without a limit.
            raise NotImplementedError(f"compression method {method} is not read, only deflate")
        with archive.open(table) as unpacked:
            return unpacked.read(most)


# ------------------------------------------------------------------ fetching


def _fetch(file: DataFile, final: Path) -> None:
    """Download a file; only one process does."""
    if is_offline():
        raise _missing(file, final, "ESM2_FEATURES_OFFLINE forbids to download it")
    try:
        with download_lock(final):
            for source in file.sources:
                if final.is_file():  # another source had it, or another process was quicker
                    return
                try:
                    _fetch_from(file, source, final)
                except DatasetError as error:
                    if source is file.sources[-1]:
                        raise
                    tell(f"trying another address: {error}")
    except DatasetError:
        raise
    except OSError as error:
        raise _error(
            file,
            final,
            f"{final} cannot be written: {error}. Mend that, or set data_home= or the environment "
            "variable ESM2_FEATURES_DATA to a folder with room that this user may write to.",
        ) from error


def _fetch_from(file: DataFile, source: Provider, final: Path) -> None:
    parts = final.with_name(f"{final.name}.parts")
    tell(f"downloading {final.name} ({file.size}) from {source.place()} to {final}")
    paths = _download(file, source, final, parts)
    made = parts / final.name
    try:
        if file.convert is None:
            (made,) = paths
        else:
            write_table(file.columns, file.convert(paths), made)
        for table in file.tables:
            _proved(file, table, made)
    except (ValueError, LookupError, TypeError, csv.Error, _WrongFileError) as error:
        shutil.rmtree(parts)
        raise DatasetError(
            f"What came from {source.place()} is not what {final.name} is made from: {error}. It "
            f"was deleted, and nothing was written to {final}. Run again to start afresh; if that "
            "does not help, something on the way (a proxy?) changes it.",
            path=str(final),
            url=source.urls()[0],
        ) from error
    made.replace(final)
    shutil.rmtree(parts)


def _download(file: DataFile, source: Provider, final: Path, folder: Path) -> list[Path]:
    """Download the parts of a source into ``folder``, in order, except those that are there."""
    import requests
    from tqdm.auto import tqdm

    urls = source.urls()
    paths = [folder / f"{source.revision}-{path.replace('/', '-')}" for path in source.paths]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            fetched = pool.map(_download_part, urls, paths)
            return list(
                tqdm(fetched, total=len(urls), unit=" files", desc=final.name, disable=None)
            )
    except requests.RequestException as error:
        # Of "Max retries exceeded with url ... (Caused by ...)", the cause is what helps.
        cause = getattr(error.args[0], "reason", None) if error.args else None
        why = f"it could not be fetched ({cause or error})"
        raise _missing(file, final, why, kept=folder) from error


def _download_part(url: str, path: Path) -> Path:
    import requests

    if path.is_file():
        return path
    with requests.get(url, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        response.raise_for_status()
        response.raw.enforce_content_length = True  # old urllib3 takes a hang-up for the end
        with atomic_write(path) as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
    return path


def _missing(file: DataFile, final: Path, why: str, kept: Path | None = None) -> DatasetError:
    source = file.sources[0]
    by_hand = (
        f"load it once where there is a network (it is made from {source.place()}) and copy "
        "the file that this makes"
    )
    if file.convert is None:
        by_hand = f"fetch {source.urls()[0]} where there is a network and copy it there"
    resumed = ""
    if kept and any(kept.iterdir()):
        resumed = f" What has come is kept in {kept}: run again to go on."
    return _error(
        file,
        final,
        f"{final} is missing, and {why}.{resumed} To bring it by hand, {by_hand}; or set "
        "data_home= or the environment variable ESM2_FEATURES_DATA to a folder that has it.",
    )


def _error(file: DataFile, path: Path, message: str) -> DatasetError:
    return DatasetError(message, path=str(path), url=file.sources[0].urls()[0])
