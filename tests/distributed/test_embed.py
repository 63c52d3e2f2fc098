"""Shards on a cluster of Ray are those of a plain run, whichever process dies.

All tests but one share a cluster of two cores, which takes some seconds to start.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import counting
import joblib
import numpy as np
import pytest
from checkpoints import random_esm2, write_fair_esm
from counting import CountingTransformer, computed
from shard_helpers import check, fasta, peptides
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from esm2_features import Engine, distributed
from esm2_features.distributed import preparation
from esm2_features.distributed.manifest import Manifest
from esm2_features.distributed.ray_cluster import ShardActor, connect, import_ray
from esm2_features.exceptions import (
    CheckpointError,
    InputError,
    MissingDependencyError,
    NumericalError,
)

ray = pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [
    pytest.mark.xdist_group("ray"),  # one cluster for all
    # Of Ray and what it uses, about itself: not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*reset_index.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SEQUENCES = peptides(200)
N_SHARDS = 25
PLAIN = {"engine": "plain", "workers": 1}
"""Plain runs continue the shards of a cluster, and start faster."""


@pytest.fixture(scope="module")
def cluster():
    for module in (sys.modules[__name__], counting):  # workers cannot import them
        ray.cloudpickle.register_pickle_by_value(module)
    assert connect(import_ray(), address=None, workers=2)
    yield
    ray.shutdown()


@pytest.fixture
def embed(tmp_path, tiny_checkpoint, cluster):
    """Embed into ``out`` with two actors, 8 sequences a shard."""
    fasta(tmp_path / "a.fasta", SEQUENCES)

    def run(**options):
        options = {"model": tiny_checkpoint, "shard_size": 8, **options}
        options = {"engine": "ray", "workers": 2, **options}
        return distributed.embed_shards(tmp_path / "a.fasta", tmp_path / "out", **options)

    return run


def actors() -> set[int]:
    """Processes of our actors: descendants of this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if not (folder / "cmdline").read_bytes().startswith(b"ray::"):
                continue
            if b"Actor" in (folder / "cmdline").read_bytes() and _is_ours(int(folder.name)):
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


# ------------------------------------------------------------------ shards


def test__two_actors__compute_the_shards_of_a_plain_run(embed, tmp_path, tiny_checkpoint):
    lines = []
    report = embed(progress=lines.append)
    assert (report.computed, report.failed, report.complete) == (N_SHARDS, (), True)
    assert len(lines) == N_SHARDS
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)
    assert embed(**PLAIN).computed == 0, "nothing is left to do"


def test__share__is_computed_on_a_cluster(embed, tmp_path, tiny_checkpoint):
    assert embed(shard=(1, 2)).computed == N_SHARDS // 2
    assert embed(shard=(0, 2), **PLAIN).complete
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__invalid_shard__is_set_aside_and_computed_when_it_is_corrected(
    embed, tmp_path, tiny_checkpoint
):
    fasta(tmp_path / "a.fasta", {**SEQUENCES, "p20": "MKT1YI"})
    report = embed(set_aside="shard")
    assert report.computed == N_SHARDS - 1
    assert [(failed.name, failed.id) for failed in report.failed] == [("a-00002", "p20")]
    fasta(tmp_path / "a.fasta", SEQUENCES)
    assert embed(**PLAIN).computed == 1
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__invalid_record__is_set_aside_alone(embed, tmp_path, tiny_checkpoint):
    fasta(tmp_path / "a.fasta", {**SEQUENCES, "p20": "MKT1YI"})
    report = embed(shard=(2, N_SHARDS))
    assert (report.computed, report.failed) == (1, ())
    assert [(one.row, one.id, one.position) for one in report.invalid] == [(20, "p20", 4)]
    assert embed(**PLAIN).invalid == report.invalid


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test__killed_actor__is_replaced_and_nothing_is_lost(embed, tmp_path, tiny_checkpoint):
    killed: list[int] = []

    def kill(_):
        if len(killed) < 2:
            alive = actors() - set(killed)
            if alive:
                killed.append(min(alive))
                os.kill(killed[-1], signal.SIGKILL)

    report = embed(progress=kill)
    assert len(killed) == 2
    assert (report.computed, report.failed, report.complete) == (N_SHARDS, (), True)
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


