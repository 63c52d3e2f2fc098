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
# # Which variants bind, and which to measure next?
#
# Three questions around affinity: which antibodies of a CDR-H3 library bind their antigen, which
# variants are worth measuring next when a round of measurements is small, and how much a mutation
# weakens a complex of two chains.
#
# You will learn how to pool over a CDR with the whole chain as context, how to embed two chains
# apart and together, how to run an active-learning loop on a Gaussian process and check its
# intervals, and how relatives in a table make a model look better than it is.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"` in the next
# > cell.

# %%
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from Bio.Align import substitution_matrices
from IPython.display import Markdown, display
from matplotlib.ticker import PercentFormatter
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform
from scipy.stats import norm, rankdata, spearmanr, t
from sklearn import set_config
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.dummy import DummyRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from esm2_features import ESM2Transformer, datasets

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"
SEED = 0

local = Path("../shared/data") if Path("../shared/data").is_dir() else Path("../../shared/data")
if local.is_dir():
    os.environ.setdefault("ESM2_FEATURES_DATA", str(local))

# With this switch, scikit-learn hands the groups of a split on to the search inside a pipeline.
# Without it, the folds of an inner search would be random, and relatives would leak.
set_config(enable_metadata_routing=True)

# For the small matrices of this notebook, more threads of NumPy only get in each other's way.
threadpool_limits(1, user_api="blas")

AMINO_ACIDS = list("ACDEFGHIKLMNPQRSTVWY")
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
# ## Your own data
#
# Each part needs one table, and runs without the others. Replace a line of the next cell by
# something like `antibodies = pd.read_csv("my_antibodies.csv")`.
#
# | table | columns |
# |---|---|
# | `antibodies` | `heavy`, `light`, `cdrh3` (a part of `heavy`), `binds` (0 or 1) |
# | `variants` | `sequence` (all of the same length), `fitness` (a number, higher is better) |
# | `pairs` | `complex`, `wildtype_a`, `wildtype_b`, `sequence_a`, `sequence_b`, `ddg` |
#
# The first and the last table have no licence, so the library neither holds nor downloads them. If
# they are not in your data folder, their parts say so and are skipped.

# %% tags=["your-data"]
# Constant in the whole library: the light chain of trastuzumab.
TRASTUZUMAB_VL = (
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQ"
    "HYTTPPTFGQGTKVEIK"
)
folder = Path(os.environ.get("ESM2_FEATURES_DATA", "."))
her2_file = folder / "affinity_her2_vh.csv.gz"
skempi_file = folder / "affinity_skempi_pairs.csv.gz"

antibodies = pairs = None
if her2_file.exists():
    antibodies = pd.read_csv(her2_file).rename(columns={"sequence": "heavy"})
    antibodies["light"] = TRASTUZUMAB_VL
if skempi_file.exists():
    pairs = pd.read_csv(skempi_file)
variants = datasets.fetch_fitness_gb1(as_frame=True).frame

# How many rows of them are used here, so that the notebook takes less than a minute.
N_ANTIBODIES, N_VARIANTS, N_PER_COMPLEX = 800, 900, 15


# %% [markdown]
# # Part 1: an antibody library
#
# Mason et al. (2021) put thousands of CDR-H3s into trastuzumab and sorted them for binding to
# HER2. All else is constant: the rest of the heavy chain, and the light chain.

# %%
if antibodies is None:
    say(
        f"**`{her2_file.name}` is not in your data folder, so this part is skipped.** The library "
        "is in "
        "the repository `dahjan/DMS_opt` on GitHub. Save a table of this name, with the columns "
        "`cdrh3`, `sequence` (heavy chain) and `binds` (0 or 1), in a folder, and let the "
        "environment "
        "variable `ESM2_FEATURES_DATA` name this folder."
    )
else:
    whole_library = len(antibodies)
    # A plain random sample keeps the balance of the classes.
    antibodies = antibodies.drop_duplicates("heavy").sample(
        min(N_ANTIBODIES, whole_library), random_state=SEED, ignore_index=True
    )
    binds = antibodies.binds.to_numpy()
    say(
        f"{len(antibodies):,} of {whole_library:,} antibodies, drawn at random; {binds.mean():.0%} "
        "of them "
        f"bind. Heavy chains have {antibodies.heavy.str.len().min()} to "
        f"{antibodies.heavy.str.len().max()} "
        f"residues, CDR-H3s {antibodies.cdrh3.str.len().min()} to "
        f"{antibodies.cdrh3.str.len().max()}."
    )

# %% [markdown]
# ## Two chains in two columns
#
# Several columns are several chains: each is embedded by itself, and the vectors are put behind
# one another. What is constant in a table gives constant features, which can teach a model
# nothing. With `join="linker-per-chain"` the chains go through the network together, and each
# vector is made in sight of the other chain. We look at a hundred antibodies.

# %%
if antibodies is not None:
    two_chains = antibodies[["heavy", "light"]].head(100)
    rows = []
    for join in ("concatenate", "linker-per-chain"):
        esm = ESM2Transformer(MODEL, join=join).set_output(transform="pandas")
        embedded = esm.fit_transform(two_chains)
        # Within float32's rounding, a column is constant.
        varies = embedded.std() > 1e-6 * embedded.abs().max()
        chain_of = embedded.columns.str.split("_").str[0]
        rows += [
            {
                "join": join,
                "chain": chain,
                "features": (chain_of == chain).sum(),
                "that vary": varies[chain_of == chain].sum(),
                "median standard deviation": embedded.loc[:, chain_of == chain].std().median(),
            }
            for chain in two_chains
        ]
    chains = pd.DataFrame(rows)
    display(chains.style.format({"median standard deviation": "{:.1g}"}).hide())
    light = chains[chains.chain == "light"].set_index("join")
    say(
        f"Embedded by itself, {light['that vary']['concatenate']} of "
        f"{light.features['concatenate']} "
        "features of the light chain vary from row to row: it carries nothing here, and is left "
        "out from now on. "
        f"Behind a linker {light['that vary']['linker-per-chain']} of them vary, but only with "
        "what the network sees of the heavy chain, which we have already. In a library with "
        "several "
        'light chains, `["heavy", "light"]` is the way to begin.'
    )

# %% [markdown]
# ## The CDR as a region
#
# A mean over a whole chain mixes the CDR with many residues that never change. A *region column*
# tells for each row which residues to pool over; the network still sees the whole chain. Here it
# comes from `heavy.find(cdrh3)`. That finds the first match, so for short CDRs in other frameworks
# take positions from a numbering tool (such as ANARCI) instead.
#
# The mean over a CDR knows its composition, but hardly the order. As all CDRs are equally long
# here, there is a richer choice: one region for each position, which is the counterpart of
# one-hot.

