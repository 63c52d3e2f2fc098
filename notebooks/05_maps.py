# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Maps: what the model sees in proteins
#
# Do proteins of one family lie together in the space of embeddings? Can a protein without
# annotation borrow that of its nearest neighbour, and does this work where shared words of
# sequence do not? And what does the model say of a single protein: who attends to whom, and which
# substitutions does it doubt?
#
# You will learn how to draw embedding spaces with PCA and UMAP without being fooled by the
# picture, how to search for similar proteins, how to judge annotation transfer by how hard each
# case is, and how to draw attention, contacts and mutational scans.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"` in the
# > next cell. One section uses real vectors of the smallest ESM-2.

# %%
import os
import re
import warnings
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from Bio.Align import PairwiseAligner, substitution_matrices
from IPython.display import Markdown, display
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import PercentFormatter
from scipy.stats import rankdata, spearmanr, t
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from esm2_features import Cache, Engine, ESM2Transformer, datasets, read_fasta, scan_variants
from esm2_features.exceptions import CheckpointError

with warnings.catch_warnings():  # where ipywidgets is missing, it asks for it, and draws no bars
    warnings.filterwarnings("ignore", message="IProgress not found")
    import umap

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"
SEED = 0

local = Path("../shared/data") if Path("../shared/data").is_dir() else Path("../../shared/data")
if local.is_dir():
    os.environ.setdefault("ESM2_FEATURES_DATA", str(local))
data = Path(os.environ.get("ESM2_FEATURES_DATA", "data"))

TEAL, RED, AMBER, VIOLET, GREY = "#00738a", "#c8384d", "#e8a33d", "#5b5b9d", "#8a8a8a"
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "legend.frameon": False,
    }
)


def say(text):
    """Show a sentence whose numbers were computed."""
    display(Markdown(text))


# %% [markdown]
# ## Families that were not made from sequences
#
# A test of "similar proteins have similar functions" needs families that somebody else defined.
# For human proteins the table below lists members by their names in UniProt, such as `CDK2` among
# the protein kinases. These families are defined by function and fold: some hold close relatives,
# others (cytokines) are hard to recognise by sequence.

# %%
FAMILIES = {
    "GPCR class A": "5HT1A AA1R ACM1 ACM2 ACM3 ACM5 ADRB1 ADRB2 ADRB3 AG22 AG2R C5AR CCR2 CCR5 "
    "CNR2 CXCR1 DRD1 DRD2 FPR1 HRH1 MC4R MCHR1 MSHR NK1R NK2R NPY1R OPRM OXYR PAR1 TA2R V1AR V2R",
    "GPCR class B": "CALRL GHRHR GLP1R VIPR1 VIPR2",
    "Cys-loop channel": "ACHA7 GBRA1 GBRB1 GBRB3 GBRG2 GBRR1 GLRA1",
    "kinase": "AKT1 CDC2 CDK2 CDK4 CDK5 CHK1 CHK2 CSK CSK21 E2AK2 GSK3B HCK KCC1 MK01 MK14 PAK1 "
    "PDPK1 SGK1 TGFR1",
    "small GTPase": "ARF1 ARF6 CDC42 RAC1 RAC2 RAP1A RAP1B RAP2A RASH RASK RASN RHOA RRAS",
    "trypsin-like protease": "ACRO CATG CFAD CFAI CLCR EL2A EL3A FA7 FA9 FA10 PRN3 PROC TPA UROK",
    "matrix metalloprotease": "MMP1 MMP3 MMP7 MMP8 MM10 MM12 MM14",
    "cysteine cathepsin": "CATB CATC CATF CATL CATS",
    "serpin": "A1AT AACT ANGT ANT3 CBG HEP2 IC1 KAIN PAI1 SPB9",
    "cytochrome P450": "C11B2 C2F1 CP17A CP19A CP21A CP2B CP2C8 CP2C9 CP2D6 CP3A4 CP51 CPF2 CY24B",
    "glutathione transferase": "GSTA1 GSTA4 GSTM1 GSTM2 GSTM3 GSTM4 GSTP1 GSTT2",
    "short-chain dehydrogenase": "3BHS1 3BHS2 BDH DECR DHB1 DHB2 DHB3 DHB7 DHC3 DHI1 PGDH "
    "RDH1 SPRE",
    "four-helix cytokine": "CNTF CSF2 CSH EPO IFNA1 IFNA2 IFNB IFNG IL2 IL3 IL4 IL5 IL6 IL7 IL13 "
    "ONCM PRL SOMA TPO",
    "chemokine": "CCL2 CCL3 CCL4 CCL5 CCL11 GROA IL8 PLF4",
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names.split()}
LONGEST = 600  # residues; longer members are left out, to be done in a minute


