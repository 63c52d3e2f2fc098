"""Files of the official release: look-up on this machine, and download.

The first file that exists in this order is used, and must have the pinned digest:

    torch hub            $TORCH_HOME/hub/checkpoints/<file>
    Hugging Face         $HF_HUB_CACHE/models--facebook--<name>/snapshots/*/model.safetensors
    this library         $ESM2_FEATURES_HOME/checkpoints/<file>
    the official host    with a message, and not if ESM2_FEATURES_OFFLINE is set

A download goes into ``<file>.part``, which a later run resumes, under a lock, so that processes
that start together download once. A file gets its final name when its digest is right.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from platformdirs import user_cache_path

from esm2_features._checkpoints.catalogue import ModelCard, RemoteFile
from esm2_features._environment import is_offline
from esm2_features._files import download_lock, sha256_of, tell
from esm2_features.exceptions import CheckpointError, DownloadError

if TYPE_CHECKING:
    import requests

_ATTEMPTS = 5
_CHUNK_BYTES = 1 << 16  # what a cut transfer may lose
_TIMEOUT_SECONDS = (10, 30)  # to connect, and of silence
_SPARE_BYTES = 100 << 20  # left free on the disk


def obtain(card: ModelCard, file: RemoteFile) -> Path:
    """Find or download a file of an official model, and verify its digest."""
    found = locate(card, file)
    if found is None:
        return _fetch(card, file)
    _verify(found, file.sha256 if found.name == _file_name(file) else card.safetensors_sha256)
    return found


def locate(card: ModelCard, file: RemoteFile) -> Path | None:
    """Find a file of an official model on this machine, without verifying it."""
    name = _file_name(file)
    places = (_torch_hub_folder() / name, *_hugging_face_files(card), own_folder() / name)
    return next((path for path in places if path.is_file()), None)


def own_folder() -> Path:
    """Folder into which this library downloads."""
    home = os.environ.get("ESM2_FEATURES_HOME") or user_cache_path("esm2_features")
    return Path(home).expanduser() / "checkpoints"


def _torch_hub_folder() -> Path:
    """Folder of checkpoints of torch hub, and so of fair-esm, without importing torch."""
    home = os.environ.get("TORCH_HOME") or f"{_user_cache()}/torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


def hugging_face_folder() -> Path:
    """Folder of repositories of the Hugging Face hub."""
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or f"{_user_cache()}/huggingface"
    return Path(hub or f"{home}/hub").expanduser()


def _user_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or "~/.cache"


def _hugging_face_files(card: ModelCard) -> Iterator[Path]:
    """Yield the files in Hugging Face's cache that may be the pinned one."""
    if card.hf_repo is None or card.safetensors_sha256 is None:
        return
    repository = hugging_face_folder() / f"models--{card.hf_repo.replace('/', '--')}"
    for path in sorted(repository.glob("snapshots/*/model.safetensors")):
        # A link points to a blob that is named by its digest: one of another revision is a
        # different file, not a damaged one.
        if not path.is_symlink() or path.resolve().name == card.safetensors_sha256:
            yield path


def _verify(path: Path, pin: str | None) -> None:
    if pin is not None and (found := sha256_of(path)) != pin:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not the official file that its name says: "
            f"its sha256 is {found}, expected {pin}. Delete it and run again to fetch it anew, "
            "or, to use it as it is, pass its path as model=.",
            path=str(path),
        )


def _fetch(card: ModelCard, file: RemoteFile) -> Path:
    """Download a file into our own folder; only one process does."""
    final = _destination(file)
    if is_offline():
        raise _unreachable(card, file, "ESM2_FEATURES_OFFLINE forbids to download it")
    try:
        with download_lock(final):
            if final.is_file():  # the other process was quicker
                _verify(final, file.sha256)
            else:
                _download(card, file, final)
    except OSError as error:
        raise _error(
            file,
            f"{final} cannot be written: {error}. Mend that, or set ESM2_FEATURES_HOME to a "
            "folder with room that this user may write to.",
        ) from error
    return final


def _download(card: ModelCard, file: RemoteFile, final: Path) -> None:
    part = final.with_name(f"{final.name}.part")
    size = "size unknown" if file.bytes is None else _human(file.bytes)
    resumed = f", of which {_human(have)} are here already" if (have := _size(part)) else ""
    tell(f"downloading {final.name} ({size}{resumed}) from {file.url} to {final}")
    _transfer(card, file, part)
    if file.sha256 is not None and (found := sha256_of(part)) != file.sha256:
        received = part.stat().st_size
        part.unlink()
        raise _error(
            file,
            f"What came from {file.url} is not {final.name}: {received} bytes with sha256 "
            f"{found}, expected {file.bytes} bytes with {file.sha256}. They were deleted and "
            f"nothing was written to {final}. Run again to start afresh; if that does not help, "
            "something on the way (a proxy?) changes the file.",
        )
    part.replace(final)


