"""The scripts still run; what the training script writes is a checkpoint of this library."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import code_size
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.headers import read_header
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._verify import verify

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    letters = np.array(list(CANONICAL_RESIDUES))
    proteins = ["".join(rng.choice(letters, n)) for n in rng.integers(40, 700, 60)]
    fasta, out = folder / "proteins.fasta", folder / "mini.safetensors"
    fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(proteins)))
    script = [sys.executable, str(BENCHMARKS / "train_mini.py")]
    shape = ["--layers", "2", "--dim", "32", "--heads", "2", "--steps", "2"]
    command = [*script, "--fasta", str(fasta), "--out", str(out), *shape]
    subprocess.run(command, check=True, timeout=240, capture_output=True)
    return out


@pytest.mark.slow
def test__train_mini__writes_a_checkpoint_that_means_the_same_to_fair_esm(trained):
    shape = open_checkpoint(trained).architecture
    assert (shape.layers, shape.dim, shape.heads) == (2, 32, 2)
    report = verify(trained, sequences=["MKTAYIAKQR", "MK<mask>LVXX"], device="cpu")
    assert report.passed, str(report)


def test__train_mini__without_a_fasta_says_so():
    command = [sys.executable, str(BENCHMARKS / "train_mini.py"), "--fasta", "nowhere.fasta"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "nowhere.fasta" in done.stderr
    assert "Traceback" not in done.stderr


def test__model_card__is_of_the_weights_that_ship():
    """The card is written by the evaluation; its figures of training are in the weights."""
    file = open_checkpoint("mini").source
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        record = json.loads(json.loads(stream.read(length))["__metadata__"]["training"])
    card = file.with_name("MINI.md").read_text(encoding="utf-8")
    assert f"{record['parameters']:,}" in card
    assert f"{record['steps_done']:,} steps" in card
    assert read_header(file).architecture.layers == record["layers"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is for Linux")
def test__cache_faults__finds_none():
    command = [sys.executable, str(BENCHMARKS / "cache_faults.py"), "--quick"]
    done = subprocess.run(
        [*command, "--store", "esm2_features"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing crashed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is for Linux")
def test__shard_faults__finds_none():
    command = [sys.executable, str(BENCHMARKS / "shard_faults.py"), "--quick"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark is for Linux")
def test__cache_speed__runs(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "cache_speed.py"), "--quick"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("esm2_features") == 4, "once for each width"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["contacts_memory.py", "variants.py"])
def test__contacts_and_variants__run(script):
    if script == "contacts_memory.py" and not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of memory can be begun anew on Linux only")
    command = [sys.executable, str(BENCHMARKS / script), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory in /proc")
def test__shards__measures_and_ends_with_json():
    command = [sys.executable, "-m", "benchmarks.shards", "--quick", "--no-ray"]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=240, check=True
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["throughput"]) == {"plain, all cores", "plain, 1 thread"}
    assert report["shard_milliseconds"]["plain"] > 0
    assert report["memory"]["sequences"] == 96


@pytest.mark.slow
def test__neighbors__agree_with_scikit_learn():
    command = [sys.executable, "-m", "benchmarks.neighbors", "--quick", "--width", "64"]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=240, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["agreement"] == 1


@pytest.mark.slow
def test__host_work__counts_what_the_cache_adds():
    command = [sys.executable, "-m", "benchmarks.host_work", "--quick"]
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=240, check=True
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) == 4
    assert min(report.values()) > 0


def test__code_size__keeps_to_the_rules_of_the_house():
    longest = {path: code_size.count(path)["lines"] for path in code_size.PACKAGE.rglob("*.py")}
    assert max(longest.values()) <= 450, max(longest, key=longest.get)
    way = code_size.way(cache=None)
    assert len(set(way.stack)) <= 8
    assert 0 < way.changes <= 40


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sums", "precision"])
def test__exactness__runs(what):
    command = [sys.executable, "-m", "benchmarks.exactness", what, "--quick"]
    root = BENCHMARKS.parent
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    [found] = json.loads(done.stdout.splitlines()[-1])["models"]
    assert len(found["rows"]) >= 2