def human_families(path):
    """One protein for each name in `FAMILY_OF`: a table of name, family and sequence."""
    found = {}
    for record in read_fasta(path):
        match = re.search(r"(\w+)_HUMAN", record.id)
        name = match and match[1].removeprefix("human|")
        if name in FAMILY_OF and len(record.seq) <= LONGEST:
            found.setdefault(name, record.seq)  # the file has point mutants, too: the first will do
    return pd.DataFrame(
        [(name, FAMILY_OF[name], sequence) for name, sequence in found.items()],
        columns=["name", "family", "sequence"],
    )


# %% [markdown]
# ## Your own data
#
# All that follows needs a table of three columns: `name`, `sequence` and `family` (any annotation
# that you would like to see on a map, or to transfer). Replace the next cell by something like
# `table = pd.read_csv("my_proteins.csv")`. Without the file of human proteins, the notebook takes
# the peptides that ship with the library, and "family" is then toxin or hormone.

# %% tags=["your-data"]
fasta = data / "natural_proteins.fasta.gz"
if fasta.is_file():
    table = human_families(fasta)
else:
    table = datasets.load_demo_peptides(as_frame=True).frame.rename(columns={"kind": "family"})
    say(
        "`natural_proteins.fasta.gz` is not in the data folder: the peptides that ship with the "
        "library are "
        "used instead. Any FASTA of human proteins from UniProt, with ids that end in `_HUMAN`, "
        "will do: "
        "save it under this name in the folder that `ESM2_FEATURES_DATA` names."
    )

# %% [markdown]
# Near-copies (twins under two names, alleles) would make every search look good, so only one of
# each is kept, and large families are cut to `MOST` members, so that no family dominates.

# %%
TWINS = 0.7  # share of 3-mers in common, of those of the shorter sequence
MOST = 10  # members of a family


def shared_words(some, others, length=3):
    """Share of k-mers in common, of those of the shorter sequence: (n, m)."""
    words = CountVectorizer(
        analyzer="char", ngram_range=(length, length), lowercase=False, binary=True
    )
    words.fit([*some, *others])
    a, b = words.transform(some), words.transform(others)
    shorter = np.minimum(a.sum(axis=1).reshape(-1, 1), b.sum(axis=1).reshape(1, -1))
    return (a @ b.T).toarray() / np.maximum(np.asarray(shorter), 1)


n_before = len(table)
table = table.sample(frac=1, random_state=SEED)  # so that a cut family is a random choice
shared = shared_words(table["sequence"], table["sequence"])
keep = [not (shared[row, :row] >= TWINS).any() for row in range(len(table))]
n_twins = n_before - sum(keep)
table = table[keep].groupby("family").head(MOST if fasta.is_file() else n_before)
table = table.sort_values(["family", "name"]).reset_index(drop=True)
families = table["family"].to_numpy(dtype=object)
sizes = table["family"].value_counts()
say(
    f"{len(table)} proteins of {table['sequence'].str.len().min()} to "
    f"{table['sequence'].str.len().max()} residues in "
    f"{len(sizes)} families of {sizes.min()} to {sizes.max()} members, after {n_twins} "
    "near-copies and "
    f"{n_before - n_twins - len(table)} members of large families were left out."
)

# %% [markdown]
# ## Two maps of one space
#
# Each protein becomes one vector, the mean over its residues in the last layer. Components have
# very different scales, so they are standardised before any distance is taken. PCA is a linear
# shadow: distances on it mean something, but it shows little of the variance. UMAP keeps
# neighbours together, and distances between its islands mean nothing.

# %%
vectors = StandardScaler().fit_transform(ESM2Transformer(MODEL).fit_transform(table["sequence"]))
pca = PCA(2, random_state=SEED)
planes = {
    "PCA": pca.fit_transform(vectors),
    "UMAP": umap.UMAP(
        n_neighbors=10, min_dist=0.4, metric="cosine", random_state=SEED, n_jobs=1
    ).fit_transform(vectors),
}


# %% mystnb={"image": {"alt": "Two scatter plots of the same proteins, PCA on the left and UMAP on the right, coloured by family; colour and marker together name a family in the legend."}}
COLOURS = [TEAL, RED, AMBER, VIOLET, GREY]
MARKERS = ["o", "^", "s", "D"]
styles = {
    family: {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i // len(COLOURS) % len(MARKERS)],
    }
    for i, family in enumerate(sizes.index.sort_values())
}

figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.9))
for axes, plane in zip(panels, planes.values(), strict=True):
    for family, style in styles.items():
        points = plane[families == family]
        axes.scatter(
            *points.T, s=30, alpha=0.85, linewidths=0.4, edgecolors="white", label=family, **style
        )
    axes.set_xticks([])
    axes.set_yticks([])
shares = pca.explained_variance_ratio_
panels[0].set_title(f"PCA of the embeddings of {MODEL}")
panels[0].set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
panels[0].set_ylabel(f"second component ({shares[1]:.0%})")
panels[1].set_title("UMAP of the same vectors")
panels[1].set_xlabel("UMAP 1 (no unit)")
panels[1].set_ylabel("UMAP 2 (no unit)")
figure.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=5,
    fontsize=8.5,
    handletextpad=0.1,
    columnspacing=1.2,
)
plt.show()


