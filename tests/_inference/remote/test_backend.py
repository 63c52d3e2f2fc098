"""Vectors that a server computes: the same numbers and keys as here, and never a wrong one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
from serving import DIM, Reply, faked, refusal, served, vector, vectors_of

from esm2_features import (
    Cache,
    Engine,
    ESM2LikelihoodTransformer,
    ESM2Transformer,
    scan_variants,
    score_variants,
)
from esm2_features._inference.remote.connection import ApiClient
from esm2_features._inference.remote.endpoint import TOKEN_VARIABLE
from esm2_features.cli import main
from esm2_features.exceptions import (
    EndpointError,
    InputError,
    InvalidSequenceError,
    NumericalError,
    OutOfMemoryError,
    SequenceTooLongError,
)
from esm2_features.server.tokens import new_token

SEQUENCES = ["MKTAYIAKQR", "GSHM", "CYIQNCPLG", "GSHM", "MK<mask>AYI", "GIGAVLKVLTTGLPALISWIKRKRQQ"]
PLAIN = ["MKTAYIAKQR", "GSHM", "CYIQNCPLG", "DRVYIHPF", "RPKPQQFFGLM"]


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    waited = []
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)

    def pause(self, seconds):
        waited.append(seconds)
        return self._stop.is_set()

    monkeypatch.setattr(ApiClient, "_pause", pause)
    return waited


@pytest.fixture(scope="module")
def url():
    with served(max_items=3, max_residues=60) as found:
        yield found


@pytest.fixture
def fake():
    with faked() as server:
        yield server


@pytest.fixture
def engine(fake, tmp_path):
    return lambda **options: Engine(
        "mini", **{"endpoint": fake.url, "cache": tmp_path / "cache", **options}
    )


def right(sequences, layer=6, word="mean"):
    """What the fake server says of sequences."""
    return np.stack([vector({"sequence": sequence}, layer, word) for sequence in sequences])


def local(**options):
    return Engine("mini", device="cpu", **options)


# ------------------------------------------------------------------ the real server


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [3, 0, -1], "pooling": ["std", "cls"]},
        {"layers": "all", "pooling": "all"},
        {"pooling": ["parti", "mean"]},
        {"region": (1, 4), "pooling": "all"},
        {"max_residues": 8, "too_long": "window", "pooling": "all"},
        {"max_residues": 8, "too_long": "window", "region": (1, 4)},
        {"max_residues": 8, "too_long": "truncate"},
        {"store": "all"},
        {"cache_dtype": "float16"},
        {"batch_tokens": 1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::esm2_features.exceptions.TruncationWarning")
def test_rows_are_those_of_a_run_in_this_process_under_the_same_keys(url, tmp_path, ran, options):
    asking = Engine("mini", endpoint=url, cache=tmp_path / "asked", **options)
    found = asking.embed(SEQUENCES)
    options.pop("batch_tokens", None)
    expected = local(cache=tmp_path / "local", **options).embed(SEQUENCES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert asking.n_computed == len(set(SEQUENCES))
    ran.clear()
    # What came from the server is what the cache has for a run here, and the other way around.
    warm = local(cache=tmp_path / "asked", **options)
    np.testing.assert_array_equal(warm.embed(SEQUENCES), found)
    assert (warm.n_computed, ran) == (0, [])
    again = Engine("mini", endpoint="http://nobody.invalid", cache=tmp_path / "local", **options)
    np.testing.assert_array_equal(again.embed(SEQUENCES), expected)
    assert (again.n_computed, ran) == (0, [])


def test_regions_by_row_and_chains_in_a_frame(url):
    X = pd.DataFrame({"seq": ["MKTAYIAKQR", "MKTAYIGKQR"], "site": ["4:9,1", None]})
    options = {"cache": None, "region": "site", "on_missing": "nan", "pooling": ["max", "mean"]}
    found = ESM2Transformer("mini", endpoint=url, **options).fit_transform(X)
    expected = ESM2Transformer("mini", device="cpu", **options).fit_transform(X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    pair = pd.DataFrame({"heavy": ["MKTAYIAKQR", "GSHM"], "light": ["GSHM", "CYIQ"]})
    for join in ("concatenate", "linker", "linker-per-chain"):
        asking = ESM2Transformer("mini", endpoint=url, cache=None, join=join)
        expected = ESM2Transformer("mini", device="cpu", cache=None, join=join).fit_transform(pair)
        np.testing.assert_allclose(asking.fit_transform(pair), expected, rtol=1e-5, atol=1e-6)


def test_rows_stream_in_order(url):
    engine = Engine("mini", endpoint=url, cache=None)
    found = list(engine.stream(iter(SEQUENCES)))
    np.testing.assert_allclose(found, local(cache=None).embed(SEQUENCES), rtol=1e-5, atol=1e-6)


def test_precompute_fills_the_cache_from_the_server(url, tmp_path, ran):
    esm = ESM2Transformer("mini", endpoint=url, cache=tmp_path)
    esm.precompute(PLAIN, layers=[3, 6], pooling=["mean", "max"])
    assert Cache(tmp_path).info().rows == 4 * len(PLAIN)
    esm.set_params(endpoint=None, layers=3, pooling="max").transform(PLAIN)
    assert len(set(ran)) <= len(PLAIN)


def test_a_sequence_that_is_too_long_for_the_server_is_named_by_our_row(url):
    X = pd.DataFrame({"heavy": [*PLAIN, "W" * 61, "GSHM"], "light": [*PLAIN, "GSHM", "GSHM"]})
    esm = ESM2Transformer("mini", endpoint=url, cache=None)
    with pytest.raises(SequenceTooLongError, match="row 5 has 61 residues") as caught:
        esm.fit_transform(X)
    assert (caught.value.index, caught.value.length, caught.value.limit) == (5, 61, 60)
    with pytest.raises(SequenceTooLongError) as caught:
        list(Engine("mini", endpoint=url, cache=None).stream(iter([*PLAIN, *PLAIN, "W" * 61])))
    assert caught.value.index == 10
    with pytest.raises(SequenceTooLongError) as caught:
        esm.set_params(cache="auto").precompute(X)
    assert caught.value.index == 5


def test_tokens_of_the_real_server(tmp_path, monkeypatch):
    token = new_token(tmp_path / "tokens", "tests")
    with served(tokens=tmp_path / "tokens") as address:
        engine = Engine("mini", endpoint=address, cache=None)
        with pytest.raises(EndpointError, match=TOKEN_VARIABLE) as caught:
            engine.embed(PLAIN)
        assert caught.value.status == 401
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        assert engine.embed(PLAIN).shape == (5, DIM)


def test_a_client_never_imports_torch(url, tmp_path):
    code = (
        "import sys\n"
        "from esm2_features import ESM2Transformer\n"
        f"esm = ESM2Transformer('mini', endpoint={url!r}, cache={str(tmp_path)!r},\n"
        "    pooling='all', cache_dtype='float16', verbose=True)\n"
        "assert esm.fit_transform(['MKTAYIAKQR', 'GSHM']).shape == (2, 960)\n"
        "esm._repr_html_()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_box_in_a_notebook_says_who_computes(url):
    html = ESM2Transformer("mini", endpoint=url)._repr_html_()
    assert f"computed by {url}" in html
    assert "weights not loaded" not in html


def test_the_command_line_has_an_endpoint(url, tmp_path, monkeypatch, capsys):
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{i}\n{s}\n" for i, s in enumerate(PLAIN)))
    out = tmp_path / "out.npz"
    common = ["--model", "mini", "--cache", str(tmp_path / "cache")]
    main(["embed", str(fasta), "-o", str(out), *common, "--endpoint", url], standalone_mode=False)
    assert "5 of them computed" in capsys.readouterr().err
    main(["embed", str(fasta), "-o", str(out), "--force", *common], standalone_mode=False)
    assert "0 of them computed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["embed", str(fasta), "-o", str(out), *common, "--force", "--endpoint", "nowhere"])
    assert caught.value.code == 2
    assert "--endpoint nowhere" in capsys.readouterr().err


# ------------------------------------------------------------------ what is not asked of a server


def test_what_is_no_vector_is_refused_and_not_computed_here(fake, ran, tmp_path):
    engine = Engine("mini", endpoint=fake.url, cache=tmp_path)
    for ask in (
        lambda: engine.residues(PLAIN),
        lambda: engine.logits(PLAIN),
        lambda: engine.log_probs(PLAIN),
        lambda: engine.predict_masked(["MK<mask>A"]),
        lambda: engine.contacts(PLAIN),
        lambda: engine.attentions(PLAIN),
        lambda: engine.stream(iter(PLAIN), "residues"),
        lambda: score_variants(engine, "MKTAYIAKQR", ["K2R"]),
        lambda: score_variants(engine, "MKTAYIAKQR", ["K2R"], method="wildtype-marginals"),
        lambda: scan_variants(engine, "MKTAY"),
    ):
        with pytest.raises(InputError, match="without endpoint="):
            ask()
    assert (ran, fake.headers) == ([], [])


def test_likelihood_transformers_know_no_endpoint():
    assert "endpoint" not in ESM2LikelihoodTransformer().get_params()


def test_options_that_would_be_ignored_are_refused(tiny_checkpoint):
    with pytest.raises(InputError, match="chooses its device itself"):
        Engine("mini", endpoint="http://host", device="cpu")
    for model in (tiny_checkpoint, "owner/name", "nowhere.pt"):
        with pytest.raises(InputError, match="takes models by name: mini, esm2_t6"):
            Engine(model, endpoint="http://host")


# ------------------------------------------------------------------ portions


def test_each_is_asked_for_once_in_portions_and_comes_in_order(engine, fake):
    given = [*PLAIN, *reversed(PLAIN)]
    np.testing.assert_array_equal(engine().embed(given), right(given))
    assert sorted(fake.sequences) == sorted(PLAIN)
    assert max(len(body["items"]) for body in fake.asked) == 2
    assert {headers.get("Accept") for headers in fake.headers if "path" in headers} == {
        "application/x-npz"
    }


def test_portions_are_of_so_many_tokens(engine, fake):
    fake.state(max_items=1000)
    engine(batch_tokens=20, cache=None).embed(PLAIN)
    sizes = [sum(len(i["sequence"]) + 2 for i in body["items"]) for body in fake.asked]
    assert max(sizes) <= 20
    fake.asked.clear()
    fake.state(max_items=1000, max_answer_bytes=4 * DIM * 3)
    engine(cache=None).embed(PLAIN)
    assert sorted(len(body["items"]) for body in fake.asked) == [2, 3]


def test_answers_may_come_in_any_order(engine, fake):
    gate = threading.Event()

    def late(body):
        gate.wait(30)
        return vectors_of(body)

    def last(body):
        gate.set()
        return vectors_of(body)

    fake.script = [late, vectors_of, last]
    np.testing.assert_array_equal(engine().embed(PLAIN), right(PLAIN))


@pytest.mark.parametrize("refused", [refusal(413, "answer_too_large"), refusal(504, "timeout")])
def test_what_is_too_much_is_asked_in_halves(engine, fake, refused, pauses):
    fake.state(max_items=100)
    fake.answer = lambda body: refused if len(body["items"]) > 2 else vectors_of(body)
    np.testing.assert_array_equal(engine().embed(PLAIN), right(PLAIN))
    assert len(fake.asked[0]["items"]) == 5
    assert pauses == []


def test_two_runs_that_share_a_cache_ask_for_each_once(engine, fake):
    gate = threading.Barrier(2, timeout=30)
    found = {}

    def run(name):
        one = engine()
        gate.wait()
        found[name] = one.embed(PLAIN)

    threads = [threading.Thread(target=run, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found["a"], right(PLAIN))
    np.testing.assert_array_equal(found["b"], right(PLAIN))
    assert sorted(fake.sequences) == sorted(PLAIN)


def test_a_run_that_is_cut_goes_on_where_it_was(engine, fake):
    fake.state(max_items=1)
    refused = [PLAIN[3]]

    def until(body):
        if body["items"][0]["sequence"] in refused:
            return refusal(401, "unauthorized")
        return vectors_of(body)

    fake.answer = until
    with pytest.raises(EndpointError):
        engine().embed(PLAIN)
    came = [sequence for sequence in fake.sequences if sequence not in refused]
    assert came
    fake.asked.clear()
    refused.clear()
    again = engine()
    np.testing.assert_array_equal(again.embed(PLAIN), right(PLAIN))
    assert sorted([*came, *fake.sequences]) == sorted(PLAIN)
    assert again.n_computed == len(PLAIN) - len(came)


# ------------------------------------------------------------------ refusals and nonsense


def at(sequence, **facts):
    """Refuse the request that holds a sequence, by its row in it."""

    def answer(body):
        texts = [item["sequence"] for item in body["items"]]
        if sequence not in texts:
            return vectors_of(body)
        return refusal(422, row=texts.index(sequence), **facts)

    return answer


def test_a_refused_sequence_has_the_number_of_our_row(engine, fake):
    fake.state(max_items=100)
    sequences = ["GSHM", "GSHM", *SEQUENCES]
    fake.answer = at("MK<mask>AYI", code="invalid_sequence", error="No masks.", position=3)
    with pytest.raises(InvalidSequenceError, match=r"row 6, for '<' at position 3.*No masks") as e:
        engine().embed(sequences)
    assert (e.value.index, e.value.position, e.value.residue) == (6, 3, "<")
    fake.answer = at("MKTAYIAKQR", code="odd", error="No.")
    with pytest.raises(InvalidSequenceError, match="row 2") as e:
        engine().embed(sequences)
    assert (e.value.index, e.value.position) == (2, None)


def test_a_request_that_is_refused_as_a_whole_names_its_rows(engine, fake):
    fake.answer = lambda _: refusal(422, error="What is repr_layers?")
    with pytest.raises(InputError, match=r"rows 0.*What is repr_layers\?"):
        engine().embed(PLAIN[:1])


def test_one_that_does_not_fit_into_the_servers_memory(engine, fake):
    fake.answer = lambda _: refusal(413, "out_of_memory")
    with pytest.raises(OutOfMemoryError, match="in row 0, of 4 residues") as caught:
        engine().embed(["GSHM"])
    assert (caught.value.length, caught.value.device) == (4, fake.url)


@pytest.mark.parametrize(
    "nonsense",
    [
        Reply(200, b"<html>Welcome</html>", "text/html"),
        Reply(200, b"{]"),
        Reply(200, b"[" * 100_000),
        Reply(200, b"PK\x03\x04" + bytes(200), "application/x-npz"),
        Reply(200, b"", "application/x-npz"),
        Reply(200, bytes(1 << 22), "application/x-npz"),
        lambda body: vectors_of({**body, "items": body["items"] * 2}),
        lambda body: vectors_of({**body, "params": {"include": ["max"], "repr_layers": [6]}}),
        refusal(404, "unknown_model"),
        refusal(500, "internal_error"),
        refusal(418),
    ],
)
def test_what_is_no_answer_is_an_error_and_kept_nowhere(engine, fake, nonsense, pauses, tmp_path):
    fake.answer = nonsense if callable(nonsense) else lambda _: nonsense
    with pytest.raises(EndpointError, match="Is endpoint= the address of a server") as caught:
        engine().embed(PLAIN)
    assert fake.url in str(caught.value)
    assert pauses == []
    assert Cache(tmp_path / "cache").info().rows == 0


def test_numbers_that_are_none_are_an_error_and_kept_nowhere(engine, fake, tmp_path):
    def spoilt(body):
        arrays = np.load(io.BytesIO(vectors_of(body).content))
        rows = arrays["mean_6"]
        rows[0, 5] = np.nan
        file = io.BytesIO()
        np.savez(file, **{**arrays, "mean_6": rows})
        return Reply(200, file.getvalue(), "application/x-npz")

    fake.answer = spoilt
    with pytest.raises(NumericalError, match="infinities or NaN"):
        engine().embed(PLAIN)
    assert Cache(tmp_path / "cache").info().rows == 0


# ------------------------------------------------------------------ whose numbers they are


@pytest.mark.parametrize(
    ("facts", "error", "words"),
    [
        ({"precision": "bfloat16"}, InputError, "computes in 'bfloat16'"),
        ({"schema": 2}, EndpointError, "same version"),
        ({"models": []}, EndpointError, "does not serve mini"),
        (
            {"models": [{"name": "mini", "checkpoint": "sha256:00"}]},
            EndpointError,
            "other weights under the name mini: sha256:00",
        ),
        ({"models": [{"name": "mini", "checkpoint": None}]}, EndpointError, "other weights"),
        ({"models": 7}, EndpointError, "does not say what it serves"),
        ({"max_items": "many"}, EndpointError, "does not say what it serves"),
    ],
)
def test_a_server_with_other_numbers_is_refused_before_anything_is_asked(
    engine, fake, facts, error, words
):
    fake.state(**facts)
    with pytest.raises(error, match=words):
        engine().embed(PLAIN)
    assert fake.asked == []


@pytest.mark.parametrize(
    ("about", "error"),
    [
        ({"checkpoint": "sha256:00"}, EndpointError),
        ({"precision": "float16"}, InputError),
        ({"schema": "2"}, EndpointError),
    ],
)
def test_an_answer_with_other_numbers_is_kept_nowhere(engine, fake, about, error, tmp_path):
    fake.answer = lambda body: vectors_of(body, **about)
    with pytest.raises(error):
        engine().embed(PLAIN)
    assert Cache(tmp_path / "cache").info().rows == 0


def test_the_real_server_says_whose_its_numbers_are(tiny_checkpoint, url):
    with (
        served(models={"mini": str(tiny_checkpoint)}) as other,
        pytest.raises(EndpointError, match="other weights"),
    ):
        Engine("mini", endpoint=other, cache=None).embed(PLAIN)
    with pytest.raises(InputError, match="computes in 'float32'"):
        Engine("mini", endpoint=url, precision="bfloat16", cache=None).embed(PLAIN)
    with pytest.raises(EndpointError, match="does not serve esm2_t33_650M_UR50D; it has mini"):
        Engine(endpoint=url, cache=None).embed(PLAIN)


# ------------------------------------------------------------------ the hosted service's API


def hosted(body):
    """An answer as the hosted service documents it."""
    names = {"mean": "embeddings", "bos": "bos_embeddings"}
    results = []
    for i, item in enumerate(body["items"]):
        result = {"sequence_index": i}
        for word in body["params"]["include"]:
            layers = body["params"]["repr_layers"]
            if word == "per_token":
                result["per_token_embeddings"] = [
                    {"layer": layer, "embeddings": per_token(item["sequence"], layer).tolist()}
                    for layer in layers
                ]
            else:
                result[names[word]] = [
                    {"layer": layer, "embedding": vector(item, layer, word).tolist()}
                    for layer in layers
                ]
        results.append(result)
    return Reply(200, json.dumps({"results": results}).encode())


def per_token(sequence, layer):
    seed = sum(map(ord, sequence)) + layer
    return np.random.default_rng(seed).random((len(sequence), DIM), np.float32)


@pytest.fixture
def foreign(fake):
    fake.looks = {
        "/api/v3/schema/mini/encode/": Reply(
            200, json.dumps({"properties": {"items": {"maxItems": 3}}}).encode()
        )
    }
    fake.answer = hosted
    return fake


def test_a_foreign_server_is_asked_in_its_own_shape(engine, foreign):
    found = engine(layers=[3, 6], pooling=["mean", "cls"]).embed(PLAIN)
    expected = [right(PLAIN, layer, word) for layer in (3, 6) for word in ("mean", "bos")]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))
    assert max(len(body["items"]) for body in foreign.asked) == 3
    assert {key for body in foreign.asked for item in body["items"] for key in item} == {"sequence"}
    assert {headers["path"] for headers in foreign.headers if "path" in headers} == {
        "/api/v3/mini/encode/"
    }


def test_official_models_have_the_services_names(foreign):
    foreign.looks = {
        "/api/v3/schema/esm2-650m/encode/": foreign.looks["/api/v3/schema/mini/encode/"]
    }
    with pytest.raises(EndpointError, match="something else than a vector"):  # of another width
        Engine(endpoint=foreign.url, cache=None).embed(PLAIN)
    assert {headers["path"] for headers in foreign.headers if "path" in headers} == {
        "/api/v3/esm2-650m/encode/"
    }


def test_what_a_foreign_server_says_is_kept_apart(engine, foreign, tmp_path, ran):
    found = engine().embed(PLAIN)
    asked = len(foreign.asked)
    np.testing.assert_array_equal(engine().embed(PLAIN), found)
    assert len(foreign.asked) == asked
    [space] = Cache(tmp_path / "cache").info().spaces
    assert space.spec.checkpoint == f"endpoint:{foreign.url}/mini"
    # Neither a run here nor a server of this library takes it for its own.
    expected = local(cache=None).embed(PLAIN)
    np.testing.assert_allclose(local(cache=tmp_path / "cache").embed(PLAIN), expected, atol=1e-6)
    assert not np.allclose(expected, found, atol=1e-2)


def test_other_poolings_and_regions_come_from_its_residues(engine, foreign):
    found = engine(pooling=["mean", "max", "std"], region=(1, 3)).embed(PLAIN)
    parts = [per_token(sequence, 6)[1:3] for sequence in PLAIN]
    expected = [np.concatenate([p.mean(0), p.max(0), p.std(0)]) for p in parts]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    whole = engine(pooling=["max", "cls"], cache=None).embed(PLAIN)
    expected = [
        np.concatenate([per_token(s, 6).max(0), vector({"sequence": s}, 6, "bos")]) for s in PLAIN
    ]
    np.testing.assert_array_equal(whole, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "eos"}, "pooling='eos'"),
        ({"pooling": "parti"}, "pooling='parti'"),
        ({"store": "all"}, "store="),
        ({"too_long": "window", "max_residues": 5}, "knows no windows"),
        ({"precision": "float16"}, "does not say what it computes in"),
    ],
)
def test_what_a_foreign_server_cannot_give_is_refused(engine, foreign, options, words):
    with pytest.raises(InputError, match=words):
        engine(**options).embed(PLAIN)
    assert foreign.asked == []


@pytest.mark.parametrize(
    "nonsense",
    [
        Reply(200, b"{}"),
        Reply(200, b'{"results": [1, 2, 3]}'),
        Reply(200, b'{"results": 3}'),
        Reply(200, b"not JSON"),
        lambda body: hosted({**body, "items": body["items"][1:]}),
        lambda body: hosted({**body, "params": {"include": ["mean"], "repr_layers": [1]}}),
    ],
)
def test_what_is_no_answer_of_a_foreign_server_is_an_error(engine, foreign, nonsense):
    foreign.answer = nonsense if callable(nonsense) else lambda _: nonsense
    with pytest.raises(EndpointError, match="something else than a vector"):
        engine().embed(PLAIN)


def test_a_server_that_speaks_nothing_of_the_kind_is_refused(engine, fake):
    fake.looks = {"/api/v3/models/": Reply(200, b"<html></html>", "text/html")}
    with pytest.raises(EndpointError, match=r"has no mini \(404\)"):
        engine().embed(PLAIN)
    fake.looks["/api/v3/schema/mini/encode/"] = Reply(200, b'{"properties": {}}')
    fake.answer = hosted
    engine().embed(PLAIN)
    assert {len(body["items"]) for body in fake.asked} == {1}  # for want of a number


def test_errors_of_the_service_have_our_rows(engine, foreign):
    foreign.answer = lambda _: Reply(400, b'{"error": "Residue O is not allowed."}')
    with pytest.raises(InputError, match=r"rows 0, 1.*Residue O is not allowed"):
        engine().embed(["MKTO", "GSHM"])


# ------------------------------------------------------------------ a hub


def document(*include):
    """The part of a hub's OpenAPI document that is about one model, as FastAPI writes it."""
    body = {"$ref": "#/components/schemas/Body"}
    schemas = {
        "Body": {
            "properties": {
                "items": {"type": "array", "maxItems": 2},
                "params": {"$ref": "#/components/schemas/Params"},
            }
        },
        "Params": {"properties": {"include": {"items": {"enum": list(include)}}}},
    }
    encode = {"post": {"requestBody": {"content": {"application/json": {"schema": body}}}}}
    return {"paths": {"/api/v1/mini/encode": encode}, "components": {"schemas": schemas}}


