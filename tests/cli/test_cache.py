"""`esm2-features cache`, as somebody types it."""

from __future__ import annotations

import click
import numpy as np
import pytest
from click.testing import CliRunner

from esm2_features import Cache, Engine
from esm2_features._cache.keys import KeyedVectors, Spec
from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features.cli import main

NAME = "esm2_t6_8M_UR50D"
SPEC = Spec(OFFICIAL[NAME].identity, 6, "mean", "float32", model=NAME)
SEQUENCES = ["MKTAYIAKQR", "GSHMVLSEGE", "CYIQNCPLG"]
ROWS = np.random.default_rng(0).standard_normal((3, 320)).astype(np.float32)


@pytest.fixture
def filled(tmp_path):
    cache = Cache(tmp_path / "cache")
    cache._put_many([KeyedVectors(SPEC, SPEC.keys(SEQUENCES), ROWS)])
    return cache


def run(*words, code=0, text=None):
    done = CliRunner().invoke(main, ["cache", *map(str, words)], input=text)
    assert done.exit_code == code, done.output
    return done.output


def read(cache):
    out = np.zeros_like(ROWS)
    assert cache._get_many(SPEC, SPEC.keys(SEQUENCES), out).all()
    return out


def damage(cache):
    """Flip a bit of a vector."""
    content = bytearray(cache.file.read_bytes())
    content[content.index(ROWS[1].tobytes()) + 8] ^= 4
    cache.file.write_bytes(content)


@pytest.mark.parametrize("name", main.commands["cache"].commands)
def test__help__of_every_command_ends_with_an_example(name):
    assert f"esm2-features cache {name}" in run(name, "--help").rstrip().splitlines()[-1]
    for parameter in main.commands["cache"].commands[name].params:
        assert getattr(parameter, "help", None) or isinstance(parameter, click.Argument), parameter


def test__info__shows_size_and_content(filled):
    shown = run("info", "--cache", filled.path)
    assert f"{filled.path}: 3 vectors" in shown
    assert shown.splitlines()[-1].split() == [
        NAME, "6", "mean", "float32", "float32", "3", "3.9", "kB",
    ]  # fmt: skip


def test__info__of_a_cache_that_is_not_there_makes_none(tmp_path):
    assert run("info", "--cache", tmp_path / "no") == f"There is no cache in {tmp_path / 'no'}.\n"
    assert not (tmp_path / "no").exists()


def test__info__of_a_damaged_file_leaves_it_alone(filled):
    filled.file.write_bytes(b"no database")
    assert "file is not a database" in run("info", "--cache", filled.path, code=2)
    assert filled.file.read_bytes() == b"no database"


def test__info__auto_is_the_folder_of_the_environment(monkeypatch, filled):
    monkeypatch.setenv("ESM2_FEATURES_CACHE", str(filled.path))
    assert f"{filled.path}: 3 vectors" in run("info")


def test__verify__sound(filled):
    assert "3 vectors as written" in run("verify", "--cache", filled.path)


def test__verify__damaged_is_exit_code_1_until_it_is_pruned(filled):
    damage(filled)
    shown = run("verify", "--cache", filled.path, code=1)
    assert f"1 of 3 vectors of {NAME}, layer 6, mean" in shown
    assert "cache prune" in shown
    assert "1 vector removed" in run("prune", "--cache", filled.path)
    assert "2 vectors as" in run("verify", "--cache", filled.path)


def test__prune__model(filled):
    Engine("mini", cache=filled).embed(SEQUENCES)
    assert "3 vectors removed" in run("prune", "--cache", filled.path, "--model", "mini")
    np.testing.assert_array_equal(read(filled), ROWS)
    assert "of model mini. Its models are: esm2_t6_8M_UR50D" in run(
        "prune", "--cache", filled.path, "--model", "mini", code=2
    )


@pytest.mark.parametrize("size", ["5MB", "0.005 GB", "5000kb", "5000000"])
def test__prune__max_bytes(tmp_path, size):
    cache = Cache(tmp_path)
    rows = np.random.default_rng(1).standard_normal((8000, 320)).astype(np.float32)
    cache._put_many([KeyedVectors(SPEC, SPEC.keys(map(str, range(8000))), rows)])
    run("prune", "--cache", tmp_path, "--max-bytes", size)
    assert cache.file.stat().st_size <= 5_000_000
    assert 2600 < cache.info().rows < 3800


@pytest.mark.parametrize("size", ["much", "-1", "4XB", ""])
def test__prune__no_size(filled, size):
    assert "is not a size" in run("prune", "--cache", filled.path, "--max-bytes", size, code=2)


