"""The vocabulary of ESM-2: 33 tokens, and the table that turns letters into them.

A normalised sequence is an ASCII string with one character per residue, in which a
``<mask>`` token is written as the single character `MASK`, so that ``len`` counts
residues. Encoding it is one look-up in a table of 256 entries.

The order of the tokens is the one in which the official checkpoints were trained
(``esm.data.Alphabet.from_architecture("ESM-1b")``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
CLS_TOKEN = TOKENS.index("<cls>")
EOS_TOKEN = TOKENS.index("<eos>")
MASK_TOKEN = TOKENS.index("<mask>")

CANONICAL_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CANONICAL_TOKENS = [TOKENS.index(letter) for letter in CANONICAL_RESIDUES]
RESIDUES = CANONICAL_RESIDUES + "XBUZO"
"""Letters that a normalised sequence may hold, besides `MASK`."""

_CODES = (
    "ala arg asn asp cys gln glu gly his ile leu lys met phe pro ser thr trp tyr val "
    "xaa asx sec glx pyl"
)
RESIDUE_OF_CODE = dict(zip(_CODES.split(), "ARNDCQEGHILKMFPSTWYVXBUZO", strict=True))
"""Letters of the codes of three letters, in lower case."""

MASK = "#"
"""The one character that stands for a ``<mask>`` token in a normalised sequence."""
GAP = "-"
"""A gap in an aligned sequence."""

_TOKEN_OF_BYTE = np.full(256, TOKENS.index("<unk>"), dtype=np.uint8)
for _letter in RESIDUES:
    _TOKEN_OF_BYTE[ord(_letter)] = TOKENS.index(_letter)
_TOKEN_OF_BYTE[ord(MASK)] = MASK_TOKEN
_TOKEN_OF_BYTE[ord("<")] = CLS_TOKEN
_TOKEN_OF_BYTE[ord(">")] = EOS_TOKEN


def encode(sequence: str) -> NDArray[np.uint8]:
    """Turn one normalised sequence into tokens."""
    return encode_all([sequence])


def encode_all(sequences: Sequence[str]) -> NDArray[np.uint8]:
    """Turn normalised sequences into tokens, one behind the other."""
    text = f"<{'><'.join(sequences)}>"
    return _TOKEN_OF_BYTE[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
