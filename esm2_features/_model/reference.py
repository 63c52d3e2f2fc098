"""The oracle: fair-esm's own network on the same weights, for `verify` and the tests."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from esm2_features._checkpoints import Checkpoint
from esm2_features._inputs.alphabet import encode
from esm2_features.exceptions import MissingDependencyError

# Buffers that fair-esm's network makes itself, or that were left out because they are tied
# to another tensor or used for contacts only.
_NOT_LOADED = ("lm_head.weight", "contact_head.", "rot_emb.inv_freq")


class Reference:
    """fair-esm's ``ESM2`` with the weights of a checkpoint, in float32 on the CPU.

    Source: ``esm/model/esm2.py`` of the package fair-esm 2.0.0, imported, not copied.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        ESM2 = _fair_esm_network()
        shape = checkpoint.architecture
        with torch.device("meta"):
            self._network: Any = ESM2(shape.layers, shape.dim, shape.heads, alphabet="ESM-1b")
        # Parameters only: on the meta device there is no random start to be overwritten.
        tensors = {name: tensor.float() for name, tensor in checkpoint.load().items()}
        inv_freq = {name: t for name, t in tensors.items() if name.endswith("rot_emb.inv_freq")}
        missing, unexpected = self._network.load_state_dict(tensors, strict=False, assign=True)
        left = [name for name in missing if not any(part in name for part in _NOT_LOADED)]
        assert not left, left
        assert not unexpected, unexpected
        self._network.lm_head.weight = self._network.embed_tokens.weight
        self._settle_rotary(inv_freq)
        self._network.eval()

    def _settle_rotary(self, stored: dict[str, Tensor]) -> None:
        """Compute the rotary frequencies as fair-esm does, where the checkpoint has none."""
        for i, layer in enumerate(self._network.layers):
            rotary = layer.self_attn.rot_emb
            if f"layers.{i}.self_attn.rot_emb.inv_freq" not in stored:
                rotary.inv_freq = type(rotary)(layer.self_attn.head_dim).inv_freq

    @torch.no_grad()
    def __call__(self, sequence: str, layers: list[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Run one sequence by itself."""
        tokens = torch.from_numpy(encode(sequence)).long()[None]
        return self.of_tokens(tokens, layers)

    @torch.no_grad()
    def of_tokens(self, tokens: Tensor, layers: list[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Run one row of tokens, whatever they are."""
        result = self._network(tokens, repr_layers=layers)
        representations = {layer: x[0] for layer, x in result["representations"].items()}
        return representations, result["logits"][0]

    @torch.no_grad()
    def maps(
        self, sequence: str, regression: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one sequence by itself, for its attention and contacts."""
        tokens = torch.from_numpy(encode(sequence)).long()[None]
        attentions = self._network(tokens, need_head_weights=True)["attentions"]
        if regression is None:
            return attentions[0], None
        head = self._network.contact_head
        weight, bias = (torch.nn.Parameter(part.float()) for part in regression)
        head.regression.weight, head.regression.bias = weight, bias
        return attentions[0], head(tokens, attentions)[0]


def _fair_esm_network() -> Any:
    try:
        from esm.model.esm2 import ESM2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "esm":
            raise  # fair-esm is installed, but something that it needs is not
        other = sys.modules.get("esm")
        if other is None:
            why = "which is not installed"
        else:
            # EvolutionaryScale's package on PyPI, esm, installs a module of the same name.
            why = f"but the module esm here ({other.__file__}) belongs to another package, and "
            why += "only one of the two can be installed; use a new environment"
        raise MissingDependencyError(
            f"Comparing with fair-esm needs the package fair-esm, {why}. "
            'Install it with: pip install "esm2-features[verify]"'
        ) from error
    return ESM2
