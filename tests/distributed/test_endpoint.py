"""Shards whose vectors a server computes: as those computed here, and what it refuses set aside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from serving import Reply, faked, refusal, served, vector
from shard_helpers import check, fasta, peptides

from esm2_features import distributed, open_embeddings
from esm2_features._inference.remote.connection import ApiClient
from esm2_features.cli import main
from esm2_features.exceptions import EndpointError, InputError

SEQUENCES = peptides(20)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(ApiClient, "_pause", lambda self, seconds: self._stop.is_set())


@pytest.fixture
def fake():
    with faked() as server:
        yield server


@pytest.fixture
def embed(tmp_path, fake):
    source = fasta(tmp_path / "a.fasta", SEQUENCES)

    def run(**options):
        options = {"model": "mini", "shard_size": 8, "endpoint": fake.url, **options}
        return distributed.embed_shards(source, tmp_path / "out", **options)

    return run


def test__server__computes_shards_which_are_continued_here(tmp_path):
    source = fasta(tmp_path / "a.fasta", SEQUENCES)
    options = {"model": "mini", "shard_size": 8}
    with served() as url:
        report = distributed.embed_shards(
            source, tmp_path / "out", endpoint=url, shard=(0, 2), **options
        )
    assert report.computed == 2
    report = distributed.embed_shards(source, tmp_path / "out", **options)
    assert (report.computed, report.present, report.complete) == (1, 2, True)
    check(tmp_path / "out", SEQUENCES, "mini")


def test__command__takes_an_endpoint(tmp_path, fake):
    source = fasta(tmp_path / "a.fasta", SEQUENCES)
    words = ["embed", source, tmp_path / "out", "--model", "mini", "--endpoint", fake.url]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    x = open_embeddings(tmp_path / "out")
    expected = [vector({"sequence": text}, 6, "mean") for text in SEQUENCES.values()]
    np.testing.assert_array_equal(x[:], expected)


def test__token__is_sent_and_kept_nowhere(embed, fake, tmp_path):
    embed(token="secret-token")
    assert {headers.get("Authorization") for headers in fake.headers} == {"Token secret-token"}
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"secret-token" not in path.read_bytes()


REFUSED = ["p3", "p9", "p10"]


def refusing(fake):
    """Let the server refuse some sequences, one at a time."""
    answer, texts = fake.answer, [SEQUENCES[name] for name in REFUSED]

    def answered(body):
        for row, item in enumerate(body["items"]):
            if item["sequence"] in texts:
                return refusal(422, "too_long", "Too long.", row=row, limit=7)
        return answer(body)

    fake.answer = answered


def test__records_that_a_server_refuses__are_set_aside(embed, fake, tmp_path):
    refusing(fake)
    report = embed()
    assert report.complete
    assert [(one.id, one.row) for one in report.invalid] == [("p3", 3), ("p9", 9), ("p10", 10)]
    assert {one.error for one in report.invalid} == {"SequenceTooLongError"}
    x = open_embeddings(tmp_path / "out")
    others = {name: text for name, text in SEQUENCES.items() if name not in REFUSED}
    assert x.ids.tolist() == list(others)
    expected = [vector({"sequence": text}, 6, "mean") for text in others.values()]
    np.testing.assert_array_equal(x[:], expected)
    assert embed().invalid == report.invalid, "said again, not asked again"


def test__records_that_a_server_refuses__set_their_shards_aside_on_request(embed, fake):
    refusing(fake)
    report = embed(set_aside="shard")
    assert [one.name for one in report.failed] == ["a-00000", "a-00001"]
    for one in report.failed:
        assert one.id in REFUSED
        assert list(SEQUENCES)[one.row] == one.id


def test__shard_of_which_a_server_refuses_all__is_set_aside(embed, fake):
    fake.answer = lambda body: refusal(422, "too_long", "Too long.", row=0, limit=1)
    report = embed()
    assert (report.computed, len(report.failed)) == (0, 3)


def test__server_that_goes__ends_the_job_which_is_continued(embed, fake, tmp_path):
    answer, calls = fake.answer, []

    def leaving(body):
        calls.append(1)
        return answer(body) if len(calls) <= 4 else refusal(503)

    fake.answer = leaving
    with pytest.raises(EndpointError, match="was asked"):
        embed()
    fake.answer = answer
    report = embed()
    assert (report.computed, report.present, report.complete) == (2, 1, True)


def test__server_that_states_no_weights__has_an_identity_of_its_own(embed, fake, tmp_path):
    fake.state(server="another")
    schema = {"properties": {"items": {"maxItems": 5}}}
    fake.looks["/api/v3/schema/mini/encode/"] = Reply(200, json.dumps(schema).encode())

    def answered(body):
        results = [{"embeddings": [{"layer": 6, "embedding": [0.5] * 192}]} for _ in body["items"]]
        return Reply(200, json.dumps({"results": results}).encode())

    fake.answer = answered
    embed()
    identity = open_embeddings(tmp_path / "out").job["model"]["identity"]
    assert identity == f"endpoint:{fake.url}/mini"
    with pytest.raises(InputError, match=r"digest of the model was 'endpoint:.* and is 'sha256:"):
        embed(endpoint=None)


def test__other_weights_of_a_server__are_an_error(embed, fake):
    fake.state(models=[{"model": "mini", "name": "mini", "checkpoint": "sha256:other"}])
    with pytest.raises(EndpointError, match="other weights under the name mini"):
        embed()
