"""What identifies a number: the one record of everything that changes a vector.

A vector is determined by the weights, the layer, the pooling, the precision of the
arithmetic, and the residues that went through the network. The first four are a `Spec`;
the residues are the *normalised* sequence, after unknown letters were mapped and long
sequences were cut: two policies that lead to the same residues lead to the same vector,
and share it. Device, batch size, paths and the names of sequences change nothing and
are not here.

Never here: devices, budgets, paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

POOLINGS = ("mean", "max", "std", "cls", "eos")
PRECISIONS = ("float32", "bfloat16", "float16")

_SCHEMA = 1
"""Raised whenever the same spec would come to mean another number."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything but the residues that changes a vector.

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
    """

    checkpoint: str
    layer: int
    pooling: str
    precision: str

    def keys(self, sequences: Iterable[str]) -> list[bytes]:
        """Key of each sequence's vector.

        Parameters
        ----------
        sequences : iterable of str
            Normalised sequences.

        Returns
        -------
        keys : list of bytes
            BLAKE2b-256 digests, 32 bytes each.
        """
        text = json.dumps({"schema": _SCHEMA, **asdict(self)}, sort_keys=True)
        namespace = hashlib.blake2b(text.encode(), digest_size=32).digest()
        # Keying a fresh hash costs a compression per sequence; a copy of a keyed one does not.
        keyed = hashlib.blake2b(key=namespace, digest_size=32)
        keys = []
        for sequence in sequences:
            state = keyed.copy()
            state.update(sequence.encode("ascii"))
            keys.append(state.digest())
        return keys
