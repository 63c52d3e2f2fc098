"""Jobs of shards: each sequence once, whatever breaks, and no finished shard twice."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import random_esm2, write_fair_esm
from full_disk import no_room
from shard_helpers import check, fasta, peptides

from esm2_features import Engine, distributed, open_embeddings
from esm2_features._inference.runner import Runner
from esm2_features.distributed import embed as embed_module
from esm2_features.distributed import preparation
from esm2_features.distributed.files import ShardWriter
from esm2_features.distributed.manifest import Manifest
from esm2_features.exceptions import CheckpointError, InputError, TruncationWarning

SEQUENCES = peptides(50)


@pytest.fixture
def source(tmp_path):
    return fasta(tmp_path / "a.fasta", SEQUENCES)


@pytest.fixture
def embed(tmp_path, tiny_checkpoint, source):
    """Embed into ``out``, 8 sequences a shard."""

    def run(inputs=source, **options):
        options = {"model": tiny_checkpoint, "shard_size": 8, **options}
        return distributed.embed_shards(inputs, tmp_path / "out", **options)

    return run


def shards(folder):
    return sorted(path.name for path in folder.glob("*.parquet"))


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


# ------------------------------------------------------------------ what is made


def test__shards__hold_each_sequence_once_with_its_vector(embed, tmp_path, tiny_checkpoint):
    report = embed()
    assert (report.computed, report.present, report.failed) == (7, 0, ())
    assert (report.sequences, report.complete) == (50, True)
    assert report.residues == sum(map(len, SEQUENCES.values()))
    assert shards(tmp_path / "out") == [f"a-{k:05d}.parquet" for k in range(7)]
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__several_inputs__keep_their_order(embed, tmp_path, tiny_checkpoint, source):
    more = {f"q{i}": text for i, text in enumerate(peptides(20, seed=1).values())}
    zipped = tmp_path / "b.fa.gz"
    zipped.write_bytes(gzip.compress("".join(f">{k}\n{v}\n" for k, v in more.items()).encode()))
    columns = {"id": ["r0", "r1", "r2"], "sequence": ["MKTAY", "GSHMV", "AAAA"]}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet", row_group_size=2)
    report = embed([source, zipped, tmp_path / "c.parquet"])
    assert (report.computed, report.complete) == (7 + 3 + 2, True)
    rows = dict(zip(columns["id"], columns["sequence"], strict=True))
    check(tmp_path / "out", {**SEQUENCES, **more, **rows}, tiny_checkpoint)


def test__layers_poolings_dtype_and_sequences__are_those_of_the_parameters(
    embed, tmp_path, tiny_checkpoint
):
    embed(layers=[0, -1], pooling=["mean", "max"], dtype="float16", with_sequence=True)
    found = open_embeddings(tmp_path / "out").dataset().to_table()
    names = [f"embedding_layer{layer}_{word}" for layer in (0, 2) for word in ("mean", "max")]
    assert found.column_names == ["id", "length", "sequence", *names]
    assert found["sequence"].to_pylist() == list(SEQUENCES.values())
    engine = Engine(tiny_checkpoint, layers=[0, -1], pooling=["mean", "max"], cache=None)
    expected = engine.embed(list(SEQUENCES.values())).reshape(50, 4, 32)
    for k, name in enumerate(names):
        x = open_embeddings(tmp_path / "out", column=name)
        np.testing.assert_array_equal(x[:], expected[:, k].astype(np.float16))


def test__shares__compute_each_shard_once_without_communication(
    embed, tmp_path, tiny_checkpoint, source
):
    reports = [embed(shard=(i, 3)) for i in (2, 0, 1)]
    assert [report.computed for report in reports] == [2, 3, 2]
    assert [report.complete for report in reports] == [False, False, True]
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)
    assert embed(shard=(1, 4)).computed == 0, "another division of the same job"


def test__shares_of_many_small_files__are_even(embed, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for k in range(6):
        fasta(folder / f"{k}.fasta", peptides(3, seed=k))
    assert [embed(folder, shard=(i, 3)).computed for i in range(3)] == [2, 2, 2]


def test__ids__may_repeat(embed, tmp_path):
    path = tmp_path / "twice.fasta"
    path.write_text(">a\nMKT\n>b\nMKV\n>a\nMKA\n")
    embed(path, shard_size=2)
    x = open_embeddings(tmp_path / "out")
    assert x.ids.tolist() == ["a", "b", "a"]
    with pytest.raises(InputError, match=r"Several rows of .* have the id 'a'"):
        x.get(["b", "a"])


def test__memory__does_not_grow_with_the_vectors_of_a_shard(embed, tmp_path, monkeypatch):
    portions = []
    plain = Runner.embed

    def noted(self, views, *options, **named):
        portions.append(len(views))
        return plain(self, views, *options, **named)

    monkeypatch.setattr(Runner, "embed", noted)
    monkeypatch.setattr("esm2_features.distributed.worker._PORTION_BYTES", 4 * 32 * 20)
    embed(shard_size=50)
    assert portions == [20, 20, 10]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"layers": 0}, r"layers was \[2\] and is \[0\]"),
        ({"pooling": "max"}, "pooling was"),
        ({"dtype": "float16"}, "dtype was 'float32' and is 'float16'"),
        ({"shard_size": 9}, "shard_size was 8 and is 9"),
        ({"max_residues": 100}, "max_residues was 1022 and is 100"),
        ({"with_sequence": True}, "with_sequence was False and is True"),
        ({"model": "mini"}, "model was '.*' and is 'mini'"),
    ],
)
def test__other_parameters__are_an_error_that_names_them(embed, changed, said):
    embed()
    with pytest.raises(InputError, match=f"begun with something else: .*{said}.*another folder"):
        embed(**changed)


def test__other_weights_under_the_same_name__are_an_error(embed, tmp_path):
    path = write_fair_esm(random_esm2(layers=1, dim=16, heads=2, seed=8), tmp_path / "m.pt")
    embed(model=path)
    write_fair_esm(random_esm2(layers=1, dim=16, heads=2, seed=9), path)
    with pytest.raises(InputError, match=r"digest of the model was 'sha256:\w+' and is 'sha256:"):
        embed(model=path)


def test__other_inputs__are_an_error_that_names_them(embed, tmp_path, source):
    embed()
    more = fasta(tmp_path / "b.fasta", peptides(1))
    with pytest.raises(InputError, match=r"1 files and are 2, with b\.fasta"):
        embed([source, more])


def test__changed_input__is_an_error_where_shards_are_finished(embed, tmp_path, source):
    embed()
    other = {**SEQUENCES, "p9": "MKT"}
    fasta(source, other)
    with pytest.raises(InputError, match=r"a\.fasta has changed: the shard a-00001 in"):
        embed()
    fasta(source, dict(list(SEQUENCES.items())[:48]))
    with pytest.raises(InputError, match="the shard a-00006 in"):
        embed()


def test__copied_input__is_continued(embed, source):
    embed(shard=(0, 2))
    os.utime(source, ns=(1, 1))
    report = embed()
    assert (report.computed, report.present, report.complete) == (3, 4, True)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0.0, 1), [0, 1], (True, 2), 3])
def test__invalid_share__is_an_error(embed, shard):
    with pytest.raises(InputError, match="the number of this task, from 0"):
        embed(shard=shard)


def test__folder_of_other_files__is_an_error(embed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"holds other files, such as thesis\.txt"):
        embed()


def test__output_that_is_no_folder__is_an_error(embed, tmp_path, source, tiny_checkpoint):
    with pytest.raises(InputError, match="is a file, and shards go into a folder"):
        distributed.embed_shards(source, source, model=tiny_checkpoint)
    with pytest.raises(InputError, match="There is no folder"):
        distributed.embed_shards(source, tmp_path / "no" / "out", model=tiny_checkpoint)


def test__output_among_the_inputs__is_an_error(embed, tmp_path):
    embed()
    with pytest.raises(InputError, match="lies in the output folder"):
        embed(tmp_path / "out" / "*.parquet")


# ------------------------------------------------------------------ what breaks


def test__invalid_shard__is_set_aside_and_computed_when_it_is_corrected(
    embed, tmp_path, tiny_checkpoint, source
):
    fasta(source, {**SEQUENCES, "p20": "MKT1YI"})
    lines = []
    report = embed(progress=lines.append, set_aside="shard")
    assert (report.computed, report.complete) == (6, False)
    [failed] = report.failed
    assert (failed.name, failed.row, failed.id, failed.position) == ("a-00002", 20, "p20", 4)
    assert failed.error == "InvalidSequenceError"
    [said] = [line for line in lines if line.startswith("Set aside")]
    assert "a-00002: a.fasta (id p20): '1' at position 4" in said
    with pytest.raises(InputError, match=r"not complete: a-00002 missing. 1 were set aside"):
        open_embeddings(tmp_path / "out")
    assert len(open_embeddings(tmp_path / "out", allow_partial=True)) == 42
    assert embed(set_aside="shard").failed == (failed,), "it is tried again"
    before = times(tmp_path / "out")
    fasta(source, SEQUENCES)
    report = embed()
    assert (report.computed, report.present, report.failed) == (1, 6, ())
    assert times(tmp_path / "out").items() >= before.items()
    assert Manifest(tmp_path / "out").failed() == []
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__invalid_record__is_set_aside_alone_and_computed_when_it_is_corrected(
    embed, tmp_path, tiny_checkpoint, source
):
    fasta(source, {**SEQUENCES, "p20": "MKT1YI"})
    lines = []
    report = embed(progress=lines.append)
    assert (report.computed, report.complete, report.failed) == (7, True, ())
    [invalid] = report.invalid
    assert (invalid.row, invalid.id, invalid.position) == (20, "p20", 4)
    assert (invalid.path, invalid.error) == (str(source), "InvalidSequenceError")
    assert [line for line in lines if line.startswith("a-00002: 7 sequences")]
    others = {name: text for name, text in SEQUENCES.items() if name != "p20"}
    check(tmp_path / "out", others, tiny_checkpoint)
    again = embed()
    assert (again.computed, again.present, again.invalid) == (0, 7, (invalid,))
    before = times(tmp_path / "out")
    fasta(source, SEQUENCES)
    report = embed()
    assert (report.computed, report.invalid, report.complete) == (1, (), True)
    changed = [name for name, time in times(tmp_path / "out").items() if before[name] != time]
    assert [name for name in changed if "a-0" in name] == [
        name for name in changed if "a-00002" in name
    ]
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__invalid_records_of_parquet__are_set_aside_alone(embed, tmp_path, tiny_checkpoint):
    changed = {**SEQUENCES, "p20": "MKT1YI", "p21": None, "p30": "x" * 2000}
    columns = {"id": [*changed], "sequence": [*changed.values()]}
    columns["id"][40] = None
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=10)
    report = embed(tmp_path / "t.parquet")
    assert (report.complete, report.failed) == (True, ())
    assert [one.row for one in report.invalid] == [20, 21, 30, 40]
    aside = ("p20", "p21", "p30", "p40")
    others = {name: text for name, text in SEQUENCES.items() if name not in aside}
    check(tmp_path / "out", others, tiny_checkpoint)


def test__invalid_record__leaves_its_shard_bound_to_the_others(embed, source):
    fasta(source, {**SEQUENCES, "p20": "MKT1YI"})
    embed()
    fasta(source, {**SEQUENCES, "p21": "MKTAYI"})
    with pytest.raises(InputError, match="has changed: the shard a-00002"):
        embed()


def test__shard_of_invalid_records_only__is_set_aside(embed, source):
    fasta(source, dict.fromkeys(SEQUENCES, "MKT1"))
    report = embed()
    assert (report.computed, len(report.failed), report.invalid) == (0, 7, ())


def test__records__without_residues_or_id_are_set_aside(embed, source, tmp_path):
    source.write_text(">a\nMKT\n>b\n>c\nMKT\n>\nMKT\n>d\nMKV\n")
    report = embed()
    assert [(one.row, one.error) for one in report.invalid] == [
        (1, "FastaError"),
        (3, "FastaError"),
    ]
    assert len(open_embeddings(tmp_path / "out")) == 3


def test__truncated_file__is_set_aside_from_there_on(embed, tmp_path, tiny_checkpoint, source):
    whole = gzip.compress(source.read_bytes(), mtime=0)
    zipped = tmp_path / "z.fasta.gz"
    zipped.write_bytes(whole[: len(whole) // 2])
    report = embed([zipped, source])
    [failed] = report.failed
    assert failed.name == "z"
    assert "cannot be read to its end" in failed.message
    assert f"from shard {report.computed - 7} on" in failed.message
    assert report.computed >= 7, "the other file is whole"
    zipped.write_bytes(whole)
    again = embed([zipped, source])
    assert (again.computed + again.present, again.failed, again.complete) == (14, (), True)
    x = open_embeddings(tmp_path / "out")
    np.testing.assert_allclose(x[:50], x[50:], atol=1e-6)


def test__file_that_is_no_parquet__is_set_aside(embed, tmp_path, source):
    (tmp_path / "t.parquet").write_text("nothing")
    report = embed([tmp_path / "t.parquet", source])
    assert [failed.name for failed in report.failed] == ["t"]
    assert (report.computed, report.complete) == (7, False)


def test__input_without_sequences__warns(embed, tmp_path, source):
    (tmp_path / "empty.fasta").touch()
    with pytest.warns(UserWarning, match=r"empty\.fasta holds no sequences"):
        report = embed([tmp_path / "empty.fasta", source])
    assert report.complete


def test__full_disk__ends_the_job_which_can_be_continued(embed, tmp_path, tiny_checkpoint):
    # Of 50 rows that take 128 bytes each, a shard of 8 has room, and one of 50 has none.
    with pytest.raises(OSError, match=r"a-00000\.parquet"), no_room(5000):
        embed(shard_size=50)
    assert shards(tmp_path / "out") == []
    assert Manifest(tmp_path / "out").failed() == [], "it is no fault of the shard"
    assert embed(shard_size=50).computed == 1
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


KILLED = """
import os, signal, sys
from esm2_features import distributed
from esm2_features.distributed import files as _shard_files

