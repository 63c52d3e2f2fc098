"""fair-esm's own network on the same weights, for `verify` and the tests."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from esm2_features._checkpoints import Checkpoint
from esm2_features._inputs.alphabet import encode
from esm2_features.exceptions import MissingDependencyError

# Tied to another tensor, in a file of its own, and given by `Reference` itself.
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


Rows = dict[str, NDArray[Any]]
"""Numbers by layer, (rows, width): representations or logits of residues, or rows of maps."""


class _SoftmaxOf(TorchFunctionMode):
    """Compute softmax in one precision; fair-esm asks for float32 in any network."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.softmax:
            kwargs["dtype"] = self._dtype
        return func(*args, **kwargs)


class Reference:
    """fair-esm's ``ESM2`` with the weights of a checkpoint, on the CPU.

    In float64 it is the standard for every float32 result: it rounds 5e8 times finer. The rotary
    frequencies are float32 numbers in both, as in the official checkpoints.

    Source: ``esm/model/esm2.py`` of the package fair-esm 2.0.0, imported, not copied.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        shape = checkpoint.architecture
        network_class = _import_fair_esm()
        with torch.device("meta"):
            self._network: Any = network_class(
                shape.layers, shape.dim, shape.heads, alphabet="ESM-1b"
            )
        # Parameters only: on the meta device there is no random start to be overwritten.
        tensors = {name: tensor.float() for name, tensor in checkpoint.load().items()}
        self.has_head = "lm_head.bias" in tensors
        if not self.has_head:
            self._network.lm_head = torch.nn.Identity()
        for i, layer in enumerate(self._network.layers):
            rotary = layer.self_attn.rot_emb
            stored = tensors.pop(f"layers.{i}.self_attn.rot_emb.inv_freq", None)
            rotary.inv_freq = type(rotary)(layer.self_attn.head_dim).inv_freq
            if stored is not None:
                rotary.inv_freq = stored
        missing, unexpected = self._network.load_state_dict(tensors, strict=False, assign=True)
        left = [name for name in missing if not any(part in name for part in _NOT_LOADED)]
        assert not left, left
        assert not unexpected, unexpected
        if self.has_head:
            self._network.lm_head.weight = self._network.embed_tokens.weight
        # Contacts are computed by `maps` alone, from a regression that may be in another file.
        self._contact_head, self._network.contact_head = self._network.contact_head, None
        self._network.eval().to(dtype)
        self._dtype = dtype

    def layers(self, sequence: str) -> Rows:
        """Run one sequence by itself; give all layers by number, and logits if there is a head."""
        result = self._run(sequence, repr_layers=range(len(self._network.layers) + 1))
        rows = {str(layer): x[0].numpy() for layer, x in result["representations"].items()}
        return rows | ({"logits": result["logits"][0].numpy()} if self.has_head else {})

    @torch.no_grad()
    def maps(self, sequence: str, regression: tuple[Tensor, Tensor] | None = None) -> Rows:
        """Run one sequence by itself; give its attention and, with a regression, its contacts.

        All heads of attention stand one below the other.
        """
        attentions = self._run(sequence, need_head_weights=True)["attentions"]
        rows = {"attention": attentions.flatten(0, -2).numpy()}
        if regression is not None:
            head = self._contact_head
            weight, bias = (torch.nn.Parameter(part.to(self._dtype)) for part in regression)
            head.regression.weight, head.regression.bias = weight, bias
            rows["contacts"] = head(_tokens(sequence), attentions)[0].numpy()
        return rows

    @torch.no_grad()
    def _run(self, sequence: str, **wanted: Any) -> Any:
        with _SoftmaxOf(self._dtype):
            return self._network(_tokens(sequence), **wanted)


def _tokens(sequence: str) -> Tensor:
    return torch.from_numpy(encode(sequence)).long()[None]
