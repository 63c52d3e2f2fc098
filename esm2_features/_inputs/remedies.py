"""What a text is that is not a sequence, and what to do about it.

Each remedy has two wordings: Python's, and that of the command line, where the text is in a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from esm2_features._inputs.alphabet import MASK, RESIDUE_OF_CODE, RESIDUES
from esm2_features._inputs.messages import Message

_LONGEST_COMPOUND, _LONGEST_READ = 25, 1000


class Remedy(NamedTuple):
    """What to do, in Python and on the command line."""

    python: str
    shell: str = ""  # empty if it is the same

    def after(self, what: str) -> Message:
        """Put it behind the sentence that says what is wrong."""
        return Message(f"{what} {self.python}", f"{what} {self.shell or self.python}")


_AS_UNKNOWN = 'pass unknown="X" or unknown="mask" to embed it as an unknown residue'
_LETTER = f"[{RESIDUES}{RESIDUES.lower()}]"

_OTHER_CODES = "xle mse sep tpo ptr hyp nle orn aib abu dab dap cit"
THREE_LETTERS = frozenset([*RESIDUE_OF_CODE, *_OTHER_CODES.split()])
"""Codes of residues, and of the modified ones that are usual in PDB files and vendors' sheets."""

_START = (
    "Ac|ac|Acetyl|acetyl|NH2|H2N|NH3|Fmoc|FMOC|Boc|BOC|Cbz|Bz|For|Formyl|Pyr|pGlu|Suc|MeOSuc|Myr|"
    "Palm|Biotin|biotin|BIOTIN|Btn|FITC|5-FAM|TAMRA|Cy5|DOTA|Dansyl|Dabcyl|Abz|Mca|cyclo"
)
_END = "OH|NH2|COOH|COO|CONH2|[Aa]mide|AMIDE|NHMe|OMe|OEt|OtBu|pNA|[Aa]cid|ACID|[Bb]iotin"
_DYE = "AMC|AFC|pNA|FMK|CMK|CHO|fmk|cmk|amc"
_IDENTIFIER = "|".join(
    [
        # https://www.uniprot.org/help/accession_numbers, with isoforms and versions
        r"([OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9]([A-Z][A-Z0-9]{2}[0-9]){1,2})([-.][0-9]+)?",
        r"(sp|tr|ur|gi|ref|gb|emb|dbj|pdb|pir|prf|lcl|gnl)\|.*",  # headers of UniProt and NCBI
        r"[A-Z0-9]{2,10}_(HUMAN|MOUSE|RAT|YEAST|ECOLI|BOVIN|PIG|CHICK|DROME|CAEEL|ARATH|XENLA|"
        r"SCHPO|BACSU|[A-Z9][A-Z0-9]{4})",  # names of UniProt's entries
        r"pdb_[0-9]{4}[a-z0-9]{4}([_:.][A-Za-z0-9]{1,4})?",
        r"[1-9][A-Z0-9]{3}[A-Z0-9]?([_:.-][A-Za-z0-9]{1,4})*",  # PDB, with chains
        r"[A-Z]{1,8}[-_ .|]?[0-9]+([-_.|*:/][A-Z0-9]+)*",  # NCBI, Ensembl, Pfam, genes, seq_12
        r"HLA-?[A-Z]+[0-9]*\*?[0-9:]*|[ABC]\*[0-9:]+",  # alleles
        r"UniRef[0-9]+_\S+|UPI[0-9A-F]{10}|AF-\S+-F[0-9]+\S*|EPI_ISL_[0-9]+",
    ]
)
_RESIDUE = rf"(?:[A-Z]|{'|'.join(sorted(THREE_LETTERS))})"
_CHANGE = rf"{_RESIDUE}-?[0-9]+({_RESIDUE}|[*=?]|ter|(_{_RESIDUE}[0-9]+)?(del|dup|ins|fs|ext)\S*)"
_MUTATIONS = (
    rf"(p\.)?[(\[]?(p\.)?{_CHANGE}([:;,/+_ -]{_CHANGE})*[)\]]?|"
    r"(?-i:p\.[(\[]?(=|[A-Z][a-z]{2}[0-9]|[A-Z][0-9]).*|[cgmnr]\.[-*(\[]?[0-9].*)|_(wt|sy)"
)

_CHAINS = Remedy(
    "These look like several chains in one text: put each in a column of its own, such as "
    "[text.split({0!r}) for text in sequences].",
    "These look like several chains in one text: write each as a record of its own.",
)


def _whole(pattern: str) -> Callable[[str], object]:
    return re.compile(rf"\s*(?:{pattern})\s*", re.IGNORECASE | re.DOTALL).fullmatch


