"""FASTA files: one record after the other, or an error that names the records.

    >P01308 insulin, human        header: the id goes to the first white space, or ^A
    MALWMRLLPLLALLALWGPDPAAAFVNQ  one or more lines of residues, joined
    HLCGSHLVEALYLVCGERGFFYTPKT

Plain or compressed, from a file or from standard input; see `streams`. The reader is strict about
the file, because a row lost here is a row lost in the results: nothing is skipped but blank lines.
It leaves the residues as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from esm2_features._inputs.streams import (
    LONGEST_LINE,
    Source,
    lines,
    name_of,
    open_text,
    shown_name,
)
from esm2_features.exceptions import FastaError, list_problems, shorten

_WHITE_SPACE = " \t\n\r\v\f"
_ID = re.compile(r"[^\s\x01]+")
"""To the first white space, or to the ^A by which NCBI joins the headers of equal sequences."""
_LONGEST_SHOWN = 60

_BIOPYTHON = (
    "Read it with Biopython, whose records are taken as they are: "
    "list(Bio.SeqIO.parse(path, {!r})). On the command line, give it as it is."
)
_OTHER_FORMATS = {
    "@": "is a FASTQ file (its first line starts with '@'). Convert it to protein FASTA.",
    "LOCUS ": "is a GenBank file. " + _BIOPYTHON.format("genbank"),
    "ID   ": "is a UniProt or EMBL file. " + _BIOPYTHON.format("swiss"),
    "data_": "is an mmCIF file. " + _BIOPYTHON.format("cif-seqres"),
    "HEADER ": "is a PDB file. " + _BIOPYTHON.format("pdb-seqres"),
    "CLUSTAL": "is an alignment in Clustal format. Save it as FASTA without gaps.",
    "# STOCKHOLM": "is an alignment in Stockholm format. Save it as FASTA without gaps.",
    "PAR1": "is a Parquet file. Read it with pandas.read_parquet, and pass its column.",
}
"""What else a file may be, by the beginning of its first line."""


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """One record of a FASTA file.

    A list of records can be given to the transformer as it is.

    Attributes
    ----------
    id : str
        The header up to the first white space, or the first ^A.
    description : str
        The whole header, id included, without the ``>``.
    seq : str
        The residues as they are in the file, the lines joined.
    """

    id: str
    description: str
    seq: str


def read_fasta(path: Source) -> list[FastaRecord]:
    r"""Read all records of a FASTA file.

    Parameters
    ----------
    path : str, os.PathLike or binary file object
        The file, plain or compressed (gzip, bzip2, xz, zstandard, zip), in UTF-8 or UTF-16;
        ``"-"`` is standard input.

    Returns
    -------
    records : list of FastaRecord
        In the order of the file; at least one.

    Raises
    ------
    FastaError
        If there is no such file, it cannot be read to its end, it holds no records, or it
        is not FASTA: text before the first header, a record without id or without residues,
        an id that occurs twice or holds characters that cannot be printed. All such records are
        counted, and the first ten are named.
    TypeError
        If ``path`` is neither a path nor a binary file object.

    Examples
    --------
    >>> import io
    >>> from esm2_features import read_fasta
    >>> records = read_fasta(io.BytesIO(b">oxt oxytocin\nCYIQNCPLG\n>avp\nCYFQNCPRG\n"))
    >>> records[0]
    FastaRecord(id='oxt', description='oxt oxytocin', seq='CYIQNCPLG')

    They are sequences to the transformer as they are:

    >>> from esm2_features import ESM2Transformer
    >>> ESM2Transformer("mini", cache=None).transform(records).shape
    (2, 192)
    """
    name = name_of(path)
    checks = list(_checked(path, name))
    problems = [str(check) for check in checks if isinstance(check, FastaError)]
    if len(problems) > 1:
        raise FastaError(list_problems(problems, len(checks), "records"), path=name)
    if problems:
        raise FastaError(problems[0], path=name)
    return [check for check in checks if isinstance(check, FastaRecord)]


def iter_fasta(path: Source) -> Iterator[FastaRecord]:
    """Read a FASTA file record by record, for files larger than memory.

    Only the ids are kept, to tell which of them occur twice. The file is opened when the
    first record is asked for, and errors come up when their record is reached.
    """
    for check in _checked(path, name_of(path)):
        if isinstance(check, FastaError):
            raise check
        yield check


def iter_pairs(path: Source, name: str | None = None) -> Iterator[tuple[str, str]]:
    """Read headers and residues as they stand, without a check.

    Nothing is kept, so ids may repeat, and the file may be of any size.
    """
    name = name_of(path) if name is None else name
    with open_text(path, _error) as text:
        yield from _split(lines(text, name, _error), name)


def checked_record(header: str, residues: str, number: int, name: str) -> FastaRecord:
    """Check one record, from its header to the next one."""
    found = _ID.match(header)
    if found is None:
        raise _error(name, f"record {number} has no id after its '>'. Give it one.")
    identifier = found.group()
    if not identifier.isprintable():
        odd = next(character for character in identifier if not character.isprintable())
        raise _error(
            name,
            f"the id of record {number} ({_shown(identifier)}) holds {odd!a}, which cannot be "
            "printed. Remove it: nobody could write the id again.",
        )
    if not residues:
        raise _error(
            name,
            f"record {number} ({_shown(identifier)}) has no residues. "
            "Remove its header, or add its sequence.",
        )
    return FastaRecord(identifier, header, residues)


def _checked(path: Source, name: str) -> Iterator[FastaRecord | FastaError]:
    """Read records, with an error in the place of each that is wrong."""
    numbers: dict[str, int] = {}  # id -> number of its record
    number = 0
    for number, (header, residues) in enumerate(iter_pairs(path, name), start=1):
        try:
            record = checked_record(header, residues, number, name)
        except FastaError as error:
            yield error
            continue
        first = numbers.setdefault(record.id, number)
        if first == number:
            yield record
        else:
            yield _error(
                name,
                f"records {first} and {number} have the same id, {_shown(record.id)}. "
                "Give every record an id of its own; results are labelled by it.",
            )
    if not number:
        raise _error(name, "holds no records. A record is a '>' line and lines of residues.")


def _split(rows: Iterator[str], name: str) -> Iterator[tuple[str, str]]:
    """Cut lines into pairs of header and residues."""
    header: str | None = None
    residues: list[str] = []
    length = 0
    for number, raw in enumerate(rows, start=1):
        line = raw.strip(_WHITE_SPACE)
        if line.startswith(">"):
            if header is not None:
                yield header, "".join(residues)
            header = line[1:].strip(_WHITE_SPACE)
            residues, length = [], 0
        elif header is not None and line:
            residues.append(line)
            length += len(line)
            if length > LONGEST_LINE:
                shown = f"the record that ends in line {number} ({_shown(header)})"
                raise _error(name, f"{shown} has more than {LONGEST_LINE:,} residues.")
        elif line:
            for beginning, other in _OTHER_FORMATS.items():
                if line.startswith(beginning):
                    raise _error(name, other)
            what = f"line {number}, {_shown(line)}, stands before the first header."
            raise _error(name, f"{what} A FASTA file starts with '>'.")
    if header is not None:
        yield header, "".join(residues)


def _error(name: str, what: str) -> FastaError:
    return FastaError(f"{shown_name(name)}: {what}", path=name)


def _shown(text: str) -> str:
    """Quote and shorten what came out of a file, and escape what is not printable."""
    return ascii(shorten(text, _LONGEST_SHOWN))  # standard error may be of any encoding
