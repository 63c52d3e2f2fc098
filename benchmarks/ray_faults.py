"""What becomes of a job of shards when parts of its Ray cluster, two nodes here, are lost.

A cluster of a head and a second node runs a job in four workers, or fewer. In the middle of it,
something is killed. Every row counts: how the job ended and when, what it said, how many rows are
wrong or missing after the same command was repeated without Ray.

    python -m benchmarks.ray_faults
    python -m benchmarks.ray_faults --only "node lost, no spare core"

Linux only. Never here: how fast a cluster is (shards.py).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}

SHARDS, SHARD_SIZE = 40, 200
BEFORE = 6  # shards that are done when something is killed
DEADLINE = 240.0
STORE = 1 << 28


@dataclass
class Cluster:
    """A head, a second node, and the job that runs on them."""

    ray: Any
    head_cores: int
    node_cores: int
    node: Any = None
    job: Any = None

    def __post_init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        head = {"num_cpus": self.head_cores, "object_store_memory": STORE}
        self.ray = Nodes(initialize_head=True, head_node_args=head | {"include_dashboard": False})
        if self.node_cores:
            self.add()

    def add(self) -> None:
        """Start the second node."""
        self.node = self.ray.add_node(num_cpus=self.node_cores, object_store_memory=STORE)

    def lose_node(self) -> None:
        """Kill the second node."""
        self.ray.remove_node(self.node, allow_graceful=False)

    def lose_head(self) -> None:
        """Kill what keeps the cluster together."""
        for name in ("gcs_server", "raylet"):
            self.ray.head_node.all_processes[name][0].process.kill()

    def kill_actor(self) -> None:
        """Kill one worker."""
        found = subprocess.run(["pgrep", "-f", "^ray::ShardActor"], capture_output=True, text=True)
        os.kill(int(found.stdout.split()[0]), signal.SIGKILL)

    def kill_driver(self) -> None:
        """Kill the job itself."""
        self.job.kill()


# name: cores of the head, of the node, workers, patience, what is lost, whether the job ends well
SCENARIOS: dict[str, tuple[int, int, int, int, Callable[[Cluster], None] | None, bool]] = {
    "nothing lost": (1, 1, 2, 60, None, True),
    "worker killed": (1, 1, 2, 60, Cluster.kill_actor, True),
    "node lost, spare core": (2, 1, 2, 60, Cluster.lose_node, True),
    "node lost, no spare core": (1, 1, 2, 60, Cluster.lose_node, True),
    "node lost, none left": (0, 1, 1, 30, Cluster.lose_node, False),
    "head lost": (1, 1, 2, 60, Cluster.lose_head, False),
    "driver killed": (1, 1, 2, 60, Cluster.kill_driver, False),
}


def write_inputs(folder: Path) -> tuple[Path, list[str]]:
    """Write peptides; return the file and the sequences."""
    rng = random.Random(0)
    texts = [
        "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=rng.randint(8, 40))) for _ in range(8000)
    ]
    texts = texts[: SHARDS * SHARD_SIZE]
    file = folder / "peptides.fasta"
    file.write_text("".join(f">p{i}\n{text}\n" for i, text in enumerate(texts)))
    return file, texts


def command(file: Path, out: Path) -> list[str]:
    """Write the command of the job."""
    program = Path(sys.executable).with_name("esm2-features")
    words = [program, "embed", file, out, "--model", "mini", "--shard-size", SHARD_SIZE]
    return [*map(str, words)]


def n_done(out: Path) -> int:
    """Count finished shards."""
    return len(list(out.glob("_manifest/*.done.json")))


def wait_until(what: Callable[[], bool], seconds: float) -> float:
    """Look often; return the seconds that it took."""
    start = time.monotonic()
    while not what() and time.monotonic() - start < seconds:
        time.sleep(0.1)
    return time.monotonic() - start


def run(name: str, folder: Path, file: Path, expected: np.ndarray) -> str:
    """Run one scenario; return a row of the table."""
    from esm2_features import open_embeddings

    head, node, workers, patience, lose, ends_well = SCENARIOS[name]
    out, log = folder / name, folder / f"{name}.log"
    cluster = Cluster(None, head, node)
    words = [*command(file, out), "--engine", "ray", "--address", cluster.ray.address]
    words += ["--workers", str(workers)]
    words += ["--patience", str(patience)]
    with log.open("w") as stream:
        cluster.job = job = subprocess.Popen(words, stderr=stream, stdout=stream)
        wait_until(lambda: n_done(out) >= BEFORE or job.poll() is not None, DEADLINE)
        before = n_done(out)
        if lose is not None:
            lose(cluster)
        took = wait_until(lambda: job.poll() is not None, DEADLINE)
    code = job.poll()
    if code is None:
        job.kill()
        job.wait()
    after = n_done(out)
    said = [line for line in log.read_text().splitlines() if line.strip()]
    print(f"\n{name}: the job said, in the end:", *said[-6:], sep="\n    ", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"], capture_output=True
    )
    again = subprocess.run(command(file, out), capture_output=True, text=True)
    x = open_embeddings(out)
    found = x[:]
    wrong = (
        int((np.abs(found - expected).max(axis=1) > 1e-5).sum()) if len(x) == len(expected) else -1
    )
    ended = "hangs" if code is None else f"exit code {code}"
    return (
        f"| {name} | {workers} | {before} | {ended}{'' if ends_well == (code == 0) else ' (!)'} "
        f"| {took:.0f} | {after} of {SHARDS} | {again.returncode} | {wrong} "
        f"| {len(expected) - len(x)} |"
    )


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(description="Lose parts of a Ray cluster in mid-job.")
    parser.add_argument("--only", action="append", choices=SCENARIOS)
    given = parser.parse_args()
    from esm2_features import Engine

    os.environ.pop("RAY_ADDRESS", None)
    heads = ("scenario", "workers", "shards before", "the job ended", "after, s", "shards then")
    heads += ("repeated without Ray, exit code", "rows wrong", "rows missing")
    with tempfile.TemporaryDirectory() as name:
        file, texts = write_inputs(Path(name))
        expected = Engine("mini", cache=None).embed(texts)
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for scenario in given.only or SCENARIOS:
            print(run(scenario, Path(name), file, expected), flush=True)


if __name__ == "__main__":
    main()
