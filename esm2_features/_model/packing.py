"""How the sequences of one batch lie in a row of tokens.

A batch is *packed*: its sequences stand one behind the other in a single row of tokens,
without padding. Inside a batch, sequences of equal length lie side by side and form a
*group*, which attention can take as one dense tensor:

    tokens     c A A e  c G G e  c W e          c = <cls>, e = <eos>
    positions  0 1 2 3  0 1 2 3  0 1 2
    groups     └ 2 sequences x 4 ┘ └1 x 3┘
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import MASK_TOKEN, TOKENS, encode_all

EMBEDDING_SCALE = 0.88
"""ESM-2 was trained with 15 % of residues selected, 80 % of those masked: 1 - 0.15 x 0.8."""


MOST_SEQUENCES = 65_535
"""Sequences of a batch: the blocks of threads that a card starts in one dimension. It holds on all
devices, so that batches are alike; so many sequences fill a pass in any case."""

FEWEST_TOKENS = 2048
_MOST_TOKENS_OF_CUDA = 1 << 17
BYTES_PER_NUMBER_OF_WIDTH = 80
"""What a pass holds for each token and each number of the model's width, at its peak, in float32:
the residual stream, queries, keys and values, and the feed-forward layer before and after."""


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring sequences of one length in a packed batch."""

    start: int  # first token of the group
    count: int  # number of sequences
    tokens: int  # tokens of each sequence (residues + 2)

    @property
    def stop(self) -> int:
        """One past the last token of the group."""
        return self.start + self.count * self.tokens


class UniqueTokens(NamedTuple):
    """The distinct rows of a batch before the first block, and where they occur."""

    tokens: NDArray[np.int64]
    # factor of the token's embedding: ESM-2's token dropout at inference. It is 0 for ``<mask>``,
    # and 0.88 / (1 - share of ``<mask>`` among the sequence's tokens) elsewhere, as in
    # ``esm/model/esm2.py``
    scale: NDArray[np.float32]
    of_rows: NDArray[np.int64]  # the kind of each row


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences packed one behind the other."""

    unique_tokens: UniqueTokens  # which token each row is, and with which scale
    positions: NDArray[np.int64]  # position of each token in its own sequence, from 0
    groups: tuple[Group, ...]  # in order; together they cover all tokens

    @property
    def tokens(self) -> NDArray[np.int64]:
        return self.unique_tokens.tokens[self.unique_tokens.of_rows]


def cuda_budget(free: int, dim: int) -> int:
    """Tokens that one pass takes on a CUDA card."""
    fitting = free // 4 // (BYTES_PER_NUMBER_OF_WIDTH * dim)
    return max(FEWEST_TOKENS, min(_MOST_TOKENS_OF_CUDA, fitting))


def pack(sequences: Sequence[str]) -> Batch:
    """Lay the sequences of one batch one behind the other."""
    return pack_tokens(encode_all(sequences), np.array([len(one) + 2 for one in sequences]))


def pack_tokens(tokens: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Batch:
    """Describe tokens that lie one behind the other, in sequences of these sizes."""
    starts = np.cumsum(sizes) - sizes
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)]
    return Batch(
        unique_tokens=_unique_tokens(tokens, sizes, starts),
        positions=np.arange(len(tokens)) - np.repeat(starts, sizes),
        groups=tuple(
            Group(start=int(starts[a]), count=b - a, tokens=int(sizes[a]))
            for a, b in pairwise(edges)
        ),
    )


def _unique_tokens(
    tokens: NDArray[np.uint8], sizes: NDArray[np.int64], starts: NDArray[np.int64]
) -> UniqueTokens:
    """Find the different pairs of a token and its scale."""
    is_masked = tokens == MASK_TOKEN
    code = tokens.astype(np.int64)
    scales = np.array([EMBEDDING_SCALE], np.float32)
    if is_masked.any():
        share = np.add.reduceat(is_masked, starts, dtype=np.float32) / sizes.astype(np.float32)
        scales, which = np.unique(
            np.float32(EMBEDDING_SCALE) / (np.float32(1) - share), return_inverse=True
        )
        code += len(TOKENS) * np.repeat(which, sizes)
    is_there = np.zeros(len(TOKENS) * len(scales), np.bool_)
    is_there[code] = True
    codes = np.flatnonzero(is_there)
    unique_tokens = codes % len(TOKENS)
    return UniqueTokens(
        tokens=unique_tokens,
        scale=np.where(unique_tokens == MASK_TOKEN, np.float32(0), scales[codes // len(TOKENS)]),
        of_rows=(np.cumsum(is_there) - 1)[code],
    )
