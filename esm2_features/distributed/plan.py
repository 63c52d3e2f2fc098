"""`plan_shards`: what `embed_shards` would do, found out without computing and writing."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import Any

from esm2_features._inputs.policy import TruncationCounter
from esm2_features.distributed.embed import embed_shards
from esm2_features.distributed.preparation import prepare
from esm2_features.distributed.worker import ShardWorker

_BYTES_OF = {"float32": 4, "float16": 2}


@dataclass
class ShardPlan:
    """What a job would do."""

    inputs: int  # files
    present: int = 0  # finished shards
    missing: int = 0  # shards that would be computed
    failed: int = 0  # shards, or ends of inputs, that would be set aside
    invalid: int = 0  # records that would be set aside, those of finished shards included
    sequences: int = 0  # of the missing shards
    residues: int = 0
    width: int = 0  # numbers of a row
    bytes: int = 0  # of the missing vectors
    download: int | None = None  # bytes of weights; None if none are needed, or they are here


def plan_shards(inputs: Any, output: Any, **parameters: Any) -> ShardPlan:
    """Find out what `embed_shards` would do with the same arguments; raises its errors."""
    defaults = {name: one.default for name, one in signature(embed_shards).parameters.items()}
    arguments = defaults | {"inputs": inputs, "output": output} | parameters
    job, settings, engine = prepare(arguments, is_dry_run=True)
    worker, table = ShardWorker(settings, engine), settings.table
    plan = ShardPlan(len(job.sources), width=len(table.vectors) * table.dim)
    for task in job.tasks(arguments["progress"] or (lambda _: None)):
        records = task.records
        errors = dict(records.errors)
        is_readable = records.error is None
        checked = worker.checked(records, errors, TruncationCounter()) if is_readable else {}
        if not checked or (errors and settings.set_aside == "shard"):
            plan.failed += 1
            continue
        plan.missing += 1
        plan.invalid += len(errors)
        plan.sequences += len(checked)
        plan.residues += sum(len(sequence) for sequence, _ in checked.values())
    plan.present = job.n_present
    plan.failed += len(job.unread)
    plan.invalid += len(job.invalid)
    plan.bytes = plan.sequences * plan.width * _BYTES_OF[table.dtype]
    if plan.missing and arguments["endpoint"] is None:
        plan.download = engine.checkpoint.to_fetch
    return plan