# %% [markdown]
# How much of the space is on the map? Count the proteins whose nearest neighbour is of their own
# family: in the space of all components, and on each plane. What is lost on the way is lost in the
# picture, not in the embedding.


# %%
def nearest(similarity):
    """Row of the most similar other protein, for each: (n,)."""
    others = similarity.astype(float)
    np.fill_diagonal(others, -np.inf)
    return others.argmax(axis=1)


def closeness(points):
    """Negative Euclidean distance between all pairs: (n, n)."""
    return -np.linalg.norm(points[:, None] - points[None], axis=2)


cosine = cosine_similarity(vectors)
kinship = {f"all {vectors.shape[1]} components (cosine)": cosine}
kinship |= {f"the {method} plane": closeness(plane) for method, plane in planes.items()}
kinship["length alone"] = closeness(table[["sequence"]].map(len).to_numpy())
same = {name: (families[nearest(values)] == families).mean() for name, values in kinship.items()}
by_chance = np.mean([(sizes[family] - 1) / (len(table) - 1) for family in families])
say(
    "Nearest neighbour of the same family: "
    + ", ".join(
        f"{share:.0%} in {name}" if "length" not in name else f"{share:.0%} by {name}"
        for name, share in same.items()
    )
    + f", and {by_chance:.0%} by chance."
)

# %% [markdown]
# ## Similarity search
#
# To find what resembles a protein, rank all others by the cosine of their embeddings. For
# comparison stands beside it what an alignment finds: identical positions of the best local
# alignment (BLOSUM62), as a share of the shorter sequence. Put the name of any protein of the
# table here.

# %%
QUERY = "VIPR1" if "VIPR1" in set(table["name"]) else table["name"].iloc[0]

aligner = PairwiseAligner(
    mode="local",
    substitution_matrix=substitution_matrices.load("BLOSUM62"),
    open_gap_score=-11,
    extend_gap_score=-1,
)


def identity(a, b):
    """Identical positions of the best local alignment, as a share of the shorter sequence."""
    return aligner.align(a, b)[0].counts().identities / min(len(a), len(b))


row = table.index[table["name"] == QUERY][0]
hits = table.drop(index=row).assign(cosine=np.delete(cosine[row], row)).nlargest(8, "cosine")
hits["identity"] = [identity(table["sequence"][row], other) for other in hits["sequence"]]
say(f"Query: **{QUERY}** ({families[row]}, {len(table['sequence'][row])} residues).")
display(
    hits.assign(identity=hits["identity"].map("{:.0%}".format), cosine=hits["cosine"].round(2))[
        ["name", "family", "cosine", "identity"]
    ].set_index("name")
)

# %% [markdown]
# ## Annotation transfer: who needs a language model?
#
# Every protein takes the family of its nearest other one (leave one out), and three ways to be
# near compete: embeddings, shared 3-mers (TF-IDF, cosine), and alignment scores, which is what
# BLAST does and takes longest. The macro-averaged F1 counts each family equally. Intervals are
# bootstraps over proteins.

# %%
texts = table["sequence"].tolist()
aligned = np.zeros((len(texts), len(texts)))
for i, a in enumerate(texts):
    for j in range(i):
        aligned[i, j] = aligned[j, i] = aligner.score(a, texts[j])

three_mers = TfidfVectorizer(
    analyzer="char", ngram_range=(3, 3), lowercase=False, sublinear_tf=True
).fit_transform(texts)
similarities = {
    f"embedding ({MODEL})": cosine,
    "3-mers": cosine_similarity(three_mers),
    "alignment score": aligned,
}
predicted = {name: families[nearest(values)] for name, values in similarities.items()}
METHODS = dict(zip(predicted, (TEAL, AMBER, GREY), strict=True))

rng = np.random.default_rng(SEED)
n = len(table)
weights = rng.multinomial(n, np.full(n, 1 / n), size=2000)  # how often each is in a resample


def resampled_f1(truth, guess):
    """Macro-F1 of each resample, over the families that are in it: (2000,)."""
    labels = np.unique(truth)
    is_truth, is_guess = truth[:, None] == labels, guess[:, None] == labels
    n_true, n_guessed = weights @ is_truth, weights @ is_guess
    f1 = 2 * (weights @ (is_truth & is_guess)) / np.maximum(n_true + n_guessed, 1)
    return np.average(f1, axis=1, weights=n_true > 0)


def interval(values):
    """The middle 95 % of what was resampled."""
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.2f} to {high:.2f}"


rows = {}
for name, guess in (
    predicted | {"largest family": np.full(len(table), sizes.index[0], object)}
).items():
    right = guess == families
    rows[name] = {
        "accuracy": round(right.mean(), 3),
        "95 %": interval(weights @ right / n),
        "macro-F1": round(f1_score(families, guess, average="macro", labels=sizes.index), 3),
        "95 % ": interval(resampled_f1(families, guess)),
    }
display(pd.DataFrame(rows).T)

