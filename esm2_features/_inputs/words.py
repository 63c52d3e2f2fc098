"""Words that stand in the place of a sequence: for a missing value, a label, or the wild type.

Some of them spell a peptide. Capitals of two or three letters (``NA``, ``NAN``, ``ND``) are one
where the other values of their column are peptides of that size; `peptide_sizes` decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._inputs.cells import text_of

_MISSING_WORDS = r"""
- -- --- . .. ... ? ?? ??? \n n/a n.a. n.a n/d n.d. na nd nan -nan nat nil none null void
<na> <n/a> <none> <null> (null) (none) #na #n/a #value! #ref! #name? #div/0! #null! #num!
1.#ind 1.#qnan -1.#ind -1.#qnan unk unknown missing undefined undetermined unassigned unavailable
unspecified empty blank pending tbd tba true false
"""
_MISSING_PHRASES = """
#n/a n/a, not available, not applicable, not determined, not found, not known, no data,
no sequence, sequence unavailable, sequence not available
"""
MISSING = frozenset([*_MISSING_WORDS.split(), "\u2013", "\u2014"]) | {
    " ".join(phrase.split()) for phrase in _MISSING_PHRASES.split(",")
}
"""What stands for a missing value, whatever its case: in R, pandas, SQL, spreadsheets, BioMart."""

_WILD_TYPE_WORDS = """
wt _wt wildtype wild-type wild_type native parent parental reference ref unmutated
synonymous silent _sy = (=) p.= p.(=) p.[=]
"""
WILD_TYPE = frozenset(_WILD_TYPE_WORDS.split()) | {"wild type"}
"""What stands for the wild type among its variants, whatever its case."""

_LABEL_WORDS = """
train training test testing val valid validation dev holdout eval fold
active inactive positive negative pos neg toxic nontoxic non-toxic antigenic
binder binders binding nonbinder non-binder bind nobind strong weak high medium low
stable unstable soluble insoluble yes no control treated random other others
human mouse rat rabbit pig bovine cow horse chicken yeast bacteria bacterial bacterium virus
viral plant animal fungi fungal fungus archaea archaeal eukaryota eukaryote mammal insect
homo mus camel llama alpaca macaque rhesus monkey zebrafish ecoli synthetic natural designed
heavy light alpha beta gamma delta kappa lambda chain linear cyclic helix sheet coil
kinase protease ligase lyase enzyme receptor antibody nanobody antigen peptide protein toxin
true false hormone neuropeptide antimicrobial anticancer antiviral gpcr membrane cytoplasm cytosol
nucleus nuclear secreted extracellular mut mutant variant wildtype native parent
deletion insertion substitution missense nonsense frameshift
sensitive resistant high liver skin brain blood xray nmr imgt kabat chothia sars mers
"""
LABELS = frozenset(_LABEL_WORDS.split())
"""What columns of labels hold in published tables, whatever its case."""

_LONGEST_WORD = max(map(len, MISSING))
LONGEST_CELL = _LONGEST_WORD + 8
"""Letters of a cell with a word and white space around it, at most."""
_LONGEST_PEPTIDE = 3
_FEWEST_ALIKE = 3
"""Different peptides of two (or three) letters that make NA (or NAN) one of them."""


def is_missing_word(text: str) -> bool:
    """Whether a text stands for a missing value; in capitals it may yet be a peptide."""
    return len(text) <= LONGEST_CELL and " ".join(text.casefold().split()) in MISSING


def is_wild_type(text: str) -> bool:
    """Whether a text stands for the wild type."""
    return text.strip().casefold() in WILD_TYPE


def may_be_peptide(word: str) -> bool:
    """Whether a word for a missing value could be a peptide in the right column."""
    word = word.strip()
    return len(word) <= _LONGEST_PEPTIDE and bool(word) and not word.strip(CANONICAL_RESIDUES)


def peptide_sizes(values: Sequence[object]) -> frozenset[int]:
    """Find the lengths, of 2 and 3, at which a word among these values is a peptide like others."""
    texts = [text.strip().upper() for text in map(text_of, values) if len(text) < _LONGEST_WORD]
    n_long = len(values) - len(texts)
    counts = Counter(text for text in texts if text)
    words = {text: n for text, n in counts.items() if is_missing_word(text)}
    peptides = {text: n for text, n in counts.items() if text not in words and text.isalpha()}
    found = set()
    for size in range(2, _LONGEST_PEPTIDE + 1):
        alike = {text: n for text, n in peptides.items() if len(text) == size}
        if not n_long and all(len(text) <= _LONGEST_PEPTIDE for text in peptides):
            alike = peptides
        are_usual = len(alike) >= _FEWEST_ALIKE or 4 * len(alike) >= len(peptides) + n_long
        # A word that is there more often than any peptide marks the rows that have none.
        most = max(alike.values(), default=0)
        if alike and are_usual and all(n <= most for w, n in words.items() if len(w) == size):
            found.add(size)
    return frozenset(found)


def missing_words(values: Sequence[object], sizes: frozenset[int] | None = None) -> set[int]:
    """Find the rows in which a word stands for a missing value.

    ``sizes`` are those of `peptide_sizes`; None finds them in these values.
    """
    found = {}
    for row, value in enumerate(values):
        text = value if type(value) is str else text_of(value)
        if len(text) <= LONGEST_CELL and is_missing_word(text):
            found[row] = text
    if sizes is None and any(map(may_be_peptide, found.values())):
        sizes = peptide_sizes(values)
    return {
        row
        for row, text in found.items()
        if not (sizes and may_be_peptide(text) and len(text.strip()) in sizes)
    }
