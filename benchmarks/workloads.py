"""What the benchmarks run on: sequences with the lengths of real jobs, and checkpoints.

Residues are drawn by their natural frequencies, weights at random in ESM-2's real shapes: neither
what a sequence says nor what a network has learned changes how long its products take.

Never here: time.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from pathlib import Path

import numpy as np

MIXES = ("proteome", "peptides", "antibody", "mutants")
"""proteome: proteins around 300 residues long, 1022 at most; peptides: 5 to 50 residues; antibody:
variable domains, around 120 residues; mutants: single mutants of one protein of 230 residues."""

Shape = tuple[int, int, int]
"""Layers, dim, heads."""

SHAPES: dict[str, Shape] = {
    "t6_8M": (6, 320, 20),
    "t12_35M": (12, 480, 20),
    "t30_150M": (30, 640, 20),
    "t33_650M": (33, 1280, 20),
}
TINY = {"tiny": (2, 64, 4)}
"""For trials of the benchmarks themselves; no official model has this shape."""

# In per cent, of the residues in Swiss-Prot.
_LETTERS = np.array(list("LAGVESIKRDTPNQFYMHCW"))
_PER_CENT = np.array(
    [
        *(9.65, 8.25, 7.07, 6.86, 6.72, 6.65, 5.91, 5.80, 5.53, 5.46),
        *(5.36, 4.74, 4.06, 3.93, 3.86, 2.92, 2.41, 2.27, 1.38, 1.10),
    ]
)
_PARENT_RESIDUES = 230


def workload(mix: str, residues: int, seed: int = 0) -> list[str]:
    """Draw sequences until they have so many residues in total.

    No sequence comes twice, so that a contender that recognises duplicates gains nothing.

    Parameters
    ----------
    mix : str
        One of `MIXES`.
    residues : int
        The last sequence is the one that reaches them.
    seed : int, default=0
        The same arguments give the same sequences, everywhere.

    Returns
    -------
    sequences : list of str
        In random order of length.

    Raises
    ------
    ValueError
        If there is no such mix, or not so many different mutants.

    Examples
    --------
    >>> [len(sequence) for sequence in workload("peptides", 60)]
    [26, 28, 27]
    """
    if mix not in MIXES:
        raise ValueError(f"Got mix={mix!r} but expected one of {', '.join(MIXES)}.")
    rng = np.random.default_rng([MIXES.index(mix), seed])
    candidates = (
        _mutants(rng) if mix == "mutants" else map(_protein, repeat(rng), _lengths[mix](rng))
    )
    found: dict[str, None] = {}
    total = 0
    for sequence in candidates:
        if sequence not in found:
            found[sequence] = None
            total += len(sequence)
        if total >= residues:
            return list(found)
    raise ValueError(f"Got residues={residues}, but all {mix} that there are have {total}.")


def _protein(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(_LETTERS, length, p=_PER_CENT / _PER_CENT.sum()))


def _mutants(rng: np.random.Generator) -> Iterator[str]:
    """All single substitutions of one protein, in random order."""
    parent = _protein(rng, _PARENT_RESIDUES)
    substitutions = [(i, new) for i, old in enumerate(parent) for new in _LETTERS if new != old]
    for which in rng.permutation(len(substitutions)):
        i, new = substitutions[which]
        yield f"{parent[:i]}{new}{parent[i + 1 :]}"


def _proteome_lengths(rng: np.random.Generator) -> Iterator[int]:
    while True:
        length = round(rng.lognormal(math.log(300), 0.65))
        if 30 <= length <= 1022:  # clipping instead would pile up 3 % of all at the limit
            yield length


def _peptide_lengths(rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield int(rng.integers(5, 51))


def _antibody_lengths(rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield int(np.clip(round(rng.normal(120, 8)), 95, 145))


_lengths: dict[str, Callable[[np.random.Generator], Iterator[int]]] = {
    "proteome": _proteome_lengths,
    "peptides": _peptide_lengths,
    "antibody": _antibody_lengths,
}


def shape_of(name: str) -> Shape:
    """Look a shape up by its name: one of `SHAPES`, or ``"tiny"``."""
    return (SHAPES | TINY)[name]


def flops(shape: str | Shape, lengths: Iterable[int]) -> float:
    """Count what the products of the blocks cost, for sequences that are run without padding.

    Per token and layer, the affine layers have 12 dim² weights, and attention compares with every
    token of the sequence twice; each multiplication goes with an addition. The head that makes
    logits is not counted: no vector needs it.

    Parameters
    ----------
    shape : str or (int, int, int)
        Name of a shape, or layers, dim, heads.
    lengths : iterable of int
        In residues.

    Returns
    -------
    flops : float

    Examples
    --------
    >>> flops((1, 10, 2), [8])
    28000.0
    """
    layers, dim, _ = shape_of(shape) if isinstance(shape, str) else shape
    tokens = np.fromiter(lengths, float) + 2
    return float((24 * layers * dim**2 * tokens + 4 * layers * dim * tokens**2).sum())


def write_checkpoint(shape_name: str, folder: str | os.PathLike[str], seed: int = 0) -> Path:
    """Write random weights of a real shape, as fair-esm's release has them.

    No bias is 0 and no gain of a norm is 1, so that whoever forgets one gets other vectors.

    Parameters
    ----------
    shape_name : str
        One of `SHAPES`, or ``"tiny"``.
    folder : path
        Made if it is not there. A file that is there already is used again.
    seed : int, default=0

    Returns
    -------
    path : Path
        Of the weights; the contact regression lies next to it. Its name begins with ``esm2``, by
        which fair-esm knows the architecture.
    """
    path = Path(folder) / f"esm2_{shape_name}_random{seed}.pt"
    if path.exists():
        return path
    import torch
    from esm.model.esm2 import ESM2

    layers, dim, heads = shape_of(shape_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ESM2(layers, dim, heads, alphabet="ESM-1b", token_dropout=True).eval()
        _make_every_parameter_matter(model)
    state = model.state_dict()
    contacts = {name: state.pop(name) for name in list(state) if name.startswith("contact_head.")}
    prefixed = {
        ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in state.items()
    }
    settings = argparse.Namespace(
        encoder_layers=layers,
        encoder_embed_dim=dim,
        encoder_attention_heads=heads,
        token_dropout=True,
    )
    torch.save({"model": contacts}, path.with_name(f"{path.stem}-contact-regression.pt"))
    # The weights come last and by renaming: where the file is, all is there.
    unfinished = path.with_suffix(".tmp")
    torch.save({"cfg": {"model": settings}, "model": prefixed}, unfinished)
    unfinished.replace(path)
    return path


def _make_every_parameter_matter(model: object) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.randn(parameter.shape)
                is_gain = "norm" in name and name.endswith("weight")
                parameter.copy_(1 + 0.2 * noise if is_gain else 0.1 * noise)
