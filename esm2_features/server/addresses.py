"""`AddressMiddleware`: the addresses that clients use, made those of the routes."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class AddressMiddleware:
    """Removes the prefix of a proxy, and adds the slash at the end of an address of the API."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or redirect one for the prefix itself, below which the page is."""
        if scope["type"] == "http":
            path = scope["path"]
            if self._root_path and path == self._root_path:
                await RedirectResponse(f"{path}/", 307)(scope, receive, send)
                return
            # Some proxies have removed it already.
            if self._root_path and path.startswith(f"{self._root_path}/"):
                path = path.removeprefix(self._root_path)
            if path.startswith("/api/") and not path.endswith("/"):
                path += "/"
            scope["path"] = path
        await self._app(scope, receive, send)
