"""Which device computes, what it can hold, and how exact its arithmetic is."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from joblib import cpu_count
from numpy.typing import NDArray

from esm2_features._model.packing import FEWEST_TOKENS, cuda_budget
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

_TOKENS_OF_CORE = 512
_MOST_TOKENS_OF_CPU = 1 << 14
_TOKENS_OF_WORKER = 1024
"""Tokens of a pass that suit a worker, which has some cores of a CPU."""
_MOST_WORKERS = 8
"""Workers on one CPU: they take turns in Python between the steps of their passes."""
_TOKENS_OF_MPS = 8192

_setting_threads = threading.Lock()

_PENDING_BYTES = 1 << 28
"""Bytes of results that are on their way to the host, in pinned memory, which PyTorch keeps."""


def resolve_device(device: str) -> torch.device:
    """Turn the user's word for a device into one that is there and computes.

    Warns once if ``"auto"`` finds a GPU that cannot compute, and takes the CPU.
    """
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        return _resolve_usable([name])[0]
    try:
        # An allocation covers every kind and number of device, and gives "cuda" its number.
        resolved = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"Got device={device!r}, which this machine cannot use: {_first_line(error)}. "
            f'Pass device="auto" or device="cpu".'
        ) from error
    if failure := _failure_of(resolved):
        raise InputError(
            f"Got device={device!r}, which cannot compute: {failure}. "
            f'{_remedy(resolved)}, or pass device="cpu".'
        )
    return resolved


def _resolve_usable(names: Sequence[str]) -> list[torch.device]:
    """Resolve those devices that compute, with a warning for each other one; the CPU if none do."""
    usable = []
    for name in names:
        try:
            usable.append(resolve_device(name))
        except InputError as error:
            _warn_once(f"A GPU is left out. {error}")
    return usable or [torch.device("cpu")]


@lru_cache
def _failure_of(device: torch.device) -> str:
    """Run kernels on a device and wait for them; return what went wrong, if anything.

    PyTorch lists and allocates on cards that it has no kernels for.
    """
    if device.type not in ("cuda", "mps"):
        return ""
    try:
        found = torch.full((8,), 3.0, device=device).square().sum().item()
    except RuntimeError as error:
        # The weights, which come next, have an error of their own for a full memory.
        return "" if is_out_of_memory(error) else _first_line(error)
    return "" if found == 72 else f"eight times 3 x 3 is {found} there, not 72"


@lru_cache
def _warn_once(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _remedy(device: torch.device) -> str:
    """Say which PyTorch computes on a device."""
    if device.type != "cuda":
        return "Update PyTorch and macOS"
    major, minor = torch.cuda.get_device_capability(device)
    built_for = ", ".join(torch.cuda.get_arch_list()) or "no card"
    return (
        f"The card is {title_of(device)} (sm_{major}{minor}), and PyTorch {torch.__version__} is "
        f"built for {built_for}: install a build that names sm_{major}{minor} (older cards need "
        "one for an older CUDA, see https://pytorch.org/get-started/previous-versions/)"
    )


@dataclass(frozen=True)
class DeviceMap:
    """Where a network is."""

    devices: tuple[torch.device, ...]  # those that compute; the first one is home
    # whether blocks rest in the host's memory, and come to the device when they are to run
    is_streamed: bool = False

    @property
    def home(self) -> torch.device:
        """The device at which a pass begins and ends."""
        return self.devices[0]

    def __str__(self) -> str:
        names = [str(device) for device in self.devices]
        return "+".join([*names, "cpu"] if self.is_streamed else names)


def resolve_device_map(name: str) -> DeviceMap:
    """Turn the user's word for where one network is to be into a device map."""
    first, *others = name.split("+")
    is_streamed = others == ["cpu"]
    names = [first] if is_streamed else [first, *others]
    devices = tuple(resolve_device(one) for one in names)
    if len(set(devices)) < len(devices):
        raise InputError(f"Got device={name!r}, in which one device stands twice. Name each once.")
    return DeviceMap(devices, is_streamed)


