"""Mutations: how variants of a protein are written, read and checked.

`read_variants` turns rows of text into mutations of the wild type, or into sequences.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from esm2_features._inputs.alphabet import MASK, RESIDUES
from esm2_features._inputs.cells import as_text, is_missing
from esm2_features._inputs.notation import read_mutation, repeated, split_mutations
from esm2_features._inputs.rows import first_place, place_of
from esm2_features._inputs.words import LABELS, is_wild_type, missing_words
from esm2_features.exceptions import InputError, InvalidVariantError, SequenceTooLongError, shorten

_COLON = re.compile(":")
_SINGLE = re.compile(r"[A-Za-z]-?[0-9]{1,9}[A-Za-z]")
_NOTATION = re.compile(r"[0-9:=]|p\.")  # a text with none is the sequence of a mutant
_STOP = re.compile(r"[0-9](\*|ter|stop)|fs", re.IGNORECASE)
_NO_SUBSTITUTION = re.compile(r"[*=-]|del|ins|dup|ext", re.IGNORECASE)

_INDELS = (
    "Marginals are of substitutions only: for insertions and deletions, pass "
    'method="pseudo-perplexity" with per_residue=True.'
)
_LONGEST_WORD = 25
_FEWEST_SHARED = 4
"""Residues in a row that a mutant of another length shares with its wild type."""
_FEWEST_THAT_HINT = 3
"""Positions that have to agree on an offset: fewer of them do so by chance."""


class Mutation(NamedTuple):
    """One substitution."""

    wildtype: str  # the residue that is replaced
    position: int  # where, from 0
    mutant: str  # the residue that replaces it


def read_variants(
    values: Sequence[object], wildtype: str, *, offset: int, normalise: Callable[..., list[str]]
) -> list[tuple[Mutation, ...] | str]:
    """Read variants, and check them against the wild type."""
    found: list[tuple[Mutation, ...] | str] = []
    sequence_rows, missing = [], missing_words(values)
    known: dict[str, Mutation] = {}  # a scan repeats the same few thousand in all combinations
    hint = partial(_offset_hint, wildtype, values)
    for index, value in enumerate(values):
        if is_missing(value) or index in missing:
            what = (
                f"Missing value in {place_of(index)}, where a variant is expected. Drop such rows, "
                'or write "WT" for the wild type.'
            )
            raise _invalid(what, index, str(value), "a variant", "a missing value")
        if _is_written(value, wildtype):
            found.append(_read_mutations(as_text(value), index, wildtype, offset, known, hint))
        else:
            _check_word(as_text(value), index, wildtype)
            found.append("")
            sequence_rows.append(index)
    texts = [values[index] for index in sequence_rows]
    try:
        sequences = normalise(texts, rows=sequence_rows, column="variants")
    except SequenceTooLongError as error:
        raise uncut(error) from error
    for index, sequence in zip(sequence_rows, sequences, strict=True):
        check_mask(sequence, index=index, given=values[index])
        found[index] = sequence
    _warn_of_x(found, values)
    return found


def read_variants_of(
    wildtypes: Sequence[str],
    values: Sequence[object],
    *,
    offset: int,
    normalise: Callable[..., list[str]],
) -> list[tuple[Mutation, ...] | str]:
    """Read variants of several proteins, those of each protein together."""
    found: list[tuple[Mutation, ...] | str] = [()] * len(values)
    rows_of: dict[str, list[int]] = {}
    for row, wildtype in enumerate(wildtypes):
        rows_of.setdefault(wildtype, []).append(row)
    for wildtype, rows in rows_of.items():
        of_one = [values[row] for row in rows]
        try:
            read = read_variants(of_one, wildtype, offset=offset, normalise=normalise)
        except InputError as error:
            _rename_row(error, rows)
            raise
        for row, variant in zip(rows, read, strict=True):
            found[row] = variant
    return found


def _rename_row(error: InputError, rows: Sequence[int]) -> None:
    """Turn the row of one protein's variants, in an error, into that of all variants."""
    index = getattr(error, "index", None)
    if index is not None and rows[index] != index:
        error.args = (re.sub(rf"\brow {index}\b", f"row {rows[index]}", str(error)),)
        error.index = rows[index]  # type: ignore[attr-defined]


def uncut(error: SequenceTooLongError) -> SequenceTooLongError:
    """Copy an error without the advice to truncate, which could lose mutations."""
    what = str(error).partition(". Pass ")[0]
    return SequenceTooLongError(
        f'{what}. Pass too_long="window" to run it in overlapping windows, or max_residues=None to '
        "run it whole (memory grows with the square of the length).",
        index=error.index,
        length=error.length,
        limit=error.limit,
    )


