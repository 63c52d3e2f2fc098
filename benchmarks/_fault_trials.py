"""Processes that use a store of vectors while something goes wrong, and the count of what it did.

Every value is a function of its key, so that a wrong one shows. Whatever touches a store runs in a
process of its own: when that dies, hangs, or ends with an exception, it is counted.
"""

from __future__ import annotations

import functools
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
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from cache_peers import SPEC, Store
from numpy.typing import NDArray

DIM = 320
LARGEST, STRIDE = 250, 100  # vectors of a batch: a block and more, shared with its neighbours
SHARED = 40  # batches that several processes write and read
NOBODY = 65534
PATIENCE = 10.0  # seconds without a word, after which a process is said to hang
SLOW = 2.0  # seconds, after which a call counts as a hang, but for the first of a process
FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("spawn")  # which loads the library of faults

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
    reads: int = 40
    holders: int = 4


QUICK = Counts(
    kills=5, seconds=1.0, flips=10, cuts=4, pages=4, disks=2, forks=3, reads=4, holders=1
)


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


def call(kind: type[Store], folder: Path, times: int, patience: float) -> Messages:
    """Read and write a few times, each with a store that is opened anew; tell how long it took."""
    for number in range(times):
        begun = time.monotonic()
        store = kind(folder, patience)
        yield from read(store, *FILLED)
        yield from write(store, ("call", number))
        store.close()
        yield {"seconds": time.monotonic() - begun}


class Child:
    """A process that runs a generator, and sends what that yields.

    With faults, its file system fails as the variables say that `faulty_io.c` describes.
    """

    def __init__(
        self,
        function: Callable[..., Messages],
        *args: Any,
        faults: dict[str, object] | None = None,
        **options: Any,
    ) -> None:
        context: Any = SPAWN if faults else FORK
        self._receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_send, args=(sender, function, args, options))
        with _environment(faults or {}):
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


@functools.cache
def fault_library() -> Path | None:
    """Compile the library of faults; None, and a word, where that is not possible."""
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        print("No gcc on Linux: faults of the file system are skipped.", file=sys.stderr)
        return None
    library = Path(tempfile.mkdtemp()) / "faulty_io.so"
    source = Path(__file__).with_name("faulty_io.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@contextmanager
def _environment(variables: dict[str, object]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


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


class Bench:
    """One store in one scenario: folders, random numbers, and what it came to."""

    def __init__(self, kind: type[Store], folder: Path, counts: Counts, seed: list[int]) -> None:
        self.kind, self.counts, self.seed = kind, counts, seed
        self.rng = np.random.default_rng(seed)
        self.trials = self.wrong = self.not_healed = self.hangs = self.set_aside = 0
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
        self.hangs += sum(seconds > SLOW for seconds in child.all("seconds")[1:])
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

    def tried(
        self, child: Child, folder: Path, there: list[Batch], seconds: float = 2 * PATIENCE
    ) -> None:
        """Wait for a process; then look whether all is there that must be."""
        self.trials += 1
        self.add(child.finish(seconds))
        self.set_aside += sum(".corrupt-" in path.name for path in folder.iterdir())
        self.lost = (self.lost or 0) + self.missing(folder, [*there, *child.all("kept")])