def _part(pattern: str, flags: int = re.IGNORECASE) -> Callable[[str], object]:
    return re.compile(pattern, flags).search


def is_three_letter_code(text: str) -> bool:
    """Whether a text is residues in codes of three letters, joined or apart."""
    parts = re.findall("[A-Z][a-z]{2}", text) if text.isalpha() else re.split(r"[\s,.-]+", text)
    is_joined = text.isalpha() and "".join(parts) == text
    return (
        len(parts) > 1
        and (is_joined or not text.isalpha())
        and all(part.lower() in THREE_LETTERS for part in parts)
    )


_MODIFIED = re.compile("p(?=[STYEQ])|ac(?=K)|me(?=[KR])")
THREE_LETTER_REMEDY = Remedy(
    "These are codes of three letters: write one letter for each residue (Met-Lys-Thr is MKT; "
    "Biopython's seq1 translates them)."
)

_KINDS: list[tuple[Callable[[str], object], str, Remedy]] = [
    (
        _whole(r"\S*://\S*|www\.\S+"),
        "addresses",
        Remedy("It looks like the address of a page: pass the sequence that it shows."),
    ),
    (
        _whole(r".*\.(fa|faa|fasta|fas|txt|csv|tsv|xlsx|pdb|cif|gb|gz|zst|parquet)"),
        "names of files",
        Remedy("It looks like the name of a file: read it with read_fasta."),
    ),
    (
        _whole(_MUTATIONS),
        "mutations",
        Remedy(
            "It looks like a mutation: score_variants takes mutations of a wild type; here, pass "
            "the sequence of the mutant.",
            "It looks like a mutation: `esm2-features score` takes mutations; here, write the "
            "sequence of the mutant.",
        ),
    ),
    (
        _whole(r"[-+<>~]?\.?[0-9][0-9.,:/-]*(e[-+]?[0-9]+)?\s*%?"),
        "numbers",
        Remedy("It is a number: pass the column of sequences."),
    ),
    (
        _part(rf"^\s*(({_START})-(?=[^-])|(H|Z)-[^-]+-({_DYE})\s*$)|[^-]-\(?({_END})\)?\s*$", 0),
        "",
        Remedy(
            "These are the ends of a peptide (such as H- and -OH, Ac- and -NH2), not gaps: leave "
            "them out, 'H-MKT-OH' is 'MKT'."
        ),
    ),
    (
        _whole(_IDENTIFIER),
        "identifiers",
        Remedy("It looks like an identifier: pass the sequence of that entry."),
    ),
    (
        _part(r"^\s*>"),
        "",
        Remedy(
            "It is FASTA text: read it with read_fasta(io.BytesIO(text.encode())), or keep only "
            "the lines below the header.",
            "A header stands where a sequence should: put the header and the sequence on lines of "
            "their own.",
        ),
    ),
    (
        # What is left when tokens such as <mask> are gone.
        lambda text: ">" in re.sub("<[^<>]*>", "", text),
        "",
        Remedy("A FASTA header begins at this '>': put a line break before it."),
    ),
    (
        _whole(r"InChI=.*|PEPTIDE[0-9]+\{.*"),
        "formulas",
        Remedy("It looks like InChI or HELM: pass the sequence in letters of one residue each."),
    ),
    (
        _whole(r"b?(['\"]).*\1|[\[({]\s*b?['\"].*|[\u2018-\u201f].*"),
        "",
        Remedy(
            "It is the text of a Python object: evaluate it with ast.literal_eval, or remove the "
            "quotes.",
            "Remove the quotes and brackets.",
        ),
    ),
    (is_three_letter_code, "", THREE_LETTER_REMEDY),
    (
        _part(r"\(=O\)|\[[A-Za-z]+@+H?\]|C\(=|=[CNOS]|[a-z]1[^A-Z]*1", re.ASCII),
        "formulas",
        Remedy("It looks like SMILES: pass the sequence in letters of one residue each."),
    ),
    (
        _part(rf"\({_LETTER}+([0-9]+{_LETTER}+)?\)[nx_]?[0-9]+|\]n"),
        "",
        Remedy("Write repeats out: '(GGGGS)2' is 'GGGGSGGGGS'."),
    ),
    (
        _part(r"[\[({][^\[\](){}]*[\])}]"),
        "",
        Remedy(
            "Modified residues have no token of their own: write the residue that was modified "
            "(M for MSE, S for SEP), or X."
        ),
    ),
    (
        _whole(r"([0-9]+\s+)?([A-Z]+\s+)*[A-Z]+(\s+[0-9]+(\s+[A-Z]+)*)+"),
        "",
        Remedy(
            "Remove the numbers of positions and the white space: "
            're.sub("[^A-Za-z]", "", sequence).',
            "Remove the numbers of positions.",
        ),
    ),
]


