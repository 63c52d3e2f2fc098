"""Records that were damaged or edited: an error with the path and a remedy, or computed again."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from shard_helpers import fasta, peptides

from esm2_features import Engine, distributed, open_embeddings
from esm2_features._files import sha256_of
from esm2_features.cli import main
from esm2_features.distributed.records import (
    DamagedRecordError,
    DoneShard,
    FailedShard,
    JobRecord,
    ReadSource,
    parse_record,
    write_record,
)
from esm2_features.exceptions import InputError

SEQUENCES = peptides(12)
OPTIONS = {"shard_size": 4}
RECORDS = ("job", "a-00001.done", "a.source", "b-00000.failed")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    """A folder in which a second input has an invalid record."""
    place = tmp_path_factory.mktemp("records")
    sources = [fasta(place / "a.fasta", SEQUENCES), fasta(place / "b.fasta", {"q": "MK1"})]
    report = distributed.embed_shards(
        sources, place / "out", model=tiny_checkpoint, set_aside="shard", **OPTIONS
    )
    assert (report.computed, len(report.failed)) == (3, 1)
    return place


@pytest.fixture(scope="module")
def expected(tiny_checkpoint):
    return Engine(tiny_checkpoint, cache=None).embed(list(SEQUENCES.values()))


@pytest.fixture
def use(made, tmp_path, tiny_checkpoint, expected):
    """Open, verify, resume and open what `change` has done to a copy of the folder.

    Returns the errors of opening and of resuming, None where there was none and all was right.
    """

    def run(change, **options):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(made / "out", out)
        change(out)
        inputs = [made / "a.fasta", made / "b.fasta"]
        options = {"model": tiny_checkpoint, "set_aside": "shard", **OPTIONS, **options}

        def opened():
            x = open_embeddings(out, allow_partial=True)
            damaged = x.verify()
            rows = dict(zip(x.ids, x[:], strict=True))
            for k, name in enumerate(SEQUENCES):
                if name in rows:
                    np.testing.assert_allclose(rows[name], expected[k], atol=1e-6)
            assert set(rows) <= set(SEQUENCES)
            if damaged:
                return f"damaged: {damaged}"
            return None if len(x) == 12 else "; ".join(x.missing)

        def resumed():
            distributed.embed_shards(inputs, out, **options)
            assert opened() is None, "it has healed"

        return caught(opened), caught(resumed)

    return run


REMEDIES = ("Repeat", "Move it", "another folder", "Upgrade", "Pass the folder")


def caught(action):
    """Return what an action returns, or the text of its error."""
    try:
        return action()
    except InputError as error:
        text = str(error)
    assert text.count("/") >= 2, "it has a path"
    assert any(remedy in text for remedy in REMEDIES), text
    assert "Delete" not in text
    return text


def record(out, name):
    return out / "_manifest" / f"{name}.json"


def edit(out, name, /, **fields):
    """Change fields of a record as an editor does, which leaves its digest as it is."""
    path = record(out, name)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def forge(out, name, /, **fields):
    """Change fields of a record, and its digest."""
    path = record(out, name)
    content = {**json.loads(path.read_text()), **fields}
    content = {key: value for key, value in content.items() if value is not ...}
    content.pop("digest")
    write_record(path, content)


# ------------------------------------------------------------------ content that is no record

CONTENTS = {
    "empty": b"",
    "blank": b" \n",
    "half": b'{"format": 2, "model": {"na',
    "text": b"nothing",
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"3",
    "object": b"{}",
    "no utf-8": b'{"name": "\xff\xfe"}',
    "utf-16": '{"format": 2}'.encode("utf-16"),
    "zeros": bytes(200),
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 900 + b"1" + b"}" * 900,
    "huge number": b'{"format": ' + b"9" * 5000 + b"}",
    "no number": b'{"format": NaN, "rows": Infinity}',
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test__content_that_is_no_record__heals(use, content):
    for name in RECORDS:
        opening, resuming = use(lambda out, name=name: record(out, name).write_bytes(content))
        assert resuming is None
        if name == "job":
            assert "job.json is damaged, or was edited" in opening
        elif name == "a.source":
            assert opening is None, "what is finished is there"


def test__missing_record__heals(use):
    for name in RECORDS:
        opening, resuming = use(lambda out, name=name: record(out, name).unlink())
        assert resuming is None
        if name == "job":
            assert "job.json is missing. Repeat the command" in opening


@pytest.mark.parametrize("name", RECORDS)
def test__folder_in_the_place_of_a_record__is_an_error_and_stays(use, name):
    def change(out):
        record(out, name).unlink()
        (record(out, name) / "mine").mkdir(parents=True)

    opening, resuming = use(change)
    assert "is a folder, in the place of" in resuming
    assert "is a folder, in the place of" in (opening or resuming)


def test__folder_in_the_place_of_a_shard__is_an_error_and_stays(use, tmp_path):
    def change(out):
        (out / "a-00001.parquet").unlink()
        (out / "a-00001.parquet" / "mine").mkdir(parents=True)

    assert all("is a folder, in the place of a shard. Move it" in said for said in use(change))
    assert (tmp_path / "out/a-00001.parquet/mine").is_dir()


# ------------------------------------------------------------------ fields

WRONG = (None, True, -1, "7", 1e300, 2**70, [], ["x"], {}, {"a": 1}, [[]], "../x", "")
KINDS = dict(zip(RECORDS, (JobRecord, DoneShard, ReadSource, FailedShard), strict=True))


@pytest.mark.parametrize("name", RECORDS)
def test__wrong_value_of_any_field__is_taken_or_damage(made, name):
    path = record(made / "out", name)
    whole = json.loads(path.read_text())
    whole.pop("digest")
    n_taken = 0
    for field in whole:
        for value in WRONG:
            try:
                found = parse_record(path, KINDS[name], {**whole, field: value})
            except DamagedRecordError:
                continue
            n_taken += 1
            taken = getattr(found, field)
            assert taken == (tuple(value) if type(value) is list else value)
            assert type(taken) is not bool
        without = {key: value for key, value in whole.items() if key != field}
        if field not in ("kept", "invalid", "parameters", "checksums"):
            with pytest.raises(DamagedRecordError, match=f"it has no '{field}'"):
                parse_record(path, KINDS[name], without)
    assert n_taken < 5 * len(whole)


@pytest.mark.parametrize("name", RECORDS)
def test__wrong_field_of_a_folder__is_an_error_or_heals(use, made, name):
    for field in json.loads(record(made / "out", name).read_text()):
        use(lambda out, field=field: edit(out, name, **{field: "7"}))
        if field != "digest":
            use(lambda out, field=field: forge(out, name, **{field: {"a": 1}}))


@pytest.mark.parametrize("change", [edit, forge])
def test__job_with_other_parameters__is_not_believed(use, change):
    changes = {
        "layers": {"parameters": {"layers": [1]}},
        "pooling": {"parameters": {"pooling": ["max"]}},
        "identity": {"model": {"name": "tiny", "identity": "sha256:" + "0" * 64}},
        "dim": {"columns": {"vectors": ["embedding"], "dim": 16, "with_sequence": False}},
    }
    for fields in changes.values():

        def apply(out, fields=fields):
            old = json.loads(record(out, "job").read_text())
            new = {key: {**old[key], **value} for key, value in fields.items()}
            change(out, "job", **new)

        opening, resuming = use(apply)
        if change is edit:
            assert "job.json is damaged, or was edited" in opening
            assert resuming is None, "the shards are those of the command"
        else:
            assert "a-00000.parquet is of another job: " in opening
            assert resuming is None, "all shards are those of the command"


def test__names_that_lead_elsewhere__are_not_followed(use, tmp_path):
    for stem in ("../a", "/etc/a", "..", "", ".a", "a/../a", "a\\b", "a\0b"):
        entry = {"file": "a.fasta", "path": "/a.fasta", "stem": stem, "bytes": 1, "changed": 1}
        opening, resuming = use(lambda out, e=entry: forge(out, "job", inputs=[e]))
        assert "job.json is damaged" in opening
        assert resuming is None
    opening, resuming = use(lambda out: forge(out, "a-00001.done", name="../../a-00001"))
    assert (opening, resuming) == ("the rest of b.fasta; a-00001", None) or resuming is None


def test__inputs_of_the_same_name__are_an_error_of_opening(use):
    def twice(out):
        inputs = json.loads(record(out, "job").read_text())["inputs"]
        forge(out, "job", inputs=[inputs[0], inputs[0]])

    opening, resuming = use(twice)
    assert "two of its inputs have the same 'stem'" in opening
    assert resuming is None


def test__record_and_file_of_another_shard__are_found(use):
    def record_of_another(out):
        shutil.copy(record(out, "a-00000.done"), record(out, "a-00001.done"))

    def file_of_another(out):
        shutil.copy(out / "a-00000.parquet", out / "a-00001.parquet")

    def both(out):
        record_of_another(out)
        file_of_another(out)

    def both_renamed(out):
        both(out)
        forge(out, "a-00001.done", name="a-00001")

    for change in (record_of_another, file_of_another, both):
        opening, resuming = use(change)
        assert opening is not None
        assert resuming is None
    opening, _ = use(both_renamed)
    assert "its metadata are of something else: 'shard' is another" in opening


def test__wrong_sizes_and_digests__are_found(use):
    for fields in (
        {"bytes": 7},
        {"rows": 3},
        {"rows": 10**12},
        {"sha256": "0" * 64},
        {"checksums": [1, 2, 3]},
        {"checksums": [0] * 4},
    ):
        opening, _ = use(lambda out, fields=fields: forge(out, "a-00001.done", **fields))
        assert opening is not None, fields
        opening, resuming = use(lambda out, fields=fields: edit(out, "a-00001.done", **fields))
        assert "a-00001" in opening
        assert resuming is None
    for fields in ({"shards": 10**15, "records": 10**16}, {"shards": 3, "records": 2}):
        _, resuming = use(lambda out, fields=fields: forge(out, "a.source", **fields))
        assert resuming is None


def test__fields_of_a_newer_version__are_ignored(use):
    for name in RECORDS:
        assert use(lambda out, name=name: forge(out, name, more={"x": [1]}))[1] is None


def test__newer_format__is_an_error_and_stays(use, tmp_path):
    opening, resuming = use(lambda out: edit(out, "job", format=3))
    assert "has format 3" in opening
    assert opening == resuming
    assert json.loads(record(tmp_path / "out", "job").read_text())["format"] == 3


def test__command__ends_with_a_message(made, tmp_path, tiny_checkpoint):
    shutil.copytree(made / "out", tmp_path / "out")
    record(tmp_path / "out", "job").write_text("{")
    words = ["embed", *(str(made / name) for name in ("a.fasta", "b.fasta")), str(tmp_path / "out")]
    options = ["--model", str(tiny_checkpoint), "--shard-size", "4", "--set-aside", "shard"]
    result = CliRunner().invoke(main, [*words, *options, "--layers", "1"])
    assert result.exit_code == 2
    assert "a-00000.parquet, layers was [2] and is [1]" in result.stderr
    result = CliRunner().invoke(main, [*words, *options])
    assert result.exit_code == 1, "a shard is set aside, as before"
    assert "job.json was damaged: compared 3 finished shards, and wrote it again" in result.stderr


# ------------------------------------------------------------------ shards of other parameters


@pytest.mark.parametrize("state", [b"", b"{}", None])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 1}, r"layers was \[2\] and is \[1\]"),
        ({"pooling": "max"}, "pooling was"),
        ({"model": "mini"}, "model was"),
        ({"dtype": "float16"}, "dtype was 'float32' and is 'float16'"),
        ({"shard_size": 5}, "shard_size was 4 and is 5"),
        ({"region": (0, 3)}, "region was None"),
        ({"with_sequence": True}, "with_sequence was False"),
    ],
)
def test__lost_job__does_not_give_shards_other_parameters(use, tmp_path, state, options, said):
    def lose(out):
        record(out, "job").unlink()
        if state is not None:
            record(out, "job").write_bytes(state)

    _, resuming = use(lose, **options)
    assert "was begun with something else: of a-00000.parquet, " in resuming
    assert re.search(said, resuming)
    assert "with the same parameters and inputs, or choose another folder" in resuming


def test__lost_job__does_not_give_shards_another_input(made, tmp_path, tiny_checkpoint):
    """Same name, same size and time, other sequences: the shards are compared with them."""
    shutil.copytree(made / "out", tmp_path / "out")
    record(tmp_path / "out", "job").unlink()
    other = tmp_path / "a.fasta"
    fasta(other, {name: text[::-1] for name, text in SEQUENCES.items()})
    status = (made / "a.fasta").stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert other.stat().st_size == status.st_size
    with pytest.raises(InputError, match=r"a\.fasta has changed: the shard a-00000"):
        distributed.embed_shards(
            [other, made / "b.fasta"], tmp_path / "out", model=tiny_checkpoint, **OPTIONS
        )


def test__shard_of_another_folder__is_an_error(use, made, tmp_path, tiny_checkpoint):
    inputs = [made / "a.fasta", made / "b.fasta"]
    options = {"model": tiny_checkpoint, "layers": 1, **OPTIONS}
    distributed.embed_shards(inputs, tmp_path / "other", **options)

    def mix(out):
        for name in ("a-00001.parquet", "_manifest/a-00001.done.json"):
            shutil.copy(tmp_path / "other" / name, out / name)

    for said in use(mix):
        assert "a-00001.parquet is of another job: layers was [1] and is [2]" in said
        assert "is right, move this one to another place" in said
    assert not list((tmp_path / "out" / "_manifest").glob("a.failed.json"))


def test__job_of_another_folder__is_written_again_by_the_command_of_the_shards(
    use, made, tmp_path, tiny_checkpoint
):
    inputs = [made / "a.fasta", made / "b.fasta"]
    options = {"model": tiny_checkpoint, "pooling": "max", **OPTIONS}
    distributed.embed_shards(inputs, tmp_path / "other", **options)

    def exchange(out):
        shutil.copy(record(tmp_path / "other", "job"), record(out, "job"))

    opening, resuming = use(exchange)
    assert "a-00000.parquet is of another job: pooling was ['mean'] and is ['max']" in opening
    assert resuming is None
    assert "is of another job" in use(exchange, pooling="max")[1]


def test__link_to_nothing_in_place_of_a_record__is_an_error(use):
    def link(out):
        record(out, "job").unlink()
        record(out, "job").symlink_to("nowhere")

    for said in use(link):
        assert "job.json is a link to nothing, in the place of a file of the job" in said


# ------------------------------------------------------------------ format 1


def as_format_1(out):
    """Make the folder what earlier versions have written."""
    for path in (out / "_manifest").glob("*.json"):
        content = json.loads(path.read_text())
        for name in ("digest", "parameters", "checksums"):
            if name != "parameters" or path.name != "job.json":
                content.pop(name, None)
        if path.name == "job.json":
            content["format"] = 1
        path.write_text(json.dumps(content))
    for path in out.glob("*.parquet"):
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"esm2_features"])
        about = {name: about[name] for name in ("model", "identity", "precision")}
        metadata = {"esm2_features": json.dumps(about)}
        pq.write_table(table.replace_schema_metadata(metadata), path, use_dictionary=False)
        name = record(out, f"{path.stem}.done")
        content = json.loads(name.read_text())
        content |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        name.write_text(json.dumps(content))


def test__format_1__is_read_and_resumed_with_the_same_parameters(use):
    assert use(as_format_1) == (None, None) or use(as_format_1)[1] is None

    def incomplete(out):
        as_format_1(out)
        (out / "a-00002.parquet").unlink()

    assert use(incomplete)[1] is None
    assert "layers was [2] and is [1]" in use(as_format_1, layers=1)[1]


def test__format_1_without_its_job__is_not_resumed(use):
    def lose(out):
        as_format_1(out)
        record(out, "job").unlink()

    _, resuming = use(lose)
    assert "does not say with what. Choose another folder" in resuming


def test__format_1_with_another_model__is_an_error(use):
    def change(out):
        as_format_1(out)
        job = json.loads(record(out, "job").read_text())
        edit(out, "job", model={**job["model"], "identity": "sha256:" + "0" * 64})

    opening, resuming = use(change)
    assert "'identity' is another" in opening
    assert "digest of the model was" in resuming