def test__export_and_import__carry_every_bit(filled, tmp_path):
    file, other = tmp_path / "vectors.parquet", Cache(tmp_path / "other")
    assert "3 vectors -> " in run("export", file, "--cache", filled.path, "--model", NAME)
    assert "exists already" in run("export", file, "--cache", filled.path, code=2)
    run("export", file, "--cache", filled.path, "--force")
    assert "3 vectors new, 0 there already" in run("import", file, "--cache", other.path)
    assert "0 vectors new, 3 there already" in run("import", filled.path, "--cache", other.path)
    np.testing.assert_array_equal(read(other), ROWS)


def test__import__npz_of_an_official_model(tmp_path):
    file, cache = tmp_path / "vectors.npz", Cache(tmp_path / "cache")
    np.savez(file, sequence=np.array(SEQUENCES), embedding=ROWS)
    options = ["--model", NAME, "--layer", "6", "--pooling", "mean", "--cache", cache.path]
    assert "3 vectors new" in run("import", file, *options)
    np.testing.assert_array_equal(read(cache), ROWS)


def test__import__contradictions_are_reported_and_replaced_only_if_asked(filled, tmp_path):
    file = tmp_path / "vectors.npz"
    changed = ROWS.copy()
    changed[2, 5] += 0.5
    np.savez(file, sequence=np.array(SEQUENCES), embedding=changed)
    options = [file, "--model", NAME, "--layer", 6, "--pooling", "mean", "--cache", filled.path]
    shown = run("import", *options, code=1)
    assert "0 vectors new, 2 there already" in shown
    assert f"Left out: row 2 differs by 0.5 from {NAME}, layer 6, mean" in shown
    assert "1 vector of" in shown
    np.testing.assert_array_equal(read(filled), ROWS)
    assert "Replaced: row 2 differs by 0.5" in run("import", *options, "--replace")
    np.testing.assert_array_equal(read(filled), [ROWS[0], ROWS[1], changed[2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "model and layer and pooling must be given, too"),
        (["--model", NAME], "layer and pooling must be given, too"),
        (["--model", "mini", "--layer", "6", "--pooling", "mean"], "Got --model mini; expected"),
        (["--model", NAME, "--layer", "7", "--pooling", "mean"], "Got --layer 7, but"),
        (["--model", "esm2_t33_650M_UR50D", "--layer", "6", "--pooling", "mean"], "1280"),
    ],
)
def test__import__what_cannot_be_is_named(tmp_path, options, message):
    file = tmp_path / "vectors.npz"
    np.savez(file, sequence=np.array(SEQUENCES), embedding=ROWS)
    assert message in run("import", file, "--cache", tmp_path / "cache", *options, code=2)


def test__import__no_such_file(tmp_path):
    shown = run("import", tmp_path / "no.parquet", "--cache", tmp_path / "cache", code=2)
    assert "No such file" in shown


def test__import__folder_without_a_cache(tmp_path):
    assert "There is no cache in" in run("import", tmp_path, "--cache", tmp_path / "c", code=2)


def test__clear__asks_first(filled):
    assert "Delete all vectors in" in run("clear", "--cache", filled.path, text="n\n", code=1)
    assert filled.info().rows == 3
    assert "3 vectors deleted" in run("clear", "--cache", filled.path, "--yes")
    assert filled.info().rows == 0


def test__cache__none_is_no_cache():
    for word in ("none", ""):
        assert "--cache none is no cache" in run("info", "--cache", word, code=2)


@pytest.mark.parametrize("command", ["verify", "prune", "clear", "export x.parquet"])
def test__no_cache__is_an_error_where_one_is_needed(tmp_path, command):
    assert f"There is no cache in {tmp_path}." in run(*command.split(), "--cache", tmp_path, code=2)


def test__prune__one_layer(filled):
    other = Spec(SPEC.checkpoint, 5, "mean", "float32", model=NAME)
    filled._put_many([KeyedVectors(other, other.keys(SEQUENCES), ROWS)])
    run("prune", "--cache", filled.path, "--model", NAME, "--layer", 5)
    assert [space.spec.layer for space in filled.info().spaces] == [6]
    run("prune", "--cache", filled.path, "--max-bytes", "20", code=2)
    np.testing.assert_array_equal(read(filled), ROWS)


def test__import__the_file_of_a_cache_is_that_cache(filled, tmp_path):
    other = Cache(tmp_path / "other")
    assert "3 vectors new" in run("import", filled.file, "--cache", other.path)
    np.testing.assert_array_equal(read(other), ROWS)


def test__import__what_another_cache_says_itself_need_not_be_said(filled, tmp_path):
    shown = run("import", filled.path, "--layer", 3, "--cache", tmp_path / "other", code=2)
    assert "Got --layer 3" in shown
    assert "says that of each of its vectors" in shown
