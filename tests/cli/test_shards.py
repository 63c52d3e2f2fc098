"""`embed IN... OUT` makes shards, says what it does, and what the other form of `embed` is for."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from shard_helpers import check, fasta, peptides

from esm2_features import open_embeddings
from esm2_features.cli import main
from esm2_features.cli.shards import _CHECKS, _DTYPES, _ENGINES, _PATIENCE, _SHARD_SIZE
from esm2_features.distributed.embed import ENGINES, PATIENCE, SHARD_SIZE
from esm2_features.distributed.files import DTYPES
from esm2_features.distributed.preparation import CHECKS

SEQUENCES = peptides(20)


@pytest.fixture
def run(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fasta(tmp_path / "a.fasta", SEQUENCES)

    def embed(*words, code=0):
        options = ["--model", tiny_checkpoint, "--shard-size", 8]
        result = CliRunner().invoke(main, [str(word) for word in ["embed", *words, *options]])
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        return result.stderr

    return embed


def test__constants__are_those_of_the_library():
    expected = (DTYPES, ENGINES, SHARD_SIZE, CHECKS, PATIENCE)
    assert expected == (_DTYPES, _ENGINES, _SHARD_SIZE, _CHECKS, _PATIENCE)


def test__folder__is_made_and_resumed(run, tmp_path, tiny_checkpoint):
    said = run("a.fasta", "out")
    assert "a-00002: 4 sequences" in said
    assert "3 shards made, 0 there before, 0 set aside; 20 sequences" in said
    assert "-> out, complete" in said
    assert "0 shards made, 3 there before" in run("a.fasta", "out/")
    check(tmp_path / "out", SEQUENCES, tiny_checkpoint)


def test__share__is_written_as_a_fraction(run):
    assert "2 shards made" in run("a.fasta", "out", "--shard", "0/2")
    assert "not complete yet" in run("a.fasta", "out", "--shard", "0/2")
    assert "1 shards made, 0 there before" in run("a.fasta", "out", "--shard", "1/2")


def test__several_inputs_and_patterns__go_into_one_folder(run, tmp_path):
    fasta(tmp_path / "b.fasta", peptides(3, seed=1))
    run("a.fasta", "b.fasta", "out")
    run("*.fasta", "out2")
    assert len(open_embeddings(tmp_path / "out")) == len(open_embeddings(tmp_path / "out2")) == 23


def test__file_of_two_names__is_embedded_once(run, tmp_path):
    (tmp_path / "b.fasta").symlink_to("a.fasta")
    said = run("a.fasta", "b.fasta", tmp_path / "a.fasta", "out")
    assert "b.fasta is the same file as a.fasta: embedded once." in said
    assert f"{tmp_path}/a.fasta is the same file as a.fasta: embedded once." in said
    assert len(open_embeddings(tmp_path / "out")) == 20
    assert "3 there before" in run("a.fasta", "out")


def test__what_is_set_aside__is_said_and_the_exit_code_is_1(run, tmp_path):
    fasta(tmp_path / "a.fasta", {**SEQUENCES, "p9": "MKTJ"})
    said = run("a.fasta", "out", "--set-aside", "shard", code=1)
    assert "Set aside: a-00001: a.fasta (id p9): 'J' at position 4" in said
    assert "--unknown X" in said
    assert "Error: 1 was set aside" in said
    said = run("a.fasta", "out2", code=1)
    assert "a-00001: 7 sequences" in said
    assert "a.fasta, row 9 (id p9): 'J' at position 4" in said
    assert "0 set aside; 19 sequences" in said
    assert ", 1 records set aside -> " in said
    assert "Error: 1 was set aside" in said
    assert "row 9 (id p9)" in run("a.fasta", "out2", code=1), "it is still left out"


def test__cache__is_used_when_it_is_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(tmp_path / "cache"))
    run("a.fasta", "out")
    assert not (tmp_path / "cache").exists()
    run("a.fasta", "out2", "--cache", "auto")
    assert (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.fasta", "out", "--force"], "--force is for one file OUT, with -o"),
        (["a.fasta", "out", "--format", "npz"], "--format is for one file OUT, with -o"),
        (["a.fasta", "out", "--workers", 2], "--workers is for --engine ray"),
        (["a.fasta", "x.parquet"], "x.parquet, should be a folder OUT"),
        (["a.fasta", "a.fasta"], "a.fasta, should be a folder OUT"),
        (["a.fasta", "out", "--shard", "2/2"], "'2/2' is not I/N"),
        (["a.fasta", "out", "--shard", "1"], "'1' is not I/N"),
        (["-", "out"], "Standard input cannot be cut"),
        (["none.fasta", "out"], "there is no such file"),
        (["a.fasta", "no/out"], "There is no folder"),
        (["a.fasta"], "Missing option '-o' / '--output' for one file OUT, or a folder OUT"),
    ],
)
def test__wrong_words__are_refused(run, words, said):
    assert said in run(*words, code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.fasta", "-o", "x.npz", "--shard", "0/2"], "--shard is for a folder OUT"),
        (["a.fasta", "-o", "x.npz", "--with-sequence"], "--with-sequence is for a folder OUT"),
        (["a.fasta", "a.fasta", "-o", "x.npz"], "-o takes one file IN"),
        ([".", "-o", "x.npz"], ". is a folder, but -o takes"),
    ],
)
def test__options_of_shards_for_a_file__are_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    fasta(tmp_path / "a.fasta", SEQUENCES)
    result = CliRunner().invoke(main, ["embed", *words, "--model", "mini"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "x.npz").exists()
