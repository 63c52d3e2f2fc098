"""Which device computes, what it can hold, and how exact its arithmetic is.

Never here: models, batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from esm2_features.exceptions import InputError

_TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768, "mps": 8192}


def resolve_device(device: str) -> torch.device:
    """Turn the user's word for a device into one that is there.

    Parameters
    ----------
    device : str
        ``"auto"`` (a CUDA card, else Apple's GPU, else the CPU) or a PyTorch device.

    Returns
    -------
    device : torch.device

    Raises
    ------
    InputError
        If the device does not exist on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        # An allocation is the only test that covers every kind and number of device.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"Got device={device!r}, which this machine cannot use: {reason}. "
            f'Pass device="auto" or device="cpu".'
        ) from error


def default_batch_tokens(device: torch.device) -> int:
    """Tokens that one forward pass takes when the user does not say.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    tokens : int
        On a CPU, where the intermediate results still fit into the caches.
    """
    return _TOKENS_PER_BATCH.get(device.type, _TOKENS_PER_BATCH["mps"])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device's memory is full.

    Parameters
    ----------
    error : BaseException

    Returns
    -------
    answer : bool
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a CPU, PyTorch reports a failed allocation as a plain RuntimeError.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
    )


def release_memory(device: torch.device) -> None:
    """Give unused blocks back to the device, after it ran out of memory.

    Parameters
    ----------
    device : torch.device
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep TensorFloat-32 and bfloat16 out of float32 products, whatever the user has set.

    The settings are those of the whole process; they are put back on leaving.

    Yields
    ------
    None
    """
    # PyTorch knows them under these names; its type stubs do not.
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    saved = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, saved, strict=True):
            backend.fp32_precision = precision