# %%
if antibodies is not None:
    starts = np.array(
        [heavy.find(cdr) for heavy, cdr in zip(antibodies.heavy, antibodies.cdrh3, strict=True)]
    )
    if (starts < 0).any():
        raise ValueError(f"{(starts < 0).sum()} values of cdrh3 are no part of their heavy chain.")
    ends = starts + antibodies.cdrh3.str.len()
    antibodies["h3"] = list(zip(starts.tolist(), ends.tolist(), strict=True))
    width = int(antibodies.cdrh3.str.len().min())
    places = [f"h3_{k}" for k in range(width)]
    for k, place in enumerate(places):
        antibodies[place] = starts + k

    # All parts of a chain come from the same forward pass if they are asked for together.
    whole = [(0, len(heavy)) for heavy in antibodies.heavy]
    parts = [whole, antibodies.h3, *(antibodies[place] for place in places)]
    parts = pd.concat(
        [pd.DataFrame({"heavy": antibodies.heavy, "part": list(part)}) for part in parts]
    )
    ESM2Transformer(MODEL, region="part").precompute(parts, layers=-1, pooling="mean")
    say(
        f"{len(parts):,} vectors ({len(parts) // len(antibodies)} for each heavy chain) from "
        f"{len(antibodies):,} forward "
        "passes are now in the cache: what follows only reads."
    )


# %%
def letters(table):
    """The residues of the CDR, one column for each position: (n, width)."""
    return np.array([list(cdr[:width]) for cdr in table.cdrh3])


def composition(table):
    """Share of each amino acid in the CDR: (n, 20)."""
    return np.array([[cdr.count(a) / len(cdr) for a in AMINO_ACIDS] for cdr in table.cdrh3])


if antibodies is not None:
    by_place = [(ESM2Transformer(MODEL, region=place), ["heavy", place]) for place in places]
    one_hot = OneHotEncoder(categories=[AMINO_ACIDS] * width)
    cdr_features = {
        "embedding, whole heavy chain": make_column_transformer(
            (ESM2Transformer(MODEL), ["heavy"])
        ),
        "embedding, CDR-H3": make_column_transformer(
            (ESM2Transformer(MODEL, region="h3"), ["heavy", "h3"])
        ),
        "embedding, CDR-H3 by position": make_column_transformer(*by_place),
        "composition of CDR-H3": FunctionTransformer(composition),
        "one-hot CDR-H3": make_pipeline(
            FunctionTransformer(letters), one_hot, FunctionTransformer(lambda X: X.toarray())
        ),
    }
    # All get the same classifier, which chooses its regularisation inside the training set, on
    # folds that keep clusters of similar CDR-H3s (see below) together.
    classifier = GridSearchCV(
        RidgeClassifier(),
        {"alpha": np.logspace(1, 5, 5)},
        cv=StratifiedGroupKFold(3),
        scoring="average_precision",
    )
    cdr_models = {
        name: make_pipeline(step, StandardScaler(), classifier)
        for name, step in cdr_features.items()
    }

# %% [markdown]
# ## How far is a test antibody from the training set?
#
# For libraries, papers mostly split at random. Then many test antibodies have a training antibody
# a few substitutions away, and a model can score by remembering. The second split puts CDR-H3s
# that are linked by steps of few substitutions into one cluster, and keeps clusters together, so
# that no test antibody has a training antibody within that distance. Which of the two matters
# depends on what you want: to fill gaps in a library, or to go beyond it.

# %% mystnb={"image": {"alt": "Two histograms of the number of substitutions between a test CDR-H3 and the nearest one in the training set, for the random split and for the split by clusters; with clusters, there are none at small distances."}}
CLOSE = 3  # substitutions; clusters are farther apart than this

if antibodies is not None:
    # All CDRs are equally long, so the edit distance without gaps is the number of differences.
    codes = np.array([[ord(a) for a in cdr] for cdr in antibodies.cdrh3.str[:width]])
    substitutions = np.rint(pdist(codes, "hamming") * width)
    clusters = fcluster(linkage(substitutions, "single"), CLOSE, "distance")
    apart = squareform(substitutions).astype(int)

    stratified = StratifiedKFold(5, shuffle=True, random_state=SEED)
    grouped = StratifiedGroupKFold(5, shuffle=True, random_state=SEED)
    cdr_folds = {
        "random": list(stratified.split(antibodies, binds)),
        "clusters": list(grouped.split(antibodies, binds, groups=clusters)),
    }
    nearest = {
        split: np.concatenate([apart[np.ix_(test, train)].min(axis=1) for train, test in folds])
        for split, folds in cdr_folds.items()
    }

    figure, axis = plt.subplots(figsize=(6.5, 3))
    for split, colour, shift in (("random", AMBER, -0.2), ("clusters", TEAL, 0.2)):
        share = np.bincount(nearest[split], minlength=width + 1) / len(antibodies)
        axis.bar(
            np.arange(width + 1) + shift,
            share,
            width=0.38,
            color=colour,
            label=f"{split} kept together" if split == "clusters" else "random split",
        )
    axis.axvline(CLOSE + 0.5, color=GREY, lw=1, ls="--")
    axis.set(
        xlim=(0.4, max(d.max() for d in nearest.values()) + 0.6),
        xlabel="substitutions to the nearest training CDR-H3",
        ylabel="share of the test antibodies",
    )
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend()
    plt.show()

    sizes = np.bincount(clusters)
    say(
        f"There are {len(set(clusters)):,} clusters; the largest holds {sizes.max()} antibodies, "
        "of which "
        f"{binds[clusters == sizes.argmax()].mean():.0%} bind (of all: {binds.mean():.0%}). With "
        "random folds, "
        f"{(nearest['random'] <= CLOSE).mean():.0%} of the test antibodies have a training "
        f"antibody within {CLOSE} "
        f"substitutions, with clusters {(nearest['clusters'] <= CLOSE).mean():.0%}. Our sample of "
        f"{len(antibodies) / whole_library:.0%} has thinned the library out: in the whole of it, "
        "relatives are closer."
    )

# %% [markdown]
# ## Binders against non-binders
#
# One model for each set of features, with the same classifier and the same folds. Intervals are
# bootstraps: over antibodies for random folds, over clusters for clusters. They hold for this
# sample and these folds; another sample of the library can change which features win, so try
# several sizes and seeds before you believe an order.


# %%
def bootstrap(groups, resamples, seed=SEED):
    """Rows of each resample of whole groups: a list of arrays."""
    rng = np.random.default_rng(seed)
    _, members = np.unique(groups, return_inverse=True)
    rows_of = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    n = len(rows_of)
    return [np.concatenate([rows_of[g] for g in rng.integers(n, size=n)]) for _ in range(resamples)]


def interval(values):
    """Ends of the 95 % interval of resampled values."""
    return np.nanpercentile(values, [2.5, 97.5])


