"""What is asked of a server about itself: health, counters, pages, files.

Never here: models, what is computed.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from esm2_features._catalogue import Architecture, slug
from esm2_features._server_answers import JSON
from esm2_features._server_errors import Refusal
from esm2_features._server_metrics import CONTENT_TYPE, Metrics
from esm2_features._server_openapi import responses
from esm2_features._server_pages import operations, page, table

_STATIC = Path(__file__).with_name("data") / "server"


def add_watching(
    app: FastAPI,
    *,
    metrics: Metrics,
    shapes: Mapping[str, Architecture],
    in_memory: Callable[[], set[str]],
    is_ready: Callable[[], bool],
) -> None:
    """Add what supervisors, Prometheus and people look at.

    Parameters
    ----------
    app : FastAPI
    metrics : Metrics
    shapes : mapping of str to Architecture
        Of the models that are served.
    in_memory : callable
        Gives those that are in memory.
    is_ready : callable
        Says whether requests are taken.
    """

    async def healthz() -> Response:
        """Say that the process is alive."""
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def readyz() -> Response:
        """Say whether requests are taken."""
        if not is_ready():
            raise Refusal(503, "starting", "The server is starting.", retry_after=1)
        return Response(b'{"status":"ready"}', media_type=JSON)

    async def counted() -> Response:
        """Give what is counted, for Prometheus."""
        return Response(metrics.text, media_type=CONTENT_TYPE)

    async def status() -> Response:
        """Show how the server is doing."""
        there = in_memory()
        rows = [
            (slug(name), name, shape.layers, shape.dim, "yes" if name in there else "no")
            for name, shape in shapes.items()
        ]
        lines = [line for line in metrics.text.decode().splitlines() if not line.startswith("#")]
        counts = [
            line.rpartition(" ")[::2]
            for line in lines
            if "_bucket{" not in line and "_created" not in line
        ]
        parts = [
            table(("model", "name", "layers", "dim", "in memory"), rows),
            "<h2>Counted</h2>",
            table(("what", "how much"), counts),
        ]
        return HTMLResponse(page("Status", parts))

    async def docs() -> Response:
        """Show what the server can be asked."""
        return HTMLResponse(page("What the server can be asked", operations(app.openapi())))

    app.add_api_route("/healthz", healthz, methods=["GET"])
    app.add_api_route("/readyz", readyz, methods=["GET"], responses=responses("Ready.", 503))
    for path, show in (("/metrics", counted), ("/status", status), ("/docs", docs)):
        app.add_api_route(path, show, methods=["GET"], include_in_schema=False)


def add_files(app: FastAPI) -> None:
    """Add what lies in the folder of pages: each file at its name, and index.html at the root.

    Parameters
    ----------
    app : FastAPI
    """
    for file in sorted(_STATIC.rglob("*")):
        if file.is_file():
            address = f"/{file.relative_to(_STATIC).as_posix()}"
            for path in {address, address.removesuffix("index.html")}:
                app.add_route(path, _giving(file), methods=["GET"])


def _giving(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def give(_: Request) -> Response:
        return FileResponse(file)

    return give