# %% [markdown]
# Easy cases hide the difference: where a close relative is in the table, everything works. So the
# same results once more, by how similar the best hit of the alignment is. Below about 25 %
# identity, alignments begin to fail (the "twilight zone"), and there a language model has to show
# what it is worth.

# %%
best_hit = nearest(aligned)
difficulty = np.array([identity(a, texts[j]) for a, j in zip(texts, best_hit, strict=True)])
EDGES = [0, 0.25, 0.4, 1.0001]
zones = [(difficulty >= low) & (difficulty < high) for low, high in pairwise(EDGES)]
names_of_zones = [f"{low:.0%} to {min(high, 1):.0%}" for low, high in pairwise(EDGES)]


def bootstrap(right, n=2000):
    """The mean, and the ends of its 95 % interval by resampling."""
    means = right[rng.integers(len(right), size=(n, len(right)))].mean(axis=1)
    return right.mean(), *np.percentile(means, [2.5, 97.5])


# %% mystnb={"image": {"alt": "Accuracy of annotation transfer with intervals, for embeddings, 3-mers and alignment scores, in three zones of identity to the best hit of an alignment."}}
figure, axes = plt.subplots(figsize=(7, 3.8))
for k, (name, colour) in enumerate(METHODS.items()):
    right = predicted[name] == families
    points = [(i, *bootstrap(right[zone])) for i, zone in enumerate(zones) if zone.any()]
    x, mean, low, high = map(np.array, zip(*points, strict=True))
    axes.errorbar(
        x + (k - 1) * 0.12,
        mean,
        yerr=[mean - low, high - mean],
        marker="o",
        markersize=7,
        linewidth=1.2,
        color=colour,
        capsize=0,
        label=name,
    )
axes.axhline(by_chance, color=GREY, linewidth=0.8, linestyle=":")
axes.text(2.5, by_chance + 0.015, "chance", color=GREY, fontsize=9, ha="right")
axes.set_xlim(-0.5, 2.5)
axes.set_ylim(0, 1.04)
axes.set_xticks(
    range(3),
    [f"{name}\n({zone.sum()} proteins)" for name, zone in zip(names_of_zones, zones, strict=True)],
)
axes.yaxis.set_major_formatter(PercentFormatter(1))
axes.set_xlabel("identity with the best hit of an alignment")
axes.set_ylabel("right family")
axes.set_title("Annotation transfer, by how close the closest relative is")
axes.legend(loc="lower right", fontsize=9, bbox_to_anchor=(1, 0.1))
plt.show()

# %%
embedded, *baselines = predicted
sentences = []
for zone, name in zip(zones, names_of_zones, strict=True):
    for other in baselines:
        if not zone.any():
            continue
        gain = (predicted[embedded] == families)[zone].astype(float) - (
            predicted[other] == families
        )[zone]
        mean, low, high = bootstrap(gain)
        verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not clearly different from"
        sentences.append(
            f"* {name} identity: the embedding is **{verdict}** {other} ({mean:+.0%}, 95 % "
            f"interval {low:+.0%} to {high:+.0%})."
        )
wrong = predicted[embedded] != families
confused = pd.Series(
    list(zip(families[wrong], predicted[embedded][wrong], strict=True))
).value_counts()
say("\n".join(sentences))
accuracy = {name: (guess == families).mean() for name, guess in predicted.items()}
best = max(accuracy, key=accuracy.get)
say(
    f"Over all proteins, **{best}** is right most often ({accuracy[best]:.0%}). "
    + (
        "That is worth a second look with proteins of your own."
        if best == embedded
        else f"So here, `{MODEL}` is no reason to give up {best}. Ask again with another model before "
        "you build on either."
    )
)
often = [f"{truth} taken for {guess} ({n})" for (truth, guess), n in confused.head(3).items()]
say(f"What the embedding confuses most often: {'; '.join(often) or 'nothing at all'}.")

# %% [markdown]
# ## Real ESM-2: peptides and their activities
#
# The vectors in this section are real: computed with the smallest ESM-2 (8M parameters) by others,
# and published with train/test splits of four activities (bitter, umami, passing the blood-brain
# barrier, quorum sensing). `Cache.import_` takes them in, and from then on the transformer finds
# them without any weights. That is also how one computes on a big machine and works on a small
# one.

# %%
REAL = "esm2_t6_8M_UR50D"
TASKS = {
    "bitter": "bitter",
    "umami": "umami",
    "bbp": "blood-brain barrier",
    "quorum": "quorum sensing",
}
PARTS = ("train", "test")
files = {
    (task, part): data / f"real_esm2_t6_8M_{task}_{part}.npz" for task in TASKS for part in PARTS
}
has_real = all(path.is_file() for path in files.values())

