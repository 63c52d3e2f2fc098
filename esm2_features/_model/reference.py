"""fair-esm's own network on the same weights, for `verify` and the tests."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from esm2_features._checkpoints import Checkpoint
from esm2_features._inputs.alphabet import encode
from esm2_features.exceptions import MissingDependencyError

# Buffers that fair-esm's network makes itself, or that were left out because they are tied
# to another tensor or used for contacts only.
_NOT_LOADED = ("lm_head.weight", "contact_head.", "rot_emb.inv_freq")


def _import_fair_esm() -> Any:
    """Import the class of fair-esm's network, or explain what is there instead."""
    needs = "Comparing with fair-esm needs the package fair-esm"
    install = 'pip install "esm2-features[verify]"'
    try:
        return importlib.import_module("esm.model.esm2").ESM2
    except (ImportError, AttributeError) as error:
        if isinstance(error, ImportError) and (error.name or "esm").partition(".")[0] != "esm":
            raise  # fair-esm is installed, but something that it needs is not
        path = _path_of_esm()
        if path is None:
            raise MissingDependencyError(
                f"{needs}, which is not installed. Install it with: {install}"
            ) from error
        names = dict.fromkeys(packages_distributions().get("esm", []))
        packages = " and ".join(f"{name} {version(name)}" for name in names)
        raise MissingDependencyError(
            f"{needs}, but the module esm here is not fair-esm's: {path}"
            f"{f', installed by {packages}' if packages else ''} ({error}). PyPI's esm and "
            "fair-esm both install the module esm, so uninstall the other one first: "
            f"pip uninstall esm fair-esm && {install}"
        ) from error


def _path_of_esm() -> str | None:
    """Give the file of the module esm, whether or not it can be imported; None if there is none."""
    module = sys.modules.get("esm")
    if module is not None:
        return str(getattr(module, "__file__", None) or "a module without a file")
    spec = find_spec("esm")
    return None if spec is None else str(spec.origin)


class Reference:
    """fair-esm's ``ESM2`` with the weights of a checkpoint, in float32 on the CPU.

    Source: ``esm/model/esm2.py`` of the package fair-esm 2.0.0, imported, not copied.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        shape = checkpoint.architecture
        network_class = _import_fair_esm()
        with torch.device("meta"):
            self._network: Any = network_class(
                shape.layers, shape.dim, shape.heads, alphabet="ESM-1b"
            )
        # Parameters only: on the meta device there is no random start to be overwritten.
        tensors = {name: tensor.float() for name, tensor in checkpoint.load().items()}
        inv_freq = {name: t for name, t in tensors.items() if name.endswith("rot_emb.inv_freq")}
        missing, unexpected = self._network.load_state_dict(tensors, strict=False, assign=True)
        left = [name for name in missing if not any(part in name for part in _NOT_LOADED)]
        assert not left, left
        assert not unexpected, unexpected
        self._network.lm_head.weight = self._network.embed_tokens.weight
        self._compute_rotary(inv_freq)
        self._network.eval()

    def _compute_rotary(self, stored: dict[str, Tensor]) -> None:
        """Compute the rotary frequencies as fair-esm does, if the checkpoint has none."""
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
        """Run one row of tokens: (tokens,)."""
        result = self._network(tokens, repr_layers=layers)
        representations = {layer: x[0] for layer, x in result["representations"].items()}
        return representations, result["logits"][0]

    @torch.no_grad()
    def maps(
        self, sequence: str, regression: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run one sequence by itself; give its attention and, with a regression, its contacts."""
        tokens = torch.from_numpy(encode(sequence)).long()[None]
        attentions = self._network(tokens, need_head_weights=True)["attentions"]
        if regression is None:
            return attentions[0], None
        head = self._network.contact_head
        weight, bias = (torch.nn.Parameter(part.float()) for part in regression)
        head.regression.weight, head.regression.bias = weight, bias
        return attentions[0], head(tokens, attentions)[0]
