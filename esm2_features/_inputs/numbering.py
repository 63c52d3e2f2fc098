"""How the residues of a protein are numbered: the offset of each site, as far as residues tell it.

Numbers of a PDB file rarely count from the first residue of a sequence. Mostly they are shifted by
a constant; insertion codes, and residues that are missing in the sequence or the numbering, change
the shift along the chain. A hidden Markov model weighs all of it: its state is the offset, which
mostly stays from one site to the next, and its emissions are the residues that a table names at its
sites. The probability of a site's offset, given all sites of the protein, says whether the residues
tell it.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.notation import Site

CERTAIN = 0.995
"""Probability from which on an offset is taken to be known."""

_WRONG = 1e-3  # of all residues in a table, those that are wrong
_CHANGES = 3e-3  # changes of the offset, by residue
_MOST_CHANGES = 0.3
_STEEPNESS = 1.5  # small changes are likelier: p(d) ~ 1 / (1 + |d|)^1.5
_ENOUGH = 100  # sites that one offset does not fit by chance
_FARTHEST = 5000  # numbers that are farther off from the others are mistakes

ZERO, MOSTLY_ZERO = 0.2, 0.95
"""Probability of the offset 0 before a residue is seen; the second if most proteins have it."""


class Placement(NamedTuple):
    """Where a site is in the sequence."""

    position: int  # counted from 0
    offset: int  # number of the residue before the first one
    probability: float


def fits(sequence: str, sites: Mapping[Site, Set[str]], offset: int) -> bool:
    """Whether one offset fits all sites."""
    return all(
        not site.code and letters == {_at(sequence, site.number - 1 - offset)}
        for site, letters in sites.items()
    )


def place_sites(
    sequence: str, sites: Mapping[Site, Set[str]], zero: float = ZERO
) -> dict[Site, Placement]:
    """Find the most probable position of each site of a protein.

    ``sites`` has the residues that a table names at each site: one, if the table agrees with
    itself.
    """
    center = np.median([site.number for site in sites])
    near = 5 * len(sequence) + _FARTHEST
    ordered = sorted(site for site in sites if abs(site.number - center) <= near)
    numbers = np.array([site.number for site in ordered])
    offsets = np.arange(numbers.min() - len(sequence), numbers.max())
    positions = numbers[:, None] - 1 - offsets
    residues = np.frombuffer(sequence.encode("ascii"), np.uint8)
    is_inside = (positions >= 0) & (positions < len(sequence))
    found = np.where(is_inside, residues[np.clip(positions, 0, len(sequence) - 1)], 0)
    emissions = np.ones(positions.shape)
    for k, site in enumerate(ordered):
        for letter in sites[site]:
            emissions[k] *= np.where(found[k] == ord(letter), 1 - _WRONG, _WRONG / 20)
    if len(ordered) >= _ENOUGH and (emissions > 0.5).all(axis=0).sum() == 1:
        # One offset for so many sites is no accident, and the model would take long to agree.
        [offset] = offsets[(emissions > 0.5).all(axis=0)].tolist()
        return {site: Placement(site.number - 1 - offset, offset, 1.0) for site in ordered}
    start = np.full(len(offsets), (1 - zero) / len(offsets))
    start[offsets == 0] += zero
    probabilities = _posterior(start, emissions, np.diff(numbers))
    best = probabilities.argmax(axis=1)
    return {
        site: Placement(int(positions[k, i]), int(offsets[i]), float(probabilities[k, i]))
        for k, (site, i) in enumerate(zip(ordered, best.tolist(), strict=True))
        if is_inside[k, i]
    }


def _posterior(
    start: NDArray[np.float64], emissions: NDArray[np.float64], gaps: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Compute the probability of each offset at each site, by the forward-backward algorithm."""
    n_sites, n_offsets = emissions.shape
    forward, backward = np.empty_like(emissions), np.ones_like(emissions)
    kernels = [_changes(int(gap), n_offsets) for gap in gaps]
    forward[0] = start * emissions[0]
    for k in range(1, n_sites):
        before = forward[k - 1] / forward[k - 1].sum()
        forward[k] = _step(before, *kernels[k - 1]) * emissions[k]
    for k in range(n_sites - 2, -1, -1):
        after = emissions[k + 1] * backward[k + 1]
        stay, kernel = kernels[k]
        backward[k] = _step(after / after.sum(), stay, kernel[::-1])
    joint = forward * backward
    joint /= joint.sum(axis=1, keepdims=True)
    return joint


def _changes(gap: int, n_offsets: int) -> tuple[float, NDArray[np.float64]]:
    """Give the probability that the offset stays over a gap, and those of its changes."""
    by = np.arange(1 - n_offsets, n_offsets)
    # A later site is at a later position: the offset may not grow by as much as the number.
    weights = np.where((by != 0) & (by < gap), (1.0 + np.abs(by)) ** -_STEEPNESS, 0.0)
    # Two sites of one number have different insertion codes, and so different offsets.
    change = min(_MOST_CHANGES, 1 - np.exp(-_CHANGES * gap)) if gap else 1.0
    total = weights.sum()
    return 1 - change, change * weights / total if total else weights


def _step(
    probabilities: NDArray[np.float64], stay: float, kernel: NDArray[np.float64]
) -> NDArray[np.float64]:
    n = len(probabilities)
    moved = np.convolve(probabilities, kernel)[n - 1 : 2 * n - 1]
    return np.asarray(stay * probabilities + moved, np.float64)


def _at(sequence: str, position: int) -> str:
    return sequence[position] if 0 <= position < len(sequence) else ""
