"""`build_mutants`: the sequences of mutants, from wild types and mutations as tables have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import MASK, RESIDUES
from esm2_features._inputs.cells import as_text, is_missing, is_record
from esm2_features._inputs.containers import labels_of, listed
from esm2_features._inputs.mutations import mutations_between
from esm2_features._inputs.notation import Site, Substitution, read_substitutions
from esm2_features._inputs.numbering import CERTAIN, MOSTLY_ZERO, ZERO, Placement, fits, place_sites
from esm2_features._inputs.options import is_whole
from esm2_features._inputs.residues import normalise
from esm2_features._inputs.rows import labelled, place_of
from esm2_features._inputs.words import is_missing_word, is_wild_type
from esm2_features.exceptions import InputError, InvalidSequenceError, list_problems, shorten

STATUSES = ("ok", "offset", "ambiguous", "unfit", "unreadable", "no wild type")
"""What can become of a row; the first two have a mutant."""

_MOSTLY = 0.9
_SHORTEST_SEQUENCE = 10
_LEAST_ALIKE = 0.3  # of the residues of a mutant that is written as a sequence


@dataclass
class Mutants:
    """Mutants of proteins, row by row as they were given, and what is wrong with the others.

    Attributes
    ----------
    wildtypes, sequences : list of str or None
        The sequence of the wild type and of the mutant; None where there is none.
    positions : list of tuple of int, or None
        The mutated positions, counted from 0; () for the wild type itself and for a mutant of
        another length.
    offsets : list of int or None
        Number of the residue before the first one, by which the row was read.
    status : list of str
        ``"ok"``: read with the numbers as they are, from 1. ``"offset"``: read with an offset that
        the rows of its protein tell. ``"ambiguous"``: several positions fit. ``"unfit"``: none
        does. ``"unreadable"``: the mutation is no substitution, or missing. ``"no wild type"``.
    problems : list of str
        What is wrong with a row; empty where nothing is.
    rows : list of str
        What the report calls each row.
    """

    wildtypes: list[str | None] = field(default_factory=list)
    sequences: list[str | None] = field(default_factory=list)
    positions: list[tuple[int, ...] | None] = field(default_factory=list)
    offsets: list[int | None] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)

    __module__ = "esm2_features"

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Whether each row has a mutant, ndarray of shape (n,), bool."""
        return np.array([sequence is not None for sequence in self.sequences], dtype=bool)

    @property
    def regions(self) -> list[str | None]:
        """The mutated positions as text for ``region`` of `ESM2Transformer`, such as "7,12"."""
        return [
            ",".join(map(str, positions)) if positions else None for positions in self.positions
        ]

    def __str__(self) -> str:
        """Count the rows by what became of them, and show the first ten that have no mutant."""
        counts = Counter(self.status)
        words = ", ".join(f"{counts[word]} {word}" for word in STATUSES if counts[word])
        rows = zip(self.rows, self.problems, strict=True)
        bad = [f"{row}: {problem}" for row, problem in rows if problem]
        text = f"{len(self.status)} rows: {words or 'none'}"
        if bad:
            text += f"\n{list_problems(bad, len(self.status), 'rows')}"
        return text


def build_mutants(
    mutations: Iterable[object],
    wildtypes: str | Mapping[str, str] | Iterable[object],
    proteins: Iterable[object] | None = None,
    *,
    offset: int | Mapping[str, int] | None = None,
) -> Mutants:
    """Make the sequences of mutants from wild types and mutations.

    Parameters
    ----------
    mutations : column of length n
        Each is a mutation (``"A123G"``), several (``"A123G:D42N"``; also joined by commas, slashes,
        plus signs or white space), HGVS (``"p.Ala123Gly"``), a word for the wild type (``"WT"``,
        ``"_wt"``, ``"p.="``), or the sequence of the mutant. Numbers may have insertion codes of
        PDB files (``"A52aG"``) and may be negative.
    wildtypes : str, mapping of str to str, or column of length n
        One wild type for all rows; one for each protein, as a dictionary by name or a list of
        records with an id, such as of `read_fasta`; or one for each row.
    proteins : column of length n, optional
        The protein of each row. Rows of one protein are numbered alike; without it, those of one
        wild type are.
    offset : int or mapping of str to int, optional
        Number of the residue before the first one, for all proteins or by name. By default the
        numbers count from 1; where they do not, the offset of each protein is found, see the notes.

    Returns
    -------
    mutants : Mutants
        Sequences, positions, offsets and problems, in the order of the rows. Print it for a report.

    Raises
    ------
    InputError
        If the columns have different lengths, or there is no column of proteins for a dictionary.
    TypeError
        If an argument is of a wrong type.

    See Also
    --------
    ESM2DifferenceTransformer : What a mutation changes, as features.
    score_variants : How likely the model finds variants of one protein.

    Notes
    -----
    If all rows fit the numbers 1, 2, 3, ... of their wild types, they are read so. If some do not,
    the offset of each protein is found from all of its rows. It may change along the chain: at
    insertion codes, and where residues are missing in the sequence or the numbering. The
    probability of each position is that of a hidden Markov model, whose states are offsets. A row
    is read where it is at least 0.995, and called ambiguous otherwise: a protein with few rows does
    not tell its numbering. Nothing is raised for a row, so look at `Mutants.ok`.

    Examples
    --------
    >>> from esm2_features import build_mutants
    >>> mutants = build_mutants(["K2R", "p.Ala4Gly", "K2R:Q9E", "WT", "A2G"], "MKTAYIAKQR")
    >>> mutants.sequences[:3]
    ['MRTAYIAKQR', 'MKTGYIAKQR', 'MRTAYIAKER']
    >>> mutants.positions[:4], mutants.status[4]
    ([(1,), (3,), (1, 8), ()], 'unfit')
    """
    given = listed(mutations, "mutations")
    names = [None] * len(given) if proteins is None else listed(proteins, "proteins")
    _check_lengths(given, names, "proteins")
    with labelled(labels_of(mutations)):
        result = Mutants(rows=[f"R{place_of(i)[1:]}" for i in range(len(given))])
    read = [
        _read_row(result, cell, *row)
        for cell, row in zip(given, _wildtypes_of(wildtypes, names), strict=True)
    ]
    groups: dict[tuple[object, str], list[int]] = {}
    for index, found in enumerate(read):
        if found is not None:
            key = None if is_missing(names[index]) else names[index]
            groups.setdefault((key, str(result.wildtypes[index])), []).append(index)
    sites = {key: _sites([read[i] for i in members]) for key, members in groups.items()}
    zero = _prior(sites)
    for (name, wildtype), members in groups.items():
        fixed = _offset_of(offset, name)
        if fixed is None and zero is None:
            fixed = 0
        placed = _placed(wildtype, sites[name, wildtype], fixed, zero or ZERO)
        for index in members:
            _write(result, index, given[index], read[index], wildtype, placed)
    return result


