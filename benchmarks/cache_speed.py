"""How fast the cache is: next to `np.load` of the same numbers, its peers, and the network.

Everything that is compared runs in turn, in one process, on the same numbers, and is read back bit
for bit. Times are medians; all files are in the memory of the operating system. Every reading
opens its store anew, so the cache builds its index each time.

    python benchmarks/cache_speed.py
    python benchmarks/cache_speed.py --quick

Never here: what happens when something fails (cache_faults.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from cache_peers import SPEC, Ours, RowsInOrder, Store, stores
from numpy.typing import NDArray

from esm2_features import Engine, ESM2Transformer
from esm2_features._cache import Cache
from esm2_features._cache.claims import Claims
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES

AT_A_TIME = 4096  # vectors of one writing
SPARSE = 1000
PEER_ROUNDS = 3
DIMS = (2560, 1280, 320, 192)
MODELS = ("esm2_t33_650M_UR50D", "esm2_t6_8M_UR50D", "mini")
COMMON = ("mean", "float32", "float32")  # pooling, precision, and what vectors are kept in

Floats = NDArray[np.float32]


@contextmanager
def timed(times: list[float]) -> Iterator[None]:
    """Append the seconds that the block takes."""
    start = time.perf_counter()
    yield
    times.append(time.perf_counter() - start)


def assert_equal(found: Floats, expected: Floats) -> None:
    """Compare bit for bit, without a copy."""
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def against(times: list[float], baseline: list[float]) -> str:
    """Give the ratio of medians, and the quartiles of the ratios of the rounds."""
    ratios = np.divide(times, baseline[: len(times)])
    low, high = np.quantile(ratios, (0.25, 0.75))
    return f"{np.median(times) / np.median(baseline):.2f} ({low:.2f} to {high:.2f})"


def table(title: str, *heads: str) -> None:
    """Print the head of a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


# ------------------------------------------------------------------ stores


