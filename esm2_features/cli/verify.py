"""``esm2-features verify``: compare this library's network with fair-esm's on the same checkpoint.

fair-esm's network runs every sequence by itself, in float32 on the CPU; ours runs all of them
packed, as `transform` does. All numbers of all layers are compared, and attention and contacts of
the shorter sequences. For ``esm2_t6_8M_UR50D`` there are published values, too, which do not depend
on the fair-esm that is installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esm2_features._checkpoints import Checkpoint, open_checkpoint
from esm2_features._inference.batching import batches
from esm2_features._inference.extractors import Attentions, Contacts, Extractor
from esm2_features._inference.networks import get_networks
from esm2_features._inputs.options import PRECISIONS, names
from esm2_features._inputs.residues import normalise
from esm2_features._model.devices import exact_arithmetic, resolve_device
from esm2_features._model.esm2 import ESM2Network
from esm2_features._model.packing import pack, pack_tokens
from esm2_features._model.reference import Reference
from esm2_features.exceptions import CheckpointError

TOLERANCE = 1e-5
"""float32 passes if |ours - theirs| <= 1e-5 s + 1e-5 |theirs| for every number.

The scale s is 1, or the root mean square of the residue's representation if that is larger. The
last layer is normalised, so s is 1 up to rounding. Before it, numbers can be in the hundreds, and
float32 has seven digits: there, fair-esm's own result is further than 1e-5 from the exact one.
"""

LOGITS_TOLERANCE = 1e-4
"""The same bound for logits, which sum over the width of the model once more."""

MAPS_TOLERANCE = 1e-4
"""The bound for attention and contacts, with s = 1.

Attention is the exponential of products that are large in a trained network: for mini, fair-esm's
float32 is up to 1.5e-5 from its float64.
"""

HALF_PRECISION_TOLERANCE = 0.05
"""Half precisions pass if no residue is off by more than 5 % of its representation's norm.

The bound separates rounding from a fault; it is no measure of quality.
"""

HALF_PRECISION_MAPS_TOLERANCE = 0.5
"""The same bound for rows of attention and contacts.