add, calls = _shard_files.ShardWriter.add, []

def killing(self, *rows, **options):
    add(self, *rows, **options)
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

_shard_files.ShardWriter.add = killing
distributed.embed_shards(sys.argv[1], sys.argv[2], model=sys.argv[3], shard_size=8)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test__killed_process__loses_the_shard_it_was_writing(embed, tmp_path, tiny_checkpoint, source):
    words = [str(source), str(tmp_path / "out"), str(tiny_checkpoint)]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len(shards(tmp_path / "out")) == 2
    assert len(list((tmp_path / "out").glob(".*.part"))) == 1
    report = embed()
    assert (report.computed, report.present) == (5, 2)
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)
    assert not list((tmp_path / "out").rglob(".*.part"))


TWO_JOBS = """
import sys
from esm2_features import distributed

sys.stdin.readline()
report = distributed.embed_shards(sys.argv[1], sys.argv[2], model=sys.argv[3], shard_size=2)
assert report.complete
"""


@pytest.mark.slow
def test__two_jobs_at_once__do_no_harm(tmp_path, tiny_checkpoint, source):
    words = [str(source), str(tmp_path / "out"), str(tiny_checkpoint)]
    jobs = [
        subprocess.Popen([sys.executable, "-c", TWO_JOBS, *words], stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    for job in jobs:
        job.stdin.write(b"\n")
        job.stdin.flush()
    assert [job.communicate(timeout=120) and job.returncode for job in jobs] == [0, 0]
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)
    assert not list((tmp_path / "out").rglob(".*.part"))


def test__damaged_shard__is_computed_again(embed, tmp_path, tiny_checkpoint):
    embed()
    path = tmp_path / "out" / "a-00003.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    assert open_embeddings(tmp_path / "out").verify() == ["a-00003.parquet"]
    assert embed(check="size").computed == 0
    lines = []
    assert embed(progress=lines.append).computed == 1
    assert "a-00003.parquet has changed since it was written. It is computed again" in lines[0]
    path.write_bytes(content[:-10])
    assert embed(check="size").computed == 1
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__unchanged_job__reads_files_of_up_to_10_gb_only(embed, monkeypatch, tmp_path):
    embed()
    path = tmp_path / "out" / "a-00003.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    monkeypatch.setattr(preparation, "_DIGEST_BYTES", 100)
    assert embed().computed == 0
    assert embed(check="digest").computed == 1
    with pytest.raises(InputError, match="Got check='no'"):
        embed(check="no")


def test__shard_without_a_record__is_computed_again(embed, tmp_path, tiny_checkpoint):
    embed()
    (tmp_path / "out/_manifest/a-00001.done.json").unlink()
    assert embed().computed == 1
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__weights_that_cannot_be_loaded__end_the_job(embed, tmp_path):
    path = write_fair_esm(random_esm2(layers=1, dim=16, heads=2, seed=8081), tmp_path / "other.pt")
    make = embed_module.ShardWorker

    def losing(*parts):
        worker = make(*parts)
        path.unlink()
        return worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module, "ShardWorker", losing)
        with pytest.raises(CheckpointError):
            embed(model=path)
    assert Manifest(tmp_path / "out").failed() == [], "it is no fault of the shard"


