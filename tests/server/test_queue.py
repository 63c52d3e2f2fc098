"""The queue: batches, turns, and dropped requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from esm2_features.server.errors import ApiError
from esm2_features.server.memory import Claim, MemoryBudget
from esm2_features.server.metrics import Metrics
from esm2_features.server.queue import RequestQueue
from esm2_features.server.requests import FeatureRequest

FOREVER = float("inf")


class Worker:
    """Returns the sequences themselves, when it is released."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, model: str, kind: tuple[Any, ...], sequences: list[str]) -> list[Any]:
        self.calls.append((model, sequences))
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if "BAD" in sequences:
            raise ValueError("BAD")
        return [f"{model}:{text}" for text in sequences]


def job(*sequences: str, model: str = "m", include: tuple[str, ...] = ("mean",)) -> FeatureRequest:
    lengths = [len(text) for text in sequences]
    return FeatureRequest(model, "encode", list(sequences), lengths, include, (1,))


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Worker, RequestQueue]]]:
    made = []

    def make(**options: Any) -> tuple[Worker, RequestQueue]:
        worker = Worker()
        usual = {"budget": 100, "wait": 0.0, "max_waiting": 10, "metrics": Metrics()}
        queue = RequestQueue([worker], **{**usual, **options})
        made.append((worker, queue))
        return worker, queue

    yield make
    for worker, queue in made:
        worker.go.release(1000)
        queue.close()


def busy(worker: Worker, queue: RequestQueue) -> Any:
    """Keep the worker busy, so that the next requests wait."""
    [future] = queue.submit(job("FIRST"), deadline=FOREVER)
    assert worker.begun.acquire(timeout=30)
    return future


def test_waiting_requests_share_a_batch(start):
    worker, queue = start()
    first = busy(worker, queue)
    futures = [queue.submit(job(*text), deadline=FOREVER)[0] for text in ("AB", "C", "DEF")]
    worker.go.release(2)
    assert first.result(30) == ["m:FIRST"]
    assert [future.result(30) for future in futures] == [
        ["m:A", "m:B"],
        ["m:C"],
        ["m:D", "m:E", "m:F"],
    ]
    assert worker.calls[1:] == [("m", ["A", "B", "C", "D", "E", "F"])]


def test_other_models_and_outputs_have_batches_of_their_own(start):
    worker, queue = start()
    busy(worker, queue)
    jobs = [job("A"), job("B", model="n"), job("C", include=("contacts",)), job("D")]
    futures = [queue.submit(one, deadline=FOREVER)[0] for one in jobs]
    worker.go.release(10)
    assert [future.result(30) for future in futures] == [["m:A"], ["n:B"], ["m:C"], ["m:D"]]
    assert worker.calls[1:] == [("m", ["A", "D"]), ("n", ["B"]), ("m", ["C"])]


def test_one_request_may_need_several_computations(start):
    worker, queue = start()
    worker.go.release(10)
    futures = queue.submit(job("A", include=("mean", "contacts", "attentions")), deadline=FOREVER)
    assert [future.result(30) for future in futures] == [["m:A"]] * 2


def test_a_large_request_does_not_hold_up_a_small_one(start):
    worker, queue = start(budget=9)
    large = queue.submit(job(*"ABCDEFGHI"), deadline=FOREVER)[0]
    assert worker.begun.acquire(timeout=30)
    small = queue.submit(job("X", include=("bos",)), deadline=FOREVER)[0]
    worker.go.release(3)
    assert small.result(30) == ["m:X"]
    assert not large.done()
    worker.go.release(10)
    assert large.result(30) == [f"m:{letter}" for letter in "ABCDEFGHI"]
    assert ["".join(texts) for _, texts in worker.calls] == ["ABC", "DEF", "X", "GHI"]


def test_a_sequence_that_is_larger_than_the_budget_goes_alone(start):
    worker, queue = start(budget=5)
    worker.go.release(10)
    [future] = queue.submit(job("A", "B" * 50, "C"), deadline=FOREVER)
    assert future.result(30) == ["m:A", f"m:{'B' * 50}", "m:C"]
    assert [len(texts) for _, texts in worker.calls] == [1, 1, 1]


def test_an_error_stays_with_its_request(start):
    worker, queue = start()
    busy(worker, queue)
    good = queue.submit(job("A"), deadline=FOREVER)[0]
    bad = queue.submit(job("BAD"), deadline=FOREVER)[0]
    worker.go.release(10)
    assert good.result(30) == ["m:A"]
    with pytest.raises(ValueError, match="BAD"):
        bad.result(30)


