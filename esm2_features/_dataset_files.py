"""Files of data sets: where they lie, how they are fetched, and whether they are the right ones.

A file is looked for in one folder, under one name, and fetched into it if it is not there. What is
pinned is the SHA-256 of each table in the file, decompressed, so that a copy that was made by other
means, and a newer archive with the same tables in it, are as good as a download.

A download goes into ``<file>.parts`` (by pooch), under a lock, so that processes that start
together fetch once; parts that are complete are not fetched again. The file gets its name when its
tables are proved.

Never here: what a column means, models, arrays.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from platformdirs import user_cache_path

from esm2_features.exceptions import DatasetError

HOST = "https://raw.githubusercontent.com"

_AT_ONCE = 8  # downloads of small parts
_TIMEOUT_SECONDS = (10, 30)  # to connect, and of silence


@dataclass(frozen=True)
class Source:
    """One place that the parts of a file can be had from.

    Attributes
    ----------
    repository, revision : str
        Of GitHub: ``owner/name``, and a commit or branch.
    paths : tuple of str
        The parts, as paths in the repository.
    """

    repository: str
    revision: str
    paths: tuple[str, ...]

    def urls(self) -> list[str]:
        """Give the addresses of the parts."""
        return [f"{HOST}/{self.repository}/{self.revision}/{quote(path)}" for path in self.paths]


@dataclass(frozen=True)
class DataFile:
    """A file of tables, in the form that this library reads.

    Attributes
    ----------
    name : str
        Its name: ``.csv.gz``, which holds one table, or ``.zip``, which holds several.
    columns : tuple of str
        Of each table, in this order.
    sha256 : mapping of str to str
        For each table, the digest of its bytes, decompressed. A key is the path in the ``.zip``;
        that of the one table of a ``.csv.gz`` is ``""``.
    sources : tuple of Source
        Where it can be fetched from; the first that gives the right tables is taken.
    convert : callable or None
        Makes the rows of the table, in order, from the parts of a source. None if the only part is
        the file itself.
    size : str
        What a download takes, to be read by people.
    """

    name: str
    columns: tuple[str, ...]
    sha256: Mapping[str, str]
    sources: tuple[Source, ...]
    convert: Callable[[Sequence[Path]], Iterator[Sequence[str]]] | None
    size: str


def data_folder(data_home: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the data sets.

    Parameters
    ----------
    data_home : path, optional
        The caller's choice. By default ``$ESM2_FEATURES_DATA``; if that is not set,
        ``$ESM2_FEATURES_HOME/datasets``; if neither is, a folder in the user's cache folder.

    Returns
    -------
    folder : Path
        It may not exist.
    """
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
    """Read a table, and fetch its file if it is not there.

    Parameters
    ----------
    file : DataFile
    table : str, default=""
        One of the keys of ``file.sha256``.
    data_home : path, optional
        See `data_folder`.
    download_if_missing : bool, default=True

    Returns
    -------
    rows : list of list of str
        The cells of each row, without the header; their text is exactly the pinned one.

    Raises
    ------
    DatasetError
        If the file is missing and must not or cannot be fetched, or is not the right one.
    """
    folder = data_folder(data_home)
    path = folder / file.name
    if not path.is_file():
        if not download_if_missing:
            raise _missing(file, path, "download_if_missing=False forbids to fetch it")
        _fetch(file, path)
    try:
        content = _proved(file, table, path)
    except _WrongFileError as error:
        raise DatasetError(
            f"{path} is not the published file: {error}. Delete it and run again to fetch it anew, "
            "or restore it from where it came from.",
            path=str(path),
            url=file.sources[0].urls()[0],
        ) from error
    header, *rows = csv.reader(io.StringIO(content.decode("ascii")))
    assert tuple(header) == file.columns, "a digest was pinned for other columns"
    return rows


def write_table(columns: Sequence[str], rows: Iterator[Sequence[str]], path: Path) -> None:
    """Write a ``.csv.gz`` whose bytes depend on nothing but the rows.

    Parameters
    ----------
    columns : sequence of str
    rows : iterator of sequence of str
    path : Path
    """
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
    """A file is not the pinned one; the message says in what."""


