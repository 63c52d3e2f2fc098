"""What cards would do, on a stand-in: the CPU's numbers, no race, few launches, no waiting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cards import counts
from cards.conftest import DEVICE_MAPS, DIM, FIRST, HEADS, LAYERS
from cards.stand_in import Machine

from esm2_features import Engine
from esm2_features._inference.extractors import (
    Attentions,
    Contacts,
    Logits,
    PooledVectors,
    Residues,
    SiteLogProbs,
)
from esm2_features._model import fusion, offload
from esm2_features._model.devices import computing
from esm2_features._model.packing import BYTES_PER_NUMBER_OF_WIDTH

NOISE = torch.Generator().manual_seed(0)
CONTACTS = Contacts(
    torch.randn(1, LAYERS * HEADS, generator=NOISE), torch.randn(1, generator=NOISE), HEADS
)
POOLINGS = ("mean", "max", "std", "cls", "eos")
EXTRACTORS = {
    "vectors": PooledVectors(((LAYERS, "mean"),), DIM),
    "all vectors": PooledVectors(tuple((i, p) for i in (0, 1, LAYERS) for p in POOLINGS), DIM),
    "parti": PooledVectors(((LAYERS, "parti"), (1, "parti")), DIM),
    "residues": Residues((LAYERS,), DIM, by_layer=False),
    "residues by layer": Residues((0, 1, LAYERS), DIM, by_layer=True),
    "logits": Logits("log_probs", "residues"),
    "contacts": CONTACTS,
    "attentions": Attentions((1, LAYERS), HEADS),
}
LONG = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK"
VIEWS = [LONG, "GSHMVLSEGEWQLVLHVWAK", "MKTAYIAKQR", "GSHMVLSEGE", "ACD"]
GEOMETRIES = {
    "mixed": VIEWS,
    "peptides": ["MKTA", "GSHM", "ACDE", "WW", "AC", "A"],
    "windows": [f"{LONG}~20", "GSHMVLSEGEWQLVLHVWAK", f"{LONG[:35]}~20"],
    "parts": [f"{LONG}@2:5,8:9", LONG, f"{LONG[:9]}@1:3", f"{LONG[:9]}@0:4"],
}
TOLERANCE = {"float32": 2e-5, "float16": 0.03, "bfloat16": 0.25}


def flat(results):
    if isinstance(results, np.ndarray):
        return [results]
    parts = results.values() if isinstance(results, dict) else results
    return [array for part in parts for array in flat(part)]


def assert_close(found, expected, tolerance):
    for ours, theirs in zip(flat(found), flat(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def of_geometry(geometry):
    """The extractors that are for it, and its views for each."""
    views = GEOMETRIES[geometry]
    vectors = PooledVectors(tuple((i, p) for i in (0, LAYERS) for p in POOLINGS[:3]), DIM)
    if geometry == "parts":
        return {"vectors": (vectors, views)}
    without = {"contacts", "attentions", "parti"} if geometry == "windows" else set()
    found = {name: (EXTRACTORS[name], views) for name in EXTRACTORS if name not in without}
    sites = [f"{view}@0:1" for view in views]
    return found | {"site": (SiteLogProbs(), sites)}


QUICK = [
    ("float16", "one", "mixed"),
    ("float16", "split", "mixed"),
    ("float16", "streamed", "windows"),
]
SLOW_FLOAT32 = pytest.mark.parametrize(
    "precision", ["float16", pytest.param("float32", marks=pytest.mark.slow)]
)


@pytest.mark.parametrize(
    ("precision", "capability", "place", "geometry"),
    [
        pytest.param(
            *(precision, capability, place, geometry),
            marks=()
            if capability == (9, 0) and (precision, place, geometry) in QUICK
            else pytest.mark.slow,
        )
        for precision, capability in [
            ("float32", (9, 0)), ("float16", (9, 0)), ("float16", (7, 5)), ("bfloat16", (8, 0))
        ]
        for place in DEVICE_MAPS
        for geometry in GEOMETRIES
    ],
)  # fmt: skip
def test__numbers__are_the_cpus_and_nothing_races(
    network_on, on_cpu, geometry, place, precision, capability
):
    machine, budget = Machine(cards=2, capability=capability), 64
    with machine.switched_on():
        network = network_on(DEVICE_MAPS[place], precision)
        for name, (extractor, views) in of_geometry(geometry).items():
            with computing(FIRST):
                times = 1 if name == "parti" else 2  # its ranks take long here
                waiting = [extractor(network, views, budget) for _ in range(times)]
            for results in waiting:
                tolerance = TOLERANCE[precision] * (10 if "site" in name or "logit" in name else 1)
                assert_close(results(), on_cpu(extractor, views, budget), tolerance)
            assert machine.races == [], name


@SLOW_FLOAT32
@pytest.mark.parametrize("place", DEVICE_MAPS)
def test__waits__there_are_none_but_for_results(network_on, machine, place, precision):
    network = network_on(DEVICE_MAPS[place], precision)
    with computing(FIRST):
        EXTRACTORS["vectors"](network, VIEWS)()  # tries the kernels, which is done once
    for name, extractor in EXTRACTORS.items():
        machine.reset()
        with computing(FIRST):
            results = extractor(network, VIEWS)
        lengths = len({len(view) for view in VIEWS})
        assert machine.waits == {}
        # The ranks of parti are computed on the host, in the middle of the pass.
        assert machine.event_waits == (lengths if name == "parti" else 0)
        machine.reset()
        results()
        arrivals = {"contacts": len(VIEWS), "attentions": 2 * lengths, "residues by layer": 3}
        assert machine.event_waits == arrivals.get(name, 1)


@pytest.mark.parametrize("views", [VIEWS, [LONG[:n] for n in range(1, 59)]], ids=["few", "many"])
@pytest.mark.parametrize(
    ("precision", "capability", "most"),
    [
        ("float16", (7, 5), 15),
        ("float16", (9, 0), 10),
        ("bfloat16", (9, 0), 10),
        ("float32", (7, 5), 12),
        ("float32", (9, 0), 12),
    ],
)
def test__launches__of_a_block_are_few_whatever_the_lengths(
    network_on, precision, capability, most, views
):
    machine, counts = Machine(capability=capability), []
    with machine.switched_on(), computing(FIRST):
        network = network_on(FIRST, precision)
        for layer in (1, 2):
            machine.reset()
            PooledVectors(((layer, "mean"),), DIM)(network, views)()
            counts.append(sum(machine.launches.values()))
    assert counts[1] - counts[0] <= most, machine.launches


def no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("turn_", lambda *_: None, "they err by"),
        ("add_norm", lambda x, y, *_: (x, x), "they err by"),
        ("add_norm", lambda *_: 1 / 0, "ZeroDivisionError"),
    ],
)
def test__fused_kernels__that_are_wrong_are_not_used(caplog, monkeypatch, name, fault, said):
    machine = Machine()
    monkeypatch.setattr(machine, name, fault)
    with machine.switched_on(), caplog.at_level("INFO", "esm2_features"):
        assert fusion.find_kernels(FIRST, torch.float16, DIM, HEADS) is None
    assert said in caplog.text


def test__fused_kernels__are_looked_for_again_if_memory_was_full(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(machine, "turn_", no_memory)
    with machine.switched_on(), pytest.raises(torch.OutOfMemoryError):
        fusion.find_kernels(FIRST, torch.float16, DIM, HEADS)


@pytest.mark.parametrize(("precision", "capability", "free"), counts.CARDS)
def test__counts__of_650m_are_those_of_a_small_network(precision, capability, free):
    found = counts.count(precision, capability, free, VIEWS)
    launches = 11 if precision == "float32" else 15 if capability < (8, 0) else 10
    assert (found.launches, found.waits) == (launches, 0)


@pytest.mark.parametrize("window", ["", "~1022"])
@pytest.mark.parametrize(("precision", "capability", "free"), counts.CARDS)
def test__memory__of_a_pass_is_what_the_size_of_batches_allows_for(
    precision, capability, free, window
):
    proteins = [f"{'MKTAYIAKQR' * n}{window if n > 200 else ''}" for n in (800, 30, 31, 32)]
    held = counts.count(precision, capability, free, proteins).held
    assert BYTES_PER_NUMBER_OF_WIDTH / 3 < held <= BYTES_PER_NUMBER_OF_WIDTH


@pytest.mark.parametrize("place", ["cuda", pytest.param("cuda+cpu", marks=pytest.mark.slow)])
def test__memory__is_back_to_the_weights_before_each_retry(tiny_checkpoint, machine, place):
    views = [LONG[i:j] for i in range(3) for j in range(10, 59, 2)]
    options = {"cache": None, "layers": "all", "pooling": ["mean", "cls"]}
    engine = Engine(tiny_checkpoint, device=place, batch_tokens=512, **options)
    expected = engine.embed(views)
    weights = machine.in_use
    machine.reset()
    machine.released.clear()
    machine.memory = weights + 400_000
    engine = Engine(tiny_checkpoint, device=place, batch_tokens=1 << 15, **options)
    assert_close(engine.embed(views), expected, TOLERANCE["float32"])
    assert len(machine.released) > 2
    assert set(machine.released) == {weights}
    assert machine.peak <= machine.memory


def test__launches__of_contacts_do_not_grow_with_equal_lengths(network_on, machine):
    network, counts = network_on(FIRST, "float16"), []
    for views in ([f"MKTAYIAKQ{x}" for x in some] for some in ("AC", "ACDEFGHIKL")):
        machine.reset()
        with computing(FIRST):
            maps = EXTRACTORS["contacts"](network, views)
        counts.append(sum(machine.launches.values()))
        maps()
    own = 2  # a sigmoid, after the bias has been added
    assert counts[1] - counts[0] <= 8 * own


def test__windows__become_one_sequence_in_three_launches(network_on, machine):
    network, counts = network_on(FIRST, "float32"), []
    for layers in ([2], [1, 2]):
        machine.reset()
        with computing(FIRST):
            extractor = PooledVectors(tuple((layer, "cls") for layer in layers), DIM)
            extractor(network, [f"{LONG * 9}~20", f"{LONG}~20"], 64)()
        counts.append(sum(machine.launches.values()))
    of_pooling = 3
    assert counts[1] - counts[0] <= 3 + of_pooling, machine.launches


def test__windows__need_no_more_memory_for_all_layers(network_on, machine):
    network, peaks = network_on(FIRST, "float32"), []
    sequence = "".join(np.random.default_rng(0).choice(list("ACDEFGHIKL"), 4000))
    for layers in ([LAYERS], range(1, LAYERS + 1)):
        machine.reset()
        before = machine.in_use
        with computing(FIRST):
            extractor = PooledVectors(tuple((layer, "mean") for layer in layers), DIM)
            extractor(network, [f"{sequence}~100"], 1024)()
        peaks.append(machine.peak - before)
    assert peaks[1] <= 1.25 * peaks[0]


def test__streamed__pins_as_much_as_the_weights_have_and_reorders_nothing(
    network_on, machine, monkeypatch
):
    monkeypatch.setattr(offload, "_FEWEST_PINNED", 1 << 10)
    network_on(DEVICE_MAPS["streamed"], "float16")
    weights = LAYERS * (12 * DIM**2 * 2 + DIM * (9 * 2 + 4 * 4))
    sizes = [size for size in machine.pinned_sizes if size >= 1 << 10]
    assert all(size & (size - 1) == 0 for size in sizes)
    assert weights <= sum(sizes) <= weights + LAYERS * (16 * 256 + (1 << 10))


@SLOW_FLOAT32
@pytest.mark.parametrize("device", ["cuda", "cuda:0+cuda:1", "all", ["cuda:0+cpu", "cuda:1"]])
def test__engine__gives_the_cpus_numbers(tiny_checkpoint, machine, device, precision):
    options = {"cache": None, "layers": "all", "pooling": "all"}
    views = [LONG[i : i + n] for i in (0, 9, 17) for n in (3, 9, 20, 21, 40)]
    expected = Engine(tiny_checkpoint, device="cpu", **options).embed(views)
    engine = Engine(tiny_checkpoint, device=device, precision=precision, batch_tokens=64, **options)
    assert_close(engine.embed(views), expected, TOLERANCE[precision])
    assert machine.races == []
