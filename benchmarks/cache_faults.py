"""What becomes of stored vectors when things go wrong: the cache and its peers, side by side.

Writers are killed, files damaged, disks filled. Every value is a function of its key, so that a
wrong one shows. Whatever touches a store runs in a process of its own: when that dies, hangs, or
ends with an exception, it is counted. A killed process leaves its writes to the operating system;
a power cut is not tried here.

    python benchmarks/cache_faults.py
    python benchmarks/cache_faults.py --quick --store esm2_features

Ends with exit code 1 if this library's cache did anything wrong. POSIX only.

Never here: how a store works, how fast it is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from cache_peers import SPEC, Ours, Store, stores
from numpy.typing import NDArray

DIM = 320
LARGEST, STRIDE = 250, 100  # vectors of a batch: a block and more, shared with its neighbours
SHARED = 40  # batches that several processes write and read
NOBODY = 65534
PATIENCE = 10.0  # seconds without a word, after which a process is said to hang
FORK = multiprocessing.get_context("fork")

Batch = tuple[str, int]
FILLED: list[Batch] = [("filled", 2 * number) for number in range(8)]  # there before the damage
Messages = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Counts:
    """How often each fault is tried."""

    kills: int = 50
    seconds: float = 30.0
    flips: int = 200
    cuts: int = 50
    pages: int = 50
    disks: int = 10
    forks: int = 20


QUICK = Counts(kills=5, seconds=1.0, flips=10, cuts=4, pages=4, disks=2, forks=3)


# ------------------------------------------------------------------ values


def keys_of(*batches: Batch) -> NDArray[np.uint8]:
    """Make the keys of batches, each once; a batch's name says how many it has."""
    names: dict[str, None] = {}
    for tag, number in batches:
        n = 1 + zlib.crc32(f"{tag}/{number}".encode()) % LARGEST
        names |= dict.fromkeys(f"{tag}/{STRIDE * number + i}" for i in range(n))
    return SPEC.keys(names)


