"""The comparison with peers runs from end to end, and all its contenders agree."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import report
from benchmarks._contenders import BASELINE, Contender, contenders
from benchmarks._padding import by_tokens, in_order, padded
from benchmarks._rounds import ContenderFailedError, all_fit_into_memory, measure
from benchmarks.compare import errors, parse
from benchmarks.machine import Stopwatch, describe, gemm_peak
from benchmarks.report import TABLES, insert, read, tables
from benchmarks.workloads import MIXES, SHAPES, flops, shape_of, workload, write_checkpoint
from esm2_features import Engine
from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features._inputs.alphabet import encode
from esm2_features._model.reference import Reference

ROOT = Path(__file__).resolve().parents[2]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


# ------------------------------------------------------------- the whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--save"]
    command += ["--results", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


@pytest.fixture
def result(run) -> dict:
    return json.loads(next(run[1].glob("compare_*_tiny_proteome.json")).read_text())


@pytest.mark.slow
def test__compare__prints_a_table_and_then_the_json_that_it_saves(run, result):
    lines = run[0].splitlines()
    rows = [cells(line) for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    # The heads and the rule come before the contenders.
    assert len(rows) == 2 + len(result["contenders"])
    assert all(float(row[1].replace(",", "")) > 0 for row in rows[2:])
    assert json.loads(lines[-1]) == result


@pytest.mark.slow
def test__compare__float32_of_all_contenders_agrees(result):
    names = {record["name"] for record in result["contenders"]}
    assert {"esm2_features float32", BASELINE.name, "fair-esm tuned"} <= names
    assert not [why for why in result["left_out"].values() if "not installed" not in why]
    for record in result["contenders"]:
        if record["setting"] == "int8":
            continue
        assert record["max_abs_error"] < 1e-4, record["name"]
        assert record["relative_error"] < 1e-4, record["name"]


@pytest.mark.slow
def test__compare__reports_every_round(result):
    for record in result["contenders"]:
        assert len(record["rounds"]) == result["arguments"]["rounds"]
        assert record["memory_MB"] > 0
        assert 0 <= record["foreign"] <= 1
    assert result["kind"] == "compare"
    assert "torch" in result["machine"]["versions"]


@pytest.mark.slow
def test__report__shows_the_result_and_writes_it_into_a_readme(run, tmp_path, capsys):
    folder = str(run[1])
    report.main(["--results", folder])
    shown = capsys.readouterr().out
    (row,) = [cells(line) for line in shown.splitlines() if line.startswith("| tiny")]
    heads = next(cells(line) for line in shown.splitlines() if line.startswith("| model"))
    assert float(dict(zip(heads, row, strict=True))["vs fair-esm extract.py"]) > 0
    readme = tmp_path / "README.md"
    readme.write_text("before <!-- compare: begin --> old <!-- compare: end --> after")
    report.main(["--results", folder, "--write", "--readme", str(readme)])
    text = readme.read_text()
    assert re.fullmatch(r"before <.+>\n.+\n<.+> after", text, re.DOTALL)
    assert shown.strip() in text
    assert " old " not in text


@pytest.mark.slow
def test__plot__draws_a_picture(run, capsys):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    from benchmarks import plot

    plot.main(["--results", str(run[1])])
    printed = Path(capsys.readouterr().out.strip())
    assert printed == next(run[1].glob("compare_*_proteome.png"))
    assert printed.read_bytes().startswith(b"\x89PNG")


# -------------------------------------------------------------- its workload


@pytest.mark.parametrize("mix", MIXES)
def test__workload__is_the_same_each_time_and_has_no_duplicates(mix):
    found = workload(mix, 5000)
    assert found == workload(mix, 5000)
    assert found != workload(mix, 5000, seed=1)
    assert len(set(found)) == len(found)
    assert sum(map(len, found[:-1])) < 5000 <= sum(map(len, found))


def test__workload__has_the_lengths_that_its_name_says():
    lengths = {mix: [len(sequence) for sequence in workload(mix, 50_000)] for mix in MIXES}
    assert 30 <= min(lengths["proteome"]) < max(lengths["proteome"]) <= 1022
    assert 270 < np.median(lengths["proteome"]) < 350
    assert (min(lengths["peptides"]), max(lengths["peptides"])) == (5, 50)
    assert 95 <= min(lengths["antibody"]) < max(lengths["antibody"]) <= 145
    assert set(lengths["mutants"]) == {230}


def test__workload__mutants_differ_in_two_places_at_most_and_run_out():
    first, *others = workload("mutants", 2300)
    for other in others:
        assert sum(a != b for a, b in zip(first, other, strict=True)) <= 2
    with pytest.raises(ValueError, match="1005100"):  # 230 positions x 19 residues x 230
        workload("mutants", 2_000_000)


def test__workload__that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="metagenome"):
        workload("metagenome", 100)


def test__shapes__are_the_official_ones():
    for name, (layers, dim, heads) in SHAPES.items():
        official = OFFICIAL[f"esm2_{name}_UR50D"].architecture
        assert (official.layers, official.dim, official.heads) == (layers, dim, heads)


def test__flops__are_those_of_the_weights_and_of_attention():
    layers, dim, _ = shape_of("t6_8M")
    affine = dim * 3 * dim + dim * dim + 2 * dim * 4 * dim
    attention = 2 * 12 * dim  # each of 12 tokens with 12, twice
    expected = layers * 12 * 2 * (affine + attention)
    assert flops("t6_8M", [10]) == expected
    assert flops(shape_of("t6_8M"), [10, 10]) == 2 * expected


def test__checkpoint__is_read_alike_by_this_library_and_fair_esm(tmp_path):
    path = write_checkpoint("tiny", tmp_path)
    written = path.stat().st_mtime_ns
    assert write_checkpoint("tiny", tmp_path).stat().st_mtime_ns == written
    engine = Engine(path, cache=None)
    (ours,) = engine.embed(["MKTAYIAKQR"])
    layer = engine.checkpoint.architecture.layers
    theirs = Reference(engine.checkpoint).layers("MKTAYIAKQR")[str(layer)][1:-1].mean(0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --------------------------------------------------------------- its machine


def test__stopwatch__counts_its_own_work_as_its_own():
    with Stopwatch() as watch:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.05:
            pass
    assert watch.seconds >= 0.05
    assert math.isnan(watch.foreign) or 0 <= watch.foreign <= 1


def test__machine__is_described_in_json():
    found = json.loads(json.dumps(describe()))
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__


def test__gemm_peak__is_a_speed():
    assert gemm_peak(16, "float32", seconds=0.0) > 0


# --------------------------------------------------------------- its parts


def test__batches__keep_to_the_budget_and_lose_nobody():
    sequences = workload("proteome", 5000)
    for budget in (1, 512, 2048):
        batches = by_tokens(sequences, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(len(sequences)))
        for batch in batches:
            padded_tokens = len(batch) * (max(len(sequences[i]) for i in batch) + 2)
            assert padded_tokens <= budget or len(batch) == 1
    assert in_order(5, 2) == [[0, 1], [2, 3], [4]]


def test__padded__has_the_tokens_of_each_sequence_and_then_padding():
    tokens = padded(["MKT", "M"])
    assert tokens[0].tolist() == encode("MKT").tolist()
    assert tokens[1].tolist() == [*encode("M").tolist(), 1, 1]


def test__contenders__a_missing_peer_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "onnx" in name else name)
    found, left_out = contenders(["fair-esm", "onnxruntime"], ["float32", "bfloat16"], "cpu")
    assert [one.name for one in found] == [
        *("esm2_features float32", "esm2_features bfloat16"),
        *("fair-esm extract.py", "fair-esm tuned"),
    ]
    assert left_out == {"onnxruntime": "onnxruntime, onnx, onnxscript not installed"}


def test__parse__leaves_exporters_out_of_the_largest_model_unless_they_are_asked_for():
    assert parse(["--model", "t33_650M"]).peers == ["fair-esm", "transformers", "esm-cpp"]
    assert set(parse(["--model", "t33_650M"]).unasked) == {"onnxruntime", "openvino"}
    assert parse(["--model", "t33_650M", "--peers", "openvino"]).peers == ["openvino"]


def test__memory__decides_whether_all_processes_live_at_once():
    some = [Contender("transformers", "float32")] * 8
    assert all_fit_into_memory(some, "t6_8M", 24)
    assert not all_fit_into_memory(some, "t33_650M", 24)


def test__errors__are_relative_to_what_tells_sequences_apart():
    reference = np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32) + 100
    found = errors(reference + np.float32(0.5), reference)
    assert found["max_abs_error"] == 0.5
    assert found["relative_error"] == pytest.approx(np.sqrt(0.5))
    assert errors(reference[:1], reference[:1])["relative_error"] is None


class FakeTrial:
    """Takes rounds as they are written down: others' shares, or a failure."""

    stays = True

    def __init__(self, name, shares):
        self.contender = Contender(name, "float32")
        self.shares, self.done, self.stopped = shares, [], False

    @property
    def quiet(self):
        return [number for number in self.done if self.shares[number] < 0.1]

    def stop(self):
        self.stopped = True


