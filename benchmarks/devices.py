"""Several devices, or the workers of a CPU, against one pass at a time: medians of rounds in turn.

    python -m benchmarks.devices
    python -m benchmarks.devices --models t12_35M --devices cuda:0,cuda:1 --rounds 5

Never here: other libraries, what one device could reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.machine import describe
from benchmarks.workloads import workload, write_checkpoint
from esm2_features import Engine
from esm2_features._model.devices import _MOST_WORKERS as MOST_WORKERS


def measure(
    model: str, mix: str, devices: str, *, residues: int, rounds: int, folder: Path
) -> dict[str, object]:
    """Time `Engine.embed` on the first device, one pass at a time, and on all, in turn.

    Parameters
    ----------
    model, mix : str
        As in `benchmarks.workloads`.
    devices : str
        Their names, separated by commas.
    residues : int
        How many the sequences have in total.
    rounds : int
    folder : Path
        For the random checkpoint.

    Returns
    -------
    record : dict
        Residues per second of each way, and whether both gave the same bytes.
    """
    checkpoint = "mini" if model == "mini" else str(write_checkpoint(model, folder))
    sequences = workload(mix, residues)
    ways = {
        "one": (Engine(checkpoint, device=devices.split(",")[0], cache=None), 1),
        "all": (Engine(checkpoint, device=devices, cache=None), MOST_WORKERS),
    }
    found = []
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (engine, workers) in ways.items():
            with patch("esm2_features._model.devices._MOST_WORKERS", workers):
                begun = time.perf_counter()
                vectors = engine.embed(sequences)
            if number:
                seconds[name].append(time.perf_counter() - begun)
            else:  # loads the weights
                found.append(vectors)
    total = sum(map(len, sequences))
    return {
        "model": model,
        "mix": mix,
        "residues": total,
        "residues_per_second": {
            name: round(total / statistics.median(taken)) for name, taken in seconds.items()
        },
        "same_bytes": np.array_equal(*found),
    }


def main() -> None:
    """Measure, and print a line for each model and mix, and one of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="mini,t6_8M,t12_35M")
    parser.add_argument("--mixes", default="peptides,proteome")
    parser.add_argument(
        "--devices", default="cpu", help="the first of them, one pass at a time, and all"
    )
    parser.add_argument("--residues", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    alone = given.devices.split(",")[0]
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models.split(","):
            for mix in given.mixes.split(","):
                record = measure(
                    model,
                    mix,
                    given.devices,
                    residues=given.residues,
                    rounds=given.rounds,
                    folder=Path(folder),
                )
                records.append(record)
                speed = record["residues_per_second"]
                assert isinstance(speed, dict)
                print(
                    f"{model:10} {mix:10} one pass at a time on {alone}: {speed['one']:>8,} "
                    "residues/s   "
                    f"{given.devices}: {speed['all']:>8,}   x {speed['all'] / speed['one']:.2f}   "
                    f"{'same bytes' if record['same_bytes'] else 'OTHER BYTES'}"
                )
    print(json.dumps({"machine": describe(), "devices": given.devices, "records": records}))


if __name__ == "__main__":
    main()
