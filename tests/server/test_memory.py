"""The budget of memory: shares of clients, room for small requests, and what is given back."""

from __future__ import annotations

from esm2_features.server.memory import Claim, MemoryBudget


def test_a_client_holds_up_to_half_and_gives_it_back():
    budget = MemoryBudget(1000)
    first, second = Claim(budget, "a"), Claim(budget, "a")
    assert first.take(400)
    assert not second.take(101)
    assert second.take(100)
    assert not second.fits(401)
    assert second.fits(400)
    first.release()
    first.release()
    assert second.take(400)
    second.release()
    assert budget.n_held == 0


def test_small_requests_fit_beside_large_ones():
    budget = MemoryBudget(1000)
    assert Claim(budget, "a").take(500)
    assert not Claim(budget, "b").take(376)
    assert Claim(budget, "b").take(375)
    assert not Claim(budget, "c").take(16)
    small = Claim(budget, "c")
    assert small.take(10)
    assert not small.take(6)  # with what it holds, it is no small one
    assert small.take(5)


def test_a_request_starts_once():
    budget = MemoryBudget(1000)
    calls = []
    budget.on_release = calls.append
    claim = Claim(budget, "a")
    assert claim.take(10)
    assert claim.start(200)
    assert claim.start(200)
    assert budget.n_held == 210
    claim.release()
    assert (calls, budget.n_held) == ([210], 0)