def in_words(value, spread, digits=2):
    """A number with its interval."""
    low, high = interval(spread)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if antibodies is not None:
    cdr_scores, cdr_metrics, cdr_spread = {}, {}, {}
    resamples = {
        "random": bootstrap(np.arange(len(antibodies)), 150),
        "clusters": bootstrap(clusters, 150),
    }
    for split, folds in cdr_folds.items():
        for name, model in cdr_models.items():
            score = cross_val_predict(
                model,
                antibodies,
                binds,
                cv=folds,
                method="decision_function",
                params={"groups": clusters},
            )
            cdr_scores[split, name] = score
            for metric in (average_precision_score, roc_auc_score):
                key = metric.__name__, split, name
                cdr_metrics[key] = metric(binds, score)
                cdr_spread[key] = np.array([metric(binds[r], score[r]) for r in resamples[split]])

# %% mystnb={"image": {"alt": "Dumbbell plots of average precision and ROC AUC for five sets of features, with random folds and with clusters kept together, with 95 % intervals."}}
if antibodies is not None:
    titles = {"average_precision_score": "average precision", "roc_auc_score": "ROC AUC"}
    order = sorted(
        cdr_models, key=lambda name: cdr_metrics["average_precision_score", "clusters", name]
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for y, name in enumerate(order):
            for split, colour, shift in (("random", AMBER, 0.14), ("clusters", TEAL, -0.14)):
                value = cdr_metrics[metric, split, name]
                low, high = interval(cdr_spread[metric, split, name])
                axis.plot([low, high], [y + shift] * 2, color=colour, lw=2, alpha=0.6)
                axis.plot(value, y + shift, "o", color=colour, ms=6)
                axis.annotate(
                    f"{value:.2f}",
                    (high, y + shift),
                    xytext=(4, 0),
                    textcoords="offset points",
                    color=colour,
                    va="center",
                    fontsize=9,
                )
        axis.set(xlabel=f"{title} (95 % interval)", ylim=(-0.6, len(order) - 0.4))
        axis.margins(x=0.12)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].axvline(binds.mean(), color=GREY, lw=0.8, ls=":")
    axes[0].text(binds.mean() + 0.006, len(order) - 0.5, "chance", color=GREY, va="top", fontsize=9)
    handles = [plt.Line2D([], [], color=c, marker="o", lw=2) for c in (AMBER, TEAL)]
    figure.legend(
        handles, ["random folds", "clusters kept together"], loc="outside lower center", ncols=2
    )
    plt.show()

# %%
if antibodies is not None:
    AP = "average_precision_score"

    def ap(name, split="clusters"):
        """Average precision in words."""
        return in_words(cdr_metrics[AP, split, name], cdr_spread[AP, split, name])

    def compared(a, b, split="clusters"):
        """How the average precision of a compares with that of b, by paired resamples."""
        gap = cdr_metrics[AP, split, a] - cdr_metrics[AP, split, b]
        low, high = interval(cdr_spread[AP, split, a] - cdr_spread[AP, split, b])
        words = (
            "clearly above"
            if low > 0
            else "clearly below"
            if high < 0
            else "not clearly different from"
        )
        return f"{words} *{b}* ({gap:+.2f}, {low:+.2f} to {high:+.2f})"

    from_embeddings = [name for name in order if name.startswith("embedding")]
    best = from_embeddings[-1]
    dropped = {
        name: cdr_metrics[AP, "random", name] - cdr_metrics[AP, "clusters", name] for name in order
    }
    falls_most = max(dropped, key=dropped.get)
    say(
        "With clusters kept together, pooling over the CDR gives an average precision of "
        f"{ap('embedding, CDR-H3')}, "
        f"{compared('embedding, CDR-H3', 'embedding, whole heavy chain')}, "
        f"and {compared('embedding, CDR-H3', 'composition of CDR-H3')}, which also ignores the "
        "order. Position by "
        f"position it is {ap('embedding, CDR-H3 by position')}, "
        f"{compared('embedding, CDR-H3 by position', 'one-hot CDR-H3')}."
    )
    winner = order[-1]
    say(
        f"The highest value of all has *{winner}*, "
        + (
            f"and the best embedding, *{best}*, is {compared(best, winner)}. "
            if winner != best
            else f"which is {compared(best, 'one-hot CDR-H3')}. "
        )
        + f"From random folds to clusters, average precision changes most for *{falls_most}*, by "
        f"{-dropped[falls_most]:+.2f}. "
        + (
            "One-hot says outright which residue is where, but it cannot compare CDRs of "
            "different lengths."
            if winner.startswith("one-hot")
            else "Whether a larger model widens or closes the gap is for you to see: it is one variable."
        )
    )

# %% [markdown]
# What does this mean in the laboratory? Suppose the model chooses what is made next: the curve
# shows which share of the choices would bind.

# %% mystnb={"image": {"alt": "Share of binders among the antibodies ranked highest, against how many are chosen, for three sets of features with clusters kept together."}}
if antibodies is not None:
    figure, axis = plt.subplots(figsize=(6.5, 3.4))
    chosen = np.arange(10, len(antibodies) + 1, 5)
    shown = {"one-hot CDR-H3": AMBER, best: TEAL, "embedding, whole heavy chain": VIOLET}
    for name, colour in shown.items():
        ranked = binds[np.argsort(-cdr_scores["clusters", name], kind="stable")]
        hits = np.cumsum(ranked)[chosen - 1] / chosen
        axis.plot(chosen, hits, color=colour, lw=1.8, label=name)
    axis.axhline(binds.mean(), color=GREY, lw=0.8, ls=":")
    axis.text(10, binds.mean() + 0.02, "chosen at random", color=GREY, fontsize=9)
    axis.set(
        xscale="log",
        xlabel=f"antibodies chosen (of {len(antibodies):,}, ranked by a model that has not seen their cluster)",
        ylabel="share that binds",
        ylim=(0, 1.02),
    )
    axis.set_xticks([10, 30, 100, 300, 1000], ["10", "30", "100", "300", "1000"])
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(loc="lower left")
    plt.show()

# %% [markdown]
# # Part 2: what to measure next
#
# A model that knows how sure it is can choose its own training data. We play this with data that
# are all measured: four positions of the protein G domain B1 (GB1; Wu et al. 2016, in the version
# of FLIP), whose fitness is how well it binds IgG, relative to the wild type. The loop starts with
# few measurements, and each round it may ask for some more.

# %%
lengths = variants.sequence.str.len()
if lengths.nunique() > 1:
    raise ValueError("The variants of this part must have the same length.")
total = len(variants)
aligned = np.array([list(s) for s in variants.sequence])
sites = np.flatnonzero((aligned != aligned[0]).any(axis=0))
DOMAIN = 56  # residues of GB1; the rest of FLIP's construct is constant, and no part of the domain
if lengths[0] > DOMAIN and sites.max() < DOMAIN:
    variants["sequence"] = variants.sequence.str[:DOMAIN]
