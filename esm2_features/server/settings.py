"""The settings of a server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from esm2_features._cache import Cache
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL, OFFICIAL, full_name, slug
from esm2_features._inputs.options import PRECISIONS, device_names, one_of, positive
from esm2_features.exceptions import InputError

_RATE = (600, 60.0)
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """The models, devices and limits of a server.

    Attributes
    ----------
    models : mapping of str to str
        What `Engine` calls each model, by the name under which it is served.
    devices : tuple of str
        Devices; each has a worker of its own.
    precision, cache : as in `Engine`
        Arithmetic, and where vectors are kept.
    host, port : str, int
        Address to listen at; port 0 is any free one.
    proxy : str or None
        Address of a proxy in front, whose ``X-Forwarded-For`` names the clients; that of others
        is ignored.
    root_path : str
        Path under which a proxy publishes the server, such as ``"/esm2"``.
    origins : tuple of str
        Other sites whose pages may use the server, such as ``"https://notebooks.example.org"``.
    tokens : Path or None
        File of the digests of tokens; without it, the server is for its own machine only.
    max_body_bytes, max_answer_bytes : int
        Bytes of a request's body, decompressed, and of the numbers of an answer, as float32.
    max_items, max_residues : int
        Sequences of a request, and residues of a sequence.
    max_memory_bytes : int
        Bytes of memory of all requests under way, besides what the models need; a request, and all
        requests of a client, have half of it.
    max_connections : int
        Connections; those of an address that is not the proxy's are a quarter of them at most.
    max_waiting : int
        Requests in the queue.
    timeout : float
        Seconds in which a request is answered.
    grace : int
        Seconds in which the server ends after SIGTERM; requests that take longer are cut off.
    rate : (int, float), "auto" or None
        Requests of one token, or of one machine where there are no tokens, in so many seconds;
        None for any number. "auto" is 600 in a minute where there are tokens, else None.
    batch_tokens : int
        Tokens (residues + 2) that are computed together.
    wait : float
        Seconds that a request waits for others to share its batch.
    models_in_memory : int
        Models that a device has in memory at the same time.

    Raises
    ------
    InputError
        If a value is not valid, or the host is open to others without tokens.

    Examples
    --------
    >>> from esm2_features.server import Settings
    >>> Settings(models={"mini": "mini"}, rate=(60, 60.0)).rate_text
    '60/minute'
    """

    models: Mapping[str, str] = field(
        default_factory=lambda: {name: name for name in (EMBEDDED_MODEL, *OFFICIAL)}
    )
    devices: tuple[str, ...] = ("auto",)
    precision: str = "float32"
    cache: str | Path | Cache | None = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    proxy: str | None = None
    root_path: str = ""
    origins: tuple[str, ...] = ()
    tokens: Path | None = None
    max_body_bytes: int = 16 << 20
    max_items: int = 256
    max_residues: int = 2048
    max_answer_bytes: int = 256 << 20
    max_memory_bytes: int = 1 << 30
    max_connections: int = 1024
    max_waiting: int = 256
    timeout: float = 600.0
    grace: int = 30
    rate: tuple[int, float] | Literal["auto"] | None = "auto"
    batch_tokens: int = 8192
    wait: float = 0.002
    models_in_memory: int = 2

    def __post_init__(self) -> None:
        if self.rate == "auto":
            object.__setattr__(self, "rate", None if self.tokens is None else _RATE)
        for name in ("models", "devices"):
            if not getattr(self, name):
                raise InputError(f"Got no {name}; pass at least one.")
        _check_names(self.models)
        for device in self.devices:
            device_names(device)
        one_of("precision", self.precision, PRECISIONS)
        limits = [name for name in vars(self) if name.startswith("max_")]
        for name in (*limits, "batch_tokens", "grace", "models_in_memory"):
            positive(name, getattr(self, name))
        self._check_addresses()
        if self.timeout <= 0:
            raise InputError(f"Got timeout={self.timeout!r}; expected seconds, more than 0.")
        if self.wait < 0:
            raise InputError(f"Got wait={self.wait!r}; expected seconds, 0 or more.")
        if self.tokens is None and self.host not in LOOPBACK:
            raise InputError(
                f"Got host={self.host!r} without tokens, so that anybody in the network could use "
                "this machine. Make a token with `esm2-features token new --tokens FILE` and start "
                "with --tokens FILE, or leave the host at 127.0.0.1."
            )

    def _check_addresses(self) -> None:
        if not re.fullmatch(r"(?!/api(/|$))(/[\w.~-]+)*", self.root_path):
            raise InputError(
                f"Got root_path={self.root_path!r}; expected a path such as /esm2, without a slash "
                "at its end, and other than the server's own /api."
            )
        for origin in self.origins:
            if not re.fullmatch(r"https?://[\w.-]+(:\d+)?|https?://\[[\da-f:]+\](:\d+)?", origin):
                raise InputError(
                    f"Got the origin {origin!r}; expected the scheme and the host of a site, such "
                    "as https://notebooks.example.org, without a path. Name each site."
                )

    @property
    def address(self) -> str:
        """The address for a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    @property
    def rate_text(self) -> str | None:
        """The rate as clients of the hosted service read it, such as ``"60/minute"``."""
        if self.rate is None or self.rate == "auto":
            return None
        return f"{self.rate[0]}/{'second' if self.rate[1] == 1 else 'minute'}"

    def find(self, name: str) -> str | None:
        """Return the name under which a model is served, or None.

        Parameters
        ----------
        name : str
            A key of ``models``, or another name of the same model, such as ``"esm2-650m"``.

        Returns
        -------
        name : str or None
            The key of ``models``.

        Examples
        --------
        >>> from esm2_features.server import Settings
        >>> Settings().find("esm2-650m")
        'esm2_t33_650M_UR50D'
        """
        if name in self.models or (full := full_name(name)) is None:
            return name if name in self.models else None
        return next((served for served in self.models if full_name(served) == full), None)


def _check_names(models: Mapping[str, str]) -> None:
    """Check that names can be parts of addresses, and that no two are alike."""
    seen: dict[str, str] = {}
    for name in models:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"Got the name {name[:80]!r} for a model; expected up to 64 letters, digits, dots, "
                "hyphens and underscores, of which the first is a letter or digit."
            )
        other = seen.setdefault(slug(name).lower(), name)
        if other != name:
            raise InputError(
                f"Got the names {other!r} and {name!r}, which are too alike. Rename one of them."
            )


def read_rate(text: str) -> tuple[int, float] | Literal["auto"] | None:
    """Read ``"10/second"`` or ``"600/minute"``, as requests and seconds, ``auto`` or ``none``."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    number, _, unit = text.partition("/")
    seconds = {"second": 1.0, "minute": 60.0}.get(unit.strip())
    if not number.strip().isdecimal() or not int(number) or seconds is None:
        raise InputError(
            f"Got rate={text!r}; expected 10/second, 600/minute or the like, auto, or none."
        )
    return int(number), seconds
