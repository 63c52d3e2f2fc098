"""A sample of a job, done on this machine in seconds, to know how long the job will take."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from esm2_features._costs.model import Job, Pieces, Range, predicted
from esm2_features._engine import Engine
from esm2_features._inputs.alphabet import MASK
from esm2_features._inputs.views import piece_tokens
from esm2_features.exceptions import InputError

ROUNDS = 3
_SECONDS = 2.0
"""That a round takes by the table: enough to be measured, and not to be waited for."""
_FEWEST_TOKENS = 512
_LONGEST_SECONDS = 10.0
"""After which no other round is begun."""


def rehearse(
    model: str | os.PathLike[str], job: Job, sample: Sequence[str], **options: Any
) -> Range:
    """Time a few rounds over some sequences, without a cache."""
    if not sample:
        raise InputError("There is no sequence that can be embedded, and so nothing to measure.")
    engine = Engine(model, device=_device(job.device), cache=None, **options)
    if engine.checkpoint.to_fetch is not None:
        raise InputError(
            f"The weights of {engine.checkpoint.name} are not on this machine, so that nothing can "
            "be measured. Leave --measure out, or bring them here first."
        )
    some, expected = _chosen(job, sample, engine)
    spelled = [sequence.replace(MASK, "<mask>") for sequence in some]
    engine.embed(spelled[:4])  # weights are loaded, threads started
    rounds: list[float] = []
    while len(rounds) < ROUNDS and sum(rounds) < _LONGEST_SECONDS:
        start = time.perf_counter()
        engine.embed(spelled)
        rounds.append(time.perf_counter() - start)
    low, middle, high = min(rounds), sorted(rounds)[len(rounds) // 2], max(rounds)
    return Range(low / expected, middle / expected, high / expected)


def _device(name: str) -> str:
    if name == "cpu":
        return name
    from esm2_features._costs.dry_run import is_called
    from esm2_features._model.devices import resolve_device, title_of

    title = title_of(resolve_device("cuda"))
    if not is_called(title, name):
        raise InputError(
            f"Got device={name!r} and --measure, but the card of this machine is {title}. Leave "
            "one of the two out."
        )
    return "cuda"


def _chosen(job: Job, sample: Sequence[str], engine: Engine) -> tuple[list[str], float]:
    """Take sequences until they should take some seconds: these, and how long they should."""
    chosen: list[str] = []
    tokens: list[int] = []
    expected = 0.0
    for sequence in dict.fromkeys(sample):  # equal ones would be computed once
        chosen.append(sequence)
        tokens += piece_tokens(len(sequence), engine.policy.window(sequence))
        part = replace(job, pieces=Pieces.of(tokens), sequences=len(chosen), unique=len(chosen))
        expected = predicted(part)
        if expected > _SECONDS and sum(tokens) >= _FEWEST_TOKENS:
            break
    return chosen, expected
