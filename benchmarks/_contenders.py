"""Who takes part in `compare`: this library and its peers, each with one way to be called.

Each gets sequences as strings and gives the mean of the last representation over the residues, in
float32, in the order of the input.

Never here: how each is called (_work.py, _hugging_face.py), rounds, tables.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.workloads import Shape

OURS = "esm2_features"
PEERS = {
    "fair-esm": ("esm",),
    "transformers": ("transformers",),
    "onnxruntime": ("onnxruntime", "transformers", "onnx", "onnxscript"),
    "openvino": ("openvino", "transformers", "onnx", "onnxscript"),
    "esm-cpp": ("esm_cpp", "safetensors", "transformers"),
}
"""What each peer needs to be installed."""

_PRECISIONS = {
    "fair-esm": ("float32",),
    "transformers": ("float32", "bfloat16", "float16"),
    "onnxruntime": ("float32",),
    "openvino": ("float32", "bfloat16"),
    "esm-cpp": ("float32",),
}
_SETTINGS = {
    "fair-esm": ("extract.py", "tuned"),
    "transformers": ("default", "tuned"),
    "onnxruntime": ("tuned",),
    "openvino": ("tuned",),
    "esm-cpp": ("default", "int8"),
}
EXPORTED = ("onnxruntime", "openvino")
"""Peers that run a graph that is exported from transformers."""

ON_CPUS = (*EXPORTED, "esm-cpp")

ONE_SEQUENCE = 1
BUDGETS = {
    "cpu": (ONE_SEQUENCE, 512, 1024, 2048, 4096, 8192),
    "cuda": (1024, 4096, 8192, 16384, 32768, 65536),
}
"""Tokens per pass, padding included, from which the tuned ways choose."""


@dataclass(frozen=True)
class Contender:
    """A library, at one precision, called in one way."""

    library: str
    precision: str
    setting: str = ""

    @property
    def name(self) -> str:
        """How it is called in tables; fair-esm has one precision, and a default needs no word."""
        has_one = self.library == "fair-esm" or self.setting == "int8"
        precision = "" if has_one else self.precision
        setting = "" if self.setting == "default" else self.setting
        return " ".join(word for word in (self.library, precision, setting) if word)


BASELINE = Contender("fair-esm", "float32", "extract.py")
"""Whose vectors are the reference, and whose speed is 1."""


@dataclass(frozen=True)
class Job:
    """What a contender has to do.

    Attributes
    ----------
    checkpoint : Path
        fair-esm's ``.pt``.
    graph : Path
        Of the exported network, for those that need one.
    shape : (int, int, int)
        Layers, dim, heads.
    sequences : tuple of str
    device : str
    threads : int
    budgets : tuple of int
        From which the tuned ways choose, in tokens.
    probe_residues : int
        On how many residues they try them.
    """

    checkpoint: Path
    graph: Path
    shape: Shape
    sequences: tuple[str, ...]
    device: str
    threads: int
    budgets: tuple[int, ...]
    probe_residues: int


def contenders(
    peers: Iterable[str], precisions: Sequence[str], device: str
) -> tuple[list[Contender], dict[str, str]]:
    """List who takes part.

    Parameters
    ----------
    peers, precisions : sequence of str
    device : str

    Returns
    -------
    found : list of Contender
    left_out : dict of str to str
        Peers that cannot take part, and why.
    """
    found = [Contender(OURS, precision) for precision in precisions]
    left_out = {}
    for peer in peers:
        missing = [name for name in PEERS[peer] if importlib.util.find_spec(name) is None]
        if missing:
            left_out[peer] = f"{', '.join(missing)} not installed"
        elif peer in ON_CPUS and torch.device(device).type != "cpu":
            left_out[peer] = "compared on CPUs only"
        elif peer == BASELINE.library:  # the baseline of every precision
            found += [Contender(peer, "float32", setting) for setting in _SETTINGS[peer]]
        else:
            found += [
                Contender(peer, precision, setting)
                for precision in precisions
                if precision in _PRECISIONS[peer]
                for setting in _SETTINGS[peer]
            ]
    return found, left_out
