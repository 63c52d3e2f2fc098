"""Shards behind the end of an input, and of no input, move aside: all programs read the same."""

from __future__ import annotations

import gzip
import shutil

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_helpers import check, fasta, peptides

from esm2_features import distributed, open_embeddings

SEQUENCES = peptides(40)
SHORT = dict(list(SEQUENCES.items())[:16])


@pytest.fixture
def embed(tmp_path, tiny_checkpoint):
    def run(inputs=tmp_path / "a.fasta", **options):
        lines = []
        options = {"model": tiny_checkpoint, "shard_size": 8, "progress": lines.append, **options}
        return distributed.embed_shards(inputs, tmp_path / "out", **options), lines

    return run


def interrupt(embed, source):
    """Leave what a job leaves that is killed after its third shard."""

    class Killed(BaseException):
        pass

    def stop(line, seen=[]):  # noqa: B006
        seen.append(line)
        if len(seen) % 4 == 0:
            raise Killed

    fasta(source, SEQUENCES)
    with pytest.raises(Killed):
        embed(source, progress=stop)


def rows_of(folder):
    """Count rows by three programs, which must agree."""
    n = len(open_embeddings(folder))
    assert len(pd.read_parquet(folder, columns=["id"])) == n
    for pattern in ("*.parquet", "**/*.parquet"):
        assert pl.scan_parquet(folder / pattern).select("id").collect().height == n
    return n


def test__input_that_became_shorter__leaves_no_rows(embed, tmp_path, tiny_checkpoint):
    source = tmp_path / "a.fasta"
    interrupt(embed, source)
    fasta(source, SHORT)
    report, lines = embed()
    assert report.complete
    assert report.left_over == ("a-00002", "a-00003")
    assert "2 shards belong to no part of the inputs (a-00002, a-00003): moved to" in lines[-1]
    check(tmp_path / "out", SHORT, tiny_checkpoint)
    assert rows_of(tmp_path / "out") == 16
    aside = tmp_path / "out/_manifest/left_over"
    assert pq.read_table(aside / "a-00002.parquet.old").num_rows == 8, "nothing is deleted"
    assert (aside / "a-00002.done.json.old").exists()
    assert "it has 2 shards" in (aside / "a-00002.reason.json").read_text()
    report, lines = embed()
    assert (report.computed, report.left_over) == (0, ())


def test__input_that_became_shorter_twice__keeps_both(embed, tmp_path):
    source = tmp_path / "a.fasta"
    interrupt(embed, source)
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    fasta(source, SHORT)
    embed()
    for path in (tmp_path / "before").glob("a-0000[23].parquet"):
        shutil.copy(path, tmp_path / "out")
    assert embed()[0].left_over == ("a-00002", "a-00003")
    names = {path.name for path in (tmp_path / "out/_manifest/left_over").glob("*.old*")}
    assert {"a-00002.parquet.old", "a-00002.parquet.old2"} <= names
    assert rows_of(tmp_path / "out") == 16


def test__tasks_of_an_array__move_them_when_the_end_is_known(embed, tmp_path, tiny_checkpoint):
    interrupt(embed, tmp_path / "a.fasta")
    fasta(tmp_path / "a.fasta", SHORT)
    for i in range(3):
        embed(shard=(i, 3))
    check(tmp_path / "out", SHORT, tiny_checkpoint)
    assert rows_of(tmp_path / "out") == 16


def test__empty_input__leaves_no_rows(embed, tmp_path):
    interrupt(embed, tmp_path / "a.fasta")
    (tmp_path / "a.fasta").write_bytes(b"")
    with pytest.warns(UserWarning, match="holds no sequences"):
        report, _ = embed()
    assert len(report.left_over) == 4
    assert len(open_embeddings(tmp_path / "out")) == 0


def test__other_kinds_of_inputs__are_the_same(embed, tmp_path):
    zipped, table = tmp_path / "z.fasta.gz", tmp_path / "t.parquet"

    def write(sequences):
        text = "".join(f">{name}\n{residues}\n" for name, residues in sequences.items())
        zipped.write_bytes(gzip.compress(text.encode()))
        columns = {"id": list(sequences), "sequence": list(sequences.values())}
        pq.write_table(pa.table(columns), table, row_group_size=5)

    for source, n in ((zipped, 16), (table, 15)):  # whole shards
        write(SEQUENCES)
        embed(source, shard=(1, 2))
        (tmp_path / f"out/_manifest/{source.name[0]}.source.json").unlink()
        write(dict(list(SEQUENCES.items())[:n]))
        report, _ = embed(source)
        assert report.complete
        assert len(report.left_over) > 0
        assert rows_of(tmp_path / "out") == n
        shutil.rmtree(tmp_path / "out")


def test__shards_of_no_input__move_and_other_files_are_said(embed, tmp_path):
    fasta(tmp_path / "a.fasta", SHORT)
    embed()
    for name in ("b-00000.parquet", "_manifest/b-00000.done.json"):
        shutil.copy(tmp_path / "out" / name.replace("b-", "a-"), tmp_path / "out" / name)
    pd.DataFrame({"y": [1, 2]}).to_parquet(tmp_path / "out/labels.parquet")
    report, lines = embed()
    assert report.left_over == ("b-00000",)
    assert (tmp_path / "out/labels.parquet").exists(), "it may be somebody's only copy"
    assert "labels.parquet is no shard of this job. Programs that read the folder" in lines[-1]
    (tmp_path / "out/labels.parquet").unlink()
    assert rows_of(tmp_path / "out") == 16


def test__input_that_cannot_be_read_to_its_end__keeps_its_shards(embed, tmp_path):
    text = "".join(f">{name}\n{residues}\n" for name, residues in SEQUENCES.items()).encode()
    whole = gzip.compress(text, mtime=0)
    (tmp_path / "z.fasta.gz").write_bytes(whole)
    embed(tmp_path / "z.fasta.gz", shard=(1, 2))
    (tmp_path / "out/_manifest/z.source.json").unlink()
    (tmp_path / "z.fasta.gz").write_bytes(whole[:-30])
    report, _ = embed(tmp_path / "z.fasta.gz")
    assert (len(report.failed), report.left_over) == (1, ())
    (tmp_path / "z.fasta.gz").write_bytes(whole)
    assert embed(tmp_path / "z.fasta.gz")[0].complete
    assert rows_of(tmp_path / "out") == 40