def _proved(file: DataFile, table: str, path: Path) -> bytes:
    """Give the bytes of a table, if they are the pinned ones."""
    what = f"its table {table}" if table else "it"
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                content = archive.read(table)
        else:
            with gzip.open(path) as packed:
                content = packed.read()
    except (EOFError, KeyError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise _WrongFileError(f"{what} cannot be unpacked: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256[table]:
        raise _WrongFileError(
            f"the sha256 of the {len(content)} bytes that {what} has, unpacked, is {found}, "
            f"expected {file.sha256[table]}"
        )
    return content


# ------------------------------------------------------------------ fetching


def _fetch(file: DataFile, final: Path) -> None:
    """Download a file, once among all processes."""
    if os.environ.get("ESM2_FEATURES_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}:
        raise _missing(file, final, "ESM2_FEATURES_OFFLINE forbids to download it")
    from filelock import FileLock

    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f"{final.name}.lock")):
            if not final.is_file():  # no other process was quicker
                _fetch_from_any(file, final)
    except DatasetError:
        raise
    except OSError as error:
        raise DatasetError(
            f"{final} cannot be written: {error}. Mend that, or set data_home= or the environment "
            "variable ESM2_FEATURES_DATA to a folder with room that this user may write to.",
            path=str(final),
            url=file.sources[0].urls()[0],
        ) from error


def _fetch_from_any(file: DataFile, final: Path) -> None:
    """Try one source after the other; the last one's trouble is raised."""
    *others, last = file.sources
    for source in others:
        try:
            return _fetch_from(file, source, final)
        except DatasetError as error:
            _say(f"trying another address: {error}")
    return _fetch_from(file, last, final)


def _fetch_from(file: DataFile, source: Source, final: Path) -> None:
    url = source.urls()[0]
    parts = final.with_name(f"{final.name}.parts")
    _say(f"downloading {final.name} ({file.size}) from {url} to {final}")
    paths = _download(file, source, final, parts)
    made = parts / final.name
    try:
        if file.convert is None:
            (made,) = paths
        else:
            write_table(file.columns, file.convert(paths), made)
        for table in file.sha256:
            _proved(file, table, made)
    except (ValueError, LookupError, _WrongFileError) as error:
        shutil.rmtree(parts)
        raise DatasetError(
            f"What came from {url} is not what {final.name} is made from: {error}. It was deleted, "
            f"and nothing was written to {final}. Run again to start afresh; if that does not "
            "help, something on the way (a proxy?) changes it.",
            path=str(final),
            url=url,
        ) from error
    made.replace(final)
    shutil.rmtree(parts)


def _download(file: DataFile, source: Source, final: Path, folder: Path) -> list[Path]:
    """Bring the parts of a source into ``folder``, in order; parts that are there stay."""
    import pooch
    import requests
    from tqdm.auto import tqdm

    urls = source.urls()
    names = [f"{source.revision}-{path.replace('/', '-')}" for path in source.paths]
    fetch = partial(
        pooch.retrieve,
        known_hash=None,  # what is made of all parts is proved
        path=folder,
        downloader=pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS),
    )
    try:
        with _quiet_pooch(), ThreadPoolExecutor(_AT_ONCE) as pool:
            came = pool.map(lambda url, name: fetch(url, fname=name), urls, names)
            bar = tqdm(came, total=len(urls), unit=" files", desc=final.name, disable=None)
            return [Path(path) for path in bar]
    except requests.RequestException as error:
        asked = error.request.url if error.request is not None else urls[0]
        raise _missing(
            file, final, f"it could not be fetched from {asked} ({error})", kept=folder
        ) from error


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch from advising, for each part, to pin a digest: the whole is pinned."""
    import pooch

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


def _missing(file: DataFile, final: Path, why: str, kept: Path | None = None) -> DatasetError:
    source = file.sources[0]
    url = source.urls()[0]
    if file.convert is None:
        by_hand = f"fetch {url} where there is a network and copy it to {final}"
    else:
        by_hand = (
            f"load it once where there is a network (it is made from {url}"
            + (f" and {len(source.paths) - 1} more files" if len(source.paths) > 1 else "")
            + f") and copy the {final.name} of that machine to {final}"
        )
    resumed = (
        f" What has come is kept in {kept}: run again to go on."
        if kept and any(kept.iterdir())
        else ""
    )
    return DatasetError(
        f"{final} is missing, and {why}.{resumed} To bring it by hand, {by_hand}; or set "
        "data_home= or the environment variable ESM2_FEATURES_DATA to a folder that has it.",
        path=str(final),
        url=url,
    )


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"esm2_features: {message}", file=sys.stderr)
