"""Cache keys: everything that changes a vector is in `Spec`, or in the text of its view.

The text of a view is the normalised sequence with its windows and regions. Device, batch size,
paths and names change no vector, and are not part of its key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features.exceptions import printable, shorten

KEY_BYTES = 32
_LONGEST_WORD = 100  # characters of a name that are shown; an identity has 71
SCHEMA = 1  # increase it when the same spec gives other numbers


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that changes a vector, except the residues.

    Attributes
    ----------
    checkpoint : str
        Identity of the weights, such as ``"sha256:46f0..."``.
    layer : int
        Representation that is pooled, from 0 (the embedding) to the number of layers.
    pooling : str
        Name of the reduction over residues.
    precision : str
        Arithmetic of the forward pass: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    dtype : str, default="float32"
        Precision in the cache: ``"float32"`` or ``"float16"``, which rounds it.
    model : str, default=""
        Name of the checkpoint for people; not part of the key.
    """

    checkpoint: str
    layer: int
    pooling: str
    precision: str
    dtype: str = "float32"
    model: str = field(default="", compare=False)

    @property
    def words(self) -> tuple[str, str, str, str, str]:
        """Name, layer, pooling, precision and dtype for people, whatever a file has for them."""
        name, layer, pooling, precision, dtype = (
            printable(shorten(str(value), _LONGEST_WORD))
            for value in (
                *(self.model or self.checkpoint, self.layer),
                *(self.pooling, self.precision, self.dtype),
            )
        )
        return name, layer, pooling, precision, dtype

    @property
    def digest(self) -> bytes:
        """BLAKE2b-256 digest of everything that is compared, 32 bytes."""
        return _digest_of(self)

    def keys(self, views: Iterable[str]) -> NDArray[np.uint8]:
        """Compute the key of each view's vector.

        Parameters
        ----------
        views : iterable of str
            Normalised sequences, or parts of them, written as ``"MKTAYIAKQR@2:5"``.

        Returns
        -------
        keys : ndarray of shape (n, 32), uint8
            BLAKE2b-256 digests.

        Examples
        --------
        >>> spec = Spec("sha256:46f0", layer=6, pooling="mean", precision="float32")
        >>> spec.keys(["MKTAYIAKQR", "GSHM"]).shape
        (2, 32)
        """
        return _keyed(self.digest, views)


class KeyedVectors(NamedTuple):
    """Vectors of one spec with their keys: (n, 32) keys, (n, dim) rows."""

    spec: Spec
    keys: NDArray[np.uint8]
    rows: NDArray[np.float32]


def computation_keys(checkpoint: str, precision: str, views: Iterable[str]) -> NDArray[np.uint8]:
    """Compute the key of each view's forward pass, of which all its vectors are."""
    return _keyed(_digest({"checkpoint": checkpoint, "precision": precision}), views)


@lru_cache(maxsize=4096)
def _digest_of(spec: Spec) -> bytes:
    return _digest({f.name: getattr(spec, f.name) for f in fields(spec) if f.compare})


def _digest(identity: dict[str, object]) -> bytes:
    text = json.dumps({"schema": SCHEMA, **identity}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _keyed(namespace: bytes, views: Iterable[str]) -> NDArray[np.uint8]:
    # A namespace is of a fixed length, so no two pairs make the same text. As BLAKE2's own key
    # it would take a block of the hash to itself, and most of the time.
    blake2b = hashlib.blake2b
    digests = [
        blake2b(namespace + view.encode("ascii"), digest_size=KEY_BYTES).digest() for view in views
    ]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, KEY_BYTES)