bfloat16 rounds a score of 50 by up to 0.1, and attention is its exponential: for mini, rows are off
by up to 17 %.
"""

_CRITERION = f"""Allowed: in float32, {TOLERANCE:.0e} (s + |theirs|), where s is the larger of 1
and the rms of the residue's representation; {LOGITS_TOLERANCE:.0e} for logits, attention and
contacts; in half precision, {HALF_PRECISION_TOLERANCE:.0%} of the length of the representation,
and {HALF_PRECISION_MAPS_TOLERANCE:.0%} of that of a row of a map."""

_BATCH_TOKENS = 2048
_LONGEST_MAPS = 200
"""Most residues for which maps are compared: fair-esm holds the maps of all layers at once."""

# One sequence for each possible fault: the shortest one, every letter, unknown letters, masks
# (which change the scale of the embedding), equal lengths, and a long one.
_HUMAN_INSULIN = (
    "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSL"
    "QKRGIVEQCCTSICSLYQLENYCN"
)
DEFAULT_SEQUENCES = (
    "M",
    "ACDEFGHIKLMNPQRSTVWY",
    "MKXBUZOKWVLL",
    "GIGAVLKVLTTGLPALISWIKRKRQQ",
    "GIGAVLKVLTT<mask>LPALISWIKRKRQQ",
    "<mask>" * 3 + "HAEGTFTSDVSSYLEGQAA",
    "HSQGTFTSDYSKYLDSRRAQDFVQWLMNT",
    _HUMAN_INSULIN,
    (_HUMAN_INSULIN * 10)[:1022],
)

_PUBLISHED_MODEL = "esm2_t6_8M_UR50D"
_PUBLISHED_TOLERANCE = 1e-4
# Source: transformers, tests/models/esm/test_modeling_esm.py (Apache-2.0), rows and columns
# 0 to 2 of what facebook/esm2_t6_8M_UR50D gives for these tokens.
_PUBLISHED_LOGITS = (
    (0, 1, 2, 3, 4, 5),
    ((8.9215, -10.5898, -6.4671), (-6.3967, -13.9114, -1.1212), (-7.7812, -13.9516, -3.7406)),
)
_PUBLISHED_REPRESENTATION = (
    (0, 6, 4, 13, 5, 4, 16, 12, 11, 7, 2),
    ((0.1444, 0.5413, 0.3248), (0.3034, 0.0053, 0.3108), (0.3228, -0.2499, 0.3415)),
)


class Difference(NamedTuple):
    """How far one layer is from the reference, over all sequences."""

    precision: str
    # number of the representation, ``"logits"``, ``"attention"``, ``"contacts"``, or one of the
    # published values
    layer: str
    largest: float  # largest absolute difference of two numbers
    relative: float  # largest norm of a residue's difference over that of its representation
    of_tolerance: float  # largest difference over its tolerance; up to 1 passes


class Pair(NamedTuple):
    """Rows of one layer, in this library and in fair-esm."""

    layer: str  # as in `Difference`
    ours: NDArray[np.float32]
    theirs: NDArray[np.float32]
    tolerance: float = TOLERANCE  # in float32
    half: float = HALF_PRECISION_TOLERANCE


@dataclass(frozen=True, slots=True)
class Report:
    """Differences between this library and fair-esm."""

    title: str
    differences: tuple[Difference, ...]

    @property
    def passed(self) -> bool:
        """Whether every difference is within its tolerance."""
        # In this form, NaN does not pass.
        return all(difference.of_tolerance <= 1 for difference in self.differences)

    @property
    def text(self) -> str:
        lines = [
            self.title,
            "",
            f"{'precision':<10} {'layer':>10} {'max abs':>10} {'relative':>10} {'of allowed':>11}",
        ]
        lines += [
            f"{d.precision:<10} {d.layer:>10} {d.largest:>10.2e} {d.relative:>10.2e} "
            f"{d.of_tolerance:>11.1%} {'' if d.of_tolerance <= 1 else ' FAILED'}".rstrip()
            for d in self.differences
        ]
        verdict = "passed" if self.passed else "FAILED"
        lines += ["", f"{verdict}. {_CRITERION}"]
        return "\n".join(lines)


def verify(
    model: str | os.PathLike[str],
    *,
    sequences: Sequence[object] | None = None,
    precisions: str | Sequence[str] = ("float32",),
    device: str = "auto",
) -> Report:
    """Compare every layer with fair-esm's own network on the same checkpoint."""
    checked = names("precisions", precisions, PRECISIONS)
    residues = [
        normalise(sequence, index=i)
        for i, sequence in enumerate(DEFAULT_SEQUENCES if sequences is None else sequences)
    ]
    checkpoint = open_checkpoint(model)
    chosen = resolve_device(device)
    reference = Reference(checkpoint)
    differences: list[Difference] = []
    for precision in checked:
        [network] = get_networks(checkpoint, devices=[str(chosen)], precision=precision)
        pairs = [_layers(network, reference, residues)]
        pairs.append(_maps(network, reference, checkpoint, residues))
        if checkpoint.identity == open_checkpoint(_PUBLISHED_MODEL).identity:
            pairs.append(_published(network))
        worst: dict[str, Difference] = {}
        for pair in chain(*pairs):
            now = _compare(precision, *pair)
            before = worst.setdefault(pair.layer, now)
            # Not max(), which may drop a NaN.
            worst[pair.layer] = Difference(*now[:2], *np.maximum(before[2:], now[2:]).tolist())
        differences += worst.values()
    title = (
        f"{checkpoint.name} on {chosen} against fair-esm: {len(residues)} sequences of "
        f"{min(map(len, residues))} to {max(map(len, residues))} residues"
    )
    return Report(title, tuple(differences))


