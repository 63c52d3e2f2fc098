"""Cells: one value becomes a string with one character per residue, or an error.

`normalise` gives the 20 amino acids, X B U Z O, `MASK` for a ``<mask>`` token, and, of aligned
sequences, `GAP`.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from esm2_features._inputs.alphabet import GAP, MASK, RESIDUES
from esm2_features._inputs.cells import as_text, is_biopython_seq, is_missing, is_record
from esm2_features._inputs.remedies import (
    Remedy,
    remedy_for,
    remedy_for_letters,
    stands_for_residue,
)
from esm2_features._inputs.rows import first_place, place_of
from esm2_features._inputs.words import is_missing_word, may_be_peptide
from esm2_features.exceptions import InvalidSequenceError, MissingSequenceError

_WHITE_SPACE = " \t\n\r\v\f"
_RESIDUES_AS_BYTES = RESIDUES.encode()
_RESIDUES = frozenset(RESIDUES)
_AS_GAPS = str.maketrans(dict.fromkeys(".~", GAP))
_TOKEN = re.compile(r"<mask>|.", re.ASCII | re.IGNORECASE | re.DOTALL)
_LONGEST_SHOWN = 60

_NUCLEOTIDES = "ACGTUN"
_SHORTEST_GENE = 20  # letters; shorter peptides may be of these residues alone

_FEWEST_LETTERS = 5
"""Letters with white space between them that are one sequence, as ProtTrans writes it."""


def normalise(
    value: object,
    *,
    index: int,
    unknown: str = "raise",
    column: str | None = None,
    gaps: bool = False,
) -> str:
    r"""Check one cell, and bring its sequence into the form that is encoded and cached."""
    text = (value if isinstance(value, str) else _text_of(value, index, column)).strip(_WHITE_SPACE)
    if is_missing_word(text) and not _are_residues(text):
        raise missing_error(text, index, column)
    if text.endswith("*") and not text[-2:-1].isdigit():  # as in R10*, a mutation
        text = text[:-1]
    if not text:
        raise InvalidSequenceError(
            f"Empty sequence in {place_of(index, column)}. Drop such rows, or mend them.",
            index=index,
        )
    if gaps:
        text = text.translate(_AS_GAPS)
    if text.isascii():
        upper = text.upper()
        # Nothing is left when every letter is a residue: the usual case.
        if not upper.encode().translate(None, _RESIDUES_AS_BYTES + GAP.encode() * gaps):
            remedy = None if text == upper else remedy_for_letters(text)
            if remedy is not None:
                raise _invalid(text, 0, index, column, remedy)
            return upper
        text = _without_blocks(text)
    return _character_by_character(text, index, unknown, column, gaps=gaps)


def _are_residues(text: str) -> bool:
    """Whether all characters are capitals that stand for residues."""
    return text.isascii() and not text.encode().translate(None, _RESIDUES_AS_BYTES)


def _without_blocks(text: str) -> str:
    """Join blocks of ten, lines of one length, and letters that stand apart."""
    blocks = text.split()
    if len(blocks) < 2:
        return text
    size, is_apart = len(blocks[0]), len(text.splitlines()) == 1
    are_blocks = size in (1, 10) if is_apart else size >= 10
    are_equal = all(len(block) == size for block in blocks[:-1]) and len(blocks[-1]) <= size
    if not are_blocks or not are_equal or (size == 1 and len(blocks) < _FEWEST_LETTERS):
        return text
    return "".join(blocks)


def are_normal(values: Sequence[object]) -> TypeGuard[list[str]]:
    """Whether `normalise` would change none of these; checked in one pass over all letters."""
    if not all(type(value) is str and value for value in values):
        return False
    letters = "".join(values)  # type: ignore[arg-type]  # as was just found out
    # Capitals that spell a word for a missing value are left to `missing_words`.
    return _are_residues(letters)


def _text_of(value: object, index: int, column: str | None) -> str:
    """Get the text of a cell that is not a string."""
    if is_missing(value):
        raise missing_error(value, index, column)
    if is_record(value):
        value = value.seq  # type: ignore[attr-defined]
    if isinstance(value, str | bytes | bytearray):
        return as_text(value)
    if is_biopython_seq(value):
        try:
            return str(value)
        except ValueError as error:  # a Seq may know its length only
            raise InvalidSequenceError(
                f"The Seq in {place_of(index, column)} has no letters ({error}).", index=index
            ) from error
    remedy = "Pass str, bytes, or objects with a .seq."
    letters = list(value) if isinstance(value, list | tuple | np.ndarray) else []
    if len(letters) > 1 and all(isinstance(letter, str) and len(letter) == 1 for letter in letters):
        remedy = 'If it is one sequence, letter by letter, join it: "".join(letters).'
    raise TypeError(
        f"Expected a protein sequence as text in {place_of(index, column)}, got "
        f"{type(value).__name__}. {remedy}"
    )


def missing_error(
    value: object,
    index: int,
    column: str | None,
    *,
    what: str = "protein sequence",
    on_missing: str = "use ESM2Transformer with",
    n: int = 1,
) -> MissingSequenceError:
    """Make the error of a missing value, or of a word for one, the first of ``n``."""
    remedy = Remedy(
        f'Drop such rows, or {on_missing} on_missing="nan" or on_missing="zero" to get rows of NaN '
        "or 0 for them.",
        "Drop such rows.",
    )
    others = f" (the first of {n})" if n > 1 else ""
    found = f"Missing value in {place_of(index, column)}{others}"
    if isinstance(value, str):
        shown = value.strip()
        found = f"The text {shown!r} in {place_of(index, column)}{others} means a missing value"
        if _are_residues(shown):
            also = f" If a peptide of these letters is meant, write it as {shown + '*'!r}"
            also += "; among peptides of its size it is one." if may_be_peptide(shown) else "."
            remedy = Remedy(*(text + also for text in remedy))
        elif shown.isalpha() and _are_residues(shown.upper()):
            also = f" If a peptide is meant, write it in capitals with a stop, {shown.upper()}*."
            remedy = Remedy(*(text + also for text in remedy))
    return MissingSequenceError(remedy.after(f"{found}, where a {what} is expected."), index=index)


def _character_by_character(
    text: str, index: int, unknown: str, column: str | None, *, gaps: bool
) -> str:
    """Normalise what holds a ``<mask>`` or a character that stands for no residue."""
    replacement = {"X": "X", "mask": MASK}.get(unknown)
    residues = []
    for token in _TOKEN.finditer(text):
        character = token.group()
        if len(character) > 1:
            residues.append(MASK)
        elif (character.isascii() and character.upper() in _RESIDUES) or (
            gaps and character == GAP
        ):
            residues.append(character.upper())
        elif replacement is not None and stands_for_residue(character):
            residues.append(replacement)
        else:
            raise _invalid(text, token.start(), index, column)
    return "".join(residues)


def _invalid(
    text: str, offset: int, index: int, column: str | None, remedy: Remedy | None = None
) -> InvalidSequenceError:
    character = text[offset]
    start = max(0, min(offset - _LONGEST_SHOWN // 2, len(text) - _LONGEST_SHOWN))
    end = start + _LONGEST_SHOWN
    around = ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
    what = (
        f"{_name_of(character)} at position {offset + 1} of the sequence in "
        f"{place_of(index, column)} is not a residue that ESM-2 knows: {around!a}."
    )
    if remedy is not None:
        what = f"The text in {place_of(index, column)} is not a sequence: {around!a}."
    return InvalidSequenceError(
        (remedy or remedy_for(text, offset)).after(what),
        index=index,
        position=offset + 1,
        residue=character,
    )


def _name_of(character: str) -> str:
    """Name a character; one that only looks like a letter, by its code point."""
    if character.isascii():
        return repr(character)
    if "\udc80" <= character <= "\udcff":  # how surrogateescape writes an undecodable byte
        return f"The byte 0x{ord(character) - 0xDC00:02X}"
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'unnamed')})"


def warn_of_nucleotides(
    sequences: Sequence[str], *, rows: Sequence[int], column: str | None = None
) -> None:
    """Warn once if sequences look like DNA or RNA, whose letters are residues, too."""
    found = [
        row
        for row, sequence in zip(rows, sequences, strict=True)
        # Stripping stops at once at the ends of most proteins.
        if len(sequence) >= _SHORTEST_GENE and not sequence.strip(_NUCLEOTIDES)
    ]
    if found:
        warnings.warn(
            f"The sequence in {first_place(found, column)} holds the letters "
            f"{_NUCLEOTIDES} only: is it DNA? ESM-2 reads proteins. Translate it first.",
            UserWarning,
            stacklevel=2,
        )
