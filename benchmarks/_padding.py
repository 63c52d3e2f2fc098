"""Padding: how peers get sequences, as rectangles of tokens, and what is made of their output.

Never here: networks; this library, which does not pad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import encode

PAD = 1
_DEFAULT_BATCH = 8

Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str], int | None], Vectors]
"""From sequences and a token budget (None for the default way) to vectors."""


def in_order(n: int, size: int = _DEFAULT_BATCH) -> list[list[int]]:
    """Put sequences into batches as they come."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def by_tokens(sequences: Sequence[str], budget: int) -> list[list[int]]:
    """Put sequences of similar length together, as many as fit into a budget when padded.

    Parameters
    ----------
    sequences : sequence of str
    budget : int
        In tokens; a sequence that is longer is a batch of its own.

    Returns
    -------
    batches : list of list of int
        Longest first.

    Examples
    --------
    >>> by_tokens(["MKT", "MKTAY", "MKTA"], 14)
    [[1, 2], [0]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        longest = len(sequences[batches[-1][0]]) + 2 if batches else budget
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def padded(sequences: Sequence[str]) -> NDArray[np.int64]:
    """Turn sequences into one rectangle of tokens."""
    rows = [encode(sequence) for sequence in sequences]
    tokens = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    for row, found in zip(tokens, rows, strict=True):
        row[: len(found)] = found
    return tokens


def embed_padded(
    forward: Callable[[torch.Tensor], torch.Tensor],
    dim: int,
    sequences: Sequence[str],
    budget: int | None,
) -> Vectors:
    """Run padded batches, and average over the residues of each sequence.

    Parameters
    ----------
    forward : callable
        From tokens of shape (sequences, longest) to representations of shape (..., dim).
    dim : int
    sequences : sequence of str
    budget : int or None
        In tokens; None for few sequences at a time, as they come.

    Returns
    -------
    vectors : ndarray of shape (n, dim), float32
    """
    batches = in_order(len(sequences)) if budget is None else by_tokens(sequences, budget)
    vectors = np.empty((len(sequences), dim), np.float32)
    with torch.inference_mode():
        for batch in batches:
            tokens = torch.from_numpy(padded([sequences[i] for i in batch]))
            weights = torch.zeros(tokens.shape)
            for row, i in enumerate(batch):
                weights[row, 1 : len(sequences[i]) + 1] = 1 / len(sequences[i])
            hidden = forward(tokens).float()
            means = torch.bmm(weights[:, None].to(hidden.device), hidden)[:, 0]
            vectors[list(batch)] = means.cpu().numpy()
    return vectors
