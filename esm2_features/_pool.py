"""From tokens to one vector per sequence: reductions over the segments of a packed batch.

Never here: padding, masks; there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from esm2_features._plan import Group

# Each takes the tokens of one group, x_BTD with <cls> first and <eos> last, and gives (B, D).
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x_BTD: x_BTD[:, 1:-1].mean(1),
    "max": lambda x_BTD: x_BTD[:, 1:-1].amax(1),
    # Over the residues as a population: one residue has spread 0, not NaN.
    "std": lambda x_BTD: x_BTD[:, 1:-1].std(1, correction=0),
    "cls": lambda x_BTD: x_BTD[:, 0],
    "eos": lambda x_BTD: x_BTD[:, -1],
}


def pool(x_TD: Tensor, groups: Sequence[Group], pooling: str) -> Tensor:
    """Reduce each sequence of a packed batch to one vector.

    Parameters
    ----------
    x_TD : Tensor of shape (tokens, dim), float32
    groups : sequence of Group
        They cover all tokens, in order.
    pooling : str
        ``"mean"``, ``"max"`` and ``"std"`` (population) over the residues alone, or the
        token ``"cls"`` or ``"eos"``.

    Returns
    -------
    pooled_BD : Tensor of shape (sequences, dim), float32
        In the order of the batch.
    """
    reduce = _REDUCTIONS[pooling]
    return torch.cat(
        [
            reduce(x_TD[group.start : group.stop].view(group.count, group.tokens, -1))
            for group in groups
        ]
    )


def pool_columns(
    representations: Iterable[tuple[int, Tensor]],
    groups: Sequence[Group],
    columns: Sequence[tuple[int, str]],
) -> Tensor:
    """Pool several layers in several ways, as the layers come.

    Parameters
    ----------
    representations : iterable of (int, Tensor of shape (total_tokens, dim))
        Layers and what they represent.
    groups : sequence of Group
    columns : sequence of (int, str)
        Layer and pooling of each column.

    Returns
    -------
    vectors : Tensor of shape (sequences, columns, dim)
    """
    pooled = {
        (layer, how): pool(x_TD, groups, how)
        for layer, x_TD in representations
        for how in {how for at, how in columns if at == layer}
    }
    return torch.stack([pooled[column] for column in columns], dim=1)
