"""`LocalBackend`: forward passes in this process, on one device or several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from esm2_features._checkpoints import Checkpoint
from esm2_features._inference.batch_loop import BatchLoop, divide, plan_batches
from esm2_features._inference.batching import BatchPlan
from esm2_features._inference.cache_session import Columns
from esm2_features._inference.device_pool import DevicePool
from esm2_features._inference.networks import get_networks
from esm2_features._inference.numerics import check_finite
from esm2_features._inputs.views import UniqueViews

if TYPE_CHECKING:
    from esm2_features._inference.extractors import Extractor
    from esm2_features._model.esm2 import ESM2Network

_Results = tuple[list[int], Any]


@dataclass(eq=False)
class LocalBackend:
    """The networks of one checkpoint, one on each device."""

    checkpoint: Checkpoint
    devices: tuple[str, ...]  # one, several, or ("all",)
    precision: str
    batch_tokens: int | None  # tokens at a time; None leaves it to the device
    # Budgets lowered after a batch did not fit, by extractor and device, for the next call, too.
    fitting: dict[tuple[type, str], int] = field(default_factory=dict)

    def connect(self) -> AbstractContextManager[LocalConnection]:
        """Load the networks, unless this process has them."""
        from esm2_features._model.devices import default_batch_tokens, workers_on

        networks = get_networks(self.checkpoint, devices=self.devices, precision=self.precision)
        dim = self.checkpoint.architecture.dim
        budgets = [
            self.batch_tokens or default_batch_tokens(network.device, dim) for network in networks
        ]
        is_alone = len(networks) == 1
        workers = [
            workers_on(network.device, budget, is_alone=is_alone)
            for network, budget in zip(networks, budgets, strict=True)
        ]
        return nullcontext(LocalConnection(self, networks, budgets, workers))

    def plan(self, views: Sequence[str], columns: Columns) -> BatchPlan:
        """Divide views into the batches of a run; nothing is loaded."""
        from esm2_features._inference.extractors import vectors_extractor
        from esm2_features._model.devices import default_batch_tokens, resolve_devices, workers_on

        device_maps = resolve_devices(self.devices, self.precision)
        home = device_maps[0].home  # whose batches the other devices take, too
        dim = self.checkpoint.architecture.dim
        budget = self.batch_tokens or default_batch_tokens(home, dim)
        bytes_of = vectors_extractor(columns).bytes
        workers = workers_on(home, budget, is_alone=True) if len(device_maps) == 1 else 1
        first, divided = divide(views, budget, bytes_of, workers)
        planned: list[list[str]] = []
        for which, sharing, tokens in (
            (first, len(device_maps), budget),
            (divided, workers, budget // workers),
        ):
            some = [views[i] for i in which]
            _, plan = plan_batches(some, tokens, bytes_of, sharing)
            planned += [[some[i] for i in batch] for batch in plan]
        return BatchPlan(planned, budget, [str(one) for one in device_maps])

    def check_product(self, product: str) -> None:
        """Every product can be computed here."""

    def forward(
        self,
        network: ESM2Network,
        extractor: Extractor,
        sharing: int,
        views: Sequence[str],
        budget: int,
    ) -> Callable[[], Any]:
        """Begin a forward pass; the returned function waits for it, and gives a result per view.

        ``sharing`` is the number of passes that share the cores of the machine.
        """
        from esm2_features._model.devices import computing

        with computing(network.device, sharing):
            results = extractor(network, views, budget)
        return lambda: check_finite(
            results(),
            views,
            model=self.checkpoint.name,
            precision=self.precision,
            dtype=getattr(extractor, "dtype", "float32"),
        )


@dataclass(frozen=True, eq=False)
class LocalConnection:
    """The networks of a `LocalBackend`, loaded."""

    backend: LocalBackend
    networks: Sequence[ESM2Network]
    budgets: Sequence[int]  # tokens under way at a time on each
    workers: Sequence[int]  # threads for each
    identity: None = None  # the checkpoint's own

    @property
    def advice(self) -> str | None:
        from esm2_features._model.half_precision import ON_A_CARD

        is_card = any(network.device.type == "cuda" for network in self.networks)
        return ON_A_CARD if is_card and self.backend.precision == "float32" else None

    def compute(
        self,
        unique: UniqueViews,
        which: Sequence[int],
        columns: Columns,
        *,
        claim: Callable[[list[int]], list[int]],
        progress: Callable[[int], object],
    ) -> Generator[_Results, None, None]:
        return self._run(unique.views, which, columns, claim, progress)

    def extract(
        self, views: Sequence[str], extractor: Extractor, progress: Callable[[int], object]
    ) -> Generator[_Results, None, None]:
        """Compute results of any size, batch by batch."""
        return self._run(views, range(len(views)), extractor, list, progress)

    def _run(
        self,
        views: Sequence[str],
        which: Sequence[int],
        job: Columns | Extractor,
        claim: Callable[[list[int]], list[int]],
        progress: Callable[[int], object],
    ) -> Generator[_Results, None, None]:
        from esm2_features._inference.extractors import vectors_extractor

        backend = self.backend
        extractor = vectors_extractor(job) if isinstance(job, Columns) else job
        on_devices = list(zip(self.networks, self.budgets, self.workers, strict=True))
        if len(on_devices) == 1:
            [(network, budget, workers)] = on_devices
            passes = [(network, budget, 1), *[(network, budget // workers, workers)] * workers]
        else:
            passes = [
                (network, budget, len(on_devices))
                for network, budget, workers in on_devices
                for _ in range(workers)
            ]
        loops = [
            BatchLoop(
                views,
                forward=partial(backend.forward, network, extractor, sharing),
                bytes_of=extractor.bytes,
                claim=claim,
                device=network.device,
                budget=min(budget, backend.fitting.get(key, budget)),
                sharing=sharing,
                on_smaller_budget=partial(backend.fitting.__setitem__, key),
                progress=progress,
            )
            for network, budget, sharing in passes
            for key in [(type(extractor), str(network.device))]
        ]
        if len(on_devices) > 1:
            return DevicePool(loops).run(which)
        alone, *several = loops
        first, divided = alone.divide(which, len(several))
        if not divided:
            return alone.run(first)
        return _in_turn(alone.run(first), DevicePool(several).run(divided))


def _in_turn(*runs: Generator[_Results, None, None]) -> Generator[_Results, None, None]:
    for run in runs:
        yield from run
