"""The errors of this library, and the one way to import what is optional.

    Esm2FeaturesError
    ├─ InputError(ValueError)             what the caller can mend
    │   ├─ InvalidSequenceError           .index .position .residue
    │   ├─ MissingSequenceError           .index
    │   ├─ SequenceTooLongError           .index .length .limit
    │   ├─ InvalidRegionError             .index .region .length
    │   ├─ InvalidVariantError            .index .variant .expected .found
    │   └─ FastaError                     .path
    ├─ CheckpointError(RuntimeError)      .path
    │   └─ DownloadError                  .path .url
    ├─ DatasetError(OSError)              .path .url
    ├─ EndpointError(OSError)             .url .status
    ├─ OutOfMemoryError(MemoryError)      .length .device
    ├─ NumericalError(ArithmeticError)
    ├─ ForkedProcessError(RuntimeError)
    ├─ CacheVersionError(RuntimeError)    .path .found .expected
    └─ MissingDependencyError(ImportError)

    CacheWarning(UserWarning)             the cache could not be used; results are right
    LeakageWarning(UserWarning)           relatives of test rows are in the training set
    TruncationWarning(UserWarning)        sequences were cut, as the caller asked

Every message says what is wrong, where, the offending value, and how to mend it.
The attributes carry the same facts for programs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from types import ModuleType

__all__ = [
    "CacheVersionError",
    "CacheWarning",
    "CheckpointError",
    "DatasetError",
    "DownloadError",
    "EndpointError",
    "Esm2FeaturesError",
    "FastaError",
    "ForkedProcessError",
    "InputError",
    "InvalidRegionError",
    "InvalidSequenceError",
    "InvalidVariantError",
    "LeakageWarning",
    "MissingDependencyError",
    "MissingSequenceError",
    "NumericalError",
    "OutOfMemoryError",
    "SequenceTooLongError",
    "TruncationWarning",
]

_MOST_SHOWN = 10
"""Problems of an input that one message shows."""


class Esm2FeaturesError(Exception):
    """Base class of every error that this library raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the attributes, which are the keyword arguments of every error here."""
        given = {name: value for name, value in vars(self).items() if not name.startswith("__")}
        return partial(type(self), **given), self.args, vars(self)


class InputError(Esm2FeaturesError, ValueError):
    """The input is wrong and the caller can mend it.

    Every error of this kind is a `ValueError` as well.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions
    >>> try:
    ...     Engine("mini", layers=7)
    ... except exceptions.InputError as error:
    ...     print(str(error).partition(",")[0])
    Got layers=7
    """


class InvalidSequenceError(InputError):
    """A sequence holds a character that ESM-2 has no residue for, or no residue at all.

    Attributes
    ----------
    index : int
        Row of the sequence in the input, from 0.
    position : int or None
        Position of the character in the sequence, from 1; None when the sequence is empty, or a
        server that computes it does not say.
    residue : str
        The offending character; empty where there is no position.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions
    >>> try:
    ...     Engine("mini", cache=None).embed(["MKTAYIAKQR", "MKTA1IAKQR"])
    ... except exceptions.InvalidSequenceError as error:
    ...     error.index, error.position, error.residue
    (1, 5, '1')
    """

    def __init__(
        self, message: str, *, index: int, position: int | None = None, residue: str = ""
    ) -> None:
        super().__init__(message)
        self.index, self.position, self.residue = index, position, residue


class MissingSequenceError(InputError):
    """A row holds a missing value (None, NaN, NA) where a sequence is needed.

    Attributes
    ----------
    index : int
        Row of the missing value in the input, from 0.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions
    >>> try:
    ...     Engine("mini", cache=None).embed(["MKTAYIAKQR", None])
    ... except exceptions.MissingSequenceError as error:
    ...     error.index
    1
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class SequenceTooLongError(InputError):
    """A sequence has more residues than ``max_residues``.

    Attributes
    ----------
    index : int
        Row of the sequence in the input, from 0.
    length, limit : int
        Its number of residues, and the number allowed.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions
    >>> try:
    ...     Engine("mini", max_residues=8, cache=None).embed(["MKTAYIAKQR"])
    ... except exceptions.SequenceTooLongError as error:
    ...     error.index, error.length, error.limit
    (0, 10, 8)
    """

    def __init__(self, message: str, *, index: int, length: int, limit: int) -> None:
        super().__init__(message)
        self.index, self.length, self.limit = index, length, limit


class InvalidVariantError(InputError):
    """A variant cannot be read, or does not fit the wild type.

    Attributes
    ----------
    index : int
        Row of the variant in the input, from 0.
    variant : str
        The variant, as it was given.
    expected, found : str
        What would be right there (a letter of the wild type, a range of positions, a length), and
        what the variant has instead.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions, score_variants
    >>> try:
    ...     score_variants(Engine("mini", cache=None), "MKTAYIAKQR", ["K2R", "A2R"])
    ... except exceptions.InvalidVariantError as error:
    ...     error.index, error.variant, error.expected, error.found
    (1, 'A2R', 'K', 'A')
    """

    def __init__(
        self, message: str, *, index: int, variant: str, expected: str, found: str
    ) -> None:
        super().__init__(message)
        self.index, self.variant, self.expected, self.found = index, variant, expected, found


class InvalidRegionError(InputError):
    """A region is not a part of its sequence, or cannot be read.

    Attributes
    ----------
    index : int
        Row of the region in the input, from 0.
    region : object
        The region as it was given.
    length : int
        Number of residues of the sequence that it should be a part of.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions
    >>> try:
    ...     Engine("mini", cache=None, region=(8, 12)).embed(["MKTAYIAKQR"])
    ... except exceptions.InvalidRegionError as error:
    ...     error.index, error.region, error.length
    (0, (8, 12), 10)
    """

    def __init__(self, message: str, *, index: int, region: object, length: int) -> None:
        super().__init__(message)
        self.index, self.region, self.length = index, region, length


