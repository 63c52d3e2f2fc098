"""Files as bytes or text, decompressed and decoded by what they hold, whatever they are called.

Compression is gzip, bzip2, xz, zstandard or zip, also one in another. Text is UTF-8 or UTF-16; a
byte that is no UTF-8 is read as Windows does in western Europe (cp1252). What is no text at all is
named in the error, such as a web page that was downloaded in the place of the file. A small file
may hold gigabytes: lines have a longest length, and `MOST_BYTES` limits what is read at all.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from esm2_features._files import expanded
from esm2_features.exceptions import InputError

Source: TypeAlias = "str | os.PathLike[str] | BinaryIO"

STDIN = "-"
_HEAD = 4096  # bytes that tell what a file is
_MOST_LAYERS = 4  # of compression

LONGEST_LINE = 100_000_000
"""Characters of a line, and residues of a record. The longest protein known has 45,000."""

MOST_BYTES: ContextVar[int | None] = ContextVar("most_bytes", default=None)
"""Bytes that are read of a source, after decompression."""

_COMPRESSED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_ZIP = b"PK\x03\x04"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_UNWANTED = {
    b"version https://git-lfs": (
        "is the pointer of a file that Git LFS keeps elsewhere",
        "Fetch the file itself: git lfs pull.",
    ),
    **dict.fromkeys(
        (b"<!doctype html", b"<html"),
        ("is a web page, such as one for an error or a login", "Download the file itself."),
    ),
    b"%pdf": ("is a PDF document", "Save its sequences as text."),
    b"{\\rtf": ("is a document in rich text format", "Save it as plain text."),
    b"sqlite format 3": ("is an SQLite database", "Export its sequences as a table or FASTA."),
    b"\x89hdf": ("is an HDF5 file, of arrays", "Give the file of the sequences."),
    b"\x93numpy": ("is a NumPy array", "Give the file of the sequences."),
    b"\xd0\xcf\x11\xe0": (
        "is a document of an old Office program (.xls or .doc)",
        "Save it as .xlsx, .csv or plain text.",
    ),
    b"arrow1": ("is an Arrow (Feather) file", "Write it as Parquet."),
}
"""Beginnings, in lower case, of files that people give by mistake: what they are, and a remedy."""


def _read_as_cp1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    wrong = error.object[error.start : error.end]
    # Five bytes have no meaning in cp1252; they stay control characters.
    return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in wrong), error.end


codecs.register_error("esm2_features.cp1252", _read_as_cp1252)


def name_of(source: Source) -> str:
    """Name a source, for messages and for `FastaError.path`."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, io.TextIOBase) or not hasattr(source, "read"):
        raise TypeError(
            f"read_fasta needs a path or a file opened in binary mode, got "
            f"{type(source).__name__}. Open files with open(path, 'rb')."
        )
    return str(getattr(source, "name", f"<{type(source).__name__}>"))


def shown_name(name: str) -> str:
    return "standard input" if name == STDIN else name


def input_error(name: str, what: str) -> InputError:
    return InputError(f"{shown_name(name)}: {what}")


Fail: TypeAlias = Callable[[str, str], InputError]
"""Makes the error of a source, of its name and of what is wrong."""


@contextmanager
def open_bytes(
    source: Source, fail: Fail = input_error, *, name: str | None = None
) -> Iterator[io.BufferedReader]:
    """Open a source, decompressed; only what was opened here is closed here."""
    name = name_of(source) if name is None else name
    with ExitStack() as stack:
        stream = _opened(source, name, fail, stack)
        if isinstance(source, str | os.PathLike) and source != STDIN:
            check_size(os.fstat(stream.fileno()).st_size, name, fail)
        for _ in range(_MOST_LAYERS):
            inner = _decompressed(stream, name, fail, stack)
            if inner is None:
                break
            stream = inner
        yield stream if MOST_BYTES.get() is None else _buffered(_Counted(stream, name, fail))


@contextmanager
def open_text(
    source: Source, fail: Fail = input_error, *, newline: str | None = None
) -> Iterator[io.TextIOWrapper]:
    """Open a source as text; raise an error for what is no text."""
    with open_bytes(source, fail) as stream:
        text = as_text(stream, name_of(source), fail, newline=newline)
        try:
            yield text
        finally:
            text.detach()


