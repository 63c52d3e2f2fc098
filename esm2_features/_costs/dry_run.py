"""What a run would do: which rows are missing, and in which batches they would be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esm2_features._engine import Engine
from esm2_features._model.packing import dedupe


@dataclass(frozen=True)
class DryRun:
    """What `Engine.embed` would do."""

    sequences: int
    unique: int
    missing: int  # different sequences that the cache has not
    device: str = ""  # that would compute; this and the others only if something is missing
    batch_tokens: int = 0  # tokens of a forward pass at most
    batches: int = 0  # forward passes
    tokens: int = 0  # of all forward passes
    download: int | None = None  # bytes of weights; None if they are on this machine


def dry_run(engine: Engine, sequences: object) -> DryRun:
    """Find out what `Engine.embed` would do; nothing is claimed, loaded or written."""
    views = [view for view in engine._views(engine._read(sequences)) if view]
    unique, missing = _missing(engine, views)
    batches = _batches(engine, missing) if missing else {}
    return DryRun(len(views), len(unique), len(missing), **batches)


def _missing(engine: Engine, views: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give the different views, and those that are not in the cache."""
    unique = [views[i] for i in dedupe(views)[0]]
    if engine.cache is None:
        return unique, unique
    complete = np.ones(len(unique), np.bool_)
    for spec in engine._specs(engine._wanted, engine.cache_dtype, None):
        complete &= engine.cache._listed_many(spec, spec.keys(unique))
    return unique, [unique[i] for i in np.flatnonzero(~complete)]


def _batches(engine: Engine, views: Sequence[str]) -> dict[str, Any]:
    """Divide views into batches as the run does; several devices share those of the first."""
    from esm2_features._engine import _vectors_extractor
    from esm2_features._inference.batch_loop import BatchLoop
    from esm2_features._model import devices
    from esm2_features._model.layout import Layout

    device = devices.resolve_device_map(devices.resolve_devices(engine._devices)[0]).home
    dim = engine.checkpoint.architecture.dim
    budget = engine.batch_tokens or devices.default_batch_tokens(device, dim)
    loop = BatchLoop(
        views,
        forward=lambda *_: list,
        bytes_of=_vectors_extractor(engine._computed, dim, engine.cache_dtype).bytes,
        claim=list,
        device=device,
        budget=budget,
        shrunk=lambda _: None,
        progress=lambda _: None,
    )
    plan = loop.plan(range(len(views)))
    layouts = [Layout([views[i] for i in numbers], budget) for numbers in plan]
    passes = [len(batch.positions) for layout in layouts for batch in layout.batches]
    return {
        "device": devices.title_of(device),
        "batch_tokens": budget,
        "batches": len(passes),
        "tokens": sum(passes),
        "download": engine.checkpoint.to_fetch,
    }
