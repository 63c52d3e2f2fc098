"""Names under which models are served."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from esm2_features.cli import main
from esm2_features.cli.serve import parse_models
from esm2_features.exceptions import InputError
from esm2_features.server.app import create_app
from esm2_features.server.settings import Settings

BODY = {"items": [{"sequence": "MKTAYI"}]}


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
