"""Addresses below a proxy's path, and requests from pages of other sites."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from esm2_features.cli import main
from esm2_features.cli.serve import parse_models
from esm2_features.exceptions import InputError
from esm2_features.server.app import create_app
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import new_token

BODY = {"items": [{"sequence": "MKTAYI"}]}
SITE = "https://notebooks.example.org"
PREFLIGHT = {
    "Origin": SITE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


@pytest.fixture
def serve(tiny_checkpoint: Path) -> Iterator[Callable[..., TestClient]]:
    with ExitStack() as stack:

        def start(**options: Any) -> TestClient:
            models = {"tiny": str(tiny_checkpoint)}
            app = create_app(Settings(models=models, devices=("cpu",), cache=None, **options))
            return stack.enter_context(TestClient(app, base_url="http://127.0.0.1"))

        yield start


# ------------------------------------------------------------------ a proxy's path


@pytest.mark.parametrize("root_path", ["/esm2", "/tools/esm2/"])
def test_all_addresses_are_also_below_the_proxys_path(serve, root_path):
    client, prefix = serve(root_path=root_path), root_path.rstrip("/")
    expected = client.post("/api/v3/tiny/encode/", json=BODY).content
    for path in ("/api/v3/tiny/encode/", "/api/v3/tiny/encode", "/api/v1/tiny/encode"):
        assert client.post(prefix + path, json=BODY).content == expected
    for path in ("/", "/docs", "/status", "/healthz", "/app.js", "/openapi.json"):
        assert client.get(prefix + path).status_code == client.get(path).status_code == 200
    assert client.get("/openapi.json").json()["servers"] == [{"url": prefix}]


def test_the_page_is_below_the_path_with_a_slash_so_that_its_links_work(serve):
    client = serve(root_path="/esm2")
    found = client.get("/esm2", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (307, "/esm2/")
    for path in ("/esm2/", "/esm2/docs", "/esm2/status"):
        text = client.get(path).text
        assert 'href="/' not in text
        assert 'src="/' not in text


def test_similar_paths_are_not_those_of_the_proxy(serve):
    client = serve(root_path="/esm2")
    for path in ("/esm22/healthz", "/esm2healthz", "/esm2/esm2/healthz"):
        assert client.get(path).status_code == 404
    assert "servers" not in serve().get("/openapi.json").json()


def test_tokens_are_asked_for_below_the_path(serve, tmp_path):
    new_token(tmp_path / "tokens", "alice")
    client = serve(root_path="/esm2", tokens=tmp_path / "tokens")
    for path in ("/api/v3/models/", "/esm2/api/v3/models", "/esm2/openapi.json", "/esm2/status"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize("text", ["esm2", "http://host/esm2", "/a b", "/a//b", "/../b?c", "/é"])
def test_what_is_no_path_is_an_error(text):
    with pytest.raises(InputError, match=r"expected a path, such as /esm2\."):
        Settings(root_path=text)


# ------------------------------------------------------------------ other sites


def test_pages_of_named_sites_may_send_requests(serve, tmp_path):
    token = new_token(tmp_path / "tokens", "alice")
    client = serve(tokens=tmp_path / "tokens", allow_origins=(SITE, "http://localhost:8888"))
    asked = client.options("/api/v3/tiny/encode/", headers=PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == SITE
    assert "access-control-allow-credentials" not in asked.headers
    assert {"authorization", "content-type", "content-encoding"} <= {
        word.strip().lower() for word in asked.headers["access-control-allow-headers"].split(",")
    }
    headers = {"Origin": SITE, "Authorization": f"Token {token}"}
    found = client.post("/api/v3/tiny/encode/", json=BODY, headers=headers)
    assert found.status_code == 200
    assert found.headers["access-control-allow-origin"] == SITE
    assert found.headers["vary"] == "Origin"
    assert "Retry-After" in found.headers["access-control-expose-headers"]
    # A page can only read an error that is for it.
    refused = client.post("/api/v3/tiny/encode/", json=BODY, headers={"Origin": SITE})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == SITE


@pytest.mark.parametrize(
    "origin", ["https://example.org", "https://notebooks.example.org:1", "null"]
)
def test_other_sites_may_not(serve, origin):
    client = serve(allow_origins=(SITE,))
    asked = client.options("/api/v3/tiny/encode/", headers={**PREFLIGHT, "Origin": origin})
    assert asked.status_code == 400
    found = client.post("/api/v3/tiny/encode/", json=BODY, headers={"Origin": origin})
    for answer in (asked, found):
        assert "access-control-allow-origin" not in answer.headers


def test_no_site_may_by_default(serve):
    asked = serve().options("/api/v3/tiny/encode/", headers=PREFLIGHT)
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Notebooks.Example.org/", "https://notebooks.example.org"),
        ("http://localhost:8888", "http://localhost:8888"),
        ("https://host:443", "https://host"),
        ("http://host:80/", "http://host"),
        ("http://[::1]:8888", "http://[::1]:8888"),
    ],
)
def test_origins_are_written_as_browsers_do(text, origin):
    assert Settings(allow_origins=(text,)).allow_origins == (origin,)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "https://*.example.org",
        "null",
        "",
        "example.org",
        "https://host/page",
        "ftp://host",
        "https://alice@host",
        "https://host?x",
        "http://host:0",
        "https://münchen.de",
    ],
)
def test_what_is_no_origin_is_an_error(text):
    with pytest.raises(InputError, match="name each site"):
        Settings(allow_origins=(text,))


# ------------------------------------------------------------------ bodies


@pytest.mark.parametrize("path", ["/api/v3/tiny/encode/", "/api/v1/tiny/encode"])
def test_a_byte_order_mark_is_accepted(serve, path):
    client, headers = serve(), {"Content-Type": "application/json; charset=utf-8"}
    content = codecs.BOM_UTF8 + json.dumps(BODY).encode()
    assert client.post(path, content=content, headers=headers).status_code == 200


# ------------------------------------------------------------------ names of models


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "..", ".hidden", "-x", "a?b", "é", "a" * 65, "a\n", "a%2fb"]
)
def test_names_that_no_address_can_have_are_errors(name):
    with pytest.raises(InputError, match="for a model; expected"):
        Settings(models={name: "mini"})


def test_names_that_are_too_alike_are_errors():
    for models in (
        {"Mine": "a.pt", "mine": "b.pt"},
        {"esm2-8m": "a.pt", "esm2_t6_8M_UR50D": "esm2_t6_8M_UR50D"},
    ):
        with pytest.raises(InputError, match="too alike"):
            Settings(models=models)


def test_a_checkpoint_is_served_under_a_name_of_its_own(tiny_checkpoint):
    models = parse_models((f"mine-v1.2={tiny_checkpoint}", "mini", "mini", "650M"))
    assert list(models) == ["mine-v1.2", "mini", "esm2_t33_650M_UR50D"]
    app = create_app(Settings(models=models, devices=("cpu",), cache=None))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for path in ("/api/v3/mine-v1.2/encode/", "/api/v1/mine-v1.2/encode"):
            assert client.post(path, json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mine=a.pt", "mine=b.pt"], "Choose another name for b.pt"),
        (["esm2-650m=a.pt"], "the name is that of esm2_t33_650M_UR50D"),
        (["mini=a.pt"], "the name is that of mini"),
        (["mine="], "the path of the checkpoint is missing"),
        (["=a.pt"], "for a model; expected"),
        (["my model=a.pt"], "for a model; expected"),
        (["mine=a.pt", "MINE=b.pt"], "too alike"),
    ],
)
def test_names_that_clash_on_the_command_line(capsys, words, message):
    options = [part for word in words for part in ("--model", word)]
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *options])
    assert message in " ".join(capsys.readouterr().err.split())
