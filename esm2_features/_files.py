"""Files written completely or not at all, downloaded by one process, and digests of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_LONGEST_WRITE = 86400.0
"""Seconds between two writes to a part, at most; longer means that its process is dead."""


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
    part = _part_of(path)
    with _renaming(part, path, folder=folder, once=once, sync=sync, check=check):
        if folder:
            part.mkdir()
        yield part


@contextmanager
def atomic_write(path: Path, *, once: bool = False, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a file that appears under its name when it is complete; see `atomic_path`.

    It is locked until then, so that `remove_parts` can tell it from what a killed process left.
    """
    with ExitStack() as stack:
        part, file = _locked_part(path, stack)
        with _renaming(part, path, once=once, sync=sync), file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())


def remove_parts(folder: Path) -> None:
    """Remove what processes left in a folder that were killed during `atomic_write`.

    Where the file system has no locks, what was last written more than a day ago is removed.
    """
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # it is gone, another user's, or open on Windows
            if sys.platform == "win32":
                part.unlink()
                continue
            with part.open("r+b") as file:
                is_locked = _try_lock(file.fileno())
                # While it is locked here, so that its writer cannot have begun unnoticed.
                if is_locked or (is_locked is None and _age_of(part) > _LONGEST_WRITE):
                    part.unlink()


@contextmanager
def _renaming(
    part: Path,
    path: Path,
    *,
    folder: bool = False,
    once: bool = False,
    sync: bool = False,
    check: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Rename ``part`` to ``path`` at the end, or remove it after an error."""
    try:
        yield
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
        # People know the other name. Errors without a number are not of the system.
        if error.errno is not None and error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    # Not `tempfile`, whose files are their owner's only: a file has the usual permissions.
    return path.with_name(f".{path.name[:50]}.{uuid.uuid4().hex[:8]}.part")


def _locked_part(path: Path, stack: ExitStack) -> tuple[Path, BinaryIO]:
    """Open a new part of a file, locked until ``stack`` ends."""
    while True:
        part = _part_of(path)
        try:
            file = part.open("xb")
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        if sys.platform == "win32":  # where an open file is neither removed nor renamed
            return part, file
        copy = os.dup(file.fileno())  # a lock lasts as long as any copy is open
        stack.callback(os.close, copy)
        # `remove_parts` may have taken it before it was locked.
        if _try_lock(copy) is not False and part.exists():
            return part, file
        file.close()


def _try_lock(handle: int) -> bool | None:
    """Lock a file; whether that succeeded, and None if there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _age_of(path: Path) -> float:
    """Return the seconds since a file was written, by the clock of its file system."""
    with tempfile.TemporaryFile(dir=path.parent) as new:
        return os.fstat(new.fileno()).st_mtime - path.stat().st_mtime


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
