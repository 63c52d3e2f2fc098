"""What is in an input, counted in one reading: sequences, different ones, lengths, what is wrong.

Of each sequence 16 bytes are held: 12 of a digest, and its length. Of a billion, two different ones
are taken for the same with a probability of 1e-11. Sorted, they give the number of different ones
and their lengths. Of each id 16 bytes are held as well, to tell whether one occurs twice.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from esm2_features._costs.model import Pieces
from esm2_features._inputs.fasta import FastaRecord, FastaSource, iter_any_ids
from esm2_features._inputs.policy import SequencePolicy
from esm2_features._inputs.residues import are_normal, normalise, warn_of_nucleotides
from esm2_features._inputs.views import piece_tokens
from esm2_features.exceptions import InvalidSequenceError

_RECORD_BYTES = 16
_LENGTH_BYTES = 4
_AT_A_TIME = 4096
"""Records that are checked at once."""
_SORTED_FROM = 1 << 20
"""Records that are held before duplicates among them are dropped for the first time."""
SAMPLE = 256
"""Sequences that are kept for a measurement, drawn evenly from all."""


class Digests:
    """Which texts there were, in 16 bytes for each different one."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._next = _SORTED_FROM * _RECORD_BYTES

    def add(self, text: str, number: int) -> None:
        """Take a text, and a number that goes with it."""
        digest = hashlib.blake2b(
            text.encode("utf-8", "surrogateescape"), digest_size=_RECORD_BYTES - _LENGTH_BYTES
        ).digest()
        self._held += digest + number.to_bytes(_LENGTH_BYTES, "little")
        if len(self._held) >= self._next:
            self._drop_repeated()
            self._next = max(2 * len(self._held), self._next)

    def numbers(self) -> NDArray[np.uint32]:
        """Give the numbers of the different texts."""
        self._drop_repeated()
        words = np.frombuffer(self._held, np.uint32).reshape(-1, _RECORD_BYTES // 4)
        return words[:, -1].astype(np.uint32)

    def _drop_repeated(self) -> None:
        if not self._held:
            return
        # Fixed-width bytes sort as such; the zeros at their ends that NumPy hides are there.
        records = np.frombuffer(self._held, f"S{_RECORD_BYTES}")
        records.sort()
        is_first = np.ones(len(records), np.bool_)
        is_first[1:] = records[1:] != records[:-1]
        if not is_first.all():
            self._held = bytearray(records[is_first].tobytes())


@dataclass(frozen=True)
class Census:
    """What an input holds."""

    sequences: int  # all records
    unique: int  # different sequences among those that can be embedded
    residues: int  # of all that can be embedded, as they would go through the network
    tokens: int  # of all that can be embedded, as they would go through the network
    longest: int  # residues of the longest sequence of all, before it is cut
    too_long: int  # sequences of more than ``max_residues``
    # records that `embed` would refuse: too long for the policy, or with something that is no
    # residue
    left_out: int
    first_fault: str | None  # what is said of the first that holds something else than residues
    repeated_ids: int  # records whose id has occurred before, which `embed` refuses
    text_bytes: int  # of residues, ids and headers
    # lengths of the different sequences, in tokens; of one in windows, of each window
    pieces: Pieces
    # some sequences that can be embedded, drawn evenly from all, normalised
    sample: tuple[str, ...]


def count(source: FastaSource, policy: SequencePolicy) -> Census:
    """Read an input once and count what is in it."""
    counter = _Counter(policy)
    records = iter_any_ids(source)
    while some := list(islice(records, _AT_A_TIME)):
        counter.add(some)
    return counter.result()


class _Counter:
    def __init__(self, policy: SequencePolicy) -> None:
        self._policy = policy
        self._sequences = self._residues = self._tokens = self._text_bytes = 0
        self._longest = self._too_long = self._left_out = self._embedded = 0
        self._first_fault: str | None = None
        self._ids, self._different = Digests(), Digests()
        self._sample: list[str] = []
        self._random = random.Random(0)  # noqa: S311 - which sequences are timed is no secret

    def add(self, records: list[FastaRecord]) -> None:
        for record in records:
            self._ids.add(record.id, 0)
            # The header holds the id, which is a string of its own.
            self._text_bytes += len(record.seq) + len(record.description) + len(record.id)
        start = self._sequences
        self._sequences += len(records)
        found = list(self._normal(records, start))
        if start == 0:  # said once: a file of genes is one from its beginning
            warn_of_nucleotides(found, rows=range(len(found)))
        for sequence in found:
            self._take(sequence)

    def _normal(self, records: Iterable[FastaRecord], start: int) -> Iterator[str]:
        values = [record.seq for record in records]
        if are_normal(values):
            yield from values
            return
        for row, value in enumerate(values, start=start):
            try:
                yield normalise(value, index=row, unknown=self._policy.unknown)
            except InvalidSequenceError as error:
                self._left_out += 1
                self._first_fault = self._first_fault or f"Record {row + 1}: {error}"

    def _take(self, sequence: str) -> None:
        limit, policy = self._policy.max_residues, self._policy.too_long
        self._longest = max(self._longest, len(sequence))
        if limit is not None and len(sequence) > limit:
            self._too_long += 1
            if policy == "raise":
                self._left_out += 1
                return
            if policy == "truncate":
                sequence = sequence[:limit]
        self._embedded += 1
        self._residues += len(sequence)
        self._tokens += sum(self._pieces_of(len(sequence)))
        self._different.add(sequence, len(sequence))
        # Each sequence that was seen is in the sample with the same probability.
        if len(self._sample) < SAMPLE:
            self._sample.append(sequence)
        elif (place := self._random.randrange(self._embedded)) < SAMPLE:
            self._sample[place] = sequence

    def _pieces_of(self, residues: int) -> list[int]:
        """Give the tokens of what goes through the network."""
        size = self._policy.max_residues
        in_windows = self._policy.too_long == "window" and size is not None and residues > size
        return piece_tokens(residues, size if in_windows and size else 0)

    def result(self) -> Census:
        lengths, counts = np.unique(self._different.numbers(), return_counts=True)
        tokens, pieces = list[int](), list[int]()
        for residues, number in zip(lengths.tolist(), counts.tolist(), strict=True):
            each = self._pieces_of(residues)
            tokens.append(each[0])
            pieces.append(number * len(each))
        sizes, back = np.unique(np.array(tokens, np.int64), return_inverse=True)
        totals = np.zeros(len(sizes), np.int64)
        np.add.at(totals, back, np.array(pieces, np.int64))
        return Census(
            sequences=self._sequences,
            unique=int(counts.sum()),
            residues=self._residues,
            tokens=self._tokens,
            longest=self._longest,
            too_long=self._too_long,
            left_out=self._left_out,
            first_fault=self._first_fault,
            repeated_ids=self._sequences - len(self._ids.numbers()),
            text_bytes=self._text_bytes,
            pieces=Pieces(sizes, totals),
            sample=tuple(self._sample),
        )