variants = variants.sample(min(N_VARIANTS, total), random_state=SEED, ignore_index=True)
for site in sites:
    variants[f"site_{site + 1}"] = site

fitness = variants.fitness.to_numpy()
held_out = np.arange(len(variants)) >= 2 * len(variants) // 3  # rows are in random order
say(
    f"{len(variants):,} of {total:,} variants, which differ at the positions "
    f"{', '.join(str(site + 1) for site in sites)} (counted from 1). Their first "
    f"{variants.sequence.str.len()[0]} of "
    f"{lengths[0]} residues are embedded. {(~held_out).sum():,} may be chosen by the loop, and "
    f"{held_out.sum()} are held out to judge the model. The median fitness is "
    f"{np.median(fitness):.2f}, "
    f"the highest {fitness.max():.2f}; {(fitness > 1).mean():.0%} are fitter than the wild type."
)


# %% [markdown]
# ## A Gaussian process on the mutated positions
#
# The features are the embeddings at each mutated position, in sight of all the others; one-hot of
# the same positions is the baseline. Scaling and PCA are fitted on the candidates alone; that
# involves no measured value. The Gaussian process has a smooth kernel (RBF) and noise, and
# learns their sizes from what has been measured.


# %%
def site_letters(table):
    """The residues at the mutated positions: (n, sites)."""
    return np.array([[s[site] for site in sites] for s in table.sequence])


site_columns = [f"site_{site + 1}" for site in sites]
together = pd.concat(
    [pd.DataFrame({"sequence": variants.sequence, "site": variants[c]}) for c in site_columns]
)
ESM2Transformer(MODEL, region="site").precompute(together, layers=-1, pooling="mean")

featurize = {
    "embedding": make_column_transformer(
        *[(ESM2Transformer(MODEL, region=c), ["sequence", c]) for c in site_columns]
    ),
    "one-hot": make_pipeline(
        FunctionTransformer(site_letters),
        OneHotEncoder(categories=[AMINO_ACIDS] * len(sites), sparse_output=False),
    ),
}
spaces = {}
for name, step in featurize.items():
    # Fewer components make the Gaussian process fast; what varies with the variants is kept.
    reduce = PCA(50, svd_solver="full", random_state=SEED)
    scaled = make_pipeline(step, StandardScaler(), reduce).fit(variants[~held_out])
    scaled = scaled.transform(variants)
    # Typical distances are near 1, whatever the number of features: a good start for the kernel.
    spaces[name] = scaled / np.sqrt((scaled[~held_out] ** 2).sum(axis=1).mean())


def gaussian_process(kernel=None):
    """Gaussian process whose kernel starts where an earlier one ended."""
    start = ConstantKernel(1, (1e-3, 1e3)) * RBF(1, (0.05, 100)) + WhiteKernel(0.5, (1e-4, 10))
    return GaussianProcessRegressor(kernel or start, normalize_y=True, random_state=SEED)


# %% [markdown]
# ## The loop
#
# Four ways to choose: at *random*; where the model is least *certain*; by the *upper confidence
# bound* (UCB), the predicted mean plus one standard deviation, which looks for the best and still
# tries the unknown; and UCB with one-hot features. All see the same first variants, and everything
# is repeated with other first variants. Intervals (and bands) are Student's *t* over these starts:
# they say what another start would give, not what another protein would.

# %%
START, ROUNDS, BATCH, REPEATS = 48, 6, 24, 6
TOP = 0.05  # of the candidates: the hits that we would like to find

strategies = {
    "random": ("embedding", lambda mean, sd, rng: rng.random(len(mean)), GREY),
    "least certain": ("embedding", lambda mean, sd, rng: sd, VIOLET),
    "UCB": ("embedding", lambda mean, sd, rng: mean + sd, TEAL),
    "UCB, one-hot": ("one-hot", lambda mean, sd, rng: mean + sd, AMBER),
}

candidates = np.flatnonzero(~held_out)
n_top = round(TOP * len(candidates))
top = set(candidates[np.argsort(-fitness[candidates], kind="stable")[:n_top]])
best_of_all = fitness[candidates].max()


def half_width(values):
    """Half of the 95 % interval of a mean over repeats (first axis), by Student's t."""
    n = len(values)
    return t.ppf(0.975, n - 1) * np.std(values, axis=0, ddof=1) / np.sqrt(n)


def run_loop(X, choose, seed):
    """One loop: a row of results for each round, and predictions for what was held out."""
    rng = np.random.default_rng(seed)
    measured = rng.choice(candidates, START, replace=False)
    kernel, results = None, []
    for number in range(ROUNDS + 1):
        with warnings.catch_warnings():
            # A kernel at its bound is no fault: it says that there is little to learn yet.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = gaussian_process(kernel).fit(X[measured], fitness[measured])
        kernel = model.kernel_
        mean, sd = model.predict(X, return_std=True)
        results.append(
            {
                "measured": len(measured),
                "best": fitness[measured].max(),
                "recall": len(top & set(measured)) / n_top,
                "spearman": spearmanr(mean[held_out], fitness[held_out]).statistic,
            }
        )
        if number < ROUNDS:
            rest = np.setdiff1d(candidates, measured)
            wish = choose(mean[rest], sd[rest], rng)
            measured = np.append(measured, rest[np.argsort(-wish, kind="stable")[:BATCH]])
    return results, mean[held_out], sd[held_out]


loops, final = [], {}
for name, (space, choose, _) in strategies.items():
    for repeat in range(REPEATS):
        results, mean, sd = run_loop(spaces[space], choose, repeat)
        loops += [{"strategy": name, "repeat": repeat} | row for row in results]
        final[name, repeat] = mean, sd
loops = pd.DataFrame(loops)

