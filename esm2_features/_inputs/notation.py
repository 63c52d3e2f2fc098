"""How papers and databases write mutations, read as what they say of residues.

A123G            one letter, number, one letter
A52aG            with the insertion code of a PDB file
A123G:D42N       several, joined by ``:``, ``,``, ``;``, ``/``, ``+``, ``&``, ``|``, ``_`` or
white space
p.Ala123Gly      HGVS, also p.(Ala123Gly), p.[Ala123Gly;Asp42Asn] and NP_000537.3:p.Arg175His
WT, _wt, p.=     the wild type
"""

from __future__ import annotations

import re
from typing import NamedTuple

from esm2_features._inputs.alphabet import RESIDUES

_CODES = (
    "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR "
    "XAA ASX SEC GLX PYL"
)
_LETTER_OF = dict(zip(_CODES.split(), "ACDEFGHIKLMNPQRSTVWYXBUZO", strict=True))
_PART = re.compile(
    r"(?P<before>[A-Z]{3}|[A-Z])(?P<number>-?[0-9]{1,9})(?P<code>[A-Z]?)(?P<after>[A-Z]{3}|[A-Z=])"
)
_SEPARATORS = re.compile(r"[\s:,;/+&|_]+")
_HGVS = re.compile(r"(?:[\w.]+(?:\([\w.]+\))?:)?p\.(?P<what>.+)", re.IGNORECASE | re.DOTALL)
_NO_SUBSTITUTION = re.compile(r"\*|del|ins|dup|fs|ter|ext|stop|\?|-$", re.IGNORECASE)


class Site(NamedTuple):
    """A numbered position, as the table counts."""

    number: int
    code: str = ""  # insertion code


class Substitution(NamedTuple):
    """What a text says of one position."""

    before: str
    site: Site
    after: str


def read_substitutions(text: str) -> list[Substitution]:
    """Read all substitutions of a text; what is wrong with it is the text of a ValueError."""
    text = text.strip().strip("'\"")
    hgvs = _HGVS.fullmatch(text)
    if hgvs is not None:
        text = hgvs["what"]
        if re.search(r"\]\s*;\s*\[", text):
            raise ValueError("is of two alleles, which are two proteins: write a row for each")
        text = re.sub(r"[\[\](){}]", "", text)
    parts = [text] if _NO_SUBSTITUTION.search(text) else _SEPARATORS.split(text)
    found = [_read_part(part) for part in parts if part]
    if not found:
        raise ValueError("holds no mutation")
    sites = [each.site for each in found]
    twice = next((site for i, site in enumerate(sites) if site in sites[:i]), None)
    if twice is not None:
        raise ValueError(f"mutates position {twice.number}{twice.code} twice")
    return found


def _read_part(part: str) -> Substitution:
    if _NO_SUBSTITUTION.search(part):
        raise ValueError(
            f"holds {part!r}, which is no substitution: write the sequence of the mutant"
        )
    match = _PART.fullmatch(part.upper())
    if match is None:
        raise ValueError(f"cannot be read: {part!r} is no mutation such as 'A123G'")
    before, after = match["before"], match["after"]
    letters = [_LETTER_OF.get(word, word) for word in (before, before if after == "=" else after)]
    odd = next((letter for letter in letters if letter not in set(RESIDUES)), None)
    if odd is not None:
        raise ValueError(f"holds {odd!r}, which is no residue")
    return Substitution(letters[0], Site(int(match["number"]), match["code"]), letters[1])
