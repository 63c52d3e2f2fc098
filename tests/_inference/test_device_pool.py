"""Several devices share a run: each batch once, a slow one holds up nobody, nothing is lost."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from esm2_features import Cache, Engine, ESM2Transformer
from esm2_features._inference.batch_loop import BatchLoop
from esm2_features._inference.device_pool import DevicePool
from esm2_features._inference.local import LocalBackend
from esm2_features._model.interruption import CALLED_OFF
from esm2_features.exceptions import OutOfMemoryError

SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGEWQLVLHVWAK", "MKT", "ACDEFGHIKL", "W", "MKTAYIAKQRGSH"] * 5
SEQUENCES = [sequence + "A" * (i // 6) for i, sequence in enumerate(SEQUENCES)]


class Device:
    """Computes lengths, and writes down which; may wait for a word, hold little, or break."""

    def __init__(self, go_on=None, most_tokens=10**9, breaks=lambda views: False):
        self.computed: list[str] = []
        self.go_on, self.most_tokens, self.breaks = go_on, most_tokens, breaks

    def forward(self, views, budget):
        if self.go_on is not None:
            assert self.go_on.wait(60)
        if sum(len(s) + 2 for s in views) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if self.breaks(views):
            raise RuntimeError("a broken kernel")
        self.computed += views
        return lambda: [len(s) for s in views]

    def passes(self, budget=20):
        return BatchLoop(
            SEQUENCES,
            forward=self.forward,
            bytes_of=lambda residues: residues,
            claim=list,
            device=torch.device("cpu"),
            budget=budget,
            on_smaller_budget=lambda budget: None,
            progress=lambda residues: None,
        )


def collect(devices, found=None, budget=20):
    found = {} if found is None else found
    for batch, results in DevicePool([d.passes(budget) for d in devices]).run(
        range(len(SEQUENCES))
    ):
        assert not set(batch) & set(found)
        found.update(zip(batch, results, strict=True))
    return found


LENGTHS = dict(enumerate(map(len, SEQUENCES)))


@pytest.mark.parametrize("count", [2, 3, 8])
def test__pool__computes_everything_once(count):
    devices = [Device() for _ in range(count)]
    assert collect(devices) == LENGTHS
    assert sorted(s for device in devices for s in device.computed) == sorted(SEQUENCES)


def test__pool__a_device_that_stands_still_holds_up_nobody():
    word = threading.Event()
    slow, quick = Device(go_on=word), Device()
    found = {}
    for batch, results in DevicePool([slow.passes(), quick.passes()]).run(range(len(SEQUENCES))):
        found.update(zip(batch, results, strict=True))
        # All but the one batch that the slow one is at: only then may it go on.
        if len(quick.computed) + 2 >= len(SEQUENCES):
            word.set()
    assert found == LENGTHS
    assert len(slow.computed) <= 2


def test__pool__memory_that_ends_on_one_device_is_its_own_affair():
    small, large = Device(most_tokens=30), Device()
    assert collect([small, large], budget=120) == LENGTHS


def test__pool__an_error_comes_after_all_that_was_computed():
    found = {}
    fails = Device(breaks=lambda views: any(s[0] == "W" for s in views))
    sound = Device(breaks=fails.breaks)
    with pytest.raises(RuntimeError, match="a broken kernel"):
        collect([fails, sound], found)
    assert found
    assert sorted(SEQUENCES[i] for i in found) == sorted(fails.computed + sound.computed)
    assert len(found) < len(SEQUENCES)


def test__pool__one_that_fits_nowhere_is_an_error():
    with pytest.raises(OutOfMemoryError):
        collect([Device(most_tokens=10), Device(most_tokens=10)])


def test__pool__what_is_interrupted_gives_what_is_done(monkeypatch):
    devices = [Device(), Device()]
    pool = DevicePool([device.passes() for device in devices])
    finished = pool._finished
    calls = iter(range(10))

    def interrupted():
        if next(calls) == 1:
            raise KeyboardInterrupt
        yield from finished()

    monkeypatch.setattr(pool, "_finished", interrupted)
    found = []
    results = pool.run(range(len(SEQUENCES)))
    with pytest.raises(KeyboardInterrupt):
        found.extend(i for batch, _ in results for i in batch)
    assert sorted(SEQUENCES[i] for i in found) == sorted(s for d in devices for s in d.computed)


def test__pool__nothing_goes_on_when_nobody_listens():
    class Gate:  # opens for a few, and for the rest when the run is called off
        def wait(self, seconds):
            return sum(len(d.computed) for d in devices) < 4 or pool._stop.wait(seconds)

    devices = [Device(go_on=Gate()), Device(go_on=Gate())]
    pool = DevicePool([device.passes() for device in devices])
    results = pool.run(range(len(SEQUENCES)))
    next(results)
    results.close()
    assert sum(len(device.computed) for device in devices) < len(SEQUENCES)


def test__pool__passes_under_way_end_when_it_is_called_off():
    ended = []

    class Endless(Device):  # a pass of many blocks
        def forward(self, views, budget):
            ended.append(CALLED_OFF.get().wait(60))
            raise KeyboardInterrupt

    pool = DevicePool([Device().passes(), Endless().passes()])
    results = pool.run(range(len(SEQUENCES)))
    next(results)
    results.close()
    assert ended == [True]


# ------------------------------------------------------------------ the engine

DEVICES = ["cpu", "cpu"]


@pytest.mark.parametrize("budget", [8, 64, "auto"])
def test__embed__is_the_same_on_several_devices(tiny_checkpoint, tmp_path, budget):
    one = Engine(tiny_checkpoint, device="cpu", cache=None).embed(SEQUENCES)
    engine = Engine(tiny_checkpoint, device=DEVICES, cache=tmp_path, batch_tokens=budget)
    np.testing.assert_array_equal(engine.embed(SEQUENCES), one)
    assert engine.n_computed == len(set(SEQUENCES))
    cached = Engine(tiny_checkpoint, device="cpu", cache=Cache(tmp_path))
    np.testing.assert_array_equal(cached.embed(SEQUENCES), one)
    assert cached.n_computed == 0


def test__residues__are_the_same_on_several_devices(tiny_checkpoint):
    one = Engine(tiny_checkpoint, device="cpu", cache=None)
    many = Engine(tiny_checkpoint, device="cpu,cpu", cache=None, batch_tokens=16)
    for product in (Engine.residues, Engine.log_probs):
        for ours, theirs in zip(product(many, SEQUENCES), product(one, SEQUENCES), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test__several_devices__leave_the_threads_of_the_user_alone(tiny_checkpoint):
    before = torch.get_num_threads()
    Engine(tiny_checkpoint, device=DEVICES, cache=None).embed(SEQUENCES)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test__grid_search__over_several_devices(tiny_checkpoint, tmp_path, backend):
    esm2 = ESM2Transformer(tiny_checkpoint, device=DEVICES, cache=tmp_path, batch_tokens=32)
    y = np.arange(len(SEQUENCES)) % 3
    search = GridSearchCV(make_pipeline(esm2, Ridge()), {"ridge__alpha": [1, 2]}, cv=3, n_jobs=2)
    with parallel_config(backend=backend):
        search.fit(SEQUENCES, y)
    alone = ESM2Transformer(tiny_checkpoint, device="cpu", cache=None).fit_transform(SEQUENCES)
    np.testing.assert_array_equal(search.best_estimator_[0].transform(SEQUENCES), alone)


def test__all__is_what_there_is(tiny_checkpoint, monkeypatch):
    from esm2_features._model.devices import resolve_device, resolve_devices

    if torch.cuda.is_available():
        cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        assert list(map(str, resolve_devices(("all",), "float32"))) == cards
    else:
        assert list(map(str, resolve_devices(("all",), "float32"))) == [str(resolve_device("auto"))]
    assert list(map(str, resolve_devices(("cpu", "cpu"), "float32"))) == ["cpu", "cpu"]


def test__repr__names_the_devices(esm2):
    estimator = esm2(device=DEVICES)
    estimator.fit_transform(SEQUENCES)
    assert "weights loaded on cpu" in estimator._repr_html_()


# ------------------------------------------------------------------ workers on one CPU

MANY = ["MKTAYIAKQR"[: 1 + i % 10] + "ACDEFGHIKL"[i // 10 % 10] * (i // 40) for i in range(400)]


@pytest.fixture
def workers(monkeypatch):
    """Two workers, who share 64 tokens; the rest is true."""
    monkeypatch.setattr("esm2_features._model.devices._TOKENS_OF_WORKER", 32)
    monkeypatch.setattr("esm2_features._model.devices._cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield {"device": "cpu", "batch_tokens": 64}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


class Noting(LocalBackend):
    def forward(self, network, extractor, sharing, views, budget):
        wait = super().forward(network, extractor, sharing, views, budget)
        self.noted.append((sharing, budget, list(views)))
        return wait


def noting(engine):
    engine.runner.backend.__class__ = Noting
    engine.runner.backend.noted = []
    return engine.runner.backend.noted


def test__workers__give_the_same_bits_and_take_each_sequence_once(
    workers, tiny_checkpoint, tmp_path
):
    long = ["W" * 50, "M" * 70]  # longer than the share of one
    one = Engine(tiny_checkpoint, device="cpu", cache=None, batch_tokens=31)
    many = Engine(tiny_checkpoint, cache=tmp_path, **workers)
    noted = noting(many)
    np.testing.assert_array_equal(many.embed(MANY + long), one.embed(MANY + long))
    assert many.n_computed == len(set(MANY)) + 2
    passes = [(sharing, budget) for sharing, budget, _ in noted]
    assert passes[:2] == [(1, 64)] * 2
    assert set(passes[2:]) == {(2, 32)}
    assert sorted(view for _, _, views in noted for view in views) == sorted({*MANY, *long})
    for ours, theirs in zip(many.residues(MANY), one.residues(MANY), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test__workers__compute_what_a_plan_says(workers, tiny_checkpoint):
    engine = Engine(tiny_checkpoint, cache=None, **workers)
    planned = engine.runner.plan([*MANY, "W" * 50], engine.columns).batches.batches
    noted = noting(engine)
    engine.embed([*MANY, "W" * 50])
    assert sorted(planned) == sorted(views for _, _, views in noted)


def test__workers__do_not_come_for_few_sequences(workers, tiny_checkpoint):
    engine = Engine(tiny_checkpoint, cache=None, **workers)
    noted = noting(engine)
    engine.embed(MANY[:20])
    assert {sharing for sharing, _, _ in noted} == {1}


def test__workers__an_error_keeps_what_was_computed(workers, tiny_checkpoint, tmp_path):
    class Breaking(LocalBackend):
        def forward(self, network, extractor, sharing, views, budget):
            if any(len(view) == 1 for view in views):
                raise RuntimeError("a broken kernel")
            return super().forward(network, extractor, sharing, views, budget)

    engine = Engine(tiny_checkpoint, cache=tmp_path, **workers)
    engine.runner.backend.__class__ = Breaking
    with pytest.raises(RuntimeError, match="a broken kernel"):
        engine.embed(MANY)
    assert 0 < engine.n_computed < len(set(MANY))
    again = Engine(tiny_checkpoint, cache=tmp_path, **workers)
    again.embed(MANY)
    assert again.n_computed == len(set(MANY)) - engine.n_computed


def test__a_pass__ends_between_two_blocks_once_it_is_called_off(tiny_checkpoint):
    engine, event = Engine(tiny_checkpoint, device="cpu", cache=None), threading.Event()
    token = CALLED_OFF.set(event)
    try:
        engine.embed(["MKT"])
        event.set()
        with pytest.raises(KeyboardInterrupt):
            engine.embed(["MKTA"])
    finally:
        CALLED_OFF.reset(token)