# %% mystnb={"image": {"alt": "Three panels against the number of measured variants, for four ways to choose them: best fitness found, share of the top five percent found, and rank correlation on held-out variants, with bands over repeats."}}
panels = {
    "best": "Best fitness found",
    "recall": f"Share found of the best {n_top}",
    "spearman": "Spearman on held-out variants",
}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6))
for axis, (column, title) in zip(axes, panels.items(), strict=True):
    for name, (_, _, colour) in strategies.items():
        of_repeats = loops[loops.strategy == name].pivot(
            index="repeat", columns="measured", values=column
        )
        mean, error = of_repeats.mean(), half_width(of_repeats.to_numpy())
        axis.plot(mean.index, mean, "o-", color=colour, lw=1.8, ms=3.5, label=name)
        axis.fill_between(mean.index, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
    axis.set(title=title, xlabel="variants measured")
    axis.set_xticks(range(START, START + ROUNDS * BATCH + 1, 2 * BATCH))
axes[0].axhline(best_of_all, color=GREY, lw=0.8, ls=":")
axes[0].text(START, best_of_all, "best candidate", color=GREY, va="bottom", fontsize=9)
axes[0].margins(y=0.1)
axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %%
last = loops[loops.measured == loops.measured.max()].pivot(index="repeat", columns="strategy")


def paired(column, a, b):
    """Mean difference over repeats that began with the same variants, with its t interval."""
    gaps = (last[column, a] - last[column, b]).to_numpy()
    low, high = gaps.mean() - half_width(gaps), gaps.mean() + half_width(gaps)
    verdict = "more than" if low > 0 else "less than" if high < 0 else "not clearly different from"
    return gaps.mean(), low, high, verdict


recall, best_found = last["recall"].mean(), last["best"].mean()
gap, low, high, verdict = paired("recall", "UCB", "random")
say(
    f"After {loops.measured.max()} of {len(candidates):,} candidates, UCB has found "
    f"{recall['UCB']:.0%} of the best {n_top}, "
    f"{verdict} random choice with {recall['random']:.0%} (difference {gap:+.0%}, {low:+.0%} to "
    f"{high:+.0%}; mean and 95 % "
    f"interval by Student's t over {REPEATS} starts). That is {recall['UCB'] / recall['random']:.1f} times as many hits "
    "for the same "
    f"measurements. Its best variant has a fitness of {best_found['UCB']:.2f} on average, that of "
    "random "
    f"choice {best_found['random']:.2f}."
)
gap, low, high, verdict = paired("recall", "UCB", "UCB, one-hot")
rank = last["spearman"].mean()
most_accurate = rank.idxmax()
say(
    f"With one-hot features UCB finds {recall['UCB, one-hot']:.0%}; the embedding ({MODEL}) finds "
    f"{verdict} that "
    f"({gap:+.0%}, {low:+.0%} to {high:+.0%}). The model that ranks the held-out variants best is "
    f"that of *{most_accurate}* "
    f"(Spearman {rank[most_accurate]:.2f}; random choice {rank['random']:.2f}, UCB "
    f"{rank['UCB']:.2f}). "
    "To find the best and to learn the landscape are different aims, so decide first which one you "
    "have."
)

# %% [markdown]
# ## Can its intervals be trusted?
#
# UCB is only as good as the standard deviations it adds. If they are right, an 80 % interval holds
# 80 % of the held-out values. A model that has chosen its own data has seen a biased part of the
# landscape, so we look at it, too. The second panel asks whether the variants that the model is
# unsure of are those it gets wrong.

# %% mystnb={"image": {"alt": "Left: share of held-out values inside the predicted intervals against the nominal level, for models trained on random choices and on UCB choices. Right: actual error in fifths of the predicted standard deviation."}}
levels = np.linspace(0.1, 0.95, 18)
truth = fitness[held_out]


def coverage(name):
    """Share of held-out values in the intervals of each level: (repeats, levels)."""
    z = np.array([np.abs(truth - m) / s for (n, _), (m, s) in final.items() if n == name])
    return (z[:, :, None] <= norm.ppf(0.5 + levels / 2)).mean(axis=1)


figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
left.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
for name, (_, _, colour) in strategies.items():
    inside = coverage(name)
    error = half_width(inside)
    left.plot(levels, inside.mean(axis=0), color=colour, lw=1.8, label=name)
    left.fill_between(
        levels,
        inside.mean(axis=0) - error,
        inside.mean(axis=0) + error,
        color=colour,
        alpha=0.15,
        lw=0,
    )
left.set(
    title="Coverage",
    xlabel="level of the interval",
    ylabel="held-out values inside",
    xlim=(0, 1),
    ylim=(0, 1),
)
for axis in (left.xaxis, left.yaxis):
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
left.legend(loc="lower right", title="data chosen by")

errors_by_sd = {}
for name in ("random", "UCB"):
    means, sds = (np.concatenate([final[name, r][k] for r in range(REPEATS)]) for k in (0, 1))
    wrong = np.tile(truth, REPEATS) - means
    fifths = np.array_split(np.argsort(sds, kind="stable"), 5)
    errors_by_sd[name] = [
        (np.sqrt(np.mean(sds[f] ** 2)), np.sqrt(np.mean(wrong[f] ** 2))) for f in fifths
    ]
    right.plot(*zip(*errors_by_sd[name], strict=True), "o-", color=strategies[name][2], label=name)
limit = 1.08 * max(max(point) for points in errors_by_sd.values() for point in points)
right.plot([0, limit], [0, limit], color=GREY, lw=0.8, ls=":")
right.set(
    title="Error where the model is unsure",
    xlabel="predicted standard deviation (fifths)",
    ylabel="root mean squared error",
    xlim=(0, limit),
    ylim=(0, limit),
)
right.legend(loc="lower right")
plt.show()

# %%
nominal = 0.9
at = np.abs(levels - nominal).argmin()
inside = {name: coverage(name)[:, at].mean() for name in strategies}
rises = errors_by_sd["random"][-1][1] / errors_by_sd["random"][0][1]


def judged(share):
    """Whether intervals of the nominal level are too narrow or too wide."""
    return (
        "too narrow"
        if share < levels[at] - 0.02
        else "too wide"
        if share > levels[at] + 0.02
        else "about right"
    )


say(
    f"Of the held-out values, the {levels[at]:.0%} intervals hold {inside['random']:.0%} if the "
    "data were chosen at random "
    f"({judged(inside['random'])}), {inside['UCB']:.0%} with UCB ({judged(inside['UCB'])}), and "
    f"{inside['UCB, one-hot']:.0%} with UCB on one-hot "
    f"({judged(inside['UCB, one-hot'])}). Where the model trained on random choices is least sure, "
    "its error is "
    f"{rises:.1f} times that where it is surest. Fitness here is lopsided "
    f"({(fitness < 0.1).mean():.0%} of the variants have less than a "
    "tenth of the wild type's), and the intervals of a Gaussian process are symmetric: check "
    "coverage on your own "
    "data, too, before you believe a single interval."
)

# %% [markdown]
# ## The same with yes or no
#
# For the antibody library, a measurement says only whether it binds. A logistic regression on the
# CDR-H3 chooses those that it finds likeliest to bind, or those nearest to one half.

# %% mystnb={"image": {"alt": "Binders found against antibodies measured, for choosing the likeliest binders with embedding and with one-hot features, the least certain, and at random, with bands over repeats."}}
if antibodies is not None:
    binder_spaces = {}
    for name in ("embedding, CDR-H3 by position", "one-hot CDR-H3"):
        reduce = PCA(50, random_state=SEED)
        X = make_pipeline(clone(cdr_features[name]), StandardScaler(), reduce).fit_transform(
            antibodies
        )
        # As for the Gaussian process: both sets on one scale, so that the penalty is the same.
        binder_spaces[name] = X / np.sqrt((X**2).sum(axis=1).mean())
    wishes = {
        "likeliest": ("embedding, CDR-H3 by position", lambda p, rng: p, TEAL),
        "likeliest, one-hot": ("one-hot CDR-H3", lambda p, rng: p, AMBER),
        "least certain": ("embedding, CDR-H3 by position", lambda p, rng: -np.abs(p - 0.5), VIOLET),
        "random": (None, None, GREY),
    }

    def find_binders(space, choose, seed):
        """Binders among what has been measured after each round."""
        rng = np.random.default_rng(seed)
        measured = rng.choice(len(binds), START, replace=False)
        found = [binds[measured].sum()]
        for _ in range(ROUNDS):
            rest = np.setdiff1d(np.arange(len(binds)), measured)
            wish = rng.random(len(rest))
            if space is not None:
                X = binder_spaces[space]
                model = LogisticRegression(C=10, max_iter=1000)
                p = model.fit(X[measured], binds[measured]).predict_proba(X[rest])[:, 1]
                wish = choose(p, rng)
            measured = np.append(measured, rest[np.argsort(-wish, kind="stable")[:BATCH]])
            found.append(binds[measured].sum())
        return found

    counts = START + BATCH * np.arange(ROUNDS + 1)
    figure, axis = plt.subplots(figsize=(6.5, 3.6))
    found = {}
    for name, (space, choose, colour) in wishes.items():
        found[name] = np.array([find_binders(space, choose, repeat) for repeat in range(REPEATS)])
        mean = found[name].mean(axis=0)
        error = half_width(found[name])
        axis.plot(counts, mean, "o-", color=colour, lw=1.8, ms=3.5, label=name)
        axis.fill_between(counts, mean - error, mean + error, color=colour, alpha=0.15, lw=0)
    axis.set(xlabel="antibodies measured", ylabel="binders found", ylim=(0, None))
    axis.set_xticks(counts)
    axis.legend(loc="upper left")
    plt.show()

    ends = {name: of[:, -1] for name, of in found.items()}
    say(
        f"Of {counts[-1]} measured antibodies, "
        + ", ".join(
            f"{end.mean():.0f} ± {end.std(ddof=1):.0f} bind with *{name}*"
            for name, end in ends.items()
        )
        + f" (mean and standard deviation of {REPEATS} repeats)."
    )

# %% [markdown]
# # Part 3: mutations in a complex of two chains
#
# How much does a mutation change the free energy of binding? The table (from SKEMPI) has a wild
# type and a mutant for both chains. Features are differences: embedding of the mutant less
# embedding of the wild type.

# %%
if pairs is None:
    say(
        f"**`{skempi_file.name}` is not in your data folder, so this part is skipped.** The pairs "
        "are in "
        "the repository `guangyu-zhou/MuPIPR` on GitHub. Save a table of this name, with the "
        "columns "
        "`complex`, `wildtype_a`, `wildtype_b`, `sequence_a`, `sequence_b` and `ddg` (kcal/mol), "
        "in a folder, and let the "
        "environment variable `ESM2_FEATURES_DATA` name this folder."
    )
else:
    all_rows = len(pairs)
    chains_of = ["wildtype_a", "wildtype_b", "sequence_a", "sequence_b"]
    for chain in "ab":
        if (pairs[f"wildtype_{chain}"].str.len() != pairs[f"sequence_{chain}"].str.len()).any():
            raise ValueError(
                "This part is about substitutions: mutants as long as their wild types."
            )
    # A variant that was measured several times is one row, with the mean.
    pairs = pairs.groupby(["complex", *chains_of], as_index=False, sort=False).ddg.mean()

    states = [pairs[["wildtype_a", "wildtype_b"]], pairs[["sequence_a", "sequence_b"]]]
    before, after = (list(state.itertuples(index=False, name=None)) for state in states)
    steps = set(zip(before, after, strict=True))
    reverse = np.array([(b, a) in steps for a, b in zip(before, after, strict=True)])

    pairs = pairs.assign(reverse=reverse).sample(frac=1, random_state=SEED)
    pairs = pairs.groupby("complex").head(N_PER_COMPLEX).reset_index(drop=True)
    ddg = pairs.ddg.to_numpy()
    say(
        f"{len(pairs):,} of {all_rows:,} rows, at most {N_PER_COMPLEX} of a complex, so that a few "
        f"complexes do not decide everything. {pairs.complex.nunique()} complexes; ΔΔG from "
        f"{ddg.min():.1f} to "
        f"{ddg.max():.1f} kcal/mol with a mean of {ddg.mean():+.1f}: positive means weaker binding."
    )

# %% [markdown]
# ## A complex with another name can be the same two proteins
#
# The usual advice is to keep each complex together. Look closer: the same inhibitor occurs with
# many proteases, and a mutant with a crystal structure of its own has an entry of its own. We call
# complexes relatives if a chain of one shares half of its 3-mers with a chain of the other, and
# keep families together as well.

# %% mystnb={"image": {"alt": "Bars: rows in each of the largest families of complexes, each bar stacked from the complexes that belong to it, showing that a few families hold most of the rows."}}
SHARED = 0.5  # of the 3-mers of the smaller chain

if pairs is not None:
    complexes = pairs.drop_duplicates("complex").reset_index(drop=True)
    n = len(complexes)
    words = CountVectorizer(
        analyzer="char", ngram_range=(3, 3), lowercase=False, binary=True, dtype=np.int32
    )
    has = words.fit_transform([*complexes.wildtype_a, *complexes.wildtype_b])
    of_chain = np.asarray(has.sum(axis=1)).ravel()
    alike = (has @ has.T).toarray() >= SHARED * np.minimum.outer(of_chain, of_chain)
    related = alike[:n, :n] | alike[n:, n:] | alike[:n, n:] | alike[n:, :n]
    family_of = dict(zip(complexes.complex, connected_components(related)[1], strict=True))
    pairs["family"] = pairs.complex.map(family_of)

    largest = pairs.family.value_counts().head(10)
    figure, axis = plt.subplots(figsize=(7, 3.2))
    for y, family in enumerate(largest.index):
        left = 0
        members = pairs[pairs.family == family].complex.value_counts()
        for k, rows in enumerate(members):
            axis.barh(y, rows, left=left, color=(TEAL, VIOLET)[k % 2], edgecolor="white", lw=0.5)
            left += rows
        noun = "complex" if len(members) == 1 else "complexes"
        axis.text(left + 4, y, f"{len(members)} {noun}", va="center", fontsize=9, color=GREY)
    axis.invert_yaxis()
    axis.set_yticks([])
    axis.margins(x=0.2)
    axis.set(
        xlabel="rows", ylabel="family", title="The ten largest families, and the complexes in them"
    )
    plt.show()

    say(
        f"{n} complexes are {pairs.family.nunique()} families. The largest holds "
        f"{largest.iloc[0] / len(pairs):.0%} of the rows, the "
        f"three largest {largest.iloc[:3].sum() / len(pairs):.0%}. For {pairs.reverse.sum()} rows "
        "even the exact way back, from the "
        "mutant to the wild type, is in the table, under the name of another complex. A "
        "split by complex puts such rows on both "
        "sides."
    )

# %% [markdown]
# ## Features for two chains
#
# * *two columns*: each chain by itself, mean over the chain; mutant less wild type.
# * *linker*: both chains through the network together (`join="linker"`), mean over both.
# * *mutated residues*: region columns with the mutated positions of each chain. A chain without a
#   mutation has no region; `on_missing="zero"` makes it zero, and the differences of the two
#   chains are added, because which chain is called *a* is arbitrary.
# * *residue change*: amino acids lost and gained, the sum of BLOSUM62 and the number of mutations.
#   No language model.
# * *wild type only* knows the complex and nothing of the mutation. *Mean* knows nothing.


# %%
def mutated(wildtype, mutant):
    """Mutated positions as text such as "3,17", counted from 0; None if there are none."""
    positions = [str(i) for i, (a, b) in enumerate(zip(wildtype, mutant, strict=True)) if a != b]
    return ",".join(positions) or None


def mutant_less_wildtype(both):
    """The first half of the columns less the second: (n, features / 2)."""
    half = both.shape[1] // 2
    return both[:, :half] - both[:, half:]


def chain_sum(both):
    """The first half of the columns plus the second: (n, features / 2)."""
    half = both.shape[1] // 2
    return both[:, :half] + both[:, half:]


def of_both(**options):
    """Embeddings of the mutant less those of the wild type, for whole chains."""
    both = make_column_transformer(
        (ESM2Transformer(MODEL, **options), ["sequence_a", "sequence_b"]),
        (ESM2Transformer(MODEL, **options), ["wildtype_a", "wildtype_b"]),
    )
    return make_pipeline(both, FunctionTransformer(mutant_less_wildtype))


def of_sites():
    """Embeddings of the mutated residues less those of the wild type's, added over chains."""
    columns = [
        (
            ESM2Transformer(MODEL, region=f"sites_{chain}", on_missing="zero"),
            [f"{state}_{chain}", f"sites_{chain}"],
        )
        for state in ("sequence", "wildtype")
        for chain in "ab"
    ]
    return make_pipeline(
        make_column_transformer(*columns),
        FunctionTransformer(mutant_less_wildtype),
        FunctionTransformer(chain_sum),
    )


BLOSUM62 = substitution_matrices.load("BLOSUM62")


def residue_change(table):
    """Amino acids lost (20), gained (20), BLOSUM62 and number of mutations, summed over both chains."""
    rows = np.zeros((len(table), 42))
    for row, wa, wb, sa, sb in zip(
        rows, table.wildtype_a, table.wildtype_b, table.sequence_a, table.sequence_b, strict=True
    ):
        for a, b in zip(wa + wb, sa + sb, strict=True):
            if a != b:
                row[AMINO_ACIDS.index(a)] += 1
                row[20 + AMINO_ACIDS.index(b)] += 1
                row[40] += BLOSUM62[a][b]
                row[41] += 1
    return rows


if pairs is not None:
    for chain in "ab":
        pairs[f"sites_{chain}"] = [
            mutated(w, m)
            for w, m in zip(pairs[f"wildtype_{chain}"], pairs[f"sequence_{chain}"], strict=True)
        ]
    change = FunctionTransformer(residue_change)
    pair_features = {
        "mean": None,
        "wild type only": make_column_transformer(
            (ESM2Transformer(MODEL), ["wildtype_a", "wildtype_b"])
        ),
        "two columns": of_both(),
        "linker": of_both(join="linker"),
        "mutated residues": of_sites(),
        "residue change": change,
        "residue change + mutated residues": FeatureUnion(
            [("change", change), ("sites", of_sites())]
        ),
    }
    # How strong the ridge is, is chosen inside the training set, with the same groups kept together.
    ridge = GridSearchCV(
        Ridge(),
        {"alpha": np.logspace(1, 5, 5)},
        cv=GroupKFold(3),
        scoring="neg_root_mean_squared_error",
    )
    pair_models = {
        name: DummyRegressor()
        if features is None
        else make_pipeline(features, StandardScaler(), ridge)
        for name, features in pair_features.items()
    }

# %% [markdown]
# ## How well is ΔΔG predicted?
#
# *Pooled* Spearman compares rows of different complexes, and is helped by knowing which complexes
# are sensitive; *per complex* asks what a designer wants to know: which mutation of mine is worse?
# All intervals are bootstraps over families, because relatives are no independent evidence.

# %%
MIN_ROWS = 10  # of a complex, for a Spearman of its own

if pairs is not None:
    large = pairs.groupby("complex").ddg.transform("size") >= MIN_ROWS
    rows_of_complex = [rows.to_numpy() for rows in pairs[large].groupby("complex").groups.values()]

    def per_complex(predicted):
        """Spearman of each complex that has enough rows; NaN where all predictions are equal."""
        return np.array(
            [
                np.corrcoef(rankdata(predicted[r]), rankdata(ddg[r]))[0, 1]
                if np.ptp(predicted[r]) > 1e-3
                else np.nan
                for r in rows_of_complex
            ]
        )

    def spearman(predicted, rows=slice(None)):
        """Spearman over all rows, or over those of a resample."""
        x, y = rankdata(predicted[rows]), rankdata(ddg[rows])
        return np.corrcoef(x, y)[0, 1] if np.ptp(x) > 0 else np.nan

    def rmse(predicted, rows=slice(None)):
        """Root mean squared error in kcal/mol."""
        return np.sqrt(np.mean((predicted[rows] - ddg[rows]) ** 2))

    families = pairs.family.to_numpy()
    resampled_rows = bootstrap(families, 300)
    # The complexes of resampled families, each as often as its family was drawn.
    resampled_complexes = bootstrap([families[rows[0]] for rows in rows_of_complex], 300)

    splits = {"complexes": pairs.complex, "families": pairs.family}
    predicted, pair_metrics, pair_spread, rho = {}, {}, {}, {}
    for split, groups in splits.items():
        for name, model in pair_models.items():
            p = cross_val_predict(model, pairs, ddg, cv=GroupKFold(5), params={"groups": groups})
            predicted[split, name] = p
            key = split, name
            rho[key] = per_complex(p)
            # Predicting each fold's mean is no ranking: the folds' means differ by chance.
            ranks = name != "mean"
            known = ~np.isnan(rho[key]).all()
            pair_metrics["pooled", *key] = spearman(p) if ranks else np.nan
            pair_metrics["per complex", *key] = np.nanmean(rho[key]) if known else np.nan
            pair_metrics["RMSE", *key] = rmse(p)
            pair_spread["pooled", *key] = np.array(
                [spearman(p, rows) if ranks else np.nan for rows in resampled_rows]
            )
            pair_spread["per complex", *key] = np.array(
                [np.nanmean(rho[key][rows]) if known else np.nan for rows in resampled_complexes]
            )
            pair_spread["RMSE", *key] = np.array([rmse(p, rows) for rows in resampled_rows])

# %% mystnb={"image": {"alt": "Three dumbbell plots for seven sets of features, with complexes and with families kept together: pooled Spearman, mean Spearman per complex, and root mean squared error, with 95 % intervals."}}
if pairs is not None:
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), sharey=True)
    names = list(pair_models)
    labels = {
        "pooled": "pooled Spearman",
        "per complex": "Spearman per complex, mean",
        "RMSE": "RMSE (kcal/mol)",
    }
    for axis, (metric, label) in zip(axes, labels.items(), strict=True):
        for y, name in enumerate(names):
            for split, colour, shift in (("complexes", AMBER, 0.14), ("families", TEAL, -0.14)):
                value = pair_metrics[metric, split, name]
                if np.isnan(value):
                    continue
                low, high = interval(pair_spread[metric, split, name])
                axis.plot([low, high], [y + shift] * 2, color=colour, lw=2, alpha=0.6)
                axis.plot(value, y + shift, "o", color=colour, ms=6)
                axis.annotate(
                    f"{value:.2f}",
                    (high, y + shift),
                    xytext=(4, 0),
                    textcoords="offset points",
                    color=colour,
                    va="center",
                    fontsize=8,
                )
        axis.set(xlabel=label, ylim=(-0.6, len(names) - 0.4))
        axis.margins(x=0.14)
        if metric != "RMSE":
            axis.axvline(0, color=GREY, lw=0.8, ls=":")
    axes[0].set_yticks(range(len(names)), names)
    handles = [plt.Line2D([], [], color=c, marker="o", lw=2) for c in (AMBER, TEAL)]
    figure.legend(
        handles,
        ["complexes kept together", "families kept together"],
        loc="outside lower center",
        ncols=2,
    )
    plt.show()

