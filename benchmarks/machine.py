"""The machine of a benchmark: what it is, who uses it, what memory, and how fast it multiplies.

Never here: sequences, networks.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

PACKAGES = (
    *("esm2-features", "torch", "numpy", "fair-esm", "transformers"),
    *("onnxruntime", "openvino", "esm-cpp", "scikit-learn"),
)
_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
)
_PEAK_ROWS = 2048
_PEAK_SECONDS = 0.4


# -------------------------------------------------------------- description


def describe() -> dict[str, Any]:
    """Say on what a benchmark ran.

    Returns
    -------
    description : dict
        ``cpu``, ``cores``, ``memory_GB``, ``flags`` (instructions that half precision depends on),
        ``gpu`` (None without one), ``os``, ``python``, ``threads`` (torch's) and ``versions`` of
        those of `PACKAGES` that are installed.
    """
    info = _cpu_info()
    flags = set(info.get("flags", "").split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "memory_GB": _memory_gigabytes(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu_info() -> dict[str, str]:
    """Fields of the first processor, where Linux tells."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def _memory_gigabytes() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError):  # Windows has no sysconf, others not these names
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# -------------------------------------------------------------------- noise


class Stopwatch:
    """Take the time of a block, and how much of the machine others used meanwhile.

    Others are all processes but this one and its descendants; where the machine is virtual, also
    its host, as far as it tells (steal). The system counts in hundredths of a second, so in a
    block of less than a tenth of a second ``foreign`` means little.

    Attributes
    ----------
    seconds : float
    foreign : float
        Share of all cores, from 0 to 1; NaN where the system does not tell (it is read from
        ``/proc/stat``).

    Examples
    --------
    >>> with Stopwatch() as watch:
    ...     total = sum(range(1000))
    >>> watch.seconds > 0
    True
    """

    seconds: float
    foreign: float

    def __enter__(self) -> Stopwatch:
        self._busy, self._own = _busy_seconds(), _own_seconds()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        share = others / max(self.seconds, 1e-9) / (os.cpu_count() or 1)
        self.foreign = min(max(share, 0.0), 1.0) if share == share else share


def _busy_seconds() -> float:
    """Read what all cores have worked since the start, in seconds of one core."""
    file = Path("/proc/stat")
    if not file.exists():
        return float("nan")
    fields = [int(field) for field in file.read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, soft_irq, steal = fields[:8]
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Read what this process and its descendants have worked, ended ones included."""
    own = os.times()
    ended = own.user + own.system + own.children_user + own.children_system
    return ended + _living_descendants_seconds()


def _living_descendants_seconds() -> float:
    """Add up what living children have worked; the system adds it to ours when they end."""
    try:
        import psutil
    except ImportError:
        return 0.0
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


# ------------------------------------------------------------------- memory


def forget_peak_memory(device: str = "cpu") -> None:
    """Begin anew with what `peak_memory` gives, where the system allows it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (switch := Path("/proc/self/clear_refs")).exists():
        switch.write_text("5")


def peak_memory(device: str = "cpu") -> int:
    """Read the most memory that this process has had, in bytes.

    Parameters
    ----------
    device : str, default="cpu"
        On a GPU, it is what torch has allocated there; else all that is resident.

    Returns
    -------
    peak : int
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, it leaves out what the parent had
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --------------------------------------------------------------------- peak


def gemm_peak(
    dim: int, precision: str, device: str = "cpu", seconds: float = _PEAK_SECONDS
) -> float:
    """Measure how fast this machine does ESM-2's matrix products, and nothing else.

    The four products of a block (queries, keys and values; output; the two of the feed-forward
    network) of 2048 tokens, each as often as fits into its seconds, and 4 times at least. The
    fastest of each counts, so that a disturbance cannot lower the peak; shapes weigh as much as
    they have to compute.

    Parameters
    ----------
    dim : int
    precision : {"float32", "bfloat16", "float16"}
    device : str, default="cpu"
    seconds : float, default=0.4
        For each of the four.

    Returns
    -------
    peak : float
        GFLOP per second, with the threads that torch has at present. On x86, the weights are
        reordered for oneDNN before, where PyTorch offers that.
    """
    shapes = [(dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim)]
    fastest = sum(
        _fastest(_product(*shape, precision, device), device, seconds) for shape in shapes
    )
    return sum(2 * _PEAK_ROWS * inner * outer for inner, outer in shapes) / fastest / 1e9


def _product(inner: int, outer: int, precision: str, device: str) -> Callable[[], object]:
    dtype = getattr(torch, precision)
    x = torch.randn(_PEAK_ROWS, inner).to(device, dtype)
    weight = torch.randn(outer, inner).to(device, dtype)
    bias = torch.randn(outer).to(device, dtype)
    if torch.device(device).type == "cpu":
        try:
            ops = torch.ops.mkldnn
            packed = ops._reorder_linear_weight(weight, _PEAK_ROWS)
            ops._linear_pointwise(x, packed, bias, "none", [], "none")
        except (AttributeError, RuntimeError):  # not in this PyTorch, or not on this processor
            pass
        else:
            return lambda: ops._linear_pointwise(x, packed, bias, "none", [], "none")
    return lambda: torch.nn.functional.linear(x, weight, bias)


def _fastest(product: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the fastest repetition."""
    finish = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    fastest, repetitions, began = float("inf"), 0, time.perf_counter()
    with torch.inference_mode():
        while repetitions < 4 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            product()
            finish()
            fastest = min(fastest, time.perf_counter() - start)
            repetitions += 1
    return fastest
