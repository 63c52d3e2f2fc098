"""`AlignedTransformer`: the residues of aligned sequences by position, one-hot or as BLOSUM62."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, GAP
from esm2_features._inputs.containers import Column
from esm2_features._inputs.options import ON_MISSING, UNKNOWN, one_of
from esm2_features._inputs.policy import SequencePolicy, TruncationCounter
from esm2_features._inputs.rows import first_place
from esm2_features._sklearn.base import SequenceTransformer
from esm2_features.exceptions import InputError, InvalidSequenceError, shorten

# In half bits, as NCBI distributes it; the last row is that of *, a gap.
_BLOSUM62 = """
   A  C  D  E  F  G  H  I  K  L  M  N  P  Q  R  S  T  V  W  Y
A  4  0 -2 -1 -2  0 -2 -1 -1 -1 -1 -2 -1 -1 -1  1  0  0 -3 -2
C  0  9 -3 -4 -2 -3 -3 -1 -3 -1 -1 -3 -3 -3 -3 -1 -1 -1 -2 -2
D -2 -3  6  2 -3 -1 -1 -3 -1 -4 -3  1 -1  0 -2  0 -1 -3 -4 -3
E -1 -4  2  5 -3 -2  0 -3  1 -3 -2  0 -1  2  0  0 -1 -2 -3 -2
F -2 -2 -3 -3  6 -3 -1  0 -3  0  0 -3 -4 -3 -3 -2 -2 -1  1  3
G  0 -3 -1 -2 -3  6 -2 -4 -2 -4 -3  0 -2 -2 -2  0 -2 -3 -2 -3
H -2 -3 -1  0 -1 -2  8 -3 -1 -3 -2  1 -2  0  0 -1 -2 -3 -2  2
I -1 -1 -3 -3  0 -4 -3  4 -3  2  1 -3 -3 -3 -3 -2 -1  3 -3 -1
K -1 -3 -1  1 -3 -2 -1 -3  5 -2 -1  0 -1  1  2  0 -1 -2 -3 -2
L -1 -1 -4 -3  0 -4 -3  2 -2  4  2 -3 -3 -2 -2 -2 -1  1 -2 -1
M -1 -1 -3 -2  0 -3 -2  1 -1  2  5 -2 -2  0 -1 -1 -1  1 -1 -1
N -2 -3  1  0 -3  0  1 -3  0 -3 -2  6 -2  0  0  1  0 -3 -4 -2
P -1 -3 -1 -1 -4 -2 -2 -3 -1 -3 -2 -2  7 -1 -2 -1 -1 -2 -4 -3
Q -1 -3  0  2 -3 -2  0 -3  1 -2  0  0 -1  5  1  0 -1 -2 -2 -1
R -1 -3 -2  0 -3 -2  0 -3  2 -2 -1  0 -2  1  5 -1 -1 -3 -3 -2
S  1 -1  0  0 -2  0 -1 -2  0 -2 -1  1 -1  0 -1  4  1 -2 -3 -2
T  0 -1 -1 -1 -2 -2 -2 -1 -1 -1 -1  0 -1 -1 -1  1  5  0 -2 -2
V  0 -1 -3 -2 -1 -3 -3  3 -2  1  1 -3 -2 -2 -3 -2  0  4 -3 -1
W -3 -2 -4 -3  1 -2 -2 -3 -3 -2 -1 -4 -4 -2 -3 -3 -2 -3 11  2
Y -2 -2 -3 -2  3 -3  2 -1 -2 -1 -1 -2 -3 -1 -2 -2 -2 -1  2  7
B -2 -3  4  1 -3 -1  0 -3  0 -4 -3  3 -2  0 -1  0 -1 -3 -4 -3
Z -1 -3  1  4 -3 -2  0 -3  1 -3 -1  0 -1  3  0  0 -1 -2 -3 -2
X  0 -2 -1 -1 -1 -1 -1 -1 -1 -1 -1 -1 -2 -1 -1  0  0 -1 -2 -1
- -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4 -4
"""
_ROWS = {line[0]: line[1:].split() for line in _BLOSUM62.splitlines()[2:]}
_SCORES = np.array([_ROWS.get(chr(byte), _ROWS["X"]) for byte in range(128)], dtype=np.float32)
_LETTERS = {"onehot": CANONICAL_RESIDUES + GAP, "blosum62": CANONICAL_RESIDUES}
_TABLES: dict[str, NDArray[np.float32]] = {
    "onehot": (np.arange(128)[:, None] == [*map(ord, _LETTERS["onehot"])]).astype(np.float32),
    "blosum62": _SCORES,
}
"""The features of each character of a normalised sequence: (128, letters)."""


@dataclass(frozen=True)
class _Encoder:
    """Checked parameters."""

    policy: SequencePolicy
    encoding: str


class AlignedTransformer(SequenceTransformer[_Encoder]):
    """Turn aligned protein sequences into features of each position.

    All sequences of a column have the same length, as variants of one protein, antibodies in one
    numbering or the rows of an alignment have. ``-``, ``.`` and ``~`` are gaps. Other input, errors
    and names are those of `ESM2Transformer`.

    Parameters
    ----------
    encoding : {"onehot", "blosum62"}, default="onehot"
        What stands for the residue at a position: ``"onehot"``, 21 columns, with a 1 in that of the
        residue or the gap; or ``"blosum62"``, 20 columns, its scores of substitution by each
        standard residue [1]_, in half bits.
    chains : list of str or int, or None, default=None
        Columns of X to read, by their names or their numbers from 0; None reads all.
    unknown : {"raise", "X", "mask"}, default="raise"
        What to do with characters that stand for no residue: refuse them, or read them as an
        unknown residue.
    on_missing : {"raise", "nan", "zero"}, default="raise"
        What to do with rows without a sequence: refuse them, or give NaN or 0 for their features.

    Attributes
    ----------
    lengths_ : list of int
        Positions of each column of X, gaps included.
    n_features_in_ : int
        Number of columns seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,), object
        Their names, if all have one.
    peptide_sizes_ : list of frozenset of int
        Lengths at which words such as ``NA`` are peptides, for each column.

    See Also
    --------
    DescriptorTransformer : Composition, k-mers and properties of sequences of any length.
    ESM2Transformer : Embeddings.

    Notes
    -----
    The letters X, B, Z, U, O and ``<mask>`` have zeros in one-hot columns. BLOSUM62 has rows for X,
    B and Z; U, O and ``<mask>`` have that of X. A gap has -4, the lowest score, for each residue.

    A cell that holds one to three gaps and nothing else is a missing value, as in other tables;
    longer ones are rows of gaps.

    References
    ----------
    .. [1] Henikoff and Henikoff, *Proc. Natl. Acad. Sci. USA* 89 (1992) 10915-10919.

    Examples
    --------
    >>> from esm2_features import AlignedTransformer
    >>> aligned = AlignedTransformer().fit(["MKT-AYI", "MRTGAYI"])
    >>> aligned.transform(["MKT-AYI"]).shape
    (1, 147)
    >>> aligned.get_feature_names_out()[[0, 20]].tolist()
    ['onehot_1_A', 'onehot_1_-']
    """

    __module__ = "esm2_features"

    def __init__(
        self,
        encoding: Literal["onehot", "blosum62"] = "onehot",
        *,
        chains: Sequence[str | int] | None = None,
        unknown: Literal["raise", "X", "mask"] = "raise",
        on_missing: Literal["raise", "nan", "zero"] = "raise",
    ) -> None:
        self.encoding = encoding
        self.chains = chains
        self.unknown = unknown
        self.on_missing = on_missing

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` has seen how long the sequences are."""
        return hasattr(self, "lengths_")

    def __sklearn_tags__(self) -> Any:
        """Declare that `fit` is required."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        return tags

    def _engine(self, **changed: object) -> _Encoder:  # noqa: ARG002
        one_of("on_missing", self.on_missing, ON_MISSING)
        policy = SequencePolicy(None, unknown=one_of("unknown", self.unknown, UNKNOWN), gaps=True)
        return _Encoder(policy, one_of("encoding", self.encoding, tuple(_TABLES)))

    def _views(
        self, engine: _Encoder, chains: Sequence[Column], truncations: TruncationCounter
    ) -> list[str | None]:
        return engine.policy.normalise_chains(chains, self.on_missing, truncations)

    def _learn(self, views: list[str | None], chains: Sequence[Column]) -> None:
        names = [chain.name or f"x{i}" for i, chain in enumerate(chains)]
        lengths: list[int] = []
        for chain in range(len(chains)):
            counts = Counter(len(view) for view in views[chain :: len(chains)] if view is not None)
            if not counts:
                raise InputError(
                    f"Column {names[chain]!r} of X has no sequence, so its length is not known. "
                    "Fit on rows that have one, or leave the column out."
                )
            lengths += [length for length, _ in counts.most_common(1)]
        _check_lengths(views, lengths, names, expected="most have {}")
        self.lengths_ = lengths

    def _names(self, engine: _Encoder, chain: int) -> list[str]:
        letters, positions = _LETTERS[engine.encoding], range(1, self.lengths_[chain] + 1)
        return [f"{engine.encoding}_{i}_{letter}" for i in positions for letter in letters]

    def _features(
        self, engine: _Encoder, views: list[str | None], n_chains: int, fill: float
    ) -> NDArray[np.float32]:
        _check_lengths(views, self.lengths_, self._chain_names(None), expected="`fit` saw {}")
        table = _TABLES[engine.encoding]
        blocks = []
        for chain, length in enumerate(self.lengths_):
            sequences = views[chain::n_chains]
            block = np.full((len(sequences), length * table.shape[1]), fill, dtype=np.float32)
            present = [i for i, sequence in enumerate(sequences) if sequence is not None]
            letters = "".join(filter(None, sequences)).encode("ascii")
            codes = np.frombuffer(letters, dtype=np.uint8)
            block[present] = table[codes].reshape(len(present), block.shape[1])
            blocks.append(block)
        return np.hstack(blocks)


def _check_lengths(
    views: list[str | None], lengths: Sequence[int], names: Sequence[str], *, expected: str
) -> None:
    """Raise InvalidSequenceError for sequences of other lengths than those of their columns."""
    for chain, length in enumerate(lengths):
        sequences = views[chain :: len(lengths)]
        odd = [i for i, view in enumerate(sequences) if view is not None and len(view) != length]
        if odd:
            sequence = str(sequences[odd[0]])
            place = first_place(odd, names[chain] if len(lengths) > 1 else None)
            raise InvalidSequenceError(
                f"The sequence in {place} has {len(sequence)} positions, gaps included, and "
                f"{expected.format(length)}: {shorten(sequence, 60)!r}. Align the sequences first, "
                "with MAFFT for example, or use DescriptorTransformer, which takes any length.",
                index=odd[0],
            )