def resolve_devices(names: Sequence[str], precision: str) -> list[DeviceMap]:
    """Turn the user's words for devices into those that are there, each of which occurs once.

    Raises InputError for bfloat16 on a card that has no units for it.
    """
    if tuple(names) == ("all",):
        cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        device_maps = [DeviceMap((one,)) for one in _resolve_usable(cards or ["auto"])]
    else:
        device_maps = [resolve_device_map(name) for name in names]
    gpus = [device for one in device_maps for device in one.devices if device.type != "cpu"]
    twice = [device for device in gpus if gpus.count(device) > 1]
    if twice:
        raise InputError(
            f"Got device={list(names)!r}, in which {twice[0]} is meant twice. Name each card once."
        )
    for device in gpus:
        if precision == "bfloat16" and device.type == "cuda":
            _check_bfloat16(device)
    return device_maps


def _check_bfloat16(device: torch.device) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise InputError(
            f"Got precision='bfloat16' on {device} ({title_of(device)}, compute capability "
            f"{major}.{minor}), which has no units for it; they begin with 8.0. Use "
            'precision="float16", which is fast on this card and more exact.'
        )


def default_batch_tokens(device: torch.device, dim: int) -> int:
    """Tokens of a forward pass, unless the user chooses."""
    if device.type == "cpu":
        return max(FEWEST_TOKENS, min(_MOST_TOKENS_OF_CPU, _TOKENS_OF_CORE * cores_of_cpu()))
    if device.type != "cuda":
        return _TOKENS_OF_MPS
    free, _ = torch.cuda.mem_get_info(device)
    # What PyTorch holds and does not use is free for us, too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return cuda_budget(free, dim)


def cores_of_cpu() -> int:
    """Cores that a pass on a CPU uses."""
    return min(torch.get_num_threads(), _cores())


def workers_on(device: torch.device, budget: int, *, is_alone: bool) -> int:
    """Give the number of threads that keep a device busy, alone or with others that share a run.

    Those on a CPU share its cores, and so many tokens at a time: passes side by side wait for each
    other less often than the threads of one pass do.
    """
    if device.type == "cpu" and is_alone:
        return max(1, min(_MOST_WORKERS, cores_of_cpu(), budget // _TOKENS_OF_WORKER))
    return 2 if device.type == "cuda" and not is_alone else 1


def title_of(device: torch.device) -> str:
    """Give the name of a CUDA card, as its driver has it, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def send(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Bring an array to a device, without waiting for it to arrive where that is possible."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetch(tensor: torch.Tensor) -> Callable[[], NDArray[Any]]:
    """Begin to copy a tensor to the host; the returned function waits for it."""
    if tensor.device.type != "cuda":
        array: NDArray[Any] = tensor.cpu().numpy()
        return lambda: array
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait() -> NDArray[Any]:
        arrived.synchronize()
        found: NDArray[Any] = host.numpy()
        return found

    return wait


class Copies:
    """Copies to the host that are under way, and what is to be done with each.

    Where a device computes by itself, nobody waits before `finish`, unless they are large.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Callable[[], object]]] = deque()

    def begin(self, tensor: torch.Tensor, use: Callable[[NDArray[Any]], object]) -> None:
        """Begin a copy; ``use`` gets it, and may not keep it: its memory is used again."""
        arriving = fetch(tensor)
        self._pending.append((tensor.nbytes, lambda: use(arriving())))
        most = _PENDING_BYTES if tensor.device.type == "cuda" else 0
        while sum(size for size, _ in self._pending) > most:
            self._pending.popleft()[1]()

    def finish(self) -> None:
        """Wait for the copies that have not been used yet."""
        while self._pending:
            self._pending.popleft()[1]()


