"""From residues to one vector per view: reductions over the segments of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from esm2_features._model.devices import send
from esm2_features._model.layout import Segment

# Each takes the residues of some views, x_BRD, and gives (B, D).
_OF_RESIDUES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x_BRD: x_BRD.mean(1),
    "max": lambda x_BRD: x_BRD.amax(1),
    # Over the residues as a population: one residue has spread 0, not NaN.
    "std": lambda x_BRD: x_BRD.std(1, correction=0),
}
_SPECIAL_TOKENS = {"cls": 0, "eos": -1}


def pool(
    x_TD: Tensor, segments: Sequence[Segment], pooling: str, weights_T: Tensor | None = None
) -> Tensor:
    """Reduce the residues of each view to one vector."""
    parts: list[Tensor] = []
    members: list[int] = []
    for segment in (part for whole in segments for part in whole.parts(x_TD.shape[1])):
        if pooling in _SPECIAL_TOKENS:
            vectors = segment.tokens(x_TD)[:, _SPECIAL_TOKENS[pooling]]
        elif pooling in _OF_RESIDUES:
            vectors = _OF_RESIDUES[pooling](segment.residues(x_TD))
        else:
            assert weights_T is not None, pooling
            weights_BR1 = segment.residues(weights_T.unsqueeze(1))
            vectors = (segment.residues(x_TD) * weights_BR1).sum(1) / weights_BR1.sum(1)
        parts.append(vectors)
        members.extend(segment.members)
    places = np.empty(len(members), np.int64)
    places[members] = np.arange(len(members))
    return torch.cat(parts)[send(places, x_TD.device)]
