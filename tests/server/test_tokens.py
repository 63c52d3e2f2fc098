"""Tokens, rates, settings, and the commands."""

from __future__ import annotations

import os
import stat
from codecs import BOM_UTF8
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from esm2_features.cli import main
from esm2_features.exceptions import InputError
from esm2_features.server.errors import ApiError
from esm2_features.server.limits import RateLimiter
from esm2_features.server.settings import Settings, read_rate
from esm2_features.server.tokens import Tokens, new_token


def test_a_token_is_kept_as_its_hash_only(tmp_path):
    path = tmp_path / "tokens"
    token = new_token(path, "alice")
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = Tokens(path)
    assert known.owner(token) == "alice"
    assert known.owner(token[:-1]) is None
    assert known.owner("") is None


def test_token_names_are_unique(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# of the lab")  # without an end of line
    new_token(path, "alice")
    new_token(path, "bob")
    with pytest.raises(InputError, match="has a token called 'bob'"):
        new_token(path, "bob")
    with pytest.raises(InputError, match="letters"):
        new_token(path, "two words")
    assert [line.split()[0] for line in path.read_text().splitlines()[1:]] == ["alice", "bob"]


def test_tokens_that_are_made_at_once_are_all_kept(tmp_path):
    path = tmp_path / "tokens"
    names = [f"n{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(lambda name: new_token(path, name), names))
    assert [Tokens(path).owner(token) for token in tokens] == names
    with ThreadPoolExecutor(8) as pool:
        errors = [pool.submit(new_token, path, "same").exception() for _ in range(8)]
    assert sum(error is None for error in errors) == 1


def test_an_invalid_line_is_reported_by_its_number(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("\nalice sha256:abc\n")
    with pytest.raises(InputError, match="line 2"):
        new_token(path, "bob")
    path.write_text("# nobody\n")
    with pytest.raises(InputError, match="holds no token"):
        Tokens(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"a note of mine\n", "line 2: expected a name"),
        (b"\xff\xfe\n", "line 2: expected a name"),
        (b"alice sha256:" + b"0" * 64 + b"\n", "line 2: the name 'alice' is there twice"),
        (b"x" * 100_000 + b"\n", "line 2: expected a name"),
    ],
)
def test_a_wrong_line_locks_nobody_out_and_is_logged(tmp_path, caplog, wrong, said):
    path = tmp_path / "tokens"
    token = new_token(path, "alice")
    known = Tokens(path)
    path.write_bytes(path.read_bytes() + wrong)
    assert known.owner(token) == "alice"
    assert known.owner("other") is None
    assert len(caplog.records) == 1
    assert said in caplog.text


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "tokens"
    token = new_token(path, "alice")
    path.write_bytes(BOM_UTF8 + path.read_bytes())
    assert Tokens(path).owner(token) == "alice"


def test_a_file_in_its_place_is_read_also_with_its_size_and_time(tmp_path):
    path, other = tmp_path / "tokens", tmp_path / "other"
    token, theirs = new_token(path, "alice"), new_token(other, "carol")
    known = Tokens(path)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert known.owner(theirs) == "carol"
    assert known.owner(token) is None


def test_a_file_that_others_may_write_is_refused(tmp_path, caplog):
    path = tmp_path / "tokens"
    token = new_token(path, "alice")
    known = Tokens(path)
    path.chmod(0o660)
    with pytest.raises(InputError, match="chmod 600"):
        Tokens(path)
    assert known.owner(token) is None
    assert known.owner(token) is None
    assert caplog.text.count("No token is valid") == 1
    path.chmod(0o640)
    assert known.owner(token) == "alice"


def test_an_endless_file_is_refused():
    with pytest.raises(InputError, match="no regular file"):
        Tokens(Path("/dev/zero"))


def test_no_token_is_valid_while_the_file_is_damaged(tmp_path):
    path = tmp_path / "tokens"
    token = new_token(path, "alice")
    known = Tokens(path)
    path.write_text("nonsense of another length")
    assert known.owner(token) is None
    path.unlink()
    assert known.owner(token) is None


def test_rates_recover_with_time():
    now = [0.0]
    rates = RateLimiter((2, 10.0), clock=lambda: now[0])
    rates.take("a")
    rates.take("a")
    with pytest.raises(ApiError) as refusal:
        rates.take("a")
    assert refusal.value.retry_after == 5
    rates.take("b")
    now[0] = 5.0
    rates.take("a")
    with pytest.raises(ApiError):
        rates.take("a")


def test_command_token_prints_the_token_alone(tmp_path):
    path = tmp_path / "tokens"
    done = CliRunner().invoke(main, ["token", "new", "--tokens", str(path), "--name", "me"])
    assert done.exit_code == 0
    assert Tokens(path).owner(done.stdout.strip()) == "me"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "without tokens"),
        (["--model", "esm3"], "--model mine=esm3"),
        (["--model", "mini=x.pt"], "another name"),
        (["--model", "mine=/no/such/file.pt"], "/no/such/file.pt"),
        (["--rate", "often"], "10/second"),
        (["--device", "tpu"], "--device"),
        (["--tokens", "/no/such/file"], "/no/such/file"),
    ],
)
def test_command_serve_reports_invalid_options_before_it_starts(words, said):
    done = CliRunner().invoke(main, ["serve", *words])
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": {}},
        {"devices": ()},
        {"precision": "int8"},
        {"max_items": 0},
        {"timeout": 0.0},
        {"wait": -1.0},
    ],
)
def test_invalid_settings_are_errors(wrong):
    with pytest.raises(InputError):
        Settings(**wrong)


@pytest.mark.parametrize("text", ["", "5", "0/second", "5/hour", "-1/second"])
def test_invalid_rates_are_errors(text):
    with pytest.raises(InputError, match="rate"):
        read_rate(text)
