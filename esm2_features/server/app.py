"""The server: `create_app` makes it, `run` runs it.

The way of a request: `AuthMiddleware` checks who sent it (`auth`, `tokens`); an address (`routes`)
passes it to the `FeatureService` (`service`), where its body is read within limits (`limits`,
`memory`) and becomes a `FeatureRequest` (`requests`); it waits in the `RequestQueue` (`queue`), and
is computed together with others (`models`); the results are written in the format that the client
accepts (`api_versions`, `responses`), or as an error (`errors`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from esm2_features.exceptions import printable
from esm2_features.server.auth import AuthMiddleware
from esm2_features.server.errors import ErrorBody, add_error_handlers
from esm2_features.server.health import add_files, add_health
from esm2_features.server.limits import RateLimiter
from esm2_features.server.routes import add_routes
from esm2_features.server.service import CLOSE_SECONDS, FeatureService
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import Tokens

_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than the hosted service's client keeps it."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the server, as an ASGI application.

    Parameters
    ----------
    settings : Settings, optional
        Models, devices and limits; by default all models that have names, for this machine only.

    Returns
    -------
    app : fastapi.FastAPI
        The application, for any ASGI server. Its lifespan starts and ends the workers.

    Raises
    ------
    InputError
        If the file of tokens has no token or an invalid line.
    CheckpointError, MissingDependencyError
        If a file of weights, or its format, cannot be read.

    Examples
    --------
    >>> from esm2_features.server import Settings, create_app
    >>> create_app(Settings(models={"mini": "mini"}, cache=None)).title
    'esm2-features'
    """
    service = FeatureService(settings or Settings())
    chosen = service.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="esm2-features",
        description="Features of protein sequences, computed with ESM-2.",
        docs_url=None,  # FastAPI's page loads scripts from other sites; `health` has one of ours
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        servers=[{"url": chosen.root_path}] if chosen.root_path else None,
        responses={"default": {"model": ErrorBody, "description": "An error."}},
    )
    add_error_handlers(app)
    app.add_middleware(
        AuthMiddleware,
        tokens=None if chosen.tokens is None else Tokens(chosen.tokens),
        rates=RateLimiter(chosen.rate) if isinstance(chosen.rate, tuple) else None,
        memory=service.memory,
        metrics=service.metrics,
    )
    app.add_middleware(_PathMiddleware, root_path=chosen.root_path)
    if chosen.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=chosen.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Content-Encoding"],
            expose_headers=["Retry-After"],
        )
    add_routes(app, service)
    add_health(
        app,
        metrics=service.metrics,
        shapes={name: opened.architecture for name, opened in service.checkpoints.items()},
        in_memory=service.in_memory,
        is_ready=lambda: service.queue is not None,
    )
    add_files(app)
    return app


def run(settings: Settings) -> None:
    """Serve until the process gets SIGINT or SIGTERM; then finish requests for up to `grace` s.

    Parameters
    ----------
    settings : Settings
        Models, devices, limits, and the address.

    Raises
    ------
    InputError, CheckpointError, MissingDependencyError
        As `create_app` does.

    Examples
    --------
    >>> from esm2_features.server import Settings, run
    >>> run(Settings(models={"mini": "mini"}))  # doctest: +SKIP
    """
    import uvicorn

    from esm2_features.server.connections import BACKLOG, bounded_protocol

    logging.getLogger("uvicorn.access").addFilter(_escape)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        proxy_headers=settings.proxy is not None,
        forwarded_allow_ips=settings.proxy,
        http=bounded_protocol(settings.max_connections),
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, settings.grace - CLOSE_SECONDS),
        log_level="info",
    )


def _escape(record: logging.LogRecord) -> bool:
    """Escape control characters in a line of the log, such as those of X-Forwarded-For."""
    if isinstance(record.args, tuple):
        record.args = tuple(printable(it) if isinstance(it, str) else it for it in record.args)
    return True


class _PathMiddleware:
    """Leaves out the root path, and adds the slash at the end of an address of the API.

    Proxies may leave the root path out or pass it on, and clients may leave out the slash.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if self._root_path and f"{path}/".startswith(f"{self._root_path}/"):
                path = path[len(self._root_path) :] or "/"
            if path.startswith("/api/") and not path.endswith("/"):
                path += "/"
            scope["path"] = path
        await self._app(scope, receive, send)
