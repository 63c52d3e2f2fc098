"""`AuthMiddleware`: checks who sends a request before its body is read, and counts it."""

from __future__ import annotations

import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esm2_features.server.errors import ApiError
from esm2_features.server.limits import RateLimiter
from esm2_features.server.memory import Claim, MemoryBudget
from esm2_features.server.metrics import Metrics
from esm2_features.server.settings import LOOPBACK
from esm2_features.server.tokens import Tokens

_GUARDED = ("/api/", "/docs", "/metrics", "/openapi.json", "/status")
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
}
"""Headers of answers that have no such headers of their own."""


class AuthMiddleware:
    """Checks the token (or the host, without tokens) and the rate of each request."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens | None,
        rates: RateLimiter | None,
        memory: MemoryBudget,
        metrics: Metrics,
    ) -> None:
        self._app, self._tokens, self._rates, self._metrics = app, tokens, rates, metrics
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500
        claim: Claim | None = None

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name.lower() for name, _ in message["headers"]}
                added = [pair for pair in _HEADERS.items() if pair[0] not in own]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self._check(scope)
            claim = scope["claim"] = Claim(self._memory, scope["client_name"])
            await self._app(scope, receive, send_and_note_status)
        except ApiError as error:
            await error.response()(scope, receive, send_and_note_status)
        except ClientDisconnect:  # in the middle of a body or an answer: nobody is left to answer
            status = 499
        finally:
            if claim is not None:
                claim.release()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path = scope["path"]
        client = (scope.get("client") or ("", 0))[0]
        if self._tokens is None:
            _check_host(headers.get(b"host", ""))
        elif path.startswith(_GUARDED):
            client = _owner(headers.get(b"authorization", ""), self._tokens)
        scope["client_name"] = client
        if self._rates is not None and path.startswith("/api/") and scope["method"] == "POST":
            self._rates.take(client)


def _owner(authorization: str, tokens: Tokens) -> str:
    """Return the name that belongs to a token."""
    scheme, _, token = authorization.strip().partition(" ")
    owner = tokens.owner(token.strip()) if scheme.lower() in ("token", "bearer") else None
    if owner is None:
        raise ApiError("unauthorized")
    return owner


def _check_host(host: str) -> None:
    """Reject requests that were sent to a name other than this machine's own.

    Without tokens, a page of any site could otherwise point its own name to this address (DNS
    rebinding), and read the answers.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name.strip("[]").lower() not in LOOPBACK:
        raise ApiError("wrong_host")
