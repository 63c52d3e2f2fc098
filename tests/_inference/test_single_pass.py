"""Each sequence is computed once: over folds, grids, processes, threads, layers and poolings."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from counting import LOADED, CountingTransformer, computed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from esm2_features import Cache, Engine
from esm2_features._cache.claims import Claims
from esm2_features._cache.keys import computation_keys
from esm2_features._inference.local import LocalBackend
from esm2_features.exceptions import DownloadError, InputError

RNG = np.random.default_rng(5)
UNIQUE = ["".join(RNG.choice(list("ACDEFGHIKLMNPQRSTVWY"), size=n)) for n in range(6, 46)]
SEQUENCES = [*UNIQUE, *UNIQUE[:8]]
LABELS = [i % 2 for i in range(len(SEQUENCES))]
ONCE = dict.fromkeys(UNIQUE, 1)


def search(cache, grid, **parameters):
    pipeline = Pipeline(
        [
            ("esm", CountingTransformer("mini", cache=cache, **parameters)),
            ("classify", LogisticRegression(C=0.01)),
        ]
    )
    return lambda **how: GridSearchCV(pipeline, grid, **{"cv": 3, **how}).fit(SEQUENCES, LABELS)


def forwards(folder):
    counted = computed(folder)
    counted.pop(LOADED, None)
    return counted


def test__grid_search__cold_cache_four_processes_compute_each_sequence_once(tmp_path):
    grid = {"esm__layers": [2, [3, 6]], "esm__pooling": ["mean", "max"]}
    fit = search(tmp_path, grid, store="all", batch_tokens=200)
    cold = fit(n_jobs=4)
    assert forwards(tmp_path) == ONCE
    warm = fit(n_jobs=4)
    assert not computed(tmp_path)  # not even a network was asked for
    np.testing.assert_array_equal(
        cold.cv_results_["mean_test_score"], warm.cv_results_["mean_test_score"]
    )


def test__grid_search__over_layers_and_poolings_costs_one_pass_when_all_are_stored(tmp_path):
    grid = {"esm__layers": [0, 3, -1, [1, 2]], "esm__pooling": ["mean", "max", ["std", "cls"]]}
    search(tmp_path, grid, store="all")()
    assert forwards(tmp_path) == ONCE


def test__grid_search__after_precompute_computes_nothing(tmp_path):
    grid = {"esm__layers": [0, 3, [1, 2]], "esm__pooling": ["mean", ["std", "cls"]]}
    transformer = CountingTransformer("mini", cache=tmp_path)
    assert transformer.precompute(SEQUENCES) is transformer
    assert forwards(tmp_path) == ONCE
    search(tmp_path, grid)()
    assert not computed(tmp_path)


def test__precompute__fills_what_it_is_told_and_no_more(tmp_path):
    CountingTransformer("mini", cache=tmp_path).precompute(UNIQUE, layers=[1, 5], pooling="max")
    found = {(space.spec.layer, space.spec.pooling) for space in Cache(tmp_path).info().spaces}
    assert found == {(1, "max"), (5, "max")}


def test__precompute__without_a_cache_is_refused():
    with pytest.raises(InputError, match="nothing to be filled"):
        CountingTransformer("mini", cache=None).precompute(UNIQUE)


def test__precompute__leaves_out_missing_values(tmp_path):
    transformer = CountingTransformer("mini", cache=tmp_path, on_missing="nan")
    transformer.precompute([UNIQUE[0], None], layers=-1, pooling="mean")
    assert forwards(tmp_path) == {UNIQUE[0]: 1}


def test__store__all_gives_the_numbers_of_single_passes(tmp_path):
    together = Engine("mini", layers=[4, 1], pooling=["max", "eos"], cache=tmp_path, store="all")
    alone = Engine("mini", layers=[4, 1], pooling=["max", "eos"], cache=None)
    np.testing.assert_array_equal(together.embed(SEQUENCES), alone.embed(SEQUENCES))
    info = Cache(tmp_path).info()
    assert len(info.spaces) == 7 * 5
    assert {space.rows for space in info.spaces} == {len(UNIQUE)}


def test__columns__that_are_missing_are_computed_in_one_pass(tmp_path):
    CountingTransformer("mini", cache=tmp_path, layers=2).transform(UNIQUE[:3])
    forwards(tmp_path)
    wanted = {"layers": [1, 2, 3], "pooling": ["mean", "std"]}
    CountingTransformer("mini", cache=tmp_path, **wanted).transform(UNIQUE)
    assert forwards(tmp_path) == ONCE


def test__threads__compute_each_sequence_once(tmp_path):
    expected = Engine("mini", cache=None).embed(UNIQUE)
    found, start = {}, threading.Barrier(4)

    def work(part):
        transformer = CountingTransformer("mini", cache=tmp_path, batch_tokens=150)
        start.wait()
        found[part] = transformer.transform(UNIQUE)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert forwards(tmp_path) == ONCE
    for part in range(4):
        np.testing.assert_array_equal(found[part], expected)


def test__claims__of_a_process_that_was_killed_are_taken_over(tmp_path):
    """It dies in the middle of its first batch; nobody waits for its lease to end."""
    code = (
        "import sys, os, signal\n"
        "from esm2_features import Engine\n"
        "from esm2_features._inference.local import LocalBackend\n"
        "def die(self, network, extractor, sharing, views, budget):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalBackend.forward = die\n"
        "Engine('mini', cache=sys.argv[1]).embed(sys.argv[2:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *UNIQUE], check=False)
    assert done.returncode == -signal.SIGKILL
    engine = Engine("mini", cache=tmp_path)
    keys = computation_keys(engine.checkpoint.identity, "float32", UNIQUE)
    with Claims(tmp_path) as claims:
        assert claims.claim(keys).all()
    assert CountingTransformer("mini", cache=tmp_path).transform(UNIQUE).shape == (len(UNIQUE), 192)
    assert forwards(tmp_path) == ONCE


def test__others__who_give_up_leave_their_sequences_to_us(tmp_path):
    """Another run claims half of them, fails, and releases its claims while we wait."""
    engine = Engine("mini", cache=tmp_path)
    keys = computation_keys(engine.checkpoint.identity, "float32", UNIQUE[::2])
    other = Claims(tmp_path)
    assert other.claim(keys).all()
    computed_ours = threading.Event()

    class Waiting(LocalBackend):
        def forward(self, network, extractor, sharing, views, budget):
            if set(views).isdisjoint(UNIQUE[::2]):
                computed_ours.set()
            return super().forward(network, extractor, sharing, views, budget)

    def give_up():
        computed_ours.wait()
        other.__exit__(None, None, None)

    thread = threading.Thread(target=give_up)
    thread.start()
    waiting = Engine("mini", cache=tmp_path)
    waiting.runner.backend.__class__ = Waiting
    found = waiting.embed(UNIQUE)
    thread.join()
    np.testing.assert_array_equal(found, Engine("mini", cache=None).embed(UNIQUE))


def test__error__in_a_batch_keeps_the_others_and_releases_all_claims(tmp_path):
    class Failing(LocalBackend):
        def forward(self, network, extractor, sharing, views, budget):
            if UNIQUE[0] in views:
                raise ArithmeticError("for a test")
            return super().forward(network, extractor, sharing, views, budget)

    failing = Engine("mini", cache=tmp_path, batch_tokens=60)
    failing.runner.backend.__class__ = Failing
    with pytest.raises(ArithmeticError):
        failing.embed(UNIQUE)
    engine = Engine("mini", cache=tmp_path)
    kept = engine.cache.info().rows
    assert 0 < kept < len(UNIQUE)
    keys = computation_keys(engine.checkpoint.identity, "float32", UNIQUE)
    with Claims(tmp_path) as claims:
        assert claims.claim(keys).all()
    CountingTransformer("mini", cache=tmp_path).transform(UNIQUE)
    assert sum(forwards(tmp_path).values()) == len(UNIQUE) - kept


def test__cache_dtype__float16_gives_the_same_cold_and_warm_and_shares_nothing(tmp_path):
    half = Engine("mini", cache=tmp_path, cache_dtype="float16")
    cold = half.embed(UNIQUE)
    np.testing.assert_array_equal(half.embed(UNIQUE), cold)
    full = Engine("mini", cache=tmp_path).embed(UNIQUE)
    np.testing.assert_array_equal(full, Engine("mini", cache=None).embed(UNIQUE))
    assert 0 < np.abs(full - cold).max() < 1e-3
    sizes = {space.spec.dtype: space.bytes for space in Cache(tmp_path).info().spaces}
    assert sizes["float16"] < 0.6 * sizes["float32"]


@pytest.mark.parametrize("option", [{"cache_dtype": "float16"}, {"store": "all"}])
def test__options_of_storing__without_a_cache_are_refused(option):
    with pytest.raises(InputError, match="Give them a cache"):
        Engine("mini", cache=None, **option)


@pytest.mark.parametrize("option", [{"cache_dtype": "bfloat16"}, {"store": "some"}])
def test__options_of_storing__that_are_unknown_are_refused(option, tmp_path):
    with pytest.raises(InputError, match="expected one of"):
        Engine("mini", cache=tmp_path, **option)


def test__weights__that_are_missing_are_said_with_the_sequences_that_need_them(tmp_path):
    engine = Engine("esm2_t12_35M_UR50D", pooling=["mean", "max"], cache=tmp_path)
    with pytest.raises(DownloadError) as caught:
        engine.embed([*UNIQUE[:3], UNIQUE[0]])
    message = str(caught.value)
    assert f"3 different sequences (such as '{UNIQUE[0]}') lack vectors in the cache" in message
    assert f"{tmp_path} (layer 12 mean, layer 12 max, float32, kept in float32)" in message
    assert "ESM2_FEATURES_OFFLINE" in message
    assert "`esm2-features cache import`" in message
