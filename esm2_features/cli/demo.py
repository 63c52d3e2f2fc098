"""``esm2-features demo``: classify venom toxins and human hormones, and draw a map of them.

Embeddings and amino-acid composition are compared with the same classifier and the same splits.
Similar peptides are kept in the same fold, or the test would only measure how well a twin in the
training set is recognised.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from esm2_features._cache import Cache
from esm2_features._checkpoints import open_checkpoint
from esm2_features._checkpoints.catalogue import EMBEDDED_MODEL
from esm2_features._sklearn.descriptors import DescriptorTransformer
from esm2_features._sklearn.embedding import ESM2Transformer
from esm2_features.datasets import load_demo_peptides
from esm2_features.exceptions import import_optional

_FOLDS = 5
_REPEATS = 10
_SHARED_3MERS = 0.2

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
    families = group_families(sequences)
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
        print_line("\nToxin or hormone? Logistic regression, families kept together:")
        features = {name: embedding, "composition": DescriptorTransformer("composition")}
        for line in _comparison(features, peptides, families):
            print_line(f"  {line}".rstrip())

    path = folder / "peptide_map.png"
    draw_map(vectors, peptides, path, model=name)
    print_line(f"\nA map of the embeddings: {path}")
    if name == EMBEDDED_MODEL:
        print_line(
            f"{name} is a demonstration model; `esm2-features models` lists those for science."
        )


def read_peptides() -> list[Peptide]:
    """Read the table of peptides that ships with this library."""
    rows, kinds = load_demo_peptides(return_X_y=True)
    return [Peptide(name, text, kind) for (name, text), kind in zip(rows, kinds, strict=True)]


def group_families(sequences: Sequence[str]) -> NDArray[np.int64]:
    """Give every sequence the number of its family: (n,).

    Two peptides are related if they share a fifth of the 3-mers of the shorter one; a family holds
    the relatives of relatives.

    >>> group_families(["CYIQNCPLG", "CYIQNCPRG", "YGGFMTSEK"]).tolist()
    [0, 0, 1]
    """
    threes = CountVectorizer(analyzer="char", ngram_range=(3, 3), lowercase=False, binary=True)
    has = threes.fit_transform(sequences)
    shared = (has @ has.T).toarray()
    total = shared.diagonal()
    share = shared / np.minimum(total, total[:, None])
    # With min_samples=1, the clusters of DBSCAN are the connected components.
    components = DBSCAN(eps=0.5, min_samples=1, metric="precomputed")
    families: NDArray[np.int64] = components.fit_predict(share < _SHARED_3MERS)
    return families


def _comparison(
    features: Mapping[str, Any], peptides: Sequence[Peptide], families: NDArray[np.int64]
) -> Iterator[str]:
    """Compare two kinds of features over the same splits; yield the lines of a table."""
    sequences = [peptide.sequence for peptide in peptides]
    is_toxin = np.array([peptide.kind == "toxin" for peptide in peptides])
    scores = {}
    width = max(map(len, features))
    yield f"{'features':<{width}}        AUC         seconds"
    for name, transformer in features.items():
        start = time.perf_counter()
        learner = LogisticRegression(max_iter=1000)
        scores[name] = np.concatenate(
            [
                cross_val_score(
                    make_pipeline(transformer, StandardScaler(), learner),
                    sequences,
                    is_toxin,
                    groups=families,
                    cv=StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed),
                    scoring="roc_auc",
                )
                for seed in range(_REPEATS)
            ]
        )
        auc, seconds = scores[name], time.perf_counter() - start
        yield f"{name:<{width}}   {auc.mean():.3f} +- {auc.std():.3f}  {seconds:>8.1f}"
    (a, of_a), (b, of_b) = scores.items()
    yield f"(mean and spread over {of_a.size} test folds: {_FOLDS}-fold, {_REPEATS} times;"
    yield f" {a} is ahead in {(of_a > of_b).sum()} of them, {b} in {(of_a < of_b).sum()})"


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