# %%
if pairs is not None:

    def shown(metric, name, split="families"):
        """A metric with its interval, in words."""
        return in_words(pair_metrics[metric, split, name], pair_spread[metric, split, name])

    def versus(a, b, metric="per complex", split="families"):
        """How a compares with b, by paired resamples over families."""
        gap = pair_metrics[metric, split, a] - pair_metrics[metric, split, b]
        low, high = interval(pair_spread[metric, split, a] - pair_spread[metric, split, b])
        words = (
            "clearly higher"
            if low > 0
            else "clearly lower"
            if high < 0
            else "not clearly different"
        )
        return f"{words} ({gap:+.2f}, {low:+.2f} to {high:+.2f})"

    able = [name for name in names if name not in ("mean", "wild type only")]
    flattered = {
        name: pair_metrics["pooled", "complexes", name] - pair_metrics["pooled", "families", name]
        for name in able
    }
    most = max(flattered, key=flattered.get)
    less_low, less_high = interval(
        pair_spread["pooled", "families", most] - pair_spread["pooled", "complexes", most]
    )
    say(
        "With families kept together, *residue change* reaches a Spearman per complex of "
        f"{shown('per complex', 'residue change')} over "
        f"{len(rows_of_complex)} complexes with {MIN_ROWS} rows or more, and *mutated residues* "
        f"({MODEL}) {shown('per complex', 'mutated residues')}: "
        f"{versus('mutated residues', 'residue change')}. Adding the embedding to the residue "
        "change gives "
        f"{shown('per complex', 'residue change + mutated residues')}, against residue change "
        "alone "
        f"{versus('residue change + mutated residues', 'residue change')}."
    )
    say(
        f"Chains embedded together by a linker reach {shown('per complex', 'linker')}, in two "
        "columns "
        f"{shown('per complex', 'two columns')}: {versus('linker', 'two columns')}."
    )
    best_rmse = min(able, key=lambda name: pair_metrics["RMSE", "families", name])
    say(
        f"Of the models, *{best_rmse}* has the smallest error, {shown('RMSE', best_rmse)} kcal/mol; "
        f"to predict the mean of the training set gives {shown('RMSE', 'mean')}. The model's is "
        f"{versus(best_rmse, 'mean', 'RMSE')}. From complexes to families, "
        f"the pooled Spearman changes most for *{most}*, by {-flattered[most]:+.2f} "
        f"({less_low:+.2f} to {less_high:+.2f}): "
        + (
            "relatives under other names had helped."
            if less_high < 0
            else "that relatives under other names helped is not clear here."
        )
    )

