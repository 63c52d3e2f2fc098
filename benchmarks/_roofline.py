"""The roofline: what a batch could reach on a machine, by how much it computes for what it moves.

No more than the machine's matrix products, and no more than memory can feed, when each batch reads
all weights once and every intermediate result goes to memory and back. Where these fit into the
processor's caches, a point may lie above the slope.

Source: Williams et al., "Roofline", Communications of the ACM 52, 2009.

Never here: how fast anything embeds.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.workloads import flops, shape_of

PEPTIDE = 30
"""Residues of the sequences of a batch. With its two special tokens, a peptide of 30 fills a token
budget that is a power of two without a rest."""

# Numbers that a block moves for each token, in units of dim, by operation: read + written.
RESIDUAL_STREAM = 1 + 1 + (1 + 1) + (1 + 1)
"""In float32 at every precision: read by two norms, and read and written by two additions."""
OF_PRODUCTS = (
    (1 + 1)  # written by the norms
    + (1 + 3)  # queries, keys and values
    + (2 + 2)  # rotary embedding
    + (3 + 1)  # attention, whose maps are never in memory
    + (1 + 1)  # output
    + (1 + 4)  # feed-forward, up; GELU is part of it
    + (4 + 1)  # feed-forward, down
    + (1 + 1)  # read by the additions
)
"""In the precision of the products."""


def memory_bandwidth(copied_bytes: int, repetitions: int = 5) -> float:
    """Measure how fast memory is copied by all threads, in GB/s.

    Reading and writing both count; that a processor may read what it is about to overwrite does
    not. The fastest repetition counts.

    Parameters
    ----------
    copied_bytes : int
    repetitions : int, default=5

    Returns
    -------
    bandwidth : float
    """
    source = torch.zeros(copied_bytes, dtype=torch.uint8)
    target = torch.ones_like(source)  # written to, so that its pages are there
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * copied_bytes / min(seconds) / 1e9


def arithmetic_intensity(model: str, precision: str, tokens: float) -> float:
    """Say how much a batch of peptides computes for each byte that it moves.

    Parameters
    ----------
    model : str
        Name of a shape.
    precision : str
    tokens : float
        Of the batch.

    Returns
    -------
    intensity : float
        FLOP per byte, with all weights read once, and each intermediate result written and read.

    Examples
    --------
    >>> few, many = (arithmetic_intensity("t6_8M", "float32", n) for n in (32, 8192))
    >>> round(few, 1), round(many, 1)
    (12.7, 56.6)
    """
    layers, dim, _ = shape_of(model)
    width = 4 if precision == "float32" else 2
    weights = 12 * layers * dim**2 * width
    activations = layers * dim * (4 * RESIDUAL_STREAM + width * OF_PRODUCTS) * tokens
    computed = flops(model, [PEPTIDE]) / (PEPTIDE + 2) * tokens
    return computed / (weights + activations)


def attainable(result: dict[str, Any], model: str, precision: str, tokens: float) -> float:
    """Say what the roofline allows a batch of so many tokens, in GFLOP/s."""
    fed = result["bandwidth_GB_s"] * arithmetic_intensity(model, precision, tokens)
    return min(result["peaks_GFLOP_s"][model][precision], fed)
