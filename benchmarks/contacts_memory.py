"""How much memory contacts take: this library next to fair-esm, on the same random weights.

Each measurement is a process of its own. Counted is what the resident memory rises to above what
it is when the weights are loaded and one short sequence has gone through.

    python benchmarks/contacts_memory.py
    python benchmarks/contacts_memory.py --quick

Never here: time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from esm.model.esm2 import ESM2

from esm2_features._checkpoints.catalogue import OFFICIAL
from esm2_features._inference.extractors import Contacts
from esm2_features._inputs.alphabet import CANONICAL_RESIDUES, encode
from esm2_features._model.esm2 import ESM2Network

WHICH = ("fair-esm", "esm2_features")


def status(field: str) -> int:
    """Read a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(which: str, model: str, residues: int, file: str) -> int:
    """Write the contacts of one random protein, and say what memory they took."""
    shape = OFFICIAL[model].architecture
    torch.manual_seed(0)
    theirs = ESM2(shape.layers, shape.dim, shape.heads, alphabet="ESM-1b").eval()
    rng = np.random.default_rng(0)
    protein = "".join(rng.choice(list(CANONICAL_RESIDUES), residues))
    if which == "fair-esm":

        def contacts(sequence: str) -> np.ndarray:
            with torch.no_grad():
                tokens = torch.from_numpy(encode(sequence)).long()[None]
                return theirs.predict_contacts(tokens)[0].numpy()

    else:
        head = theirs.contact_head.regression
        regression = head.weight.detach().clone(), head.bias.detach().clone()
        state = {
            name: tensor
            for name, tensor in theirs.state_dict().items()
            if name != "lm_head.weight" and not name.startswith("contact_head.")
        }
        del theirs, head
        network = ESM2Network(model, shape, state, torch.device("cpu"), "float32")
        reader = Contacts(*regression, heads=shape.heads)

        def contacts(sequence: str) -> np.ndarray:
            with torch.inference_mode():
                return reader(network, [sequence])()[0]

    contacts("MKTAYIAKQR")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    found = contacts(protein)
    peak = status("VmHWM") - before
    np.save(file, found)
    return peak


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model and a short protein")
    parser.add_argument("--one", nargs=4, metavar=("WHICH", "MODEL", "RESIDUES", "FILE"))
    arguments = parser.parse_args()
    if arguments.one:
        which, model, residues, file = arguments.one
        print(measure(which, model, int(residues), file))
        return
    model = "esm2_t6_8M_UR50D" if arguments.quick else "esm2_t33_650M_UR50D"
    print(f"{model}, random weights, float32, CPU; peak memory above the loaded weights\n")
    print("| residues | fair-esm | esm2_features | share | largest difference of a probability |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    for residues in [60] if arguments.quick else [300, 1000]:
        peaks, found = [], []
        with tempfile.TemporaryDirectory() as folder:
            for which in WHICH:
                file = str(Path(folder) / f"{which}.npy")
                command = [sys.executable, __file__, "--one", which, model, str(residues), file]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(int(done.stdout.splitlines()[-1]))
                found.append(np.load(file))
        theirs, ours = peaks
        print(
            f"| {residues} | {theirs / 1e6:.0f} MB | {ours / 1e6:.0f} MB | {ours / theirs:.1%} "
            f"| {np.abs(found[0] - found[1]).max():.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
