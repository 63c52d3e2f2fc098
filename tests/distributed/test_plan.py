"""`embed IN... OUT --dry-run` says what a run would do, and does nothing."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from shard_helpers import fasta, peptides

from esm2_features import distributed
from esm2_features.cli import main
from esm2_features.distributed.plan import plan_shards
from esm2_features.exceptions import InputError

SEQUENCES = peptides(20)


@pytest.fixture
def inputs(tmp_path):
    """A folder of FASTA and Parquet, with an invalid record and a file that cannot be read."""
    folder = tmp_path / "in"
    folder.mkdir()
    fasta(folder / "a.fasta", {**SEQUENCES, "bad": "MK1"})
    columns = {"id": list(SEQUENCES), "sequence": list(SEQUENCES.values())}
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=10)
    (folder / "z.fasta.gz").write_bytes(gzip.compress(b">x\nMKT\n>y\nMKV\n" * 99)[:-9])
    return folder


@pytest.fixture
def options(tiny_checkpoint):
    return {"model": tiny_checkpoint, "shard_size": 8}


def content(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


def test__plan__is_what_the_run_then_does(inputs, tmp_path, options, ran):
    out = tmp_path / "out"
    plan = plan_shards(inputs, out, **options)
    assert not out.exists()
    assert ran == []
    report = distributed.embed_shards(inputs, out, **options)
    assert (plan.missing, plan.failed) == (report.computed, len(report.failed))
    assert (plan.sequences, plan.residues) == (report.sequences, report.residues)
    assert (plan.inputs, plan.present, plan.invalid) == (3, 0, len(report.invalid))
    assert plan.bytes == 4 * 32 * plan.sequences
    before = content(tmp_path)
    again = plan_shards(inputs, out, **options)
    assert (again.present, again.missing, again.sequences) == (report.computed, 0, 0)
    assert again.invalid == len(report.invalid)
    (out / "a-00001.parquet").unlink()
    assert plan_shards(inputs, out, **options).sequences == 8
    before.pop(out / "a-00001.parquet")
    assert content(out).keys() == {path for path in before if out in path.parents}


@pytest.mark.parametrize("state", [None, b"{"])
def test__plan__of_a_folder_whose_job_is_lost_writes_nothing(inputs, tmp_path, options, state):
    out = tmp_path / "out"
    distributed.embed_shards(inputs, out, **options)
    job = out / "_manifest/job.json"
    job.unlink()
    if state is not None:
        job.write_bytes(state)
    before = content(out)
    assert plan_shards(inputs, out, **options).missing == 0
    with pytest.raises(InputError, match="layers was"):
        plan_shards(inputs, out, **options, layers=1)
    assert content(out) == before


def test__plan__of_another_task_counts_its_share(inputs, tmp_path, options):
    shares = [plan_shards(inputs, tmp_path / "out", **options, shard=(i, 3)) for i in range(3)]
    whole = plan_shards(inputs, tmp_path / "out", **options)
    assert sum(share.sequences for share in shares) == whole.sequences


def test__plan__has_the_errors_of_the_run(tmp_path, inputs, options):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        plan_shards(inputs, tmp_path / "thesis", **options)
    with pytest.raises(InputError, match="There is no folder"):
        plan_shards(inputs, tmp_path / "no/out", **options)


def test__command__prints_the_plan(inputs, tmp_path, tiny_checkpoint):
    words = ["embed", inputs, tmp_path / "out", "--model", tiny_checkpoint, "--dry-run"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    lines = {line[:22].strip(): line[23:] for line in result.stdout.splitlines()[2:]}
    assert lines["shards"] == "4"
    assert lines["to be computed"] == "3"
    assert lines["to be set aside"] == "1, and 1 records"
    assert lines["sequences"].startswith("40 to be computed")
    assert "Set aside: z:" in result.stderr
    assert not (tmp_path / "out").exists()
