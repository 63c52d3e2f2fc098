"""Where a server is, and the token for it, which is never shown.

A token is in no message, no ``repr`` and no pickle: `Token` hides it, so that it can be a parameter
of an estimator, all of which scikit-learn prints, copies and pickles.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from esm2_features.exceptions import InputError

TOKEN_VARIABLE = "ESM2_FEATURES_TOKEN"  # noqa: S105 - a name
API, HUB = "/api/v3", "/api/v1"
"""Where the operations of the hosted service are, and those of a hub."""


class Token:
    """A token that does not show itself, and that no pickle takes along."""

    __slots__ = ("_reveal",)

    def __init__(self, text: str) -> None:
        def reveal() -> str:
            return text

        self._reveal = reveal  # what looks through attributes finds no text

    def __repr__(self) -> str:
        return "<hidden>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_token, ()

    def __copy__(self) -> Token:
        return self

    def __deepcopy__(self, _: object) -> Token:
        return self

    @property
    def text(self) -> str:
        """The token itself."""
        text = self._reveal().strip()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise InputError(
                "Got a token that is empty, or holds blanks or characters that no token has (it is "
                f"not shown here). Look at token= and at {TOKEN_VARIABLE}."
            )
        return text


def _no_token() -> None:
    """Give what a pickled token becomes."""


def hidden(token: object) -> object:
    """Wrap a token, if it is one."""
    return Token(token) if isinstance(token, str) else token


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and the token for it."""

    url: str  # without what comes after the host and the server's own path
    token: Token | None  # none leaves it to the environment variable

    def secret(self) -> str | None:
        """Look up the token, which the environment variable has if it was not given."""
        if self.token is not None:
            return self.token.text
        found = os.environ.get(TOKEN_VARIABLE)
        return Token(found).text if found else None


def read_endpoint(url: object, token: object) -> Endpoint | None:
    """Check the address of a server, and the token for it."""
    if token is not None and not isinstance(token, str | Token):
        raise TypeError(f"Got a token of type {type(token).__name__}; pass a str, or None.")
    secret = hidden(token)
    if url is None:
        if token is not None:
            raise InputError("Got a token without an endpoint; say which server it is for.")
        return None
    expected = 'expected the address of a server, such as "http://host:8000"'
    if not isinstance(url, str):
        raise InputError(f"Got endpoint={url!r}; {expected}.")
    if "@" in url:
        raise InputError(
            f"Got an endpoint with a name or password in it; {expected}. Tokens are given as "
            f"token=, or by the environment variable {TOKEN_VARIABLE}."
        )
    try:
        parts = urlsplit(url.strip())
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address or parts.query or parts.fragment:
        raise InputError(f"Got endpoint={url!r}; {expected}.")
    path = parts.path.rstrip("/").removesuffix(API).removesuffix(HUB)
    assert secret is None or isinstance(secret, Token)
    return Endpoint(f"{parts.scheme}://{parts.netloc}{path}", secret)
