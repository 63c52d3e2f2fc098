"""How the chains of one molecule go through the network: each by itself, or joined by linkers.

`join_chains` makes one sequence of the chains of each row, and says where in it they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from esm2_features._inputs.options import is_whole, one_of
from esm2_features._inputs.rows import place_of
from esm2_features._inputs.views import Spans
from esm2_features.exceptions import InputError, SequenceTooLongError

JOINS = ("concatenate", "linker", "linker-per-chain")
LINKER_LENGTH = 25
"""Glycines of a linker by default, as ESMFold has them (Lin et al. 2023)."""


def check_join(join: object, linker_length: object, *, region: object, too_long: object) -> None:
    """Check the options of joining, and raise InputError for those that exclude it."""
    one_of("join", join, JOINS)
    if not is_whole(linker_length) or linker_length < 0:
        raise InputError(f"Got linker_length={linker_length!r}; expected a whole number from 0.")
    if join == "concatenate":
        if linker_length != LINKER_LENGTH:
            raise InputError(
                f'Got linker_length={linker_length!r} with join="concatenate", which has no '
                'linkers. Leave it out, or pass join="linker" or join="linker-per-chain".'
            )
    elif region is not None:
        raise InputError(
            f'Got region={region!r} with join="{join}", which pools over whole chains. Pass '
            'join="concatenate", or use one transformer for each chain.'
        )
    elif too_long == "truncate":
        raise InputError(
            f'Got too_long="truncate" with join="{join}", where it would cut the last chain. Pass '
            'too_long="window", or too_long="raise" with a higher max_residues.'
        )


def join_chains(
    sequences: Sequence[str | None],
    n_chains: int,
    *,
    linker_length: int,
    per_chain: bool,
    longest: int | None,
) -> tuple[list[str | None], list[Spans | None]]:
    """Join the chains of each row with linkers of glycine."""
    linker = "G" * linker_length
    joined: list[str | None] = []
    regions: list[Spans | None] = []
    for row in range(len(sequences) // n_chains):
        chains = [s for s in sequences[row * n_chains : (row + 1) * n_chains] if s is not None]
        if len(chains) < n_chains:
            spans: list[Spans | None] = [None] * (n_chains if per_chain else 1)
            joined += [None] * len(spans)
        else:
            sequence = linker.join(chains)
            if longest is not None and len(sequence) > longest:
                raise _too_long(sequence, row, linker_length, longest)
            spans = list(_spans(chains, linker_length, per_chain))
            joined += [sequence] * len(spans)
        regions += spans
    return joined, regions


def _spans(chains: Sequence[str], linker_length: int, per_chain: bool) -> list[Spans]:
    """Give the residues of the chains, each by itself or all together; () is the whole sequence."""
    if len(chains) == 1 or (linker_length == 0 and not per_chain):
        return [()]
    starts = [0]
    for chain in chains[:-1]:
        starts.append(starts[-1] + len(chain) + linker_length)
    spans = [(start, start + len(chain)) for start, chain in zip(starts, chains, strict=True)]
    return [(span,) for span in spans] if per_chain else [tuple(spans)]


def _too_long(sequence: str, row: int, linker_length: int, longest: int) -> SequenceTooLongError:
    return SequenceTooLongError(
        f"The chains of {place_of(row)} and the linkers of {linker_length} glycines between them "
        f"have {len(sequence)} residues in all, more than max_residues={longest}, which measures "
        'the joined sequence. Pass too_long="window" to embed it in overlapping windows, '
        'max_residues=None to embed it whole, or join="concatenate" to embed each chain by itself.',
        index=row,
        length=len(sequence),
        limit=longest,
    )
