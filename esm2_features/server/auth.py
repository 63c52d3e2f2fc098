"""The gate: who may come in, and how what is refused is said."""

from __future__ import annotations

import time

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from esm2_features.server.errors import ApiError, api_error_of
from esm2_features.server.limits import RateLimiter
from esm2_features.server.metrics import Metrics
from esm2_features.server.settings import LOOPBACK
from esm2_features.server.tokens import Tokens

_GUARDED = ("/api/", "/metrics", "/status")
_CODES = {
    404: ("not_found", "There is nothing here."),
    405: ("method_not_allowed", "This address takes other methods."),
}


class AuthMiddleware:
    """Asks who a request is from before its body is read, and counts it."""

    def __init__(
        self, app: ASGIApp, tokens: Tokens | None, rates: RateLimiter | None, metrics: Metrics
    ) -> None:
        self._app, self._tokens, self._rates, self._metrics = app, tokens, rates, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, counted)
        except ApiError as refusal:
            await written(refusal)(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - begun)

    def _admit(self, scope: Scope) -> None:
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path = scope["path"]
        client = (scope.get("client") or ("", 0))[0]
        if self._tokens is None:
            _check_host(headers.get(b"host", ""))
        elif path.startswith(_GUARDED):
            client = _owner(headers.get(b"authorization", ""), self._tokens)
        if self._rates is not None and path.startswith("/api/") and scope["method"] == "POST":
            self._rates.take(client)


def _owner(authorization: str, tokens: Tokens) -> str:
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() in ("token", "bearer"):
        owner = tokens.owner(token.strip())
        if owner is not None:
            return owner
    raise ApiError(
        401,
        "unauthorized",
        "Send a token that this server knows, as Authorization: Token ... (or Bearer ...).",
    )


def _check_host(host: str) -> None:
    """Refuse requests for other names than this machine's own.

    Without tokens, a page of any site could otherwise have its name point here, and read along.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name.strip("[]").lower() not in LOOPBACK:
        raise ApiError(
            403,
            "wrong_host",
            "Without tokens, this server answers to 127.0.0.1 and localhost only.",
        )


def written(refusal: ApiError) -> Response:
    """Write a refusal as an answer."""
    return Response(refusal.body, status_code=refusal.status, headers=refusal.headers)


def say_errors(app: FastAPI) -> None:
    """Have an application say all errors in the same shape."""
    app.add_exception_handler(HTTPException, _say_http)
    app.add_exception_handler(ApiError, _say)
    app.add_exception_handler(Exception, _say)


async def _say(_: Request, error: Exception) -> Response:
    return written(api_error_of(error))


async def _say_http(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    code, words = _CODES.get(status, ("http_error", "The request is not right."))
    said = written(ApiError(status, code, words))
    for name, value in (getattr(error, "headers", None) or {}).items():
        said.headers[name] = value
    return said
