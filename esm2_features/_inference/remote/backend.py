"""`RemoteBackend`: vectors that a server computes.

A server of this library states its weights, precision and schema before it is asked, and in every
answer. If they are those of the cache's keys, its vectors are as good as those of a network in this
process. Other servers of the hosted service's API, and hubs, state nothing of the kind: their
vectors are kept under an identity of their own, made of the address and the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache.keys import SCHEMA
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL, OFFICIAL, full_name, slug
from esm2_features._inference.batching import BatchPlan, batches
from esm2_features._inference.cache_session import Columns
from esm2_features._inference.numerics import check_finite, round_vectors
from esm2_features._inference.remote.connection import AT_ONCE, ApiClient, Response, in_background
from esm2_features._inference.remote.endpoint import API, Endpoint
from esm2_features._inference.remote.openapi import Operation, encode_operation
from esm2_features._inference.remote.responses import (
    OF_RESIDUES,
    WORD_OF,
    UnreadableResponse,
    from_json,
    from_npz,
    listed,
    refused,
)
from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.views import SequenceView, UniqueViews, parse
from esm2_features.exceptions import InputError, NumericalError

if TYPE_CHECKING:
    from esm2_features._checkpoints import Checkpoint

_TOKENS = 8192
"""Tokens of a request: the tokens that a server computes together."""
_ANSWER_BYTES = 1 << 25
_FOREIGN_ANSWER_BYTES, _FOREIGN_SECONDS = 1 << 24, 300.0
_DOCUMENT_BYTES = 1 << 25
_SPARE_BYTES = 1 << 20
"""What an answer takes besides its numbers."""
_DIGITS = 32
"""Bytes of a number as JSON, at most."""
_NPZ = "application/x-npz"


def check_remote(model: object, device: object) -> str:
    """Return the full name of a model; raise InputError for others, and for a choice of device."""
    if (name := full_name(model)) is None:
        known = ", ".join([EMBEDDED_MODEL, *OFFICIAL])
        raise InputError(
            f"Got model={model!r} with an endpoint, which takes models by name: {known}. A path is "
            "one of this machine, and the key of the cache needs a digest that is known here. "
            "Compute with it here, without endpoint=."
        )
    if device != "auto":
        raise InputError(
            f"Got device={device!r} with an endpoint, which chooses its device itself. Leave one "
            "of them out."
        )
    return name


@dataclass(frozen=True)
class ServerInfo:
    """What a server states about itself."""

    identity: str | None  # what its numbers are kept under; None is under the weights' own
    operation: Operation
    answer_bytes: int  # bytes of numbers that are asked for at a time
    timeout: float  # seconds that an answer may claim


class _RequestTooLarge(Exception):  # noqa: N818 - nothing is wrong
    """A request that would go through if it were smaller."""


@dataclass(frozen=True)
class RemoteBackend:
    """A server that computes the vectors of one model, for vectors alone."""

    endpoint: Endpoint
    checkpoint: Checkpoint
    precision: str
    batch_tokens: int | None  # tokens of a request; None is the default

    @contextmanager
    def connect(self) -> Iterator[RemoteRows]:
        """Ask the server what it serves, and compare; raise EndpointError or InputError."""
        with ApiClient(self.endpoint) as client:
            yield RemoteRows(
                client, self.checkpoint, precision=self.precision, budget=self.batch_tokens
            )

    def plan(self, views: Sequence[str], columns: Columns) -> BatchPlan:
        """Raise InputError: the server divides its work itself."""
        self.check_product(f"A dry run of {len(views)} sequences, {len(columns.wanted)} columns,")

    def check_product(self, product: str) -> NoReturn:
        """Raise InputError for everything but vectors, rather than compute it here in silence."""
        raise InputError(
            f"Got endpoint={self.endpoint.url!r}, from which vectors come (embed, and "
            f'stream(..., "embedding")). {product} is computed in this process only: use an '
            "engine without endpoint=, on the machine that has the weights."
        )


class RemoteRows:
    """Vectors of one model, computed by a server to which there is a connection."""

    def __init__(
        self, connection: ApiClient, checkpoint: Checkpoint, *, precision: str, budget: int | None
    ) -> None:
        self._connection = connection
        self._model, self._shape = checkpoint.name, checkpoint.architecture
        self._budget = budget or _TOKENS
        self._about = {"checkpoint": checkpoint.identity, "precision": precision}
        self._about["schema"] = str(SCHEMA)
        self._path = f"{API}/{slug(self._model)}/encode/"
        self.server_info = self._ask_about()

    @property
    def advice(self) -> None:
        """Nothing: another machine computes."""

    @property
    def identity(self) -> str | None:
        """Of weights other than the checkpoint's: those of a server that does not state them."""
        return self.server_info.identity

    @property
    def is_ours(self) -> bool:
        """Whether it is this library's server, which states what its numbers are."""
        return self.identity is None

    def compute(
        self,
        unique: UniqueViews,
        which: Sequence[int],
        columns: Columns,
        *,
        claim: Callable[[list[int]], list[int]],
        progress: Callable[[int], object],
    ) -> Generator[tuple[list[int], NDArray[np.float32]], None, None]:
        """Compute vectors, several requests at a time.

        What was computed before an error is yielded first.
        """
        ask = _Requests(self, unique, which, columns)
        pending = ask.planned(which, self._budget)
        begun: deque[tuple[list[int], Any]] = deque()
        while pending or begun:
            try:
                while pending and len(begun) < AT_ONCE:
                    offered = pending.popleft()
                    portion = claim(offered)
                    progress(ask.residues(offered) - ask.residues(portion))
                    if portion:
                        begun.append((portion, in_background(partial(ask, portion))))
                if not begun:
                    continue
                portion, future = begun[0]
                try:
                    vectors = future.result()
                except _RequestTooLarge:
                    half = len(portion) // 2
                    pending.extendleft([portion[half:], portion[:half]])
                    begun.popleft()
                    continue
            except (Exception, KeyboardInterrupt) as error:
                self._connection.stop()
                patient = isinstance(error, Exception)  # who pressed Ctrl-C waits for nothing
                for portion, future in begun:
                    if (patient or future.done()) and future.exception() is None:
                        yield portion, future.result()
                raise
            begun.popleft()
            yield portion, vectors
            progress(ask.residues(portion))

    def extract(
        self, views: Sequence[str], extractor: object, progress: Callable[[int], object]
    ) -> Generator[tuple[list[int], Any], None, None]:
        """Only vectors come from a server: `RemoteBackend.check_product` is called before this."""
        raise AssertionError(f"{extractor} of {len(views)} views was asked of a server: {progress}")

    # ------------------------------------------------------------------ what it says of itself

    def _ask_about(self) -> ServerInfo:
        said = self._connection.ask(f"{API}/models/", first=True).json
        if said.get("server") != "esm2-features":
            return self._foreign()
        try:
            served = {str(entry["name"]): entry["checkpoint"] for entry in said["models"]}
            stated = {key: str(said[key]) for key in ("precision", "schema")}
            server_info = ServerInfo(
                identity=None,
                operation=Operation(self._path, max(1, int(said["max_items"])), "per_token"),
                answer_bytes=min(_ANSWER_BYTES, int(said["max_answer_bytes"])),
                timeout=float(said["timeout"]) + 30,
            )
        except (KeyError, TypeError, ValueError):
            raise self._connection.unlike("does not say what it serves") from None
        if self._model not in served:
            raise self._connection.error(
                f" does not serve {self._model}; it has {', '.join(served)}. Choose one of them as "
                f"model=, or start it with --model {self._model}."
            )
        self._compare(stated | {"checkpoint": served[self._model]})
        return server_info

    def _compare(self, found: dict[str, Any]) -> None:
        """Raise an error if the server's numbers are not those of the cache's keys."""
        differing = [key for key, value in self._about.items() if found.get(key) != value]
        if "precision" in differing:
            raise InputError(
                f"Got precision={self._about['precision']!r}, and {self._connection.url} computes "
                f"in {found.get('precision')!r}. Ask for that, or start the server with "
                f"--precision {self._about['precision']}."
            )
        if "schema" in differing:
            raise self._connection.error(
                " runs a version of esm2-features whose vectors mean something else. Install the "
                "same version on both machines."
            )
        if differing:
            raise self._connection.error(
                f" has other weights under the name {self._model}: {found.get('checkpoint')}, and "
                f"not {self._about['checkpoint']}. Have the server use the official file."
            )

    def _foreign(self) -> ServerInfo:
        """Ask a server that is not of this library where and how it computes vectors."""
        if self._about["precision"] != "float32":
            raise InputError(
                f"Got precision={self._about['precision']!r}, and {self._connection.url} does not "
                "say what it computes in. Leave precision out."
            )
        return ServerInfo(
            identity=f"endpoint:{self._connection.url}/{slug(self._model)}",
            operation=self._foreign_operation(slug(self._model)),
            answer_bytes=_FOREIGN_ANSWER_BYTES,
            timeout=_FOREIGN_SECONDS,
        )

    def _foreign_operation(self, model: str) -> Operation:
        schema = self._connection.ask(f"{API}/schema/{model}/encode/", first=True)
        if schema.status == 200 and schema.json:
            try:
                max_items = max(1, int(schema.json["properties"]["items"]["maxItems"]))
            except (KeyError, TypeError, ValueError):
                max_items = 1
            return Operation(self._path, max_items, "per_token")
        document = self._connection.ask("/openapi.json", first=True, most=_DOCUMENT_BYTES)
        if (operation := encode_operation(document.json, model)) is None:
            raise self._connection.unlike(
                f"has no {model} ({schema.status}){self._connection.words(schema)}", schema.status
            )
        return operation


