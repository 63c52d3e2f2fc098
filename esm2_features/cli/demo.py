"""``esm2-features demo``: tell venom toxins from human hormones, and draw maps of them.

All layers of the model are compared with composition and k-mers by the same classifier, under the
same folds. Similar peptides are kept in the same fold, or the test would only measure how well a
twin in the training set is recognised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from esm2_features._cache import Cache
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL
from esm2_features._sklearn.embedding import ESM2Transformer
from esm2_features.datasets import load_demo_peptides
from esm2_features.exceptions import import_optional
from esm2_features.model_selection import cluster_sequences, compare_features

_WIDTH = 100

_TITLES = {"toxin": "Venom toxins", "hormone": "Human hormones and neuropeptides"}
_COLOURS = {"toxin": "#c8384d", "hormone": "#00738a"}

# The most important first: a name for which the map has no room is left out.
_WELL_KNOWN = (
    *("Insulin A chain", "Insulin B chain", "Melittin (Apis florea)", "Oxytocin", "Apamin"),
    *("Neuropeptide Y", "Omega-conotoxin MVIIA", "Bradykinin", "Margatoxin", "Substance P"),
    *("Endothelin-1", "Sarafotoxin-D", "Chlorotoxin", "Corticotropin (ACTH)", "Cobrotoxin"),
    *("Hepcidin-25", "Mastoparan", "Angiotensin II", "Psalmotoxin-1", "ShK", "Contulakin-G"),
    *("Epidermal growth factor", "Poneratoxin", "Thymosin beta-4", "Somatostatin-14"),
)

_OFFSETS = [
    (x * far, y * far)
    for far in (6, 15, 25, 37, 50)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]
_MARKER = 8  # half the width of a marker, in pixels


class Peptide(NamedTuple):
    """One row of the table of peptides, all text; ``kind`` is ``"toxin"`` or ``"hormone"``."""

    name: str
    sequence: str
    kind: str


def run(
    folder: Path,
    *,
    model: str = EMBEDDED_MODEL,
    peptides: Sequence[Peptide] | None = None,
    print_line: Callable[[str], object],
) -> None:
    import_optional("matplotlib.figure", extra="plot", purpose="Drawing the map")
    name = open_checkpoint(model).name
    folder.mkdir(parents=True, exist_ok=True)
    peptides = read_peptides() if peptides is None else peptides
    sequences = [peptide.sequence for peptide in peptides]
    families = cluster_sequences(sequences)
    for kind, title in _TITLES.items():
        print_line(f"{sum(peptide.kind == kind for peptide in peptides):>4} {title.lower()}")
    print_line(f"{len(set(families)):>4} families of similar sequences")

    # Begin with an empty cache, to show what a cache does.
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        cache = Cache(scratch)
        embedding = ESM2Transformer(model, cache=cache)
        print_line(f"\nEmbedding all of them with {name}, twice:")
        for turn in ("first", "second"):
            before, start = cache.info().rows, time.perf_counter()
            vectors = embedding.transform(sequences)
            seconds = time.perf_counter() - start
            computed = cache.info().rows - before
            counts = f"{computed:>5} computed {len(set(sequences)) - computed:>5} from the cache"
            print_line(f"  {turn:<7} {counts} {seconds:>7.2f} s")
        print_line("\nToxin or hormone? Logistic regression, families kept together:\n")
        comparison = compare_features(
            sequences,
            [peptide.kind for peptide in peptides],
            transformer=embedding,
            poolings="mean",
            groups=families,
        )
    *table, verdict, advice = str(comparison).splitlines()
    for line in (*table, *wrap(verdict, _WIDTH), *wrap(advice, _WIDTH)):
        print_line(line)

    comparison.plot_layers().figure.savefig(folder / "layers.png", dpi=160)
    print_line(f"\nThe score of each layer: {folder / 'layers.png'}")
    draw_map(vectors, peptides, folder / "peptide_map.png", model=name)
    print_line(f"A map of the embeddings: {folder / 'peptide_map.png'}")
    if name == EMBEDDED_MODEL:
        print_line(
            f"{name} is a demonstration model; `esm2-features models` lists those for science."
        )


def read_peptides() -> list[Peptide]:
    """Read the table of peptides that ships with this library."""
    rows, kinds = load_demo_peptides(return_X_y=True)
    return [Peptide(name, text, kind) for (name, text), kind in zip(rows, kinds, strict=True)]


# ------------------------------------------------------------------ the picture


def draw_map(
    vectors: NDArray[np.float32], peptides: Sequence[Peptide], path: Path, *, model: str
) -> None:
    """Draw peptides in the plane in which their embeddings, (n, dim), vary the most."""
    figure = import_optional("matplotlib.figure", extra="plot", purpose="Drawing the map")
    pca = PCA(2)
    plane = pca.fit_transform(StandardScaler().fit_transform(vectors))
    drawing = figure.Figure(figsize=(10, 6.6), dpi=160)  # not pyplot: no window, no global state
    axes = drawing.add_axes((0.07, 0.085, 0.91, 0.765))
    for kind, title in _TITLES.items():
        chosen = [i for i, peptide in enumerate(peptides) if peptide.kind == kind]
        style = {"s": 50, "alpha": 0.7, "linewidths": 0.6, "edgecolors": "white"}
        style |= {"marker": "^" if kind == "toxin" else "o", "color": _COLOURS[kind]}
        axes.scatter(*plane[chosen].T, label=f"{title} ({len(chosen)})", **style)
    demonstration = f" {model} is a demonstration model." if model == EMBEDDED_MODEL else ""
    title = f"Toxins and hormones, embedded by {model}"
    text = (
        "Mean embeddings in their first two principal components; the model does not know the "
        f"classes.{demonstration}"
    )
    drawing.text(0.07, 0.945, title, fontsize=17, weight="bold")
    drawing.text(0.07, 0.905, text, fontsize=10, color="#555555")
    shares = pca.explained_variance_ratio_
    axes.set_xlabel(f"First principal component, {shares[0]:.0%} of the variance", color="#555555")
    axes.set_ylabel(f"Second principal component, {shares[1]:.0%}", color="#555555")
    axes.tick_params(labelsize=9, color="#aaaaaa", labelcolor="#777777")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aaaaaa")
    axes.margins(0.06)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.99)}
    axes.legend(**place, ncols=2, frameon=False, fontsize=11, handletextpad=0.2)
    drawing.draw_without_rendering()  # sets the positions in pixels
    _name_well_known(axes, plane, peptides)
    drawing.savefig(path, format="png")


def _name_well_known(axes: Any, plane: NDArray[np.float64], peptides: Sequence[Peptide]) -> None:
    """Write names beside their points, or at the end of a line, without covering anything."""
    points = axes.transData.transform(plane)  # in pixels, like all that follows but the offsets
    pixels_per_point = axes.figure.dpi / 72
    boxes: list[Any] = []
    rows = {peptide.name: i for i, peptide in enumerate(peptides)}
    for name in filter(rows.__contains__, _WELL_KNOWN):
        i = rows[name]
        colour = _COLOURS[peptides[i].kind]
        style = {"textcoords": "offset points", "fontsize": 10, "color": colour}
        text = axes.annotate(name.partition(" (")[0], plane[i], (0, 0), **style)
        for offset in _OFFSETS:
            text.set_position(offset)
            text.set_ha(("center", "left", "right")[np.sign(offset[0])])
            text.set_va(("center", "bottom", "top")[np.sign(offset[1])])
            box = text.get_window_extent()
            others = np.delete(points, i, axis=0)
            line = points[i] + np.linspace(0, 1, 20)[:, None] * offset * pixels_per_point
            if (
                all(map(axes.bbox.contains, *box.corners().T))
                and not box.padded(_MARKER).count_contains(others)
                and not box.count_overlaps(boxes)
                and not any(other.count_contains(line) for other in boxes)
                and np.linalg.norm(line[3:, None] - others, axis=2).min() > _MARKER
            ):
                boxes += [box, *(box.from_extents(*xy, *xy).padded(1) for xy in line[2:])]
                break
        else:
            text.remove()
            continue
        if offset not in _OFFSETS[:8]:  # so far that a line must connect the two
            line = {"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 0, "shrinkB": 4}
            axes.annotate("", plane[i], offset, textcoords="offset points", arrowprops=line)