def values(keys: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Make the vectors that belong to (n, 32) keys."""
    words = keys.view("<u8")
    mixed = words[:, :1] * np.uint64(0x9E3779B97F4A7C15) + np.arange(DIM, dtype=np.uint64)
    mixed = (mixed ^ words[:, 1:2] ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(41)).astype(np.float32)


# --------------------------------------------------- what runs in a process


def read(store: Store, *batches: Batch) -> Messages:
    """Read; tell how many values are wrong, and how many are not there."""
    keys = keys_of(*batches)
    rows, hit = store.get(keys, DIM)
    wrong = (rows != values(keys)).any(axis=1) & hit
    yield {"wrong": int(wrong.sum()), "missing": int((~hit).sum())}


def write(store: Store, *batches: Batch) -> Messages:
    """Write; tell what is promised to be kept."""
    for batch in batches:
        keys = keys_of(batch)
        if store.put(keys, values(keys)):
            yield {"kept": batch}


def use(
    kind: type[Store],
    folder: Path,
    there: list[Batch],
    new: list[Batch],
    *,
    patience: float = 30.0,
    limit: int | None = None,
    is_nobody: bool = False,
) -> Messages:
    """Read what should be there, write, and read all of it: patient, limited, without rights."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if is_nobody and os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    store = kind(folder, patience)
    if there:
        yield from read(store, *there)
    if new:
        yield from write(store, *new)
        yield from read(store, *there, *new)
    store.close()


def share(kind: type[Store], folder: Path, seconds: float, seed: list[int]) -> Messages:
    """Read or write what others read and write: every other process does this or that."""
    store, rng, until = kind(folder), np.random.default_rng(seed), time.monotonic() + seconds
    act = write if seed[-1] % 2 else read
    while time.monotonic() < until:
        yield from act(store, ("shared", int(rng.integers(SHARED))))


def fork_while_writing(kind: type[Store], folder: Path, forks: int, seed: list[int]) -> Messages:
    """Write in a thread, and fork children that use the store that they inherit."""
    store, rng, stop = kind(folder), np.random.default_rng(seed), threading.Event()
    told: list[dict[str, Any]] = []

    def write_on() -> None:
        try:
            for number in count():
                if stop.is_set():
                    return
                told.extend(write(store, ("thread", number)))
        except BaseException as error:
            told.append({"crash": _named(error)})

    def inherit(number: int) -> Messages:
        yield from read(store, *FILLED)
        yield from write(store, ("fork", number))

    thread = threading.Thread(target=write_on)
    thread.start()
    for number in range(forks):
        time.sleep(rng.uniform(0, 0.02))
        child = Child(inherit, number).finish(PATIENCE)
        yield from child.messages
        if child.all("crash"):
            break  # the others would end, or hang, as it did
    stop.set()
    thread.join()
    yield from told


def hold(kind: type[Store], folder: Path) -> Messages:
    """Take the lock, if there is one, and keep it."""
    store = kind(folder)
    lock = store.hold()
    yield {"lock": lock is not None}
    time.sleep(10 * PATIENCE)


class Child:
    """A process that runs a generator, and sends what that yields."""

    def __init__(self, function: Callable[..., Messages], *args: Any, **options: Any) -> None:
        self._receiver, sender = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=_send, args=(sender, function, args, options))
        self.process.start()
        sender.close()
        self.messages: list[dict[str, Any]] = []

    def listen(self, seconds: float) -> bool:
        """Wait for one message; whether there was one."""
        if not self._receiver.poll(seconds):
            self.process.kill()
            self.messages.append({"crash": "hangs"})
            return False
        try:
            self.messages.append(self._receiver.recv())
        except EOFError:
            return False
        return True

    def finish(self, seconds: float = 2 * PATIENCE) -> Child:
        """Listen to the end."""
        while self.listen(seconds):
            pass
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0 and not self.all("crash"):
            self.messages.append({"crash": signal.Signals(-code).name})
        return self

    def all(self, name: str) -> list[Any]:
        """List what was told under a name."""
        return [message[name] for message in self.messages if name in message]