def remedy_for_letters(text: str) -> Remedy | None:
    """Say what to do about a text whose letters are residues, and which is no sequence."""
    if is_three_letter_code(text):
        return THREE_LETTER_REMEDY
    if _MODIFIED.search(text) and not any(map(str.islower, _MODIFIED.sub("", text))):
        return Remedy(
            "A 'p' before S, T, Y, E or Q, 'ac' before K and 'me' before K or R mean a modified "
            "residue, which has no token of its own: leave them out, or write the residue in "
            "capitals."
        )
    return None


def remedy_for(text: str, offset: int) -> Remedy:
    """Say what to do about a text, in which the character at ``offset`` is not a residue."""
    character, text = text[offset], _part_at(text, offset)
    for is_it, _, remedy in _KINDS:
        if is_it(text):
            return remedy
    if _is_compound(text):
        return Remedy("It looks like a word or a name: pass the sequence, without gaps.")
    separator = _separator(text)
    if separator:
        return Remedy(_CHAINS.python.format(separator), _CHAINS.shell)
    return _remedy_for_character(character)


def kind_of(text: str) -> str:
    """Name what a text is that holds no residues, such as "identifiers"; empty if it may."""
    if is_three_letter_code(text):
        return ""
    text = _part_at(text, 0)
    noun = next((noun for is_it, noun, _ in _KINDS if is_it(text)), "")
    lengths = {len(word) for word in text.split()[:-1]}
    is_prose = lengths and lengths not in ({1}, {10}) and any(map(str.islower, text))
    return noun or ("text" if is_prose or _is_compound(text) else "")


def _part_at(text: str, offset: int) -> str:
    """Cut what is looked at out of a long text, because patterns take time."""
    start = max(0, offset - _LONGEST_READ // 2) if len(text) > _LONGEST_READ else 0
    return text[start : start + _LONGEST_READ]


def _is_compound(text: str) -> bool:
    """Whether a text is words with hyphens between them, such as non-AMP."""
    is_short = len(text) <= _LONGEST_COMPOUND and re.search("[a-z]{2}", text) is not None
    return is_short and re.fullmatch("[A-Za-z]{2,}([-_][A-Za-z]+)+", text) is not None


def _separator(text: str) -> str:
    """Find what separates sequences in one text; empty if it holds one."""
    found = re.search(r"\s*(:|/+|\|+|;|,|\+|&|_)\s*", text)
    if found is None:
        return ""
    parts = [part.strip() for part in text.split(found[1])]
    # Receptors that are out of frame are written with one underscore within.
    shortest = 10 if found[1] == "_" else 1
    are_all = all(re.fullmatch(rf"{_LETTER}{{{shortest},}}\*?", part) for part in parts if part)
    return found[1] if are_all and len(list(filter(None, parts))) > 1 else ""


def _remedy_for_character(character: str) -> Remedy:
    if character.isspace():
        return Remedy(
            'If this is one sequence, join it: "".join(sequence.split()). Several chains are '
            "columns, and names are no sequences.",
            "If this is one sequence, remove the white space; several chains are several records.",
        )
    if character in "-.~":
        return Remedy(
            f"Remove alignment gaps: sequence.replace({character!r}, '').",
            f"Remove the alignment gaps ({character!r}).",
        )
    if character == "*":
        return Remedy(f"An inner '*' is a stop codon: cut the sequence there, or {_AS_UNKNOWN}.")
    if character in "<>" + MASK:
        return Remedy('Of the special tokens, only "<mask>" can be written in a sequence.')
    if character.isdigit():
        return Remedy("Digits stand for no residue: remove them, or write repeats out.")
    if character == "_":
        return Remedy(
            "'_' marks a shift of the reading frame in receptors, which then make no protein, and "
            "gaps elsewhere: drop such rows, or remove it."
        )
    if not character.isprintable():
        unreadable = "\udc80" <= character <= "\udcff"
        return Remedy(
            "It is not ASCII: retype it." if unreadable else "It is invisible: remove it."
        )
    if not character.isascii():
        return Remedy("It may look like a letter that it is not: retype it.")
    if stands_for_residue(character):
        return Remedy(f"Correct it, or {_AS_UNKNOWN}.")
    return Remedy("It stands for no residue: remove it, or correct the sequence.")


def stands_for_residue(character: str) -> bool:
    """Whether a character that ESM-2 does not know can be read as an unknown residue."""
    return character in "*?" or (character.isascii() and character.isalpha())
