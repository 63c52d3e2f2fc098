"""What the process of a contender does: load, warm up, choose a budget, and embed when told to.

Where a peer leaves a choice open, it is made in the peer's favour: tokens are looked up in a table,
and fair-esm's tuned way computes no logits.

Never here: the order of rounds, statistics, tables.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from benchmarks._contenders import BASELINE, OURS, Contender, Job
from benchmarks._esm_cpp import open_esm_cpp
from benchmarks._hugging_face import open_onnxruntime, open_openvino, open_transformers
from benchmarks._padding import Embed, Vectors, embed_padded
from benchmarks.machine import Stopwatch, forget_peak_memory, peak_memory

CLEARLY_WORSE = 1.5
"""Of times of one job in two ways; what a busy machine adds by chance is less."""

# ---------------------------------------------------------------- libraries


def _open_ours(contender: Contender, job: Job) -> Embed:
    from esm2_features import Engine

    engine = Engine(job.checkpoint, precision=contender.precision, device=job.device, cache=None)
    return lambda sequences, _: engine.embed(sequences)


def _open_fair_esm(contender: Contender, job: Job) -> Embed:
    from esm import pretrained

    # torch refuses the settings in fair-esm's files unless it is told that they are harmless.
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = pretrained.load_model_and_alphabet_local(job.checkpoint)
    model.eval().to(job.device)
    layers, dim, _ = job.shape
    if contender == BASELINE:
        return lambda sequences, _: _extract(model, alphabet, sequences, job.device)
    model.lm_head = torch.nn.Identity()

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return model(tokens.to(job.device), repr_layers=[layers])["representations"][layers]

    return partial(embed_padded, forward, dim)


def _extract(model: Any, alphabet: Any, sequences: Sequence[str], device: str) -> Vectors:
    """Do what fair-esm's scripts/extract.py does for ``--include mean``, without its files."""
    from esm import FastaBatchedDataset

    dataset = FastaBatchedDataset([str(i) for i in range(len(sequences))], sequences)
    loader = torch.utils.data.DataLoader(
        dataset,
        collate_fn=alphabet.get_batch_converter(1022),
        batch_sampler=dataset.get_batch_indices(4096, extra_toks_per_seq=1),
    )
    layer = model.num_layers
    vectors = np.empty((len(sequences), model.embed_dim), np.float32)
    with torch.no_grad():
        for labels, strings, tokens in loader:
            out = model(tokens.to(device), repr_layers=[layer], return_contacts=False)
            out["logits"].to(device="cpu")
            representations = out["representations"][layer].to(device="cpu")
            for row, (label, string) in enumerate(zip(labels, strings, strict=True)):
                residues = representations[row, 1 : min(1022, len(string)) + 1]
                vectors[int(label)] = residues.mean(0).numpy()
    return vectors


_OPENERS: dict[str, Callable[[Contender, Job], Embed]] = {
    OURS: _open_ours,
    "fair-esm": _open_fair_esm,
    "transformers": open_transformers,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "esm-cpp": open_esm_cpp,
}

# ------------------------------------------------------------- in its process


def work(connection: Connection, contender: Contender, job: Job, budget: int | None = None) -> None:
    """Load, warm up, choose a token budget, and then embed at every word ``"go"``.

    Parameters
    ----------
    connection : Connection
        It gets one ``dict`` when all is ready, and one after each run. One that has the key
        ``failed`` says why there will be no other. None from the other side is the end.
    contender : Contender
    job : Job
    budget : int, optional
        In tokens, if it has been chosen before.
    """
    silence()
    try:
        torch.set_num_threads(job.threads)
        with Stopwatch() as loading:
            embed = _OPENERS[contender.library](contender, job)
            embed(list(job.sequences[:4]), None)
        loaded = {"load_seconds": loading.seconds, "load_peak_bytes": peak_memory(job.device)}
        if budget is None and contender.setting == "tuned":
            budget = _best_budget(embed, job)
        connection.send({**loaded, "budget": budget})
        while connection.recv() is not None:
            connection.send(_run(embed, job, budget))
    except EOFError:  # nobody asks any more
        pass
    except Exception as error:  # of any library: it is for the table to say
        lines = str(error).strip().splitlines() or [""]
        connection.send({"failed": f"{type(error).__name__}: {lines[0][:200]}"})


def _run(embed: Embed, job: Job, budget: int | None) -> dict[str, Any]:
    sequences = list(job.sequences)
    forget_peak_memory(job.device)
    with Stopwatch() as watch:
        vectors = embed(sequences, budget)
    return {
        "seconds": watch.seconds,
        "foreign": watch.foreign,
        "peak_bytes": peak_memory(job.device),
        "vectors": vectors,
    }


def _best_budget(embed: Embed, job: Job) -> int:
    """Take the token budget whose better time of two is best on the first sequences.

    Budgets are tried from small to large until one is clearly worse than the best: time first falls
    as passes fill the machine, and then rises as padding and memory grow. Those that are clearly
    worse have no second time.
    """
    total = np.cumsum([len(sequence) for sequence in job.sequences])
    some = list(job.sequences[: int(np.searchsorted(total, job.probe_residues)) + 1])
    times: dict[int, float] = {}
    for budget in job.budgets:
        times[budget] = _seconds(embed, some, budget)
        if times[budget] > CLEARLY_WORSE * min(times.values()):
            break
    for budget in [one for one in times if times[one] <= CLEARLY_WORSE * min(times.values())]:
        times[budget] = min(times[budget], _seconds(embed, some, budget))
    return min(times, key=times.__getitem__)


def _seconds(embed: Embed, sequences: Sequence[str], budget: int) -> float:
    start = time.perf_counter()
    embed(sequences, budget)
    return time.perf_counter() - start


def silence() -> None:
    """Send to stderr what libraries print: stdout is for the result."""
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