if has_real:
    folder = TemporaryDirectory(ignore_cleanup_errors=True)
    cache = Cache(folder.name)
    sets = {}
    for key, path in files.items():
        cache.import_(path, model=REAL, layer=6, pooling="mean")
        with np.load(path) as arrays:
            sets[key] = arrays["sequence"].tolist(), arrays["label"]
    real = ESM2Transformer(REAL, cache=cache)
    say(
        f"{cache.info().rows:,} vectors of {REAL}: "
        + "; ".join(
            f"{title} {len(sets[task, 'train'][0])} to train on and {len(sets[task, 'test'][0])} "
            "to test"
            for task, title in TASKS.items()
        )
        + "."
    )
else:
    say(
        "The files `real_esm2_t6_8M_*.npz` are not in the data folder, so this section is left "
        "out. They are made from "
        "the embeddings that [UniDL4BioPep](https://github.com/dzjxzyd/UniDL4BioPep) publishes: "
        "arrays "
        "`sequence`, `label` and `embedding`, for each of "
        + ", ".join(f"{task}_{{train,test}}" for task in TASKS)
        + "."
    )

# %% [markdown]
# A map of the active peptides, twice: coloured by activity, and by length. Look at both before you
# believe the first. These peptides are tiny, their activities come from papers that studied
# peptides of certain lengths, and length is easily read off an embedding.

# %% mystnb={"image": {"alt": "Two UMAP plots of the same active peptides from real ESM-2 vectors: on the left coloured by activity, on the right by length."}}
if has_real:
    active = pd.DataFrame(
        [
            (sequence, task)
            for (task, _), (sequences, labels) in sets.items()
            for sequence, label in zip(sequences, labels, strict=True)
            if label
        ],
        columns=["sequence", "task"],
    )
    plane = umap.UMAP(n_neighbors=15, min_dist=0.3, random_state=SEED, n_jobs=1).fit_transform(
        StandardScaler().fit_transform(real.fit_transform(active["sequence"]))
    )
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.7))
    for (task, title), colour in zip(TASKS.items(), (TEAL, AMBER, VIOLET, RED), strict=True):
        of_task = (active["task"] == task).to_numpy()
        panels[0].scatter(
            *plane[of_task].T,
            s=9,
            color=colour,
            linewidths=0,
            label=f"{title} ({of_task.sum()})",
        )
    panels[0].legend(loc="best", fontsize=8.5, handletextpad=0.1, markerscale=1.8)
    panels[0].set_title("Active peptides, real ESM-2 (8M), UMAP")
    lengths = active["sequence"].str.len().to_numpy()
    dots = panels[1].scatter(
        *plane.T,
        s=9,
        c=np.log2(lengths),
        linewidths=0,
        cmap=LinearSegmentedColormap.from_list("length", ["#d5dfe2", TEAL, "#001d24"]),
    )
    bar = figure.colorbar(dots, ax=panels[1], shrink=0.8)
    ticks = [n for n in (2, 4, 8, 16, 32, 64) if lengths.min() <= n <= lengths.max()]
    bar.set_ticks(np.log2(ticks), labels=ticks)
    bar.set_label("length (residues)")
    panels[1].set_title("The same map, coloured by length")
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("UMAP 1 (no unit)")
        axes.set_ylabel("UMAP 2 (no unit)")
    plt.show()

# %% [markdown]
# Now each activity on its published test set: by nearest neighbours and by logistic regression, on
# real ESM-2 vectors, on those of `MODEL`, and on single residues and pairs (TF-IDF). The number of
# neighbours, or the strength of regularisation, is chosen by cross-validation within the training
# set; the test set is used once.

# %%
CLASSIFIERS = {
    "nearest neighbours": (
        KNeighborsClassifier(metric="cosine"),
        {"classify__n_neighbors": [1, 5, 15]},
    ),
    "logistic regression": (
        LogisticRegression(solver="newton-cholesky"),
        {"classify__C": [0.001, 0.01, 0.1, 10]},
    ),
}
if has_real:
    # All vectors at once: the search below then finds them in the cache, and has not to compute
    # them in many small batches.
    ESM2Transformer(MODEL).fit_transform([s for sequences, _ in sets.values() for s in sequences])
    words = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), lowercase=False, sublinear_tf=True)
    features = {
        "ESM-2 8M (real)": real,
        f"{MODEL}": ESM2Transformer(MODEL),
        "residues and pairs": words,
    }
    outcome = {}
    for task in TASKS:
        train, y = sets[task, "train"]
        test, truth = sets[task, "test"]
        for name, step in features.items():
            for kind, (classifier, grid) in CLASSIFIERS.items():
                scale = "passthrough" if step is words else StandardScaler()  # TF-IDF is scaled
                pipeline = Pipeline(
                    [("features", step), ("scale", scale), ("classify", classifier)]
                )
                search = GridSearchCV(pipeline, grid, cv=3, scoring="roc_auc").fit(train, y)
                outcome[task, name, kind] = search.predict_proba(test)[:, 1]

    def aucs(truth, scores):
        """ROC AUC of each row, by ranks: (n_rows,)."""
        positive, n = truth.sum(axis=1), truth.shape[1]
        ranks = (rankdata(scores, axis=1) * truth).sum(axis=1)
        return (ranks - positive * (positive + 1) / 2) / (positive * (n - positive))

    def auc_interval(task, key, other=None):
        """AUC of one, or what it is ahead of another, and its 95 % interval over test peptides."""
        truth = sets[task, "test"][1]
        scores = outcome[(task, *key)]
        picks = rng.integers(len(truth), size=(2000, len(truth)))
        picks = picks[(truth[picks].min(axis=1) == 0) & (truth[picks].max(axis=1) == 1)]
        picks = np.vstack([np.arange(len(truth)), picks])  # the first row is the test set itself
        values = aucs(truth[picks], scores[picks])
        if other is not None:
            values = values - aucs(truth[picks], outcome[(task, *other)][picks])
        return values[0], *np.percentile(values[1:], [2.5, 97.5])