def reading(folder: Path, n: int, dim: int, rounds: int, kinds: list[type[Store]]) -> None:
    """Write and read n vectors in every store; slow ones get a tenth of them."""
    rng = np.random.default_rng(dim)
    array = rng.standard_normal((n, dim), np.float32)
    keys = SPEC.keys(map(str, range(n)))
    file = folder / "array.npy"
    np.save(file, array)
    sizes = {kind: max(1, n // 10) if kind.is_slow else n for kind in kinds}
    times: dict[tuple[object, str], list[float]] = defaultdict(list)
    for kind, size in sizes.items():
        (folder / kind.name).mkdir()
        store = kind(folder / kind.name)
        with timed(times[kind, "write"]):
            for start in range(0, size, AT_A_TIME):
                some = slice(start, min(start + AT_A_TIME, size))
                store.put(keys[some], array[some])
        store.close()
        del store
    os.sync()  # no writing back while one is timed
    np.load(file)[rng.permutation(n)]  # a virtual machine's memory is slow when it is first used
    for turn in range(rounds):
        which = rng.permutation(n)
        found = np.empty((0, 0), np.float32)  # what was read before is freed
        with timed(times[None, "all"]):
            found = np.load(file)[which]
        assert_equal(found, array[which])
        few = rng.choice(n, min(SPARSE, n), replace=False)
        with timed(times[None, "few"]):
            np.load(file, mmap_mode="r")[few]
        for kind, size in sizes.items():
            if turn >= PEER_ROUNDS and kind is not Ours:
                continue
            for name, wanted in (("all", which[which < size]), ("few", few % size)):
                found = np.empty((0, 0), np.float32)
                some_keys = keys[wanted]
                with timed(times[kind, name]):
                    found, hit = kind(folder / kind.name).get(some_keys, dim)
                assert hit.all()
                assert_equal(found, array[wanted])
    heads = ("writing, µs a vector", "reading, µs a vector", "against np.load and permutation")
    table(
        f"{n:,} x {dim}: np.load and permutation takes {np.median(times[None, 'all']):.3f} s",
        *("store", "vectors", *heads, f"{SPARSE:,} at random, ms"),
    )
    for kind, size in sizes.items():
        write, everything, few_of = (
            np.median(times[kind, name]) * factor
            for name, factor in (("write", 1e6 / size), ("all", 1e6 / size), ("few", 1e3))
        )
        ratio = against([t * n / size for t in times[kind, "all"]], times[None, "all"])
        row(kind.name, f"{size:,}", f"{write:.1f}", f"{everything:.2f}", ratio, f"{few_of:.1f}")
    row("np.load, mapped", f"{n:,}", "", "", "", f"{np.median(times[None, 'few']) * 1e3:.1f}")


# --------------------------------------------------------------- transform


def sequences(n: int, shortest: int, longest: int) -> list[str]:
    """Make random sequences, all different."""
    rng = np.random.default_rng(n)
    letters = np.array(list(CANONICAL_RESIDUES))
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(rng.choice(letters, rng.integers(shortest, longest + 1)))] = None
    return list(found)


def prepare(folder: Path, model: str, peptides: list[str]) -> Floats:
    """Fill a cache with random numbers, where the model's vectors would be."""
    engine = Engine(model, cache=folder)
    assert engine.cache is not None
    spec = Spec(engine.checkpoint.identity, engine.layers[0], *COMMON, engine.checkpoint.name)
    shape = len(peptides), engine.checkpoint.architecture.dim
    array = np.random.default_rng(shape).standard_normal(shape, np.float32)
    for start in range(0, len(peptides), AT_A_TIME):
        some = slice(start, start + AT_A_TIME)
        engine.cache._put_many([KeyedVectors(spec, spec.keys(peptides[some]), array[some])])
    return array


def transforming(folder: Path, peptides: list[str], rounds: int) -> None:
    """Transform peptides whose vectors are all there."""
    n = len(peptides)
    table(
        f"A warm `ESM2Transformer.transform` of {n:,} peptides of 5 to 50 residues, from str",
        *("model", "dim", "transform, s", "np.load and permutation, s", "ratio", "peak memory"),
    )
    for model in MODELS:
        place = folder / model
        array = prepare(place, model, peptides)
        dim = array.shape[1]
        np.save(folder / "array.npy", array)
        os.sync()
        np.load(folder / "array.npy")[::-1].copy()
        plain, warm = list[float](), list[float]()
        for turn in range(rounds):
            which = np.random.default_rng(turn).permutation(n)
            asked = [peptides[i] for i in which]
            with timed(plain):
                expected = np.load(folder / "array.npy")[which]
            transformer = ESM2Transformer(model, cache=Cache(place))
            with timed(warm):
                found = transformer.transform(asked)
            assert_equal(found, expected)
            del found, expected
        peak = in_new_process(peak_memory, place, model, peptides)
        extra = (
            f"the array's {4 * n * dim / 1e6:.0f} MB and {peak / 1e6 - 4 * n * dim / 1e6:.0f} MB"
        )
        row(
            *(model, dim, f"{np.median(warm):.3f}", f"{np.median(plain):.3f}"),
            *(against(warm, plain), extra),
        )


def peak_memory(folder: Path, model: str, peptides: list[str]) -> int:
    """Say how many bytes the peak of a warm transform adds to that of a tiny one."""
    ESM2Transformer(model, cache=Cache(folder)).transform(peptides[:10])
    transformer = ESM2Transformer(model, cache=Cache(folder))
    before = _resident("VmHWM")
    transformer.transform(peptides)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Read a size of this process. Unlike ru_maxrss, it leaves out what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def in_new_process(function: Callable[..., Any], *args: object) -> Any:
    """Run a function in a process that starts from nothing."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


# ----------------------------------------------------------------- writing


def computing(folder: Path, n_peptides: int, n_proteins: int) -> None:
    """Fill a cache with what `mini` computes, and take the time of each part."""
    table(
        "What a cache costs a run that computes everything, with `mini` on this CPU",
        *("sequences", "run, s", "put_many, s", "claims, s", "lookups, s", "the rest, s"),
        *("writes and claims, of the rest",),
    )
    Engine("mini", cache=None).embed(["MKTAYIAKQR" * 10])  # weights are loaded, threads started
    for name, found in (
        (f"{n_peptides:,} peptides of 5 to 50", sequences(n_peptides, 5, 50)),
        (f"{n_proteins:,} proteins of 100 to 1,000", sequences(n_proteins, 100, 1000)),
    ):
        times: dict[str, list[float]] = defaultdict(list)
        parts = [(Cache, "_put_many", "put"), (Cache, "_get_many", "get")]
        parts += [(Claims, word, "claim") for word in ("claim", "unclaimed", "release", "close")]
        total: list[float] = []
        patches = [
            patch.object(owner, word, _timing(getattr(owner, word), times[to]))
            for owner, word, to in parts
        ]
        for one in patches:
            one.start()
        with timed(total):
            Engine("mini", cache=folder / name).embed(found)
        for one in patches:
            one.stop()
        put, claim, get = (sum(times[word]) for word in ("put", "claim", "get"))
        rest = total[0] - put - claim - get
        row(
            *(name, f"{total[0]:.2f}", f"{put:.3f} in {len(times['put'])}"),
            *(f"{claim:.3f} in {len(times['claim'])}", f"{get:.3f} in {len(times['get'])}"),
            *(f"{rest:.2f}", f"{(put + claim) / rest:.1%}"),
        )


def _timing(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        with timed(times):
            return function(*args, **options)

    return run


def machine(folder: Path) -> str:
    """Name processor, cores and file system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "?")
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(at, kind) for at, kind in mounts if folder.resolve().is_relative_to(at)]
    system = max(inside, key=lambda mount: len(mount[0]))[1]
    return f"{processor}, {os.cpu_count()} cores, {system}; numpy {np.__version__}"


def main() -> None:
    """Parse, measure, print tables."""
    parser = argparse.ArgumentParser(description="Time the cache, its peers, and the network.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--n", type=int, default=100_000, help="vectors")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 2,000 vectors")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    given = parser.parse_args()
    n, rounds = (2000, 2) if given.quick else (given.n, given.rounds)
    warnings.simplefilter("error")  # a cache that fails would look fast
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        print(f"{machine(folder)}; medians of {rounds} rounds, {PEER_ROUNDS} at most for peers")
        kinds = [*stores(), RowsInOrder]
        for dim in DIMS:
            (folder / str(dim)).mkdir()
            reading(folder / str(dim), n, dim, rounds, kinds)
            shutil.rmtree(folder / str(dim))
        transforming(folder, sequences(n, 5, 50), rounds)
        computing(folder, *((100, 5) if given.quick else (2000, 300)))


if __name__ == "__main__":
    main()
