"""`DescriptorTransformer`: length, composition, k-mers and properties of protein sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK, RESIDUES
from esm2_features._inputs.containers import Column
from esm2_features._inputs.options import ON_MISSING, UNKNOWN, is_whole, names, one_of
from esm2_features._inputs.policy import SequencePolicy, TruncationCounter
from esm2_features._inputs.rows import place_of
from esm2_features._sklearn.base import SequenceTransformer
from esm2_features._sklearn.properties import PROPERTIES, properties
from esm2_features.exceptions import InputError, InvalidSequenceError, shorten

_FEATURES = ("length", "composition", "kmers", "properties")
_MEANS = {"composition", "properties"}
_KMER_VALUES = ("frequency", "count", "presence")
_LONGEST_KMER = 4
_OTHERS = RESIDUES.replace(CANONICAL_RESIDUES, "") + MASK


@dataclass(frozen=True)
class _Descriptors:
    """Checked parameters, and what they ask for."""

    policy: SequencePolicy
    features: tuple[str, ...]
    sizes: range  # of k-mers
    kmer_values: str

    @property
    def names(self) -> list[str]:
        of_feature = {
            "length": ["length"],
            "composition": [f"composition_{residue}" for residue in CANONICAL_RESIDUES],
            "kmers": [f"kmer_{kmer}" for k in self.sizes for kmer in _kmers(k)],
            "properties": list(PROPERTIES),
        }
        return [name for feature in self.features for name in of_feature[feature]]

    def of(self, sequences: Sequence[str]) -> Any:
        """Compute the features of sequences: a CSR matrix of shape (n, d), float32."""
        if not sequences:
            return sparse.csr_matrix((0, len(self.names)), dtype=np.float32)
        blocks = [block for feature in self.features for block in self._blocks(feature, sequences)]
        return sparse.hstack(blocks, format="csr", dtype=np.float32)

    def _blocks(self, feature: str, sequences: Sequence[str]) -> list[Any]:
        if feature == "length":
            return [sparse.csr_matrix([[len(sequence)] for sequence in sequences])]
        if feature == "composition":
            return [normalize(_counts(sequences, 1), norm="l1")]
        if feature == "properties":
            counts = _counts(sequences, 1).toarray()
            return [sparse.csr_matrix(properties(sequences, counts))]
        blocks = [_counts(sequences, k) for k in self.sizes]
        if self.kmer_values == "count":
            return blocks
        if self.kmer_values == "presence":
            return [block.sign() for block in blocks]
        return [normalize(block, norm="l1") for block in blocks]


class DescriptorTransformer(SequenceTransformer[_Descriptors]):
    """Turn protein sequences into classical descriptors, as a baseline for embeddings.

    Descriptors need no model, and take seconds for 50,000 peptides. Input, errors and names are
    those of `ESM2Transformer`, so that one can take the place of the other in a pipeline. The
    transformer learns nothing: the columns depend on the parameters alone.

    Parameters
    ----------
    features : str or list of str, default="composition"
        What to compute, in this order:

        - ``"length"``: number of residues (1 column);
        - ``"composition"``: share of each of the 20 standard residues (20 columns);
        - ``"kmers"``: all words of ``k`` standard residues (20**k columns for each k);
        - ``"properties"``: physico-chemical properties (9 columns, see Notes).
    k : int or tuple of (int, int), default=(1, 3)
        Size of the k-mers, or the smallest and the largest size, from 1 to 4.
    kmer_values : {"frequency", "count", "presence"}, default="frequency"
        Of each k-mer, its share of the k-mers of the same size in the sequence, its count
        (overlaps included), or 1 if it occurs.
    sparse_output : bool, default=False
        Give a sparse matrix in CSR format. Use it with k-mers: 1-mers to 3-mers are 8,420 columns.
    chains : list of str or int, or None, default=None
        Columns of X to read, by their names or their numbers from 0; None reads all.
    unknown : {"raise", "X", "mask"}, default="raise"
        What to do with characters that stand for no residue: refuse them, or read them as an
        unknown residue.
    on_missing : {"raise", "nan", "zero"}, default="raise"
        What to do with rows without a sequence: refuse them, or give NaN or 0 for their features.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,), object
        Their names, if all have one.
    peptide_sizes_ : list of frozenset of int
        Lengths at which words such as ``NA`` are peptides, for each column.

    See Also
    --------
    AlignedTransformer : Residues by position, for aligned sequences.
    ESM2Transformer : Embeddings.

    Notes
    -----
    The properties are: ``gravy``, the mean hydropathy [1]_; ``volume``, the mean volume of a
    residue in cubic angstroms [2]_; ``helix_propensity`` and ``sheet_propensity``, means [3]_;
    ``aromaticity``, the share of F, W and Y [4]_; ``aliphatic_index`` [5]_; ``charge``, the net
    charge at pH 7, and ``isoelectric_point``, both with free ends [6]_ [7]_; and
    ``molecular_weight`` in daltons.

    The letters X, B, Z, U, O and ``<mask>`` count in the length only. They are in no k-mer, the
    composition and the means are those of the other residues, and in the weight each of them
    counts as a mean residue of its sequence.

    References
    ----------
    .. [1] Kyte and Doolittle, *J. Mol. Biol.* 157 (1982) 105-132.
    .. [2] Zamyatnin, *Prog. Biophys. Mol. Biol.* 24 (1972) 107-123.
    .. [3] Chou and Fasman, *Adv. Enzymol.* 47 (1978) 45-148.
    .. [4] Lobry and Gautier, *Nucleic Acids Res.* 22 (1994) 3174-3180.
    .. [5] Ikai, *J. Biochem.* 88 (1980) 1895-1898.
    .. [6] Bjellqvist et al., *Electrophoresis* 14 (1993) 1023-1031.
    .. [7] Bjellqvist et al., *Electrophoresis* 15 (1994) 529-539.

    Examples
    --------
    >>> from esm2_features import DescriptorTransformer
    >>> descriptors = DescriptorTransformer(["length", "properties"]).set_output(transform="pandas")
    >>> frame = descriptors.fit_transform(["GIGAVLKVLTTGLPALISWIKRKRQQ", "CYIQNCPLG"])
    >>> [round(value, 1) for value in frame["charge"]]
    [4.8, -0.3]
    >>> kmers = DescriptorTransformer("kmers", k=2, kmer_values="count", sparse_output=True)
    >>> kmers.fit_transform(["CYIQNCPLG"]).shape
    (1, 400)
    """

    __module__ = "esm2_features"

    def __init__(
        self,
        features: str | Sequence[str] = "composition",
        *,
        k: int | tuple[int, int] = (1, 3),
        kmer_values: Literal["frequency", "count", "presence"] = "frequency",
        sparse_output: bool = False,
        chains: Sequence[str | int] | None = None,
        unknown: Literal["raise", "X", "mask"] = "raise",
        on_missing: Literal["raise", "nan", "zero"] = "raise",
    ) -> None:
        self.features = features
        self.k = k
        self.kmer_values = kmer_values
        self.sparse_output = sparse_output
        self.chains = chains
        self.unknown = unknown
        self.on_missing = on_missing

    def _engine(self, **changed: object) -> _Descriptors:  # noqa: ARG002
        on_missing = one_of("on_missing", self.on_missing, ON_MISSING)
        if self.sparse_output not in (True, False):
            raise InputError(f"Got sparse_output={self.sparse_output!r}; expected True or False.")
        if self.sparse_output and on_missing == "nan":
            raise InputError(
                'Got sparse_output=True with on_missing="nan", which fills rows. Pass '
                'on_missing="zero", or sparse_output=False.'
            )
        return _Descriptors(
            SequencePolicy(None, unknown=one_of("unknown", self.unknown, UNKNOWN)),
            names("features", self.features, _FEATURES),
            _sizes(self.k),
            one_of("kmer_values", self.kmer_values, _KMER_VALUES),
        )

    def _views(
        self, engine: _Descriptors, chains: Sequence[Column], truncations: TruncationCounter
    ) -> list[str | None]:
        sequences = engine.policy.normalise_chains(chains, self.on_missing, truncations)
        undefined = [name for name in engine.features if name in _MEANS]
        for i, sequence in enumerate(sequences if undefined else ()):
            if sequence is not None and not sequence.strip(_OTHERS):
                row, chain = divmod(i, len(chains))
                place = place_of(row, chains[chain].name if len(chains) > 1 else None)
                raise InvalidSequenceError(
                    f"The sequence in {place} has none of the 20 standard residues, so it has no "
                    f"{undefined[0]}: {shorten(str(chains[chain].values[row]), 60)!r}. Drop such "
                    "rows, or ask for other features.",
                    index=row,
                    position=1,
                    residue=sequence[0],
                )
        return sequences

    def _names(self, engine: _Descriptors, chain: int) -> list[str]:  # noqa: ARG002
        return engine.names

    def _features(
        self, engine: _Descriptors, views: list[str | None], n_chains: int, fill: float
    ) -> NDArray[np.float32] | sparse.csr_matrix:
        present = [i for i, sequence in enumerate(views) if sequence is not None]
        found = engine.of([sequence for sequence in views if sequence is not None])
        if len(present) < len(views):
            # One row for each view, with one 1 where there is a sequence.
            ones = np.ones(len(present), dtype=np.float32)
            where = (present, range(len(present)))
            found = sparse.csr_matrix((ones, where), shape=(len(views), len(present))) @ found
        if self.sparse_output:
            of_chains = [found[chain::n_chains] for chain in range(n_chains)]
            return sparse.csr_matrix(sparse.hstack(of_chains, format="csr"))
        features: NDArray[np.float32] = found.toarray()
        features[[i for i, sequence in enumerate(views) if sequence is None]] = fill
        return features


def _sizes(k: object) -> range:
    """Check the sizes of k-mers."""
    pair: list[Any] = list(k) if isinstance(k, tuple | list) else [k, k]
    if len(pair) == 2 and all(map(is_whole, pair)) and 1 <= pair[0] <= pair[1] <= _LONGEST_KMER:
        return range(int(pair[0]), int(pair[1]) + 1)
    raise InputError(
        f"Got k={k!r}; expected a size from 1 to {_LONGEST_KMER}, or the smallest and the largest "
        "size, such as (1, 3)."
    )


def _kmers(k: int) -> list[str]:
    """List all words of k standard residues."""
    return ["".join(letters) for letters in product(CANONICAL_RESIDUES, repeat=k)]


def _counts(sequences: Sequence[str], k: int) -> Any:
    """Count the k-mers of each sequence: a CSR matrix of shape (n, 20**k)."""
    counter = CountVectorizer(
        analyzer="char", ngram_range=(k, k), lowercase=False, vocabulary=_kmers(k), dtype=np.float32
    )
    return counter.transform(sequences)
