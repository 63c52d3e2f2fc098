"""`cluster_sequences`: families of related sequences, for ``groups=``."""

from __future__ import annotations

from typing import Literal

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray

from esm2_features.model_selection.pairs import (
    PairSearch,
    fraction,
    read_sequences,
    sorted_distinct,
)


def cluster_sequences(
    sequences: object,
    *,
    min_identity: float = 0.4,
    coverage: float = 0.5,
    engine: Literal["auto", "alignment", "mmseqs"] = "auto",
    unknown: Literal["raise", "X", "mask"] = "raise",
    n_jobs: int | None = -1,
) -> NDArray[np.intp]:
    """Cluster sequences into families of relatives, to pass as ``groups`` to a splitter.

    Two sequences are related if their identity is at least ``min_identity``, and a family holds
    all sequences that a chain of relatives connects (single linkage). Therefore no sequence has a
    relative in another family, which CD-HIT and MMseqs2's own clusters, made around
    representatives, do not promise.

    Parameters
    ----------
    sequences : list of str, or one column of an array, Series, frame or table
        As in `Engine.embed`, of any length.
    min_identity : float, default=0.4
        Identity from which two sequences are related, a fraction.
    coverage : float, default=0.5
        Part of the shorter sequence that the alignment has to cover, a fraction.
    engine : {"auto", "alignment", "mmseqs"}, default="auto"
        ``"alignment"`` aligns all pairs. ``"mmseqs"`` aligns those that MMseqs2 proposes, and all
        pairs with a short sequence (below 50 residues; in sets of more than 2 million residues,
        below 25). ``"auto"`` aligns all pairs if this takes at most a minute of a core or so, or
        if MMseqs2 is not installed; the logger ``"esm2_features"`` tells which it took.
    unknown : {"raise", "X", "mask"}, default="raise"
        What happens to unknown letters, as in `ESM2Transformer`.
    n_jobs : int or None, default=-1
        Threads; -1 means one for each core.

    Returns
    -------
    families : ndarray of shape (n,), intp
        Family of each sequence, numbered from 0 in the order in which they appear.

    Raises
    ------
    InputError, TypeError
        If a sequence is wrong, as in `Engine.embed`, or another parameter.
    MissingDependencyError
        If parasail or pyopal, which align, are not installed; or if MMseqs2 is wanted, or needed
        for so many sequences, and not installed.
    Esm2FeaturesError
        If MMseqs2 fails.

    See Also
    --------
    train_test_identity : Find the nearest training sequence of every test sequence.
    check_splits : Warn of families that are on both sides of a split.

    Notes
    -----
    The identity of two sequences is the number of identical residues in their best local alignment
    (Smith-Waterman, BLOSUM62, gaps of 11 + 1 for each further residue), divided by the length of
    the shorter one. If that has fewer than 8 residues, the length of the longer one is taken, since
    most proteins hold every tripeptide. X, B, Z and masks are identical to nothing. The engines
    share this definition and the aligner.

    Short or unlike sequences agree by chance in 30 or 40 % of their residues. Below an identity of
    0.7, an alignment counts only if its E-value is at most 0.001 in a search of all ``sequences``,
    the usual threshold of BLAST and MMseqs2.

    Examples
    --------
    >>> from esm2_features.model_selection import cluster_sequences
    >>> magainins = ["GIGKFLHSAKKFGKAFVGEIMNS", "GIGKFLHSAGKFGKAFVGEIMKS"]
    >>> cluster_sequences([*magainins, "HSQGTFTSDYSKYLDSRRAQDFVQWLMNT"])
    array([0, 0, 1])
    """
    search = PairSearch(
        fraction("min_identity", min_identity), coverage, engine, effective_n_jobs(n_jobs)
    )
    residues = read_sequences(sequences, owner="cluster_sequences", unknown=unknown)
    distinct = sorted_distinct(residues)
    labels = search.connected(distinct)
    at = {sequence: i for i, sequence in enumerate(distinct)}
    families = labels[np.array([at[sequence] for sequence in residues], np.intp)]
    _, first, families = np.unique(families, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[families]