@pytest.fixture
def fake_trials(monkeypatch):
    def run(trial, number):
        log.append((number, trial.contender.library))
        if trial.shares is None:
            raise ContenderFailedError("no memory")
        trial.done.append(number)

    log: list[tuple[int, str]] = []
    monkeypatch.setattr("benchmarks._rounds.Trial.load", lambda trial: None)
    monkeypatch.setattr("benchmarks._rounds.Trial.run", run)
    return log


def test__measure__rotates_the_order_and_repeats_noisy_rounds_twice_at_most(fake_trials):
    calm, busy = FakeTrial("calm", [0, 0, 0, 0]), FakeTrial("busy", [1, 1, 1, 1])
    done, failures = measure([calm, busy], rounds=2, extra=2)
    assert fake_trials[:4] == [(0, "calm"), (0, "busy"), (1, "busy"), (1, "calm")]
    assert fake_trials[4:] == [(2, "busy"), (3, "busy")]
    assert (done, failures) == ([calm, busy], {})
    assert calm.stopped
    assert busy.stopped


def test__measure__goes_on_without_a_contender_that_fails(fake_trials):
    fine, broken = FakeTrial("fine", [0, 0]), FakeTrial("broken", None)
    done, failures = measure([broken, fine], rounds=2, extra=0)
    assert done == [fine]
    assert failures == {"broken float32": "no memory"}
    assert fine.done == [0, 1]


def test__report__shows_kinds_that_it_knows(tmp_path, monkeypatch):
    for name, kind in (("a", "known"), ("b", "unknown"), ("c", "known")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"kind": kind, "name": name}))
    monkeypatch.setitem(TABLES, "known", lambda some: " ".join(one["name"] for one in some))
    assert tables(read(tmp_path)) == {"known": "a c"}


def test__insert__refuses_a_text_without_the_marks():
    with pytest.raises(ValueError, match="0 times"):
        insert("nothing", "compare", "table")
