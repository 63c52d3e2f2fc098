"""Several workers on one machine against one: speed, as medians of interleaved rounds.

On a machine without cards, the devices are workers that divide the cores of the CPU.

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

import numpy as np

from benchmarks.machine import describe
from benchmarks.workloads import workload, write_checkpoint
from esm2_features import Engine


def measure(
    model: str, mix: str, places: dict[str, str], *, residues: int, rounds: int, folder: Path
) -> dict[str, object]:
    """Time `Engine.embed` in several places, in turn.

    Parameters
    ----------
    model, mix : str
        As in `benchmarks.workloads`.
    places : dict of str to str
        What each is called, and what is passed as ``device``.
    residues : int
        How many the sequences have in total.
    rounds : int
    folder : Path
        For the random checkpoint.

    Returns
    -------
    record : dict
        Residues per second of each place, and whether all gave the same bytes.
    """
    checkpoint = "mini" if model == "mini" else str(write_checkpoint(model, folder))
    sequences = workload(mix, residues)
    engines = {
        name: Engine(checkpoint, device=device, cache=None) for name, device in places.items()
    }
    found = {name: engine.embed(sequences) for name, engine in engines.items()}
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(rounds):
        for name, engine in engines.items():
            begun = time.perf_counter()
            engine.embed(sequences)
            seconds[name].append(time.perf_counter() - begun)
    total = sum(map(len, sequences))
    first, *others = found.values()
    return {
        "model": model,
        "mix": mix,
        "residues": total,
        "residues_per_second": {
            name: round(total / statistics.median(taken)) for name, taken in seconds.items()
        },
        "same_bytes": all(np.array_equal(first, other) for other in others),
    }


def main() -> None:
    """Measure, and print a line for each model and mix, and one of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="mini,t6_8M,t12_35M")
    parser.add_argument("--mixes", default="peptides,proteome")
    parser.add_argument("--devices", default="cpu,cpu", help="the first of them alone, and all")
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
                    {"one": alone, "all": given.devices},
                    residues=given.residues,
                    rounds=given.rounds,
                    folder=Path(folder),
                )
                records.append(record)
                speed = record["residues_per_second"]
                assert isinstance(speed, dict)
                print(
                    f"{model:10} {mix:10} {alone}: {speed['one']:>8,} residues/s   "
                    f"{given.devices}: {speed['all']:>8,}   x {speed['all'] / speed['one']:.2f}   "
                    f"{'same bytes' if record['same_bytes'] else 'OTHER BYTES'}"
                )
    print(json.dumps({"machine": describe(), "devices": given.devices, "records": records}))


if __name__ == "__main__":
    main()
