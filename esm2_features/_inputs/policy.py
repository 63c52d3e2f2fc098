"""`SequencePolicy`: from cells to views, with residues, lengths and regions checked."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.cells import is_missing, text_of
from esm2_features._inputs.containers import Column, single_column
from esm2_features._inputs.regions import read_region, read_regions
from esm2_features._inputs.residues import are_normal, missing_error, normalise, warn_of_nucleotides
from esm2_features._inputs.rows import labelled, place_of
from esm2_features._inputs.views import SequenceView, Spans, around
from esm2_features._inputs.words import LONGEST_CELL, MISSING, missing_words
from esm2_features.exceptions import SequenceTooLongError, TruncationWarning


@dataclass
class TruncationCounter:
    """Counts truncated sequences over all parts of an input, for one warning at its end."""

    truncated: int = 0
    total: int = 0
    longest: int = 0  # residues of the longest one before it was truncated

    def warn(self, max_residues: int | None) -> None:
        """Warn with the count, if any sequence was truncated."""
        if self.truncated:
            warnings.warn(
                f"{self.truncated} of {self.total} sequences were cut to their first "
                f"{max_residues} residues (max_residues); the longest had {self.longest}.",
                TruncationWarning,
                stacklevel=2,
            )


@dataclass(frozen=True)
class SequencePolicy:
    """What happens to sequences that are long, contain unknown letters, or are wanted in part."""

    max_residues: int | None = 1022  # longest sequence allowed; None allows any
    too_long: str = "raise"  # or "truncate", or "window"
    unknown: str = "raise"  # or "X", or "mask": what unknown letters become
    # start and stop of the residues to pool, or several parts as text; None for all
    region: tuple[int, int] | str | None = None
    gaps: bool = False  # whether "-", "." and "~" are gaps of an alignment, which become "-"

    def normalise(
        self,
        sequences: Iterable[object],
        *,
        rows: Iterable[int] | None = None,
        column: str | None = None,
        truncations: TruncationCounter | None = None,
        are_present: bool = False,
    ) -> list[str]:
        """Check cells, and bring them into the one form that is encoded and cached.

        ``rows`` and ``column`` are what messages call the cells. With a counter, whoever passes it
        warns of truncations. Words for missing values are looked for, unless ``are_present``.
        """
        cells = list(sequences)
        numbers = list(range(len(cells)) if rows is None else rows)
        words = set() if are_present else missing_words(cells)
        if words:
            first = min(words)
            raise missing_error(text_of(cells[first]), numbers[first], column, n=len(words))
        if are_normal(cells):
            residues = cells
        else:
            residues = [
                normalise(cell, index=row, unknown=self.unknown, column=column, gaps=self.gaps)
                for row, cell in zip(numbers, cells, strict=True)
            ]
        warn_of_nucleotides(residues, rows=numbers, column=column)
        counter = TruncationCounter() if truncations is None else truncations
        fitting = self._fit_lengths(residues, counter, numbers, column)
        if truncations is None:
            counter.warn(self.max_residues)
        return fitting

    def normalise_column(self, sequences: object, *, owner: str) -> list[str]:
        """Check the cells of a container with one column, as `normalise` does."""
        column = single_column(sequences, owner=owner)
        with labelled(column.labels):
            return self.normalise(column.values)

    def column_views(
        self, sequences: object, *, owner: str, regions: Collection[object] | None = None
    ) -> list[str | None]:
        """Write the views of a container with one column, and of the regions beside it."""
        column = single_column(sequences, owner=owner)
        with labelled(column.labels):
            residues = self.normalise(column.values)
            spans = None if regions is None else read_regions(regions, residues)
            return self.views(residues, regions=spans)

    def normalise_chains(
        self, chains: Sequence[Column], on_missing: str, truncations: TruncationCounter
    ) -> list[str | None]:
        """Check the chains of each row; sequences by row, and in a row by chain, None if missing.

        With ``on_missing="raise"``, raise MissingSequenceError for a missing value.
        """
        sequences: list[str | None] = [None] * (len(chains) * len(chains[0].values))
        for i, chain in enumerate(chains):
            missing = missing_rows(chain, on_missing=on_missing)
            rows = [row for row in range(len(chain.values)) if row not in missing]
            residues = self.normalise(
                [chain.values[row] for row in rows],
                rows=rows,
                column=chain.name if len(chains) > 1 else None,
                truncations=truncations,
                are_present=True,
            )
            for row, sequence in zip(rows, residues, strict=True):
                sequences[row * len(chains) + i] = sequence
        return sequences

    def views(
        self,
        sequences: Sequence[str | None],
        *,
        regions: Sequence[Spans | None] | None = None,
        rows: Sequence[int] | None = None,
        column: str | None = None,
    ) -> list[str | None]:
        """Write the view of each normalised sequence; None stays None.

        ``regions`` are the spans of each row, as `read_region` gives them; None and () mean the
        whole sequence. By default, the policy's own region holds for all rows.
        """
        spans: Sequence[Spans | None] | None = regions
        if regions is None and self.region is not None:
            numbers = range(len(sequences)) if rows is None else rows
            spans = [
                None
                if sequence is None
                else read_region(self.region, length=len(sequence), index=row, column=column)
                for row, sequence in zip(numbers, sequences, strict=True)
            ]
        if spans is None and self.too_long != "window":
            return list(sequences)
        if spans is None:
            spans = [None] * len(sequences)
        return [
            None
            if sequence is None
            else str(SequenceView(sequence, self.window(sequence), part or ()))
            for sequence, part in zip(sequences, spans, strict=True)
        ]

    def site(self, sequence: str, position: int, *, masked: bool) -> str:
        """Write the view of one residue of a normalised sequence, counted from 0.

        With ``masked``, ``<mask>`` takes its place, and a sequence that needs windows is cut to the
        one window around it.
        """
        if not 0 <= position < len(sequence):
            raise IndexError(f"position {position} of a sequence of {len(sequence)} residues")
        if not masked:
            return str(SequenceView(sequence, self.window(sequence), ((position, position + 1),)))
        hidden = f"{sequence[:position]}{MASK}{sequence[position + 1 :]}"
        size = self.window(sequence)
        if size:
            part = around(position, len(sequence), size)
            hidden = hidden[part.start : part.stop]
            position -= part.start
        return str(SequenceView(hidden, 0, ((position, position + 1),)))

    def window(self, sequence: str) -> int:
        """Residues of each window that the sequence needs; 0 if it runs in one piece."""
        size = self.max_residues
        if self.too_long != "window" or size is None or len(sequence) <= size:
            return 0
        return size

    def check_windows(self, sequences: Sequence[str], *, rows: Sequence[int], product: str) -> None:
        """Raise SequenceTooLongError if a sequence needs windows, for products of residue pairs."""
        for row, sequence in zip(rows, sequences, strict=True):
            size = self.window(sequence)
            if size:
                raise SequenceTooLongError(
                    f"The sequence in {place_of(row)} has {len(sequence)} residues, more than "
                    f"max_residues={size}, and {product} cannot be put together from windows "
                    '(too_long="window"): residues of different windows do not attend to each '
                    "other. Pass max_residues=None to run it whole (memory grows with the square "
                    "of the length), or split the protein into its domains.",
                    index=row,
                    length=len(sequence),
                    limit=size,
                )

    def _fit_lengths(
        self,
        sequences: list[str],
        counter: TruncationCounter,
        rows: Sequence[int],
        column: str | None,
    ) -> list[str]:
        """Refuse or truncate sequences that are too long; windows are made later."""
        counter.total += len(sequences)
        limit = self.max_residues
        if self.too_long == "window" or limit is None:
            return sequences
        long = [i for i, sequence in enumerate(sequences) if len(sequence) > limit]
        if not long:
            return sequences
        if self.too_long == "raise":
            length, index = len(sequences[long[0]]), rows[long[0]]
            raise SequenceTooLongError(
                f"The sequence in {place_of(index, column)} has {length} residues, more than "
                f'max_residues={limit}. Pass too_long="window" to run it in overlapping '
                f'windows, too_long="truncate" to keep the first {limit}, max_residues=None to '
                "run it whole (memory grows with the square of the length), or split the protein "
                "into its domains.",
                index=index,
                length=length,
                limit=limit,
            )
        counter.truncated += len(long)
        counter.longest = max(counter.longest, *(len(sequences[i]) for i in long))
        return [sequence[:limit] for sequence in sequences]


def _are_words_absent(values: Sequence[object]) -> bool:
    """Whether all cells are text, and none a word for a missing value: the usual case."""
    return all(
        type(value) is str
        and (len(value) > LONGEST_CELL or " ".join(value.casefold().split()) not in MISSING)
        for value in values
    )


def missing_rows(column: Column, *, on_missing: str, what: str = "protein sequence") -> set[int]:
    """Find the rows in which a column has no value; raise an error if ``on_missing`` wants that."""
    missing = {
        row
        for row, value in enumerate(column.values)
        if not isinstance(value, str) and is_missing(value)  # text is the usual case
    }
    if not _are_words_absent(column.values):
        missing |= missing_words(column.values, column.peptide_sizes)
    if missing and on_missing == "raise":
        first = min(missing)
        raise missing_error(
            text_of(column.values[first]) or None,
            first,
            column.name or None,
            what=what,
            on_missing="pass",
            n=len(missing),
        )
    return missing
