"""What an input holds, counted in one reading, with 16 bytes of memory for each sequence and id.

Among a billion sequences, two different ones have the same digest with a probability of 1e-11.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm2_features._engine import Engine
from esm2_features._inputs.messages import in_shell
from esm2_features._inputs.residues import are_normal, missing_error, normalise, warn_of_nucleotides
from esm2_features._inputs.views import piece_tokens
from esm2_features._inputs.words import missing_words
from esm2_features.distributed.sources import InputFile, InputRange, Reading, find_sources
from esm2_features.exceptions import InputError

_BATCH = 4096  # records that are read and checked together


class DistinctTexts:
    """The different texts of an input: of each a digest, and a number that goes with it."""

    def __init__(self) -> None:
        self._records = bytearray()

    def add(self, text: str, number: int = 0) -> None:
        """Add a text and its number."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12)
        self._records += digest.digest() + number.to_bytes(4, "little")

    def numbers(self) -> NDArray[np.uint32]:
        """Give the number of each different text."""
        # NumPy hides zeros at the end of such strings, but sorts and compares them all the same.
        records = np.frombuffer(self._records, "S16")
        records.sort()
        first = np.append(0, np.flatnonzero(records[1:] != records[:-1]) + 1)[: len(records)]
        return np.asarray(np.frombuffer(self._records, np.uint32)[4 * first + 3], np.uint32)


@dataclass
class InputSummary:
    """What an input holds."""

    sequences: int = 0  # all records
    unique: int = 0  # different sequences among those that can be embedded
    residues: int = 0  # of all that can be embedded, after truncation
    tokens: int = 0  # of the same; the overlaps of windows count twice
    longest: int = 0  # residues of the longest record, before truncation
    too_long: int = 0  # records of more than ``max_residues``
    left_out: int = 0  # records that `embed` refuses: too long, or not only residues
    repeated_ids: int = 0  # records whose id has occurred before
    tokens_to_compute: int = 0  # of the different sequences
    text_bytes: int = 0  # of residues and ids
    first_error: str | None = None  # of the first record that holds something else than residues
    window: int = 0  # residues of a window; 0 if long sequences are not divided
    # residues -> number of different sequences, the shortest first
    lengths: dict[int, int] = field(default_factory=dict)

    @property
    def passes(self) -> Counter[int]:
        """Tokens -> number of different sequences, or of their windows, to be computed."""
        return passes_of(self.lengths, self.window)


def passes_of(lengths: Mapping[int, int], window: int) -> Counter[int]:
    """Turn lengths into what goes through the network: tokens -> number of sequences or windows."""
    passes: Counter[int] = Counter()
    for residues, number in lengths.items():
        for tokens in piece_tokens(residues, window if residues > window else 0):
            passes[tokens] += number
    return passes


def _total(counts: Mapping[int, int]) -> int:
    return sum(length * number for length, number in counts.items())


def lengths_at(lengths: Mapping[int, int], quantiles: Iterable[float]) -> list[int]:
    """Give the lengths at quantiles of a distribution: residues -> number of sequences."""
    ends = np.cumsum(list(lengths.values()))
    at = np.searchsorted(ends, np.array(list(quantiles)) * ends[-1], side="right")
    return [int(length) for length in np.array(list(lengths))[at]]


def summarise(inputs: Sequence[str], engine: Engine, **columns: str | None) -> InputSummary:
    """Read all that `embed` takes as inputs once; ``columns`` are those of `find_sources`."""
    limit, too_long = engine.max_residues or sys.maxsize, engine.too_long
    summary = InputSummary(window=engine.max_residues or 0 if too_long == "window" else 0)
    ids, distinct, kept_lengths = DistinctTexts(), DistinctTexts(), Counter[int]()
    for path, records in _read(inputs, columns):
        sequences = list(_normalised(path, records, engine.unknown, summary))
        if not summary.sequences:  # warn once: a file of genes holds genes from its beginning
            warn_of_nucleotides(sequences, rows=range(len(sequences)))
        summary.sequences += len(records.ids)
        summary.text_bytes += sum(map(len, (*records.ids, *sequences)))
        summary.longest = max(summary.longest, *map(len, sequences), 0)
        summary.too_long += sum(len(sequence) > limit for sequence in sequences)
        for identifier in records.ids:
            ids.add(identifier)
        for sequence in sequences:
            if len(sequence) <= limit or too_long != "raise":
                kept = sequence[:limit] if too_long == "truncate" else sequence
                kept_lengths[len(kept)] += 1
                distinct.add(kept, len(kept))
    lengths, counts = np.unique(distinct.numbers(), return_counts=True)
    summary.lengths = dict(zip(lengths.tolist(), counts.tolist(), strict=True))
    summary.unique = int(counts.sum())
    summary.residues = _total(kept_lengths)
    summary.tokens = _total(passes_of(kept_lengths, summary.window))
    summary.tokens_to_compute = _total(summary.passes)
    summary.left_out += summary.too_long if too_long == "raise" else 0
    summary.repeated_ids = summary.sequences - len(ids.numbers())
    return summary


def _read(
    inputs: Sequence[str], columns: Mapping[str, str | None]
) -> Iterator[tuple[Path, InputRange]]:
    files = find_sources([name for name in inputs if name != "-"], **columns)
    for file in (*files, *([InputFile(Path("-"), "-", **columns)] if "-" in inputs else [])):
        for records in Reading(file, _BATCH, lambda _: True):
            if records.error is not None:
                raise records.error
            yield file.path, records


def _normalised(
    path: Path, records: InputRange, unknown: str, summary: InputSummary
) -> Iterator[str]:
    """Yield the sequences that are valid, and count the others as left out."""
    if (
        not records.errors
        and are_normal(records.sequences)
        and not missing_words(records.sequences)
    ):
        yield from records.sequences
        return
    missing = missing_words(records.sequences)
    for row, value in enumerate(records.sequences, records.first):
        try:
            if row in records.errors:
                raise records.errors[row]
            if row - records.first in missing:
                raise missing_error(value, row, None)
            yield normalise(value, index=row, unknown=unknown)
        except InputError as error:
            summary.left_out += 1
            text = in_shell(error)
            place = "" if str(path) in text else f"{path}, record {row + 1}: "
            summary.first_error = summary.first_error or f"{place}{text}"
