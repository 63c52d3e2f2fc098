"""The connection to a server: tokens that stay hidden, and what is tried again."""

from __future__ import annotations

import copy
import email.utils
import http.server
import logging
import pickle
import threading
import time
from typing import ClassVar

import joblib
import numpy as np
import pytest
from serving import faked, refusal, vectors_of
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from esm2_features import Engine, ESM2Transformer
from esm2_features._inference.remote import connection as _remote
from esm2_features._inference.remote.connection import ApiClient
from esm2_features._inference.remote.endpoint import TOKEN_VARIABLE, Endpoint, Token, read_endpoint
from esm2_features.exceptions import EndpointError, InputError

SECRET = "s3cr3t-of-ours"
SEQUENCES = ["MKTAYIAKQR", "GSHM", "CYIQNCPLG"]


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds that were waited, or would have been."""
    waited = []
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)

    def pause(self, seconds):
        waited.append(seconds)
        return self._stop.is_set()

    monkeypatch.setattr(ApiClient, "_pause", pause)
    return waited


@pytest.fixture
def fake():
    with faked() as server:
        yield server


@pytest.fixture
def engine(fake):
    return lambda **options: Engine("mini", **{"endpoint": fake.url, "cache": None, **options})


# ------------------------------------------------------------------ the token is never shown


def test_a_token_is_in_nothing_that_is_printed_or_pickled():
    esm = ESM2Transformer("mini", endpoint="http://host:8000", token=SECRET)
    pipeline = make_pipeline(esm, LogisticRegression())
    for one in (esm, pipeline):
        assert SECRET not in repr(one)
        assert SECRET not in one._repr_html_()
        assert SECRET not in str(one.get_params())
        assert SECRET.encode() not in pickle.dumps(one)
        assert SECRET not in str(vars(one))
    assert "<hidden>" in repr(esm)
    assert SECRET not in repr(esm._engine())
    assert SECRET.encode() not in pickle.dumps(esm._engine().runner.backend.endpoint)
    assert pickle.loads(pickle.dumps(esm)).token is None
    assert pickle.loads(pickle.dumps(esm)).endpoint == "http://host:8000"


def test_clones_and_copies_have_the_token():
    esm = ESM2Transformer("mini", endpoint="http://host:8000", token=SECRET)
    for one in (clone(esm), copy.copy(esm), copy.deepcopy(esm), esm.set_params(token=SECRET)):
        assert isinstance(one.token, Token)
        assert one.token.text == SECRET
    assert joblib.hash(esm) == joblib.hash(clone(esm).set_params(token="another"))


def test_a_grid_search_carries_the_token(fake):
    search = GridSearchCV(
        make_pipeline(
            ESM2Transformer("mini", endpoint=fake.url, token=SECRET, cache=None),
            LogisticRegression(),
        ),
        {"esm2transformer__layers": [3, -1]},
        cv=2,
    )
    search.fit([*SEQUENCES, "MKTAYIA"], [0, 1, 1, 0])
    assert {headers["Authorization"] for headers in fake.headers} == {f"Token {SECRET}"}
    assert SECRET not in str(search.cv_results_)


def test_the_environment_has_the_token_unless_it_is_passed(engine, fake, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, " of-the-environment\n")
    engine().embed(SEQUENCES)
    assert {h["Authorization"] for h in fake.headers} == {"Token of-the-environment"}
    fake.headers.clear()
    engine(token=SECRET).embed(SEQUENCES)
    assert {h["Authorization"] for h in fake.headers} == {f"Token {SECRET}"}


def test_without_a_token_none_is_sent_not_even_that_of_netrc(engine, fake, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    engine().embed(SEQUENCES)
    assert not any("Authorization" in headers for headers in fake.headers)


@pytest.mark.parametrize("token", ["", "two words", "naïve", "line\nbreak"])
def test_a_token_that_is_none_is_refused_and_not_shown(engine, token):
    with pytest.raises(InputError, match=TOKEN_VARIABLE) as caught:
        engine(token=token).embed(SEQUENCES)
    assert token == "" or token not in str(caught.value)


def test_a_token_of_another_type_is_refused_in_fit_and_not_shown():
    with pytest.raises(TypeError, match="type int"):
        ESM2Transformer("mini", endpoint="http://host", token=12345).fit(SEQUENCES)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_not_good_is_an_error_that_says_how_to_set_it(
    engine, fake, pauses, status, caplog
):
    caplog.set_level(logging.DEBUG)
    fake.answer = lambda _: refusal(status, "unauthorized", f"{SECRET} is unknown here.")
    with pytest.raises(EndpointError) as caught:
        engine(token=SECRET).embed(SEQUENCES)
    message = str(caught.value)
    assert fake.url in message
    assert TOKEN_VARIABLE in message
    assert "<hidden> is unknown here." in message
    assert SECRET not in message + caplog.text + repr(caught.value)
    assert (caught.value.status, caught.value.url) == (status, fake.url)
    assert pauses == []


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize("end", ["", "/", "/api/v3", "/api/v3/"])
def test_addresses_may_end_in_the_version(end):
    assert read_endpoint(f"https://host:8000/esm{end}", None).url == "https://host:8000/esm"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "host:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host/?a=b",
        8000,
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match="expected the address"):
        Engine("mini", endpoint=url)


def test_an_address_with_a_password_is_refused_and_not_shown():
    with pytest.raises(InputError, match=TOKEN_VARIABLE) as caught:
        Engine("mini", endpoint=f"http://me:{SECRET}@host")
    assert SECRET not in str(caught.value)


def test_a_token_without_an_endpoint_is_refused():
    with pytest.raises(InputError, match="without an endpoint"):
        Engine("mini", token=SECRET)


# ------------------------------------------------------------------ what is tried again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_go_right_later_is_tried_again(engine, fake, pauses, status):
    fake.script = [refusal(status), refusal(status)]
    one = engine().embed(SEQUENCES[:1])
    np.testing.assert_array_equal(one[0], engine().embed(SEQUENCES[:1])[0])
    assert len(fake.asked) == 4
    assert 0.5 <= pauses[0] <= 0.625
    assert 1 <= pauses[1] <= 1.25


def test_pauses_are_as_long_as_the_server_asks(engine, fake, pauses):
    in_a_while = email.utils.formatdate(time.time() + 40, usegmt=True)
    fake.script = [
        refusal(503, Retry_After="7"),
        refusal(429, Retry_After=in_a_while),
        refusal(503, Retry_After="soon"),
    ]
    engine().embed(SEQUENCES[:1])
    assert 7 <= pauses[0] <= 7 * 1.25
    assert 35 <= pauses[1] <= 50
    assert 2 <= pauses[2] <= 2.5  # as if it had said nothing


def test_who_is_to_wait_for_hours_is_told_so(engine, fake, pauses):
    fake.script = [refusal(429, "quota", "Come tomorrow.", Retry_After="86400")]
    with pytest.raises(EndpointError, match=r"after 86400 s only.*Come tomorrow") as caught:
        engine().embed(SEQUENCES[:1])
    assert (pauses, caught.value.status) == ([], 429)


def test_tries_have_an_end_and_pauses_a_limit(engine, fake, pauses):
    fake.answer = lambda _: refusal(503, "busy", "Too much waits.")
    with pytest.raises(EndpointError, match="asked 10 times: it answers 503: Too much waits"):
        engine().embed(SEQUENCES[:1])
    assert len(fake.asked) == 10
    assert max(pauses) <= 75
    assert pauses[5] > 8 * pauses[1]


def test_a_model_that_cannot_be_loaded_is_not_waited_for(engine, fake, pauses):
    fake.script = [
        refusal(503, "model_unavailable", "The weights cannot be loaded.", Retry_After="60")
    ]
    with pytest.raises(EndpointError, match="The weights cannot be loaded"):
        engine().embed(SEQUENCES[:1])
    assert pauses == []


def test_a_connection_that_is_cut_is_tried_again(engine, fake, pauses):
    def cut(body):
        reply = vectors_of(body)
        reply.headers["Content-Length"] = str(len(reply.content))
        reply.content = reply.content[: len(reply.content) // 2]
        return reply

    right = engine().embed(SEQUENCES)
    fake.script = [None, cut, cut]
    np.testing.assert_array_equal(engine().embed(SEQUENCES), right)
    assert len(pauses) == 3


def test_an_answer_that_drips_is_tried_again(engine, fake, pauses, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_remote, "_clock", lambda: now[0])

    def late(body):
        now[0] += 5000
        return vectors_of(body)

    fake.script = [late]
    fake.state(max_items=100)
    engine().embed(SEQUENCES)
    assert len(fake.asked) == 2
    assert len(pauses) == 1


def test_an_address_where_nobody_is_fails_soon(pauses):
    with faked() as fake:
        url = fake.url
    with pytest.raises(EndpointError, match="asked 4 times: it cannot be reached") as caught:
        Engine("mini", endpoint=url, cache=None).embed(SEQUENCES)
    assert (len(pauses), caught.value.status) == (3, None)


def test_a_server_that_goes_away_is_said_to_have_gone(engine, fake):
    fake.answer = lambda _: None
    with pytest.raises(EndpointError, match="closed the connection"):
        engine().embed(SEQUENCES)


def test_redirects_are_not_followed(engine, fake):
    fake.answer = lambda _: refusal(308, Location="http://elsewhere.invalid/")
    with pytest.raises(EndpointError, match="it has moved"):
        engine(token=SECRET).embed(SEQUENCES)


def test_a_token_that_cannot_be_sent_is_never_in_an_error_of_requests(engine, fake):
    with pytest.raises(InputError) as caught:
        engine(token="héader-" + SECRET).embed(SEQUENCES)
    assert SECRET not in str(caught.value)
    assert fake.headers == []


# ------------------------------------------------------------------ proxies


class Proxy(http.server.BaseHTTPRequestHandler):
    """Refuses everything, as the proxies of institutes do."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.requestline)
        body = b"<html><body>ERR_ACCESS_DENIED</body></html>"
        self.send_response(403)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_CONNECT = do_GET  # noqa: N815 - names of the base class

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    Proxy.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://alice:secret@127.0.0.1:{server.server_port}")
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_this_machine_is_asked_past_a_proxy(proxy, engine):
    assert engine().embed(["MKTAYIAKQR"]).shape == (1, 192)
    assert Proxy.asked == []


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "0.0.0.0", "a.localhost"]
)
def test_loopback_has_many_names(proxy, host):
    client = ApiClient(Endpoint(f"http://{host}:8000", None))
    assert client._proxy == ""
    assert client._proxies == {"no_proxy": host.strip("[]")}


def test_elsewhere_the_message_names_the_proxy(proxy):
    engine = Engine("mini", cache=None, endpoint="http://gpu-host.invalid:8000")
    with pytest.raises(
        EndpointError, match=rf"through the proxy {proxy}, .*no_proxy=gpu-host"
    ) as e:
        engine.embed(["MKTAYIAKQR"])
    assert "secret" not in str(e.value)
    assert Proxy.asked
