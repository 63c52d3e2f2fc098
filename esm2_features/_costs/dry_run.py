"""What a run would do, found out without doing it: which rows are missing, in which batches.

It goes the way of `Run._rows` up to the forward pass: the same checks, keys, look-ups and batches.
Nothing is claimed, loaded or written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from esm2_features._costs.model import CARDS, Estimate, Job, Pieces, estimate
from esm2_features._engine import Engine
from esm2_features._inference.batching import BatchPlan
from esm2_features._inputs.containers import single_column
from esm2_features._inputs.views import distinct_sequences, parse, piece_tokens
from esm2_features.exceptions import InputError


@dataclass(frozen=True)
class Batches:
    """How what is missing would go through the network."""

    device: str  # where
    budget: int  # tokens of a batch at most
    passes: int  # forward passes
    tokens: int  # of all of them
    filler: int  # rows that belong to no sequence, by which passes are rounded up
    padded: int  # tokens, if each batch were padded to its longest sequence instead
    padded_as_given: int  # tokens, if the batches were made in the order of the input as well


@dataclass(frozen=True)
class Preview:
    """What a run would do."""

    # rows; different ones; those of them that the cache has; those that would be computed
    sequences: int
    # rows; different ones; those of them that the cache has; those that would be computed
    unique: int
    # rows; different ones; those of them that the cache has; those that would be computed
    cached: int
    # rows; different ones; those of them that the cache has; those that would be computed
    missing: int
    batches: Batches | None  # none if nothing is missing
    # of what is missing; None if nothing is, or nothing is known of the device
    estimate: Estimate | None
    unknown: str | None  # why there is no estimate, though something is missing
    # bytes of weights that would be fetched first; None if they are here, or not needed
    download: int | None


def preview(engine: Engine, sequences: object) -> Preview:
    """Find out what `Engine.embed` would do."""
    views = engine.policy.views(engine.policy.normalise(single_column(sequences, owner="Engine")))
    plan = engine.runner.plan(views, engine.columns)
    unique, missing = plan.unique, plan.missing
    found = Preview(
        sequences=len(views),
        unique=len(unique),
        cached=len(unique) - len(missing),
        missing=len(missing),
        batches=None,
        estimate=None,
        unknown=None,
        download=None,
    )
    return found if plan.batches is None else _with_batches(engine, found, missing, plan.batches)


def _with_batches(engine: Engine, found: Preview, views: Sequence[str], plan: BatchPlan) -> Preview:
    """Go on to the batches, for which the device is asked, as in a run."""
    from esm2_features._model.devices import (
        cores_of_cpu,
        resolve_device_map,
        title_of,
    )
    from esm2_features._model.esm2 import ROWS_STEP
    from esm2_features._model.layout import Layout

    places, budget = plan.devices, plan.budget
    device = resolve_device_map(places[0]).home
    tokens, filler, padded, count = list[int](), 0, 0, 0
    for some in plan.batches:
        for batch in Layout(some, budget).batches:
            lengths = [group.tokens for group in batch.groups for _ in range(group.count)]
            tokens += lengths
            padded += max(lengths) * len(lengths)
            filler += -len(batch.positions) % ROWS_STEP if device.type == "cpu" else 0
            count += 1
    batches = Batches(
        device=title_of(device),
        budget=budget,
        passes=count,
        tokens=sum(tokens),
        filler=filler,
        padded=padded,
        padded_as_given=_padded_as_given(_lengths(views), budget),
    )
    figures, unknown = None, None
    try:
        if len(places) > 1 or "+" in places[0]:
            raise InputError("How long several devices claim together is not known.")
        figures = estimate(_job(engine, found, views, tokens, batches.device, cores_of_cpu()))
    except InputError as error:
        unknown = str(error)
    return replace(
        found,
        batches=batches,
        estimate=figures,
        unknown=unknown,
        download=engine.checkpoint.to_fetch,
    )


def _job(
    engine: Engine,
    found: Preview,
    views: Sequence[str],
    tokens: Sequence[int],
    device: str,
    cores: int,
) -> Job:
    names = ["cpu"] if device == "cpu" else [key for key in CARDS if is_called(device, key)]
    if not names:
        raise InputError(f"Nothing is known of the speed of {device}.")
    pieces = Pieces.of(tokens)
    layers = [layer for layer, _ in engine.columns.computed]
    with_maps = any(pooling == "parti" for _, pooling in engine.columns.computed)
    return Job(
        architecture=engine.checkpoint.architecture,
        precision=engine.precision,
        device=names[0],
        pieces=pieces,
        sequences=found.sequences,
        unique=len(views),
        longest=int(pieces.tokens.max()),
        text_bytes=sum(map(len, views)),
        columns=len(engine.columns.wanted),
        blocks=engine.checkpoint.architecture.layers if with_maps else max(layers),
        cores=cores,
    )


def is_called(title: str, key: str) -> bool:
    """Tell whether a card, by the name that its driver gives it, is one that can be estimated."""
    return re.search(rf"\b{key}\b", title, re.IGNORECASE) is not None


def _padded_as_given(tokens: Sequence[int], budget: int) -> int:
    """Count the tokens of batches that are filled in this order and padded to their longest."""
    total = longest = count = 0
    for each in tokens:
        if count and max(longest, each) * (count + 1) > budget:
            total += longest * count
            longest = count = 0
        longest, count = max(longest, each), count + 1
    return total + longest * count


def _lengths(views: Sequence[str]) -> list[int]:
    """List the tokens of what goes through the network, in the order of the input."""
    found: list[int] = []
    for sequence, window in distinct_sequences([parse(view) for view in views]):
        found += piece_tokens(len(sequence), window)
    return found
