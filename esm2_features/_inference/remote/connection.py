"""`ApiClient`: requests to a server, with retries and pauses.

Only statuses that mean "later" and connections that are cut are tried again, with pauses that
double, or as long as the server asks for.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from esm2_features._inference.remote.endpoint import TOKEN_VARIABLE, Endpoint
from esm2_features.exceptions import EndpointError

if TYPE_CHECKING:
    import requests

AT_ONCE = 4
"""Requests that are under way together."""

_ATTEMPTS, _FIRST_ATTEMPTS = 10, 4
"""Tries of a request: of any, and of the first, of which the address may be wrong."""
_SHORTEST_PAUSE, _LONGEST_PAUSE, _LONGEST_WAIT = 0.5, 60.0, 600.0
"""Seconds between two tries: of our own accord, and if the server asks for it."""
_CONNECT_SECONDS = 10.0
_LATER = (429, 502, 503, 504)
_HOPELESS = ("model_unavailable",)
"""Codes of this library's server that mean that nothing will change by itself."""
_AT_A_TIME = 1 << 16
_LONGEST_SHOWN = 400

_clock = time.monotonic


class Response(NamedTuple):
    """The response of a server."""

    status: int
    media: str  # type of the content
    content: bytes
    later: float | None = None  # seconds after which to ask again, if it says so

    @property
    def json(self) -> dict[str, Any]:
        """The JSON object that it holds; empty if it holds something else."""
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """The run has ended; nobody waits for a response any more."""