class Fatal(ShardActor):
    """Dies at one shard each time."""

    def run(self, task):
        if task.name == "a-00003":
            os._exit(1)
        return super().run(task)


@pytest.mark.slow
def test__shard_that_kills_its_worker__is_set_aside_alone(
    embed, tmp_path, tiny_checkpoint, monkeypatch
):
    monkeypatch.setattr("esm2_features.distributed.ray_cluster.ShardActor", Fatal)
    report = embed()
    [failed] = report.failed
    assert (failed.name, report.computed) == ("a-00003", N_SHARDS - 1)
    assert "The worker died each time" in failed.message
    assert Manifest(tmp_path / "out").failed() == [failed]
    monkeypatch.undo()
    assert embed(**PLAIN).computed == 1
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


class FullDisk(ShardActor):
    """Raises the error of a full disk from some shard on."""

    def run(self, task):
        from unittest import mock

        if task.name < "a-00005":
            return super().run(task)
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch("esm2_features.distributed.files.ShardWriter.add", side_effect=full):
            return super().run(task)


@pytest.mark.slow
def test__full_disk__ends_the_job_which_can_be_continued(
    embed, tmp_path, tiny_checkpoint, monkeypatch
):
    monkeypatch.setattr("esm2_features.distributed.ray_cluster.ShardActor", FullDisk)
    with pytest.raises(OSError, match=r"No space left.*a-0000[5-9]\.parquet") as caught:
        embed()
    assert caught.value.errno == errno.ENOSPC
    assert Manifest(tmp_path / "out").failed() == []
    monkeypatch.undo()
    there = len(list((tmp_path / "out").glob("*.parquet")))
    assert there <= 5
    report = embed(**PLAIN)
    assert (report.computed, report.present) == (N_SHARDS - there, there)
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint, is_alone=False)


def test__weights_that_cannot_be_loaded__end_the_job(embed, tmp_path):
    path = write_fair_esm(random_esm2(layers=1, dim=16, heads=2, seed=8), tmp_path / "other.pt")
    embed(model=path, **PLAIN, shard=(0, N_SHARDS))
    write_fair_esm(random_esm2(layers=1, dim=16, heads=2, seed=9), path)
    with pytest.raises(InputError, match="digest of the model was"):
        embed(model=path)
    settings_of = preparation.WorkerOptions

    def other(options, identity, *rest):
        return settings_of(options, "sha256:other", *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "WorkerOptions", other)
        write_fair_esm(random_esm2(layers=1, dim=16, heads=2, seed=8), path)
        with pytest.raises(CheckpointError, match="holds other weights on"):
            embed(model=path)