def batches_ahead(device: torch.device) -> int:
    """Give the number of passes to begin before the results of an earlier one are waited for."""
    return 2 if device.type == "cuda" else 0


@contextmanager
def within_cores(device: torch.device, sharing: int = 1) -> Iterator[None]:
    """Use no more threads than the process has cores, and put back what the user has set.

    PyTorch counts the cores of the machine. A container or a batch system may have given the
    process fewer, and threads that wait for a core make all others wait for them.
    """
    if device.type != "cpu":
        yield
        return
    with _setting_threads:
        before = torch.get_num_threads()
        most = max(1, min(before, _cores()) // sharing)
        if most < before:
            # The setting is this thread's own, and what threads will have that are new to PyTorch.
            # For these, a thread that ends at once puts it back.
            torch.set_num_threads(most)
            puts_back = threading.Thread(target=torch.set_num_threads, args=(before,))
            puts_back.start()
            puts_back.join()
    try:
        yield
    finally:
        if most < before:
            torch.set_num_threads(before)


def _cores() -> int:
    """Cores of this process; joblib knows of containers, affinity and ``LOKY_MAX_CPU_COUNT``."""
    if os.environ.get("JOBLIB_MULTIPROCESSING") == "0":  # joblib would say 1
        return torch.get_num_threads()
    return max(1, int(cpu_count()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device's memory is full."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(said in text for said in _SAID_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give unused blocks back to the device, or to the system."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif _malloc_trim is not None:
        _malloc_trim(0)


def keep_freed_memory(device: torch.device) -> None:
    """Let what a pass frees be used by the next one, instead of going back to the system."""
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
    """Cut a tensor so that an elementwise operation never divides a row between threads."""
    start, count = 0, len(x)
    if x.device.type != "cpu":
        yield slice(0, count)
        return
    width, threads = x[:1].numel(), torch.get_num_threads()
    while start < count:
        rows = count - start
        while rows % min(threads, -(-rows * width // _GRAIN)):  # as many for each thread
            rows -= 1
        yield slice(start, start + rows)
        start += rows


class _Settings:
    """PyTorch's settings for float32 products and attention, which are those of the whole process.

    Several threads may be inside at once: the first one in saves and sets, the last one out
    puts back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: list[Callable[[], None]] = []

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._restore = _change_settings()

    def leave(self) -> None:
        """Put back what the user had set, if no other thread still computes."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for restore in self._restore:
                    restore()


_settings = _Settings()


@contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """Compute at the precision of the tensors, whatever the user has set around it.

    Keeps TensorFloat-32 and bfloat16 out of float32 products, and autocast out altogether. cuDNN's
    attention is off, which makes a plan for each new shape; most batches here have some.
    """
    _settings.enter()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        _settings.leave()


@contextmanager
def computing(device: torch.device, sharing: int = 1) -> Iterator[None]:
    """Compute exactly, without gradients, and with no more threads than there are cores."""
    with within_cores(device, sharing), exact_arithmetic(device), torch.inference_mode():
        yield


def _change_settings() -> list[Callable[[], None]]:
    """Forbid rounding of float32 inputs, and cuDNN's attention; return what puts both back."""
    with_cudnn = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    restore: list[Callable[[], None]] = [partial(torch.backends.cuda.enable_cudnn_sdp, with_cudnn)]
    # PyTorch knows them under these names; its type stubs do not.
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        getattr(torch.backends.mkldnn, "matmul", None),
    ]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return [*restore, partial(torch.set_float32_matmul_precision, before)]
    for backend in backends:
        own = backend.fp32_precision
        # What it has from a wider setting, such as torch.backends.fp32_precision, is not its own,
        # and follows that setting again afterwards.
        backend.fp32_precision = "none"
        own = "none" if backend.fp32_precision == own else own
        restore.append(partial(setattr, backend, "fp32_precision", own))
        backend.fp32_precision = "ieee"
    return restore