def _layers(network: ESM2Network, reference: Reference, sequences: Sequence[str]) -> Iterator[Pair]:
    """Run all sequences, ours as `transform` does; yield all layers, and logits."""
    layers = list(range(network.depth + 1))
    for batch in batches([len(sequence) + 2 for sequence in sequences], _BATCH_TOKENS):
        packed = pack([sequences[i] for i in batch])
        rows: dict[str, NDArray[np.float32]] = {}
        with exact_arithmetic(network.device):
            for layer, x_TD in network.representations(packed, layers):
                rows[str(layer)] = x_TD.cpu().numpy()
                if layer == layers[-1] and network.has_head:
                    rows["logits"] = network.logits(x_TD).cpu().numpy()
        stop = 0
        for i in batch:
            start, stop = stop, stop + len(sequences[i]) + 2
            representations, logits = reference(sequences[i], layers)
            theirs = {str(layer): x.numpy() for layer, x in representations.items()}
            theirs["logits"] = logits.numpy()
            for name, ours in rows.items():
                tolerance = LOGITS_TOLERANCE if name == "logits" else TOLERANCE
                yield Pair(name, ours[start:stop], theirs[name], tolerance)


def _maps(
    network: ESM2Network, reference: Reference, checkpoint: Checkpoint, sequences: Sequence[str]
) -> Iterator[Pair]:
    """Yield attention, and contacts if the checkpoint has a regression."""
    short = list(dict.fromkeys(s for s in sequences if len(s) <= _LONGEST_MAPS))
    heads = checkpoint.architecture.heads
    extractors: dict[str, Extractor] = {
        "attention": Attentions(tuple(range(1, network.depth + 1)), heads)
    }
    try:
        regression = checkpoint.contact_regression()
        extractors["contacts"] = Contacts(*regression, heads=heads)
    except CheckpointError:  # there are no contacts to compare
        regression = None
    for batch in batches([len(sequence) + 2 for sequence in short], _BATCH_TOKENS):
        some = [short[i] for i in batch]
        with exact_arithmetic(network.device), torch.inference_mode():
            ours = {name: extractor(network, some)() for name, extractor in extractors.items()}
        for i, sequence in enumerate(some):
            maps: tuple[Any, ...] = reference.maps(sequence, regression)
            for name, theirs in zip(extractors, maps, strict=False):  # contacts may be None
                both = (ours[name][i], theirs.numpy())
                rows, expected = (x.reshape(-1, x.shape[-1]) for x in both)
                yield Pair(name, rows, expected, MAPS_TOLERANCE, HALF_PRECISION_MAPS_TOLERANCE)


def _published(network: ESM2Network) -> Iterator[Pair]:
    for name, (tokens, published) in (
        ("published", _PUBLISHED_REPRESENTATION),
        ("pub.logits", _PUBLISHED_LOGITS),
    ):
        batch = pack_tokens(np.array(tokens, dtype=np.uint8), np.array([len(tokens)]))
        with exact_arithmetic(network.device):
            [(_, x_TD)] = network.representations(batch, [network.depth])
            values = network.logits(x_TD) if name == "pub.logits" else x_TD
        theirs = np.array(published, dtype=np.float32)
        yield Pair(name, values[:3, :3].cpu().numpy(), theirs, _PUBLISHED_TOLERANCE)


def _compare(
    precision: str,
    layer: str,
    ours: NDArray[np.float32],
    theirs: NDArray[np.float32],
    tolerance: float = TOLERANCE,
    half: float = HALF_PRECISION_TOLERANCE,
) -> Difference:
    off = np.abs(ours.astype(np.float64) - theirs)
    length = np.linalg.norm(theirs.astype(np.float64), axis=1)
    # The embedding of a mask is exactly 0 in both networks.
    relative = np.linalg.norm(off, axis=1) / np.maximum(length, np.finfo(np.float32).tiny)
    if precision == "float32":
        scale = np.maximum(1.0, length / np.sqrt(theirs.shape[1]))[:, None]
        share = (off / (tolerance * scale + tolerance * np.abs(theirs))).max()
    else:
        share = relative.max() / half
    return Difference(precision, layer, float(off.max()), float(relative.max()), float(share))