def test_cancelled_and_late_requests_are_not_computed(start):
    worker, queue = start()
    first = busy(worker, queue)
    taken_back = queue.submit(job("GONE"), deadline=FOREVER)[0]
    late = queue.submit(job("LATE"), deadline=time.monotonic() - 1)[0]
    kept = queue.submit(job("KEPT"), deadline=FOREVER)[0]
    assert taken_back.cancel()
    worker.go.release(10)
    assert first.result(30)
    assert kept.result(30) == ["m:KEPT"]
    assert late.cancelled()
    assert worker.calls[1:] == [("m", ["KEPT"])]


def test_the_rest_of_a_cancelled_request_is_not_computed(start):
    worker, queue = start(budget=3)
    [future] = queue.submit(job(*"ABC"), deadline=FOREVER)
    assert worker.begun.acquire(timeout=30)
    assert future.cancel()
    after = queue.submit(job("X"), deadline=FOREVER)[0]
    worker.go.release(10)
    assert after.result(30) == ["m:X"]
    assert [texts for _, texts in worker.calls] == [["A"], ["X"]]


def test_a_full_queue_is_an_error_with_the_time_to_retry(start):
    worker, queue = start(max_waiting=2)
    busy(worker, queue)
    waiting = [queue.submit(job("A"), deadline=FOREVER, client=one)[0] for one in "ab"]
    with pytest.raises(ApiError) as refusal:
        queue.submit(job("B"), deadline=FOREVER, client="2")
    assert (refusal.value.status, refusal.value.code) == (503, "busy")
    assert refusal.value.response().headers["retry-after"].isdecimal()
    waiting[0].cancel()  # which makes room
    queue.submit(job("C"), deadline=FOREVER, client="3")


def test_closing_finishes_the_accepted_requests(start):
    worker, queue = start(wait=3600.0)
    future = queue.submit(job("A"), deadline=FOREVER)[0]  # waits an hour for company
    worker.go.release(10)
    queue.close()
    assert future.result(0) == ["m:A"]
    with pytest.raises(ApiError, match="going down"):
        queue.submit(job("B"), deadline=FOREVER)


def test_several_devices_share_the_queue():
    workers = [Worker(), Worker()]
    queue = RequestQueue(workers, budget=3, wait=0.0, max_waiting=10, metrics=Metrics())
    [future] = queue.submit(job(*"AB"), deadline=FOREVER)
    for worker in workers:  # each has one of the two
        assert worker.begun.acquire(timeout=30)
    for worker in workers:
        worker.go.release()
    assert future.result(30) == ["m:A", "m:B"]
    queue.close()


def test_clients_take_turns_whatever_they_send(start):
    worker, queue = start(budget=10, max_waiting=100)
    busy(worker, queue)
    many = [
        queue.submit(job("AAAA", "CCCC"), deadline=FOREVER, client="greedy")[0] for _ in range(20)
    ]
    one = queue.submit(job("E"), deadline=FOREVER, client="modest")[0]
    other = queue.submit(job("F", model="n"), deadline=FOREVER, client="third")[0]
    worker.go.release(4)
    assert one.result(timeout=30) == ["m:E"]
    assert other.result(timeout=30) == ["n:F"]
    assert sum(future.done() for future in many) <= 2
    worker.go.release(100)
    assert all(future.result(timeout=30) == ["m:AAAA", "m:CCCC"] for future in many)


def test_a_client_cannot_fill_the_queue(start):
    worker, queue = start(max_waiting=4)
    busy(worker, queue)
    for _ in range(2):
        queue.submit(job("A"), deadline=FOREVER, client="greedy")
    with pytest.raises(ApiError, match="2 requests are waiting already"):
        queue.submit(job("A"), deadline=FOREVER, client="greedy")
    queue.submit(job("A"), deadline=FOREVER, client="modest")


def test_a_request_waits_until_its_memory_fits_while_others_pass(start):
    budget = MemoryBudget(1000)
    worker, queue = start()
    budget.on_release = lambda _: queue.wake()
    worker.go.release(100)
    claims = [Claim(budget, client) for client in "aab"]
    requests = [replace(job(text), n_bytes=300) for text in ("AB", "CD", "EF")]
    first, second, third = (
        queue.submit(request, deadline=FOREVER, client=claim.client, claim=claim)[0]
        for request, claim in zip(requests, claims, strict=True)
    )
    assert first.result(30) == ["m:AB"]
    assert third.result(30) == ["m:EF"]
    assert not second.done()
    claims[0].release()
    assert second.result(30) == ["m:CD"]
    for claim in claims:
        claim.release()
    assert budget.n_held == 0
