"""Estimates are arithmetic on a table of measurements, and say what they rest on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import _roofline, _throughput, report
from benchmarks.workloads import SHAPES, flops
from esm2_features import available_models
from esm2_features._checkpoints.catalogue import Architecture
from esm2_features._costs import model as _estimate
from esm2_features._costs.model import CARDS, Job, Pieces, Range, estimate, flop, predicted
from esm2_features.cli.estimate import DEVICES, in_words
from esm2_features.exceptions import InputError

LENGTHS = [30, 30, 300, 1000]


def job_of(model: str = "t6_8M", lengths=LENGTHS, **changes) -> Job:
    shape = Architecture(*SHAPES[model])
    pieces = Pieces.of([length + 2 for length in lengths])
    job = Job(
        architecture=shape,
        precision="float32",
        device="cpu",
        pieces=pieces,
        sequences=len(lengths),
        unique=len(lengths),
        longest=int(pieces.tokens.max()),
        text_bytes=sum(lengths),
        columns=1,
        blocks=shape.layers,
        cores=2,
    )
    return replace(job, **changes)


# ------------------------------------------------------------------ the table that ships


def test__table__is_what_the_results_make():
    made = _throughput.make(report.read(report.RESULTS))
    shipped = json.loads(_throughput.FILE.read_text(encoding="utf-8"))

    def flat(value, path=()):
        if isinstance(value, dict):
            return {
                k: v for key, inner in value.items() for k, v in flat(inner, (*path, key)).items()
            }
        if isinstance(value, list):
            return {
                k: v for i, inner in enumerate(value) for k, v in flat(inner, (*path, i)).items()
            }
        return {path: value}

    # The last digit of a fit is the solver's.
    wanted, found = flat(made), flat(shipped)
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        if isinstance(value, (int, float)):
            assert found[path] == pytest.approx(value, rel=2e-3), path
        else:
            assert found[path] == value, path


def test__table__fits_its_own_runs():
    for fit in _estimate.throughput()["fits"]:
        assert 1 / 1.2 < fit["least"] <= 1 <= fit["most"] < 1.2  # "a fifth" in CONTRIBUTING
        assert len(fit["measured"]) >= 10


def test__table__leaves_out_what_is_no_official_shape():
    results = report.read(report.RESULTS)
    tiny = json.loads(json.dumps(results["compare"][0]))
    tiny["arguments"]["model"] = "tiny"
    assert _throughput.make({**results, "compare": [*results["compare"], tiny]}) == (
        _throughput.make(results)
    )


def test__table__takes_a_card_that_was_measured(monkeypatch):
    results = json.loads(json.dumps(report.read(report.RESULTS)))
    for result in results["compare"]:
        result["arguments"]["device"] = "cuda"
        result["machine"]["gpu"] = "NVIDIA H200"
        for record in result["contenders"]:
            record["seconds"] /= 100
    table = _throughput.make(results)
    monkeypatch.setattr(_estimate, "throughput", lambda: table)
    found = estimate(job_of(device="h200"))
    assert "carried over from 7 runs" in found.basis[0]
    assert found.seconds.middle < estimate(job_of()).seconds.middle / 50


# ------------------------------------------------------------------ arithmetic


def test__flop__is_that_of_the_benchmarks():
    for model in SHAPES:
        shape = Architecture(*SHAPES[model])
        pieces = Pieces.of([length + 2 for length in LENGTHS])
        assert flop(shape, shape.layers, pieces) == pytest.approx(flops(model, LENGTHS))


def test__numbers_that_a_block_moves__are_those_of_the_roofline():
    assert _estimate._STREAM_NUMBERS == _roofline.RESIDUAL_STREAM
    assert _estimate._PRODUCT_NUMBERS == _roofline.OF_PRODUCTS


def test__devices__of_the_command_are_those_that_can_be_estimated():
    assert DEVICES == _estimate.DEVICES == ("cpu", *CARDS)


def test__time__grows_with_length_more_than_linearly():
    short, long = (predicted(job_of(lengths=[n] * (4000 // n))) for n in (100, 1000))
    assert short < long < 3 * short


def test__time__counts_the_blocks_that_are_run():
    assert predicted(job_of(blocks=3)) < 0.6 * predicted(job_of(blocks=6))


def test__time__of_a_processor_that_was_not_measured_is_a_wide_range():
    seconds = estimate(job_of()).seconds
    assert seconds.low < seconds.middle / 1.5
    assert seconds.high > 1.5 * seconds.middle
    many = estimate(job_of(cores=64)).seconds
    assert many.high / many.middle > 1.2 * seconds.high / seconds.middle


def test__time__goes_by_a_sample_where_there_is_one():
    plain = estimate(job_of())
    found = estimate(job_of(), measured_ratio=Range(2.9, 3.0, 3.2))
    assert found.seconds.middle == pytest.approx(3 * plain.seconds.middle)
    assert 2 < found.seconds.low / plain.seconds.middle < 2.9
    assert 3.2 < found.seconds.high / plain.seconds.middle < 4
    assert found.basis[0].startswith("Measured here")
    on_card = estimate(job_of(device="a100"), measured_ratio=Range(1.0, 1.0, 1.0))
    assert on_card.seconds.middle == pytest.approx(predicted(job_of(device="a100")))


@pytest.mark.parametrize("device", CARDS)
def test__time__of_a_card_is_said_to_be_not_measured(device):
    found = estimate(job_of("t33_650M", [300] * 10_000, device=device))
    assert found.basis[0].startswith("Not measured")
    assert CARDS[device].source in found.basis[1]
    ideal = found.flop / CARDS[device].flop_per_second["float32"]
    assert ideal < found.seconds.low < found.seconds.middle < found.seconds.high < 6 * ideal


def test__cards__stand_in_the_order_of_their_speed():
    seconds = [
        estimate(job_of("t33_650M", device=device, precision="float16")).seconds.middle
        for device in ("h200", "a100", "t4")
    ]
    assert seconds == sorted(seconds)


def test__precision__that_a_device_has_not_is_refused():
    with pytest.raises(InputError, match=r"T4 .* has no units for precision='bfloat16'"):
        estimate(job_of(device="t4", precision="bfloat16"))
    with pytest.raises(InputError, match="no cpu was measured, only in float32 and bfloat16"):
        estimate(job_of(precision="float16"))


def test__memory__of_the_measured_runs_is_no_more_than_estimated():
    for result in report.read(report.RESULTS)["compare"]:
        for record in result["contenders"]:
            if record["library"] == "esm2_features":
                job = job_of(result["arguments"]["model"], precision=record["precision"])
                found = estimate(job).device_bytes
                assert 0.85 < 1e6 * record["memory_MB"] / found < 1.01


def test__memory__says_what_does_not_fit():
    large = available_models()[-1].architecture
    assert estimate(job_of(architecture=large, blocks=48, device="t4")).fits is False
    assert estimate(job_of(architecture=large, blocks=48, device="h200")).fits is True
    assert estimate(job_of()).fits is None


def test__disk__is_what_numbers_take():
    found = estimate(job_of(columns=3, sequences=10, unique=4))
    assert found.output_bytes == {"float32": 4 * 10 * 3 * 320, "float16": 2 * 10 * 3 * 320}
    assert found.cache_bytes["float32"] == round(1.03 * 4 * 3 * (4 * 320 + 36))


def test__pieces__count():
    pieces = Pieces.of([5, 3, 5])
    assert (pieces.total, pieces.scores) == (13, 59.0)
    np.testing.assert_array_equal(pieces.counts, [1, 2])


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
