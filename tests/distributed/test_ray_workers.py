"""Workers die, are replaced where there is room, and are waited for: Ray is played here."""

from __future__ import annotations

import socket
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from esm2_features.distributed import ray_workers
from esm2_features.distributed.ray_cluster import connect
from esm2_features.distributed.ray_workers import Head, Workers, answers
from esm2_features.distributed.records import DoneShard, FailedShard


class RayError(Exception):
    """What Ray raises when an actor has died."""


class RayTaskError(RayError):
    """What Ray raises when a task has failed."""


class Ref:
    def __init__(self, actor, task=None):
        self.actor, self.task = actor, task


class Cluster:
    """Plays Ray: `room` actors fit, and an actor dies when it comes to a task in `fatal`."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, room=2, fatal=(), results=None):
        self.room, self.fatal, self.results = room, deque(fatal), results or {}
        self.actors, self.dead, self.log, self.clock = [], set(), [], 0.0

    def make(self):
        actor = SimpleNamespace(number=len(self.actors))
        actor.is_ready = SimpleNamespace(remote=lambda: Ref(actor))
        actor.run = SimpleNamespace(remote=lambda task: Ref(actor, task))
        self.actors.append(actor)
        return actor

    def living(self):
        return [actor for actor in self.actors if id(actor) not in self.dead][: self.room]

    def wait(self, refs, num_returns, timeout):
        assert refs, "Ray refuses to wait for nothing"
        assert num_returns == 1
        ready = [ref for ref in refs if ref.actor in self.living() or id(ref.actor) in self.dead]
        self.clock += 0.1 if ready else timeout
        return sorted(ready, key=lambda ref: ref.task is not None)[:1], refs

    def get(self, ref):
        if id(ref.actor) in self.dead:
            raise RayError("The actor died.\nmore")
        if ref.task is None:
            return True
        if ref.task.name in self.fatal:
            self.fatal.remove(ref.task.name)
            self.dead.add(id(ref.actor))
            raise RayError("The actor died.\nmore")
        self.log.append((ref.actor.number, ref.task.name))
        return self.results.get(ref.task.name, done(ref.task.name))

    def kill(self, actor, no_restart):
        assert no_restart
        self.dead.add(id(actor))

    def get_runtime_context(self):
        raise RuntimeError("no head is watched")


def done(name):
    return DoneShard(name, 1, 1, "", 1, "", 0.1, 0, {})


def tasks(n):
    return (SimpleNamespace(name=f"s{i}", source=Path("s.fasta")) for i in range(n))


@pytest.fixture
def run(monkeypatch):
    """Run a job on a cluster; return the results and what was said."""

    def run(cluster, n=10, *, workers=2, patience=60, said=None):
        monkeypatch.setattr(ray_workers.time, "monotonic", lambda: cluster.clock)
        said, aside = [] if said is None else said, []
        manifest = SimpleNamespace(
            set_aside=aside.append, output=Path("out"), shards=lambda: ([], ["s9"])
        )
        options = {"patience": patience, "print_line": said.append}
        with Workers(cluster, cluster.make, workers, manifest, **options) as crew:
            results = list(crew.compute(tasks(n)))
        assert {id(actor) for actor in cluster.actors} == cluster.dead, "no actor is left"
        assert aside == [result for result in results if isinstance(result, FailedShard)]
        return results, said

    return run


def names(results):
    return sorted(result.name for result in results)


ALL = [f"s{i}" for i in range(10)]


def test_all_tasks_are_computed_once(run):
    cluster = Cluster()
    results, said = run(cluster)
    assert (names(results), said) == (ALL, [])
    assert sorted(name for _, name in cluster.log) == ALL


def test_no_tasks_start_no_worker(run):
    cluster = Cluster()
    assert run(cluster, 0) == ([], [])
    assert cluster.actors == []


def test_the_tasks_of_a_worker_that_died_are_given_to_others(run):
    cluster = Cluster(fatal=["s3"])
    results, said = run(cluster)
    assert names(results) == ALL
    assert len(cluster.actors) == 3
    assert said[0].startswith("A worker died (The actor died); computed again: s")
    assert "1 of 2 workers go on" in said[0]
    assert said[1:] == ["All 2 workers are there again."]


class Shrinking(Cluster):
    """Has less room, and no more actors than that, from the first death on."""

    def __init__(self, *args, then, **options):
        super().__init__(*args, **options)
        self.then = then

    def get(self, ref):
        try:
            return super().get(ref)
        except RayError:
            self.dead |= {id(actor) for actor in self.living()[self.then :]}
            self.room = self.then
            raise


def test_without_room_for_another_worker_the_others_go_on(run):
    results, said = run(Shrinking(fatal=["s3"], then=1))
    assert names(results) == ALL
    assert len(said) == 1


def test_a_cluster_with_room_for_fewer_workers_is_used(run):
    cluster = Cluster(room=1)
    results, _ = run(cluster, workers=4)
    assert names(results) == ALL
    assert {number for number, _ in cluster.log} == {0}


def test_a_task_that_kills_each_worker_is_set_aside_and_no_other(run):
    cluster = Cluster(fatal=["s3"] * 4)
    results, _ = run(cluster)
    assert names(results) == ALL
    [failed] = [result for result in results if isinstance(result, FailedShard)]
    assert failed.name == "s3"
    assert "The worker died each time it computed this shard (The actor died)" in failed.message
    assert not cluster.fatal


def test_a_worker_that_dies_three_times_by_chance_costs_nothing(run):
    results, _ = run(Cluster(fatal=["s3"] * 3))
    assert {type(result) for result in results} == {DoneShard}


def test_without_a_worker_the_job_ends_when_patience_does(run):
    cluster = Cluster(room=0)
    with pytest.raises(ConnectionError, match=r"has had no worker for 60 s\. 0 finished shards"):
        run(cluster)
    assert 60 < cluster.clock < 70


def test_what_is_waited_for_is_said_and_what_is_missing(run):
    said = []
    with pytest.raises(ConnectionError) as caught:
        run(Shrinking(fatal=["s3"], then=0), patience=600, said=said)
    assert "computed again: s3" in said[0]
    waiting = [line for line in said if line.startswith("No worker for")]
    assert len(waiting) == 3, "each time after twice as long"
    assert "waiting for up to 600 s (patience=); waiting: s3" in waiting[0]
    assert "The last one died: The actor died." in str(caught.value)
    assert "(s3" in str(caught.value)
    assert "Repeat the command" in str(caught.value)


def test_errors_that_end_the_job_are_raised(run):
    with pytest.raises(OSError, match="full"):
        run(Cluster(results={"s4": OSError("full")}))


# ------------------------------------------------------------------ the head


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.0.0.1:x", "127.0.0.1:99999999", "x.invalid:1"]
)
def test_nobody_answers(address):
    assert not answers(address, seconds=1.0)


def test_a_head_that_answers_is_there(listening):
    assert answers(listening, seconds=1.0)
    head = watched(listening)
    assert not head.look(time.monotonic() + 10)


def test_a_head_that_does_not_answer_is_lost_after_a_while(monkeypatch):
    head = watched("127.0.0.1:1")
    now = time.monotonic()
    assert not head.look(now), "it was asked just now"
    assert not head.look(now + 10)
    monkeypatch.setattr(Head, "patience", -1.0)
    assert head.look(now + 20)
    assert head.is_lost


def test_a_lost_head_ends_the_job(run, monkeypatch):
    cluster = Cluster(room=0)
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    cluster.get_runtime_context = lambda: context
    with pytest.raises(ConnectionError, match=r"head of the Ray cluster at 127\.0\.0\.1:1 has not"):
        run(cluster)
    assert 25 < cluster.clock < 40


def watched(address):
    context = SimpleNamespace(gcs_address=address)
    return Head(SimpleNamespace(get_runtime_context=lambda: context))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_with_nobody_there_is_an_error(address):
    ray = SimpleNamespace(is_initialized=lambda: False)
    with pytest.raises(ConnectionError, match=r"There is no Ray cluster at .*: nobody listens"):
        connect(ray, address=address, workers=1)
