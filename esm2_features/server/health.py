"""Health checks, counters, the pages for people, and the files of the web page."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from esm2_features._checkpoints.catalogue import Architecture, slug
from esm2_features.server.errors import ERRORS, ApiError, error_responses
from esm2_features.server.metrics import Metrics

_STATIC = Path(__file__).parents[1] / "data" / "server"
_MEDIA = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILE_HEADERS = {
    "Cache-Control": "no-cache",  # ask each time whether the file has changed
    # Nothing from other sites, no inline scripts, and no frame around the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_EXAMPLES = 60  # sequences
_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem .2rem 0}"
    "pre{overflow-x:auto;background:#f4f4f4;padding:.5rem}"
)


def add_health(
    app: FastAPI,
    *,
    metrics: Metrics,
    shapes: Mapping[str, Architecture],
    in_memory: Callable[[], set[str]],
    is_ready: Callable[[], bool],
) -> None:
    """Add the addresses for supervisors, Prometheus and people."""

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Response:
        """Answer if the process is alive."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses=error_responses(503))
    async def readyz() -> Response:
        """Answer if the server takes requests."""
        if not is_ready():
            raise ApiError("starting", retry_after=1)
        return Response(b'{"status":"ready"}', media_type="application/json")

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        return Response(metrics.text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/status", include_in_schema=False)
    async def status() -> Response:
        loaded = in_memory()
        models = [
            (slug(name), name, shape.layers, shape.dim, "yes" if name in loaded else "no")
            for name, shape in shapes.items()
        ]
        counters = [
            line.rpartition(" ")[::2]
            for line in metrics.text.decode().splitlines()
            if not line.startswith("#") and "_bucket{" not in line and "_created" not in line
        ]
        table = _table(("model", "name", "layers", "dim", "in memory"), models)
        counts = _table(("counter", "value"), counters)
        return _page("Status", [table, "<h2>Counters</h2>", counts])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        errors = [(status, code, text) for code, (status, text) in ERRORS.items()]
        table = _table(("status", "code", "text"), errors)
        return _page("HTTP API", [*_operations(app.openapi()), "<h2>Errors</h2>", table])


# ------------------------------------------------------------------ pages without scripts


def _page(title: str, parts: Iterable[str]) -> HTMLResponse:
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{''.join(parts)}</main></body></html>",
        headers={**_FILE_HEADERS, "Content-Security-Policy": _PAGE_POLICY},
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _operations(document: Mapping[str, Any]) -> Iterable[str]:
    """Describe the operations of an OpenAPI document; those of the hub for one model only."""
    of_hub = set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "hub" in operation.get("tags", ()):
                if operation["summary"] in of_hub:
                    continue
                of_hub.add(operation["summary"])
            yield f"<h2>{escape(method.upper())} {escape(path)}</h2>"
            yield f"<p>{escape(operation['description'])}</p>"
            for media, body in operation.get("requestBody", {}).get("content", {}).items():
                example = json.dumps(body["example"], indent=1)
                yield f"<p>{escape(media)}</p><pre>{escape(example)}</pre>"


# ------------------------------------------------------------------ the web page


def add_files(app: FastAPI) -> None:
    """Add the files of the web page: each at its name, and index.html also at the root.

    The sequences of the page's example are at ``/example.fasta``.
    """
    for file in sorted(_STATIC.rglob("*")):
        if file.is_file():
            address = f"/{file.relative_to(_STATIC).as_posix()}"
            for path in {address, address.removesuffix("index.html")}:
                app.add_route(path, partial(_send, file=file), methods=["GET"])
    app.add_route("/example.fasta", _example, methods=["GET"])


async def _send(_: Request, file: Path) -> Response:
    return FileResponse(file, media_type=_MEDIA[file.suffix], headers=_FILE_HEADERS)


async def _example(_: Request) -> Response:
    """Write some of the demo peptides, toxins and hormones, as FASTA."""
    from esm2_features.datasets import load_demo_peptides

    peptides = load_demo_peptides()
    step = len(peptides.target) // _EXAMPLES
    some = list(zip(peptides.data, peptides.target, strict=True))[::step][:_EXAMPLES]
    text = "".join(
        f">{name.replace(' ', '_')} kind={kind}\n{sequence}\n" for (name, sequence), kind in some
    )
    return Response(text, media_type="text/plain", headers=_FILE_HEADERS)