def mutate(wildtype: str, mutations: Sequence[Mutation]) -> str:
    """Write the sequence of a mutant."""
    residues = list(wildtype)
    for mutation in mutations:
        residues[mutation.position] = mutation.mutant
    return "".join(residues)


def mutations_between(wildtype: str, sequence: str) -> tuple[Mutation, ...]:
    """List the substitutions that turn the wild type into a sequence of the same length."""
    pairs = enumerate(zip(wildtype, sequence, strict=True))
    return tuple(Mutation(before, i, after) for i, (before, after) in pairs if before != after)


def check_length(
    wildtype: str,
    sequence: str,
    *,
    index: int,
    given: object,
    column: str | None = None,
    called: str = "sequence",
    remedy: str = _INDELS,
) -> None:
    """Raise InvalidVariantError for a sequence that is not as long as the wild type."""
    if len(sequence) != len(wildtype):
        expected, found = f"{len(wildtype)} residues", f"{len(sequence)} residues"
        what = (
            f"The {called} in {place_of(index, column)} has {found}, the wild type has "
            f"{len(wildtype)}. {remedy}"
        )
        raise _invalid(what, index, as_text(given), expected, found)


def check_mask(sequence: str, *, index: int, given: object, column: str | None = None) -> None:
    """Raise InvalidVariantError for a mutant that holds a mask."""
    if MASK in sequence:
        what = (
            f"The sequence in {place_of(index, column)} holds a <mask> at position "
            f"{sequence.index(MASK) + 1}, and a masked residue has no likelihood to compare with "
            "the wild type. Write the residue, or X if it is not known."
        )
        raise _invalid(what, index, as_text(given), "a residue", "<mask>")


def is_notation(text: str) -> bool:
    """Whether a text is a mutation, or several."""
    return all(_SINGLE.fullmatch(part.strip()) for part in text.split(":"))


def _is_written(value: object, wildtype: str) -> bool:
    """Whether a cell holds mutations or a word for the wild type, and no sequence."""
    text = as_text(value) if isinstance(value, str | bytes | bytearray) else ""
    return _is_wildtype(text, wildtype) or _NOTATION.search(text) is not None


def _is_wildtype(text: str, wildtype: str) -> bool:
    """Whether a text is a word for the wild type; capitals of its length are a sequence."""
    text = text.strip()
    may_be_mutant = (
        text.isalpha() and text.isupper() and len(text) == len(wildtype) and text != "WT"
    )
    return is_wild_type(text) and not may_be_mutant


def _check_word(text: str, index: int, wildtype: str) -> None:
    """Raise InvalidVariantError for a word whose letters are residues."""
    letters = text.strip().removesuffix("*").upper()
    if not letters.isalpha() or len(letters) > _LONGEST_WORD:
        return
    is_usual = letters.casefold() in LABELS
    if len(letters) == len(wildtype) and (text.isupper() or not is_usual):
        return
    size = min(len(letters), _FEWEST_SHARED)
    parts = (letters[i : i + size] for i in range(len(letters) - size + 1))
    if any(part in wildtype for part in parts):
        return
    if is_usual or not text.isupper() or 2 * len(letters) < len(wildtype):
        what = (
            f"The variant {_shown(text)} in {place_of(index)} is neither a mutation nor a sequence "
            "that has anything in common with the wild type. Write a mutation such as 'A123G', "
            'the whole sequence of the mutant, or "WT" for the wild type; drop other rows.'
        )
        raise _invalid(what, index, text, "a variant", text.strip())


def _warn_of_x(found: Sequence[tuple[Mutation, ...] | str], values: Sequence[object]) -> None:
    """Warn once of mutations to X, which stands for a stop in older notation."""
    rows = [
        row
        for row, variant in enumerate(found)
        if not isinstance(variant, str) and any(m.mutant == "X" != m.wildtype for m in variant)
    ]
    if rows:
        warnings.warn(
            f"The variant {_shown(as_text(values[rows[0]]))} in {first_place(rows)} puts "
            "X, an unknown residue. If X stands for a stop, as in older notation, drop such rows: "
            "a stop has no likelihood.",
            UserWarning,
            stacklevel=3,
        )


