"""Connections: how many there are, and how long a client may take to send and to read."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from esm2_features.server.limits import BODY_SECONDS

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

HEAD_SECONDS = 15.0
_LATEST_BODY = BODY_SECONDS + 10
"""Later than the error of the application, which the client may read."""
_READ_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_SHARE_OF_ADDRESS = 4
_OTHER_FILES = 512
"""Open files that are no connections: weights, the cache, and those that wait to be accepted."""
BACKLOG = 128
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_log = logging.getLogger("esm2_features.server")


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with limits: of connections, of each address and in all, and of times.

    uvicorn has no limits of its own for clients that never end a head, or do not read.
    """

    most = 1024
    last_log = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._awaited = ""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless there are too many."""
        super().connection_made(transport)
        if self._is_one_too_many():
            self._log_refusal()
            transport.write(_REFUSAL)
            self._close()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("read", _READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("read")

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for name in list(self._timers):
            self._stop(name)

    def _is_one_too_many(self) -> bool:
        if len(self.connections) > self.most:
            return True
        address = (self.client or ("",))[0]
        if address == self.config.forwarded_allow_ips:  # a proxy, with all of its clients
            return False
        clients = [one.client for one in self.connections if isinstance(one, BoundedProtocol)]
        own = sum((client or ("",))[0] == address for client in clients)
        return own * _SHARE_OF_ADDRESS > self.most

    def _log_refusal(self) -> None:
        now = time.monotonic()
        if now > BoundedProtocol.last_log + 60 or not BoundedProtocol.last_log:
            BoundedProtocol.last_log = now
            _log.warning(
                "Refused a connection of %s: there are %d, of up to %d, a quarter of which may be "
                "of one address. (This is logged once a minute.)",
                (self.client or ("",))[0],
                len(self.connections),
                self.most,
            )

    def _watch(self) -> None:
        """Start the time for a head or a body when the client owes one, and end it."""
        state = self.conn.their_state
        is_head = state is h11.IDLE and (self.cycle is None or bool(self.conn.trailing_data[0]))
        awaited = "head" if is_head else "body" if state is h11.SEND_BODY else ""
        if awaited != self._awaited:
            self._stop(self._awaited)
            self._awaited = awaited
            if awaited:
                seconds = HEAD_SECONDS if awaited == "head" else _LATEST_BODY
                self._start(awaited, seconds, self.transport.abort)

    def _close(self) -> None:
        """Close the connection, even if the client never reads what it was sent."""
        self.transport.close()
        self._start("close", _CLOSE_SECONDS, self.transport.abort)

    def _start(self, name: str, seconds: float, callback: Any) -> None:
        self._stop(name)
        self._timers[name] = self.loop.call_later(seconds, callback)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()


def bounded_protocol(most: int) -> type[BoundedProtocol]:
    """Return the protocol for up to so many connections, or as many as the system lets open."""
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = most + BACKLOG + _OTHER_FILES
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            most = max(1, min(most, soft - BACKLOG - _OTHER_FILES))
    return type("Protocol", (BoundedProtocol,), {"most": most})
