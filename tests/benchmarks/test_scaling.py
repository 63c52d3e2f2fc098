"""The benchmarks of scaling and of whole jobs run, and say what they claim to."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import _ledger, _roofline, end_to_end, scaling
from benchmarks._end_to_end_report import shares

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Iterator[Callable[[str], tuple[dict, Path]]]:
    """Run both benchmarks as a user does, at the same time, and read what they save."""
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    folder = tmp_path_factory.mktemp("results")
    running = {}
    for module, *options in (("end_to_end", "--model", "tiny"), ("scaling",)):
        command = [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--save", "--plot"]
        command += ["--results", str(folder), *options]
        log = (folder / f"{module}.txt").open("w")
        running[module] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        log.close()

    def of(module: str) -> tuple[dict, Path]:
        code = running[module].wait(timeout=240)
        assert code == 0, (folder / f"{module}.txt").read_text()
        result = json.loads((folder / f"{module}.json").read_text())
        assert result["kind"] == module
        assert result["machine"]["cores"] >= 1
        assert result["arguments"]["quick"]
        return result, folder

    yield of
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.slow
def test__scaling__saves_every_figure(results):
    result, folder = results("scaling")
    figures = {point["figure"] for point in result["points"]}
    assert figures == {"length", "count", "size", "roofline"}
    assert all(seconds > 0 for point in result["points"] for seconds in point["seconds"])
    lengths = [point for point in result["points"] if point["figure"] == "length"]
    assert len({point["residues"] for point in lengths}) == 1
    assert scaling.table(result).count("| tiny | float32 |") == 7
    names = {"scaling_length.png", "scaling_count.png", "scaling_size.png", "roofline.png"}
    assert {file.name for file in folder.glob("*.png")} - {"end_to_end.png"} == names


def test__scaling__a_large_model_is_not_counted_by_the_thousand():
    small, large = (scaling.points(name, scaling.QUICK) for name in ("t12_35M", "t30_150M"))
    assert "count" in {point.figure for point in small}
    assert "count" not in {point.figure for point in large}


def test__scaling__batches_of_a_budget_are_full():
    for point in scaling.points("t30_150M", scaling.Sizes()):
        if point.figure == "roofline":
            assert (sum(map(len, point.sequences)) + 2 * len(point.sequences)) % point.x == 0


def test__roofline__is_of_memory_for_few_tokens_and_of_products_for_many():
    result = {"bandwidth_GB_s": 20.0, "peaks_GFLOP_s": {"t33_650M": {"float32": 100.0}}}
    one, two, many = (
        _roofline.attainable(result, "t33_650M", "float32", tokens) for tokens in (1, 2, 8192)
    )
    assert one == pytest.approx(10, rel=0.05)  # 2 FLOP for the 4 bytes of a weight
    assert two == pytest.approx(2 * one, rel=0.01)
    assert many == 100


@pytest.mark.slow
def test__end_to_end__shares_add_up(results):
    result, folder = results("end_to_end")
    [run] = result["transform"]
    assert sum(run["parts"].values()) == pytest.approx(run["seconds"])
    assert set(run["parts"]) == {part for part, *_ in _ledger.PARTS}
    assert sum(shares(result).values()) == pytest.approx(1)
    has_torch = {record["what"]: record["torch"] for record in result["cold_starts"]}
    assert [what for what in has_torch if has_torch[what]] == ["fit_transform, empty cache"]
    if sys.platform == "linux":
        ways = {record["way"] for record in result["memory"]}
        assert ways == set(end_to_end.WAYS)
    assert "not the forward pass" in end_to_end.table(result)
    assert (folder / "end_to_end.png").exists()


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that goes when it is told to."""
    time = SimpleNamespace(now=0.0)
    monkeypatch.setattr(_ledger, "time", SimpleNamespace(perf_counter=lambda: time.now))
    return time


def test__ledger__books_exclusively_and_generators_by_their_steps(clock):
    def wait(seconds: float) -> None:
        clock.now += seconds

    ledger = _ledger.Ledger()
    inner = ledger.wrap(lambda: wait(1), "inner", "inner")

    def steps():
        wait(10)
        inner()
        yield "first"
        wait(20)

    for _ in ledger.wrap(steps, "outer", "steps")():
        wait(100)  # between two steps
    ledger.close()
    assert ledger.seconds == {"inner": 1, "outer": 30, _ledger.REST: 100}
    assert ledger.calls == {"inner": 1, "steps": 1}


def test__parts__one_that_was_renamed_is_an_error(monkeypatch):
    monkeypatch.setattr(_ledger, "PARTS", (("pooling", "esm2_features._model.pooling", "pooled"),))
    with pytest.raises(AttributeError, match="has no pooled any longer"), _ledger.booked():
        pass


def test__parts__one_that_nothing_calls_is_an_error(monkeypatch):
    monkeypatch.setattr(_ledger, "PARTS", (("pooling", "esm2_features._model.pooling", "pool"),))
    with pytest.raises(RuntimeError, match="Nothing called"), _ledger.booked():
        pass


def test__roofline__examples_of_its_docstrings_hold():
    done = doctest.testmod(_roofline)
    assert done.attempted
    assert not done.failed
