"""Vectors that come back out of files that were set aside as damaged."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import (
    CLS,
    DIM,
    HALF,
    OTHER,
    POSIX,
    SPEC,
    as_another_user,
    caches_warn,
    filled,
    flip,
    fork,
    found,
    part_of,
    raw,
    stored_keys,
    succeeded,
)
from click.testing import CliRunner

from esm2_features._cache import Cache
from esm2_features.cli import main
from esm2_features.exceptions import CacheVersionError, CacheWarning

PAGE = 65536


def write(cache):
    """Write 4,320 vectors of four kinds in blocks large and small."""
    for start in range(0, 4000, 500):
        cache._put_many([part_of(range(start, start + 500))])
    for number in range(20):
        cache._put_many([part_of(range(10 * number, 10 * number + 10), HALF)])
    cache._put_many([part_of(range(100), CLS), part_of(range(20), OTHER, 8)])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The bytes of a file of 4,320 vectors."""
    cache = Cache(tmp_path_factory.mktemp("pristine"))
    write(cache)
    return cache.file.read_bytes()


def aside(folder, content, name="corrupt-20260101T000000000000-1"):
    """Put a file where damaged ones are set aside."""
    path = Path(f"{Cache(folder).file}.{name}")
    path.write_bytes(content)
    return path


def n_found(cache):
    """Count what is found; `found` compares it bit for bit."""
    return (
        found(cache, range(4000))
        + found(cache, range(200), HALF)
        + found(cache, range(100), CLS)
        + found(cache, range(20), OTHER, 8)
    )


def test_a_sound_file_comes_back_whole(tmp_path, pristine):
    path = aside(tmp_path, pristine)
    cache = Cache(tmp_path)
    assert cache.recover() == (4320, ((path, 4320, 0, 0, None),))
    assert n_found(cache) == 4320
    assert cache.verify() == (4320, ())
    assert path.read_bytes() == pristine
    assert cache.recover() == (0, ((path, 0, 4320, 0, None),))


def test_what_is_damaged_in_use_is_set_aside_and_comes_back(tmp_path, pristine):
    cache = Cache(tmp_path)
    content = bytearray(pristine)
    content[4 * PAGE : 5 * PAGE] = bytes(PAGE)
    content[-PAGE:] = b"\xff" * PAGE
    cache.file.write_bytes(content)
    with caches_warn() as messages:
        n_found(cache)
        cache._put_many([part_of(range(2))])
    assert any("`esm2-features cache recover`" in message for message in messages)
    (there,) = cache.info().set_aside
    assert there.bytes == len(content)
    report = cache.recover(remove=True)
    assert report.added > 2000
    assert n_found(cache) == report.added + 2
    assert cache.info().set_aside == ()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".sqlite3"]


