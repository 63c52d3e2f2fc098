"""FASTA files: one record after the other, or an error that names the record.

    >P01308 insulin, human        header: the id goes to the first white space
    MALWMRLLPLLALLALWGPDPAAAFVNQ  one or more lines of residues, joined
    HLCGSHLVEALYLVCGERGFFYTPKT

Plain or compressed (gzip, bzip2, xz, zstandard), from a file or from standard input.
The reader is strict about the file, because a row lost here is a row lost in the
results: nothing is skipped but blank lines. It leaves the residues as they are.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from esm2_features.exceptions import FastaError, shorten

FastaSource: TypeAlias = "str | os.PathLike[str] | BinaryIO"

_STDIN = "-"
_WHITE_SPACE = " \t\n\r\v\f"
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """One record of a FASTA file.

    A list of records can be given to the transformer as it is.

    Attributes
    ----------
    id : str
        The header up to the first white space.
    description : str
        The whole header, id included, without the ``>``.
    seq : str
        The residues as they are in the file, the lines joined.
    """

    id: str
    description: str
    seq: str


def read_fasta(path: FastaSource) -> list[FastaRecord]:
    r"""Read all records of a FASTA file.

    Parameters
    ----------
    path : str, os.PathLike or binary file object
        The file, plain or compressed; ``"-"`` is standard input.

    Returns
    -------
    records : list of FastaRecord
        In the order of the file; at least one.

    Raises
    ------
    FastaError
        If there is no such file, it cannot be read to its end, it holds no records, or it
        is not FASTA: text before the first header, a record without id or without residues,
        an id that occurs twice, a header that is not ASCII.
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
    return list(iter_fasta(path))


def iter_fasta(path: FastaSource) -> Iterator[FastaRecord]:
    """Read a FASTA file record by record, for files larger than memory.

    Only the ids are kept, to tell which of them occur twice. The file is opened when the
    first record is asked for, and errors come up when their record is reached.
    """
    name = _name(path)
    numbers: dict[str, int] = {}  # id -> number of its record
    for number, (header, residues) in enumerate(iter_pairs(path), start=1):
        record = checked_record(header, residues, number, name)
        first = numbers.setdefault(record.id, number)
        if first != number:
            raise _error(
                name,
                f"records {first} and {number} have the same id, {_shown(record.id)}. "
                "Give every record an id of its own; results are labelled by it.",
            )
        yield record
    if not numbers:
        raise _error(name, "holds no records. A record is a '>' line and lines of residues.")


def iter_pairs(path: FastaSource) -> Iterator[tuple[str, str]]:
    """Read headers and residues as they stand, without a check.

    Nothing is kept, so ids may repeat, and the file may be of any size.
    """
    name = _name(path)
    with _opened(path, name) as text:
        yield from _split(_lines(text, name), name)


def checked_record(header: str, residues: str, number: int, name: str) -> FastaRecord:
    """Check one record, from its header to the next one."""
    if not header:
        raise _error(name, f"record {number} has no id after its '>'. Give it one.")
    if not header.isascii() or not header.replace("\t", " ").isprintable():
        raise _error(
            name,
            f"the header of record {number} ({_shown(header)}) is not plain ASCII text. "
            "Replace its special characters: other programs would read them differently.",
        )
    identifier = header.split(maxsplit=1)[0]
    if not residues:
        raise _error(
            name,
            f"record {number} ({_shown(identifier)}) has no residues. "
            "Remove its header, or add its sequence.",
        )
    return FastaRecord(identifier, header, residues)


def _split(lines: Iterator[str], name: str) -> Iterator[tuple[str, str]]:
    """Cut lines into pairs of header and residues."""
    header: str | None = None
    residues: list[str] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.strip(_WHITE_SPACE)
        if line.startswith(">"):
            if header is not None:
                yield header, "".join(residues)
            header = line[1:].strip(_WHITE_SPACE)
            residues = []
        elif header is not None:
            residues.append(line)
        elif line.startswith("@"):
            what = "is a FASTQ file (its first line starts with '@'). Convert it to protein FASTA."
            raise _error(name, what)
        elif line:
            what = f"line {number}, {_shown(line)}, stands before the first header."
            raise _error(name, f"{what} A FASTA file starts with '>'.")
    if header is not None:
        yield header, "".join(residues)


@contextmanager
def _opened(path: FastaSource, name: str) -> Iterator[io.TextIOWrapper]:
    """Open a source as text whose undecodable bytes survive as surrogates.

    Only what was opened here is closed here.
    """
    from xopen import xopen  # imported here because only files need it

    # FASTA is ASCII; decoding it so, whatever the locale says, lets the checks above name the
    # record (and `normalise` the residue) that is not. The "-sig" drops a byte order mark.
    source = sys.stdin.buffer if path == _STDIN else path
    try:
        binary = xopen(source, "rb", threads=0)  # 0: no helper process, errors come in place
    except FileNotFoundError as error:
        raise _error(
            name, f"there is no such file (relative names start at {Path.cwd()})."
        ) from error
    except IsADirectoryError as error:
        raise _error(name, "is a folder. Give one of the files in it.") from error
    except OSError as error:
        raise _error(name, f"cannot be opened: {error.strerror or error}.") from error
    except EOFError as error:  # a compressed stream that ends within its first bytes
        raise _error(name, _unreadable(error)) from error
    text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape")
    try:
        yield text
    finally:
        text.detach()
        if binary is not source:
            binary.close()


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    """Read the lines; raise FastaError if they cannot be decompressed."""
    try:
        # Not `yield from`: it would close the caller's file together with this generator.
        for line in text:  # noqa: UP028
            yield line
    except Exception as error:  # every decompressor has an error class of its own
        raise _error(name, _unreadable(error)) from error


def _unreadable(error: Exception) -> str:
    return (
        f"cannot be read to its end ({error}). "
        "It is damaged or was cut short: copy or download it again."
    )


def _name(path: FastaSource) -> str:
    """Name a source, for messages and for `FastaError.path`."""
    if isinstance(path, str | os.PathLike):
        return os.fsdecode(path)
    if isinstance(path, io.TextIOBase) or not hasattr(path, "read"):
        raise TypeError(
            f"read_fasta needs a path or a file opened in binary mode, got "
            f"{type(path).__name__}. Open files with open(path, 'rb')."
        )
    return str(getattr(path, "name", f"<{type(path).__name__}>"))


def _error(name: str, what: str) -> FastaError:
    shown = "standard input" if name == _STDIN else name
    return FastaError(f"{shown}: {what}", path=name)


def _shown(text: str) -> str:
    """Quote, shorten and escape what came out of a file."""
    # Surrogates stand for undecodable bytes.
    return ascii(shorten(text, _LONGEST_SHOWN)).replace(r"\udc", r"\x")
