"""Columns of text that hold no sequences, though their letters are residues: labels and codes.

A column is judged by its values, and where these do not suffice, by its name. Columns with
values of more than 25 letters hold sequences.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from esm2_features._inputs.alphabet import RESIDUES
from esm2_features._inputs.cells import is_biopython_seq, is_record, text_of
from esm2_features._inputs.remedies import kind_of
from esm2_features._inputs.words import LABELS, is_missing_word, is_wild_type
from esm2_features.exceptions import InputError, shorten

_LONGEST_LABEL, _LONGEST_NAME, _LONGEST_CODE = 25, 12, 6
_LETTERS_OF_LINKERS = 3  # such as GGGGS and EAAAK have, at most
_SAMPLE = 50
"""Values that are looked at one by one for identifiers, mutations and the like."""

_FEWEST_ROWS, _FEWEST_REPEATS = 20, 10
"""Rows, and rows for each different value, from which repetition is a sign of labels."""

_NAMES_OF_LABELS = """
accession activity category class cluster description family fold gene genus group host id ids kind
label labels method name names organism partition pdb protocol set source species split status
strain subset superfamily symbol taxon tissue type uniprot
"""
_LABEL_NAMES = frozenset(_NAMES_OF_LABELS.split())
_SEQUENCE_NAMES = re.compile(
    r"seq|pep|cdr|link|epitope|antigen|motif|fr[1-4]|fw|v[hl]\b|heavy|light|alpha|beta|hla|mhc|"
    r"pseudo|spacer|aa\b|fragment|ligand|substrate|site",
    re.IGNORECASE,
)
_LETTERS = frozenset(RESIDUES + RESIDUES.lower() + "*")


@dataclass(frozen=True)
class _Profile:
    """What is known of the values of one column."""

    name: str | None
    texts: list[str]  # without missing values

    @cached_property
    def longest(self) -> int:
        return max(map(len, self.texts), default=0)

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(self.texts)

    @cached_property
    def sample(self) -> list[str]:
        return list(dict.fromkeys(self.texts[: 20 * _SAMPLE]))[:_SAMPLE]

    @cached_property
    def is_called_label(self) -> bool:
        """Whether the column's name is that of labels; one such as wt_peptide is not."""
        name = re.sub("([a-z])([A-Z])", r"\1_\2", self.name or "").lower()
        words = re.findall("[a-z]+", re.sub("wild.?type", "", name))
        if self.is_called_sequence:
            words = [word for word in words[-1:] if word in ("name", "names", "id", "ids", "label")]
        return not _LABEL_NAMES.isdisjoint(words)

    @cached_property
    def is_called_sequence(self) -> bool:
        return _SEQUENCE_NAMES.search(self.name or "") is not None

    @cached_property
    def may_be_sequences(self) -> bool:
        return bool(self.sample) and all(_LETTERS.issuperset(text) for text in self.sample)

    @cached_property
    def are_words(self) -> bool:
        """Whether all values are written as words are: in lower case, or with one capital first."""
        return all(text[1:].islower() for text in self.counts)

    @cached_property
    def usual_length(self) -> int:
        lengths = sorted(map(len, self.texts))
        return lengths[len(lengths) // 2] if lengths else 0


def check_labels(
    columns: Sequence[tuple[str | None, Sequence[object]]],
    *,
    pick: Callable[[list[int]], str],
    join: str,
    insist: str,
) -> None:
    """Raise InputError for a column of labels.

    ``pick`` writes how to pass only some of the columns, ``join`` how to join rows of letters, and
    ``insist`` how to embed all the same.
    """
    profiles = [_Profile(name, _texts(values)) for name, values in columns]
    n_letters = sum(profile.longest == 1 for profile in profiles)
    if n_letters > 1 and all(profile.longest <= 1 for profile in profiles):
        raise InputError(
            f"The {len(profiles)} columns of X hold single letters. If each row is one sequence, "
            f"letter by letter, join them: {join}. The residues of mutations and the ids of chains "
            "are no sequences."
        )
    found = [_reason(profile, profiles) for profile in profiles]
    odd = next((i for i, reason in enumerate(found) if reason), None)
    if odd is None:
        return
    column, kept = profiles[odd], [i for i, reason in enumerate(found) if not reason]
    which = f"column {column.name!r}" if column.name is not None else f"column {odd}"
    shown = ", ".join(
        f"{shorten(t, 30)!r} ({n} of {len(column.texts)} rows)"
        for t, n in column.counts.most_common(3)
    )
    remedy = "Pass the column that holds the sequences"
    if kept:
        remedy = f"Pass the columns of sequences only: {pick(kept)}"
    word = column.counts.most_common(1)[0][0].upper()
    names = [i if profile.name is None else profile.name for i, profile in enumerate(profiles)]
    # What holds other characters than residues is refused, whoever insists.
    also = f" {insist.format(word=word, names=names)}" if column.may_be_sequences and insist else ""
    raise InputError(
        f"The {which} of X holds {found[odd]}, not sequences: {shown}. Each column would become a "
        f"chain with features of its own. {remedy}.{also}"
    )


def may_be_sequences(columns: Sequence[tuple[str | None, Sequence[object]]]) -> list[int]:
    """Give the numbers of the columns that do not hold labels."""
    profiles = [_Profile(name, _texts(values)) for name, values in columns]
    return [i for i, profile in enumerate(profiles) if not _reason(profile, profiles)]


def _texts(values: Sequence[object]) -> list[str]:
    """List the texts of a column; none if somebody made sequences of them."""
    first = next((value for value in values if value is not None), None)
    if is_record(first) or is_biopython_seq(first):
        return []
    texts = (value if type(value) is str else text_of(value) for value in values)
    stripped = [text.strip() for text in texts if text]
    return [text for text in stripped if not is_missing_word(text) or text.casefold() in LABELS]


def _reason(column: _Profile, columns: Sequence[_Profile]) -> str:
    """Say what a column holds in the place of sequences; empty if it may hold sequences."""
    if not column.texts:
        return ""
    others = [other for other in columns if other is not column and other.may_be_sequences]
    kinds = [kind_of(text) if others else "" for text in column.sample]
    plain = [
        text
        for kind, text in zip(kinds, column.sample, strict=True)
        if not kind and not text.istitle() and text.casefold() not in LABELS
    ]
    found = sorted({kind for kind in kinds if kind})
    # Beside words such as non-AMP, AMP is one, too.
    are_words = found == ["text"] and all(len(text) <= _LONGEST_CODE for text in plain)
    if found and (not plain or are_words):
        return " and ".join(found)
    if column.longest > _LONGEST_LABEL:
        return ""
    if _are_known(column.counts, is_alone=not others):
        return "labels"
    if not column.may_be_sequences:
        return ""
    return _reason_beside(column, others)


def _reason_beside(column: _Profile, others: Sequence[_Profile]) -> str:
    """Compare a column of short texts with those that may hold sequences."""
    longer = [other for other in others if other.usual_length > max(4, column.usual_length)]
    if others and _are_single_letters(column, bool(longer)):
        return "one or two letters"
    if (
        not others
        and column.longest == 1
        and len(column.texts) >= _FEWEST_ROWS > len(column.counts)
    ):
        return "single letters"
    if longer and column.longest <= _LONGEST_NAME and column.is_called_label:
        return "names or labels"
    if column.is_called_sequence:
        return ""
    if column.are_words and any(all(map(str.isupper, other.sample)) for other in others):
        return "words in lower case beside sequences in capitals"
    if len(column.counts) > 1 and column.are_words and all(map(_is_name, column.counts)):
        return "names"
    if _are_repeated_words(column, is_alone=not others, is_shorter=bool(longer)):
        return "few words, repeated"
    return ""


def _are_single_letters(column: _Profile, is_shorter: bool) -> bool:
    most = 1 if column.is_called_sequence else 2
    return is_shorter and column.longest <= most


def _is_name(text: str) -> bool:
    return text[0].isupper() and len(text) > 3


def _are_repeated_words(column: _Profile, *, is_alone: bool, is_shorter: bool) -> bool:
    """Whether there are few short values for many rows that do not look like linkers."""
    n = len(column.counts)
    if n == 1 or len(column.texts) < max(_FEWEST_ROWS, _FEWEST_REPEATS * n):
        return False
    letters = {letter.upper() for text in column.counts for letter in text}
    if is_alone:
        return column.are_words
    # Loops of antibodies have three residues or more.
    shortest = 1 if column.name is not None else 4
    is_short = shortest <= column.longest <= _LONGEST_CODE and len(letters) > _LETTERS_OF_LINKERS
    return is_shorter and (is_short or not letters.isdisjoint("BJOUZ"))


def _are_known(texts: Counter[str], *, is_alone: bool) -> bool:
    """Whether all values are labels that are usual in published tables."""
    if any(text.casefold() not in LABELS and not is_wild_type(text) for text in texts):
        return False
    n = sum(texts.values())
    longest_in_capitals = max((len(text) for text in texts if text.isupper()), default=0)
    if longest_in_capitals and is_alone and n < 2:
        return False
    # Tripeptides may spell short words by chance, but not the same few again and again.
    is_short = 0 < longest_in_capitals <= 3 and not any(map(is_wild_type, texts))
    return not is_short or (len(texts) > 1 and n >= _FEWEST_REPEATS * len(texts))
