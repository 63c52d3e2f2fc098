"""Variants of a protein: how likely the model finds them, compared with the wild type."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from esm2_features._engine import Engine
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, MASK, MASK_TOKEN, encode
from esm2_features._inputs.cells import is_biopython_seq, is_missing
from esm2_features._inputs.containers import labels_of, listed
from esm2_features._inputs.messages import Message
from esm2_features._inputs.mutations import (
    Mutation,
    check_length,
    mutate,
    mutations_between,
    read_variants_of,
    uncut,
)
from esm2_features._inputs.options import one_of
from esm2_features._inputs.rows import first_place, labelled
from esm2_features.exceptions import InputError, InvalidSequenceError, SequenceTooLongError

MASKED, UNMASKED, PSEUDO = "masked-marginals", "wildtype-marginals", "pseudo-perplexity"
METHODS = (MASKED, UNMASKED, PSEUDO)

_ROWS_AT_A_TIME = 50_000
"""Positions asked of the engine at a time; their log-probabilities take 6.6 MB."""

_ITS_ROW = re.compile(r"(?:([Tt])he sequence in )?row 0 of column 'wildtype'")
"""What a wild type is called as a cell, in messages about cells."""


def score_variants(
    model: Engine | str | os.PathLike[str],
    wildtype: str | Iterable[str],
    variants: Iterable[str],
    method: str = MASKED,
    *,
    offset: int = 0,
    per_residue: bool = False,
) -> NDArray[np.float64]:
    """Score variants of proteins by their log-likelihood ratio to the wild type.

    Parameters
    ----------
    model : Engine, str or path
        An `Engine`, whose options and cache are used, or what ``Engine(model)`` takes.
    wildtype : str, or iterable of str of length n
        The protein that the variants are of; or, in a list or a column, that of each variant.
    variants : iterable of str
        Each is one mutation (``"A123G"``), several (``"A123G:D42N"``), substitutions in HGVS
        (``"p.Ala123Gly"``, ``"p.[Ala123Gly;Asp42Asn]"``), the sequence of the mutant, or a word
        for the wild type: ``"WT"``, ``"_wt"``, ``"wildtype"``, ``"native"``, ``"parent"``,
        ``"reference"``, or one for no change: ``"synonymous"``, ``"_sy"``, ``"p.="``,
        ``"A123="``. Letters may be in lower case. The engine's ``unknown`` is about sequences: in
        ``"A123J"``, J is refused whatever it says.
    method : {"masked-marginals", "wildtype-marginals", "pseudo-perplexity"}
        How probabilities are computed; see the notes. The default is ``"masked-marginals"``.
    offset : int, default=0
        Number of the residue before the first one: with ``offset=23``, ``"M24V"`` mutates the
        first residue.
    per_residue : bool, default=False
        Whether to divide by the number of residues: the score is then the difference of means
        over the residues of the mutant and of the wild type. Choose it to compare insertions and
        deletions by ``"pseudo-perplexity"``.

    Returns
    -------
    scores : ndarray of shape (n,), float64
        Natural logarithms, in the order of the variants: 0 for the wild type, and higher for
        what the model finds more likely.

    Raises
    ------
    InvalidVariantError
        If a variant cannot be read or does not fit the wild type, with its row and a remedy.
        Nothing has been computed then.
    InvalidSequenceError, MissingSequenceError, SequenceTooLongError
        If the wild type, or the sequence of a mutant, is none.
    InputError
        If the method is another, or the engine has a region or ``too_long="truncate"``.
    TypeError
        If an argument is of a wrong type.
    CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
        As `Engine.embed`.

    Warns
    -----
    UserWarning
        If a sequence is not as long as the wild type, and ``per_residue`` is False; or if a
        mutation such as ``"R10X"``, which some write for a stop, is read as an unknown residue.

    See Also
    --------
    scan_variants : All single substitutions at once.
    ESM2LikelihoodTransformer : The same as features.

    Notes
    -----
    ``"masked-marginals"`` adds, over the mutated positions i,
    log p(mutant residue | wild type without i) - log p(wild-type residue | wild type without i).
    Every position is masked by itself, and computed once however many variants mutate it: the
    cost is one forward pass for each position that any of them mutates. Meier et al. write the
    formula with all mutated positions masked at once; their code, and the sums over ``:`` of
    ProteinGym, mask one at a time, as here. The two differ for multiple mutants.

    ``"wildtype-marginals"`` adds the same terms from one forward pass of the wild type with
    nothing masked. It is the cheapest.

    ``"pseudo-perplexity"`` is PLL(mutant) - PLL(wild type), where the pseudo-log-likelihood
    PLL(x) adds log p(residue | x without i) over all L positions i of x, so that the
    pseudo-perplexity is exp(-PLL / L) (Salazar et al.). It costs L forward passes for every
    variant, and is the only method for insertions and deletions, which Brandes et al. score by
    the same ratio. A sum rises with every residue that is lost, by 1 to 3 nats, so that the loss of
    half a protein seems to be a gain: with ``per_residue=True`` the
    score is log(pseudo-perplexity of the wild type / pseudo-perplexity of the mutant), which does
    not depend on the length. The code of Meier et al. masks a position, reads there the
    probability of the next residue, and leaves out the last two positions; this function does not.

    ESM-2 hardly ever expects X, B, U, Z or O: ratios to or from them say nothing of the protein.

    Probabilities are over all 33 tokens of the vocabulary, as in the code of Meier et al.

    References
    ----------
    Meier et al., "Language models enable zero-shot prediction of the effects of mutations on
    protein function", NeurIPS 34 (2021) 29287-29303; ``examples/variant-prediction/predict.py``
    of fair-esm.

    Salazar et al., "Masked language model scoring", ACL (2020) 2699-2712: pseudo-log-likelihood.

    Brandes et al., "Genome-wide prediction of disease variant effects with a deep protein
    language model", Nature Genetics 55 (2023) 1512-1522.

    Examples
    --------
    >>> from esm2_features import Engine, score_variants
    >>> engine = Engine("mini", cache=None)
    >>> score_variants(engine, "MKTAYIAKQR", ["K2R", "K2R:Q9E", "WT"]).round(2).tolist()
    [-0.2, 0.61, 0.0]

    A deletion, and numbers as in a paper that counts a signal peptide of 23 residues:

    >>> shorter = ["MKTAYAKQR"]
    >>> method = "pseudo-perplexity"
    >>> score_variants(engine, "MKTAYIAKQR", shorter, method, per_residue=True).shape
    (1,)
    >>> score_variants(engine, "MKTAYIAKQR", ["K25R"], offset=23).round(2).tolist()
    [-0.2]
    """
    one_of("method", method, METHODS)
    engine = _engine_of(model)
    is_one = isinstance(wildtype, str | bytes) or not isinstance(wildtype, Iterable)
    is_one |= is_biopython_seq(wildtype) or hasattr(type(wildtype), "seq")
    protein = normalise_wildtype(engine, wildtype) if is_one else ""
    if isinstance(offset, bool) or not isinstance(offset, Integral):
        raise TypeError(f"Got offset={offset!r}; expected a whole number.")
    _check_single(variants)
    given = listed(variants, "variants")
    proteins = [protein] * len(given) if is_one else _wildtypes(engine, wildtype, len(given))
    with labelled(labels_of(variants)):
        normalise = engine.policy.normalise
        found = read_variants_of(proteins, given, offset=int(offset), normalise=normalise)
        rows = list(zip(proteins, found, strict=True))
        if method == PSEUDO:
            mutants = [v if isinstance(v, str) else mutate(of_row, v) for of_row, v in rows]
            if not per_residue:
                warn_of_lengths(proteins, mutants)
            return _pseudo_ratios(engine, proteins, mutants, per_residue=per_residue)
        for index, (of_row, variant) in enumerate(rows):
            if isinstance(variant, str):
                check_length(of_row, variant, index=index, given=given[index])
    mutations = [mutations_between(of_row, v) if isinstance(v, str) else v for of_row, v in rows]
    scores = _marginals(engine, proteins, mutations, masked=method == MASKED)
    return scores / [len(of_row) for of_row in proteins] if per_residue else scores


def scan_variants(
    model: Engine | str | os.PathLike[str], wildtype: str, method: str = MASKED
) -> NDArray[np.float64]:
    """Score all single substitutions of a protein.

    Parameters
    ----------
    model : Engine, str or path
        An `Engine`, whose options and cache are used, or what ``Engine(model)`` takes.
    wildtype : str
        The protein, of L residues.
    method : {"masked-marginals", "wildtype-marginals"}
        As in `score_variants`. The default is ``"masked-marginals"``, which takes L forward
        passes; ``"wildtype-marginals"`` takes one.

    Returns
    -------
    scores : ndarray of shape (L, 20), float64
        Natural logarithms: of position i and residue ``"ACDEFGHIKLMNPQRSTVWY"[j]``, what
        `score_variants` gives for that substitution. 0 at the residue of the wild type.

    Raises
    ------
    InputError
        If the method, the wild type or the engine is one that `score_variants` refuses, too.
    TypeError
        If an argument is of a wrong type.
    CheckpointError, OutOfMemoryError, NumericalError, ForkedProcessError, CacheVersionError
        As `Engine.embed`.

    See Also
    --------
    score_variants : Any variants, and what the methods are.

    References
    ----------
    Meier et al., "Language models enable zero-shot prediction of the effects of mutations on
    protein function", NeurIPS 34 (2021) 29287-29303.

    Examples
    --------
    >>> from esm2_features import Engine, scan_variants
    >>> scores = scan_variants(Engine("mini", cache=None), "MKTAYIAKQR")
    >>> scores.shape, scores.dtype
    ((10, 20), dtype('float64'))
    >>> float(scores[1, "ACDEFGHIKLMNPQRSTVWY".index("K")])  # residue 2 is a K
    0.0
    """
    if method == PSEUDO:
        raise InputError(
            'Got method="pseudo-perplexity", which would mask each residue of each of the 19 L '
            "single mutants, 19 L x L forward passes. Use one of the marginals for a scan, or "
            "score_variants for a few variants."
        )
    one_of("method", method, (MASKED, UNMASKED))
    engine = _engine_of(model)
    protein = normalise_wildtype(engine, wildtype)
    log_probs = position_log_probs(engine, protein, range(len(protein)), masked=method == MASKED)
    of_wildtype = log_probs[np.arange(len(protein)), tokens(protein)]
    return log_probs[:, tokens(CANONICAL_RESIDUES)] - of_wildtype[:, None]


def check_truncation(too_long: object) -> None:
    """Refuse to cut the sequences of variants."""
    if too_long == "truncate":
        raise InputError(
            'Got too_long="truncate" with a wild type: mutations could be cut off, and scored as '
            'if they were none. Pass too_long="window", or too_long="raise".'
        )


def normalise_wildtype(engine: Engine, wildtype: object, name: str = "the wild type") -> str:
    if is_missing(wildtype) or isinstance(wildtype, list | tuple | np.ndarray):
        raise TypeError(
            f"Got {wildtype!r:.60} as {name}; pass one sequence, as text. For variants of "
            "several proteins, pass a list with the wild type of each variant, and drop rows "
            "without one."
        )
    try:
        protein = engine.policy.normalise([wildtype], column="wildtype")[0]
    except (InputError, TypeError) as error:
        told = uncut(error) if isinstance(error, SequenceTooLongError) else error
        told.args = (_called(name, told),)
        raise told from None
    if MASK in protein:
        position = protein.index(MASK) + 1
        raise InvalidSequenceError(
            f"T{name[1:]} holds a <mask> at position {position}, which has no likelihood. Write "
            "the residue, or X if it is not known.",
            index=0,
            position=position,
            residue="<mask>",
        )
    return protein


def _called(name: str, error: Exception) -> str:
    """Rename the row of a message to what it is."""

    def rename(text: str) -> str:
        return _ITS_ROW.sub(lambda found: (found[1] or "t") + name[1:], text)

    message = error.args[0]
    return message.with_text(rename) if isinstance(message, Message) else rename(str(error))


def tokens(sequence: str) -> NDArray[np.intp]:
    """Give the token of each residue, without those at the ends."""
    return encode(sequence)[1:-1].astype(np.intp)


def position_log_probs(
    engine: Engine, sequence: str, positions: Sequence[int], *, masked: bool
) -> NDArray[np.float64]:
    """Compute the log-probabilities of all tokens at positions of one sequence."""
    sites = [engine.policy.site(sequence, position, masked=masked) for position in positions]
    return engine.runner.log_probs(sites).astype(np.float64)


def residue_log_probs(
    engine: Engine, sequences: Sequence[str], *, masked: bool
) -> list[NDArray[np.float64]]:
    """Compute the log-probability of each residue of sequences, in its own sequence."""
    found: list[NDArray[np.float64]] = []
    for group in _groups(sequences):
        letters = [tokens(sequence) for sequence in group]
        positions = [np.flatnonzero(of_one != MASK_TOKEN) for of_one in letters]
        sites = [
            engine.policy.site(sequence, position, masked=masked)
            for sequence, at in zip(group, positions, strict=True)
            for position in at.tolist()
        ]
        log_probs = engine.runner.log_probs(sites)
        given = np.concatenate([x[at] for x, at in zip(letters, positions, strict=True)])
        of_residues = log_probs[np.arange(len(given)), given].astype(np.float64)
        found += np.split(of_residues, np.cumsum([len(at) for at in positions])[:-1])
    return found


def _groups(sequences: Sequence[str]) -> Iterator[list[str]]:
    """Cut a list of sequences into parts of few enough residues, or of one sequence."""
    group: list[str] = []
    n_rows = 0
    for sequence in sequences:
        if group and n_rows + len(sequence) > _ROWS_AT_A_TIME:
            yield group
            group, n_rows = [], 0
        group.append(sequence)
        n_rows += len(sequence)
    if group:
        yield group


def warn_of_lengths(wildtypes: Sequence[str | None], mutants: Sequence[str | None]) -> None:
    """Warn of sequences whose sums are over more or fewer residues than their wild type's."""
    rows = [
        (i, len(wildtype), len(mutant))
        for i, (wildtype, mutant) in enumerate(zip(wildtypes, mutants, strict=True))
        if wildtype is not None and mutant is not None and len(wildtype) != len(mutant)
    ]
    if rows:
        _, of_wildtype, of_mutant = rows[0]
        where = first_place([row for row, _, _ in rows])
        warnings.warn(
            f"The sequence in {where} has {of_mutant} residues, the wild type "
            f"{of_wildtype}. A sum over residues rises with every one that is lost, and falls "
            "with every one that is added. Pass per_residue=True to compare means.",
            UserWarning,
            stacklevel=3,
        )


