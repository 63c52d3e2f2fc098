"""What a job would cost, on paper: from lengths and a model's shape to time, memory and disk.

Time on a processor that was measured is a sum of three terms, whose factors were fitted to the
measurements in ``data/throughput.json``:

    seconds = a x FLOP of the products  +  b x layers x dim x tokens  +  c x layers x heads x scores

(products of the affine layers; what is done with every number of the residual stream; attention).
For a card that was never measured, the first is taken from the vendor's peak, the second from its
bandwidth, attention's products go with the first, and the outcome is divided by a share of both
that a real run may reach, which is an assumption.

Sources: the FLOP count of the benchmarks (``benchmarks/workloads.py``), the numbers that a block
moves (``benchmarks/_roofline.py``), and the data sheets at `CARDS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache.keys import KEY_BYTES
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._model.packing import BYTES_PER_NUMBER_OF_WIDTH, cpu_budget, cuda_budget
from esm2_features.exceptions import InputError

_TABLE = Path(__file__).parents[1] / "data" / "throughput.json"

DEVICES = ("cpu", "h200", "a100", "t4")

_CHECK_BYTES = 4
"""Checksum of each cached vector, beside its key."""
CACHE_STRUCTURE = 1.03
"""What a cache takes beside its vectors, keys and checksums: a few percent."""
_RECORD_BYTES = 400
"""A record in memory beside its letters: objects of Python for id, header, sequence, view."""
_CPU_BASE_BYTES = 400_000_000
"""Python and torch, where nothing was measured."""

ASSUMED_SHARE = (0.4, 0.9)
"""Of peak and bandwidth together, what a run on a card may reach: an assumption, not measured."""
OTHER_PROCESSOR = (0.5, 2.0)
"""How long another processor with as many cores may take, next to the one that was measured: an
assumption."""
MANY_CORES = 1.5
"""What more than twice as many cores as were measured may lose, for want of work and bandwidth: an
assumption."""
MEASURED_HERE = 1.15
"""How far the rest of a job may be from its sample, when the sample was measured."""


@dataclass(frozen=True)
class Card:
    """What the vendor says of a card."""

    title: str
    # by precision; dense, without sparsity. float32 without TensorFloat-32, which this library
    # switches off
    flop_per_second: Mapping[str, float]
    bytes_per_second: float  # of its memory
    bytes: int  # its memory
    source: str  # address of the data sheet


CARDS = {
    "h200": Card(
        "NVIDIA H200 (SXM, 141 GB)",
        {"float32": 67e12, "bfloat16": 989e12, "float16": 989e12},
        4.8e12,
        141_000_000_000,
        "https://www.nvidia.com/en-us/data-center/h200/",
    ),
    "a100": Card(
        "NVIDIA A100 (SXM, 80 GB)",
        {"float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12},
        2.039e12,
        80_000_000_000,
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    "t4": Card(
        "NVIDIA T4 (16 GB)",
        {"float32": 8.1e12, "float16": 65e12},
        0.32e12,
        16_000_000_000,
        "https://www.nvidia.com/en-us/data-center/tesla-t4/",
    ),
}

# What a block moves for each token, in units of dim, written and read: benchmarks/_roofline.py,
# whose counts a test compares with these.
_STREAM_NUMBERS = 6
_PRODUCT_NUMBERS = 28


@dataclass(frozen=True)
class Pieces:
    """The lengths that go through the network."""

    # different lengths (residues + 2); of a sequence in windows, of each window
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]  # how many pieces have each

    @classmethod
    def of(cls, tokens: Any) -> Pieces:
        """Count lengths."""
        return cls(*np.unique(np.asarray(tokens, dtype=np.int64), return_counts=True))

    @property
    def total(self) -> int:
        """Tokens of all pieces."""
        return int(self.tokens @ self.counts)

    @property
    def scores(self) -> float:
        """Pairs of tokens that attend to each other: the sum of squared lengths."""
        return float((self.tokens.astype(float) ** 2) @ self.counts)


@dataclass(frozen=True)
class Range:
    """A figure that is not known exactly."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Job:
    """What is to be estimated."""

    architecture: Architecture
    precision: str
    device: str  # one of `DEVICES`
    pieces: Pieces  # of the different sequences
    sequences: int  # all sequences, and different ones
    unique: int  # all sequences, and different ones
    longest: int  # tokens of the longest piece
    text_bytes: int  # residues, ids and headers of all sequences
    columns: int  # layers times poolings
    blocks: int  # blocks that are run: the highest layer that is asked for
    cores: int  # of the processor, or beside the card