def _transfer(card: ModelCard, file: RemoteFile, part: Path) -> None:
    """Download the bytes of ``file`` into ``part``, and resume when the connection is lost."""
    import requests
    from urllib3.exceptions import MaxRetryError

    if file.bytes is not None and _size(part) > file.bytes:
        part.unlink()  # not what this file began with
    trouble = "the connection was closed early"
    for _ in range(_ATTEMPTS):
        if _size(part) == file.bytes:
            return
        try:
            if _receive(file, part):
                return
        except requests.RequestException as error:
            # No route, no name, no TLS, no proxy: the server was not reached at all.
            if error.args and isinstance(error.args[0], MaxRetryError):
                host = urlsplit(file.url).netloc
                # Four causes, and their tracebacks, would hide it in the report of a search.
                raise _unreachable(card, file, f"{host} cannot be reached from here") from None
            trouble = str(error)
    if _size(part) == file.bytes:  # all of it came before the last trouble
        return
    expected = "an unknown number" if file.bytes is None else file.bytes
    raise _error(
        file,
        f"The download of {file.url} was cut {_ATTEMPTS} times; {_size(part)} of {expected} bytes "
        f"came (last trouble: {trouble}). They are kept in {part}: run again to resume.",
    )


def _receive(file: RemoteFile, part: Path) -> bool:
    """Append one response to ``part``; return whether the file is complete.

    Servers may ignore the requested range, send wrong lengths, and hang up. Only the size in the
    catalogue, if it has one, and the digest count.
    """
    import requests

    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if file.bytes is None and content_range == f"bytes */{have}":
                return True
            part.unlink(missing_ok=True)  # longer than the file: it was another one
            return False
        if not response.ok:
            raise _error(
                file,
                f"The server answered {response.status_code} {response.reason} for {file.url}. "
                "Try again later, or bring the file yourself: copy it to "
                f"{_destination(file)} or pass its path as model=.",
            )
        resumed = have > 0 and content_range.startswith(f"bytes {have}-")
        if response.status_code == requests.codes.partial_content and not resumed:
            part.unlink(missing_ok=True)  # another range than was asked for: all of it, then
            return False
        start = have if resumed else 0
        promised = response.headers.get("Content-Length", "")
        total = file.bytes or (start + int(promised) if promised.isdigit() else None)
        _require_room(file, part, 0 if total is None else total - start)
        _write(response, part, start, total)
    complete = total is None or _size(part) >= total
    if have and not resumed and not complete:
        # Asked for the rest, the server sent all it has, and that is too little: an error
        # page, say. Nothing worth resuming.
        received = _size(part)
        part.unlink()
        raise _error(
            file,
            f"{file.url} gives {received} bytes instead of {total}: that is another file, such as "
            "the page of a proxy. Open the address in a browser to see what it is.",
        )
    return complete


def _write(response: requests.Response, part: Path, start: int, total: int | None) -> None:
    """Write the body of a response to ``part`` from byte ``start`` on."""
    from tqdm.auto import tqdm

    response.raw.enforce_content_length = True  # old urllib3 takes a hang-up for the end
    with (
        part.open("ab" if start else "wb") as out,
        tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None
        ) as bar,
    ):
        for chunk in response.iter_content(_CHUNK_BYTES):
            out.write(chunk)
            bar.update(len(chunk))
            if total is not None and out.tell() > total:
                break  # not the file; the digest will tell
        out.flush()
        os.fsync(out.fileno())


def _require_room(file: RemoteFile, part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed + _SPARE_BYTES > free:
        raise _error(
            file,
            f"{part.stem} needs {_human(needed)} more in {part.parent}, where {_human(free)} are "
            "free. Make room, or set ESM2_FEATURES_HOME to a folder on a larger disk.",
        )


def _destination(file: RemoteFile) -> Path:
    return own_folder() / _file_name(file)


def _error(file: RemoteFile, message: str) -> DownloadError:
    return DownloadError(message, path=str(_destination(file)), url=file.url)


def _unreachable(card: ModelCard, file: RemoteFile, why: str) -> DownloadError:
    name = _file_name(file)
    hub = f"the Hugging Face cache ({hugging_face_folder()}, by: hf download {card.hf_repo})"
    elsewhere = f" or in {hub}" if card.safetensors_sha256 is not None else ""
    return _error(
        file,
        f"{name} is not on this machine, and {why}. Provide it in one of three ways:\n"
        f"  1. copy {file.url}\n     to {_destination(file)}\n"
        f"  2. put it where other tools keep it: {_torch_hub_folder() / name}{elsewhere}\n"
        f'  3. pass the path of your copy: model="/path/to/{card.name}.pt"',
    )


def _file_name(file: RemoteFile) -> str:
    return file.url.rpartition("/")[2]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _human(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