# %% mystnb={"image": {"alt": "ROC AUC with intervals on four published test sets, for nearest neighbours and logistic regression, each on real ESM-2 vectors, vectors of the demonstration model, and counts of residues and pairs."}}
if has_real:
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.8), sharex=True, sharey=True)
    for axes, kind in zip(panels, CLASSIFIERS, strict=True):
        for k, (name, colour) in enumerate(zip(features, (TEAL, VIOLET, AMBER), strict=True)):
            points = np.array([auc_interval(task, (name, kind)) for task in TASKS])
            axes.errorbar(
                points[:, 0],
                np.arange(len(TASKS)) + (k - 1) * 0.2,
                xerr=[points[:, 0] - points[:, 1], points[:, 2] - points[:, 0]],
                fmt="o",
                markersize=6,
                color=colour,
                linewidth=1.4,
                label=name,
            )
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_title(f"By {kind}")
        axes.set_xlabel("ROC AUC on the published test set")
        axes.set_yticks(
            range(len(TASKS)),
            [f"{title}\n({len(sets[task, 'test'][0])} peptides)" for task, title in TASKS.items()],
        )
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    panels[1].text(0.51, 0, "chance", color=GREY, fontsize=9, va="center")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9
    )
    plt.show()

# %%
if has_real:
    real_name, _, words_name = features
    sentences = []
    for task, title in TASKS.items():
        close = shared_words(sets[task, "test"][0], sets[task, "train"][0], length=2).max(axis=1)
        parts = []
        for kind in CLASSIFIERS:
            gain, low, high = auc_interval(task, (real_name, kind), (words_name, kind))
            verdict = "ahead" if low > 0 else "behind" if high < 0 else "no clear difference"
            parts.append(f"{kind} {gain:+.3f} ({low:+.3f} to {high:+.3f}, {verdict})")
        sentences.append(
            f"* {title}: {'; '.join(parts)}. Of the test peptides, {(close >= 0.5).mean():.0%} "
            "share half of "
            "their pairs of residues with a training peptide."
        )
    say(
        "AUC of real ESM-2 8M minus that of residues and pairs, with 95 % intervals "
        "over test peptides:\n\n" + "\n".join(sentences)
    )
    say(
        "The published splits are random, so relatives stand on both sides, and these numbers "
        "flatter all three. Split "
        "by family before you claim more (see the notebook `02_toxicity`)."
    )

# %% [markdown]
# ## Contacts
#
# `Engine.contacts` predicts which residues touch. It needs the contact regression that comes with
# every official model. `mini` has none, and says so; nothing is made up in its place. With an
# official model, the next cells draw the map of ubiquitin.

# %%
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"

engine = Engine(MODEL)
try:
    contacts = engine.contacts([UBIQUITIN])[0]
except CheckpointError as error:
    contacts = None
    say(f"`{type(error).__name__}`\n> {str(error).replace(error.path, Path(error.path).name)}")

# %% mystnb={"image": {"alt": "Contact map of ubiquitin: predicted probability of contact for each pair of residues."}}
if contacts is not None:
    figure, axes = plt.subplots(figsize=(5, 4.4))
    edge = len(UBIQUITIN) + 0.5
    image = axes.imshow(
        contacts,
        vmin=0,
        vmax=1,
        extent=(0.5, edge, edge, 0.5),
        cmap=LinearSegmentedColormap.from_list("contacts", ["#ffffff", TEAL, "#001d24"]),
    )
    figure.colorbar(image, label="probability of contact", shrink=0.8)
    axes.set(xlabel="residue", ylabel="residue", title=f"Contacts of ubiquitin, {MODEL}")
    plt.show()

# %% [markdown]
# ## Attention
#
# Every head of every layer has a map of its own: how much each residue looks at each other one.
# Some look at their neighbours in the sequence, others far. The left picture tells for each head
# how much of the attention between residues goes at least six positions away. The right one adds
# up all heads, made symmetric and freed of what each residue gets from everywhere (average product
# correction): that is what contacts are made of, but for the weights of the heads, which the
# contact regression has learned.

