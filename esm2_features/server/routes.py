"""The addresses of the API: those of each version, of the hub, and the lists of models."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request
from fastapi.responses import Response

from esm2_features._cache.keys import SCHEMA
from esm2_features._checkpoints.catalogue import slug
from esm2_features.server.api_versions import HUB, VERSION_1, VERSION_2, VERSION_3
from esm2_features.server.errors import ApiError, error_responses
from esm2_features.server.requests import Action, ApiVersion, request_body, request_schema
from esm2_features.server.responses import ARROW, JSON, NPZ, as_json
from esm2_features.server.service import FeatureService

_DESCRIPTIONS: dict[Action, str] = {
    "encode": "Compute representations, contacts, attention and logits.",
    "predict": "Compute the logits of sequences with masks.",
    "log_prob": "Compute the sum of the log-probabilities of the residues of sequences.",
}
_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The results.",
        "content": {media: {"schema": {"type": "string"}} for media in (ARROW, NPZ)},
    },
    **error_responses(400, 401, 403, 404, 406, 408, 413, 415, 422, 429, 500, 503, 504),
}


def add_routes(app: FastAPI, service: FeatureService) -> None:
    """Add all addresses of the API."""
    for version in (VERSION_1, VERSION_2, VERSION_3):
        _add_version(app, service, version)
    _add_hub(app, service)
    _add_lists(app, service)


def _add_version(app: FastAPI, service: FeatureService, version: ApiVersion) -> None:
    """Add the operations of a version, and an error for all others."""
    for operation in version.operations:
        _add_operation(app, service, version, operation)
    _add_unknown_action(app, version)


def _add_hub(app: FastAPI, service: FeatureService) -> None:
    """Add the hub's addresses, one for each model: its clients list models by OpenAPI's paths."""
    for operation, action in HUB.operations.items():
        for model in service.settings.models:
            _add_operation(app, service, HUB, operation, model)
        # Other names of the models, and those that are not served, which get an error.
        app.post(f"{HUB.path}{operation}/", include_in_schema=False)(_answer(service, HUB, action))
    _add_unknown_action(app, HUB)


def _add_operation(
    app: FastAPI,
    service: FeatureService,
    version: ApiVersion,
    operation: str,
    model: str | None = None,  # whose address it is; None if the address names the model
) -> None:
    action, of_version, path = version.operations[operation], f"v{version.number}", version.path
    models = service.checkpoints if model is None else [model]
    depth = max(service.checkpoints[name].architecture.layers for name in models)
    if model is not None:
        of_version, path = slug(model), path.format(model=slug(model))
    app.post(
        f"{path}{operation}/",
        name=operation,
        description=_DESCRIPTIONS[action],
        operation_id=f"{operation}_{of_version}",
        responses=_RESULTS,
        tags=None if model is None else ["hub"],
        openapi_extra=request_body(version, action, depth=depth, settings=service.settings),
    )(_answer(service, version, action, model))


def _add_unknown_action(app: FastAPI, version: ApiVersion) -> None:
    @app.post(f"{version.path}{{action}}/", include_in_schema=False)
    async def unknown_action() -> Response:
        raise _unknown_action(version)


def _answer(
    service: FeatureService, version: ApiVersion, action: Action, model: str | None = None
) -> Callable[..., Awaitable[Response]]:
    """Make the function of an address, of one model or of that which the address names."""
    names, of_address = _one_of(map(slug, service.settings.models)), model

    async def operation(request: Request, model: Annotated[str, names]) -> Response:
        return await service.answer(request, version, action, model)

    async def operation_of_model(request: Request) -> Response:
        return await service.answer(request, version, action, str(of_address))

    return operation if of_address is None else operation_of_model


def _add_lists(app: FastAPI, service: FeatureService) -> None:
    """Add the operations that list models and describe bodies."""
    settings = service.settings
    names, actions = _one_of(map(slug, settings.models)), _one_of(VERSION_3.operations)

    @app.get("/api/v3/schema/{model}/{action}/", responses=error_responses(401, 403, 404))
    async def schema(model: Annotated[str, names], action: Annotated[str, actions]) -> Response:
        """Describe the body of a request as JSON Schema; `maxItems` limits its sequences."""
        depth = service.checkpoints[service.find(model)].architecture.layers
        if action not in VERSION_3.operations:
            raise _unknown_action(VERSION_3)
        known = VERSION_3.operations[action]
        described = request_schema(VERSION_3, known, depth=depth, settings=settings)
        if settings.rate_text is not None:
            described["throttle_rate"] = settings.rate_text
        return Response(as_json(described), media_type=JSON)

    @app.get("/api/v3/models/", responses=error_responses(401, 403))
    async def models() -> Response:
        """List the models with the digests of their weights, and the limits of the server."""
        in_memory = service.in_memory()
        about = {
            "server": "esm2-features",
            "schema": SCHEMA,
            "precision": settings.precision,
            "max_items": settings.max_items,
            "max_answer_bytes": settings.max_answer_bytes,
            "timeout": settings.timeout,
            "models": [
                {
                    "model": slug(name),
                    "name": name,
                    "layers": checkpoint.architecture.layers,
                    "dim": checkpoint.architecture.dim,
                    "checkpoint": service.identity(name),
                    "in_memory": name in in_memory,
                }
                for name, checkpoint in service.checkpoints.items()
            ],
        }
        return Response(as_json(about), media_type=JSON)


def _one_of(words: Iterable[str]) -> Any:
    """Describe a part of an address; the server answers other words with its own errors."""
    return Path(json_schema_extra={"enum": list(words)})


def _unknown_action(version: ApiVersion) -> ApiError:
    actions = ", ".join(version.operations)
    return ApiError("unknown_action", version=version.number, actions=actions)