def as_text(
    stream: io.BufferedReader, name: str, fail: Fail = input_error, *, newline: str | None = None
) -> io.TextIOWrapper:
    """Decode a stream; whoever calls it detaches the text."""
    head = peek(stream, name, fail)
    lined = _buffered(_Lined(stream, name, fail))
    what = head.lstrip().lower()
    if head[257:262] == b"ustar":
        raise fail(name, "is a tar archive. Unpack it, and give one of the files in it.")
    for beginning, (kind, remedy) in _UNWANTED.items():
        if what.startswith(beginning):
            raise fail(name, f"{kind}. {remedy}")
    errors = "esm2_features.cp1252"
    encoding = next((word for mark, word in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if encoding is None:
        encoding, some = "utf-8", head[:64]
        # Every other byte of Latin letters is 0 in UTF-16.
        if len(some) > 3 and not any(some[1::2]) and all(some[0::2]):
            encoding = "utf-16-le"
        elif len(some) > 3 and not any(some[0::2]) and all(some[1::2]):
            encoding = "utf-16-be"
    return io.TextIOWrapper(
        lined,
        encoding=encoding,
        errors=errors if encoding.startswith("utf-8") else "replace",
        newline=newline,
    )


def peek(stream: io.BufferedReader, name: str, fail: Fail = input_error) -> bytes:
    """Look at the first bytes of a stream."""
    try:
        return stream.peek(_HEAD)[:_HEAD]
    except Exception as error:  # every decompressor has an error class of its own
        raise fail(name, unreadable(error)) from error


def lines(text: io.TextIOWrapper, name: str, fail: Fail = input_error) -> Iterator[str]:
    """Read lines; raise an error if they cannot be decompressed."""
    try:
        # Not `yield from`: it would close the caller's file together with this generator.
        for line in text:  # noqa: UP028
            yield line
    except InputError:
        raise
    except Exception as error:  # every decompressor has an error class of its own
        raise fail(name, unreadable(error)) from error


def unreadable(error: Exception) -> str:
    return (
        f"cannot be read to its end ({error}). "
        "It is damaged or was cut short: copy or download it again."
    )


class _Lined(io.RawIOBase):
    """A stream that ends in an error in a line that is too long, whoever reads it."""

    def __init__(self, stream: io.BufferedReader, name: str, fail: Fail) -> None:
        self._stream, self._name, self._fail = stream, name, fail
        self._length = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._stream.readinto1(buffer)
        some = bytes(memoryview(buffer)[:count])
        end = max(some.rfind(b"\n"), some.rfind(b"\r"))
        self._length = count - 1 - end if end >= 0 else self._length + count
        if self._length >= LONGEST_LINE:
            raise self._fail(
                self._name,
                f"has a line of {LONGEST_LINE:,} characters or more, which no sequence has. Check "
                "that it is the file that you mean.",
            )
        return count


class _Counted(io.RawIOBase):
    """A stream that ends in an error after so many bytes."""

    def __init__(self, stream: io.BufferedReader, name: str, fail: Fail) -> None:
        self._stream, self._name, self._fail = stream, name, fail
        self._read = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, place: int, whence: int = 0, /) -> int:
        self._read = self._stream.seek(place, whence)
        check_size(self._read, self._name, self._fail)
        return self._read

    def tell(self) -> int:
        return self._read

    def readinto(self, buffer: Any, /) -> int:
        count = self._stream.readinto(buffer)
        self._read += count
        check_size(self._read, self._name, self._fail)
        return count


def _opened(source: Source, name: str, fail: Fail, stack: ExitStack) -> io.BufferedReader:
    if not isinstance(source, str | os.PathLike) or source == STDIN:
        binary = sys.stdin.buffer if isinstance(source, str | os.PathLike) else source
        if isinstance(binary, io.BufferedReader):  # which can be looked into without waiting
            return binary
        stream = _buffered(binary)
        stack.callback(stream.detach)
        return stream
    try:
        return stack.enter_context(Path(expanded(source)).open("rb"))
    except FileNotFoundError as error:
        raise fail(
            name, f"there is no such file (relative names start at {Path.cwd()})."
        ) from error
    except IsADirectoryError as error:
        raise fail(name, "is a folder. Give one of the files in it.") from error
    except OSError as error:
        raise fail(name, f"cannot be opened: {error.strerror or error}.") from error


def check_size(size: int, name: str, fail: Fail = input_error) -> None:
    """Raise an error if a source has more bytes than `MOST_BYTES`."""
    most = MOST_BYTES.get()
    if most is not None and size > most:
        raise fail(
            name,
            f"holds more than {most:,} bytes after decompression. If that is right, pass a larger "
            "--max-input.",
        )


def _decompressed(
    stream: io.BufferedReader, name: str, fail: Fail, stack: ExitStack
) -> io.BufferedReader | None:
    """Open what a stream holds in compressed form, or return None."""
    head = peek(stream, name, fail)
    if head.startswith(_ZIP):
        return _member(stream, name, fail, stack)
    kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
    if kind is None:
        return None
    from xopen import xopen  # imported here because only compressed files need it

    try:
        inner = xopen(stream, "rb", threads=0, format=kind)  # 0: errors come in place
    except Exception as error:  # a compressed stream that ends within its first bytes
        raise fail(name, unreadable(error)) from error
    # Closing the inner stream leaves the outer one open.
    return stack.enter_context(_buffered(inner))


def _member(
    stream: io.BufferedReader, name: str, fail: Fail, stack: ExitStack
) -> io.BufferedReader | None:
    """Open the one file in a zip archive; None if it is a workbook, which is an archive, too."""
    try:
        seekable = stream if stream.seekable() else io.BytesIO(stream.read())
        archive = zipfile.ZipFile(seekable)
    except Exception as error:
        raise fail(name, unreadable(error)) from error
    files = [
        item.filename
        for item in archive.infolist()
        if not item.is_dir() and not item.filename.startswith("__MACOSX/")
    ]
    if "[Content_Types].xml" in files:
        seekable.seek(0)
        return None if seekable is stream else _buffered(seekable)
    if len(files) != 1:
        some = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        raise fail(
            name,
            f"is a zip archive of {len(files)} files ({some}). Unpack it, and give one of them.",
        )
    try:
        inner = stack.enter_context(stack.enter_context(archive).open(files[0]))
    except Exception as error:  # such as a password that is needed
        raise fail(name, unreadable(error)) from error
    return stack.enter_context(_buffered(inner))


def _buffered(stream: Any) -> io.BufferedReader:
    return io.BufferedReader(stream, 1 << 16)