# %% mystnb={"image": {"alt": "Left: heat map of the share of attention that goes six or more positions away, by layer and head. Right: sum over all heads of the corrected attention between residues of ubiquitin that are six or more apart."}}
FAR = 6
maps = engine.attentions([UBIQUITIN])[0][:, :, 1:-1, 1:-1]  # without <cls> and <eos>
distance = np.abs(np.subtract.outer(np.arange(len(UBIQUITIN)), np.arange(len(UBIQUITIN))))
far = maps[..., distance >= FAR].sum(axis=-1) / maps.sum(axis=(-1, -2))
uniform = (distance >= FAR).mean()

symmetric = maps + maps.swapaxes(-1, -2)  # contacts have no direction
gets = symmetric.sum(axis=-1)
background = gets[..., :, None] * gets[..., None, :] / gets.sum(axis=-1)[..., None, None]
corrected = (symmetric - background).sum(axis=(0, 1))
corrected[distance < FAR] = np.nan  # neighbours attend to each other whatever the structure

figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.3), width_ratios=[1, 1.05])
image = panels[0].imshow(
    far, vmin=0, vmax=1, cmap=LinearSegmentedColormap.from_list("far", ["#f2f7f8", TEAL, "#001d24"])
)
for i, j in np.ndindex(*far.shape):
    if far.size <= 60:  # larger models have too many heads for numbers
        panels[0].text(
            j,
            i,
            f"{far[i, j]:.0%}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if far[i, j] > 0.33 else "#333333",
        )
if far.size <= 60:
    panels[0].set_xticks(range(far.shape[1]), range(1, far.shape[1] + 1))
    panels[0].set_yticks(range(far.shape[0]), range(1, far.shape[0] + 1))
panels[0].set(xlabel="head", ylabel="layer", title=f"Attention to residues {FAR} or more away")
panels[0].tick_params(length=0)
panels[0].spines[:].set_visible(False)

largest = np.nanpercentile(np.abs(corrected), 99.5)
signed = LinearSegmentedColormap.from_list("signed", [RED, "#ffffff", TEAL])
signed.set_bad("#dddddd")
edge = len(UBIQUITIN) + 0.5
image = panels[1].imshow(
    corrected,
    vmin=-largest,
    vmax=largest,
    extent=(0.5, edge, edge, 0.5),
    cmap=signed,
)
figure.colorbar(image, ax=panels[1], label="attention minus background", shrink=0.8)
panels[1].set(xlabel="residue of ubiquitin", ylabel="residue of ubiquitin")
panels[1].set_title("All heads together (grey: closer than that)")
plt.show()

# %%
say(
    f"Attention that was spread evenly would go {uniform:.0%} far. {(far < uniform / 2).sum()} of "
    f"{far.size} heads of `{MODEL}` give "
    f"less than half of that to residues {FAR} or more positions away, and "
    f"{(far > uniform).sum()} more than all of it. "
    "A head that looks far need not see structure: only a comparison with a known structure "
    "can tell."
)

# %% [markdown]
# ## A mutational scan
#
# `scan_variants` masks each position in turn and asks how likely each amino acid is there,
# compared with that of the residue that is there (masked marginals, natural logarithms). Ubiquitin
# is among the domains whose stability has been measured for nearly all substitutions (Tsuboyama et
# al. 2023), so where that table is at hand, the measurement stands below the prediction. Read the
# name of a domain there before you call it a wild type: very stable domains were measured with a
# mutation that destabilises them, as otherwise the loss of others could not have been seen.

# %%
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
ORDER = "GAVLIMPFWYSTCNQKRHDE"  # aliphatic, aromatic, polar, positive, negative

stability = None
try:
    stability = datasets.fetch_stability_megascale(as_frame=True, download_if_missing=False).frame
except OSError:
    say(
        "The table of stabilities is not in the data folder, so the scan stands alone. "
        "`datasets.fetch_stability_megascale()` downloads it."
    )


def measured_scan(rows):
    """Negative ddG of the substitutions of one domain: (L, 20), NaN where not measured."""
    scan = np.full((len(rows["wildtype"].iloc[0]), len(AMINO_ACIDS)), np.nan)
    for mutation, position, value in zip(
        rows["mutation"], rows["position"], rows["ddG"], strict=True
    ):
        scan[position, AMINO_ACIDS.index(mutation[-1])] = -value
    return scan


protein, measured, subject = UBIQUITIN, None, "ubiquitin"
if stability is not None:
    ubiquitin = stability[stability["protein"].str.startswith("1ubq")]
    protein, measured = ubiquitin["wildtype"].iloc[0], measured_scan(ubiquitin)
    _, _, part, *changes = ubiquitin["protein"].iloc[0].split("_")  # as in 1ubq_A_1-72_L67S
    subject = f"ubiquitin{' with ' + ' and '.join(changes) if changes else ''}, residues {part}"
    differences = [
        f"{ours}{position}{theirs}"
        for position, (ours, theirs) in enumerate(zip(UBIQUITIN, protein, strict=False), 1)
        if ours != theirs
    ]
    names = pd.Series(stability["protein"].unique())
    mutated = names.str.contains(r"_[A-Z]\d+[A-Z]$")
    say(
        f"Here, this is **{subject}** (`{ubiquitin['protein'].iloc[0]}`): {len(protein)} of the "
        f"{len(UBIQUITIN)} residues of ubiquitin, which differ from it in "
        f"{', '.join(differences) or 'nothing'}. All substitutions are made in this sequence, and "
        f"compared with it. Of the {len(names)} domains of the table, "
        f"{mutated.sum()} have a name that ends in a mutation."
    )
