"""`Jobs`: calls of tools, computed one after the other, with progress and cancellation."""

from __future__ import annotations

import functools
import inspect
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio import from_thread, to_thread
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations

from esm2_features._inference.progress import watching
from esm2_features.exceptions import Esm2FeaturesError, printable, shorten

_SECONDS = 0.1
"""Least time between two notifications of progress."""

_ARGUMENTS = {
    "--force": "overwrite=true",
    "--id-column": "id_column",
    "--min-identity": "min_identity",
    **{f"--{name}": name for name in ("column", "group", "id", "target", "task")},
}
"""Arguments of tools that messages call by their names in the shell."""


class Jobs:
    """A queue of calls; each is computed in a thread, one at a time."""

    def __init__(self, most_waiting: int) -> None:
        self._turn = anyio.Lock()
        self._waiting, self._most = 0, most_waiting

    def tool(self, work: Callable[..., Any], *, writes: bool = False, queued: bool = True) -> Tool:
        """Make a tool of a function, which raises the errors of this library."""
        signature = inspect.signature(work, eval_str=True)

        @functools.wraps(work)
        async def call(*, context: Context[Any, Any], **arguments: Any) -> Any:
            job = functools.partial(_in_thread, context, functools.partial(work, **arguments))
            return await (self._in_turn(job) if queued else to_thread.run_sync(job))

        own = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=Context)
        changed = signature.replace(parameters=[*signature.parameters.values(), own])
        call.__signature__ = changed  # type: ignore[attr-defined]
        hints = ToolAnnotations(read_only_hint=not writes, open_world_hint=False)
        text = inspect.cleandoc(work.__doc__ or "")
        tool = Tool.from_function(
            call, description=text, context_kwarg="context", annotations=hints
        )
        # A name that is misspelt is an error, and not an argument that does nothing.
        model = tool.fn_metadata.arg_model
        model.model_config["extra"] = "forbid"
        model.model_rebuild(force=True)
        tool.parameters = model.model_json_schema(by_alias=True)
        return tool

    async def _in_turn(self, job: Callable[[], Any]) -> Any:
        if self._waiting > self._most:
            raise ToolError(f"{self._most} calls wait already. Wait for answers, and call again.")
        self._waiting += 1
        try:
            async with self._turn:
                return await to_thread.run_sync(job)
        finally:
            self._waiting -= 1


def _in_thread(context: Context[Any, Any], work: Callable[[], Any]) -> Any:
    done = total = sent = 0
    last = -_SECONDS

    def watch(residues: int, begun: int) -> None:
        nonlocal done, total, sent, last
        from_thread.check_cancelled()
        done, total = done + residues, total + begun
        now = time.monotonic()
        if total and (done > sent or begun) and (now - last >= _SECONDS or done == total):
            sent, last = done, now
            from_thread.run(context.report_progress, done, total, f"{done} of {total} residues")

    try:
        with watching(watch):
            from_thread.check_cancelled()
            return work()
    except Esm2FeaturesError as error:
        raise ToolError(as_arguments(str(error))) from error
    except OSError as error:
        name = shorten(printable(str(error.filename or "A file")), 200)
        raise ToolError(f"{name}: {error.strerror or error}") from error


def as_arguments(message: str) -> str:
    """Write options of the command line as arguments of a tool."""
    message = message.replace("groups=None", 'group="none"')
    return re.sub(r"--[a-z]+(-[a-z]+)*", lambda match: _ARGUMENTS.get(match[0], match[0]), message)


@contextmanager
def collecting_warnings() -> Iterator[list[str]]:
    """Yield a list to which warnings of this library are added at the end."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    found = (w.message for w in caught if issubclass(w.category, UserWarning))
    said += dict.fromkeys(as_arguments(str(message)) for message in found)
