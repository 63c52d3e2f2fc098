"""Physico-chemical properties of protein sequences, from published scales of the residues.

Hydropathy: Kyte and Doolittle, J. Mol. Biol. 157 (1982) 105-132. Volume in A^3: Zamyatnin, Prog.
Biophys. Mol. Biol. 24 (1972) 107-123. Average mass in Da of a residue in a chain: IUPAC's atomic
weights. Helix and sheet: Chou and Fasman, Adv. Enzymol. 47 (1978) 45-148. Aliphatic index: Ikai,
J. Biochem. 88 (1980) 1895-1898. Aromaticity: Lobry and Gautier, Nucleic Acids Res. 22 (1994)
3174-3180. pK: Bjellqvist et al., Electrophoresis 14 (1993) 1023-1031 and 15 (1994) 529-539.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES

_SCALES = """
    hydropathy volume     mass helix sheet
A          1.8   88.6  71.0779  1.42  0.83
C          2.5  108.5 103.1429  0.70  1.19
D         -3.5  111.1 115.0874  1.01  0.54
E         -3.5  138.4 129.1140  1.51  0.37
F          2.8  189.9 147.1738  1.13  1.38
G         -0.4   60.1  57.0513  0.57  0.75
H         -3.2  153.2 137.1393  1.00  0.87
I          4.5  166.7 113.1576  1.08  1.60
K         -3.9  168.6 128.1723  1.16  0.74
L          3.8  166.7 113.1576  1.21  1.30
M          1.9  162.9 131.1960  1.45  1.05
N         -3.5  114.1 114.1026  0.67  0.89
P         -1.6  112.7  97.1152  0.57  0.55
Q         -3.5  143.8 128.1292  1.11  1.10
R         -4.5  173.4 156.1857  0.98  0.93
S         -0.8   89.0  87.0773  0.77  0.75
T         -0.7  116.1 101.1039  0.83  1.19
V          4.2  140.0  99.1310  1.06  1.70
W         -0.9  227.8 186.2099  1.08  1.37
Y         -1.3  193.6 163.1732  0.69  1.47
"""
_OF_RESIDUE = np.array([line.split()[1:] for line in _SCALES.split("\n")[2:-1]], dtype=np.float64)
_WATER = 18.0153
_AROMATIC = np.isin(list(CANONICAL_RESIDUES), list("FWY"))
_ALIPHATIC = np.array(
    [{"A": 1.0, "V": 2.9, "I": 3.9, "L": 3.9}.get(a, 0) for a in CANONICAL_RESIDUES]
)

_PK_POSITIVE = {"K": 10.0, "R": 12.0, "H": 5.98}
_PK_NEGATIVE = {"D": 4.05, "E": 4.45, "C": 9.0, "Y": 10.0}
_PK_FIRST = {"A": 7.59, "M": 7.0, "S": 6.93, "P": 8.36, "T": 6.82, "V": 7.44, "E": 7.7}
_PK_LAST = {"D": 4.55, "E": 4.75}
_PK_OTHER_FIRST, _PK_OTHER_LAST = 7.5, 3.55
_HALVINGS = 40  # of 14 units of pH: to 1e-11

PROPERTIES = (
    *("gravy", "volume", "helix_propensity", "sheet_propensity", "aromaticity"),
    *("aliphatic_index", "charge", "isoelectric_point", "molecular_weight"),
)


def properties(sequences: Sequence[str], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the properties of sequences, (n, 9), with the counts of their residues, (n, 20)."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    hydropathy, volume, mass, helix, sheet = (shares @ _OF_RESIDUE).T
    charge = _Charge(sequences, counts)
    lengths = np.array([len(sequence) for sequence in sequences])
    return np.column_stack(
        [
            *(hydropathy, volume, helix, sheet, shares @ _AROMATIC, 100 * shares @ _ALIPHATIC),
            *(charge.at(np.full(len(counts), 7.0)), charge.isoelectric_points()),
            lengths * mass + _WATER,
        ]
    )


class _Charge:
    """Net charges of n sequences, with free ends, by the equation of Henderson and Hasselbalch."""

    def __init__(self, sequences: Sequence[str], counts: NDArray[np.float64]) -> None:
        first = [_PK_FIRST.get(sequence[0], _PK_OTHER_FIRST) for sequence in sequences]
        last = [_PK_LAST.get(sequence[-1], _PK_OTHER_LAST) for sequence in sequences]
        pks = {**_PK_POSITIVE, **_PK_NEGATIVE}
        inner = np.broadcast_to(list(pks.values()), (len(counts), len(pks)))
        self.pks = np.column_stack([inner, first, last])
        ends = np.ones((len(counts), 2))
        self.counts = np.column_stack([counts[:, [*map(CANONICAL_RESIDUES.index, pks)]], ends])
        self.signs = np.array([1] * len(_PK_POSITIVE) + [-1] * len(_PK_NEGATIVE) + [1, -1])

    def at(self, pH: NDArray[np.float64]) -> NDArray[np.float64]:
        exponents = self.signs * (pH[:, None] - self.pks)
        of_groups = self.signs * self.counts / (1 + 10.0**exponents)
        return np.asarray(of_groups.sum(axis=1), dtype=np.float64)

    def isoelectric_points(self) -> NDArray[np.float64]:
        """Find by bisection where the charge, which falls with pH, is 0."""
        low, high = np.zeros(len(self.counts)), np.full(len(self.counts), 14.0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_positive = self.at(middle) > 0
            low, high = np.where(is_positive, middle, low), np.where(is_positive, high, middle)
        return np.asarray(low, dtype=np.float64)
