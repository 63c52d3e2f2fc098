"""`verify`: how far this library's network and fair-esm's are from the same network in float64.

fair-esm's network runs every sequence by itself on the CPU, in float64 and in float32; ours runs
all of them packed, as `transform` does. All numbers of all layers are compared, and attention and
contacts of the shorter sequences. For ``esm2_t6_8M_UR50D`` there are published values, too, which
do not depend on the fair-esm that is installed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm2_features._checkpoints import Checkpoint, open_checkpoint
from esm2_features._checkpoints.checkpoint import NoContactRegressionError
from esm2_features._inference.batching import batches
from esm2_features._inference.networks import get_networks
from esm2_features._inputs.options import PRECISIONS, names
from esm2_features._inputs.residues import normalise
from esm2_features._model.packing import pack, pack_tokens
from esm2_features.exceptions import InputError

if TYPE_CHECKING:
    from esm2_features._inference.extractors import Extractor
    from esm2_features._model.esm2 import ESM2Network
    from esm2_features._model.reference import Reference, Rows

ALLOWED_RMS = 1.25
"""Root mean square of our distances from float64 over that of fair-esm's float32, at most."""

ALLOWED_LARGEST = 2.0
"""The same ratio for the largest distance of a residue.

It is a ratio of two single numbers. Where a residue magnifies every rounding, chance decides which
of them is larger: fair-esm's largest distance changes by up to this factor when the channels of
the same network are put into another order.
"""

ALLOWED_HALF = {"bfloat16": (0.1, 0.5), "float16": (0.0125, 0.1)}
"""Largest distance of a residue over the size of its representation, and the same for a row of a
map, which bounds rounding from faults. They are no measure of quality."""

_CRITERION = f"""A distance is the root mean square of the differences of a residue's numbers, or
of those in a row of a map, from fair-esm's network in float64. Allowed: in float32,
{ALLOWED_RMS} times the rms of fair-esm's float32, and {ALLOWED_LARGEST:g} times its largest;
in half precision, shares of the rms of the residue (bfloat16 {ALLOWED_HALF["bfloat16"][0]:.0%}, \
float16 {ALLOWED_HALF["float16"][0]:.2%}) or of the
row of a map (bfloat16 {ALLOWED_HALF["bfloat16"][1]:.0%}, \
float16 {ALLOWED_HALF["float16"][1]:.0%})."""

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


_HALF_UNIT = 2.0**-24
"""Largest error of rounding a number to float32, as a share of it."""

_MAPS = ("attention", "contacts")


class VerifiedLayer(NamedTuple):
    """One row of a `Verification`.

    A distance is the root mean square of the differences of a residue's numbers from those of
    fair-esm's network in float64.

    Attributes
    ----------
    precision : str
        Arithmetic of this library.
    layer : str
        Number of a representation, ``"logits"``, ``"attention"``, ``"contacts"``, or
        ``"published"`` and ``"pub.logits"`` for published values.
    theirs_largest : float
        Largest distance of a residue in fair-esm's float32; NaN for published values.
    theirs_rms : float
        Root mean square of these distances.
    ours_largest : float
        Largest distance of a residue in this library, at this precision.
    ours_rms : float
        Root mean square of these distances.
    of_allowed : float
        Share of what is allowed; up to 1 passes.
    """

    precision: str
    layer: str
    theirs_largest: float
    theirs_rms: float
    ours_largest: float
    ours_rms: float
    of_allowed: float


@dataclass
class _Distances:
    """Distances of rows from the exact ones."""

    largest: float = 0.0
    largest_share: float = 0.0  # of the size of the row
    largest_size: float = 0.0
    squares: float = 0.0
    sizes: float = 0.0
    rows: int = 0

    def add(self, found: NDArray[Any], exact: NDArray[np.float64]) -> None:
        squares, sizes = ((found - exact) ** 2).mean(1), (exact**2).mean(1)
        # The embedding of a mask is exactly 0.
        shares = squares / np.maximum(sizes, np.finfo(np.float64).tiny)
        # np.maximum keeps NaN, which must not pass.
        self.largest = float(np.maximum(self.largest, np.sqrt(squares.max())))
        self.largest_share = float(np.maximum(self.largest_share, np.sqrt(shares.max())))
        self.largest_size = max(self.largest_size, float(np.sqrt(sizes.max())))
        self.squares += float(squares.sum())
        self.sizes += float(sizes.sum())
        self.rows += len(squares)

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.squares / self.rows))

    def of_allowed(self, theirs: _Distances) -> float:
        """Give the share of what float32 is allowed, where fair-esm has these distances."""
        # Where fair-esm is exact by chance, the rounding of the result itself is allowed.
        rms = max(theirs.rms, _HALF_UNIT * float(np.sqrt(self.sizes / self.rows)))
        largest = max(theirs.largest, _HALF_UNIT * self.largest_size)
        shares = self.rms / (ALLOWED_RMS * rms), self.largest / (ALLOWED_LARGEST * largest)
        return float(np.maximum(*shares))