def _send(sender: Any, function: Callable[..., Messages], args: Any, options: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what counts is sent
    try:
        for message in function(*args, **options):
            sender.send(message)
    except BaseException as error:
        sender.send({"crash": _named(error)})


def _named(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    return re.sub(r"(?<!\w)/\S+", "...", text)[:80]  # paths differ


# --------------------------------------------------------------- scenarios


class Bench:
    """One store in one scenario: folders, random numbers, and what it came to."""

    def __init__(self, kind: type[Store], folder: Path, counts: Counts, seed: list[int]) -> None:
        self.kind, self.counts, self.seed = kind, counts, seed
        self.rng = np.random.default_rng(seed)
        self.trials = self.wrong = self.not_healed = 0
        self.lost: int | None = 0
        self.crashes: list[str] = []
        self._folders = (folder / f"{number}" for number in count())
        self._template = self.fresh()
        Child(use, kind, self._template, [], FILLED).finish()

    def fresh(self) -> Path:
        """Make an empty folder."""
        (folder := next(self._folders)).mkdir()
        return folder

    def filled(self) -> Path:
        """Make a folder in which the store holds `FILLED`."""
        ignore = shutil.ignore_patterns("lock.mdb", "*-shm")
        return shutil.copytree(self._template, next(self._folders), ignore=ignore)

    def add(self, child: Child) -> bool:
        """Add up what a process did; whether it crashed."""
        self.wrong += sum(child.all("wrong"))
        self.crashes += child.all("crash")
        return bool(child.all("crash"))

    def missing(self, folder: Path, batches: list[Batch]) -> int:
        """Read in a new process what must be there; how many vectors are not."""
        if not batches:
            return 0
        child = Child(use, self.kind, folder, batches, []).finish()
        if not self.add(child):
            return child.all("missing")[0]
        # Unreadable together: those count that are unreadable by themselves.
        lost = 0
        for batch in dict.fromkeys(batches):
            child = Child(use, self.kind, folder, [batch], []).finish()
            lost += (child.all("missing") or [len(keys_of(batch))])[0]
        return lost

    def tried(self, child: Child, folder: Path, there: list[Batch]) -> None:
        """Wait for a process; then look whether all is there that must be."""
        self.trials += 1
        self.add(child.finish())
        self.lost = (self.lost or 0) + self.missing(folder, [*there, *child.all("kept")])


def kill(bench: Bench) -> None:
    """Kill one writer after the other; each finds what the one before it left."""
    while bench.trials < bench.counts.kills:
        folder, kept, lost = bench.fresh(), list[Batch](), 0
        for run in range(5):
            new = [(f"run {run}", number) for number in range(10_000)]
            child = Child(use, bench.kind, folder, [], new)
            time.sleep(bench.rng.uniform(0, 0.15))
            child.process.kill()
            child.finish()
            child.messages = [m for m in child.messages if m.get("crash") != "SIGKILL"]
            bench.trials += 1
            bench.add(child)
            kept += child.all("kept")
            lost = max(lost, bench.missing(folder, kept))
        bench.lost = (bench.lost or 0) + lost
        shutil.rmtree(folder)


def crowd(bench: Bench) -> None:
    """Let processes read and write the same vectors; the trials are their calls."""
    folder, kept = bench.fresh(), set[Batch]()
    args = bench.kind, folder, bench.counts.seconds
    for child in [Child(share, *args, [*bench.seed, number]) for number in range(8)]:
        bench.add(child.finish(bench.counts.seconds + 2 * PATIENCE))
        bench.trials += len(child.messages)
        kept.update(child.all("kept"))
    bench.lost = bench.missing(folder, sorted(kept))


def damage(bench: Bench, trials: int, harm: Callable[[bytearray, int], object]) -> None:
    """Harm a file of a copy, read all, write it anew, and look whether it has healed."""
    bench.lost = None
    for trial in range(trials):
        folder = bench.filled()
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        sizes = np.array([file.stat().st_size for file in files])
        file = files[bench.rng.choice(len(files), p=sizes / sizes.sum())]
        content = bytearray(file.read_bytes())
        harm(content, trial)
        file.write_bytes(content)
        bench.trials += 1
        # Twice: what is written before the damage is noticed may go with the damaged file.
        args = use, bench.kind, folder, FILLED, FILLED
        if not any(bench.add(Child(*args).finish()) for _ in range(2)):
            bench.not_healed += bench.missing(folder, FILLED) > 0
        shutil.rmtree(folder)


def flip(bench: Bench) -> None:
    """Flip bits; half of them where pages begin, as the store's own structure lies there."""

    def harm(content: bytearray, trial: int) -> None:
        at = int(bench.rng.integers(len(content)))
        if trial % 2:
            at -= at % bench.kind.page_bytes
            at = min(at + int(bench.rng.integers(128)), len(content) - 1)
        content[at] ^= 1 << int(bench.rng.integers(8))

    damage(bench, bench.counts.flips, harm)


def cut(bench: Bench) -> None:
    """Cut files off."""

    def harm(content: bytearray, _: int) -> None:
        del content[int(bench.rng.integers(len(content))) :]

    damage(bench, bench.counts.cuts, harm)


def zero(bench: Bench) -> None:
    """Zero pages of a file system, as a crash of the machine may leave them."""

    def harm(content: bytearray, _: int) -> None:
        start = int(bench.rng.integers(len(content))) // 4096 * 4096
        stop = min(start + 4096 * int(bench.rng.integers(1, 17)), len(content))
        content[start:stop] = bytes(stop - start)

    damage(bench, bench.counts.pages, harm)


def replace(bench: Bench) -> None:
    """Put garbage in the place of a file, and nothing in that of another."""

    def harm(content: bytearray, trial: int) -> None:
        content[:] = b"" if trial else bench.rng.bytes(len(content))

    damage(bench, 2, harm)


def disk_full(bench: Bench) -> None:
    """Limit the size of files; then write more than a small file system takes."""
    new = [("disk", number) for number in range(60)]
    for _ in range(bench.counts.disks):
        folder = bench.filled()
        largest = max(file.stat().st_size for file in folder.rglob("*"))
        limit = int(largest * bench.rng.uniform(0.3, 3))
        bench.tried(Child(use, bench.kind, folder, FILLED, new, limit=limit), folder, FILLED)
    for megabytes in (2, 3, 4):
        folder = bench.fresh()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            print("No tmpfs could be mounted: skipped.", file=sys.stderr)
            return
        try:
            bench.tried(Child(use, bench.kind, folder, [], new), folder, [])
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def read_only(bench: Bench) -> None:
    """Take the right to write away, where there are vectors, and where there are none."""
    for folder, there in ((bench.filled(), FILLED), (bench.fresh(), [])):
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o444)
        folder.chmod(0o555)
        child = Child(use, bench.kind, folder, there, [("new", 0)], is_nobody=True).finish()
        folder.chmod(0o755)
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        bench.tried(child, folder, there)
        if there:  # who may only read can still read
            bench.lost = (bench.lost or 0) + sum(child.all("missing")[:1])


def fork(bench: Bench) -> None:
    """Fork while another thread is writing."""
    folder = bench.filled()
    child = Child(fork_while_writing, bench.kind, folder, bench.counts.forks, bench.seed)
    bench.tried(child, folder, FILLED)
    bench.trials = bench.counts.forks


def locked(bench: Bench) -> None:
    """Let another process hold the lock, longer than one waits for it."""
    for _ in range(2):
        folder = bench.filled()
        holder = Child(hold, bench.kind, folder)
        holder.listen(PATIENCE)
        has_lock = any(holder.all("lock"))
        if has_lock:
            child = Child(use, bench.kind, folder, FILLED, [("new", 0)], patience=0.5)
            child.finish(PATIENCE)
        holder.process.kill()
        holder.process.join()
        if has_lock:
            bench.tried(child, folder, FILLED)


SCENARIOS = {
    "kill -9 of a writer": kill,
    "4 processes write, 4 read": crowd,
    "bit flip": flip,
    "truncation": cut,
    "zeroed pages": zero,
    "garbage file, empty file": replace,
    "disk full": disk_full,
    "read-only folder": read_only,
    "fork while a thread writes": fork,
    "lock held by another": locked,
}


def main() -> int:
    """Parse, try everything on every store, print a table."""
    kinds = {kind.name: kind for kind in stores()}
    parser = argparse.ArgumentParser(description="Break stores of vectors, and count what is lost.")
    parser.add_argument("--store", action="append", choices=kinds, help="repeatable; default: all")
    parser.add_argument("--quick", action="store_true", help="a few trials of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    passed, notes = True, list[str]()
    print("| scenario | store | trials | wrong values returned | committed rows lost | crashes |")
    print("|---|---|---|---|---|---|")
    for number, (scenario, run) in enumerate(SCENARIOS.items()):
        for name in given.store or kinds:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                Path(folder).chmod(0o755)
                counts = QUICK if given.quick else Counts()
                bench = Bench(kinds[name], Path(folder), counts, [given.seed, number])
                run(bench)
            lost = "-" if bench.lost is None else f"{bench.lost:,}"
            print(
                f"| {scenario} | {name} | {bench.trials:,} | {bench.wrong:,} | {lost} "
                f"| {len(bench.crashes)} |",
                flush=True,
            )
            reasons = [f"{n} x {why}" for why, n in Counter(bench.crashes).most_common(3)]
            if bench.not_healed:
                reasons.append(f"{bench.not_healed} x what was written anew could not be read")
            notes += [f"- {scenario}, {name}: {'; '.join(reasons)}"] if reasons else []
            if kinds[name] is Ours and (bench.wrong or bench.lost or reasons):
                passed = False
    print("\nCrashes, and damage that did not heal:\n" if notes else "\nNothing crashed.")
    print("\n".join(notes))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
