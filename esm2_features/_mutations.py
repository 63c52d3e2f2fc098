"""Mutations: how variants of a protein are written, read and checked.

`read_variants` turns rows of text into mutations of the wild type, or into sequences.

Never here: the network, containers, files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from esm2_features._alphabet import MASK, RESIDUES
from esm2_features._residues import is_missing
from esm2_features.exceptions import InvalidVariantError

_MUTATION = re.compile(r"([A-Za-z])(-?[0-9]{1,9})([A-Za-z])")
_NOTATION = re.compile(r"[0-9:]")  # a text with neither is the sequence of a mutant
_THREE_LETTERS = re.compile(r"p\.|[A-Za-z]{3}[0-9]+[A-Za-z]{3}")
_NO_SUBSTITUTION = re.compile(r"[*=-]|del|ins|dup|fs|ter", re.IGNORECASE)


class Mutation(NamedTuple):
    """One substitution.

    Attributes
    ----------
    wildtype : str
        The residue that is replaced.
    position : int
        Where, from 0.
    mutant : str
        The residue that replaces it.
    """

    wildtype: str
    position: int
    mutant: str


def read_variants(
    values: Sequence[object],
    wildtype: str,
    *,
    offset: int,
    normalise: Callable[..., list[str]],
) -> list[tuple[Mutation, ...] | str]:
    """Read variants, and check them against the wild type.

    Parameters
    ----------
    values : sequence of str
        Mutations (``"A123G"``, ``"A123G:D42N"``), sequences of mutants, or ``"WT"``.
    wildtype : str
        Normalised.
    offset : int
        Number of the residue before the first one.
    normalise : callable
        `Engine.normalise`, for the sequences.

    Returns
    -------
    variants : list of tuple of Mutation, or str
        The mutations as they are written, () for the wild type; a normalised sequence where a
        sequence was given.

    Raises
    ------
    InvalidVariantError
        For the first row that is missing, cannot be read, or does not fit the wild type.
    InvalidSequenceError, MissingSequenceError, SequenceTooLongError, TypeError
        For the first sequence that is none.
    """
    found: list[tuple[Mutation, ...] | str] = []
    sequence_rows = []
    known: dict[str, Mutation] = {}  # a scan repeats the same few thousand in all combinations
    hint = partial(_offset_hint, wildtype, values)
    for index, value in enumerate(values):
        if is_missing(value):
            raise InvalidVariantError(
                f"Missing value in row {index}, where a variant is expected. Drop such rows, or "
                'write "WT" for the wild type.',
                index=index,
                variant=str(value),
                expected="a variant",
                found="a missing value",
            )
        text = value.strip() if isinstance(value, str) else None
        if text is not None and (text.upper() == "WT" or _NOTATION.search(text)):
            found.append(_read_mutations(text, index, wildtype, offset, known, hint))
        else:
            found.append("")
            sequence_rows.append(index)
    texts = [values[index] for index in sequence_rows]
    sequences = normalise(texts, rows=sequence_rows, column="variants")
    for index, sequence in zip(sequence_rows, sequences, strict=True):
        refuse_mask(sequence, index=index)
        found[index] = sequence
    return found


def mutate(wildtype: str, mutations: Sequence[Mutation]) -> str:
    """Write the sequence of a mutant.

    Parameters
    ----------
    wildtype : str
        Normalised.
    mutations : sequence of Mutation
        At different positions.

    Returns
    -------
    sequence : str

    Examples
    --------
    >>> mutate("MKTA", [Mutation("K", 1, "R")])
    'MRTA'
    """
    residues = list(wildtype)
    for mutation in mutations:
        residues[mutation.position] = mutation.mutant
    return "".join(residues)


def mutations_between(wildtype: str, sequence: str, *, index: int) -> tuple[Mutation, ...]:
    """List the substitutions that turn the wild type into a sequence of the same length.

    Parameters
    ----------
    wildtype, sequence : str
        Normalised.
    index : int
        Row of the sequence, for the message.

    Returns
    -------
    mutations : tuple of Mutation
        By position.

    Raises
    ------
    InvalidVariantError
        If the lengths differ.
    """
    refuse_other_length(wildtype, sequence, index=index)
    pairs = enumerate(zip(wildtype, sequence, strict=True))
    return tuple(Mutation(before, i, after) for i, (before, after) in pairs if before != after)


def refuse_other_length(wildtype: str, sequence: str, *, index: int) -> None:
    """Refuse a sequence that substitutions alone cannot have made.

    Parameters
    ----------
    wildtype, sequence : str
        Normalised.
    index : int
        Row of the sequence, for the message.

    Raises
    ------
    InvalidVariantError
        If the lengths differ.
    """
    if len(sequence) != len(wildtype):
        raise InvalidVariantError(
            f"The sequence in row {index} has {len(sequence)} residues, the wild type has "
            f"{len(wildtype)}. Marginals are of substitutions only: for insertions and deletions, "
            'pass method="pseudo-perplexity".',
            index=index,
            variant=sequence,
            expected=f"{len(wildtype)} residues",
            found=f"{len(sequence)} residues",
        )


def refuse_mask(sequence: str, *, index: int) -> None:
    """Refuse the sequence of a mutant that holds a mask.

    Parameters
    ----------
    sequence : str
        Normalised.
    index : int
        Its row, for the message.

    Raises
    ------
    InvalidVariantError
        If it holds one.
    """
    if MASK in sequence:
        raise InvalidVariantError(
            f"The sequence in row {index} holds a <mask> at position {sequence.index(MASK) + 1}, "
            "and a masked residue has no likelihood to compare with the wild type. Write the "
            "residue, or X if it is not known.",
            index=index,
            variant=sequence.replace(MASK, "<mask>"),
            expected="a residue",
            found="<mask>",
        )


def _read_mutations(
    text: str,
    index: int,
    wildtype: str,
    offset: int,
    known: dict[str, Mutation],
    hint: Callable[[], str],
) -> tuple[Mutation, ...]:
    """Read one text that holds mutations or says that it is the wild type."""
    if text.upper() == "WT":
        return ()
    mutations = []
    for part in map(str.strip, text.split(":")):
        if part not in known:
            known[part] = _read_mutation(part, text, index, wildtype, offset, hint)
        mutations.append(known[part])
    positions = [mutation.position for mutation in mutations]
    if len(set(positions)) < len(positions):
        twice = next(p for i, p in enumerate(positions) if p in positions[:i]) + 1 + offset
        raise InvalidVariantError(
            f"The variant {_shown(text)} in row {index} mutates position {twice} twice. Name each "
            "position once, with the residue that it has in the end.",
            index=index,
            variant=text,
            expected="each position once",
            found=f"position {twice} twice",
        )
    return tuple(mutations)


def _read_mutation(
    part: str, text: str, index: int, wildtype: str, offset: int, hint: Callable[[], str]
) -> Mutation:
    def wrong(problem: str, remedy: str, *, expected: str, found: str) -> InvalidVariantError:
        return InvalidVariantError(
            f"The variant {_shown(text)} in row {index} {problem}. {remedy}",
            index=index,
            variant=text,
            expected=expected,
            found=found,
        )

    match = _MUTATION.fullmatch(part)
    if match is None:
        raise wrong(
            f"cannot be read: {_shown(part)} is no mutation such as 'A123G'",
            _remedy_for(part),
            expected="a mutation such as A123G",
            found=part,
        )
    before, number, after = match.group(1).upper(), int(match.group(2)), match.group(3).upper()
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
    if _THREE_LETTERS.search(part):
        return "Write letters, not codes of three letters or HGVS: 'A123G' for p.Ala123Gly."
    if len(_MUTATION.findall(part)) > 1:
        return "Join several mutations by ':' alone: 'A123G:D42N'."
    if _NO_SUBSTITUTION.search(part):
        return (
            "Deletions, insertions and stops are no substitutions: give the sequence of the "
            'mutant, with method="pseudo-perplexity".'
        )
    return "Write the residue of the wild type, the position, and the residue of the mutant."


def _offset_hint(wildtype: str, values: Sequence[object]) -> str:
    """Name the one offset at which the wild type has all residues that are to be replaced.

    It is the end of a message, empty if no offset fits or several do.
    """
    matches = [
        match
        for value in values
        if isinstance(value, str)
        for part in value.split(":")
        if (match := _MUTATION.fullmatch(part.strip()))
    ]
    expected = sorted({(int(match.group(2)), match.group(1).upper()) for match in matches})
    numbers = np.array([number for number, _ in expected])
    letters = np.array([ord(letter) for _, letter in expected])
    protein = np.frombuffer(wildtype.encode("ascii"), dtype=np.uint8)
    fitting = [
        offset
        for offset in range(numbers[-1] - len(wildtype), numbers[0])
        if (protein[numbers - 1 - offset] == letters).all()
    ]
    if len(fitting) != 1:
        return ""
    return f" All variants would fit with offset={fitting[0]}."


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
