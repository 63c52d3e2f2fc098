"""Reductions of attention maps, block after block, so that they are never held all at once.

Each extractor of maps is told of the queries and keys of every block as the network runs, and keeps
no more than it has to: contacts keep two maps a sequence, importance one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esm2_features._model.attention import attention_maps
from esm2_features._model.devices import Copies, fetch, send
from esm2_features._model.packing import Group

_DAMPING = 0.85
_STEPS = 200
_SETTLED = 1e-9


class ContactMaps:
    """Contacts from attention: a logistic regression on symmetrised and corrected maps."""

    def __init__(
        self, groups: Sequence[Group], weight: Tensor, bias: Tensor, *, heads: int
    ) -> None:
        self._groups = groups
        self._weight_LN = weight.float().view(-1, heads)
        self._bias = bias.float()
        self._logits: list[Tensor] = []

    def __call__(self, layer: int, q_TNH: Tensor, k_TNH: Tensor) -> None:
        """Add what one block's maps contribute."""
        if layer == 1:
            self._weight_LN, self._bias = (
                send(x.numpy(), q_TNH.device) for x in (self._weight_LN, self._bias)
            )
        weight_N = self._weight_LN[layer - 1]
        for i, group in enumerate(self._groups):
            if layer == 1:
                size = group.tokens - 2
                self._logits.append(q_TNH.new_zeros(group.count, size, size, dtype=torch.float32))
            for sequences, heads, maps in attention_maps(q_TNH, k_TNH, group):
                a_BNRR = maps[:, :, 1:-1, 1:-1]
                w_N = weight_N[heads]
                weighted_BRR = torch.einsum("n,bnij->bij", w_N, a_BNRR)
                r_BNR = a_BNRR.sum(-1) + a_BNRR.sum(-2)
                scaled_BNR = r_BNR * (w_N[:, None] / r_BNR.sum(-1, keepdim=True))
                logits = self._logits[i][sequences]
                logits += weighted_BRR + weighted_BRR.transpose(1, 2)
                logits -= scaled_BNR.transpose(1, 2) @ r_BNR

    def probabilities(self) -> Callable[[], list[NDArray[np.float32]]]:
        """Wait for each sequence's contacts; to be called when all blocks have passed."""
        found: list[NDArray[np.float32]] = []
        copies = Copies()
        for logits in self._logits:
            for of_one in logits:
                # Each by itself: PyTorch may round the last numbers of a tensor otherwise.
                contacts = torch.sigmoid(of_one + self._bias)
                copies.begin(contacts, lambda array: found.append(array.copy()))

        def wait() -> list[NDArray[np.float32]]:
            copies.finish()
            return found

        return wait


class Importance:
    """How important each token is: PageRank over the largest attention of all heads and layers.

    A token's rank flows to the tokens that it attends to, in proportion to the attention, and
    15 % of it to all tokens alike.

    Source: Tartici, Nayar and Altman, "Pool PaRTI: a PageRank-based pooling method for identifying
    critical residues and enhancing protein sequence representations", Bioinformatics 41 (2025)
    btaf330. Special tokens take part in the walk, as in the authors' code, and have no weight in
    the pooling. The walk is iterated until it changes by less than 1e-9, where theirs stops at
    1e-6 a token.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._largest: list[Tensor] = []

    def __call__(self, layer: int, q_TNH: Tensor, k_TNH: Tensor) -> None:
        for i, group in enumerate(self._groups):
            if layer == 1:
                shape = group.count, group.tokens, group.tokens
                self._largest.append(q_TNH.new_zeros(shape, dtype=torch.float32))
            for sequences, _, maps in attention_maps(q_TNH, k_TNH, group):
                largest = self._largest[i][sequences]
                torch.maximum(largest, maps.amax(1), out=largest)

    def ranks(self) -> Tensor:
        """Give the importance of all tokens, when all blocks have passed."""
        arriving = [fetch(largest) for largest in self._largest]
        ranks = [page_rank(torch.from_numpy(wait())).flatten() for wait in arriving]
        return torch.cat(ranks).float()


def page_rank(edges_BTT: Tensor) -> Tensor:
    """Rank the nodes of complete weighted graphs (Page et al. 1999)."""
    flow_BTT = edges_BTT.double()
    flow_BTT = (flow_BTT / flow_BTT.sum(-1, keepdim=True)).transpose(1, 2)
    nodes = flow_BTT.shape[-1]
    ranks_BT = flow_BTT.new_full(flow_BTT.shape[:2], 1 / nodes)
    is_moving_B = flow_BTT.new_ones(len(ranks_BT), dtype=torch.bool)
    for _ in range(_STEPS):
        flowed_BT = (flow_BTT @ ranks_BT.unsqueeze(-1)).squeeze(-1)
        moved_BT = _DAMPING * flowed_BT + (1 - _DAMPING) / nodes
        # What has settled stays as it is, so that no graph depends on the others.
        change_B = (moved_BT - ranks_BT).abs().sum(1)
        ranks_BT = torch.where(is_moving_B[:, None], moved_BT, ranks_BT)
        is_moving_B &= change_B > _SETTLED
        if not is_moving_B.any():
            break
    return ranks_BT


class AllMaps:
    """Attention maps as they are, of the layers that are asked for."""

    def __init__(self, groups: Sequence[Group], layers: Sequence[int], *, heads: int) -> None:
        self._groups = groups
        self._layers = list(layers)
        self._copies = Copies()
        self._maps: list[list[NDArray[np.float32]]] = [
            [
                np.empty((len(layers), heads, group.tokens, group.tokens), np.float32)
                for _ in range(group.count)
            ]
            for group in groups
        ]

    def __call__(self, layer: int, q_TNH: Tensor, k_TNH: Tensor) -> None:
        """Begin to copy one block's maps, if they are asked for."""
        if layer not in self._layers:
            return
        at = self._layers.index(layer)
        for i, group in enumerate(self._groups):
            for sequences, heads, maps in attention_maps(q_TNH, k_TNH, group):
                targets = [of_one[at, heads] for of_one in self._maps[i][sequences]]
                self._copies.begin(maps, partial(_fill, targets))

    def maps(self) -> list[NDArray[np.float32]]:
        """Give each sequence's maps, when all blocks have passed."""
        self._copies.finish()
        return [maps for of_group in self._maps for maps in of_group]


def _fill(targets: Sequence[NDArray[np.float32]], arrays: NDArray[np.float32]) -> None:
    for target, array in zip(targets, arrays, strict=True):
        target[...] = array