def _wildtypes(engine: Engine, column: Iterable[object], n: int) -> list[str]:
    """Normalise the wild type of each variant."""
    cells = listed(column, "wild types")
    if len(cells) != n:
        raise InputError(
            f"Got {len(cells)} wild types and {n} variants; pass one for each, or one text for all."
        )
    known: dict[str, str] = {}  # rows of a table share few wild types
    for row, cell in enumerate(cells):
        if not isinstance(cell, str) or cell not in known:
            name = f"the wild type of row {row}"
            try:
                known[str(cell)] = normalise_wildtype(engine, cell, name)
            except InputError as error:
                if hasattr(error, "index"):
                    error.index = row
                raise
    return [known[str(cell)] for cell in cells]


def _pseudo_ratios(
    engine: Engine, wildtypes: Sequence[str], mutants: Sequence[str], *, per_residue: bool
) -> NDArray[np.float64]:
    """Compute PLL(mutant) - PLL(wild type), or of their means, each distinct sequence once."""
    pairs = list(zip(wildtypes, mutants, strict=True))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    distinct = list(dict.fromkeys(sequence for pair in differing for sequence in pair))
    log_probs = residue_log_probs(engine, distinct, masked=True)
    total = np.mean if per_residue else np.sum
    pll = {sequence: total(row) for sequence, row in zip(distinct, log_probs, strict=True)}
    return np.array([pll[b] - pll[a] if a != b else 0.0 for a, b in pairs], np.float64)


