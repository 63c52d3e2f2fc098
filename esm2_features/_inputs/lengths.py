"""How long sequences may be: refused, cut and counted, or left to windows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from esm2_features._inputs.residues import place_of
from esm2_features.exceptions import SequenceTooLongError, TruncationWarning


@dataclass
class TruncationCounter:
    """How many sequences were cut, counted over all parts of an input, to be said once."""

    cut: int = 0  # sequences that were cut, and all of them
    seen: int = 0  # sequences that were cut, and all of them
    longest: int = 0  # residues of the longest one before it was cut

    def say(self, max_residues: int | None) -> None:
        """Warn with the count, if there is one."""
        if self.cut:
            warnings.warn(
                f"{self.cut} of {self.seen} sequences were cut to their first {max_residues} "
                f"residues (max_residues); the longest had {self.longest}.",
                TruncationWarning,
                stacklevel=2,
            )


def fit_length(
    sequences: list[str],
    *,
    max_residues: int | None,
    too_long: str,
    cuts: TruncationCounter,
    rows: Sequence[int] | None = None,
    column: str | None = None,
) -> list[str]:
    """Refuse or cut sequences that are too long, unless windows will do."""
    cuts.seen += len(sequences)
    if too_long == "window" or max_residues is None:
        return sequences
    if max(map(len, sequences), default=0) <= max_residues:
        return sequences
    long = [i for i, sequence in enumerate(sequences) if len(sequence) > max_residues]
    if too_long == "raise":
        length = len(sequences[long[0]])
        index = long[0] if rows is None else rows[long[0]]
        raise SequenceTooLongError(
            f"The sequence in {place_of(index, column)} has {length} residues, more than "
            f'max_residues={max_residues}. Pass too_long="window" to run it in overlapping '
            f'windows, too_long="truncate" to keep the first {max_residues}, max_residues=None to '
            "run it whole (memory grows with the square of the length), or split the protein into "
            "its domains.",
            index=index,
            length=length,
            limit=max_residues,
        )
    cuts.cut += len(long)
    cuts.longest = max(cuts.longest, *(len(sequences[i]) for i in long))
    return [sequence[:max_residues] for sequence in sequences]