def test__job_that_ends_while_another_writes__does_no_harm(
    embed, tmp_path, tiny_checkpoint, monkeypatch
):
    add, reports = ShardWriter.add, []

    def overtaken(self, *rows, **options):
        monkeypatch.setattr(ShardWriter, "add", add)
        reports.append(embed())
        add(self, *rows, **options)

    monkeypatch.setattr(ShardWriter, "add", overtaken)
    reports.append(embed())
    assert [report.complete for report in reports] == [True, True]
    assert reports[0].computed == 7
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)
    assert not list((tmp_path / "out").rglob(".*.part"))


def test__job_that_begins_while_another_does__does_no_harm(embed, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    plain = Path.iterdir

    def overtaken(self):
        if self == tmp_path / "out":
            (self / "_manifest").mkdir(exist_ok=True)
        return plain(self)

    monkeypatch.setattr(Path, "iterdir", overtaken)
    assert embed().complete


def test__part_that_another_machine_removed__is_written_again(
    embed, tmp_path, tiny_checkpoint, monkeypatch
):
    add, calls = ShardWriter.add, []

    def removed(self, *rows, **options):
        calls.append(1)
        add(self, *rows, **options)
        if len(calls) == 3:
            for part in (tmp_path / "out").glob(".*.part"):
                part.unlink()

    monkeypatch.setattr(ShardWriter, "add", removed)
    assert embed().computed == 7
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


# ------------------------------------------------------------------ warnings and caches


def test__truncated_sequences__warn_once(embed, tmp_path):
    with pytest.warns(TruncationWarning, match="of 50 sequences were cut") as caught:
        embed(max_residues=10, too_long="truncate", with_sequence=True)
    assert len(caught) == 1
    found = open_embeddings(tmp_path / "out").dataset().to_table()
    assert max(found["length"].to_pylist()) == 10
    assert found["sequence"].to_pylist() == [text[:10] for text in SEQUENCES.values()]


def test__finished_job__does_not_warn(embed):
    embed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embed().computed == 0


def test__cache__keeps_what_was_computed(embed, tmp_path, tiny_checkpoint):
    embed(cache=tmp_path / "cache")
    engine = Engine(tiny_checkpoint, cache=tmp_path / "cache")
    engine.embed(list(SEQUENCES.values()))
    assert engine.n_computed == 0


def test__no_cache__is_the_default(embed, tmp_path, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "none"))
    embed()
    assert not (tmp_path / "none").exists()