@dataclass(frozen=True)
class Estimate:
    """What a job would cost."""

    seconds: Range
    flop: float  # of products and attention
    batch_tokens: int  # tokens of a pass that suit the device
    # most memory of the card, or of the process but for its input and output: weights, one pass
    # and, on a processor, Python and torch
    device_bytes: int
    # most memory of a process that reads all sequences and holds all vectors, as ``embed`` does
    embed_bytes: int
    # whether ``device_bytes`` are less than the card's memory; None of a processor
    fits: bool | None
    output_bytes: dict[str, int]  # on disk, by what numbers are kept in
    cache_bytes: dict[str, int]  # on disk, by what numbers are kept in
    basis: tuple[str, ...]  # what it rests on, sentence by sentence


@lru_cache(maxsize=1)
def throughput() -> dict[str, Any]:
    """Read the table of measured throughputs that ships with the library."""
    found: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return found


def work(architecture: Architecture, blocks: int, pieces: Pieces) -> NDArray[np.float64]:
    """Count what the blocks have to do."""
    dim, tokens = architecture.dim, pieces.total
    return np.array(
        [
            24.0 * blocks * dim**2 * tokens,
            1.0 * blocks * dim * tokens,
            blocks * architecture.heads * pieces.scores,
        ]
    )


def flop(architecture: Architecture, blocks: int, pieces: Pieces) -> float:
    """Count the floating-point operations of products and attention."""
    affine, _, scores = work(architecture, blocks, pieces)
    return float(affine + 4 * architecture.head_dim * scores)


def estimate(job: Job, *, measured_ratio: Range | None = None) -> Estimate:
    """Estimate what a job would cost."""
    seconds, basis = _seconds(job, measured_ratio)
    if job.device == "cpu":
        budget = cpu_budget(job.cores)
    else:
        free = CARDS[job.device].bytes - weight_bytes(job.architecture, job.precision)
        budget = cuda_budget(max(0, free), job.architecture.dim)
    one_pass = max(budget, job.longest) * BYTES_PER_NUMBER_OF_WIDTH * job.architecture.dim
    on_device = weight_bytes(job.architecture, job.precision) + one_pass
    base = _base_bytes(job.precision)
    width = job.columns * job.architecture.dim
    held = 4 * width * job.sequences + job.text_bytes + _RECORD_BYTES * job.sequences
    if job.device == "cpu":
        on_device += base
    return Estimate(
        seconds=seconds,
        flop=flop(job.architecture, job.blocks, job.pieces),
        batch_tokens=budget,
        device_bytes=on_device,
        embed_bytes=held + (on_device if job.device == "cpu" else base),
        fits=None if job.device == "cpu" else on_device < CARDS[job.device].bytes,
        output_bytes={
            dtype: size * width * job.sequences for dtype, size in _BYTES_OF_DTYPE.items()
        },
        cache_bytes={
            dtype: round(
                CACHE_STRUCTURE
                * job.unique
                * job.columns
                * (size * job.architecture.dim + KEY_BYTES + _CHECK_BYTES)
            )
            for dtype, size in _BYTES_OF_DTYPE.items()
        },
        basis=basis,
    )


_BYTES_OF_DTYPE = {"float32": 4, "float16": 2}


def weight_bytes(architecture: Architecture, precision: str) -> int:
    """Give the memory of the weights."""
    return architecture.parameters * (4 if precision == "float32" else 2)


def predicted(job: Job) -> float:
    """Say how long a job takes, as far as can be said without asking this machine."""
    if job.device != "cpu" and _fit(job.device, job.precision) is None:
        return float(np.sqrt(np.prod(_card_seconds(job, CARDS[job.device]))))
    return _predicted(job, _measured(job))


def _predicted(job: Job, fit: Mapping[str, Any]) -> float:
    rates = np.array([fit["seconds_per"][name] for name in ("flop", "number", "score")])
    forward = float(work(job.architecture, job.blocks, job.pieces) @ rates)
    if job.device == "cpu":
        forward *= fit["cores"] / job.cores
    return forward + _host_seconds(job)


def _seconds(job: Job, ratio: Range | None) -> tuple[Range, tuple[str, ...]]:
    if job.device != "cpu" and _fit(job.device, job.precision) is None:
        return _on_card(job, CARDS[job.device], ratio)
    fit = _measured(job)
    middle = _predicted(job, fit)
    of_table = (
        f"{len(fit['measured'])} runs of {', '.join(fit['models'])} on {fit['machine']}, "
        f"{fit['cores']} cores, in {job.precision} ({_dates(fit)}; data/throughput.json)"
    )
    if ratio is not None:
        return _by_sample(middle, ratio, f"a fit to {of_table}")
    if job.device != "cpu":
        return Range(middle * fit["least"], middle, middle * fit["most"]), (
            f"Not measured here: carried over from {of_table}, whose fit is {fit['least']:.2f} to "
            f"{fit['most']:.2f} times off in the runs themselves.",
        )
    extra = MANY_CORES if job.cores > 2 * fit["cores"] else 1.0
    least, most = OTHER_PROCESSOR[0] * fit["least"], OTHER_PROCESSOR[1] * fit["most"] * extra
    return Range(middle * least, middle, middle * most), (
        f"Not measured here: carried over from {of_table}.",
        f"In the runs themselves, time is {fit['least']:.2f} to {fit['most']:.2f} times the fit. "
        "Assumed: time falls with the number of cores, and another processor takes "
        f"{OTHER_PROCESSOR[0]} to {OTHER_PROCESSOR[1]} times as long"
        + (f", and {extra} times that with so many more cores" if extra > 1 else "")
        + ". --measure asks this machine.",
    )


