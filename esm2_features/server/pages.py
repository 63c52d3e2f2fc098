"""Pages for people: how the server is doing, and what it can be asked.

They need no script, and nothing from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem .2rem 0}"
    "pre{overflow-x:auto;background:#f4f4f4;padding:.5rem}"
)


def page(title: str, parts: Iterable[str]) -> str:
    """Put a page together."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{''.join(parts)}</main></body></html>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table."""
    top = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def operations(document: Mapping[str, Any]) -> Iterable[str]:
    """Describe what an OpenAPI document holds."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2>{escape(method.upper())} {escape(path)}</h2>"
            yield f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
            content = operation.get("requestBody", {}).get("content", {})
            for media, body in content.items():
                written = json.dumps(body.get("example", body.get("schema")), indent=1)
                yield f"<p>{escape(media)}</p><pre>{escape(written)}</pre>"
            yield table(
                ("status", "meaning"),
                [(code, said["description"]) for code, said in operation["responses"].items()],
            )
