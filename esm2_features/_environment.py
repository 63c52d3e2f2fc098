"""What a process of our own asks of the libraries beneath torch, before torch is loaded.

They read environment variables, once. In a process that is the user's, these are the user's affair;
the command line, the server and the actors of Ray are ours. What is set already stays.
"""

from __future__ import annotations

import os

_SPINS = "1000"
_PRODUCTS = "64"


def limit_openmp_spinning() -> None:
    """Let threads that wait for another thread sleep soon, instead of keeping a core busy."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def keep_few_products() -> None:
    """Let torch's libraries keep few of the products that they prepare, one for each shape.

    Shapes hardly ever come again, and a thousand of each kind (what they keep by themselves) take
    some 200 MB after a million peptides.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, _PRODUCTS)


def is_offline() -> bool:
    """Whether ``ESM2_FEATURES_OFFLINE`` forbids downloads."""
    chosen = os.environ.get("ESM2_FEATURES_OFFLINE", "")
    return chosen.strip().lower() in {"1", "true", "yes", "on"}