scan = scan_variants(engine, protein)

# %% mystnb={"image": {"alt": "Heat map of all single substitutions of ubiquitin, in the background that was measured: log-likelihood ratios of the model, and measured changes of stability below them. Dots mark the residues of that background."}}
pictures = [(scan, f"{MODEL}: log-likelihood ratio, {subject}", "ln(P substituted / P unchanged)")]
if measured is not None:
    pictures.append(
        (measured, "Measured: change of stability (grey: not measured)", "-ddG (kcal/mol)")
    )
columns = [AMINO_ACIDS.index(letter) for letter in ORDER]

figure, panels = plt.subplots(
    len(pictures), 1, figsize=(10.5, 3.1 * len(pictures)), sharex=True, squeeze=False
)
for axes, (values, title, unit) in zip(panels[:, 0], pictures, strict=True):
    largest = np.nanpercentile(np.abs(values), 99)
    edge = len(protein) + 0.5
    image = axes.imshow(
        values[:, columns].T,
        cmap=signed,
        vmin=-largest,
        vmax=largest,
        aspect="auto",
        extent=(0.5, edge, len(ORDER) - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.scatter(
        range(1, len(protein) + 1),
        [ORDER.index(letter) for letter in protein],
        s=5,
        color="#333333",
    )
    axes.set_yticks(range(len(ORDER)), list(ORDER), fontsize=7, family="monospace")
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    axes.set_ylabel("substituted by")
    figure.colorbar(image, ax=axes, label=unit, pad=0.01)
numbers = [1, *range(10, len(protein) + 1, 10)]
axes.set_xticks(numbers, [f"{protein[n - 1]}{n}" for n in numbers])
axes.set_xlabel(f"position in {subject} (dots: unchanged)")
plt.show()

# %% [markdown]
# One domain proves nothing, so the rank correlation with the measurement is computed for a random
# choice of domains, and beside it that of the substitution matrix BLOSUM62, which knows no protein
# at all. The domains are few, so the interval of the mean difference is that of Student's t: to
# resample so few values would give one that is too narrow.

# %%
if stability is not None:
    blosum = substitution_matrices.load("BLOSUM62")
    domains = rng.choice(stability["protein"].unique(), size=6, replace=False)
    correlations = []
    for domain in domains:
        rows = stability[stability["protein"] == domain]
        protein, truth = rows["wildtype"].iloc[0], measured_scan(rows)
        known = np.isfinite(truth)
        matrix = np.array([[blosum[a][b] for b in AMINO_ACIDS] for a in protein])
        scores = scan_variants(engine, protein)
        correlations.append(
            [spearmanr(values[known], truth[known]).statistic for values in (scores, matrix)]
        )
    correlations = np.array(correlations)
    gain = correlations[:, 0] - correlations[:, 1]
    mean, error = gain.mean(), gain.std(ddof=1) / np.sqrt(len(gain))
    low, high = t.interval(0.95, df=len(gain) - 1, loc=mean, scale=error)
    verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not clearly different from"
    with_mutation = pd.Series(domains).str.contains(r"_[A-Z]\d+[A-Z]$").sum()
    say(
        f"Spearman correlation with measured stability, median over {len(domains)} random domains, "
        f"{with_mutation} of them with a mutation in their name (and quartiles): `{MODEL}` "
        f"{np.median(correlations[:, 0]):.2f} ({np.percentile(correlations[:, 0], 25):.2f} to "
        f"{np.percentile(correlations[:, 0], 75):.2f}), "
        f"BLOSUM62 {np.median(correlations[:, 1]):.2f} "
        f"({np.percentile(correlations[:, 1], 25):.2f} to "
        f"{np.percentile(correlations[:, 1], 75):.2f}). "
        f"The model is {verdict} the matrix (mean difference {mean:+.2f}, 95 % t interval "
        f"over domains {low:+.2f} to {high:+.2f})."
    )

# %% [markdown]
# ## Where next
#
# * The pictures of scans and contacts without Python: `esm2-features scan ubiquitin.fasta -o
#   scan.csv --plot scan.png` and `esm2-features contacts proteins.fasta -o contacts.npz --plot
#   maps`.
# * [Quickstart](01_quickstart.ipynb): pipelines, the cache, layers and poolings.
# * For a map of many thousand proteins, embed them once with `esm2-features embed`: vectors stay
#   in the cache, and the map is drawn again in seconds.

# %%
if has_real:
    folder.cleanup()