def _read_mutations(
    given: str,
    index: int,
    wildtype: str,
    offset: int,
    known: dict[str, Mutation],
    hint: Callable[[], str],
) -> tuple[Mutation, ...]:
    """Read a text of mutations, or the word for the wild type."""
    if _is_wildtype(given, wildtype):
        return ()
    try:
        parts = split_mutations(given, _COLON)
    except ValueError as error:
        what = f"The variant {_shown(given)} in {place_of(index)} {error}."
        raise _invalid(what, index, given, "one protein", given.strip()) from None
    mutations = []
    for part in parts:
        if part not in known:
            shown = part if len(parts) > 1 else given.strip()
            known[part] = _read_mutation(part, shown, given, index, wildtype, offset, hint)
        mutations.append(known[part])
    twice = repeated([mutation.position for mutation in mutations])
    if twice is not None:
        found = f"position {twice + 1 + offset} twice"
        what = (
            f"The variant {_shown(given)} in {place_of(index)} mutates {found}. Name each position "
            "once, with the residue that it has in the end."
        )
        raise _invalid(what, index, given, "each position once", found)
    return tuple(mutations)


def _read_mutation(
    part: str, shown: str, given: str, index: int, wildtype: str, offset: int,
    hint: Callable[[], str],
) -> Mutation:  # fmt: skip
    def wrong(problem: str, remedy: str, *, expected: str, found: str) -> InvalidVariantError:
        what = f"The variant {_shown(given)} in {place_of(index)} {problem}. {remedy}"
        return _invalid(what, index, given, expected, found)

    read = read_mutation(part)
    if read is None or read.site.code:
        raise wrong(
            f"cannot be read: {_shown(shown)} is no mutation such as 'A123G'",
            _remedy_for(part),
            expected="a mutation such as A123G",
            found=shown,
        )
    before, (number, _), after = read
    position = number - 1 - offset
    if not 0 <= position < len(wildtype):
        first, last = 1 + offset, len(wildtype) + offset
        raise wrong(
            f"mutates position {number}, but with offset={offset} the wild type has the positions "
            f"{first} to {last}",
            f"Pass offset=n if the first residue is number n + 1.{hint()}",
            expected=f"a position from {first} to {last}",
            found=str(number),
        )
    if wildtype[position] != before:
        raise wrong(
            f"replaces {before} at position {number}, where the wild type has "
            f"{wildtype[position]} (offset={offset})",
            f"Check the wild type and the numbering.{hint()}",
            expected=wildtype[position],
            found=before,
        )
    if after not in RESIDUES:
        raise wrong(
            f"puts {after} at position {number}, which is not a residue that ESM-2 knows",
            f"Choose one of {RESIDUES}.",
            expected=f"one of {RESIDUES}",
            found=after,
        )
    return Mutation(before, position, after)


def _remedy_for(part: str) -> str:
    if not part:
        return "Leave out the ':' at the ends, and write one between two mutations."
    if _STOP.search(part):
        return (
            "A stop ends the protein there, and the likelihoods of a part and of the whole are "
            "not comparable: drop such rows."
        )
    if len(_SINGLE.findall(part)) > 1:
        return "Join several mutations by ':' alone: 'A123G:D42N'."
    if _NO_SUBSTITUTION.search(part):
        return (
            "Deletions and insertions are no substitutions: give the sequence of the mutant, with "
            'method="pseudo-perplexity" and per_residue=True.'
        )
    return "Write the residue of the wild type, the position, and the residue of the mutant."


def _offset_hint(wildtype: str, values: Sequence[object]) -> str:
    """Suggest an offset, if exactly one other numbering fits all mutations.

    The end of a message; empty if no offset or several fit, too few positions are mutated, or
    something else is wrong.
    """
    if any(map(is_missing, values)):
        return ""
    written = (as_text(value) for value in values if _is_written(value, wildtype))
    found = set()
    for text in written:
        if _is_wildtype(text, wildtype):
            continue
        try:
            read = [read_mutation(part) for part in split_mutations(text, _COLON)]
        except ValueError:
            return ""
        if not all(it and it.before in RESIDUES and it.after in RESIDUES for it in read):
            return ""
        found |= {it for it in read if it is not None}
    numbers = np.array([it.site.number for it in found])
    letters = np.array([ord(it.before) for it in found])
    if len(np.unique(numbers)) < _FEWEST_THAT_HINT:
        return ""
    protein = np.frombuffer(wildtype.encode("ascii"), dtype=np.uint8)
    fitting = [
        offset
        for offset in range(int(numbers.max()) - len(wildtype), int(numbers.min()))
        if (protein[numbers - 1 - offset] == letters).all()
    ]
    if len(fitting) != 1:
        return ""
    return (
        f" Is the numbering shifted? All {len(found)} mutations would fit with offset={fitting[0]}."
    )


def _invalid(what: str, index: int, variant: str, expected: str, found: str) -> InvalidVariantError:
    return InvalidVariantError(what, index=index, variant=variant, expected=expected, found=found)


def _shown(text: str) -> str:
    return repr(shorten(text.strip(), 60))