class _Requests:
    """The requests of one run, and how their responses are read."""

    def __init__(
        self, rows: RemoteRows, unique: UniqueViews, which: Sequence[int], columns: Columns
    ) -> None:
        self._connection, self._server_info = rows._connection, rows.server_info
        self._rows, self._numbers = rows, unique.rows
        self._views = {i: parse(unique.views[i]) for i in which}
        self._columns, self._dtype = columns.computed, columns.dtype
        self._layers = list(dict.fromkeys(layer for layer, _ in self._columns))
        self._poolings = list(dict.fromkeys(pooling for _, pooling in self._columns))
        self._words = [WORD_OF[pooling] for pooling in self._poolings]
        if not rows.is_ours:
            self._words = self._foreign_words()

    def planned(self, which: Sequence[int], budget: int) -> deque[list[int]]:
        """Divide views into portions, the longest first."""
        of_all = [self._views[i] for i in which]
        plan = batches(
            [len(view.sequence) + 2 for view in of_all],
            budget,
            sizes=[self._bytes(view) for view in of_all],
            most=self._server_info.answer_bytes,
        )
        most = self._server_info.operation.max_items
        return deque(
            [which[k] for k in portion[start : start + most]]
            for portion in plan
            for start in range(0, len(portion), most)
        )

    def residues(self, portion: Sequence[int]) -> int:
        return sum(len(self._views[i].sequence) for i in portion)

    def __call__(self, portion: list[int]) -> NDArray[np.float32]:
        """Send a portion, and read its vectors."""
        views = [self._views[i] for i in portion]
        numbers = [self._numbers[i] for i in portion]
        params: dict[str, Any] = {"include": self._words, "repr_layers": self._layers}
        window = max(view.window for view in views)
        if window:
            params["window"] = window
        size = sum(self._bytes(view) for view in views)
        is_ours = self._rows.is_ours
        answer = self._connection.ask(
            self._server_info.operation.path,
            {"params": params, "items": [self._item(view) for view in views]},
            accept=_NPZ if is_ours else "application/json",
            most=_SPARE_BYTES + (size if is_ours else _DIGITS // 4 * size),
            timeout=self._server_info.timeout,
            accepted=(504,) if len(portion) > 1 else (),
        )
        if answer.status in (413, 504) and len(views) > 1:
            raise _RequestTooLarge
        words, url = self._connection.words(answer), self._connection.url
        if answer.status != 200:
            reason = refused(answer, words, url, views, numbers)
            raise reason or self._connection.unlike(
                f"answers {answer.status}{words}", answer.status
            )
        try:
            vectors = self._read(answer, views)
        except UnreadableResponse as error:
            raise self._connection.unlike(f"answers {error}", 200) from None
        if not np.isfinite(vectors).all():
            raise NumericalError(
                f"{url} gave infinities or NaN for sequences of the rows {listed(numbers)}. "
                "Nothing of this portion was cached."
            )
        # Again, because rounding makes infinities of large numbers.
        rounded: NDArray[np.float32] = check_finite(
            round_vectors(vectors, self._dtype),
            [view.sequence for view in views],
            model=self._rows._model,
            precision=self._rows._about["precision"],
            dtype=self._dtype,
        )
        return rounded

    def _item(self, view: SequenceView) -> dict[str, str]:
        item = {"sequence": view.sequence.replace(MASK, "<mask>")}
        if view.spans and self._rows.is_ours:
            item["region"] = ",".join(f"{start}:{stop}" for start, stop in view.spans)
        return item

    def _bytes(self, view: SequenceView) -> int:
        """Bytes of the numbers of a view, as float32."""
        per_residue = self._server_info.operation.per_residue
        rows = sum(len(view.sequence) if word == per_residue else 1 for word in self._words)
        return 4 * len(self._layers) * rows * self._rows._shape.dim

    def _read(self, answer: Response, views: Sequence[SequenceView]) -> NDArray[np.float32]:
        dim, about = self._rows._shape.dim, self._rows._about
        if not self._rows.is_ours:
            by_residue = self._server_info.operation.per_residue in self._words
            return from_json(answer, views, self._columns, dim, by_residue)
        server_info, vectors = from_npz(answer, len(views), self._columns, dim, tuple(about))
        self._rows._compare(server_info)
        return vectors

    def _foreign_words(self) -> list[str]:
        """List the outputs of the hosted service that are needed, or raise InputError."""
        url = self._connection.url
        odd = [word for word in self._poolings if word not in (*OF_RESIDUES, "cls")]
        if odd:
            raise InputError(
                f"Got pooling={odd[0]!r} with endpoint={url!r}, which is not a server of "
                "esm2-features: of the hosted service's API, mean and cls can be had, and max, std "
                'and regions by way of its residues. (store="all" asks for all poolings.)'
            )
        if any(view.window for view in self._views.values()):
            raise InputError(
                f'Got too_long="window" with endpoint={url!r}, which is not a server of '
                'esm2-features, and knows no windows. Pass too_long="raise" or "truncate".'
            )
        is_partial = any(view.spans for view in self._views.values())
        by_residue = is_partial or {"max", "std"}.intersection(self._poolings)
        residues = self._server_info.operation.per_residue
        words = [residues] if by_residue else ["mean"] if "mean" in self._poolings else []
        return words + (["bos"] if "cls" in self._poolings else [])
