"""The simulated cluster loses no shard, and the pages show what was saved."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import estimate_error, report, simulate, storage
from benchmarks.simulate import Cluster
from esm2_features._costs.cards import CARDS

SMALL = Cluster(sequences=200_000, shard=1000, workers=10, seconds_per_sequence=0.05)
CALM = replace(
    SMALL, spread=0.0, deaths_per_hour=0.0, stragglers=0.0, poisoned=0.0, restart_after=0.0
)


def test__simulate__without_faults_takes_the_ideal_and_the_overhead():
    found = simulate.simulate(CALM)
    assert (found.written, found.set_aside, found.deaths) == (200, 0, 0)
    assert found.handed_out == 200
    assert found.ideal == pytest.approx(200_000 * 0.05 / 10)
    assert found.makespan == pytest.approx(20 * (50 + 2))
    assert found.wasted == 0


@pytest.mark.parametrize("seed", range(20))
def test__simulate__every_shard_is_written_once_or_set_aside(seed):
    cluster = replace(
        SMALL, deaths_per_hour=0.99, poisoned=1e-5, stragglers=0.3, comes_back=20.0, seed=seed
    )
    found = simulate.simulate(cluster)  # which asserts it, shard by shard
    assert found.written + found.set_aside == found.shards == 200
    assert found.deaths > 0
    assert found.wasted > 0
    assert found.makespan > found.ideal


def test__simulate__a_shard_that_was_written_twice_would_be_noticed(monkeypatch):
    done = simulate._Simulation._done

    def twice(self, worker):
        self.times_written[self.held[worker][0]] += 0 if self.handed_out < 50 else 1
        done(self, worker)
        self.times_written[:] = np.where(self.times_written > 0, self.times_written, 0)
        self.times_written[0] = 2

    monkeypatch.setattr(simulate._Simulation, "_done", twice)
    with pytest.raises(AssertionError):
        simulate.simulate(CALM)


def test__simulate__a_word_that_is_lost_costs_a_look(monkeypatch):
    # Certain to be lost, until the worker comes back: 3600 s of overhead at 100 %.
    cluster = replace(CALM, overhead=1800.0, deaths_per_hour=0.9999, comes_back=1.0, attempts=10**6)
    found = simulate.simulate(cluster)
    assert found.skipped > 0
    assert found.written == 200


def test__simulate__poison_is_set_aside_after_its_attempts():
    found = simulate.simulate(replace(CALM, poisoned=1e-5))
    assert found.set_aside > 0
    assert found.sound_set_aside == 0
    assert found.deaths == 3 * found.set_aside


def test__simulate__stragglers_and_restarts_cost_time():
    calm = simulate.simulate(CALM).makespan
    lag = replace(CALM, stragglers=0.2, seed=1)
    assert simulate.simulate(lag).over_ideal > simulate.simulate(CALM).over_ideal
    restarted = simulate.simulate(replace(CALM, restart_after=0.5)).makespan
    assert restarted >= calm + CALM.restart_takes


def test__simulate__the_same_seed_gives_the_same():
    cluster = replace(SMALL, deaths_per_hour=0.5)
    assert simulate.simulate(cluster) == simulate.simulate(cluster)


def test__recommended__is_the_largest_that_is_good_enough():
    def size(shard, over, sound):
        return {"shard": shard, "over_ideal": over, "sound_set_aside": sound}

    sizes = [size(1, 0.5, 0), size(2, 0.10, 0), size(4, 0.115, 0), size(8, 0.2, 0), size(16, 0, 3)]
    assert simulate.recommended(sizes) == 4


def test__scripts__run_small_and_save(tmp_path, capsys):
    simulate.main(["--quick", "--save", "--results", str(tmp_path)])
    storage.main(["--mutants", "12", "--save", "--results", str(tmp_path)])
    estimate_error.main(["--quick", "--save", "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    for kind, markdown in report.tables(report.read(tmp_path)).items():
        assert markdown in shown, kind
    assert {path.stem for path in tmp_path.glob("*.json")} == {"simulate", "storage", "estimate"}


def test__storage__rounding_hardly_moves_a_vector():
    assert doctest.testmod(storage).failed == 0
    rows = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    found = storage.compare(rows, rows.astype(np.float16))
    assert 0 < found["cosine"] < 1e-6
    assert found["same_nearest"] > 0.9
    assert storage.compare(rows, rows[::-1])["same_nearest"] < 0.5


def test__pages__show_what_was_saved():
    shown = report.tables(report.read(report.RESULTS))
    for kind in ("simulate", "storage", "estimate"):
        text = report.PAGES.get(kind, report.README).read_text(encoding="utf-8")
        assert report.insert(text, kind, shown[kind]) == text, kind


def test__plan__of_the_page_is_that_of_the_estimate():
    saved = json.loads((report.RESULTS / "simulate.json").read_text(encoding="utf-8"))
    for name in CARDS:
        given = saved["arguments"]
        now = simulate.cost_of(name, given["model"], given["sequences"])
        hours = saved["plan"][name]["hours"]
        assert hours["low"] == pytest.approx(now.seconds.low / 3600, rel=1e-2)
        assert hours["high"] == pytest.approx(now.seconds.high / 3600, rel=1e-2)
