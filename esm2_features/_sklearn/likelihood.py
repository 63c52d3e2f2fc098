"""`ESM2LikelihoodTransformer`: how likely a sequence is, as features for scikit-learn."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache
from esm2_features._checkpoints.catalogue import DEFAULT_MODEL
from esm2_features._engine import Engine
from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.containers import Column
from esm2_features._inputs.mutations import check_length, check_mask, uncut
from esm2_features._inputs.options import one_of
from esm2_features._inputs.policy import TruncationCounter
from esm2_features._inputs.rows import place_of
from esm2_features._sklearn.model import ModelTransformer
from esm2_features._variants import (
    MASKED,
    METHODS,
    PSEUDO,
    UNMASKED,
    check_truncation,
    normalise_wildtype,
    position_log_probs,
    residue_log_probs,
    tokens,
    warn_of_lengths,
)
from esm2_features.exceptions import InputError, InvalidSequenceError, SequenceTooLongError

_OF_SEQUENCE = ("mean_log_prob", "pseudo_perplexity")
_OF_VARIANT = ("llr", "n_mutations")

_LARGEST = float(np.finfo(np.float32).max)


class ESM2LikelihoodTransformer(ModelTransformer):
    """Turn protein sequences into how likely ESM-2 finds them.

    The features of a sequence x of L residues are

    ``mean_log_prob``
        The mean over its residues of log p(residue | context), a natural logarithm.
    ``pseudo_perplexity``
        exp(-mean_log_prob): 1 if the model is sure of every residue, about 20 if of none. At most
        3.4e38, the largest float32, instead of infinity.
    ``llr``
        The log-likelihood ratio to the wild type, as `score_variants` gives it: 0 for the
        wild type, higher for what is more likely. Only if there is a ``wildtype``.
    ``n_mutations``
        How many residues differ from the wild type; of another length, the Levenshtein
        distance (substitutions, insertions and deletions). Only if there is a ``wildtype``.

    Like `ESM2Transformer` it learns nothing: `fit` checks, `transform` works without it.

    Parameters
    ----------
    model : str or path, default="esm2_t33_650M_UR50D"
        As in `ESM2Transformer`.
    chains : list of str or int, or None, default=None
        Columns of X that hold sequences, as in `ESM2Transformer`.
    wildtype : str, list of str or None, default=None
        The protein that the sequences are variants of; with several chains, a list of one for
        each. None if they are of different proteins.
    wildtype_column : str or None, default=None
        Name of the column of X that holds the wild type of each row, beside one column of
        sequences; instead of ``wildtype``, for variants of several proteins.
    method : {"masked-marginals", "wildtype-marginals", "pseudo-perplexity"}
        The context of a residue; see the notes, and mind the cost. The default is
        ``"masked-marginals"``.
    per_residue : bool, default=False
        Whether ``llr`` is the difference of means over the residues, instead of sums; choose it
        for sequences of other lengths than the wild type's. Only with a ``wildtype``.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the products. bfloat16 is too coarse to compare variants; float16 is 8 times
        as exact.
    device : str or list of str, default="auto"
        ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. Several
        in a list share the work, with a copy of the network on each; ``"all"`` is every CUDA card.
    batch_tokens : int or "auto", default="auto"
        Tokens (residues + 2 per sequence) computed at a time, which workers on a CPU divide.
    max_residues : int or None, default=1022
        Longest sequence that is allowed; None allows any.
    too_long : {"raise", "truncate", "window"}, default="raise"
        As in `ESM2Transformer`. With a ``wildtype``, ``"truncate"`` is refused: it would lose
        mutations.
    unknown : {"raise", "X", "mask"}, default="raise"
        As in `ESM2Transformer`. The mean leaves out residues that ``"mask"``, or a ``<mask>`` in
        the sequence, has masked; with a ``wildtype`` they are errors.
    on_missing : {"raise", "nan", "zero"}, default="raise"
        What to do with missing values (None, NaN, words such as ``"NA"``): refuse them, or give
        NaN or 0 as their features.
    cache : "auto", None, path or Cache, default="auto"
        Where log-probabilities are kept, as in `ESM2Transformer`.
    verbose : bool, default=False
        Show progress on a terminal.

    Attributes
    ----------
    n_features_in_ : int
        Number of columns (chains) seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,), object
        Their names, if all of them have one.
    peptide_sizes_ : list of frozenset of int
        For each column, the lengths (2, 3) at which words such as ``"NA"`` are peptides in it.

    See Also
    --------
    score_variants : The ratio alone, for variants written as mutations.
    ESM2Transformer : Embeddings.

    Notes
    -----
    The context of a residue, and what it costs in forward passes:

    ================== ============================== ===============================
    method             with a wild type               without
    ================== ============================== ===============================
    masked-marginals   the wild type, the residue's   the sequence itself, the
                       position masked: L passes for  residue masked: **L passes for
                       all sequences together         each sequence**
    wildtype-marginals the wild type, nothing         the sequence itself, nothing
                       masked: 1 pass in all          masked: 1 pass each
    pseudo-perplexity  the sequence itself, the       the same as masked-marginals
                       residue masked: **L passes
                       for each sequence**
    ================== ============================== ===============================

    A thousand proteins of 300 residues are 300 000 passes where L passes are needed for each;
    choose ``"wildtype-marginals"`` or a small model, and keep the cache. Peptides are cheap.

    The marginals are of substitutions: sequences that are not as long as the wild type are
    refused. With ``"pseudo-perplexity"`` they are allowed, with a warning: ``llr`` is a sum then
    that rises with every residue that is lost, unless ``per_residue=True`` makes it a mean.

    Side by side with embeddings, ``llr`` makes a ridge regression the augmented one of Hsu et
    al., a baseline for where few variants are measured; they have the residues, one-hot, in the
    place of embeddings::

        FeatureUnion([
            ("embedding", ESM2Transformer()),
            ("llr", ESM2LikelihoodTransformer(wildtype=wildtype)),
        ])

    Ridge penalises ``llr`` like any component of the embedding; Hsu et al. hardly penalise it.
    ``transformer_weights={"llr": 100}`` in the union does so, too: larger features need smaller
    coefficients.

    References
    ----------
    Meier et al., "Language models enable zero-shot prediction of the effects of mutations on
    protein function", NeurIPS 34 (2021) 29287-29303.

    Salazar et al., "Masked language model scoring", ACL (2020) 2699-2712: pseudo-perplexity.

    Hsu et al., "Learning protein fitness models from evolutionary and assay-labeled data",
    Nature Biotechnology 40 (2022) 1114-1122.

    Examples
    --------
    >>> from esm2_features import ESM2LikelihoodTransformer
    >>> likelihood = ESM2LikelihoodTransformer("mini", wildtype="MKTAYIAKQR", cache=None)
    >>> likelihood.fit_transform(["MKTAYIAKQR", "MRTAYIAKER"])[:, -1].tolist()
    [0.0, 2.0]
    >>> likelihood.get_feature_names_out().tolist()
    ['mean_log_prob', 'pseudo_perplexity', 'llr', 'n_mutations']
    """

    __module__ = "esm2_features"

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        chains: Sequence[str | int] | None = None,
        wildtype: str | Sequence[str] | None = None,
        wildtype_column: str | None = None,
        method: str = MASKED,
        per_residue: bool = False,
        precision: str = "float32",
        device: str | list[str] = "auto",
        batch_tokens: int | Literal["auto"] = "auto",
        max_residues: int | None = 1022,
        too_long: Literal["raise", "truncate", "window"] = "raise",
        unknown: Literal["raise", "X", "mask"] = "raise",
        on_missing: Literal["raise", "nan", "zero"] = "raise",
        cache: str | os.PathLike[str] | Cache | None = "auto",
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.chains = chains
        self.wildtype = wildtype
        self.wildtype_column = wildtype_column
        self.method = method
        self.per_residue = per_residue
        self.precision = precision
        self.device = device
        self.batch_tokens = batch_tokens
        self.max_residues = max_residues
        self.too_long = too_long
        self.unknown = unknown
        self.on_missing = on_missing
        self.cache = cache
        self.verbose = verbose

    def _engine(self, **changed: object) -> Engine:
        own = ("method", "wildtype", "wildtype_column", "per_residue")
        parameters = self._engine_parameters(changed, own)
        one_of("method", self.method, METHODS)
        if self.wildtype is not None and self.wildtype_column is not None:
            raise InputError(
                f"Got wildtype and wildtype_column={self.wildtype_column!r}. Pass one wild type "
                "for all rows, or the name of the column that holds that of each row."
            )
        if self._has_wildtype:
            check_truncation(parameters["too_long"])
        elif self.per_residue:
            raise InputError(
                "Got per_residue=True without a wildtype, and it is about the ratio to one. Leave "
                "it out: mean_log_prob is a mean over the residues."
            )
        return Engine(**parameters)

    @property
    def _has_wildtype(self) -> bool:
        return self.wildtype is not None or self.wildtype_column is not None

    def _names(self, engine: Engine, chain: int) -> list[str]:  # noqa: ARG002
        return [*_OF_SEQUENCE, *(_OF_VARIANT if self._has_wildtype else ())]

    def _chains_out(self, chains: list[str]) -> list[str]:
        return [chain for chain in chains if chain != self.wildtype_column]

    def _views(
        self, engine: Engine, chains: Sequence[Column], truncations: TruncationCounter
    ) -> list[str | None]:
        """Check sequences against the wild type, too; they are their own views.

        With a column of wild types, each sequence is followed by its wild type.
        """
        if self.wildtype_column is not None:
            names = [chain.name for chain in chains]
            if len(chains) != 2 or names.count(self.wildtype_column) != 1:
                raise InputError(
                    f"Got wildtype_column={self.wildtype_column!r} and the columns {names}. Pass a "
                    "frame with this column and one of sequences."
                )
            chains = sorted(chains, key=lambda chain: chain.name == self.wildtype_column)
        try:
            sequences = engine.policy.normalise_chains(chains, self.on_missing, truncations)
        except SequenceTooLongError as error:
            if not self._has_wildtype:
                raise
            raise uncut(error) from error
        self._check_variants(engine, sequences, chains)
        return sequences

    def _check_variants(
        self, engine: Engine, sequences: list[str | None], chains: Sequence[Column]
    ) -> None:
        """Raise InputError if a sequence has no likelihood, or is no variant of its wild type."""
        names = [chain.name or f"x{i}" for i, chain in enumerate(chains)]
        if self.wildtype_column is not None:
            self._check_pairs(sequences, chains, names)
            return
        wildtypes = self._wildtypes(engine, len(chains), names)
        for i, sequence in enumerate(sequences):
            if sequence is None:
                continue
            row, k = divmod(i, len(chains))
            wildtype = wildtypes[k]
            if wildtype is None:
                if sequence.count(MASK) == len(sequence):
                    raise InvalidSequenceError(
                        f"The sequence in {place_of(row)} holds nothing but <mask>, so there is no "
                        "residue to have a likelihood. Drop such rows.",
                        index=row,
                        position=1,
                        residue="<mask>",
                    )
                continue
            given, column = chains[k].values[row], names[k] if len(chains) > 1 else None
            check_mask(sequence, index=row, given=given, column=column)
            if self.method != PSEUDO:
                check_length(wildtype, sequence, index=row, given=given, column=column)

    def _check_pairs(
        self, sequences: list[str | None], chains: Sequence[Column], names: Sequence[str]
    ) -> None:
        """Check each sequence against the wild type of its row; a row has both or none."""
        for row in range(len(sequences) // 2):
            pair = sequences[2 * row : 2 * row + 2]
            if None in pair:
                sequences[2 * row : 2 * row + 2] = [None, None]
                continue
            for sequence, chain, name in zip(pair, chains, names, strict=True):
                check_mask(str(sequence), index=row, given=chain.values[row], column=name)
            if self.method != PSEUDO:
                given = chains[0].values[row]
                check_length(str(pair[1]), str(pair[0]), index=row, given=given, column=names[0])

    def _features(
        self, engine: Engine, views: list[str | None], n_chains: int, fill: float
    ) -> NDArray[np.float32]:
        sequences, wildtypes, n = views, self._wildtypes(engine, n_chains), n_chains
        wildtypes *= len(views) // n_chains
        if self.wildtype_column is not None:
            sequences, wildtypes, n = views[::2], views[1::2], 1
        if not self.per_residue:
            for chain in range(n):
                warn_of_lengths(wildtypes[chain::n], sequences[chain::n])
        features = np.full((len(sequences), len(self._names(engine, 0))), fill, dtype=np.float32)
        rows_of: dict[str | None, dict[str, list[int]]] = {}
        for row, (wildtype, sequence) in enumerate(zip(wildtypes, sequences, strict=True)):
            if sequence is not None:
                rows_of.setdefault(wildtype, {}).setdefault(sequence, []).append(row)
        for wildtype, rows in rows_of.items():
            found = _of_chain(engine, list(rows), wildtype, self.method, self.per_residue)
            for of_one, members in zip(found, rows.values(), strict=True):
                features[members] = of_one
        return features

    def _wildtypes(
        self, engine: Engine, n_chains: int, names: Sequence[str] = ()
    ) -> list[str | None]:
        """Normalise the wild types, one for each chain; the names are for messages."""
        if self.wildtype is None:
            return [None] * n_chains
        several = isinstance(self.wildtype, list | tuple)
        wildtypes = list(self.wildtype) if several else [self.wildtype]
        if len(wildtypes) != n_chains:
            raise InputError(
                f"Got {len(wildtypes)} wild type(s) for {n_chains} chain(s). Pass wildtype=[...] "
                "with one for each column of X, in their order."
            )
        called = [f"the wild type of {name!r}" for name in names if n_chains > 1]
        called = called or ["the wild type"] * n_chains
        return [normalise_wildtype(engine, *pair) for pair in zip(wildtypes, called, strict=True)]


def _of_chain(
    engine: Engine, sequences: list[str], wildtype: str | None, method: str, per_residue: bool
) -> NDArray[np.float64]:
    """Features of distinct sequences of one chain: (n, 2), with a wild type (n, 4)."""
    if wildtype is None:
        log_probs = residue_log_probs(engine, sequences, masked=method != UNMASKED)
        return np.array([_of_sequence(of_one) for of_one in log_probs])
    if method == PSEUDO:
        distinct = list(dict.fromkeys([wildtype, *sequences]))
        found = residue_log_probs(engine, distinct, masked=True)
        by_sequence = dict(zip(distinct, found, strict=True))
        log_probs = [by_sequence[sequence] for sequence in sequences]
        of_wildtype = by_sequence[wildtype]
    else:
        positions = np.arange(len(wildtype))
        table = position_log_probs(engine, wildtype, positions.tolist(), masked=method == MASKED)
        log_probs = [table[positions, tokens(sequence)] for sequence in sequences]
        of_wildtype = table[positions, tokens(wildtype)]
    total = np.mean if per_residue else np.sum
    return np.array(
        [
            (*_of_sequence(of_one), total(of_one) - total(of_wildtype), _edits(wildtype, sequence))
            for sequence, of_one in zip(sequences, log_probs, strict=True)
        ]
    )


def _of_sequence(log_probs: NDArray[np.float64]) -> tuple[float, float]:
    mean = float(log_probs.mean())
    # 700 is more than the logarithm of any float32, and less than what overflows here.
    return mean, min(math.exp(min(-mean, 700.0)), _LARGEST)


def _edits(first: str, second: str) -> int:
    """Count substitutions at equal length, and edits (Levenshtein) at another."""
    x, y = tokens(first), tokens(second)
    if len(x) == len(y):
        return int(np.count_nonzero(x != y))
    # Row by row of Wagner and Fischer's table. What an insertion adds along a row is a running
    # minimum, so that no step is taken in Python for each cell.
    columns = np.arange(len(y) + 1)
    row = columns
    for i, residue in enumerate(x, start=1):
        above = np.minimum(row[1:] + 1, row[:-1] + (y != residue))
        row = np.minimum.accumulate(np.concatenate([[i], above]) - columns) + columns
    return int(row[-1])
