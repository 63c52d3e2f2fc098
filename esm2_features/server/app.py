"""The server: `create_app` makes it, `run` runs it.

A request goes this way: `AuthMiddleware` asks who it is and counts it; its body is read in limits
(`_server_limits`) and becomes a job (`_server_jobs`); the job waits in the queue
(`_server_queue`) and is computed with others (`_server_models`); what is found is written as the
client accepts it (`_server_answers`, `_server_v1`, `_server_v3`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response

from esm2_features._cache.keys import SCHEMA
from esm2_features._checkpoints.catalogue import Architecture, slug
from esm2_features.server import api_v1 as _server_v1
from esm2_features.server import api_v3 as _server_v3
from esm2_features.server.auth import AuthMiddleware, say_errors
from esm2_features.server.errors import ApiError, api_error_of
from esm2_features.server.health import add_files, add_watching
from esm2_features.server.limits import RateLimiter, read_body
from esm2_features.server.metrics import Metrics
from esm2_features.server.models import LoadedModels, identities_of, shapes_of
from esm2_features.server.openapi import ASKED, RESULTS, body, describe, responses
from esm2_features.server.queue import RequestQueue
from esm2_features.server.requests import ACTIONS, FeatureRequest, read_request, request_schema
from esm2_features.server.responses import (
    ARROW,
    JSON,
    NPZ,
    as_arrow,
    as_json,
    as_npz,
    found_of,
    media_type,
)
from esm2_features.server.settings import Settings
from esm2_features.server.tokens import Tokens

_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than the client of the hosted service does."""
_BODY_SECONDS = 60.0
_DOCS = {
    "encode": "Give representations, contacts, attention and logits.",
    "predict": "Give the logits of sequences with masks.",
    "log_prob": "Give the sum of the log-probabilities of the residues of sequences.",
}