@pytest.mark.parametrize("kind", ["zeros", "garbage", "a byte"])
def test_a_damaged_page_costs_what_is_reached_through_it(tmp_path, pristine, kind):
    rng = np.random.default_rng(0)
    brought_back = []
    for page in (2, 4, 7, 8, 9, 30, len(pristine) // PAGE - 1):
        folder = tmp_path / str(page)
        folder.mkdir()
        content = bytearray(pristine)
        new = {"zeros": bytes(PAGE), "garbage": rng.bytes(PAGE)}.get(kind)
        if new is None:
            content[page * PAGE + int(rng.integers(PAGE))] ^= 0x10
        else:
            content[page * PAGE : (page + 1) * PAGE] = new
        aside(folder, content)
        cache = Cache(folder)
        some = [part_of(range(1), spec) for spec in (SPEC, HALF, CLS)]
        cache._put_many([*some, part_of(range(1), OTHER, 8)])  # so that the specs are known
        (file,) = cache.recover().files
        assert n_found(cache) == cache.info().rows == file.added + 4
        assert file.lost or file.added + file.present == 4320
        brought_back.append(file.added + file.present)
    # All but the roots of the two large tables, through which all is reached.
    assert sorted(brought_back)[2] >= 2000 if kind != "a byte" else min(brought_back) > 4000


@pytest.mark.parametrize(
    "harm",
    [
        lambda content: bytes(100) + content[100:],
        lambda content: bytes(PAGE) + content[PAGE:],
        lambda content: b"\x07" * PAGE + content[PAGE:],
        lambda content: content.replace(b"CREATE TABLE space", b"CREATE TABL\xe5 space"),
        lambda content: content[:60] + b"\0\0\0\7" + content[64:],
        lambda content: content + b"x" * 1000,
        lambda content: content[:24] + b"\xff" * 16 + content[40:],
    ],
    ids=["header", "zeros", "garbage", "schema", "version", "longer", "counts"],
)
def test_a_damaged_first_page_costs_nothing(tmp_path, pristine, harm):
    path = aside(tmp_path, harm(pristine))
    cache = Cache(tmp_path)
    assert cache.recover() == (4320, ((path, 4320, 0, 0, None),))
    assert n_found(cache) == 4320
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("part", [0.9, 0.5])
def test_what_is_left_of_a_file_that_was_cut_off_comes_back(tmp_path, pristine, part):
    aside(tmp_path, pristine[: int(part * len(pristine))])
    cache = Cache(tmp_path)
    (file,) = cache.recover().files
    assert n_found(cache) == file.added >= (part - 0.15) * 4320
    assert file.lost


@pytest.mark.parametrize("content", [b"", b"xy", b"\0" * 3 * PAGE, bytes(range(256)) * 2048])
def test_a_file_in_which_nothing_is_left(tmp_path, content):
    path = aside(tmp_path, content)
    assert Cache(tmp_path).recover() == (0, ((path, 0, 0, 0, None),))


def test_specs_that_are_damaged_are_known_from_the_cache_and_other_files(tmp_path):
    for folder, spec, dim in (("half", HALF, DIM), ("other", OTHER, 8)):
        cache = filled(tmp_path / folder, range(300), spec, dim)
        with raw(cache) as file:
            file.execute("update space set digest = x'00'")
        aside(tmp_path, cache.file.read_bytes(), f"corrupt-2026-{folder}")
    cache = filled(tmp_path, range(5), HALF)
    aside(tmp_path, filled(tmp_path / "b", range(3), OTHER, 8).file.read_bytes(), "corrupt-2027")
    assert [(it.added, it.present, it.lost) for it in cache.recover().files] == [
        (3, 0, 0), (297, 3, 0), (295, 5, 0),
    ]  # fmt: skip
    assert found(cache, range(300), HALF) == 300
    assert found(cache, range(300), OTHER, 8) == 300


def test_vectors_without_a_known_spec_are_lost_and_counted(tmp_path):
    cache = filled(tmp_path / "a", range(300))
    with raw(cache) as file:
        file.execute("update space set digest = x'00'")
    path = aside(tmp_path, cache.file.read_bytes())
    assert Cache(tmp_path).recover() == (0, ((path, 0, 0, 300, None),))


def test_what_is_there_stays_and_newer_files_come_first(tmp_path):
    old, new = filled(tmp_path / "old", range(10)), filled(tmp_path / "new", range(5, 20))
    with raw(old) as file:  # what another run has computed for the same keys
        file.execute("update space set model = 'an old name'")
    aside(tmp_path, old.file.read_bytes(), "corrupt-20250101T000000000000-9")
    aside(tmp_path, new.file.read_bytes(), "corrupt-20260101T000000000000-1")
    cache = filled(tmp_path, range(7))
    before = stored_keys(cache)
    assert [(it.added, it.present) for it in cache.recover().files] == [(13, 2), (0, 10)]
    assert stored_keys(cache)[:7] == before
    assert found(cache, range(20)) == 20


def test_a_vector_whose_checksum_fails_stays_lost(tmp_path):
    cache = filled(tmp_path / "a", range(300))
    flip(cache, "value", "vectors", 100_000)
    path = aside(tmp_path, cache.file.read_bytes())
    cache = Cache(tmp_path)
    assert cache.recover() == (299, ((path, 299, 0, 1, None),))
    assert found(cache, range(300)) == 299


def test_no_damage_gives_a_wrong_vector(tmp_path, pristine):
    rng = np.random.default_rng(1)
    for trial in range(6):
        folder = tmp_path / str(trial)
        folder.mkdir()
        content = bytearray(pristine)
        for _ in range(30):
            at = int(rng.integers(len(content)))
            if trial % 2:
                at -= at % PAGE - int(rng.integers(200))
            content[at] ^= 1 << int(rng.integers(8))
        aside(folder, content)
        cache = Cache(folder)
        (file,) = cache.recover().files
        assert n_found(cache) == file.added == cache.verify().rows


def test_recover__of_a_cache_that_is_found_damaged_now(tmp_path, pristine):
    cache = Cache(tmp_path)
    cache.file.write_bytes(bytes(PAGE) + pristine[PAGE:])
    with pytest.warns(CacheWarning, match="is damaged"):
        report = cache.recover(remove=True)
    assert report.added == n_found(cache) == 4320
    assert cache.info().set_aside == ()


def test_recover__in_a_folder_without_files(tmp_path):
    assert Cache(tmp_path / "new").recover() == (0, ())
    assert not (tmp_path / "new").exists()


def test_recover__within_the_limit(tmp_path, pristine):
    aside(tmp_path, pristine)
    cache = Cache(tmp_path, max_bytes=4 << 20)
    with pytest.warns(CacheWarning, match="had to make room"):
        cache.recover()
    assert cache.file.stat().st_size <= 4 << 20


def test_recover__a_cache_that_cannot_be_written_is_an_error(tmp_path, pristine):
    path = aside(tmp_path, pristine)
    cache = filled(tmp_path, range(3))
    with raw(cache) as file:
        file.execute("pragma user_version = 7")
    with pytest.raises(CacheVersionError):
        Cache(tmp_path).recover(remove=True)
    assert path.read_bytes() == pristine


@POSIX
def test_recover__a_file_that_may_not_be_read(shared_folder, pristine):
    shared_folder.mkdir()
    shared_folder.chmod(0o777)
    path = aside(shared_folder, pristine)
    path.chmod(0o600)

    def work():
        as_another_user()
        report = Cache(shared_folder).recover(remove=True)
        assert report.added == 0
        assert "Permission denied" in report.files[0].error

    assert succeeded(fork(work))
    assert path.exists()


# Listed, and removed --------------------------------------------------------------------------


def test_info_and_clear__what_was_set_aside(tmp_path, pristine):
    paths = [aside(tmp_path, pristine[:n], f"corrupt-{n}") for n in (5000, 7000)]
    aside(tmp_path, b"journal", "corrupt-5000-journal")
    cache = filled(tmp_path, range(3))
    assert cache.info().set_aside == ((paths[1], 7000), (paths[0], 5000))
    assert "Set aside as damaged: embeddings.sqlite3.corrupt-7000, 7.0 kB" in str(cache.info())
    assert cache.clear() == 3
    assert [path.name for path in tmp_path.iterdir()] == [cache.file.name]
    assert "aside" not in str(cache.info())


def run(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        return CliRunner().invoke(main, ["cache", *map(str, args)])


def test_the_command_line(tmp_path, pristine):
    folder = tmp_path / "a [b]"
    folder.mkdir()
    aside(folder, pristine)
    shown = run("info", "--cache", folder)
    assert "`esm2-features cache recover` brings back what is intact in them." in shown.output
    done = run("recover", "--cache", folder, "--remove")
    assert done.exit_code == 0, done.output
    assert "4320 vectors brought back, 0 there already, none lost." in done.output
    assert f"4320 vectors brought back -> {folder}" in done.output
    assert [path.name for path in folder.iterdir()] == ["embeddings.sqlite3"]
    aside(folder, pristine)
    assert run("clear", "--cache", folder, "--yes").exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["embeddings.sqlite3"]
    (folder / "embeddings.sqlite3").unlink()
    refused = run("recover", "--cache", folder)
    assert refused.exit_code == 2
    assert "There is no cache in" in refused.output