def _by_sample(middle: float, ratio: Range, carried_by: str) -> tuple[Range, tuple[str, ...]]:
    low = middle * ratio.low / MEASURED_HERE
    high = middle * ratio.high * MEASURED_HERE
    return Range(low, middle * ratio.middle, high), (
        f"Measured here: a sample of the input took {ratio.middle:.2f} times as long as the table "
        f"says ({ratio.low:.2f} to {ratio.high:.2f} in single rounds).",
        f"Carried over to the other lengths by {carried_by}. The range adds "
        f"{MEASURED_HERE - 1:.0%} on both sides.",
    )


def _on_card(job: Job, card: Card, ratio: Range | None) -> tuple[Range, tuple[str, ...]]:
    flops, host = _peak(card, job.precision), _host_seconds(job)
    low, high = _card_seconds(job, card)
    middle = float(np.sqrt(low * high))
    if ratio is not None:
        return _by_sample(middle, ratio, "the published peak and bandwidth of the card")
    worst, best = ASSUMED_SHARE
    measured_host = throughput()["host"]
    return Range(low, middle, high), (
        f"Not measured: this library was never timed on {card.title}.",
        f"From its published dense peak, {flops / 1e12:g} TFLOP/s in {job.precision}, and its "
        f"bandwidth, {card.bytes_per_second / 1e12:g} TB/s ({card.source}). Assumed: a run reaches "
        f"{worst:.0%} to {best:.0%} of both; the figure in the middle is the geometric mean.",
        "Packing, keys and the cache on the host: "
        f"{measured_host['seconds_per_sequence'] * 1e6:.0f} microseconds a sequence, measured on "
        f"{measured_host['machine']} (data/throughput.json), times {OTHER_PROCESSOR[0]} to "
        f"{OTHER_PROCESSOR[1]} for another processor: {host:.3g} s here.",
    )


def _card_seconds(job: Job, card: Card) -> tuple[float, float]:
    """Give the best and the worst of a card that was never measured."""
    width = 4 if job.precision == "float32" else 2
    _, numbers, _ = work(job.architecture, job.blocks, job.pieces)
    computing = flop(job.architecture, job.blocks, job.pieces) / _peak(card, job.precision)
    moving = numbers * (4 * _STREAM_NUMBERS + width * _PRODUCT_NUMBERS) / card.bytes_per_second
    ideal, host = computing + moving, _host_seconds(job)
    worst, best = ASSUMED_SHARE
    # The host packs and stores while the card computes: at best in its shadow, at worst after it.
    low = max(ideal / best, host * OTHER_PROCESSOR[0])
    return low, ideal / worst + host * OTHER_PROCESSOR[1]


def _peak(card: Card, precision: str) -> float:
    if precision not in card.flop_per_second:
        raise InputError(
            f"{card.title} has no units for precision={precision!r}. Choose one of "
            f"{', '.join(card.flop_per_second)}."
        )
    return card.flop_per_second[precision]


def _host_seconds(job: Job) -> float:
    return float(throughput()["host"]["seconds_per_sequence"] * job.unique)


def _measured(job: Job) -> dict[str, Any]:
    found = _fit(job.device, job.precision)
    if found is None:
        known = [fit["precision"] for fit in throughput()["fits"] if fit["device"] == job.device]
        raise InputError(
            f"Got precision={job.precision!r}, in which no {job.device} was measured, only in "
            f"{' and '.join(known)}. Choose one of these, or a card."
        )
    return found


def _fit(device: str, precision: str) -> dict[str, Any] | None:
    for fit in throughput()["fits"]:
        if (fit["device"], fit["precision"]) == (device, precision):
            return dict(fit)
    return None


def _base_bytes(precision: str) -> int:
    fit = _fit("cpu", precision)
    return _CPU_BASE_BYTES if fit is None else int(fit["base_bytes"] or _CPU_BASE_BYTES)


def _dates(fit: Mapping[str, Any]) -> str:
    dates = fit["dates"]
    if not dates:
        return "date unknown"
    return str(dates[0]) if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
