"""The run: results of views, out of the cache, out of the network, or out of a server.

`Run._rows` is the data flow of the whole library on one page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._cache import Cache
from esm2_features._cache.keys import Spec
from esm2_features._checkpoints import Checkpoint
from esm2_features._inference.batch_loop import BatchLoop
from esm2_features._inference.cache_session import CacheSession
from esm2_features._inference.device_pool import DevicePool
from esm2_features._inference.networks import get_networks
from esm2_features._inference.remote.connection import ApiClient
from esm2_features._inference.remote.embeddings import RemoteRows
from esm2_features._inference.remote.endpoint import Endpoint
from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.views import distinct_sequences, parse
from esm2_features._messages import shorten
from esm2_features._model.packing import dedupe, scatter
from esm2_features.exceptions import CheckpointError, InputError, NumericalError

if TYPE_CHECKING:
    from tqdm.std import tqdm

    from esm2_features._inference.extractors import Extractor
    from esm2_features._model.esm2 import ESM2Network


class _Columns(NamedTuple):
    """Layer and pooling of what is asked for, and of what is computed and kept; in which dtype."""

    wanted: Sequence[tuple[int, str]]
    computed: Sequence[tuple[int, str]]
    dtype: str


class Run:
    """One network over many views, here or on a server, with a cache or without."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: str,
        devices: tuple[str, ...],  # one, several, or ``("all",)``
        batch_tokens: int | None,  # tokens per forward pass; None leaves it to the device
        cache: Cache | None,
        verbose: bool,  # show progress on a terminal
        endpoint: Endpoint | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.precision = precision
        self.device = devices[0] if len(devices) == 1 else list(devices)
        self._devices = devices
        self.batch_tokens = batch_tokens
        self.cache = cache
        self.verbose = verbose
        self.n_computed = 0
        self._endpoint = endpoint
        self._fitting: dict[tuple[type, str], int] = {}

    def _rows(
        self,
        views: Sequence[str | None],
        extractor: Callable[[], Extractor],
        *,
        wanted: Sequence[tuple[int, str]],
        computed: Sequence[tuple[int, str]],
        width: int,
        dtype: str = "float32",
        fill: float = np.nan,
        numbers: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        """Give rows of a fixed width, which can be cached."""
        at = [i for i, view in enumerate(views) if view is not None]
        present = [view for view in views if view is not None]
        first, back = dedupe(present)
        unique = [present[i] for i in first]
        columns = _Columns(wanted, computed, dtype)
        found = np.empty((len(views), len(wanted), width), np.float32)
        rows = found[: len(unique)]

        def passes(missing: Sequence[int]) -> Iterator[tuple[list[int], Any]]:
            networks = self._networks_for([unique[i] for i in missing], wanted, dtype)
            return self._passes(networks, unique, missing, extractor(), session)

        with self._session(unique, columns, rows) as session:
            missing = session.read(range(len(unique)))
            if self._endpoint is None:
                _fill(rows, columns, session, missing, passes)
            elif missing:
                of_unique = [at[i] if numbers is None else numbers[at[i]] for i in first]
                self._ask(self._endpoint, unique, missing, columns, rows, session, of_unique)
        if len(unique) < len(views):
            source = np.full(len(views), -1)
            source[at] = back
            scatter(found, source, fill=fill)
        return found

    def _ask(
        self,
        endpoint: Endpoint,
        views: Sequence[str],
        missing: list[int],
        columns: _Columns,
        rows: NDArray[np.float32],
        session: CacheSession,
        numbers: Sequence[int],
    ) -> None:
        """Fill in the rows that are missing with what the server computes."""
        with ApiClient(endpoint) as connection:
            remote = RemoteRows(
                connection,
                model=self.checkpoint.name,
                shape=self.checkpoint.architecture,
                identity=self.checkpoint.identity,
                precision=self.precision,
            )

            if remote.is_ours:
                answers = partial(self._answers, remote, views, columns, numbers, session)
                _fill(rows, columns, session, missing, answers)
                return
            # What nobody vouches for is kept, and looked for, under an identity of its own.
            identity = remote.server_info.identity
            with self._session(views, columns, rows, identity) as apart:
                answers = partial(self._answers, remote, views, columns, numbers, apart)
                _fill(rows, columns, apart, apart.read(missing), answers)

    def _answers(
        self,
        remote: RemoteRows,
        views: Sequence[str],
        columns: _Columns,
        numbers: Sequence[int],
        session: CacheSession,
        missing: Sequence[int],
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        distinct = distinct_sequences([parse(views[i]) for i in missing])
        with self._progress(sum(len(sequence) for sequence, _ in distinct)) as progress:
            for batch, vectors in remote.run(
                views,
                missing,
                columns.computed,
                numbers=numbers,
                budget=self.batch_tokens,
                claim=session.claim,
                progress=progress.update,
            ):
                kept = vectors
                if columns.dtype != "float32":
                    with np.errstate(over="ignore"):
                        kept = vectors.astype(columns.dtype).astype(np.float32)
                for i, row in zip(batch, kept, strict=True):
                    if not np.isfinite(row).all():
                        raise self._not_finite(parse(views[i]).sequence, columns.dtype)
                self.n_computed += len(distinct_sequences([parse(views[i]) for i in batch]))
                yield batch, kept

    def _session(
        self,
        views: Sequence[str],
        columns: _Columns,
        rows: NDArray[np.float32],
        identity: str | None = None,
    ) -> CacheSession:
        """Make what stands between these rows and the cache; of other weights, if it says so."""
        return CacheSession(
            self.cache,
            views,
            wanted=self._specs(columns.wanted, columns.dtype, identity),
            stored=self._specs(columns.computed, columns.dtype, identity),
            rows=rows,
        )

    def _results(self, views: Sequence[str], extractor: Extractor) -> list[Any]:
        """Give results of any size, which are not cached."""
        first, back = dedupe(views)
        unique = [views[i] for i in first]
        found: list[Any] = [None] * len(unique)
        if unique:
            networks = self._networks()
            for batch, results in self._passes(networks, unique, range(len(unique)), extractor):
                for i, result in zip(batch, results, strict=True):
                    found[i] = result
        seen: set[int] = set()
        ordered = []
        for k in back.tolist():
            # Who writes into one result must not find it changed in another.
            ordered.append(_copied(found[k]) if k in seen else found[k])
            seen.add(k)
        return ordered

    def _passes(
        self,
        networks: Sequence[ESM2Network],
        views: Sequence[str],
        missing: Sequence[int],
        extractor: Extractor,
        session: CacheSession | None = None,
    ) -> Iterator[tuple[list[int], Any]]:
        from esm2_features._model.devices import default_batch_tokens, within_cores, workers_on

        dim = self.checkpoint.architecture.dim
        distinct = distinct_sequences([parse(views[i]) for i in missing])
        with self._progress(sum(len(sequence) for sequence, _ in distinct)) as progress:

            def forward(network: ESM2Network, some: list[str], tokens: int) -> Callable[[], Any]:
                with within_cores(network.device, len(networks)):
                    return self._forward(network, some, extractor, tokens)

            def loop(network: ESM2Network) -> BatchLoop:
                place = type(extractor), str(network.device)
                budget = self.batch_tokens or default_batch_tokens(network.device, dim)
                return BatchLoop(
                    views,
                    forward=partial(forward, network),
                    bytes_of=extractor.bytes,
                    claim=list if session is None else session.claim,
                    device=network.device,
                    budget=min(budget, self._fitting.get(place, budget)),
                    shrunk=partial(self._fitting.__setitem__, place),  # for the next portion, too
                    progress=progress.update,
                )

            if len(networks) == 1:
                results = loop(networks[0]).run(missing)
            else:
                loops = [loop(one) for one in networks for _ in range(workers_on(one.device))]
                results = DevicePool(loops).run(missing)
            with closing(results):
                for batch, found in results:
                    self.n_computed += len(distinct_sequences([parse(views[i]) for i in batch]))
                    yield batch, found

    def _forward(
        self, network: ESM2Network, views: Sequence[str], extractor: Extractor, budget: int
    ) -> Callable[[], Any]:
        """Begin a forward pass; what is given waits for it, and gives a result for each view."""
        import torch

        from esm2_features._model.devices import exact_arithmetic

        with exact_arithmetic(network.device), torch.inference_mode():
            found = extractor(network, views, budget)
        return lambda: self._checked(found(), views, extractor)

    def _checked(self, results: Any, views: Sequence[str], extractor: Extractor) -> Any:
        """Refuse numbers that are none."""
        if isinstance(results, np.ndarray) and np.isfinite(results).all():
            return results  # the usual case, all at once
        for view, result in zip(views, results, strict=True):
            arrays = result.values() if isinstance(result, dict) else [result]
            if not all(np.isfinite(array).all() for array in arrays):
                raise self._not_finite(parse(view).sequence, getattr(extractor, "dtype", "float32"))
        return results

    def _specs(
        self, columns: Sequence[tuple[int, str]], dtype: str, identity: str | None
    ) -> list[Spec]:
        if self.cache is None:
            return []  # the identity of the weights may cost a reading of their file
        name = self.checkpoint.name
        identity = self.checkpoint.identity if identity is None else identity
        return [
            Spec(identity, layer, pooling, self.precision, dtype, name)
            for layer, pooling in columns
        ]

    def _networks_for(
        self, views: Sequence[str], wanted: Sequence[tuple[int, str]], dtype: str
    ) -> list[ESM2Network]:
        """Get the networks; without their weights, say for which sequences they are needed."""
        try:
            return self._networks()
        except CheckpointError as error:
            if self.cache is not None:
                columns = ", ".join(f"layer {at} {pooling}" for at, pooling in wanted[:3])
                columns += ", ..." if len(wanted) > 3 else ""
                distinct = distinct_sequences([parse(view) for view in views])
                first = _shown(next(iter(distinct))[0])
                error.args = (
                    f"{len(distinct)} different sequences (such as {first!r}) lack vectors in the "
                    f"cache {self.cache.path} ({columns}, {self.precision}, kept in {dtype}), and "
                    f"the weights to compute them cannot be had: {error} "
                    "Or compute them on a machine that has them, and claim them in with "
                    "`esm2-features cache import`.",
                )
            raise

    def _networks(self) -> list[ESM2Network]:
        """Get a network for each device; a CPU that several workers share has one."""
        self._check_endpoint("This")
        return get_networks(self.checkpoint, devices=self._devices, precision=self.precision)

    def _check_endpoint(self, what: str) -> None:
        """Refuse what a server is not asked for, rather than compute it here in silence."""
        if self._endpoint is not None:
            raise InputError(
                f"Got endpoint={self._endpoint.url!r}, from which vectors come (embed, and "
                f'stream(..., "embedding")). {what} is computed in this process only: use an '
                "engine without endpoint=, on the machine that has the weights."
            )

    def _progress(self, residues: int) -> tqdm[None]:
        if not self.verbose:  # `tqdm.auto` warns in notebooks that have no widgets
            from tqdm.std import tqdm

            return tqdm(disable=True)
        from tqdm.auto import tqdm as shown_tqdm

        # disable=None draws on a terminal only, so log files stay clean.
        return shown_tqdm(
            total=residues,
            desc=self.checkpoint.name,
            unit=" residues",
            unit_scale=True,
            disable=None,
        )

    def _not_finite(self, sequence: str, dtype: str) -> NumericalError:
        kept = f", kept in {dtype}," if dtype != "float32" else ""
        return NumericalError(
            f"{self.checkpoint.name} gave infinities or NaN in {self.precision}{kept} for a "
            f"sequence of {len(sequence)} residues ({_shown(sequence)!r}). Nothing of its batch "
            'was cached. float16 overflows in some models: use precision="float32" or "bfloat16", '
            'and cache_dtype="float32"; in float32, the checkpoint is damaged.'
        )


def _fill(
    rows: NDArray[np.float32],
    columns: _Columns,
    session: CacheSession,
    missing: list[int],
    compute: Callable[[Sequence[int]], Iterator[tuple[list[int], Any]]],
) -> None:
    """Fill in the rows that are missing, and keep them as they come."""
    picked = [columns.computed.index(column) for column in columns.wanted]
    while missing:
        for batch, vectors in compute(missing):
            rows[batch] = vectors[:, picked]
            session.add(batch, vectors)
        missing = session.wait_for_others()  # what other processes began, and did not end


def _shown(sequence: str) -> str:
    """Shorten a sequence for a message, and write it as people do."""
    return shorten(sequence).replace(MASK, "<mask>")


def _copied(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: array.copy() for key, array in result.items()}
    return result.copy()