DRIVER = """
import os, signal, sys
from esm2_features import distributed

def kill(line, seen=[]):
    seen.append(line)
    if len(seen) == 5 and os.environ["RAY_AUTH_MODE"] == "token":  # nobody else may use it
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    source, out, model = sys.argv[1:]
    distributed.embed_shards(
        source, out, model=model, shard_size=8, engine="ray", workers=2, progress=kill
    )
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test__killed_driver__is_continued(embed, tmp_path, tiny_checkpoint):
    words = [str(tmp_path / "a.fasta"), str(tmp_path / "out"), str(tiny_checkpoint)]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", DRIVER, *words], timeout=180, env=variables)
    assert done.returncode == -signal.SIGKILL
    report = embed()
    assert 5 <= report.present < N_SHARDS
    assert report.computed + report.present == N_SHARDS
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers=0; expected a positive"),
        ({"gpus_per_worker": 2}, "gpus_per_worker=2; expected 0 or 1"),
        ({"engine": "dask"}, "Got engine='dask'"),
        ({"engine": "plain"}, "computes in this process"),
        ({"address": "auto"}, "this process is connected to Ray already"),
        ({"workers": 1000}, r"room for \d+ of workers=1000 on the cluster"),
    ],
)
def test__invalid_workers__are_an_error(embed, options, said):
    with pytest.raises(InputError, match=said):
        embed(**options)


def test__missing_gpus__are_an_error(embed):
    if ray.cluster_resources().get("GPU"):
        pytest.skip("there are GPUs")
    with pytest.raises(InputError, match=r"room for 0 of workers=2 .* 0 GPUs"):
        embed(gpus_per_worker=1)


def test__without_ray__the_extra_is_named(embed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r'"esm2-features\[ray\]"'):
        embed()


# ------------------------------------------------------------------ ray.data, joblib


def test__data_set__gets_a_column(cluster, tiny_checkpoint):
    rows = [{"name": name, "seq": text} for name, text in list(SEQUENCES.items())[:30]]
    ds = distributed.embed_ray_dataset(
        ray.data.from_items(rows),
        sequence_column="seq",
        model=tiny_checkpoint,
        layers=[0, -1],
        dtype="float16",
        batch_size=8,
    )
    frame = ds.to_pandas().set_index("name").loc[[row["name"] for row in rows]]
    engine = Engine(tiny_checkpoint, layers=[0, -1], cache=None)
    expected = engine.embed([row["seq"] for row in rows]).astype(np.float16)
    names = ["embedding_layer0_mean", "embedding_layer2_mean"]
    assert list(frame.columns) == ["seq", *names]
    found = np.hstack([np.stack(frame[name].tolist()) for name in names])
    np.testing.assert_array_equal(found, expected)


def test__data_set_without_the_column__is_an_error_that_lists_columns(tiny_checkpoint):
    import pyarrow as pa

    from esm2_features.distributed.ray_batches import BatchEmbedder

    embedder = BatchEmbedder({"model": tiny_checkpoint, "cache": None}, "seq", ("e",), "float32")
    with pytest.raises(InputError, match=r"no column 'seq'; its columns are id"):
        embedder(pa.table({"id": ["a"]}))
    with pytest.raises(InputError, match="has a column 'e' already"):
        embedder(pa.table({"seq": ["MKT"], "e": [1]}))
    assert embedder(pa.table({"seq": pa.array([], pa.string())})).column_names == ["seq", "e"]


def test__data_set__float16_that_overflows_is_an_error(tiny_checkpoint, monkeypatch):
    import pyarrow as pa

    from esm2_features.distributed.ray_batches import BatchEmbedder

    options = {"model": tiny_checkpoint, "cache": None}
    embedder = BatchEmbedder(options, "sequence", ("e",), "float16")
    table = pa.table({"sequence": pa.array([b"MKT", b"GSHM"])})  # as binary columns are, too
    expected = Engine(**options).embed(["MKT", "GSHM"]).astype(np.float16)
    np.testing.assert_array_equal(np.stack(embedder(table)["e"].to_numpy()), expected)
    embed = Engine.embed
    scale = np.array([[1.0], [1e6]], np.float32)
    monkeypatch.setattr(Engine, "embed", lambda self, texts: embed(self, texts) * scale)
    said = r"vector of the sequence 'GSHM' has a component.*Pass dtype=\"float32\""
    with pytest.raises(NumericalError, match=said):
        embedder(table)


@pytest.mark.slow
def test__grid_search_on_a_cluster__shares_the_cache(cluster, tmp_path, tiny_checkpoint):
    from ray.util.joblib import register_ray

    register_ray()
    texts = list(SEQUENCES.values())[:24]
    cache = tmp_path / "cache"
    pipe = make_pipeline(
        CountingTransformer(tiny_checkpoint, cache=cache, store="all"), LogisticRegression()
    )
    search = GridSearchCV(pipe, {"countingtransformer__layers": [1, -1]}, cv=2, refit=False)
    with joblib.parallel_config(backend="ray", n_jobs=2):
        search.fit(texts, np.arange(24) % 2)
    counts = computed(cache)
    assert {counts[text] for text in texts} == {1}, "each sequence is computed once in all"
