"""An estimate is a timed sample of this machine, or arithmetic on a data sheet, and says which."""

from __future__ import annotations

import pytest

from benchmarks.workloads import SHAPES, flops
from esm2_features import Engine, available_models
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._costs import calibration as _calibration
from esm2_features._costs import estimate
from esm2_features._costs.cards import CARDS, SHARE_OF_PEAK, Range, flop
from esm2_features._costs.input_summary import InputSummary
from esm2_features._inference.networks import devices_of_network
from esm2_features.cli.estimate import in_words
from esm2_features.exceptions import InputError

LENGTHS = [30, 30, 300, 1000]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(_calibration, "_ROUND_SECONDS", 0.02)


def summary_of(lengths=LENGTHS, window=0) -> InputSummary:
    counts = {n: lengths.count(n) for n in sorted(set(lengths))}
    n, residues = len(lengths), sum(lengths)
    return InputSummary(sequences=n, unique=n, text_bytes=residues, lengths=counts, window=window)


def engine_of(model="esm2_t6_8M_UR50D", **options) -> Engine:
    return Engine(model, cache=None, **{"device": "cpu", **options})


# ------------------------------------------------------------------ arithmetic


def test__flop__is_that_of_the_benchmarks():
    for model in SHAPES:
        shape = Architecture(*SHAPES[model])
        passes = {length + 2: LENGTHS.count(length) for length in LENGTHS}
        assert flop(shape, shape.layers, passes) == pytest.approx(flops(model, LENGTHS))


@pytest.mark.parametrize("card", CARDS)
def test__card__is_between_two_shares_of_its_peak_and_not_measured(card):
    engine, summary = engine_of("esm2_t33_650M_UR50D"), summary_of([300] * 1000)
    result = estimate(engine, summary, card=card)
    operations = flop(engine.checkpoint.architecture, 33, {302: 1000})
    assert result.basis.startswith("Not measured: between 20% and 60% of the peak of NVIDIA")
    peak = CARDS[card].peak["float32"]
    ends = (operations / (share * peak) for share in SHARE_OF_PEAK)
    assert (result.seconds.high, result.seconds.low) == pytest.approx(tuple(ends))
    assert result.seconds.low < result.seconds.middle < result.seconds.high


def test__cards__stand_in_the_order_of_their_speed():
    engine = engine_of("esm2_t33_650M_UR50D", precision="float16")
    seconds = [
        estimate(engine, summary_of(), card=card).seconds.middle
        for card in ("h200", "a100", "l4", "t4")
    ]
    assert seconds == sorted(seconds)


def test__card__without_units_for_a_precision_is_an_error():
    with pytest.raises(InputError, match=r"T4 has no units for precision='bfloat16'"):
        estimate(engine_of(precision="bfloat16"), summary_of(), card="t4")


def test__time__grows_with_length_more_than_linearly():
    short, long = (
        estimate(engine_of(), summary_of([n] * (4000 // n)), card="t4").seconds.middle
        for n in (100, 1000)
    )
    assert short < long < 3 * short


def test__time__counts_the_blocks_that_run():
    def seconds(**options):
        return estimate(engine_of(**options), summary_of(), card="t4").seconds.middle

    assert seconds(layers=3) == pytest.approx(0.5 * seconds())
    assert seconds(layers=[0, 3], pooling="parti") == seconds()


def test__memory__of_what_does_not_fit():
    def fits(card, **options):
        large = available_models()[-1].name
        return estimate(engine_of(large, **options), summary_of(), card=card).fits

    assert fits("t4") is False
    assert fits("h200") is True


def test__disk__is_what_numbers_take():
    summary = summary_of([10] * 10)
    summary.unique = 4
    result = estimate(engine_of(pooling=["mean", "max", "std"]), summary, card="t4")
    assert result.output_bytes == {"float32": 4 * 10 * 3 * 320, "float16": 2 * 10 * 3 * 320}
    assert result.cache_bytes["float32"] == round(1.03 * 4 * 3 * (4 * 320 + 36))


# ------------------------------------------------------------------ a timed sample


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bfloat16"},
        {"layers": "all", "pooling": "all"},
        {"pooling": "parti", "layers": 2},
    ],
)
def test__sample__is_timed_without_weights(options):
    engine = engine_of(**options)
    assert engine.checkpoint.to_fetch is not None
    result = estimate(engine, summary_of())
    assert result.basis.startswith("Timed on this machine")
    assert 0 < result.seconds.low < result.seconds.middle < result.seconds.high
    assert result.fits is None
    assert result.device_bytes > 4e8


def test__sample__of_a_whole_input_takes_what_embedding_takes(monkeypatch):
    monkeypatch.setattr(_calibration, "_ROUND_SECONDS", 60.0)
    runs = []
    original = Engine.embed

    def counted(self, sequences, **options):
        runs.append([len(sequence) for sequence in sequences])
        return original(self, sequences, **options)

    monkeypatch.setattr(Engine, "embed", counted)
    lengths = [20, 30, 30, 40]
    result = estimate(engine_of("mini"), summary_of(lengths))
    assert sorted(runs[-1]) == lengths  # all of them, in the last round
    assert runs[1] == [30]  # begins with one of the median length
    assert "the lengths of 4 of 4 sequences, through 6 of 6 blocks" in result.basis


def test__sample__of_long_sequences_goes_in_windows():
    result = estimate(engine_of("mini", max_residues=12, too_long="window"), summary_of([40], 12))
    assert result.seconds.middle > 0


def test__sample__of_a_large_model_has_few_blocks_and_few_weights(monkeypatch):
    monkeypatch.setattr(_calibration, "_WEIGHT_BYTES", 1)
    engine, summary = engine_of("esm2_t12_35M_UR50D"), summary_of([100] * 4)
    assert "2 of 12 blocks" in _calibration.calibrate(engine, summary, 12)[1]
    assert "1 of 12 blocks" in _calibration.calibrate(engine, summary, 1)[1]


def test__sample__leaves_no_network_in_memory():
    _calibration.calibrate(engine_of(), summary_of([20]), 6)
    name = f"random weights of {Architecture(6, 320, 20)}"
    card = type(open_checkpoint("esm2_t6_8M_UR50D").source)(name, "", Architecture(6, 320, 20))
    checkpoint = _calibration._RandomCheckpoint(name, card.architecture, card)
    assert devices_of_network(checkpoint, devices=["cpu"], precision="float32") == []


@pytest.mark.parametrize("device", [["cpu", "cpu"], "cpu+cpu", "all"])
def test__sample__of_several_devices_is_an_error(device):
    with pytest.raises(InputError, match="an estimate is for one device"):
        estimate(engine_of(device=device), summary_of())


def test__random_sequences__have_the_lengths_and_differ():
    sequences = _calibration._random_sequences([1] * 100 + [50, 7])
    assert len(sequences) == len(set(sequences)) <= 22
    assert [len(sequence) for sequence in sequences[-2:]] == [50, 7]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (Range(0.1, 0.25, 1), "0.25 s (0.1 to 1 s)"),
        (Range(3600, 7200, 72000), "2 h (1 to 20 h)"),
        (Range(86400, 172800, 86400 * 1234), "2 days (1 to 1,234 days)"),
    ],
)
def test__times__in_words(seconds, text):
    assert in_words(seconds) == text