class ApiClient:
    """A connection to one server, which several threads can use. A context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self._token = endpoint.secret()
        self._proxies, self._proxy = _way_to(self.url)
        self._stop = threading.Event()
        self._session: requests.Session | None = None

    def __enter__(self) -> ApiClient:
        import http.cookiejar

        import requests
        from requests.adapters import HTTPAdapter

        self._session = requests.Session()
        self._session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        # Always set, so that requests never takes a password out of ~/.netrc instead.
        self._session.auth = self._authorised
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=AT_ONCE))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self._session is not None
        self._session.close()

    def stop(self) -> None:
        """Send no request again from now on."""
        self._stop.set()

    def ask(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        accept: str = "application/json",
        most: int = 1 << 22,
        timeout: float = 60.0,
        first: bool = False,
        accepted: tuple[int, ...] = (),
    ) -> Response:
        """Send a request, again and again within limits."""
        attempts = _FIRST_ATTEMPTS if first else _ATTEMPTS
        status = None
        for attempt in range(attempts):
            found = self._once(path, body, accept=accept, most=most, timeout=timeout)
            wait = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2**attempt)
            if isinstance(found, Response):
                if found.status not in _LATER or found.status in accepted:
                    return self._looked_at(found)
                status, trouble = found.status, f"it answers {found.status}{self.words(found)}"
                if found.json.get("code") in _HOPELESS:
                    raise self.error(f": {trouble}", status)
                if found.later is not None:
                    wait = max(found.later, _SHORTEST_PAUSE)
            else:
                trouble = found
            if wait > _LONGEST_WAIT:
                raise self.error(
                    f" wants to be asked again after {wait:.0f} s only: {trouble} What has come is "
                    "in the cache, if there is one.",
                    status,
                )
            # Never sooner than was asked for, and not together with everybody else.
            if attempt + 1 < attempts and self._pause(wait * random.uniform(1, 1.25)):  # noqa: S311
                raise Stopped
        raise self.error(
            f" was asked {attempts} times: {trouble.rstrip('.')}. What has come is in the cache, "
            "if there is one. See whether the server runs, and whether endpoint= is its address.",
            status,
        )

    def words(self, answer: Response) -> str:
        """Quote the error text of a server, without the token."""
        said = answer.json.get("error", answer.json.get("detail"))
        if isinstance(said, list) and said and isinstance(said[0], dict):  # as pydantic says it
            said = said[0].get("msg")
        text = said if isinstance(said, str) else ""
        if self._token:
            text = text.replace(self._token, "<hidden>")
        text = "".join(c if c.isprintable() else " " for c in text).strip()
        if len(text) > _LONGEST_SHOWN:
            text = f"{text[:_LONGEST_SHOWN]}..."
        return f": {text}" if text else "."

    def error(self, text: str, status: int | None = None) -> EndpointError:
        """Make an error whose message is the address, this text, and the proxy on the way."""
        return EndpointError(f"{self.url}{text}{self._proxy}", url=self.url, status=status)

    def unlike(self, what: str, status: int | None = None) -> EndpointError:
        """Make the error of an answer that is not one of this API."""
        return self.error(
            f" {what}. Is endpoint= the address of a server that speaks version 3 of the API, such "
            "as `esm2-features serve`, or of a hub?",
            status,
        )

    def _pause(self, seconds: float) -> bool:
        """Wait; return whether `stop` was called meanwhile."""
        return self._stop.wait(seconds)

    def _authorised(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Token {self._token}"
        return request

    def _once(
        self, path: str, body: dict[str, Any] | None, *, accept: str, most: int, timeout: float
    ) -> Response | str:
        """Send a request once; a failure that may pass is returned as a sentence."""
        import requests
        from requests.exceptions import ChunkedEncodingError, ContentDecodingError, SSLError
        from urllib3.exceptions import MaxRetryError

        assert self._session is not None
        begun = _clock()
        try:
            with self._session.request(
                "GET" if body is None else "POST",
                f"{self.url}{path}",
                data=None if body is None else json.dumps(body).encode(),
                headers={"Accept": accept, "Content-Type": "application/json"},
                timeout=(_CONNECT_SECONDS, timeout),
                proxies=self._proxies,
                allow_redirects=False,  # a POST would become a GET
                stream=True,
            ) as response:
                response.raw.enforce_content_length = True  # old urllib3 takes a cut for the end
                content = bytearray()
                for chunk in response.iter_content(_AT_A_TIME):
                    content += chunk
                    if len(content) > most:
                        raise self.unlike("answers more than was asked for", response.status_code)
                    if _clock() - begun > timeout:
                        raise requests.Timeout
                return Response(
                    response.status_code,
                    response.headers.get("Content-Type", "").partition(";")[0].strip().lower(),
                    bytes(content),
                    _seconds(response.headers.get("Retry-After")),
                )
        except requests.Timeout:
            return f"there was no answer within {timeout:g} s."
        except SSLError as error:
            raise self.error(
                " has no certificate that is trusted here. Ask who runs it, or name its authority "
                "by REQUESTS_CA_BUNDLE."
            ) from error
        except (requests.ConnectionError, ChunkedEncodingError, ContentDecodingError) as error:
            if error.args and isinstance(error.args[0], MaxRetryError):  # it never connected
                return "it cannot be reached from here."
            return "it closed the connection before its answer was complete."
        except requests.RequestException as error:  # its own words hold the address alone
            raise self.unlike(f"cannot be asked ({type(error).__name__})") from None

    def _looked_at(self, answer: Response) -> Response:
        if answer.status in (401, 403):
            given = "It was sent none." if self._token is None else "The one it was sent is not."
            raise self.error(
                f" asks for a token that it knows ({answer.status}). {given} Set the environment "
                f"variable {TOKEN_VARIABLE}, or pass token=. (What is passed does not reach other "
                "processes, such as those of n_jobs: no pickle holds it.) It says"
                f"{self.words(answer)}",
                answer.status,
            )
        if 300 <= answer.status < 400:
            raise self.unlike(
                f"answers {answer.status}, that it has moved; pass the new address", answer.status
            )
        return answer


def _seconds(retry_after: str | None) -> float | None:
    """Read Retry-After: seconds, or a date."""
    if retry_after is not None and retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        when = email.utils.parsedate_to_datetime(retry_after or "")
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def in_background(job: Callable[[], Any]) -> Any:
    """Begin something on a daemon thread, which Ctrl-C does not wait for."""
    from concurrent.futures import Future

    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def _way_to(url: str) -> tuple[dict[str, str], str]:
    """Give the proxies of requests, beside those of the environment, and a sentence about these.

    This machine is never asked through a proxy, which would ask itself.
    """
    from requests.utils import get_environ_proxies, select_proxy

    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost") or _is_loopback(host):
        return {"no_proxy": host}, ""
    proxy = select_proxy(url, get_environ_proxies(url))
    if proxy is None:
        return {}, ""
    shown = proxy.rpartition("@")[2]  # without a password
    return {}, (
        f" Requests go through the proxy {shown}, as the environment says (http_proxy, "
        f"https_proxy): to go past it, set no_proxy={host}."
    )


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