@dataclass(frozen=True)
class Verification:
    """What `verify` has found; ``print`` shows it as a table.

    Attributes
    ----------
    title : str
        Model, device and sequences.
    rows : tuple of VerifiedLayer
        Distances by precision and layer.
    """

    title: str
    rows: tuple[VerifiedLayer, ...] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether every row is within what is allowed (bool)."""
        # In this form, NaN does not pass.
        return all(row.of_allowed <= 1 for row in self.rows)

    def __str__(self) -> str:
        heads = ("precision", "layer", "fair-esm max", "rms", "ours max", "rms", "of allowed")
        widths = (10, 10, 13, 9, 9, 9, 11)
        lines = [self.title, "", " ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]
        for row in self.rows:
            numbers = (row.theirs_largest, row.theirs_rms, row.ours_largest, row.ours_rms)
            cells = [
                row.precision,
                row.layer,
                *("-" if np.isnan(x) else f"{x:.1e}" for x in numbers),
            ]
            cells.append(f"{row.of_allowed:.0%}")
            text = " ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))
            lines.append(text if row.of_allowed <= 1 else f"{text} FAILED")
        return "\n".join([*lines, "", f"{'passed' if self.passed else 'FAILED'}. {_CRITERION}"])


def verify(
    model: str | os.PathLike[str],
    *,
    sequences: Sequence[object] | None = None,
    precisions: str | Sequence[str] = ("float32",),
    device: str = "auto",
) -> Verification:
    """Measure how far this library and fair-esm are from exact numbers, layer by layer.

    Exact numbers are those of fair-esm's network computed in float64. It and fair-esm's float32 run
    on the CPU, which takes 12 bytes of memory for each parameter of the model.

    Parameters
    ----------
    model : str or path
        Name of a model or path of a checkpoint, as for `ESM2Transformer`. A checkpoint without
        a language-model head has no logits to compare, and one without a contact regression no
        contacts.
    sequences : sequence of str, optional
        Sequences to compare besides nine that cover all letters, masks, and 1 to 1022 residues:
        the errors of a few residues alone are a matter of chance. Attention and contacts are
        compared for sequences of up to 200 residues.
    precisions : str or sequence of str, default="float32"
        Any of "float32", "bfloat16" and "float16".
    device : str, default="auto"
        Where this library's network runs.

    Returns
    -------
    verification : Verification
        ``passed`` says whether all is within what is allowed; ``rows`` has the distances, and
        ``print(verification)`` shows them as a table.

    Raises
    ------
    MissingDependencyError
        If the package fair-esm is not installed.
    CheckpointError
        If the checkpoint is not an ESM-2 network.
    InputError
        If a sequence or a precision is not valid.
    TypeError
        If a sequence is not a string.

    References
    ----------
    Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a language
    model", Science 379 (2023), and its reference code, the package fair-esm 2.0.0.

    Examples
    --------
    >>> from esm2_features import verify
    >>> verification = verify("mini", sequences=["MKTAYIAKQR", "GG"], device="cpu")
    >>> verification.passed
    True
    >>> [row.layer for row in verification.rows]
    ['0', '1', '2', '3', '4', '5', '6', 'logits', 'attention']
    """
    import torch

    from esm2_features._model.devices import resolve_device
    from esm2_features._model.reference import Reference

    checked = names("precisions", precisions, PRECISIONS)
    given = [normalise(sequence, index=i) for i, sequence in enumerate(sequences or ())]
    if sequences is not None and not given:
        raise InputError("There are no sequences to compare: sequences is empty.")
    residues = [*(normalise(one, index=0) for one in DEFAULT_SEQUENCES), *given]
    checkpoint = open_checkpoint(model)
    chosen = resolve_device(device)
    networks = {
        precision: get_networks(checkpoint, devices=[str(chosen)], precision=precision)[0]
        for precision in checked
    }
    references = Reference(checkpoint, torch.float64), Reference(checkpoint)
    theirs: dict[str, _Distances] = defaultdict(_Distances)
    ours: dict[str, dict[str, _Distances]] = {p: defaultdict(_Distances) for p in checked}
    for found, (exact, float32) in chain(
        _layers(networks, references, residues), _maps(networks, references, checkpoint, residues)
    ):
        for layer, expected in exact.items():
            theirs[layer].add(float32[layer], expected)
            for precision, rows in found.items():
                ours[precision][layer].add(rows[layer], expected)
    results = [
        _row(precision, layer, distances, theirs[layer])
        for precision, by_layer in ours.items()
        for layer, distances in by_layer.items()
    ]
    if checkpoint.identity == open_checkpoint(_PUBLISHED_MODEL).identity:
        results += [row for one in checked for row in _published(one, networks[one])]
    title = (
        f"{checkpoint.name} on {chosen}: {len(residues)} sequences of "
        f"{min(map(len, residues))} to {max(map(len, residues))} residues"
    )
    return Verification(title, tuple(results))


def _row(precision: str, layer: str, ours: _Distances, theirs: _Distances) -> VerifiedLayer:
    if precision == "float32":
        of_allowed = ours.of_allowed(theirs)
    else:
        of_allowed = ours.largest_share / ALLOWED_HALF[precision][layer in _MAPS]
    distances = theirs.largest, theirs.rms, ours.largest, ours.rms
    return VerifiedLayer(precision, layer, *distances, of_allowed)


def _layers(
    networks: Mapping[str, ESM2Network], references: Sequence[Reference], sequences: Sequence[str]
) -> Iterator[tuple[dict[str, Rows], list[Rows]]]:
    """Yield the layers and logits of each sequence: ours by precision, then the references'."""
    from esm2_features._model.devices import exact_arithmetic

    for batch in batches([len(sequence) + 2 for sequence in sequences], _BATCH_TOKENS):
        packed = pack([sequences[i] for i in batch])
        found: dict[str, Rows] = {precision: {} for precision in networks}
        for precision, network in networks.items():
            with exact_arithmetic(network.device):
                for layer, x_TD in network.representations(packed, range(network.depth + 1)):
                    found[precision][str(layer)] = x_TD.cpu().numpy()
                    if layer == network.depth and network.has_head:
                        found[precision]["logits"] = network.logits(x_TD).cpu().numpy()
        stop = 0
        for i in batch:
            start, stop = stop, stop + len(sequences[i]) + 2
            yield (
                {p: {name: x[start:stop] for name, x in rows.items()} for p, rows in found.items()},
                [reference.layers(sequences[i]) for reference in references],
            )


