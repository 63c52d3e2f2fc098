"""Files written completely or not at all, downloaded by one process, and digests of files."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def expanded(path: str | os.PathLike[str]) -> str:
    """Expand ``~`` and variables such as ``$DATA``, as shells do, unless there is such a path."""
    text = os.fspath(path)
    if os.path.lexists(text):
        return text
    return os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - Path(".") drops "./"


@contextmanager
def atomic_path(
    path: Path,
    *,
    folder: bool = False,
    once: bool = False,
    sync: bool = False,
    check: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, and rename what is there to ``path`` at the end.

    ``folder`` makes a folder of that name, ``once`` keeps a file that has the name already,
    ``sync`` survives a power cut, and ``check`` is called before anything is replaced.
    """
    # Not `tempfile`, whose files are their owner's only: a file has the usual permissions.
    part = path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex[:8]}.part")
    try:
        if folder:
            part.mkdir()
        yield part
        check()
        if folder and path.is_dir():
            _replace_folder(part, path)
        elif once:
            _rename_once(part, path)
        else:
            part.replace(path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(part)):  # people know the other name
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, *, once: bool = False, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when it is complete; see `atomic_path`."""
    with atomic_path(path, once=once, sync=sync) as part, part.open("xb") as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


def remove_parts(path: Path) -> None:
    """Remove what processes left behind that were killed while they wrote ``path``."""
    for part in path.parent.glob(f".{glob.escape(path.name[:50])}.*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def download_lock(path: Path) -> Iterator[None]:
    """Let one process at a time download a file; makes its folder."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that downloads {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def tell(message: str) -> None:
    """Write to standard error, beside progress bars."""
    from tqdm import tqdm

    tqdm.write(f"esm2_features: {message}", file=sys.stderr)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; about a second per gigabyte."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace_folder(part: Path, path: Path) -> None:
    # A folder cannot be replaced in one step, so one is always there.
    aside = path.rename(part.with_suffix(".old"))
    try:
        part.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside)


def _rename_once(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can be asked for that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
