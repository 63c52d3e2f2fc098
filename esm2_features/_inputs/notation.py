"""How papers and databases write mutations, read as what they say of residues.

A123G            one letter, number, one letter
A123=            no change
A52aG            with the insertion code of a PDB file
A123G:D42N       several, joined by ``:``, ``,``, ``;``, ``/``, ``+``, ``&``, ``|``, ``_`` or
white space
p.Ala123Gly      HGVS, also p.(Ala123Gly), p.[Ala123Gly;Asp42Asn] and NP_000537.3:p.Arg175His
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple, TypeVar

from esm2_features._inputs.alphabet import RESIDUE_OF_CODE, RESIDUES

_Item = TypeVar("_Item", bound=Hashable)

_MUTATION = re.compile(
    r"(?:P\.)?\(?(?P<before>[A-Z]{3}|[A-Z])(?P<number>-?[0-9]{1,9})(?P<code>[A-Z]?)"
    r"(?P<after>[A-Z]{3}|[A-Z=])\)?"
)
_SEPARATORS = re.compile(r"[\s:,;/+&|_]+")
_REFERENCE = re.compile(r"([\w.]+)(?:\([\w.]+\))?:(?=p\.)", re.IGNORECASE)
_ALLELES = re.compile(r"(?:p\.)?\[(.+)\]", re.IGNORECASE | re.DOTALL)
_NO_SUBSTITUTION = re.compile(r"\*|del|ins|dup|fs|ter|ext|stop|\?|-$", re.IGNORECASE)
_CHANGE = re.compile(r"p\..*|.*[0-9](del|ins|dup|fs|ter|ext|stop).*", re.IGNORECASE)


class Site(NamedTuple):
    """A numbered position, as the table counts."""

    number: int
    code: str = ""  # insertion code


class Substitution(NamedTuple):
    """What a text says of one position."""

    before: str  # a letter, or three that are no code
    site: Site
    after: str


def split_mutations(text: str, separators: re.Pattern[str] = _SEPARATORS) -> list[str]:
    """Cut a text into its mutations; a ValueError says that it is of two proteins."""
    text = text.strip().strip("'\"")
    reference = _REFERENCE.match(text)
    if reference is not None and not (
        _CHANGE.fullmatch(reference[1]) or _MUTATION.fullmatch(reference[1].upper())
    ):
        text = text[reference.end() :]
    alleles = _ALLELES.fullmatch(text)
    if alleles is not None:
        if re.search(r"\]\s*;\s*\[", text):
            raise ValueError("is of two alleles, which are two proteins: write a row for each")
        text, separators = re.sub(r"[\[\](){}]", "", alleles[1]), _SEPARATORS
    if separators is _SEPARATORS and _NO_SUBSTITUTION.search(text):
        return [text.removeprefix("p.")]  # in a range such as K2_Q9del, _ separates no mutations
    return [part.strip() for part in separators.split(text)]


def read_mutation(part: str) -> Substitution | None:
    """Read one substitution; None if it is none."""
    found = None if _NO_SUBSTITUTION.search(part) else _MUTATION.fullmatch(part.upper())
    if found is None:
        return None
    before, after = found["before"], found["after"]
    before, after = (
        RESIDUE_OF_CODE.get(word.lower(), word)
        for word in (before, before if after == "=" else after)
    )
    return Substitution(before, Site(int(found["number"]), found["code"]), after)


def repeated(items: Sequence[_Item]) -> _Item | None:
    """Find the first item that is there twice."""
    if len(set(items)) == len(items):
        return None
    return next(item for i, item in enumerate(items) if item in items[:i])


def read_substitutions(text: str) -> list[Substitution]:
    """Read all substitutions of a text; what is wrong with it is the text of a ValueError."""
    found = []
    for part in filter(None, split_mutations(text)):
        read = read_mutation(part)
        if read is None:
            if _NO_SUBSTITUTION.search(part):
                what = "which is no substitution: write the sequence of the mutant"
                raise ValueError(f"holds {part!r}, {what}")
            raise ValueError(f"cannot be read: {part!r} is no mutation such as 'A123G'")
        odd = next((it for it in (read.before, read.after) if it not in set(RESIDUES)), None)
        if odd is not None:
            raise ValueError(f"holds {odd!r}, which is no residue")
        found.append(read)
    if not found:
        raise ValueError("holds no mutation")
    twice = repeated([each.site for each in found])
    if twice is not None:
        raise ValueError(f"mutates position {twice.number}{twice.code} twice")
    return found
