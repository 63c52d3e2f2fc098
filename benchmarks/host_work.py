"""Processor time that a run costs besides the network: reading, packing, the cache.

The network and pooling are replaced by constant rows, as if a card computed in no time; what is
left is what the host has to do while a card computes. The last line is JSON.

    python -m benchmarks.host_work
    python -m benchmarks.host_work --quick
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from unittest import mock

import numpy as np
import torch

from esm2_features import ESM2Transformer
from esm2_features._inference import extractors
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.layout import Segment
from esm2_features._model.packing import Batch

_WIDTH = 192  # of `mini`
_BATCH_TOKENS = 1 << 16


def _sequences(lengths: np.ndarray, rng: np.random.Generator) -> list[str]:
    letters = np.array(list(CANONICAL_RESIDUES))
    return ["".join(rng.choice(letters, n)) for n in lengths]


def _run(
    _: ESM2Network, batches: Sequence[Batch], layers: Collection[int], *__: object
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Give rows that nobody computed."""
    for layer in layers:
        yield layer, [torch.empty(len(batch.positions), _WIDTH) for batch in batches]


def _pool(_: torch.Tensor, segments: Sequence[Segment], *__: object) -> torch.Tensor:
    return torch.zeros(sum(len(one.members) for one in segments), _WIDTH)


def seconds(sequences: Sequence[str], *, with_cache: bool) -> float:
    """Measure the processor time of one run, without what was computed or kept before."""
    with tempfile.TemporaryDirectory() as folder:
        model = ESM2Transformer(
            "mini", cache=folder if with_cache else None, batch_tokens=_BATCH_TOKENS
        )
        model.fit(sequences[:1]).transform(["MKT"])
        start = time.process_time()
        model.transform(sequences)
        return time.process_time() - start


def main() -> None:
    """Measure, print a table, and end with JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sequences, one round")
    given = parser.parse_args()
    share, rounds = (10, 1) if given.quick else (1, given.rounds)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    mixes = {
        "20,000 peptides": rng.integers(5, 51, 20_000 // share),
        "4,400 proteins": rng.lognormal(5.6, 0.6, 4400 // share).astype(int).clip(30, 1022),
    }
    report = {}
    with mock.patch.object(ESM2Network, "run", _run), mock.patch.object(extractors, "pool", _pool):
        for name, lengths in mixes.items():
            sequences = _sequences(lengths, rng)
            for with_cache in (False, True):
                of_rounds = [seconds(sequences, with_cache=with_cache) for _ in range(rounds)]
                label = f"{name}, {'with' if with_cache else 'without'} a cache"
                million = 1e6 * statistics.median(of_rounds) / lengths.sum()
                report[label] = round(million, 3)
                print(f"{label}: {million:.3f} s per million residues")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