def _read_row(
    result: Mutants, cell: object, wildtype: str | None, problem: str
) -> list[Substitution] | str | None:
    """Read a cell, and begin its row of the result."""
    found: list[Substitution] | str | None = None
    status = "no wild type"
    if wildtype is not None:
        status = "ok"
        try:
            found = _read(cell, wildtype)
        except ValueError as error:
            status, problem = "unreadable", f"{_shown(cell)} {error}"
    result.wildtypes.append(wildtype)
    result.sequences.append(None)
    result.positions.append(None)
    result.offsets.append(None)
    result.status.append(status)
    result.problems.append(problem)
    return found


def _read(cell: object, wildtype: str) -> list[Substitution] | str:
    """Read a cell: substitutions, or the sequence of a mutant."""
    text = _text(cell)
    if not text or is_missing_word(text):
        raise ValueError("stands for a missing value")
    if is_wild_type(text):
        return []
    if text.isalpha() and (len(text) == len(wildtype) or len(text) >= _SHORTEST_SEQUENCE):
        try:
            sequence = normalise(text, index=0)
        except InputError as error:
            raise ValueError("is no sequence of residues") from error
        if not _is_alike(sequence, wildtype):  # such as the word frameshift, of residues alone
            raise ValueError("is no mutation, and as a sequence unlike its wild type")
        return sequence
    return read_substitutions(text)


def _is_alike(sequence: str, wildtype: str) -> bool:
    """Whether two sequences share enough residues at equal positions, or at both ends."""
    if len(sequence) == len(wildtype):
        same = sum(a == b for a, b in zip(sequence, wildtype, strict=True))
    else:
        start = _n_shared(sequence, wildtype)
        same = start + _n_shared(sequence[:start:-1], wildtype[:start:-1])
    return same >= _LEAST_ALIKE * min(len(sequence), len(wildtype))