class FastaError(InputError):
    """A FASTA file cannot be used as it is: malformed, empty, or with repeated identifiers.

    Attributes
    ----------
    path : str
        The file, or ``"-"`` for standard input.

    Examples
    --------
    >>> from esm2_features import exceptions, read_fasta
    >>> try:
    ...     read_fasta("no-such-file.fasta")
    ... except exceptions.FastaError as error:
    ...     error.path
    'no-such-file.fasta'
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class CheckpointError(Esm2FeaturesError, RuntimeError):
    """A checkpoint is absent, damaged, unsafe, or not an ESM-2 checkpoint.

    Attributes
    ----------
    path : str
        The checkpoint's file or folder, or the model's name where there is no file.

    Examples
    --------
    >>> from esm2_features import Engine, exceptions
    >>> try:
    ...     Engine("esm2_t6_8M")
    ... except exceptions.CheckpointError as error:
    ...     error.path
    'esm2_t6_8M'
    """

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


class DownloadError(CheckpointError):
    """A checkpoint could not be downloaded, or what came was not what was promised.

    Attributes
    ----------
    path, url : str
        Where the file would have been written, and where it would have come from.
    """

    def __init__(self, message: str, *, path: str, url: str) -> None:
        super().__init__(message, path=path)
        self.url = url


class DatasetError(Esm2FeaturesError, OSError):
    """A data set is not there and could not be fetched, or its file is not the published one.

    Attributes
    ----------
    path, url : str
        Where the file is, or would be, and where it comes from (of several files, the first).

    Examples
    --------
    >>> from esm2_features import datasets, exceptions
    >>> try:
    ...     datasets.fetch_toxicity_peptides(data_home="nowhere", download_if_missing=False)
    ... except exceptions.DatasetError as error:
    ...     error.path.endswith("toxicity_peptides.csv.gz")
    True
    """

    def __init__(self, message: str, *, path: str, url: str) -> None:
        super().__init__(message)
        self.path, self.url = path, url


class EndpointError(Esm2FeaturesError, OSError):
    """A server that should compute vectors cannot be reached, refuses, or answers something else.

    Attributes
    ----------
    url : str
        The server's address, as it was given.
    status : int or None
        The last HTTP status, if there was an answer.
    """

    def __init__(self, message: str, *, url: str, status: int | None = None) -> None:
        super().__init__(message)
        self.url, self.status = url, status


class OutOfMemoryError(Esm2FeaturesError, MemoryError):
    """One single sequence, or the weights, do not fit into the memory of the device.

    Attributes
    ----------
    length : int
        Its number of residues; 0 if it is the weights that do not fit.
    device : str
        The device that ran out of memory.
    """

    def __init__(self, message: str, *, length: int, device: str) -> None:
        super().__init__(message)
        self.length, self.device = length, device


class NumericalError(Esm2FeaturesError, ArithmeticError):
    """The network gave infinities or NaN; they are neither returned nor cached."""


class ForkedProcessError(Esm2FeaturesError, RuntimeError):
    """A forked child would use a model that its parent has already used, and would hang."""


class CacheVersionError(Esm2FeaturesError, RuntimeError):
    """A cache was written by a newer version of this library; it is left as it is.

    Attributes
    ----------
    path : str
        The cache file.
    found, expected : int
        The format of the file, and the one that this version reads.
    """

    def __init__(self, message: str, *, path: str, found: int, expected: int) -> None:
        super().__init__(message)
        self.path, self.found, self.expected = path, found, expected


class MissingDependencyError(Esm2FeaturesError, ImportError):
    """An optional package is needed and not installed."""


class CacheWarning(UserWarning):
    """The cache could not be used, or held a damaged value; the results are right all the same."""


class LeakageWarning(UserWarning):
    """Relatives of test sequences are in the training set, so that scores are too good."""


class TruncationWarning(UserWarning):
    """Sequences were cut to ``max_residues``, because ``too_long="truncate"`` asked for it.

    Examples
    --------
    >>> import warnings
    >>> from esm2_features import Engine, exceptions
    >>> engine = Engine("mini", max_residues=8, too_long="truncate", cache=None)
    >>> with warnings.catch_warnings(action="error", category=exceptions.TruncationWarning):
    ...     try:
    ...         engine.embed(["MKTAYIAKQR"])
    ...     except exceptions.TruncationWarning as warning:
    ...         print(str(warning).partition(" residues")[0])
    1 of 1 sequences were cut to their first 8
    """


def import_optional(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra of this library brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is installed, and broken for want of something else
        raise MissingDependencyError(
            f"{purpose} needs the package {package}, which is not installed. "
            f'Install it with: pip install "esm2-features[{extra}]"'
        ) from error


def shorten(text: str, most: int = 40) -> str:
    """Shorten a text for a message, to at most so many characters, dots included."""
    return text if len(text) <= most else text[: most - 3] + "..."


def printable(text: str) -> str:
    """Escape control characters, and others that change how the text around them is shown."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def list_problems(problems: Sequence[str], total: int, what: str) -> str:
    """Say how many of all rows have a problem, and show the first ten."""
    shown = "".join(f"\n  {problem}" for problem in problems[:_MOST_SHOWN])
    more = len(problems) - _MOST_SHOWN
    rest = f"\n  ... and {more} more" if more > 0 else ""
    return f"{len(problems)} of {total} {what} cannot be used:{shown}{rest}"