TWICE = {"Body": {"properties": {"items": [{"$ref": "#/components/schemas/B0"}] * 2}}} | {
    f"B{i}": [{"$ref": f"#/components/schemas/B{i + 1}"}] * 2 for i in range(40)
}
"""References that double with each step."""


def of_hub(body):
    """The answer of a hub that calls them residues."""
    include = ["per_token" if w == "per_residue" else w for w in body["params"]["include"]]
    reply = hosted({**body, "params": {**body["params"], "include": include}})
    reply.content = reply.content.replace(b"per_token_embeddings", b"residue_embeddings")
    return reply


@pytest.mark.parametrize("suffix", ["", "/api/v1", "/api/v1/"])
@pytest.mark.parametrize("words", [("mean", "per_residue"), ("mean", "per_token")])
def test_a_hub_is_asked_at_its_own_routes(fake, suffix, words):
    missing = Reply(404, b'{"detail": "Not Found"}')
    fake.looks = {
        "/api/v3/models/": missing,
        "/openapi.json": Reply(200, json.dumps(document(*words)).encode()),
    }
    fake.answer = of_hub if "per_residue" in words else hosted
    engine = Engine("mini", endpoint=fake.url + suffix, cache=None, pooling=["max", "cls"])
    found = engine.embed(PLAIN)
    expected = [
        np.concatenate([per_token(s, 6).max(0), vector({"sequence": s}, 6, "bos")]) for s in PLAIN
    ]
    np.testing.assert_array_equal(found, expected)
    assert {headers["path"] for headers in fake.headers if "path" in headers} == {
        "/api/v1/mini/encode"
    }
    assert {tuple(body["params"]["include"]) for body in fake.asked} == {(words[1], "bos")}
    assert max(len(body["items"]) for body in fake.asked) == 2


