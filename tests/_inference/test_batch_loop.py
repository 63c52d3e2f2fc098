"""Batches are computed in order, begun ahead where a device computes by itself, and not lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esm2_features import Engine
from esm2_features._inference.batch_loop import BatchLoop, divide
from esm2_features._inference.local import LocalBackend
from esm2_features.exceptions import OutOfMemoryError

SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGEWQLVLHVWAK", "MKT", "ACDEFGHIKL", "W", "MKTAYIAKQRGSH"]


class Device:
    """Computes nothing, and writes down what it is asked and when it is waited for."""

    def __init__(self, most_tokens=10**9, broken=None):
        self.log: list[str] = []
        self.most_tokens = most_tokens
        self.broken = broken

    def forward(self, views, budget):
        self.log.append(f"begin {','.join(views)}")
        if sum(len(s) + 2 for s in views) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self.broken in views:
            raise RuntimeError("a broken kernel")

        def wait():
            self.log.append(f"wait {','.join(views)}")
            return [len(s) for s in views]

        return wait

    def passes(self, views, budget):
        return BatchLoop(
            views,
            forward=self.forward,
            bytes_of=lambda residues: residues,
            claim=list,
            device=torch.device("cpu"),
            budget=budget,
            on_smaller_budget=lambda budget: None,
            progress=lambda residues: None,
        )


@pytest.fixture(params=[0, 1, 2])
def ahead(request, monkeypatch):
    monkeypatch.setattr("esm2_features._model.devices.batches_ahead", lambda device: request.param)
    return request.param


def collect(passes, count):
    found = {}
    for batch, results in passes.run(range(count)):
        found.update(zip(batch, results, strict=True))
    return found


def test__passes__begin_so_many_before_one_is_waited_for(ahead):
    device, views = Device(), ["A" * n for n in (9, 8, 7, 6, 5)]
    assert collect(device.passes(views, 11), 5) == dict(enumerate((9, 8, 7, 6, 5)))
    words = [line.split()[0] for line in device.log]
    assert words[: ahead + 2] == ["begin"] * (ahead + 1) + ["wait"]
    most = max(words[:k].count("begin") - words[:k].count("wait") for k in range(len(words)))
    assert most == ahead + 1
    assert [line[5:] for line in device.log if "wait" in line] == views


def test__passes__out_of_memory_halves_and_remembers_and_loses_nothing(ahead):
    device, views = Device(most_tokens=12), ["A" * n for n in (9, 4, 4, 4, 3, 3, 2, 1)]
    passes = device.passes(views, 40)
    assert collect(passes, 8) == dict(enumerate(map(len, views)))
    assert passes.budget <= 12


def test__passes__one_that_does_not_fit_is_an_error_after_what_was_begun_is_given(ahead):
    device, views = Device(most_tokens=8), ["A" * 12, "AAAA"]
    with pytest.raises(OutOfMemoryError, match="One sequence of 12 residues"):
        collect(device.passes(views, 14), 2)


def test__passes__an_error_comes_after_what_was_begun_before_it(ahead):
    device, views = Device(broken="AAA"), ["AAAAA", "AAAA", "AAA", "AA"]
    given = device.passes(views, 2).run(range(4))
    assert [next(given)[0], next(given)[0]] == [[0], [1]]
    with pytest.raises(RuntimeError, match="a broken kernel"):
        next(given)


def test__embed__gives_the_same_where_passes_are_begun_ahead(tiny_checkpoint, ahead, tmp_path):
    plain = Engine(tiny_checkpoint, cache=None).embed(SEQUENCES)
    engine = Engine(tiny_checkpoint, cache=tmp_path, batch_tokens=20)
    np.testing.assert_array_equal(engine.embed(SEQUENCES), plain)
    assert engine.cache.info().rows == len(SEQUENCES)


def test__stream__a_budget_that_fits_is_remembered_for_the_next_portion(tiny_checkpoint):
    tried = []

    class Small(LocalBackend):
        def forward(self, network, extractor, sharing, views, budget):
            tried.append(sum(len(s) + 2 for s in views))
            if tried[-1] > 24:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(network, extractor, sharing, views, budget)

    engine = Engine(tiny_checkpoint, cache=None)
    engine.runner.backend.__class__ = Small
    engine.embed(SEQUENCES)
    before = len(tried)
    engine.embed(SEQUENCES)
    assert max(tried[:before]) > 24 >= max(tried[before:])


# ------------------------------------------------------------------ workers on a CPU


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 10, 400])
def test__division__gives_each_view_to_one_of_both(workers, count):
    views = ["A" * (1 + i * 7 % 60) for i in range(count)]
    together, apart = divide(views, 200, lambda residues: 4, workers)
    assert sorted(together + apart) == list(range(count))
    assert all(len(views[i]) + 2 <= 200 // workers for i in apart)
    if apart:
        assert all(len(views[i]) + 2 > 200 // workers for i in together)
    assert bool(apart) == (workers > 1 and count == 400)


def test__division__what_is_long_or_has_large_results_takes_all_cores():
    short = ["C" * n for n in range(1, 40)]
    parts = [f"{'M' * 40}@0:{n}" for n in range(1, 41)]  # of one sequence, together large
    views = [*short, "W" * 49, *parts, "W" * 48]
    together, apart = divide(
        views, 100, lambda residues: 1 << 22 if residues == 40 else 4, workers=2
    )
    assert [views[i] for i in together] == ["W" * 49, *parts]
    assert [views[i] for i in apart] == [*short, "W" * 48]
