"""Which device computes, what it can hold, and how exact its arithmetic is.

Never here: models, batches.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from esm2_features.exceptions import InputError

# What a failed allocation is called where PyTorch has no class of its own for it: on a CPU, in
# cuBLAS, and on Apple's GPU.
_SAID_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Invalid buffer size",
)

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
    name = device
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        # An allocation is the only test that covers every kind and number of device. It also
        # gives "cuda" its number, so that a device has one name.
        return torch.empty(0, device=name).device
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
        A CPU gets few, so that intermediate results stay in its caches; a GPU many, to be busy.
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
    text = str(error)
    return isinstance(error, RuntimeError) and any(said in text for said in _SAID_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give unused blocks back to the device, or to the system.

    Parameters
    ----------
    device : torch.device
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif _malloc_trim is not None:
        _malloc_trim(0)


def keep_freed_memory(device: torch.device) -> None:
    """Let what a pass frees be used by the next one, instead of going back to the system.

    What the system gives, it gives page by page, and empty: 5 to 10 % of a pass. glibc learns
    from the largest block that it has seen freed, up to 32 MiB, which blocks are worth keeping;
    this shows it one. Elsewhere it does nothing.

    Parameters
    ----------
    device : torch.device
        Nothing is done for others than a CPU.
    """
    if device.type == "cpu":
        torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)


def _find_malloc_trim() -> Callable[[int], int] | None:
    """Look for glibc's function that returns freed memory; elsewhere, it returns by itself."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found


_malloc_trim = _find_malloc_trim()


_GRAIN = 1 << 15
"""Numbers that PyTorch gives to one thread of a CPU at least (``at::internal::GRAIN_SIZE``)."""


def even_rows(x: torch.Tensor) -> Iterator[slice]:
    """Cut a tensor so that an elementwise operation never divides a row between threads.

    PyTorch divides all numbers evenly between its threads, so that with some numbers of threads
    a row is begun by one and ended by another. Where an operation rounds otherwise at the end of
    a stretch than within it (products of complex numbers do), the outcome would depend on how
    many rows there are.

    Parameters
    ----------
    x : Tensor of shape (rows, ...)

    Yields
    ------
    rows : slice
        Together they cover all rows, in order. Most often it is one.
    """
    count = len(x)
    if x.device.type != "cpu" or not count:
        yield slice(0, count)
        return
    width, threads = x[0].numel(), torch.get_num_threads()
    done = 0
    whole = count - count % threads
    if whole * width >= threads * _GRAIN:  # as many rows for each thread
        yield slice(0, whole)
        done = whole
    at_a_time = max(1, _GRAIN // width)  # so few that one thread does it
    for start in range(done, count, at_a_time):
        yield slice(start, min(count, start + at_a_time))


class _Float32Settings:
    """PyTorch's settings for float32 products, which are those of the whole process.

    Several threads may be inside at once: the first one in saves and sets, the last one out
    puts back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: list[Callable[[], None]] = []

    def enter(self) -> None:
        """Make float32 products exact."""
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._restore = _make_exact()

    def leave(self) -> None:
        """Put back what the user had set, if no other thread still computes."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for restore in self._restore:
                    restore()


_settings = _Float32Settings()


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute at the precision of the tensors, whatever the user has set around it.

    Keeps TensorFloat-32 and bfloat16 out of float32 products, and autocast out altogether.

    Parameters
    ----------
    device : torch.device

    Yields
    ------
    None
    """
    _settings.enter()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _settings.leave()


def _make_exact() -> list[Callable[[], None]]:
    """Forbid rounding of float32 inputs; what to call to allow it again."""
    # PyTorch knows them under these names; its type stubs do not.
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return [partial(torch.set_float32_matmul_precision, before)]
    restore: list[Callable[[], None]] = [
        partial(setattr, b, "fp32_precision", b.fp32_precision) for b in backends
    ]
    for backend in backends:
        backend.fp32_precision = "ieee"
    return restore