@pytest.mark.parametrize(
    "told",
    [
        {"paths": {}},
        {"paths": []},
        {**document("mean"), "components": {}},
        {**document("mean"), "components": {"schemas": TWICE}},
        {
            **document("mean"),
            "components": {"schemas": {"Body": {"$ref": "#/components/schemas/Body"}}},
        },
    ],
)
def test_what_is_no_document_of_a_hub_is_an_error(engine, fake, told):
    fake.looks = {
        "/api/v3/models/": Reply(404, b"{}"),
        "/openapi.json": Reply(200, json.dumps(told).encode()),
    }
    with pytest.raises(EndpointError, match=r"has no mini \(404\)"):
        engine().embed(PLAIN)


def test_errors_of_a_hub_have_our_rows(fake):
    fake.looks = {
        "/api/v3/models/": Reply(404, b"{}"),
        "/openapi.json": Reply(200, json.dumps(document("mean")).encode()),
    }
    wrong = {"loc": ["body", "items", 1, "sequence"], "msg": "Residue O is not allowed."}
    fake.answer = lambda _: Reply(422, json.dumps({"detail": [wrong]}).encode())
    with pytest.raises(InvalidSequenceError, match="Residue O is not allowed") as caught:
        Engine("mini", endpoint=fake.url, cache=None).embed(["MKT", "GSHMO"])
    assert caught.value.index == 0  # the longest is sent first


def test_the_hub_routes_of_our_own_server(monkeypatch, tmp_path):
    # Without its version 3, it is a hub like any other.
    from esm2_features.server import routes

    monkeypatch.setattr(routes, "_add_lists", lambda *_: None)
    with served(max_items=3) as url:
        for pooling in (["mean", "cls"], ["max", "std"]):
            found = Engine("mini", endpoint=url, cache=tmp_path, pooling=pooling).embed(PLAIN)
            expected = local(cache=None, pooling=pooling).embed(PLAIN)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    spaces = Cache(tmp_path).info().spaces
    assert {space.spec.checkpoint for space in spaces} == {f"endpoint:{url}/mini"}


def test_the_address_of_the_hub_routes_is_that_of_our_own_server(url, tmp_path):
    Engine("mini", endpoint=f"{url}/api/v1", cache=tmp_path).embed(PLAIN)
    [space] = Cache(tmp_path).info().spaces
    assert not space.spec.checkpoint.startswith("endpoint:")
