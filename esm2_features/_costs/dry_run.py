"""What a run would do: which rows are missing, and in which batches they would be computed."""

from __future__ import annotations

from dataclasses import dataclass

from esm2_features._engine import Engine


@dataclass(frozen=True)
class DryRun:
    """What `Engine.embed` would do."""

    sequences: int
    unique: int
    missing: int  # different sequences that the cache has not
    device: str = ""  # that would compute; this and the others only if something is missing
    batch_tokens: int = 0  # tokens at a time at most
    batches: int = 0  # forward passes
    tokens: int = 0  # of all forward passes
    download: int | None = None  # bytes of weights; None if they are on this machine


def dry_run(engine: Engine, sequences: object) -> DryRun:
    """Find out what `Engine.embed` would do; nothing is claimed, loaded or written."""
    views = engine.policy.column_views(sequences, owner="Engine")
    plan = engine.runner.plan(views, engine.columns)
    counts = len(views), len(plan.unique), len(plan.missing)
    if plan.batches is None:
        return DryRun(*counts)
    from esm2_features._model.devices import resolve_device_map, title_of
    from esm2_features._model.layout import Layout

    batches, budget, devices = plan.batches
    layouts = (Layout(some, budget) for some in batches)
    passes = [len(batch.positions) for layout in layouts for batch in layout.batches]
    device = title_of(resolve_device_map(devices[0]).home)
    return DryRun(*counts, device, budget, len(passes), sum(passes), engine.checkpoint.to_fetch)