# %% [markdown]
# An average hides the spread between complexes.

# %% mystnb={"image": {"alt": "Left: predicted against measured change of binding free energy, families kept together. Right: Spearman of each complex for two sets of features, sorted, with circles sized by the number of rows."}}
if pairs is not None:
    name = max(able, key=lambda name: pair_metrics["per complex", "families", name])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=[1, 1.2])
    p = predicted["families", name]
    left.scatter(ddg, p, s=10, color=TEAL, alpha=0.35, lw=0)
    ends = [min(ddg.min(), p.min()), max(ddg.max(), p.max())]
    left.plot(ends, ends, color=GREY, lw=0.8, ls=":")
    left.set(
        title=f"{name}, pooled Spearman {pair_metrics['pooled', 'families', name]:.2f}",
        xlabel="measured ΔΔG (kcal/mol)",
        ylabel="predicted ΔΔG (kcal/mol)",
    )
    rival = "residue change" if name != "residue change" else "mutated residues"
    n_rows = np.array([len(rows) for rows in rows_of_complex])
    by_rho = np.argsort(rho["families", name])
    x = np.arange(len(by_rho))
    for which, colour in ((rival, AMBER), (name, TEAL)):
        right.scatter(
            x,
            rho["families", which][by_rho],
            s=n_rows[by_rho],
            color=colour,
            alpha=0.85,
            lw=0,
            label=which,
        )
    right.axhline(0, color=GREY, lw=0.8, ls=":")
    right.set(
        title="Spearman of each complex",
        xlabel="complexes, sorted (size: rows)",
        ylabel="Spearman",
        ylim=(-1, 1),
    )
    right.set_xticks([])
    right.legend(loc="lower right")
    plt.show()
    say(
        f"With *{name}*, {(rho['families', name] > 0).sum()} of {len(rows_of_complex)} complexes "
        f"have a Spearman above zero (chance: half, {len(rows_of_complex) / 2:g}), and "
        f"{(rho['families', name] > 0.5).sum()} have one above 0.5."
    )

# %% [markdown]
# ## To take home
#
# * Try to pool where the differences are: a region column for a CDR or for mutated residues costs
#   nothing.
# * Run one-hot or residue changes under the same folds. If they win, say so, and use them.
# * Ask of each row who its relatives are. A new name is not a new protein.
# * In a loop, choose by what you want: the best variants (UCB), or a model that is right
#   everywhere.
# * With a larger model, change one variable. Everything else stays, and the cache keeps what was
#   computed.
