"""Variants as people write them: what is read, what is refused, and how that is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from Bio.Seq import Seq
from hypothesis import given
from hypothesis import strategies as st

from esm2_features import Engine
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, RESIDUES
from esm2_features._inputs.mutations import (
    Mutation,
    check_length,
    mutate,
    mutations_between,
    read_variants,
)
from esm2_features.exceptions import (
    InvalidSequenceError,
    InvalidVariantError,
    SequenceTooLongError,
)

WILDTYPE = "MKTAYIAKQR"


def read(*values, wildtype=WILDTYPE, offset=0, **options):
    normalise = Engine("mini", cache=None, **options).policy.normalise
    return read_variants(values, wildtype, offset=offset, normalise=normalise)


@st.composite
def written_variants(draw):
    """A wild type, mutations of it, an offset, and how people write that."""
    wildtype = draw(st.text(alphabet=CANONICAL_RESIDUES, min_size=1, max_size=40))
    positions = draw(st.lists(st.sampled_from(range(len(wildtype))), min_size=1, unique=True))
    letters = draw(
        st.lists(st.sampled_from(RESIDUES), min_size=len(positions), max_size=len(positions))
    )
    mutations = tuple(
        Mutation(wildtype[i], i, letter) for i, letter in zip(positions, letters, strict=True)
    )
    offset = draw(st.integers(-100, 1000))
    text = ":".join(f"{m.wildtype}{m.position + 1 + offset}{m.mutant}" for m in mutations)
    return wildtype, mutations, offset, draw(st.sampled_from([text, text.lower(), f" {text}\n"]))


@pytest.mark.filterwarnings("ignore:The variant .* puts X")
@given(written=written_variants())
def test__read_variants__gives_the_mutations_that_were_written(written):
    wildtype, mutations, offset, text = written
    assert read(text, wildtype=wildtype, offset=offset) == [mutations]


@given(written=written_variants())
def test__mutations_between__undoes_mutate(written):
    wildtype, mutations, _, _ = written
    changing = sorted((m for m in mutations if m.wildtype != m.mutant), key=lambda m: m.position)
    mutant = mutate(wildtype, mutations)
    assert mutations_between(wildtype, mutant) == tuple(changing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K2R", (("K", 1, "R"),)),
        ("k2r:q9e", (("K", 1, "R"), ("Q", 8, "E"))),
        ("Q9E : K2R", (("Q", 8, "E"), ("K", 1, "R"))),
        ("K2K", (("K", 1, "K"),)),
        ("K02R", (("K", 1, "R"),)),
        ("p.Lys2Arg", (("K", 1, "R"),)),
        ("Lys2Arg", (("K", 1, "R"),)),
        ("LYS2ARG", (("K", 1, "R"),)),
        ("p.K2R", (("K", 1, "R"),)),
        ("p.(Lys2Arg)", (("K", 1, "R"),)),
        ("p.Lys2Sec", (("K", 1, "U"),)),
        ("p.[Lys2Arg;Gln9Glu]", (("K", 1, "R"), ("Q", 8, "E"))),
        ("p.[(Lys2Arg;Gln9Glu)]", (("K", 1, "R"), ("Q", 8, "E"))),
        ("p.Lys2Arg:p.Gln9Glu", (("K", 1, "R"), ("Q", 8, "E"))),
        ("K2R:p.Q9E", (("K", 1, "R"), ("Q", 8, "E"))),
        ("NP_000537.3:p.Lys2Arg", (("K", 1, "R"),)),
        ("NM_000546.6(TP53):p.[Lys2Arg;Gln9=]", (("K", 1, "R"), ("Q", 8, "Q"))),
        ("WT", ()),
        ("wt", ()),
        (np.str_("K2R"), (("K", 1, "R"),)),
        ("MRTAYIAKQR", "MRTAYIAKQR"),
        (" mrtayiakqr*", "MRTAYIAKQR"),
        (b"MRTAYIAKQR", "MRTAYIAKQR"),
        (b"K2R", (("K", 1, "R"),)),
        (np.bytes_(b"k2r:Q9E"), (("K", 1, "R"), ("Q", 8, "E"))),
        (b" WT ", ()),
        ("MKT", "MKT"),
    ],
)
def test__read_variants__reads_each_way_of_writing(text, expected):
    assert read("WT", text) == [(), expected]


@pytest.mark.parametrize("number", [-2, 0, 7])
def test__read_variants__the_first_residue_is_one_after_the_offset(number):
    assert read(f"M{number}V", offset=number - 1) == [(Mutation("M", 0, "V"),)]


MALFORMED = [
    ("K2aR", "K2aR", "Write the residue of the wild type"),
    ("p.?", "p.?", "Write the residue of the wild type"),
    ("p.Lys2Arg;Gln9Glu", "p.Lys2Arg;Gln9Glu", "Join several"),
    ("p.Lys2_Thr3del", "p.Lys2_Thr3del", "Deletions"),
    ("NP_1.1:p.Lys2Ter", "NP_1.1:p.Lys2Ter", "drop such rows"),
    ("K2del:p.Gln9Glu", "K2del", "Deletions"),
    ("K2R,Q9E", "K2R,Q9E", "Join several mutations by ':' alone"),
    ("K2R;Q9E", "K2R;Q9E", "Join several"),
    ("K2R/Q9E", "K2R/Q9E", "Join several"),
    ("K2R+Q9E", "K2R+Q9E", "Join several"),
    ("K2R Q9E", "K2R Q9E", "Join several"),
    ("K2R-Q9E", "K2R-Q9E", "Join several"),
    ("K2R:", "", "Leave out the ':' at the ends"),
    ("K2R::Q9E", "", "write one between two"),
    ("K2*", "K2*", "A stop ends the protein there"),
    ("p.Lys2Ter", "p.Lys2Ter", "drop such rows"),
    ("K2-", "K2-", 'sequence of the mutant, with method="pseudo-perplexity"'),
    ("K2del", "K2del", "Deletions"),
    ("K2_Q9del", "K2_Q9del", "Deletions"),
    ("K2R:A4insG", "A4insG", "insertions"),
    ("2R", "2R", "Write the residue of the wild type, the position"),
    ("K2", "K2", "Write the residue of the wild type"),
    ("M:K", "M", "Write the residue of the wild type"),
    ("K2.0R", "K2.0R", "Write the residue"),
    ("K1234567890R", "K1234567890R", "Write the residue"),
]


@pytest.mark.parametrize(("text", "found", "remedy"), MALFORMED)
def test__read_variants__refuses_other_notations_and_says_how_to_write_it(text, found, remedy):
    with pytest.raises(InvalidVariantError) as caught:
        read("K2R", text)
    error = caught.value
    assert (error.index, error.variant, error.found) == (1, text, found)
    assert error.expected == "a mutation such as A123G"
    assert f"The variant {text!r} in row 1 cannot be read: {found!r}" in str(error)
    assert remedy in str(error)


UNFIT = [
    ("K11R", "a position from 1 to 10", "11", "mutates position 11, but with offset=0"),
    (
        "M0K",
        "a position from 1 to 10",
        "0",
        "mutates position 0, but with offset=0 the wild type has the positions 1 to",
    ),
    ("M-1K", "a position from 1 to 10", "-1", "mutates position -1"),
    ("A2R", "K", "A", "replaces A at position 2, where the wild type has K"),
    ("K2R:A3R", "T", "A", "replaces A at position 3, where the wild type has T"),
    ("p.Ala2Arg", "K", "A", "replaces A at position 2, where the wild type has K"),
    ("p.Lys11Arg", "a position from 1 to 10", "11", "mutates position 11"),
    ("p.Lys2Xle", f"one of {RESIDUES}", "XLE", "puts XLE at position 2"),
    ("Abc2Arg", "K", "ABC", "replaces ABC at position 2"),
    ("p.[Lys2Arg;Lys2Glu]", "each position once", "position 2 twice", "mutates position 2 twice"),
    (
        "p.[Lys2Arg];[Gln9Glu]",
        "one protein",
        "p.[Lys2Arg];[Gln9Glu]",
        "is of two alleles, which are two proteins: write a row for each",
    ),
    ("K2J", f"one of {RESIDUES}", "J", "puts J at position 2, which is not a residue"),
    ("K2R:T3A:k2e", "each position once", "position 2 twice", "mutates position 2 twice"),
]


@pytest.mark.parametrize(("text", "expected", "found", "message"), UNFIT)
def test__read_variants__refuses_what_does_not_fit_the_wild_type(text, expected, found, message):
    with pytest.raises(InvalidVariantError) as caught:
        read("WT", "K2R", text)
    error = caught.value
    assert (error.index, error.variant) == (2, text)
    assert (error.expected, error.found) == (expected, found)
    assert f"The variant {text!r} in row 2 {message}" in str(error)


def test__read_variants__positions_in_messages_are_in_the_numbering_of_the_variants():
    with pytest.raises(
        InvalidVariantError, match="offset=23 the wild type has the positions 24 to"
    ):
        read("K1R", offset=23)
    with pytest.raises(InvalidVariantError, match="position 25 twice"):
        read("K25R:K25E", offset=23)


def test__read_variants__asks_for_the_offset_at_which_all_mutations_would_fit():
    asked = r" Is the numbering shifted\? All 4 mutations would fit with offset=23\.$"
    with pytest.raises(InvalidVariantError, match=asked):
        read("M24V", "K25R:Q32E", "WT", b"m24l:k25r", WILDTYPE)
    with pytest.raises(InvalidVariantError, match=r"All 3 mutations would fit with offset=-1\.$"):
        read("M0V", "K1R", "T2A")
    with pytest.raises(InvalidVariantError, match=asked):
        read("p.Met24Val", "p.[Lys25Arg;Gln32Glu]", "p.Met24Leu")


@pytest.mark.parametrize(
    "values",
    [
        ["K3R", "Q10E"],  # too few to say
        ["M24V", "M24L", "M24A", "K25R"],  # so are two positions
        ["W3R", "M2V", "K9E"],  # no offset
        ["M24V", "K24V", "T26A"],
        ["M1V", "K99R", "T3A"],
        ["M24V", "K25R", "T26A", "not a mutation 7"],  # something else is wrong
        ["M24V", "K25R", "T26*"],
        ["M24V", "K25R", "T26J"],
        ["M24V", "K25R", "T26A", None],
    ],
)
def test__read_variants__asks_for_no_offset_that_is_a_guess(values):
    with pytest.raises(InvalidVariantError, match=r"mutates|replaces|Missing") as caught:
        read(*values)
    assert "would fit" not in str(caught.value)


def test__read_variants__asks_for_no_offset_where_several_would_fit():
    with pytest.raises(InvalidVariantError) as caught:
        read("A12G", "A13G", "A14G", wildtype="AAAAA")
    assert "would fit" not in str(caught.value)


def test__read_variants__unknown_letters_in_a_notation_are_refused_whatever_unknown_says():
    with pytest.raises(InvalidVariantError, match="puts J at position 2"):
        read("K2J", unknown="X")


@pytest.mark.parametrize("given", [" k3R\n", b"k3R ", "MK<mask>*"])
def test__error__carries_the_variant_as_it_was_given(given):
    with pytest.raises(InvalidVariantError) as caught:
        read("WT", given)
    assert caught.value.variant == (given.decode() if isinstance(given, bytes) else given)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT, "nan", b"NULL", " - "])
def test__read_variants__refuses_a_missing_value_with_its_row(missing):
    with pytest.raises(InvalidVariantError, match="Missing value in row 1, where a variant") as c:
        read("K2R", missing)
    assert (c.value.index, c.value.found) == (1, "a missing value")


def test__read_variants__sequences_are_refused_as_sequences_are_everywhere():
    assert read("GA", "NA", np.str_("VA"), wildtype="AA") == ["GA", "NA", "VA"], "peptides"
    with pytest.raises(InvalidSequenceError, match="Empty sequence in row 1 of column 'variants'"):
        read("WT", " ")
    with pytest.raises(InvalidSequenceError, match="Remove alignment gaps") as caught:
        read("WT", "WT", "MKT-YIAKQR")
    assert (caught.value.index, caught.value.position) == (2, 4)
    with pytest.raises(SequenceTooLongError) as caught:
        read("WT", "MKTAYIAKQRM", max_residues=10)
    assert caught.value.index == 1
    with pytest.raises(TypeError, match="row 1 of column 'variants', got int"):
        read("K2R", 7)


@pytest.mark.parametrize(
    ("text", "options"), [("MK<mask>AYIAKQR", {}), ("MKJAYIAKQR", {"unknown": "mask"})]
)
def test__read_variants__refuses_a_mask_in_a_mutant(text, options):
    with pytest.raises(InvalidVariantError, match="row 1 holds a <mask> at position 3") as caught:
        read("K2R", text, **options)
    error = caught.value
    assert (error.index, error.variant) == (1, text)
    assert (error.expected, error.found) == ("a residue", "<mask>")


def test__read_variants__a_long_text_is_shown_in_part():
    with pytest.raises(InvalidVariantError) as caught:
        read(":".join(["K2R"] * 1000))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(("column", "place"), [(None, "row 3"), ("b", "row 3 of column 'b'")])
def test__refuse_other_length__says_where(column, place):
    with pytest.raises(
        InvalidVariantError, match=f"in {place} has 9 residues, the wild type has 10"
    ) as c:
        check_length(WILDTYPE, WILDTYPE[1:], index=3, given=Seq("ktayiakqr"), column=column)
    error = c.value
    assert (error.index, error.variant) == (3, "ktayiakqr")
    assert (error.expected, error.found) == ("10 residues", "9 residues")
    assert 'pass method="pseudo-perplexity"' in str(error)


@pytest.mark.parametrize(
    "word",
    [
        *("WT", "wt", "_WT", "_wt", "WILD-TYPE", "wildtype", "Wild type", "wild_type", " native\n"),
        *("NATIVE", "parent", "Parental", "reference", "Ref", "synonymous", "_sy", "p.=", "p.(=)"),
        *("=", b"wildtype", "unmutated"),
    ],
)
def test__read_variants__words_for_the_wild_type(word):
    assert read("K2R", word) == [(("K", 1, "R"),), ()]


@pytest.mark.parametrize("text", ["K2=", "k2=", "p.K2=", "p.Lys2=", "p.(Lys2=)", "Lys2=", "LYS2="])
def test__read_variants__no_change_at_a_position(text):
    assert read(text) == [(("K", 1, "K"),)]
    assert read(f"{text}:Q9E") == [(("K", 1, "K"), ("Q", 8, "E"))]
    with pytest.raises(InvalidVariantError, match="replaces K at position 3"):
        read(text.replace("2", "3"))


def test__read_variants__capitals_of_the_length_of_the_wild_type_are_a_sequence():
    assert read("NATIVE", "native", wildtype="NATLVE") == ["NATIVE", ()]
    assert read("WT", wildtype="AT") == [()]


WORDS = [
    *("control", "mutant", "Mutant", "random", "frameshift", "nonsense", "deletion", "insertion"),
    *("CONTROL", "MUTANT", "STARVED", "truncated", "background", "library", "empty vector"),
]


@pytest.mark.parametrize("word", WORDS)
def test__read_variants__other_words_are_refused_by_name(word):
    protein = "MKTAYIAKQRQISFVKSHFSRQ"
    with pytest.raises((InvalidVariantError, InvalidSequenceError)) as caught:
        read("K2R", word, wildtype=protein)
    assert (caught.value.index, repr(word) in str(caught.value)) == (1, True)
    assert "pseudo-perplexity" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "MKTAYIAKQR",
        "mktayiakqr",
        "ISFVKS",
        "MKTAYIAKQRQISFVKSHFSRQMKTAY",
        "MKTAYIAKQRISFVKSHFSRQ",
        "GSHMKTAYIAK",
        "M",
        "WWWWWWWWWWWWWWWWWWWWWWWWWWWW",
    ],
)
def test__read_variants__truncations_and_fusions_are_sequences(text):
    assert read(text, wildtype="MKTAYIAKQRQISFVKSHFSRQ") == [text.upper()]


def test__read_variants__warns_once_of_x_which_may_be_a_stop():
    with pytest.warns(UserWarning, match=r"'R10X' in row 1 \(the first of 2\).*stop") as caught:
        assert read("K2R", "R10X", "K2X") == [
            (("K", 1, "R"),),
            (("R", 9, "X"),),
            (("K", 1, "X"),),
        ]
    assert len(caught) == 1
    read("MXTAYIAKQR")  # in a sequence, X is no stop


@pytest.mark.parametrize("text", ["Y5*", "p.Tyr5Ter", "p.Y5*", "Y5fs", "p.Tyr5fs*3", "R10stop"])
def test__read_variants__a_stop_has_no_remedy_but_to_drop_it(text):
    with pytest.raises(InvalidVariantError, match="drop such rows") as caught:
        read(text)
    assert "pseudo-perplexity" not in str(caught.value)