def _maps(
    networks: Mapping[str, ESM2Network],
    references: Sequence[Reference],
    checkpoint: Checkpoint,
    sequences: Sequence[str],
) -> Iterator[tuple[dict[str, Rows], list[Rows]]]:
    """Yield the attention of the shorter sequences, and contacts if there is a regression."""
    import torch

    from esm2_features._inference.extractors import Attentions, Contacts
    from esm2_features._model.devices import exact_arithmetic

    shape = checkpoint.architecture
    extractors: dict[str, Extractor] = {
        "attention": Attentions(tuple(range(1, shape.layers + 1)), shape.heads)
    }
    try:
        regression = checkpoint.contact_regression()
        extractors["contacts"] = Contacts(*regression, heads=shape.heads)
    except NoContactRegressionError:
        regression = None
    short = list(dict.fromkeys(s for s in sequences if len(s) <= _LONGEST_MAPS))
    for batch in batches([len(sequence) + 2 for sequence in short], _BATCH_TOKENS):
        some = [short[i] for i in batch]
        maps: dict[str, dict[str, Any]] = {}
        for precision, network in networks.items():
            with exact_arithmetic(network.device), torch.inference_mode():
                maps[precision] = {
                    name: extractor(network, some)() for name, extractor in extractors.items()
                }
        for i, sequence in enumerate(some):
            found = {
                precision: {name: x[i].reshape(-1, x[i].shape[-1]) for name, x in of_one.items()}
                for precision, of_one in maps.items()
            }
            yield found, [reference.maps(sequence, regression) for reference in references]


def _published(precision: str, network: ESM2Network) -> Iterator[VerifiedLayer]:
    from esm2_features._model.devices import exact_arithmetic

    for name, (tokens, published) in (
        ("published", _PUBLISHED_REPRESENTATION),
        ("pub.logits", _PUBLISHED_LOGITS),
    ):
        batch = pack_tokens(np.array(tokens, dtype=np.uint8), np.array([len(tokens)]))
        with exact_arithmetic(network.device):
            [(_, x_TD)] = network.representations(batch, [network.depth])
            values = network.logits(x_TD) if name == "pub.logits" else x_TD
        distances = _Distances()
        distances.add(values[:3, :3].cpu().numpy(), np.array(published))
        if precision == "float32":
            of_allowed = distances.largest / _PUBLISHED_TOLERANCE
        else:
            of_allowed = distances.largest_share / ALLOWED_HALF[precision][0]
        unknown = float("nan"), float("nan")
        yield VerifiedLayer(precision, name, *unknown, distances.largest, distances.rms, of_allowed)
