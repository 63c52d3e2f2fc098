"""A cluster on paper: a thousand workers that die, lag and meet poison, and a billion sequences.

A discrete-event simulation of the scheduler of sharded runs: shards are handed out in order, two at
a time to each worker, one being computed and one waiting beside it. A worker that dies loses the
shard that it computes; both go back to the queue, and it comes back after a while. A shard is there
when it is renamed, which takes no time; what a worker finds there already, it skips. A poisoned
shard kills its worker each time, and is set aside after some attempts. A driver that is restarted
stops all workers, and looks at what is there. At the end, every shard is there, once, or set aside.

    python -m benchmarks.simulate
    python -m benchmarks.simulate --save
    python -m benchmarks.simulate --quick

Times of shards are those of `esm2_features._costs.estimate` for a card: the geometric mean of
a range between two shares of its peak. No card was measured.

Never here: real workers, real files.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import shape_of, workload
from esm2_features import Engine
from esm2_features._costs import estimate
from esm2_features._costs.cards import CARDS, SHARE_OF_PEAK
from esm2_features._costs.estimate import Estimate
from esm2_features._costs.input_summary import InputSummary

RESULTS = Path(__file__).with_name("results")
HOUR = 3600.0
TIE = 0.02
"""Makespans that differ by less of the ideal are equal; the larger shard wins: fewer files."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes
    ----------
    sequences, shard : int
        In total, and of one shard.
    workers : int
    seconds_per_sequence : float
        Of a worker that does not lag.
    spread : float
        Standard deviation of the logarithm of a shard's time: contents differ.
    overhead : float
        Seconds that each shard takes beside: handing out, opening, writing, renaming.
    deaths_per_hour : float
        Share of workers that die in an hour.
    comes_back : float
        Seconds until a worker that died has a machine, its process and its weights again.
    stragglers, lag : float
        Share of workers that are slow, and how many times as long they take.
    poisoned : float
        Share of sequences that kill whoever computes their shard.
    attempts : int
        After so many, a shard is set aside.
    restart_after, restart_takes : float
        When the driver dies, as a share of the ideal time (none if 0), and seconds until it has
        come back and seen what is there.
    in_flight : int
        Shards that a worker has at a time.
    seed : int
    """

    sequences: int = 1_000_000_000
    shard: int = 100_000
    workers: int = 1000
    seconds_per_sequence: float = 0.01
    spread: float = 0.1
    overhead: float = 2.0
    deaths_per_hour: float = 0.01
    comes_back: float = 180.0
    stragglers: float = 0.02
    lag: float = 3.0
    poisoned: float = 1e-8
    attempts: int = 3
    restart_after: float = 0.5
    restart_takes: float = 300.0
    in_flight: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes
    ----------
    shards, written, set_aside : int
    sound_set_aside : int
        Shards that were set aside because their workers died of something else each time.
    deaths : int
        Of workers, those by poison included.
    handed_out : int
        Shards, each as often as a worker got it.
    skipped : int
        Shards that a worker found there already.
    makespan, ideal : float
        Seconds; the ideal is the computing of all that is to be written, divided by what all
        workers can do, when none dies, waits, or does anything else.
    wasted : float
        Share of the computed seconds that came to nothing.
    idle : float
        Share of the workers' time in which they were alive and had nothing to do.
    """

    shards: int
    written: int
    set_aside: int
    sound_set_aside: int
    deaths: int
    handed_out: int
    skipped: int
    makespan: float
    ideal: float
    wasted: float
    idle: float

    @property
    def over_ideal(self) -> float:
        """How much longer than the ideal it took, as a share of it."""
        return self.makespan / self.ideal - 1


def simulate(cluster: Cluster) -> Outcome:
    """Run a cluster until all is written or set aside.

    Parameters
    ----------
    cluster : Cluster

    Returns
    -------
    outcome : Outcome

    Raises
    ------
    AssertionError
        If a shard was lost, written twice, or both written and set aside.
    """
    return _Simulation(cluster).run()


