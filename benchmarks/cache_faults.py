"""What becomes of stored vectors when things go wrong: the cache and its peers, side by side.

Writers are killed or stopped, files damaged, disks filled; reads fail, and locks. A killed process
leaves its writes to the operating system; a power cut is not tried here.

    python benchmarks/cache_faults.py
    python benchmarks/cache_faults.py --quick --store esm2_features
    python benchmarks/cache_faults.py --scenario "no locks" --scenario "lock holder stopped"

Ends with exit code 1 if this library's cache did anything wrong. POSIX only; faults of the file
system need Linux and gcc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _fault_trials import (
    FILLED,
    PATIENCE,
    QUICK,
    Batch,
    Bench,
    Child,
    Counts,
    call,
    fault_library,
    fork_while_writing,
    hold,
    share,
    use,
)
from cache_peers import Ours, stores

LOCK_PATIENCE = 5.0  # seconds to wait for a lock, where a store can be told


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


def misread(bench: Bench, fault: str, rate: int | None) -> None:
    """Read while one read fails, or so many of a million."""
    for _ in range(bench.counts.reads):
        folder = bench.filled()
        how = {"FAULT_AT": bench.rng.integers(1, 60)} if rate is None else {"FAULT_RATE": rate}
        faulty_calls(bench, folder, {"FAULT": fault, **how})
        shutil.rmtree(folder)


def read_fails(bench: Bench) -> None:
    """Let one read end in EIO."""
    misread(bench, "eio", None)


def reads_fail(bench: Bench) -> None:
    """Let one read of a hundred end in EIO."""
    misread(bench, "eio", 10_000)


def garbage_once(bench: Bench) -> None:
    """Let one read give other bytes."""
    misread(bench, "garbage", None)


def garbage_often(bench: Bench) -> None:
    """Let one read of a hundred give other bytes."""
    misread(bench, "garbage", 10_000)


def no_locks(bench: Bench) -> None:
    """Let every lock fail with ENOLCK, with vectors there, and without."""
    for folder in (bench.filled(), bench.fresh()):
        faulty_calls(bench, folder, {"FAULT": "enolck"})


def faulty_calls(bench: Bench, folder: Path, faults: dict[str, object]) -> None:
    """Make a few calls while the file system fails; what was there must be there afterwards."""
    if (library := fault_library()) is None:
        return
    there = FILLED if any(folder.iterdir()) else []
    faults = {"LD_PRELOAD": library, "FAULT_NAME": folder, **faults}
    child = Child(call, bench.kind, folder, 5, patience=LOCK_PATIENCE, faults=faults)
    bench.tried(child, folder, there, seconds=60)


def stopped(bench: Bench) -> None:
    """Stop a process that has the lock; the others go on."""
    for _ in range(bench.counts.holders):
        folder = bench.filled()
        holder = Child(hold, bench.kind, folder)
        holder.listen(PATIENCE)
        os.kill(holder.process.pid or 0, signal.SIGSTOP)
        child = Child(call, bench.kind, folder, 5, patience=LOCK_PATIENCE).finish(60)
        holder.process.kill()
        holder.process.join()
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
    "one read fails": read_fails,
    "1 % of reads fail": reads_fail,
    "one read gives garbage": garbage_once,
    "1 % of reads give garbage": garbage_often,
    "no locks": no_locks,
    "lock holder stopped": stopped,
}


def main() -> int:
    """Parse, try everything on every store, print a table."""
    kinds = {kind.name: kind for kind in stores()}
    parser = argparse.ArgumentParser(description="Break stores of vectors, and count what is lost.")
    parser.add_argument("--store", action="append", choices=kinds, help="repeatable; default: all")
    parser.add_argument("--quick", action="store_true", help="a few trials of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeatable")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    passed, notes = True, list[str]()
    print(
        "| scenario | store | trials | wrong values returned | committed rows lost | crashes "
        "| hangs | set aside |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for number, (scenario, run) in enumerate(SCENARIOS.items()):
        if given.scenario and scenario not in given.scenario:
            continue
        for name in given.store or kinds:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                Path(folder).chmod(0o755)
                counts = QUICK if given.quick else Counts()
                bench = Bench(kinds[name], Path(folder), counts, [given.seed, number])
                run(bench)
            lost = "-" if bench.lost is None else f"{bench.lost:,}"
            print(
                f"| {scenario} | {name} | {bench.trials:,} | {bench.wrong:,} | {lost} "
                f"| {len(bench.crashes)} | {bench.hangs} | {bench.set_aside} |",
                flush=True,
            )
            reasons = [f"{n} x {why}" for why, n in Counter(bench.crashes).most_common(3)]
            if bench.not_healed:
                reasons.append(f"{bench.not_healed} x what was written anew could not be read")
            notes += [f"- {scenario}, {name}: {'; '.join(reasons)}"] if reasons else []
            faults = bench.wrong or bench.lost or bench.hangs or bench.set_aside or reasons
            if kinds[name] is Ours and faults:
                passed = False
    print("\nCrashes, and damage that did not heal:\n" if notes else "\nNothing crashed.")
    print("\n".join(notes))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
