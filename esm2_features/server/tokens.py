"""Tokens: how they are made, stored and checked.

A token has 32 random bytes, so that a plain SHA-256 of it cannot be reversed, and may be stored:
the file has a line for each token, with a name, the digest, and the day. To revoke a token, delete
its line; the file is read again when it has changed.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

from esm2_features.exceptions import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PREFIX = "esm2f_"


def new_token(path: Path, name: str) -> str:
    """Make a token, and append its digest to a file."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"Got name={name!r}; expected up to 64 letters, digits and the signs . _ @ -, "
            "beginning with a letter or a digit."
        )
    known = read_tokens(path) if path.exists() else {}
    if name in known:
        raise InputError(
            f"{path} has a token called {name!r}. Choose another name, or delete its line first."
        )
    token = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{_digest(token)} {datetime.now(UTC).date()}\n"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "a") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            line = "\n" + line  # somebody has edited the file
        file.write(line)
    return token


def read_tokens(path: Path) -> dict[str, str]:
    """Read a file of tokens: digests by name."""
    digests: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, _, rest = text.partition(" ")
        match = re.match(r"sha256:([0-9a-f]{64})(\s|$)", rest.strip())
        if match is None or not _NAME.fullmatch(name) or name in digests:
            raise InputError(
                f"{path}, line {number}: expected a name that occurs once, sha256: and 64 "
                "hexadecimal digits, as `esm2-features token new` writes them."
            )
        digests[name] = match[1]
    return digests


class Tokens:
    """The tokens of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
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
        except (OSError, InputError):
            return None  # no token is valid while the file cannot be read
        digest = _digest(token)
        # Compared with all, so that all tokens take the same time.
        owners = [n for n, known in self._digests.items() if hmac.compare_digest(digest, known)]
        return owners[-1] if owners else None

    def _refresh(self) -> None:
        status = self.path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp != self._stamp:
            self._digests = read_tokens(self.path)
            self._stamp = stamp


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
