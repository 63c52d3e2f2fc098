"""Prediction intervals from the residuals of cross-validation, with families kept together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def half_width(residuals: Sequence[float], groups: Sequence[int] | None, coverage: float) -> float:
    """Give the half-width of intervals for sequences of new families; infinite for too few.

    Conformal prediction with residuals of cross-validation (Vovk, 2015; Barber et al., 2021), of
    whole families (Lee, Barber and Willett, 2023): each family has the same weight, and so has the
    new one, whose residual may be of any size. Without ``groups``, each row is a family.
    """
    sizes = np.abs(residuals)
    families = np.arange(len(sizes)) if groups is None else groups
    _, family, counts = np.unique(families, return_inverse=True, return_counts=True)
    order = np.argsort(sizes)
    reached = np.cumsum(1 / counts[family[order]]) / (len(counts) + 1)
    at = int(np.searchsorted(reached, coverage - 1e-12))
    return float(sizes[order[at]]) if at < len(sizes) else float("inf")


def greatest_coverage(residuals: Sequence[float], groups: Sequence[int] | None) -> float:
    """Give the greatest coverage for which intervals are finite."""
    n = len(residuals) if groups is None else len(set(groups))
    return n / (n + 1)