def _n_shared(one: str, other: str) -> int:
    """Count the residues with which both begin."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _sites(read: Sequence[list[Substitution] | str | None]) -> dict[Site, set[str]]:
    sites: dict[Site, set[str]] = {}
    for found in read:
        for each in found if isinstance(found, list) else ():
            sites.setdefault(each.site, set()).add(each.before)
    return sites


def _prior(sites: Mapping[tuple[object, str], Mapping[Site, set[str]]]) -> float | None:
    """Give the probability of the offset 0; None if it is that of all proteins."""
    proteins = [(wildtype, of_one) for (_, wildtype), of_one in sites.items() if of_one]
    fitting = sum(fits(wildtype, of_one, 0) for wildtype, of_one in proteins)
    if fitting == len(proteins):
        return None
    return MOSTLY_ZERO if fitting >= _MOSTLY * len(proteins) else ZERO


def _placed(
    wildtype: str, sites: Mapping[Site, set[str]], fixed: int | None, zero: float
) -> dict[Site, Placement]:
    if fixed is None:
        return place_sites(wildtype, sites, zero) if sites else {}
    return {
        site: Placement(site.number - 1 - fixed, fixed, 1.0)
        for site in sites
        if not site.code and 0 <= site.number - 1 - fixed < len(wildtype)
    }


def _write(
    result: Mutants,
    index: int,
    cell: object,
    found: list[Substitution] | str | None,
    wildtype: str,
    placed: Mapping[Site, Placement],
) -> None:
    """Write a row of the result."""
    if isinstance(found, str):
        result.sequences[index], result.positions[index] = found, ()
        if len(found) == len(wildtype):
            changes = mutations_between(wildtype, found)
            result.positions[index] = tuple(change.position for change in changes)
        return
    residues = list(wildtype)
    positions: list[int] = []
    offsets: set[int] = set()
    least = 1.0
    for each in found or ():
        place = placed.get(each.site)
        if place is None or wildtype[place.position] != each.before:
            result.status[index] = "unfit"
            result.problems[index] = (
                f"{_shown(cell)} does not fit: {_misfit(each, place, wildtype)}"
            )
            return
        least = min(least, place.probability)
        offsets.add(place.offset)
        residues[place.position] = each.after
        if each.after != each.before:
            positions.append(place.position)
    if least < CERTAIN:
        result.status[index] = "ambiguous"
        result.problems[index] = (
            f"{_shown(cell)} is ambiguous: too few rows of its protein tell the "
            f"numbering. The offset {_several(offsets)} has a probability of {least:.2f}: if it is "
            "right, pass it for this protein"
        )
        return
    result.sequences[index] = "".join(residues)
    result.positions[index] = tuple(sorted(positions))
    result.offsets[index] = offsets.pop() if len(offsets) == 1 else 0 if not offsets else None
    result.status[index] = "ok" if result.offsets[index] == 0 else "offset"


def _misfit(each: Substitution, place: Placement | None, wildtype: str) -> str:
    site = f"{each.site.number}{each.site.code}"
    if place is None:
        return f"there is no position {site} in its wild type of {len(wildtype)} residues"
    return (
        f"it replaces {each.before} at {site}, where the wild type has "
        f"{wildtype[place.position]} (offset {place.offset})"
    )


def _several(offsets: set[int]) -> str:
    return " and ".join(map(str, sorted(offsets)))


def _text(cell: object) -> str:
    return "" if is_missing(cell) else as_text(cell).strip()


def _shown(cell: object) -> str:
    return repr(shorten(_text(cell), 60))


# ------------------------------------------------------------------ wild types


def _wildtypes_of(wildtypes: Any, names: Sequence[object]) -> list[tuple[str | None, str]]:
    """Give the wild type of each row, or None and what is wrong with it."""
    if isinstance(wildtypes, str):
        wildtypes = normalise(wildtypes, index=0, column="wildtypes")
        return [_normalised(wildtypes)] * len(names)
    if isinstance(wildtypes, Mapping):
        return _by_name(wildtypes, names)
    cells = listed(wildtypes, "wildtypes")
    are_records = bool(cells) and all(is_record(cell) and hasattr(cell, "id") for cell in cells)
    if are_records and any(name is not None for name in names):
        return _by_name({str(cell.id): cell for cell in cells}, names)  # type: ignore[attr-defined]
    _check_lengths(names, cells, "wildtypes")
    known: dict[str, tuple[str | None, str]] = {}
    rows = []
    for cell in cells:
        text = "" if is_missing(cell) else as_text(cell)
        if text not in known:
            known[text] = _normalised(text)
        rows.append(known[text])
    return rows


def _by_name(wildtypes: Mapping[Any, Any], names: Sequence[object]) -> list[tuple[str | None, str]]:
    if names and all(name is None for name in names):
        raise InputError(
            "Got wild types by protein, and no proteins. Pass proteins=, the column that names the "
            "protein of each row."
        )
    found: dict[str, tuple[str | None, str]] = {}
    for name, sequence in wildtypes.items():
        row = _normalised("" if is_missing(sequence) else as_text(sequence))
        # Of UniProt's sp|P01308|INS_HUMAN, tables have one part.
        for key in (str(name), *(str(name).split("|")[1:] if str(name).count("|") == 2 else ())):
            found.setdefault(key, row)
    return [
        found.get(str(name).strip(), (None, f"there is no wild type for the protein {name!r}"))
        for name in names
    ]


def _normalised(text: str) -> tuple[str | None, str]:
    if not text.strip():
        return None, "the wild type is missing"
    try:
        sequence = normalise(text, index=0)
    except InvalidSequenceError as error:
        at = f": {error.residue!r} at position {error.position}" if error.residue else ""
        return None, f"the wild type {_shown(text)} is no sequence of residues{at}"
    except InputError:  # a word for a missing value
        return None, "the wild type is missing"
    if MASK in sequence or set(sequence) - set(RESIDUES):
        return None, f"the wild type {_shown(text)} holds a mask"
    return sequence, ""


def _offset_of(offset: Any, name: object) -> int | None:
    value = offset.get(name) if isinstance(offset, Mapping) else offset
    if value is not None and not (is_whole(value) or isinstance(value, Integral)):
        raise TypeError(f"Got offset={value!r}; expected a whole number.")
    return None if value is None else int(value)


def _check_lengths(cells: Sequence[object], others: Sequence[object], what: str) -> None:
    if len(cells) != len(others):
        raise InputError(
            f"Got {len(cells)} mutations and {len(others)} {what}; pass one for each row."
        )
