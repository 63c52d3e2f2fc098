"""From what people pass to views: residues checked, lengths and regions settled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.lengths import TruncationCounter, fit_length
from esm2_features._inputs.options import TOO_LONG, fixed_region, one_of, positive
from esm2_features._inputs.regions import read_region
from esm2_features._inputs.residues import are_normal, normalise, warn_of_nucleotides
from esm2_features._inputs.views import SequenceView, Spans, around
from esm2_features.exceptions import SequenceTooLongError


class SequencePolicy:
    """What is done with sequences that are long, odd, or wanted in part."""

    def __init__(
        self,
        *,
        max_residues: int | None,  # longest sequence allowed; None allows any
        too_long: str,  # what to do with longer ones
        unknown: str,  # what to do with characters that stand for no residue
        region: tuple[int, int] | None,  # the part of every sequence that is wanted
    ) -> None:
        self.max_residues = None if max_residues is None else positive("max_residues", max_residues)
        self.too_long = one_of("too_long", too_long, TOO_LONG)
        self.unknown = one_of("unknown", unknown, ("raise", "X", "mask"))
        self.region = fixed_region(region)

    def _normalise(
        self,
        sequences: Iterable[object],
        *,
        rows: Iterable[int] | None = None,
        column: str | None = None,
        cuts: TruncationCounter | None = None,
    ) -> list[str]:
        """Check sequences and bring them into the one form that is encoded and cached."""
        values = list(sequences)
        numbers = list(range(len(values)) if rows is None else rows)
        if are_normal(values):
            residues = values
        else:
            residues = [
                normalise(value, index=row, unknown=self.unknown, column=column)
                for row, value in zip(numbers, values, strict=True)
            ]
        warn_of_nucleotides(residues, rows=numbers, column=column)
        counted = TruncationCounter() if cuts is None else cuts
        fitting = fit_length(
            residues,
            max_residues=self.max_residues,
            too_long=self.too_long,
            cuts=counted,
            rows=numbers,
            column=column,
        )
        if cuts is None:
            counted.say(self.max_residues)
        return fitting

    def _views(
        self,
        sequences: Sequence[str | None],
        *,
        regions: Sequence[Spans | None] | None = None,
        rows: Sequence[int] | None = None,
        column: str | None = None,
    ) -> list[str | None]:
        """Say what each row is about, in the form that `Engine._embed_normalised` takes."""
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
            else str(SequenceView(sequence, self._window(sequence), part or ()))
            for sequence, part in zip(sequences, spans, strict=True)
        ]

    def _site(self, sequence: str, position: int, *, masked: bool) -> str:
        """Say that a row is about one residue of a sequence."""
        if not 0 <= position < len(sequence):
            raise IndexError(f"position {position} of a sequence of {len(sequence)} residues")
        if not masked:
            return str(SequenceView(sequence, self._window(sequence), ((position, position + 1),)))
        hidden = f"{sequence[:position]}{MASK}{sequence[position + 1 :]}"
        size = self._window(sequence)
        if size:
            part = around(position, len(sequence), size)
            hidden = hidden[part.start : part.stop]
            position -= part.start
        return str(SequenceView(hidden, 0, ((position, position + 1),)))

    def _check_windows(
        self, sequences: Sequence[str], *, rows: Sequence[int], product: str
    ) -> None:
        """Refuse sequences that would go in windows, for what cannot be put together of these."""
        for row, sequence in zip(rows, sequences, strict=True):
            size = self._window(sequence)
            if size:
                raise SequenceTooLongError(
                    f"The sequence in row {row} has {len(sequence)} residues, more than "
                    f"max_residues={size}, and {product} cannot be put together from windows "
                    '(too_long="window"): residues of different windows do not attend to each '
                    "other. Pass max_residues=None to run it whole (memory grows with the square "
                    "of the length), or split the protein into its domains.",
                    index=row,
                    length=len(sequence),
                    limit=size,
                )

    def _window(self, sequence: str) -> int:
        """Residues of each window that the sequence needs; 0 if it goes in one piece."""
        size = self.max_residues
        if self.too_long != "window" or size is None or len(sequence) <= size:
            return 0
        return size
