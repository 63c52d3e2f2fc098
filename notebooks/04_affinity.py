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
# A library of antibodies differs in one loop, and some of them bind. Which features tell binders
# from others, how far from the measured ones can they be trusted, and which variant should be
# measured next? The last part asks how much a mutation weakens a complex of two chains.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"`.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.ticker import PercentFormatter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from style import AMBER, DATA, GREY, TEAL, say  # style.py, beside this notebook

from esm2_features import (
    AlignedTransformer,
    DescriptorTransformer,
    Engine,
    ESM2DifferenceTransformer,
    ESM2Transformer,
    datasets,
)
from esm2_features.exceptions import LeakageWarning
from esm2_features.model_selection import cluster_sequences, compare_features, train_test_identity

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"
depth = max(Engine(MODEL, layers="all").layers)
LAYERS = [0, depth // 2, depth]

# %% [markdown]
# ## Your own tables
#
# Replace the next cell by something like `antibodies = pd.read_csv("my_antibodies.csv")` and
# `pairs = None`.
#
# | table | columns |
# |---|---|
# | `antibodies` | `heavy`, `light`, `loop` (a part of `heavy`), `binds` (two classes, or a number) |
# | `pairs` (or None) | `complex`, `wildtype_a`, `wildtype_b`, `sequence_a`, `sequence_b`, `ddg` |
#
# The tables here (trastuzumab CDR-H3s by Mason et al. 2021, from `dahjan/DMS_opt`; SKEMPI, from
# `guangyu-zhou/MuPIPR`) have no licence, so the library does not download them. Where they are not
# in the data folder, the peptides that ship with the library stand in for the first, and their
# numbers mean nothing for binding.

# %% tags=["your-data"]
antibodies = datasets.load_demo_peptides(as_frame=True).frame.rename(columns={"kind": "binds"})
antibodies = antibodies.assign(heavy=antibodies["sequence"], loop=antibodies["sequence"])
if (DATA / "affinity_her2_vh.csv.gz").is_file():
    antibodies = pd.read_csv(DATA / "affinity_her2_vh.csv.gz")
    antibodies = antibodies.rename(columns={"sequence": "heavy", "cdrh3": "loop"})
    antibodies["binds"] = antibodies["binds"].map({1: "yes", 0: "no"})
antibodies["light"] = (
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQ"
    "HYTTPPTFGQGTKVEIK"
)
pairs = None
if (DATA / "affinity_skempi_pairs.csv.gz").is_file():
    pairs = pd.read_csv(DATA / "affinity_skempi_pairs.csv.gz")

# %%
table = antibodies.dropna(subset=["heavy", "loop", "binds"]).drop_duplicates(["heavy", "light"])
n_rows = len(table)
table = table.sample(min(700, n_rows), random_state=0, ignore_index=True)
starts = [heavy.find(loop) for heavy, loop in zip(table["heavy"], table["loop"], strict=True)]
if -1 in starts:
    row = table.loc[starts.index(-1)]
    raise ValueError(f"The loop {row['loop']!r} is no part of its heavy chain, {row['heavy']!r}.")
ends = starts + table["loop"].str.len()
table["region"] = [f"{start}:{end}" for start, end in zip(starts, ends, strict=True)]
y = table["binds"]
is_number = pd.api.types.is_numeric_dtype(y) and y.nunique() > 10
wanted = sorted(y.unique())[-1]  # the class to look for, such as 1, True or "yes"; set yours
binds = y >= y.quantile(0.8) if is_number else y == wanted
HIT = "binds in the top fifth" if is_number else f"binds = {wanted}"
say(
    f"{len(table):,} of {n_rows:,} antibodies, drawn at random; {binds.mean():.0%} have {HIT}. Heavy "
    f"chains have {table['heavy'].str.len().min()} to {table['heavy'].str.len().max()} residues, "
    f"loops {table['loop'].str.len().min()} to {table['loop'].str.len().max()}."
)

# %% [markdown]
# ## Two chains in two columns
#
# Several columns are several chains: each is embedded by itself, and the vectors are put behind
# one another. With `join="linker-per-chain"` they go through the network together. What is
# constant in a table gives constant features, which can teach a model nothing.

# %%
chains = {}
for join in ("concatenate", "linker-per-chain"):
    esm = ESM2Transformer(MODEL, join=join).set_output(transform="pandas")
    embedded = esm.fit_transform(table[["heavy", "light"]].head(30))
    varies = embedded.std() > 1e-6 * embedded.abs().max()  # beyond the rounding of float32
    chains[join] = varies.groupby(embedded.columns.str.split("_").str[0]).sum()
display(pd.DataFrame(chains).rename_axis("features that vary"))
say(
    "Joined by a linker, a constant chain varies with what the network sees of the other one, and "
    "that is known already. What follows is about the loop."
)

# %% [markdown]
# ## Clusters of loops
#
# In a library, most loops have another one a few substitutions away, and with a random split a
# model can score by remembering. `cluster_sequences` keeps loops together that are 70 % identical.
# Which split matters depends on what you want: to fill gaps in a library, or to go beyond it.

# %%
clusters = cluster_sequences(table["loop"], min_identity=0.7)
sizes = np.bincount(clusters)
kept = clusters if len(sizes) >= 5 else None
say(
    f"{len(sizes):,} clusters; the largest holds {sizes.max()} of {len(table):,} antibodies."
    + ("" if kept is not None else " Too few for folds: rows are split at random below.")
)

# %% [markdown]
# ## Which features tell what binds?
#
# The embedding is pooled over the loop only (a *region column* says where it is), and the network
# sees the whole chain. The baselines read the loop alone: its composition, its pairs of residues
# and, where all loops are equally long, the residue at each position.

# %%
X = table[["heavy", "region", "loop"]]
esm = ESM2Transformer(MODEL, chains=["heavy"], region="region")
baselines = {
    "composition of the loop": DescriptorTransformer(chains=["loop"]),
    "2-mers of the loop": DescriptorTransformer("kmers", k=2, chains=["loop"]),
}
if table["loop"].str.len().nunique() == 1:
    baselines["one-hot loop"] = AlignedTransformer(chains=["loop"])
options = {"poolings": ["mean", "std"], "baselines": baselines, "n_bootstrap": 200, "n_jobs": -1}
options["task"] = "regression" if is_number else "classification"
with warnings.catch_warnings(action="ignore", category=LeakageWarning):
    comparison = compare_features(
        X,
        y,
        groups=kept,
        transformer=esm,
        layers=LAYERS,
        **options,
    )
    at_random = compare_features(X, y, groups=None, transformer=esm, layers=-1, **options)
say(comparison.verdict)
say(comparison.layer_advice)

# %% mystnb={"image": {"alt": "Left: score against the layer of the model, one line for each pooling, with the best baseline as a dashed line. Right: scores of procedures, baselines and the best embedding, with 95 % intervals over clusters of loops."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
comparison.plot_layers(left).legend(loc="lower left", ncols=3, fontsize=9)
comparison.plot_scores(right)
plt.show()

# %%
found = {"clusters together": comparison, "random rows": at_random}
columns = {name: one.to_frame().set_index("features")["score"] for name, one in found.items()}
display(pd.concat(columns, axis=1).dropna().round(3))
for name, one in found.items():
    near = [
        train_test_identity(table["loop"][train], table["loop"][test]).identity >= 0.7
        for train, test in one.splits
    ]
    say(f"- {name}: {np.concatenate(near).mean():.0%} of the test loops have a near training loop.")

# %% [markdown]
# Suppose the model chooses what is made: the curve shows which share of the choices would be hits.

# %% mystnb={"image": {"alt": "Share of hits among the antibodies ranked highest, against how many are chosen, ranked by the model out of fold."}}
column = 0 if is_number else list(comparison.classes).index(wanted)
scores = comparison.predictions.reshape(len(X), -1)[:, column]
ranked = binds.to_numpy()[np.argsort(-scores, kind="stable")]
chosen = np.arange(1, len(ranked) + 1)
figure, axis = plt.subplots(figsize=(6.5, 3))
axis.plot(chosen[4:], (np.cumsum(ranked) / chosen)[4:], color=TEAL)
axis.axhline(binds.mean(), color=GREY, lw=0.8, ls=":")
axis.text(0, binds.mean() - 0.08, "chosen at random", color=GREY, fontsize=9)
axis.set(xlabel="antibodies chosen, out of fold", ylabel=f"share with {HIT}", ylim=(0, 1.02))
axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
plt.show()

# %% [markdown]
# ## What would choosing have saved?
#
# We play the loop of measuring and learning with data that are all measured: it starts with a few
# antibodies, and in each round measures those that it finds likeliest to be hits. Intervals are
# Student's *t* over starts: what another start would give, not another library.

# %%
rounds, repeats, batch = 6, 5, max(len(table) // 30, 1)
spaces = {
    "random": None,
    f"embedding ({MODEL})": esm,
    next(reversed(baselines)): baselines.popitem()[1],
}
colours = dict(zip(spaces, (GREY, TEAL, AMBER), strict=True))
hits = binds.to_numpy()


def play(features, seed):
    """Count the hits that were measured after each round."""
    rng = np.random.default_rng(seed)
    measured = rng.choice(len(hits), 2 * batch, replace=False)
    counts = [hits[measured].sum()]
    for _ in range(rounds):
        rest = np.setdiff1d(np.arange(len(hits)), measured)
        wish = rng.random(len(rest))
        if features is not None and len(set(hits[measured])) == 2:
            model = LogisticRegression(max_iter=1000).fit(features[measured], hits[measured])
            wish = model.decision_function(features[rest])
        measured = np.append(measured, rest[np.argsort(-wish, kind="stable")[:batch]])
        counts.append(hits[measured].sum())
    return counts


# %% tags=["card"] mystnb={"image": {"alt": "Hits found against antibodies measured, for choosing at random and by the likeliest hit with two kinds of features, with bands over starts."}}
n_measured = 2 * batch + batch * np.arange(rounds + 1)
ends = {}
figure, axis = plt.subplots(figsize=(6.5, 3.4))
for name, features in spaces.items():
    if features is not None:
        features = StandardScaler().fit_transform(features.fit_transform(X))
        features /= np.sqrt((features**2).sum(axis=1).mean()) or 1  # the same penalty for all
    counts = np.array([play(features, seed) for seed in range(repeats)])
    mean, ends[name] = counts.mean(axis=0), counts[:, -1]
    half = t.ppf(0.975, repeats - 1) * counts.std(axis=0, ddof=1) / np.sqrt(repeats)
    axis.plot(n_measured, mean, "o-", ms=3.5, color=colours[name], label=name)
    axis.fill_between(n_measured, mean - half, mean + half, color=colours[name], alpha=0.15, lw=0)
axis.set(xlabel="antibodies measured", ylabel="hits found", ylim=(0, None))
axis.legend()
plt.show()
say(
    f"Of {n_measured[-1]} measured, the hits are "
    + ", ".join(f"{end.mean():.0f} ± {end.std(ddof=1):.0f} by *{k}*" for k, end in ends.items())
    + f" (mean and standard deviation of {repeats} starts)."
)

# %% [markdown]
# ## Which variant to measure next
#
# All single substitutions in the loop of the best antibody that are not in the table yet, ranked by
# the pipeline that was best, `comparison.estimator`.

# %%
best = table.loc[np.argmax(np.where(binds, scores, -np.inf))]
parent = best["loop"]
sites = [(parent[:i], parent[i + 1 :]) for i in range(len(parent))]
loops = [before + aa + after for before, after in sites for aa in "ACDEFGHIKLMNPQRSTVWY"]
new = pd.DataFrame({"loop": sorted(set(loops) - set(antibodies["loop"]))})
new["heavy"] = [best["heavy"].replace(parent, loop, 1) for loop in new["loop"]]
new["region"] = best["region"]
model = comparison.estimator
predicted = (model.predict if is_number else model.predict_proba)(new[list(X)])
new["score"] = predicted.reshape(len(new), -1)[:, column]
say(f"Parent: `{parent}`. Of {len(new)} new variants, the five that are likeliest {HIT}:")
display(new.nlargest(5, "score")[["loop", "score"]].round(3).set_index("loop"))

# %% [markdown]
# # Mutations in a complex of two chains
#
# A complex with another name can be the same two proteins: complexes are put into one family if a
# chain of one is related to a chain of the other. Both chains go through the network as one
# sequence, with a linker of glycines, so that mutated residues are seen in the context of both.

# %%
if pairs is not None:
    pairs = pairs.dropna().sample(frac=1, random_state=0)
    pairs = pairs.drop_duplicates(["wildtype_a", "wildtype_b", "sequence_a", "sequence_b"])
    linker = "G" * 25
    pairs["wildtype"] = pairs["wildtype_a"] + linker + pairs["wildtype_b"]
    pairs["mutant"] = pairs["sequence_a"] + linker + pairs["sequence_b"]
    is_simple = pairs["wildtype"].str.len() == pairs["mutant"].str.len()
    is_simple &= (pairs["wildtype"] != pairs["mutant"]) & (pairs["wildtype"].str.len() <= 600)
    pairs = pairs[is_simple].groupby("complex").head(8).head(300).reset_index(drop=True)
    changes = [
        [(a, b) for a, b in zip(wildtype, mutant, strict=True) if a != b]
        for wildtype, mutant in zip(pairs["wildtype"], pairs["mutant"], strict=True)
    ]
    for k, column in enumerate(("lost", "gained")):
        pairs[column] = ["".join(change[k] for change in row) for row in changes]
    labels = cluster_sequences([*pairs["wildtype_a"], *pairs["wildtype_b"]]).reshape(2, -1)
    links = coo_array((np.ones(len(pairs)), tuple(labels)), shape=[labels.max() + 1] * 2)
    families = connected_components(links, directed=False)[1][labels[0]]
    n_families = len(set(families))
    groups = families if n_families >= 5 else pairs["complex"]
    say(
        f"{len(pairs)} mutants (substitutions) of {pairs['complex'].nunique()} complexes, which are "
        f"{n_families} families; the largest holds {np.bincount(families).max()} mutants. ΔΔG from "
        f"{pairs['ddg'].min():.1f} to {pairs['ddg'].max():.1f} kcal/mol."
    )

# %%
if pairs is not None:
    of_pairs = compare_features(
        pairs[["wildtype", "mutant", "lost", "gained"]],
        pairs["ddg"],
        groups=groups if len(set(groups)) >= 5 else None,
        transformer=ESM2DifferenceTransformer(MODEL, chains=["wildtype", "mutant"], region="site"),
        layers=LAYERS,
        poolings="mean",
        baselines={
            "residues lost and gained": DescriptorTransformer(
                ["length", "composition", "properties"], chains=["lost", "gained"]
            ),
            "wild type": DescriptorTransformer(chains=["wildtype"]),
        },
        task="regression",
        n_bootstrap=200,
        n_jobs=-1,
    )
    say(of_pairs.verdict)

# %% mystnb={"image": {"alt": "Left: predicted against measured change of binding free energy, out of fold. Right: rank correlations of procedures, baselines and the best embedding, with 95 % intervals over families."}}
if pairs is not None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=[1, 1.4])
    left.plot(pairs["ddg"], of_pairs.predictions, ".", color=TEAL, alpha=0.5, mew=0)
    left.axline((0, 0), slope=1, color=GREY, lw=0.8)
    left.set(xlabel="measured ΔΔG (kcal/mol)", ylabel="predicted, out of fold (kcal/mol)")
    of_pairs.plot_scores(right)
    plt.show()

# %% [markdown]
# To take home: pool where the differences are; run residues and one-hot under the same folds, and
# use them if they are as good; and ask of each row who its relatives are.