@dataclass
class _State:
    """What the parts of one server share."""

    settings: Settings
    shapes: dict[str, Architecture]
    identities: dict[str, str]
    metrics: Metrics
    models: list[LoadedModels]
    queue: RequestQueue | None = None

    @property
    def names(self) -> list[str]:
        """What models are called in addresses."""
        return [slug(name) for name in self.settings.models]

    def about(self, name: str) -> dict[str, str]:
        """Say what the numbers of a model are, as those who keep them must know."""
        return {
            "checkpoint": self.identity(name) or "",
            "precision": self.settings.precision,
            "schema": str(SCHEMA),
        }

    def identity(self, name: str) -> str | None:
        """Say what stands for the weights of a model; None if that is not known yet."""
        found = [models.identities[name] for models in self.models if name in models.identities]
        return found[0] if found else self.identities.get(name)

    @property
    def in_memory(self) -> set[str]:
        """Models that are in memory, on whichever device."""
        return {name for models in self.models for name in models.in_memory}


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the server, as an ASGI application."""
    chosen = Settings() if settings is None else settings
    metrics = Metrics()
    state = _State(
        settings=chosen,
        shapes=shapes_of(chosen),
        identities=identities_of(chosen),
        metrics=metrics,
        models=[LoadedModels(chosen, device, metrics) for device in chosen.devices],
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.queue = RequestQueue(
            [models.compute for models in state.models],
            budget=chosen.batch_tokens,
            wait=chosen.wait,
            most=chosen.max_waiting,
            metrics=metrics,
        )
        try:
            yield
        finally:
            await asyncio.to_thread(state.queue.close)

    app = FastAPI(
        title="esm2-features",
        description="Features of protein sequences, computed with ESM-2.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.esm2 = state
    say_errors(app)
    app.add_middleware(
        AuthMiddleware,
        tokens=None if chosen.tokens is None else Tokens(chosen.tokens),
        rates=None if chosen.rate is None else RateLimiter(chosen.rate),
        metrics=metrics,
    )
    _add_models(app, state)
    _add_lists(app, state)
    add_watching(
        app,
        metrics=metrics,
        shapes=state.shapes,
        in_memory=lambda: state.in_memory,
        is_ready=lambda: state.queue is not None,
    )
    add_files(app)
    describe(app)
    return app


def run(settings: Settings) -> None:
    """Serve until the process is told to end, and finish what was accepted."""
    import uvicorn

    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.timeout) + 10,
        log_level="info",
    )


# ------------------------------------------------------------------ what models are asked


def _add_models(app: FastAPI, state: _State) -> None:
    """Add the three versions of the API, each with and without a slash at the end."""
    settings = state.settings
    name = Annotated[str, Path(json_schema_extra={"enum": state.names})]

    deepest = max(shape.layers for shape in state.shapes.values())
    for version, start, actions in (
        (1, "/api/v1/models/{model}/", {"predict": "encode", "transform": "encode"}),
        (2, "/api/v2/{model}/", {action: action for action in ACTIONS[:2]}),
        (3, "/api/v3/{model}/", {action: action for action in ACTIONS}),
    ):
        for said, action in actions.items():
            for end in ("/", ""):
                app.add_api_route(
                    start + said + end,
                    _asking(state, version, action, name),
                    methods=["POST"],
                    include_in_schema=end == "/",
                    operation_id=f"{said}_v{version}",
                    responses=responses("The results.", *ASKED, media=RESULTS),
                    openapi_extra=body(version, action, depth=deepest, settings=settings),
                )
        for end in ("/", ""):
            app.add_api_route(
                f"{start}{{action}}{end}",
                _refusing(tuple(actions)),
                methods=["POST"],
                include_in_schema=False,
            )


def _add_lists(app: FastAPI, state: _State) -> None:
    """Add what says which models and actions there are."""
    settings = state.settings
    name = Annotated[str, Path(json_schema_extra={"enum": state.names})]
    one: Any = _action_of(ACTIONS)

    async def schema(model: name, action: one) -> Response:
        """Describe the body of a request as JSON Schema; `maxItems` is what fits into one."""
        found = _found(settings, model)
        if action not in ACTIONS:
            raise _no_action(ACTIONS)
        depth = state.shapes[found].layers
        described = request_schema(3, action, depth=depth, settings=settings)
        if settings.rate_text is not None:
            described["throttle_rate"] = settings.rate_text
        return Response(as_json(described), media_type=JSON)

    async def models() -> Response:
        """List the models that are served, and say what their numbers are."""
        there = state.in_memory
        listed = [
            {
                "model": slug(name),
                "name": name,
                "layers": shape.layers,
                "dim": shape.dim,
                "checkpoint": state.identity(name),
                "in_memory": name in there,
            }
            for name, shape in state.shapes.items()
        ]
        about = {
            "server": "esm2-features",
            "schema": SCHEMA,
            "precision": settings.precision,
            "max_items": settings.max_items,
            "max_answer_bytes": settings.max_answer_bytes,
            "timeout": settings.timeout,
        }
        return Response(as_json({**about, "models": listed}), media_type=JSON)

    for end in ("/", ""):
        for path, show, statuses in (
            ("/api/v3/schema/{model}/{action}", schema, (401, 403, 404)),
            ("/api/v3/models", models, (401, 403)),
        ):
            app.add_api_route(
                path + end,
                show,
                methods=["GET"],
                include_in_schema=end == "/",
                responses=responses("What was asked for.", *statuses),
            )


def _asking(state: _State, version: int, action: str, name: Any) -> Any:
    """Make the operation of one action."""

    async def ask(request: Request, model: name) -> Response:
        return await _answer(state, request, version, action, model)

    ask.__doc__ = _DOCS[action]
    return ask


def _refusing(actions: tuple[str, ...]) -> Any:
    """Make what answers to actions that are not there."""

    async def refuse() -> Response:
        raise _no_action(actions)

    return refuse


def _action_of(actions: tuple[str, ...]) -> Any:
    return Annotated[str, Path(json_schema_extra={"enum": list(actions)})]


def _no_action(actions: tuple[str, ...]) -> ApiError:
    return ApiError(
        404, "unknown_action", f"There is no such action: this has {', '.join(actions)}."
    )


async def _answer(
    state: _State, request: Request, version: int, action: str, model: str
) -> Response:
    """Read a request, have it computed, and write what was found."""
    settings = state.settings
    deadline = time.monotonic() + settings.timeout
    name = _found(settings, model)
    try:
        content = await _body_of(request, settings.max_body_bytes)
        job = read_request(
            content,
            version=version,
            action=action,
            model=name,
            shape=state.shapes[name],
            settings=settings,
        )
        media = media_type(request.headers.get("accept"))
        results = await _computed(state, request, job, deadline)
        many = found_of(job, results)
        written = {ARROW: as_arrow, NPZ: as_npz}
        if media in written:
            parts: Iterable[bytes] = written[media](job, many, state.about(name))
        elif version == 3:
            parts = _server_v3.parts(job, many)
        else:
            parts = _server_v1.parts(many, version=version)
        whole = []
        for part in parts:
            whole.append(part)
            await asyncio.sleep(0)  # large answers let others have a turn
        return Response(b"".join(whole), media_type=media)
    except Exception as error:
        raise api_error_of(error, model=slug(name)) from error


async def _body_of(request: Request, limit: int) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # What a page of another site can send without asking first has another type.
    if kind != JSON and not kind.endswith("+json"):
        raise ApiError(
            415, "unsupported_media_type", "Send JSON, with Content-Type: application/json."
        )
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await read_body(
                request.stream(),
                length=request.headers.get("content-length"),
                encoding=request.headers.get("content-encoding"),
                limit=limit,
            )
    except TimeoutError:
        raise ApiError(
            408, "body_timeout", f"The body did not come within {_BODY_SECONDS:g} s."
        ) from None


async def _computed(
    state: _State, request: Request, job: FeatureRequest, deadline: float
) -> list[list[Any]]:
    """Wait for a job; take it back if time is up, or nobody is there any more."""
    if state.queue is None:
        raise ApiError(503, "starting", "The server is starting.", retry_after=1)
    futures = state.queue.submit(job, deadline=deadline)
    waiting = asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # it was looked at
    gone: asyncio.Future[None] = asyncio.ensure_future(_disconnected(request))
    try:
        both: list[asyncio.Future[Any]] = [waiting, gone]
        await asyncio.wait(
            both,
            timeout=max(0.0, deadline - time.monotonic()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if waiting.done() and not waiting.cancelled():
            return waiting.result()
        if gone.done():
            raise ApiError(499, "client_gone", "The client has gone.")
        raise ApiError(
            504,
            "timeout",
            f"There was no result within {state.settings.timeout:g} s. What was computed is in "
            "the cache, if there is one: try again, with fewer sequences at a time.",
        )
    finally:
        gone.cancel()
        waiting.cancel()
        for future in futures:
            future.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _found(settings: Settings, model: str) -> str:
    name = settings.find(model)
    if name is None:
        raise ApiError(
            404,
            "unknown_model",
            "This server has no such model; GET /api/v3/models/ lists those that it has.",
        )
    return name
