"""What a server is told when it starts, and by which names models are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esm2_features._cache import Cache
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL, OFFICIAL, slug
from esm2_features._inputs.options import PRECISIONS, device_names, one_of, positive
from esm2_features.exceptions import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _official() -> dict[str, str]:
    return {name: name for name in (EMBEDDED_MODEL, *OFFICIAL)}


@dataclass(frozen=True)
class Settings:
    """What a server is told when it starts."""

    # names that are answered to, and what `Engine` calls these models
    models: Mapping[str, str] = field(default_factory=_official)
    devices: tuple[str, ...] = ("auto",)  # each has a worker of its own
    precision: str = "float32"
    cache: str | Path | Cache | None = "auto"
    host: str = "127.0.0.1"
    port: int = 8000  # 0 is any that is free
    # file of the hashes of tokens; without one, the server is for its own machine only
    tokens: Path | None = None
    max_body_bytes: int = 16 << 20  # bytes of a request's body, unpacked
    max_items: int = 256  # sequences in a request
    max_residues: int = 2048  # residues of a sequence
    max_answer_bytes: int = 256 << 20  # bytes of the numbers in an answer, as float32
    max_waiting: int = 256  # requests that wait to be computed
    timeout: float = 600.0  # seconds in which a request is answered
    # requests of one token, or one machine where there are no tokens, in so many seconds
    rate: tuple[int, float] | None = None
    batch_tokens: int = 8192  # tokens (residues + 2) that are given to the engine at once
    wait: float = 0.002  # seconds that a request waits for others to go with it
    models_in_memory: int = 2  # networks on a device at a time

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("Got no models; name at least one.")
        if not self.devices:
            raise InputError("Got no devices; name at least one.")
        for device in self.devices:
            device_names(device)
        one_of("precision", self.precision, PRECISIONS)
        for name in (
            "max_body_bytes",
            "max_items",
            "max_residues",
            "max_answer_bytes",
            "max_waiting",
            "batch_tokens",
            "models_in_memory",
        ):
            positive(name, getattr(self, name))
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

    @property
    def rate_text(self) -> str | None:
        """The rate as clients of the hosted service read it, such as ``"60/minute"``."""
        if self.rate is None:
            return None
        return f"{self.rate[0]}/{'second' if self.rate[1] == 1 else 'minute'}"

    def find(self, name: str) -> str | None:
        """Give the name under which a model is served, or None if it is not."""
        found = name if name in self.models else _OF_SLUG.get(name.lower())
        return found if found in self.models else None


_OF_SLUG = {slug(name): name for name in OFFICIAL}


def read_rate(text: str) -> tuple[int, float]:
    """Read ``"10/second"`` or ``"600/minute"``."""
    number, _, unit = text.partition("/")
    seconds = {"second": 1.0, "minute": 60.0}.get(unit.strip())
    if not number.strip().isdecimal() or not int(number) or seconds is None:
        raise InputError(f"Got rate={text!r}; expected a rate such as 10/second or 600/minute.")
    return int(number), seconds
