"""Cells: one value becomes a string with one character per residue, or an error.

`normalise` gives the 20 amino acids, X B U Z O, and `MASK` for a ``<mask>`` token.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Sequence
from typing import TypeGuard

from esm2_features._inputs.alphabet import MASK, RESIDUES
from esm2_features._inputs.containers import is_biopython_seq, is_missing, is_record
from esm2_features._inputs.options import MISSING_WORDS
from esm2_features.exceptions import InvalidSequenceError, MissingSequenceError

_WHITE_SPACE = " \t\n\r\v\f"
_RESIDUES_AS_BYTES = RESIDUES.encode()
_RESIDUES = frozenset(RESIDUES)
_TOKEN = re.compile(r"<mask>|.", re.ASCII | re.IGNORECASE | re.DOTALL)
_FILE_NAME = re.compile(r"\.(fa|faa|fasta|fas|txt|csv|gz|zst|parquet)$", re.IGNORECASE)
_ACCESSION = re.compile(  # https://www.uniprot.org/help/accession_numbers, and their isoforms
    r"([OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9]([A-Z][A-Z0-9]{2}[0-9]){1,2})(-[0-9]+)?",
    re.IGNORECASE,
)
_LONGEST_SHOWN = 60

_NUCLEOTIDES = "ACGTUN"
_SHORTEST_GENE = 20  # letters; shorter peptides may be of these residues alone


def normalise(
    value: object, *, index: int, unknown: str = "raise", column: str | None = None
) -> str:
    r"""Check one cell, and bring its sequence into the form that is encoded and cached."""
    text = (value if isinstance(value, str) else _text_of(value, index, column)).strip(_WHITE_SPACE)
    if text in MISSING_WORDS:
        raise _missing(text, index, column)
    if text.endswith("*"):
        text = text[:-1]
    if not text:
        raise InvalidSequenceError(
            f"Empty sequence in {place_of(index, column)}. Drop such rows, or mend them.",
            index=index,
        )
    if text.isascii():
        upper = text.upper()
        # Nothing is left when every letter is a residue: the usual case.
        if not upper.encode().translate(None, _RESIDUES_AS_BYTES):
            return upper
    return _character_by_character(text, index, unknown, column)


def are_normal(values: Sequence[object]) -> TypeGuard[list[str]]:
    """Whether `normalise` would change none of these; checked in one pass over all letters."""
    if not all(type(value) is str and value for value in values):
        return False
    letters = "".join(values)  # type: ignore[arg-type]  # as was just found out
    # What is written in capitals only is no text of a missing value.
    return letters.isascii() and not letters.encode().translate(None, _RESIDUES_AS_BYTES)


def _text_of(value: object, index: int, column: str | None) -> str:
    """Get the text of a cell that is not a string."""
    if is_missing(value):
        raise _missing(value, index, column)
    if is_record(value):
        value = value.seq  # type: ignore[attr-defined]
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "surrogateescape")  # what is not ASCII is refused by name
    if isinstance(value, str):
        return value
    if is_biopython_seq(value):
        try:
            return str(value)
        except ValueError as error:  # a Seq may know its length only
            raise InvalidSequenceError(
                f"The Seq in {place_of(index, column)} has no letters ({error}).", index=index
            ) from error
    raise TypeError(
        f"Expected a protein sequence as text in {place_of(index, column)}, got "
        f"{type(value).__name__}. Pass str, bytes, or objects with a .seq."
    )


def _missing(value: object, index: int, column: str | None) -> MissingSequenceError:
    if isinstance(value, str):
        return MissingSequenceError(
            f"The text {value!r} in {place_of(index, column)} is what a missing value becomes when "
            "it is turned into text. Keep missing values as they are (no astype(str)). If a "
            "peptide of these letters is meant, write it in upper case.",
            index=index,
        )
    return MissingSequenceError(
        f"Missing value in {place_of(index, column)}, where a protein sequence is expected. Drop "
        "such rows, or use ESM2Transformer, which gives rows of NaN or 0 for them with "
        'on_missing="nan" or on_missing="zero".',
        index=index,
    )


def _character_by_character(text: str, index: int, unknown: str, column: str | None) -> str:
    """Normalise what holds a ``<mask>`` or a character that stands for no residue."""
    replacement = {"X": "X", "mask": MASK}.get(unknown)
    residues = []
    for token in _TOKEN.finditer(text):
        character = token.group()
        if len(character) > 1:
            residues.append(MASK)
        elif character.isascii() and character.upper() in _RESIDUES:
            residues.append(character.upper())
        elif replacement is not None and character.isprintable() and character != " ":
            residues.append(replacement)
        else:
            raise _invalid(text, token.start(), index, column)
    return "".join(residues)


def _invalid(text: str, offset: int, index: int, column: str | None) -> InvalidSequenceError:
    character = text[offset]
    start = max(0, min(offset - _LONGEST_SHOWN // 2, len(text) - _LONGEST_SHOWN))
    end = start + _LONGEST_SHOWN
    around = ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
    return InvalidSequenceError(
        f"{_name_of(character)} at position {offset + 1} of the sequence in "
        f"{place_of(index, column)} is not a residue that ESM-2 knows: "
        f"{around!a}. {_remedy(text, character)}",
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


def _remedy(text: str, character: str) -> str:
    as_unknown = 'pass unknown="X" or unknown="mask" to embed it as an unknown residue'
    if character == ">":
        return (
            "Headers belong to FASTA text: read it with read_fasta, which wants each on a line of "
            "its own."
        )
    if _ACCESSION.fullmatch(text):
        return "It looks like a UniProt accession: pass the sequence of that entry."
    if _FILE_NAME.search(text):
        return "It looks like the name of a file: read it with read_fasta."
    if character.isspace():
        return 'Join the sequence: "".join(sequence.split()).'
    if character in "-.~":
        return f"Remove alignment gaps: sequence.replace({character!r}, '')."
    if character == "*":
        return f"An inner '*' is a stop codon: cut the sequence there, or {as_unknown}."
    if character in "<>" + MASK:
        return 'Of the special tokens, only "<mask>" can be written in a sequence.'
    if not character.isprintable():
        unreadable = "\udc80" <= character <= "\udcff"
        return "It is not ASCII: retype it." if unreadable else "It is invisible: remove it."
    if not character.isascii():
        return f"It may look like a letter that it is not: retype it, or {as_unknown}."
    return f"Correct it, or {as_unknown}."


def place_of(index: int, column: str | None) -> str:
    """Name the row and column of a cell, for a message."""
    return f"row {index}" + (f" of column {column!r}" if column is not None else "")


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
        others = f" (the first of {len(found)})" if len(found) > 1 else ""
        warnings.warn(
            f"The sequence in {place_of(found[0], column)}{others} holds the letters "
            f"{_NUCLEOTIDES} only: is it DNA? ESM-2 reads proteins. Translate it first.",
            UserWarning,
            stacklevel=2,
        )
