"""What a job will cost is said before it is done, and nothing is done."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from esm2_features import Cache, Engine
from esm2_features._cache import reports as _cache_reports
from esm2_features._checkpoints import open_checkpoint
from esm2_features._costs import calibration as _calibration
from esm2_features._costs import dry_run
from esm2_features._inference.batch_loop import BatchLoop
from esm2_features.cli import main

PROTEINS = ["MKTAYIAKQR" * 4, "GSHMVLSEGE", "CYIQNCPLG", "GSHMVLSEGE", "M" * 64]


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text("".join(f">p{i}\n{text}\n" for i, text in enumerate(PROTEINS)))
    return path


def invoke(*words, code=0, **runner):
    result = CliRunner().invoke(main, [str(word) for word in words], **runner)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def lines_of(text: str) -> dict[str, str]:
    return {line[:23].strip(): line[23:] for line in text.splitlines() if len(line) > 23}


def everything_in(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------ estimate


@pytest.fixture
def short_rounds(monkeypatch):
    monkeypatch.setattr(_calibration, "_ROUND_SECONDS", 0.02)


@pytest.mark.usefixtures("short_rounds")
def test__estimate__counts_and_times_a_sample(fasta):
    text = invoke("estimate", fasta, "--model", "mini", "--device", "cpu").stdout
    assert text.startswith("An estimate.")
    rows = lines_of(text)
    assert rows["sequences"] == "5"
    assert rows["unique"] == "4"
    assert rows["tokens to compute"] == str(40 + 10 + 9 + 64 + 4 * 2)
    assert rows["longest"] == "64"
    assert rows["too long"] == "0"
    assert rows["lengths"] == "5%: 9, 25%: 10, 50%: 40, 75%: 64, 95%: 64 residues"
    assert "Timed on this machine" in text


def test__estimate__as_json_has_the_same(fasta):
    words = ("estimate", fasta, "--model", "mini", "--device", "t4", "--json")
    result = json.loads(invoke(*words).stdout)
    assert result["is_estimate"] is True
    assert result["input"]["unique"] == 4
    assert result["input"]["tokens_to_compute"] == 40 + 10 + 9 + 64 + 4 * 2
    assert result["input"]["length_quantiles"]["0.5"] == 40
    assert result["output_bytes"]["float32"] == 5 * 192 * 4
    assert result["seconds"]["low"] < result["seconds"]["middle"] < result["seconds"]["high"]
    assert result["basis"].startswith("Not measured")


def test__estimate__more_columns_take_more_disk_and_fewer_layers_less_time(fasta):
    def figures(*options):
        words = ("estimate", fasta, "--model", "mini", "--device", "t4", "--json")
        return json.loads(invoke(*words, *options).stdout)

    last, third = figures(), figures("--layers", 3)
    assert third["seconds"]["middle"] < last["seconds"]["middle"]
    every = figures("--layers", "all", "--pooling", "all")
    assert every["output_bytes"]["float16"] == 7 * 5 * last["output_bytes"]["float16"]


def test__estimate__of_a_card_is_a_range_that_was_not_measured(fasta):
    text = invoke("estimate", fasta, "--device", "h200", "--precision", "bfloat16").stdout
    assert "Not measured: between 20% and 60% of the peak of NVIDIA H200" in text
    huge = ("--model", "esm2_t48_15B_UR50D", "--device", "t4")
    assert "which it does not have" in invoke("estimate", fasta, *huge).stdout


def test__estimate__of_a_card_needs_no_weights_and_no_torch(fasta, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from esm2_features.cli import main\n"
        f"main(['estimate', {str(fasta)!r}, '--device', 'a100'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "TORCH_HOME": str(tmp_path), "ESM2_FEATURES_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("short_rounds")
def test__estimate__times_a_sample_without_downloading(fasta, tmp_path, monkeypatch):
    for name in ("TORCH_HOME", "ESM2_FEATURES_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    text = invoke("estimate", fasta, "--model", "esm2_t6_8M_UR50D").stdout
    assert "Timed on this machine" in text
    assert not (tmp_path / "empty").exists()
    assert open_checkpoint("esm2_t6_8M_UR50D").to_fetch == 30_099_493
    assert open_checkpoint("esm2_t48_15B_UR50D").to_fetch > 50e9
    assert open_checkpoint("mini").to_fetch is None


@pytest.mark.usefixtures("short_rounds")
def test__estimate__times_masks_and_windows(fasta):
    fasta.write_text(">a\nMKT<mask>AYIAKQR\n>b\n" + "M" * 40 + "\n")
    options = ("--max-residues", 12, "--too-long", "window")
    assert "Timed on this machine" in invoke("estimate", fasta, "--model", "mini", *options).stdout


def test__estimate__takes_what_embed_takes(fasta, tmp_path):
    def counted(*words, **runner):
        options = ("--model", "mini", "--device", "t4", "--json")
        return json.loads(invoke("estimate", *words, *options, **runner).stdout)["input"]

    alone = counted(fasta)
    (tmp_path / "in.fasta.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    pq.write_table(pa.table({"name": list("abcde"), "text": PROTEINS}), tmp_path / "in.parquet")
    columns = ("--sequence-column", "text", "--id-column", "name")
    assert counted("-", input=fasta.read_text()) == alone
    assert counted(tmp_path / "in.fasta.gz") == alone
    assert counted(tmp_path / "in.parquet", *columns)["tokens_to_compute"] == 131
    for inputs in (tmp_path, tmp_path / "in.*"):
        together = counted(inputs, *columns)
        assert (together["sequences"], together["unique"]) == (15, 4)


def test__estimate__names_what_embed_would_refuse(fasta):
    fasta.write_text(">a\nMKT\n>a\nMKV\n>b\nMK1\n>c\n" + "M" * 1023 + "\n")
    rows = lines_of(invoke("estimate", fasta, "--model", "mini", "--device", "t4").stdout)
    assert rows["left out"].startswith(f"2, which `embed` refuses. {fasta}, record 3: '1' at")
    assert rows["repeated ids"] == "1"
    assert rows["too long"] == "1"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", [], "holds no records"),
        (">a\nMK1\n", [], "None of the 1 sequences can be embedded."),
        (">a\nMK1\n", [], "in.fasta, record 1: '1' at position 3"),
        (">a\n" + "M" * 1023, [], "They are too long: --too-long window"),
        (">a\nMKT\n", ["--model", "minni"], "Did you mean --model mini?"),
        (">a\nMKT\n", ["--layers", "9"], "the representations 0 (the embedding) to 6"),
        (">a\nMKT\n", ["--pooling", "median"], "--pooling median"),
        (">a\nMKT\n", ["--precision", "bfloat16", "--device", "t4"], "has no units for"),
        (">a\nMKT\n", ["--device", "v100"], "Got --device v100; expected"),
        (">a\nMKT\n", ["--device", "cpu,cpu"], "an estimate is for one device"),
        (">a\nMKT\n", ["--pooling", "parti", "--too-long", "window"], "importance is read off"),
    ],
)
def test__estimate__wrong_input_is_named(fasta, content, options, message):
    fasta.write_text(content)
    model = [] if "--model" in options else ["--model", "mini"]
    assert message in invoke("estimate", fasta, *model, *options, code=2).stderr


def test__estimate__no_such_input(tmp_path):
    assert "there is no such file" in invoke("estimate", tmp_path / "x.fasta", code=2).stderr


# ------------------------------------------------------------------ embed --dry-run


def test__dry_run__prints_what_would_be_done_and_writes_nothing(fasta, tmp_path):
    before = everything_in(tmp_path)
    words = ("embed", fasta, "-o", tmp_path / "x.npz", "--model", "mini")
    text = invoke(*words, "--cache", tmp_path / "cache", "--dry-run").stdout
    found = lines_of(text)
    assert found["sequences"] == "5"
    assert found["different"] == "4"
    assert found["in the cache"].startswith("0 ")
    assert found["to be computed"] == "4"
    assert found["batches"].startswith("1 of ")
    assert "x.npz: 5 x 192 features" in found["output"]
    assert everything_in(tmp_path) == before


def test__dry_run__knows_what_the_cache_has_and_leaves_it_alone(fasta, tmp_path):
    cache = tmp_path / "cache"
    Engine("mini", cache=cache).embed(PROTEINS[:2])
    before = everything_in(tmp_path)
    words = ("embed", fasta, "-o", tmp_path / "x.npz", "--model", "mini", "--cache", cache)
    found = lines_of(invoke(*words, "--dry-run").stdout)
    assert (found["in the cache"].split()[0], found["to be computed"]) == ("2", "2")
    assert everything_in(tmp_path) == before
    assert "2 of them computed" in invoke(*words).stderr
    text = invoke("embed", fasta, "-o", tmp_path / "y.npz", *words[4:], "--dry-run").stdout
    assert lines_of(text)["to be computed"] == "0"
    assert "batches" not in text


@pytest.mark.filterwarnings("always")  # shown, as on the command line
def test__dry_run__a_damaged_cache_is_not_mended(fasta, tmp_path):
    cache = tmp_path / "cache"
    Engine("mini", cache=cache).embed(PROTEINS[:2])
    file = Cache(cache).file
    file.write_bytes(b"no database at all" * 100)
    before = everything_in(tmp_path)
    words = ("embed", fasta, "-o", tmp_path / "x.npz", "--model", "mini", "--cache", cache)
    result = invoke(*words, "--dry-run")
    assert "Warning: The cache" in result.stderr
    assert lines_of(result.stdout)["to be computed"] == "4"
    assert everything_in(tmp_path) == before


def test__dry_run__an_empty_cache_file_stays_empty(fasta, tmp_path):
    file = Cache(tmp_path / "cache").file
    file.parent.mkdir()
    file.touch()
    words = ("embed", fasta, "-o", tmp_path / "x.npz", "--model", "mini")
    invoke(*words, "--cache", tmp_path / "cache", "--dry-run")
    assert file.stat().st_size == 0


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("", []),
        (">a\nMKT\n>a\nMKV\n", []),
        (">a\nMKT\n>b\nMK1T\n", []),
        (">a\n" + "M" * 1023, []),
        (">a\nMKT\n", ["--layers", "9"]),
        (">a\nMKT\n", ["--device", "cuda:99"]),
        (">a\nMKT\n", ["--format", "pt", "--pooling", "max"]),
        (">a\nMKT\n", ["--region", "1:9"]),
        (">a\nMKT\n", ["-o", "nowhere/x.npz"]),
        (">a\nMKT\n", ["--model", "nowhere.pt"]),
    ],
)
def test__dry_run__wrong_input_gives_the_error_of_the_run(fasta, tmp_path, content, options):
    fasta.write_text(content)
    words = ["embed", fasta, "-o", tmp_path / "x.npz", "--model", "mini", "--cache", "none"]
    real = invoke(*words, *options, code=2)
    assert invoke(*words, *options, "--dry-run", code=2).stderr == real.stderr


@pytest.mark.filterwarnings("always")
def test__dry_run__warns_as_the_run_does(fasta, tmp_path):
    words = ("embed", fasta, "-o", tmp_path / "x.npz", "--model", "mini", "--cache", "none")
    said = invoke(*words, "--max-residues", 9, "--too-long", "truncate", "--dry-run").stderr
    assert "4 of 5 sequences were cut" in said


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_tokens": 50},
        {"region": (1, 5)},
        {"max_residues": 20, "too_long": "window", "batch_tokens": 50},
    ],
)
def test__dry_run__plans_the_passes_of_the_run(options, monkeypatch):
    engine = Engine("mini", device="cpu", cache=None, **options)
    plan = dry_run(engine, PROTEINS)
    rows: list[int] = []
    from esm2_features._model.esm2 import ESM2Network

    original = ESM2Network.run

    def counted(self, batches, *args, **kwargs):
        rows.extend(len(batch.positions) for batch in batches)
        return original(self, batches, *args, **kwargs)

    monkeypatch.setattr(ESM2Network, "run", counted)
    engine.embed(PROTEINS)
    assert (plan.batches, plan.tokens) == (len(rows), sum(rows))


def test__dry_run__all_poolings_and_layers_have_to_be_there(tmp_path):
    Engine("mini", cache=tmp_path).embed(PROTEINS)
    assert dry_run(Engine("mini", cache=tmp_path), PROTEINS).missing == 0
    more = Engine("mini", cache=tmp_path, pooling=["mean", "max"])
    assert dry_run(more, PROTEINS).missing == 4
    assert dry_run(Engine("mini", cache=tmp_path, precision="bfloat16"), PROTEINS).missing == 4


@pytest.mark.parametrize("device", [["cpu", "cpu"], "cpu+cpu"])
def test__dry_run__of_several_devices_has_the_batches_of_one(tiny_checkpoint, device):
    plan = dry_run(Engine(tiny_checkpoint, device=device, cache=None), ["MKT", "GGGGG"])
    assert (plan.batches, plan.device) == (1, "cpu")


def test__dry_run__knows_what_would_be_downloaded(tmp_path, monkeypatch):
    for name in ("TORCH_HOME", "ESM2_FEATURES_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    plan = dry_run(Engine("esm2_t6_8M_UR50D", cache=None), PROTEINS)
    assert (plan.download, plan.missing) == (30_099_493, 4)
    assert dry_run(Engine("mini", cache=None), PROTEINS).download is None


def test__plan__is_what_the_loop_goes_over():
    import torch

    passes = BatchLoop(
        ["MKT", "GGGGG", "A"],
        forward=lambda views, _: lambda: np.zeros(len(views)),
        bytes_of=lambda _: 4,
        claim=list,
        device=torch.device("cpu"),
        budget=8,
        on_smaller_budget=lambda _: None,
        progress=lambda _: None,
    )
    planned = [list(batch) for batch in passes.plan(range(3))]
    assert planned == [batch for batch, _ in passes.run(range(3))] == [[1], [0, 2]]


def test__readable__goes_up_to_terabytes():
    assert _cache_reports.readable(5_120_000_000_000) == "5.1 TB"
