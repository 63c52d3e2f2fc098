"""One cell becomes residues, or an error that names the row, the position and the remedy."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._inputs.alphabet import MASK, RESIDUES
from esm2_features._inputs.cells import is_missing
from esm2_features._inputs.remedies import remedy_for_letters
from esm2_features._inputs.residues import normalise
from esm2_features._inputs.words import is_missing_word
from esm2_features.exceptions import (
    InvalidSequenceError,
    MissingSequenceError,
)

# ------------------------------------------------------------------ one sequence


@pytest.mark.parametrize(
    "value",
    [
        *(None, float("nan"), np.float32("nan"), complex("nan"), Decimal("nan"), np.ma.masked),
        *(pd.NA, pd.NaT, np.datetime64("NaT"), np.timedelta64("NaT", "s"), SeqRecord(None)),
    ],
    ids=repr,
)
def test__is_missing__missing_values(value):
    assert is_missing(value) is True
    with pytest.raises(MissingSequenceError):
        normalise(value, index=0)


@pytest.mark.parametrize("value", ["", "nan", b"", 0, 0.0, False, [], (), np.array([]), Seq("M")])
def test__is_missing__everything_else(value):
    assert is_missing(value) is False


@pytest.mark.parametrize(
    ("value", "sequence"),
    [
        ("MKT", "MKT"),
        ("mkt", "MKT"),
        (" \t\r\nMKT\v\f\n", "MKT"),
        ("MKT*", "MKT"),
        ("MKT*\n", "MKT"),
        (b"mkt*", "MKT"),
        (bytearray(b"MKT"), "MKT"),
        (np.str_("mkt"), "MKT"),
        (np.bytes_(b"mkt"), "MKT"),
        (RESIDUES, RESIDUES),
        (RESIDUES.lower(), RESIDUES),
        ("<mask>", "#"),
        ("MK<mask>T<MASK><Mask>", "MK#T##"),
        ("<mask>*", "#"),
        ("NAN", "NAN"),
    ],
)
def test__normalise__what_is_accepted(value, sequence):
    result = normalise(value, index=0)
    assert result == sequence
    assert type(result) is str


any_notation = st.lists(st.sampled_from([*RESIDUES, *RESIDUES.lower(), "<mask>"]), min_size=1)


@given(any_notation, st.text(" \t\r\n"), st.sampled_from(["", "*"]), st.text(" \t\r\n"))
def test__normalise__is_idempotent_and_counts_residues(notation, before, stop, after):
    written = "".join(notation)
    is_word = is_missing_word(written) and not written.isupper()
    if is_word or (written != written.upper() and remedy_for_letters(written)):
        return  # taken for what they most often are, see below
    sequence = normalise(before + written + stop + after, index=0)
    assert len(sequence) == len(notation)
    assert set(sequence) <= {*RESIDUES, MASK}
    assert normalise(sequence.replace(MASK, "<mask>"), index=0) == sequence


@given(st.text(), st.sampled_from(["raise", "X", "mask"]))
def test__normalise__any_text_gives_residues_or_an_error_that_points_at_it(text, unknown):
    stripped = text.strip(" \t\n\r\v\f")
    try:
        sequence = normalise(text, index=3, unknown=unknown)
    except InvalidSequenceError as caught:
        error = caught
    except MissingSequenceError:
        error = None
    else:
        assert set(sequence) <= {*RESIDUES, MASK}
        return
    if error is None:
        assert is_missing_word(stripped)
    elif error.position is None:
        assert (error.index, error.residue) == (3, "")
        assert stripped in ("", "*")
    else:
        assert (error.index, error.residue) == (3, stripped[error.position - 1])


WRONG = {
    "J": ("MKJ", 3, "J", 'Correct it, or pass unknown="X" or unknown="mask" to embed it'),
    "accession": ("P01308", 2, "0", "It looks like an identifier: pass the sequence of"),
    "long accession": ("A0A024R161", 2, "0", "It looks like an identifier"),
    "isoform": ("q9y2x7-3", 2, "9", "It looks like an identifier"),
    "lower case": ("mkj", 3, "j", "Correct it"),
    "digit": ("M1T", 2, "1", "It looks like a mutation: score_variants takes"),
    "gap": ("MK-T", 3, "-", "Remove alignment gaps: sequence.replace('-', '')."),
    "other gap": ("MK.T", 3, ".", "Remove alignment gaps: sequence.replace('.', '')."),
    "stop": ("MK*T", 3, "*", "An inner '*' is a stop codon: cut the sequence there, or pass"),
    "two stops": ("MKT**", 4, "*", "An inner '*' is a stop codon"),
    "blank": ("MKT AYI", 4, " ", 'join it: "".join(sequence.split()).'),
    "line": ("MKT\nAYI", 4, "\n", 'join it: "".join(sequence.split()).'),
    "FASTA": (">sp|X\nMKT", 1, ">", "It is FASTA text: read it with read_fasta(io.BytesIO("),
    "our mask": ("MK#T", 3, "#", 'only "<mask>" can be written'),
    "special token": ("<cls>MK", 1, "<", 'only "<mask>" can be written'),
    "after a mask": ("<mask>J", 7, "J", "Correct it"),
    "after blanks": ("  MKJ", 3, "J", "Correct it"),
    "Cyrillic": ("MK\u0410", 3, "\u0410", "retype it"),
    "full width": ("\uff2dKT", 1, "\uff2d", "retype it"),
    "sharp s": ("MK\u00df", 3, "\u00df", "retype it"),
    "dotless i": ("MK\u0131", 3, "\u0131", "retype it"),
    "long s in a mask": ("<ma\u017fk>", 1, "<", 'only "<mask>" can be written'),
    "no-break space": ("MKT\u00a0", 4, "\u00a0", 'join it: "".join(sequence.split()).'),
    "zero-width space": ("MK\u200bT", 3, "\u200b", "It is invisible: remove it."),
    "byte order mark": ("\ufeffMKT", 1, "\ufeff", "It is invisible: remove it."),
    "null": ("MK\0", 3, "\0", "It is invisible: remove it."),
    "bytes UTF-8": ("MK\u0410".encode(), 3, "\u0410", "retype it"),
    "bytes Latin-1": (b"MK\xc4", 3, "\udcc4", "It is not ASCII: retype it."),
}


@pytest.mark.parametrize(
    ("value", "position", "residue", "remedy"), WRONG.values(), ids=WRONG.keys()
)
def test__normalise__names_the_character_and_the_remedy(value, position, residue, remedy):
    with pytest.raises(InvalidSequenceError) as caught:
        normalise(value, index=5)
    error = caught.value
    assert (error.index, error.position, error.residue) == (5, position, residue)
    assert f"at position {position} of the sequence in row 5 " in str(error)
    assert remedy in str(error)
    assert str(error).isascii()  # so that a look-alike shows


def test__normalise__whole_message():
    with pytest.raises(InvalidSequenceError) as caught:
        normalise("MKTAYIAKQJR", index=3, column="heavy")
    assert str(caught.value) == (
        "'J' at position 10 of the sequence in row 3 of column 'heavy' is not a residue that "
        'ESM-2 knows: \'MKTAYIAKQJR\'. Correct it, or pass unknown="X" or unknown="mask" to '
        "embed it as an unknown residue."
    )


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("\u0410", "U+0410 (CYRILLIC CAPITAL LETTER A)"),
        ("\u00a0", "U+00A0 (NO-BREAK SPACE)"),
        ("\u200b", "U+200B (ZERO WIDTH SPACE)"),
        ("\ufeff", "U+FEFF (ZERO WIDTH NO-BREAK SPACE)"),
        ("\ue000", "U+E000 (unnamed)"),
        ("\udcc4", "The byte 0xC4"),
        ("\n", r"'\n'"),
    ],
)
def test__normalise__tells_look_alikes_by_their_code_point(character, name):
    with pytest.raises(InvalidSequenceError) as caught:
        normalise(f"MK{character}T", index=0)
    assert str(caught.value).startswith(f"{name} at position 3 ")


def test__normalise__shows_a_long_sequence_around_the_character_only():
    with pytest.raises(InvalidSequenceError) as caught:
        normalise("A" * 1000 + "J" + "C" * 1000, index=0)
    shown = "..." + "A" * 30 + "J" + "C" * 29 + "..."
    assert f" knows: '{shown}'. " in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("letter", ["J", "j", "*", "?"])
def test__normalise__letters_of_unknown_residues_become_what_was_asked_for(letter):
    assert normalise(f"MK{letter}T", index=0, unknown="X") == "MKXT"
    assert normalise(f"MK{letter}T", index=0, unknown="mask") == "MK#T"


@pytest.mark.parametrize("unknown", ["X", "mask"])
@pytest.mark.parametrize(
    "character", [*"1-.~#<>()[]{}:/|;,_+&=\"'$%@!", "\u0410", "\u00df", "\u00e9", "\u03b1"]
)
def test__normalise__other_characters_never_become_residues(character, unknown):
    with pytest.raises(InvalidSequenceError) as caught:
        normalise(f"MKTAYI{character}AKQRQI", index=0, unknown=unknown)
    assert (caught.value.position, caught.value.residue) == (7, character)
    assert "unknown=" not in str(caught.value)


@pytest.mark.parametrize("unknown", ["raise", "X", "mask"])
@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\u00a0", "\u200b", "\ufeff", "\0", "\udcc4"])
def test__normalise__blanks_and_invisible_characters_never_become_residues(blank, unknown):
    with pytest.raises(InvalidSequenceError):
        normalise(f"MK{blank}T", index=0, unknown=unknown)


@pytest.mark.parametrize("unknown", ["raise", "X", "mask"])
@pytest.mark.parametrize("value", ["", " \n", "*", " * ", b"", Seq(""), SeqRecord(Seq(""))])
def test__normalise__empty_sequence(value, unknown):
    with pytest.raises(InvalidSequenceError, match=r"^Empty sequence in row 4\. ") as caught:
        normalise(value, index=4, unknown=unknown)
    error = caught.value
    assert (error.index, error.position, error.residue) == (4, None, "")


def test__normalise__whole_message_of_a_missing_value():
    with pytest.raises(MissingSequenceError) as caught:
        normalise(None, index=4, column="light")
    assert caught.value.index == 4
    assert str(caught.value) == (
        "Missing value in row 4 of column 'light', where a protein sequence is expected. Drop "
        'such rows, or use ESM2Transformer with on_missing="nan" or on_missing="zero" to get '
        "rows of NaN or 0 for them."
    )


@pytest.mark.parametrize("cells", [[np.nan, "MKT"], [None, "MKT"], [pd.NA, "MKT"], [pd.NaT, "MKT"]])
def test__normalise__the_text_of_a_missing_value_is_no_peptide(cells):
    text = pd.Series(cells, dtype=object).map(str)[0]
    with pytest.raises(MissingSequenceError, match="means a missing value") as caught:
        normalise(text, index=0)
    assert text in str(caught.value)


@pytest.mark.parametrize("value", [3, 2.5, True, ["MKT"], ("MKT",), {"a": 1}, np.array(["MKT"])])
def test__normalise__not_text(value):
    with pytest.raises(TypeError) as caught:
        normalise(value, index=2, column="seq")
    assert str(caught.value) == (
        "Expected a protein sequence as text in row 2 of column 'seq', got "
        f"{type(value).__name__}. Pass str, bytes, or objects with a .seq."
    )


def test__normalise__seq_that_knows_its_length_only():
    with pytest.raises(InvalidSequenceError, match="The Seq in row 1 has no letters"):
        normalise(Seq(None, length=10), index=1)
