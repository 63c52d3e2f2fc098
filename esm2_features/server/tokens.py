"""Tokens: how they are made, stored and checked.

A token has 32 random bytes, so that a plain SHA-256 of it cannot be reversed, and may be stored:
the file has a line for each token, with a name, the digest, and the day. To revoke a token, delete
its line; the file is read again when it has changed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from codecs import BOM_UTF8
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from esm2_features.exceptions import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PREFIX = "esm2f_"
_MOST_BYTES = 1 << 20
_LOCK_SECONDS = 10

_logger = logging.getLogger("esm2_features")


def new_token(path: Path, name: str) -> str:
    """Make a token, and append its digest to a file."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"Got name={name!r}; expected up to 64 letters, digits and the signs . _ @ -, "
            "beginning with a letter or a digit."
        )
    token = _PREFIX + secrets.token_urlsafe(32)
    with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS, mode=0o600):  # others may make one, too
        content = _content(path) if path.exists() else b""
        known, wrong = _parse(content)
        if wrong:
            raise InputError(_describe(path, *wrong[0]))
        if name in known:
            raise InputError(
                f"{path} has a token called {name!r}. Choose another name, or delete its line "
                "first."
            )
        line = f"{name} sha256:{_digest(token)} {datetime.now(UTC).date()}\n"
        if content and not content.endswith(b"\n"):
            line = "\n" + line  # somebody has edited the file
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "a") as file:
            file.write(line)
    return token


class Tokens:
    """The tokens of a file, which is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, ...] | None = None
        self._digests: dict[str, str] = {}
        self._refresh()
        if not self._digests:
            raise InputError(
                f"{path} holds no token, so that nobody could use the server. Make one with "
                f"`esm2-features token new --tokens {path}`."
            )

    def owner(self, token: str) -> str | None:
        """Return the name that belongs to a token, or None."""
        try:
            self._refresh()
        except (OSError, InputError) as error:
            # No token is valid while the file cannot be read, since some may have been revoked.
            if self._stamp != ():
                _logger.error("No token is valid: %s", error)
            self._stamp, self._digests = (), {}
            return None
        digest = _digest(token)
        # Compared with all, so that all tokens take the same time.
        owners = [n for n, known in self._digests.items() if hmac.compare_digest(digest, known)]
        return owners[-1] if owners else None

    def _refresh(self) -> None:
        status = self.path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if stamp == self._stamp:
            return
        self._digests, wrong = _parse(_content(self.path))
        for number, reason in wrong:
            _logger.error("%s It is left out.", _describe(self.path, number, reason))
        self._stamp = stamp


def _content(path: Path) -> bytes:
    """Read a file of tokens, if nobody else can have changed it."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        raise InputError(f"{path} is no file of tokens: it is no regular file, or too large.")
    if os.name == "posix" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"{path} may be written by others, who could add tokens of their own. Run: chmod 600 "
            f"{path}"
        )
    with path.open("rb") as file:
        return file.read(_MOST_BYTES + 1)


def _parse(content: bytes) -> tuple[dict[str, str], list[tuple[int, str]]]:
    """Read the lines of a file: digests by name, and the numbers and errors of wrong lines."""
    digests: dict[str, str] = {}
    wrong = []
    for number, line in enumerate(content.removeprefix(BOM_UTF8).splitlines(), start=1):
        text = line.decode("utf-8", "replace").partition("#")[0].strip()
        if not text:
            continue
        name, _, rest = text.partition(" ")
        match = re.match(r"sha256:([0-9a-f]{64})(\s|$)", rest.strip())
        if match is None or not _NAME.fullmatch(name):
            wrong.append((number, "expected a name, sha256: and 64 hexadecimal digits"))
        elif name in digests:
            wrong.append((number, f"the name {name!r} is there twice"))
        else:
            digests[name] = match[1]
    return digests, wrong


def _describe(path: Path, number: int, reason: str) -> str:
    return f"{path}, line {number}: {reason}, as `esm2-features token new` writes them."


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