class _Simulation:
    """The state of the cluster, and what changes it: one method for each kind of event."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.random = np.random.default_rng(cluster.seed)
        shards = math.ceil(cluster.sequences / cluster.shard)
        sizes = np.full(shards, cluster.shard)
        sizes[-1] = cluster.sequences - cluster.shard * (shards - 1)
        noise = self.random.lognormal(-(cluster.spread**2) / 2, cluster.spread, shards)
        self.seconds = sizes * cluster.seconds_per_sequence * noise
        is_sound = (1 - cluster.poisoned) ** sizes
        self.is_poisoned = self.random.random(shards) >= is_sound
        is_slow = self.random.random(cluster.workers) < cluster.stragglers
        self.slowness = np.where(is_slow, cluster.lag, 1.0)
        self.ideal = float(self.seconds[~self.is_poisoned].sum() / (1 / self.slowness).sum())
        self.times_written = np.zeros(shards, int)
        self.attempts = np.zeros(shards, int)
        self.is_aside = np.zeros(shards, bool)
        self.queue = deque(range(shards))
        self.held: list[deque[int]] = [deque() for _ in range(cluster.workers)]
        self.began = np.full(cluster.workers, np.nan)  # of the shard in front
        self.is_alive = np.ones(cluster.workers, bool)
        self.life = np.zeros(cluster.workers, int)  # events of an earlier life mean nothing
        self.events: list[tuple[float, int, str, int, int]] = []
        self.order = count()
        self.now = 0.0
        self.deaths = self.handed_out = self.skipped = self.in_hand = 0
        self.useful = self.wasted = self.alive = 0.0
        self.since = np.zeros(cluster.workers)
        self.driver_is_back = 0.0

    def run(self) -> Outcome:
        cluster = self.cluster
        for worker in range(cluster.workers):
            self._start(worker)
        if cluster.restart_after:
            self._at(cluster.restart_after * self.ideal, "driver dies", -1)
        while not self._is_done():
            self.now, _, kind, worker, life = heapq.heappop(self.events)
            if worker < 0:
                self._driver_dies()
            elif life == self.life[worker]:
                {"done": self._done, "dies": self._dies, "back": self._start}[kind](worker)
        for worker in np.flatnonzero(self.is_alive):
            self.alive += self.now - self.since[worker]
        # Every shard is there once, or set aside, and nothing else happened to it.
        assert (self.times_written + self.is_aside == 1).all()
        assert self.is_aside[self.is_poisoned].all()
        computed = self.useful + self.wasted
        return Outcome(
            shards=len(self.times_written),
            written=int(self.times_written.sum()),
            set_aside=int(self.is_aside.sum()),
            sound_set_aside=int((self.is_aside & ~self.is_poisoned).sum()),
            deaths=self.deaths,
            handed_out=self.handed_out,
            skipped=self.skipped,
            makespan=self.now,
            ideal=self.ideal,
            wasted=self.wasted / computed,
            idle=max(0.0, 1 - computed / self.alive),
        )

    def _is_done(self) -> bool:
        return not self.queue and not self.in_hand

    def _at(self, moment: float, kind: str, worker: int) -> None:
        life = int(self.life[worker]) if worker >= 0 else 0
        heapq.heappush(self.events, (moment, next(self.order), kind, worker, life))

    # ------------------------------------------------------------- what happens

    def _start(self, worker: int) -> None:
        """Begin a life: when it will end is drawn now."""
        if self.now < self.driver_is_back:
            self._at(self.driver_is_back, "back", worker)
            return
        self.is_alive[worker] = True
        self.since[worker] = self.now
        if self.cluster.deaths_per_hour:
            rate = -math.log1p(-self.cluster.deaths_per_hour) / HOUR
            self._at(self.now + self.random.exponential(1 / rate), "dies", worker)
        self._fill(worker)

    def _fill(self, worker: int) -> None:
        """Hand out shards until the worker has its number, and let it begin."""
        held = self.held[worker]
        while self.queue and len(held) < self.cluster.in_flight:
            held.append(self.queue.popleft())
            self.handed_out += 1
            self.in_hand += 1
        if held and np.isnan(self.began[worker]):
            self._begin(worker)

    def _begin(self, worker: int) -> None:
        shard = self.held[worker][0]
        self.began[worker] = self.now
        takes = self.cluster.overhead
        if not self.times_written[shard]:  # else it only looks, and says so
            takes += self.seconds[shard]
        takes *= self.slowness[worker]
        if self.is_poisoned[shard]:
            self._at(self.now + takes * self.random.random(), "dies", worker)
        else:
            self._at(self.now + takes, "done", worker)

    def _done(self, worker: int) -> None:
        shard = self.held[worker].popleft()
        self.in_hand -= 1
        spent = self.now - self.began[worker]
        if self.times_written[shard]:
            self.skipped += 1
            self.wasted += spent
        else:
            self.times_written[shard] += 1
            self.useful += spent
        self.began[worker] = np.nan
        # Between the file and the word that it is there, the worker may still be lost.
        if self.random.random() < self.cluster.deaths_per_hour * self.cluster.overhead / HOUR:
            self.held[worker].appendleft(shard)
            self.in_hand += 1
            self._dies(worker)
        else:
            self._fill(worker)

    def _dies(self, worker: int) -> None:
        self.deaths += 1
        self._lose(worker, blame=True)
        self._at(max(self.now, self.driver_is_back) + self.cluster.comes_back, "back", worker)
        # What it held may be computed by whoever has nothing to do.
        for other in self._waiting():
            self._fill(other)

    def _lose(self, worker: int, *, blame: bool) -> None:
        """End a life, and take back what the worker held."""
        held = self.held[worker]
        self.in_hand -= len(held)
        if not np.isnan(self.began[worker]):
            self.wasted += self.now - self.began[worker]
            if blame:  # the shard in front may be why, and nobody can tell
                self.attempts[held[0]] += 1
                is_there = self.times_written[held[0]]
                if self.attempts[held[0]] >= self.cluster.attempts and not is_there:
                    self.is_aside[held.popleft()] = True
        self.queue.extendleft(reversed(held))
        held.clear()
        self.began[worker] = np.nan
        self.alive += self.now - self.since[worker]
        self.is_alive[worker] = False
        self.life[worker] += 1

    def _waiting(self) -> list[int]:
        if not self.queue:
            return []
        return [w for w in np.flatnonzero(self.is_alive).tolist() if not self.held[w]]

    def _driver_dies(self) -> None:
        """Stop all workers; who comes back sees what is there, and hands out the rest."""
        self.driver_is_back = self.now + self.cluster.restart_takes
        for worker in np.flatnonzero(self.is_alive).tolist():
            self._lose(worker, blame=False)
            self._at(self.driver_is_back + self.cluster.comes_back, "back", worker)
        left = (self.times_written == 0) & ~self.is_aside
        self.queue = deque(np.flatnonzero(left).tolist())


# ------------------------------------------------------------------ what is asked


def cost_of(card: str, model: str, sequences: int, seed: int = 0) -> Estimate:
    """Estimate what so many proteins take on a card, with lengths as in the mix ``proteome``."""
    summary = proteins(sequences, seed)
    precision = "float16" if card == "t4" else "bfloat16"
    engine = Engine(f"esm2_{model}_UR50D", precision=precision, cache=None)
    return estimate(engine, summary, card=card)


def proteins(sequences: int, seed: int = 0) -> InputSummary:
    """Describe so many different proteins, with lengths as in the mix ``proteome``."""
    lengths = [len(sequence) for sequence in workload("proteome", 300_000, seed)]
    times = sequences / len(lengths)
    counts = {length: round(times * n) for length, n in sorted(Counter(lengths).items())}
    return InputSummary(
        sequences=sequences,
        unique=sequences,
        residues=sum(length * n for length, n in counts.items()),
        lengths=counts,
    )


def run(given: argparse.Namespace) -> Result:
    """Simulate everything that the page shows.

    Parameters
    ----------
    given : Namespace
        The arguments.

    Returns
    -------
    result : dict
        For JSON.
    """
    start = time.perf_counter()
    costs = {name: cost_of(name, given.model, given.sequences) for name in CARDS}
    base = Cluster(
        sequences=given.sequences,
        workers=given.workers,
        seconds_per_sequence=costs[given.device].seconds.middle / given.sequences,
        seed=given.seed,
    )
    sizes = [_outcome(replace(base, shard=size)) for size in given.shards]
    best = recommended(sizes)
    chosen = replace(base, shard=best)
    alone = replace(
        chosen, deaths_per_hour=0.0, stragglers=0.0, poisoned=0.0, restart_after=0.0, spread=0.0
    )
    faults = [
        {"what": what, **_outcome(replace(alone, **changes))}
        for what, changes in {
            "nothing happens": {},
            "1 % of workers die per hour": {"deaths_per_hour": 0.01},
            "10 % of workers die per hour": {"deaths_per_hour": 0.1},
            "half of the workers die per hour": {"deaths_per_hour": 0.5},
            "2 % of workers take 3 times as long": {"stragglers": base.stragglers},
            "10 of a billion sequences kill their worker": {"poisoned": base.poisoned},
            "the driver is restarted half-way": {"restart_after": base.restart_after},
            "all of these, with 1 % of deaths": {
                name: getattr(base, name)
                for name in (
                    "deaths_per_hour", "stragglers", "poisoned", "restart_after", "spread",
                )
            },
        }.items()
    ]  # fmt: skip
    return {
        "kind": "simulate",
        "arguments": {
            "model": given.model,
            "device": given.device,
            "sequences": given.sequences,
            "workers": given.workers,
            "shards": list(given.shards),
            "seed": given.seed,
        },
        "cluster": asdict(base),
        "plan": {name: _plan(cost) for name, cost in costs.items()},
        "mean_residues": proteins(given.sequences).residues / given.sequences,
        "dim": shape_of(given.model)[1],
        "sizes": sizes,
        "recommended": best,
        "faults": faults,
        "seconds": round(time.perf_counter() - start, 1),
    }


def recommended(sizes: Sequence[Result]) -> int:
    """Choose a size of shards: the shortest run, and of those that hardly differ, fewest files."""
    fewest = min(size["sound_set_aside"] for size in sizes)
    sound = [size for size in sizes if size["sound_set_aside"] == fewest]
    shortest = min(size["over_ideal"] for size in sound)
    return max(size["shard"] for size in sound if size["over_ideal"] <= shortest + TIE)


def _outcome(cluster: Cluster) -> Result:
    outcome = simulate(cluster)
    return {"shard": cluster.shard, **asdict(outcome), "over_ideal": outcome.over_ideal}


def _plan(cost: Estimate) -> Result:
    return {
        "hours": {name: value / HOUR for name, value in cost.seconds._asdict().items()},
        "batch_tokens": cost.batch_tokens,
        "device_bytes": cost.device_bytes,
        "output_bytes": cost.output_bytes,
        "cache_bytes": cost.cache_bytes,
    }


# ------------------------------------------------------------------ how it reads


def table(result: Result) -> str:
    """Write a result as Markdown.

    Parameters
    ----------
    result : dict
        As `run` gives it.

    Returns
    -------
    markdown : str
    """
    given, cluster = result["arguments"], result["cluster"]
    best = next(size for size in result["sizes"] if size["shard"] == result["recommended"])
    out = next(iter(result["plan"].values()))["output_bytes"]
    written = out["float16"] / best["makespan"]
    worst, share = SHARE_OF_PEAK
    return "\n".join(
        [
            f"**Time**, for {given['sequences']:,} different sequences of "
            f"{result['mean_residues']:.0f} residues on average, {given['model']}, last layer, "
            "mean. No card was measured: vendors' peaks, of which a run is assumed to reach "
            f"{worst:.0%} to {share:.0%}.",
            "",
            "| card | card-hours | range | hours with 8 cards | with 100 | batch, tokens |",
            "|---|---:|---:|---:|---:|---:|",
            *(_plan_row(name, plan) for name, plan in result["plan"].items()),
            "",
            f"**Storage** of {result['dim']} numbers for each sequence: "
            f"{out['float32'] / 1e12:.2f} TB in float32, {out['float16'] / 1e12:.2f} TB in "
            f"float16. A shard of {best['shard']:,} sequences is "
            f"{best['shard'] * result['dim'] * 2 / 1e6:,.0f} MB in float16, and there are "
            f"{best['shards']:,} of them.",
            "",
            f"**Size of shards**: {given['workers']:,} workers, each as fast as one "
            f"{CARDS[given['device']].title} by the estimate above; "
            f"{cluster['deaths_per_hour']:.0%} die per hour and come back after "
            f"{cluster['comes_back']:.0f} s, {cluster['stragglers']:.0%} take {cluster['lag']:.0f} "
            f"times as long, {cluster['poisoned'] * 1e9:.0f} of a billion sequences kill "
            "their worker, "
            f"each shard costs {cluster['overhead']:.0f} s beside its computing, and the driver is "
            "restarted half-way.",
            "",
            "| sequences of a shard | shards | hours | over the ideal | computed in vain | idle "
            "| deaths | set aside | of these sound |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {size['shard']:,} | {size['shards']:,} | {size['makespan'] / HOUR:.2f} "
                f"| {size['over_ideal']:.1%} | {size['wasted']:.2%} | {size['idle']:.1%} "
                f"| {size['deaths']:,} | {size['set_aside']} | {size['sound_set_aside']} |"
                for size in result["sizes"]
            ),
            "",
            f"Recommended: {result['recommended']:,} sequences, which take a worker about "
            f"{result['recommended'] * cluster['seconds_per_sequence']:.0f} s: the largest shard "
            f"within {TIE:.0%} of the shortest run among those that set no sound shard aside. "
            f"Together, the workers write {written / 1e6:,.0f} MB and "
            f"{best['written'] / best['makespan']:.1f} files per second then, in float16.",
            "",
            f"**What each fault costs**, with shards of {result['recommended']:,}:",
            "",
            "| what happens | hours | over the ideal | computed in vain | deaths | set aside "
            "| of these sound |",
            "|---|---:|---:|---:|---:|---:|---:|",
            *(
                f"| {fault['what']} | {fault['makespan'] / HOUR:.2f} | {fault['over_ideal']:.1%} "
                f"| {fault['wasted']:.2%} | {fault['deaths']:,} | {fault['set_aside']} "
                f"| {fault['sound_set_aside']} |"
                for fault in result["faults"]
            ),
            "",
            "In each of these runs, every shard was written exactly once, or set aside after "
            f"{cluster['attempts']} attempts; the simulation stops with an error otherwise.",
        ]
    )


def _plan_row(name: str, plan: Result) -> str:
    hours = plan["hours"]
    return (
        f"| {CARDS[name].title} | {hours['middle']:,.0f} | {hours['low']:,.0f} to "
        f"{hours['high']:,.0f} | {hours['middle'] / 8:,.0f} | {hours['middle'] / 100:,.1f} "
        f"| {plan['batch_tokens']:,} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print, and save if asked."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.simulate", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--model", default="t33_650M", help="shape of the model")
    add("--device", default="t4", choices=list(CARDS), help="what a worker has")
    add("--sequences", type=int, default=1_000_000_000)
    add("--workers", type=int, default=1000)
    add(
        "--shards",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000],
        metavar="N,...",
        help="sequences of a shard, each of which is simulated",
    )
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="a small cluster, in a second")
    add("--save", action="store_true", help="write simulate.json")
    add("--results", type=Path, default=RESULTS, help="its folder")
    given = parser.parse_args(arguments)
    if given.quick:
        given.sequences, given.workers, given.shards = 1_000_000, 20, [2000, 10_000]
    result = run(given)
    print(table(result))
    if given.save:
        given.results.mkdir(parents=True, exist_ok=True)
        file = given.results / "simulate.json"
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