def _marginals(
    engine: Engine,
    wildtypes: Sequence[str],
    variants: Sequence[Sequence[Mutation]],
    *,
    masked: bool,
) -> NDArray[np.float64]:
    """Add up the log-ratios of mutations; each position of a protein is computed once."""
    owners = [i for i, variant in enumerate(variants) for m in variant if m.wildtype != m.mutant]
    mutations = [m for variant in variants for m in variant if m.wildtype != m.mutant]
    scores = np.zeros(len(variants))
    if mutations:
        numbers: dict[tuple[str, int], int] = {}
        rows = [
            numbers.setdefault((wildtypes[i], m.position), len(numbers))
            for i, m in zip(owners, mutations, strict=True)
        ]
        sites = [engine.policy.site(*place, masked=masked) for place in numbers]
        log_probs = engine.runner.log_probs(sites).astype(np.float64)
        mutants = log_probs[rows, tokens("".join(m.mutant for m in mutations))]
        before = log_probs[rows, tokens("".join(m.wildtype for m in mutations))]
        np.add.at(scores, owners, mutants - before)
    return scores


def _engine_of(model: Engine | str | os.PathLike[str]) -> Engine:
    """Make an engine, or check one for what cannot be told of variants."""
    if not isinstance(model, Engine):
        return Engine(model)
    check_truncation(model.too_long)
    if model.region is not None:
        raise InputError(
            f"Got region={model.region!r}, which is for pooling: scores are of all positions that "
            "are mutated. Use an engine without a region."
        )
    return model


def _check_single(variants: object) -> None:
    if isinstance(variants, str | bytes) or is_biopython_seq(variants):
        raise TypeError(
            f"Got a single string as variants, {variants!r:.60}. Pass a list: [{variants!r:.60}]."
        )
