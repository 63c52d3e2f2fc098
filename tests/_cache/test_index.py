"""Where keys are: the latest place of each, and at worst a place that is not theirs."""

from __future__ import annotations

import numpy as np
from cache_helpers import keys_of
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._cache.blocks import SLOTS
from esm2_features._cache.store import Index, prefixes_of


def key_array(keys):
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def some_key(prefix, ending=0):
    return bytes([*prefix.to_bytes(8, "big"), *ending.to_bytes(24, "big")])


@given(
    blocks=st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=30),
    asked=st.lists(st.integers(0, 60), max_size=20),
    together=st.integers(1, 5),
)
def test__index__is_a_dictionary_in_which_later_wins(blocks, asked, together):
    index, expected = Index(), {}
    for start in range(0, len(blocks), together):
        numbers = [3 * i + 1 for i in range(start, min(start + together, len(blocks)))]
        some = blocks[start : start + together]
        index.add(numbers, [key_array([some_key(key) for key in keys]) for keys in some])
        for number, keys in zip(numbers, some, strict=True):
            expected |= {key: number * SLOTS + slot for slot, key in enumerate(keys)}
            assert index.last == numbers[-1]
    places = index.find(key_array([some_key(key) for key in asked]))
    assert places.dtype == np.int64
    assert places.tolist() == [expected.get(key, -1) for key in asked]


def test__index__many_runs_with_keys_written_again():
    index, keys = Index(), keys_of(range(1000))
    written_in = np.zeros(1000, np.int64)
    rng = np.random.default_rng(0)
    slots = np.zeros(1000, np.int64)
    for block in range(1, 60):
        some = rng.permutation(1000)[:50]
        index.add([block], [keys[some]])
        written_in[some], slots[some] = block, np.arange(50)
    expected = np.where(written_in > 0, written_in * SLOTS + slots, -1)
    np.testing.assert_array_equal(index.find(keys), expected)
    assert (index.find(keys_of(range(1000, 1100))) == -1).all()


def test__index__equal_prefixes_have_the_place_of_the_latest():
    first, second = key_array([some_key(5, 1)]), key_array([some_key(5, 2)])
    index = Index()
    index.add([1, 2], [first, second])
    assert index.find(first).tolist() == index.find(second).tolist() == [2 * SLOTS]


def test__index__prefixes_at_both_ends_of_the_range():
    keys = key_array([bytes(32), b"\xff" * 32])
    index = Index()
    index.add([7], [keys])
    assert index.find(keys).tolist() == [7 * SLOTS, 7 * SLOTS + 1]
    assert index.find(key_array([b"\x7f" * 32])).tolist() == [-1]


def test__index__nothing_added_nothing_asked():
    index = Index()
    index.add([], [])
    assert index.last == 0
    assert index.find(keys_of(range(3))).tolist() == [-1, -1, -1]
    index.add([4], [keys_of(range(3))])
    assert index.find(keys_of([])).shape == (0,)


def test__index__blocks_without_keys_count_and_hold_nothing():
    index = Index()
    index.add([4], [keys_of([])])
    assert index.last == 4
    assert index.find(keys_of(range(3))).tolist() == [-1, -1, -1]


def test__prefixes_of__reads_views_and_little_endian():
    keys = key_array([bytes(range(32)), bytes(32), bytes([1] + 31 * [0])])
    assert prefixes_of(keys[::2]).tolist() == [0x0706050403020100, 1]
