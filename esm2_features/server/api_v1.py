"""Version 1 of the hosted API: `POST /api/v1/models/{model}/{predict|transform}/`.

Published examples show ``name`` and ``mean_representations``; what else there is has the names of
version 2, which followed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from esm2_features._inputs.options import POOLING_OF
from esm2_features.server.models import VOCABULARY
from esm2_features.server.responses import Found, as_json

_REPRESENTATIONS = {
    **{word: f"{word}_representations" for word in POOLING_OF},
    "per_token": "representations",
}


def parts(many: list[Found], *, version: int) -> Iterator[bytes]:
    """Write an answer of version 1 or 2, one part for each sequence."""
    yield b'{"predictions":[' if version == 1 else b'{"results":['
    for i, found in enumerate(many):
        start: dict[str, Any] = {"name": str(i)} if version == 1 else {"sequence_index": i}
        yield (b"," if i else b"") + as_json({**start, **_named(found)})
    yield b"]}"


def _named(found: Found) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for word, value in found.items():
        if word in _REPRESENTATIONS:
            written[_REPRESENTATIONS[word]] = {str(layer): array for layer, array in value.items()}
        elif word == "tokens":
            written["sequence_tokens"] = value
        else:
            written[word] = value
    if "logits" in found:
        written["alphabet_tokens"] = VOCABULARY
    return written
