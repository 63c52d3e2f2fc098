"""What is asked of a server about itself: health, counters, pages, files."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from esm2_features._checkpoints.catalogue import Architecture, slug
from esm2_features.server.errors import ApiError
from esm2_features.server.metrics import CONTENT_TYPE, Metrics
from esm2_features.server.openapi import responses
from esm2_features.server.pages import operations, page, table
from esm2_features.server.responses import JSON

_STATIC = Path(__file__).parents[1] / "data" / "server"
_MEDIA = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILE_HEADERS = {
    "Cache-Control": "no-cache",  # asked for again each time, and sent if it is another
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What a browser is told of the page: nothing from elsewhere, no script within it, in no frame."""
_EXAMPLES = 60
"""Sequences of the example."""


def add_watching(
    app: FastAPI,
    *,
    metrics: Metrics,
    shapes: Mapping[str, Architecture],
    in_memory: Callable[[], set[str]],
    is_ready: Callable[[], bool],
) -> None:
    """Add what supervisors, Prometheus and people look at."""

    async def healthz() -> Response:
        """Say that the process is alive."""
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def readyz() -> Response:
        """Say whether requests are taken."""
        if not is_ready():
            raise ApiError(503, "starting", "The server is starting.", retry_after=1)
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

    And an example to try them with, at ``/example.fasta``.
    """
    for file in sorted(_STATIC.rglob("*")):
        if file.is_file():
            address = f"/{file.relative_to(_STATIC).as_posix()}"
            for path in {address, address.removesuffix("index.html")}:
                app.add_route(path, _giving(file), methods=["GET"])
    app.add_route("/example.fasta", _example, methods=["GET"])


def _giving(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def give(_: Request) -> Response:
        return FileResponse(file, media_type=_MEDIA[file.suffix], headers=_FILE_HEADERS)

    return give


async def _example(_: Request) -> Response:
    """Write some of the peptides that ship with the library as FASTA: toxins and hormones."""
    from esm2_features.datasets import load_demo_peptides

    peptides = load_demo_peptides()
    step = len(peptides.target) // _EXAMPLES
    some = list(zip(peptides.data, peptides.target, strict=True))[::step][:_EXAMPLES]
    text = "".join(
        f">{name.replace(' ', '_')} kind={kind}\n{sequence}\n" for (name, sequence), kind in some
    )
    return Response(text, media_type="text/plain", headers=_FILE_HEADERS)
