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
# # Which peptides are toxic?
#
# Does a language model know more about toxicity than the amino acids that a peptide is made of?
# The answer depends on how one asks: on relatives in the training set, on what else gives the
# classes away, and on the size of the test. This notebook goes from a table to an answer that can
# be believed, with one call of `compare_features`, and then looks at the mistakes.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"`. The
# > last section uses real vectors of the smallest ESM-2.

# %%
import warnings
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.ticker import PercentFormatter
from style import AMBER, DATA, PALETTE, TEAL, say  # style.py, beside this notebook

from esm2_features import Cache, DescriptorTransformer, Engine, ESM2Transformer, datasets
from esm2_features.exceptions import LeakageWarning
from esm2_features.model_selection import (
    check_splits,
    cluster_sequences,
    compare_features,
    train_test_identity,
)

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"

# %% [markdown]
# ## Your own table
#
# Replace the next cell by something like `peptides = pd.read_csv("my_peptides.csv")`. The table
# needs two columns: `sequence`, and `label`, two or more classes (text or numbers). All sentences
# and pictures below take their words from it.

# %% tags=["your-data"]
peptides = datasets.fetch_toxicity_peptides(as_frame=True).frame.assign(
    label=lambda table: table["toxic"].map({1: "toxic", 0: "not toxic"})
)

# %%
peptides = peptides.dropna(subset=["sequence", "label"]).drop_duplicates("sequence")
peptides = peptides.sample(min(1200, len(peptides)), random_state=0, ignore_index=True)
X, y = peptides["sequence"], peptides["label"]
if pd.api.types.is_numeric_dtype(y) and y.nunique() > 10:
    raise ValueError(
        f"The column label has {y.nunique()} different numbers, and this notebook is about "
        'classes. Make some, such as by peptides["label"] = peptides["label"] > 5, or take '
        "compare_features alone, which predicts numbers, too."
    )
classes = y.value_counts()
say(
    f"{len(peptides):,} different peptides of {X.str.len().min()} to {X.str.len().max()} residues: "
    + ", ".join(f"{n:,} are *{label}*" for label, n in classes.items())
    + ". (Larger tables are cut to 1,200 rows at random, to be done in a minute.)"
)

# %% [markdown]
# ## Families
#
# Toxins come in families. If a peptide is in the training set and its twin in the test set, the
# test asks for memory. `cluster_sequences` gives related peptides the same number.

# %%
families = pd.Series(cluster_sequences(X, min_identity=0.4))
sizes = families.value_counts()
n_classes = y.groupby(families).nunique()
say(
    f"{len(sizes):,} families. {(sizes == 1).sum() / len(X):.0%} of the peptides have no relative, "
    f"the largest family holds {sizes.max()}, and {(n_classes > 1).sum()} families contain more than "
    "one class."
)

# %% [markdown]
# ## What gives the classes away?
#
# Negative examples are often collected in another way than positive ones. Before any model, look
# for numbers in which the classes differ, and ask of each whether it is biology or the making of
# the table. A methionine in front, for instance, says that a sequence was translated from a
# genome: a toxin that was isolated from venom has lost it with its signal peptide.

# %%
describe = DescriptorTransformer(["length", "composition", "properties"])
described = describe.set_output(transform="pandas").fit_transform(X)
described["starts_with_M"] = X.str.startswith("M").astype(float)
means = described.groupby(y).mean()
apart = ((means.max() - means.min()) / described.std()).replace(np.inf, np.nan).dropna()
telling = apart.nlargest(6)
display(
    means[telling.index].T.assign(**{"difference / sd": telling}).rename_axis(columns=None).round(2)
)

# %% mystnb={"image": {"alt": "Histograms of the two descriptors in which the classes differ most, one line for each class."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for axis, name in zip(axes, telling.index, strict=False):
    bins = np.histogram_bin_edges(described[name], 20)
    for label, colour in zip(classes.index, PALETTE * 9, strict=False):
        values = described.loc[y == label, name]
        weights = np.full(len(values), 1 / len(values))
        axis.hist(values, bins, weights=weights, histtype="step", lw=1.6, color=colour, label=label)
    axis.set(xlabel=name, ylabel="share of the class")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
axes[0].legend()
plt.show()

# %% [markdown]
# ## The comparison
#
# One call: each peptide goes through the model once, and then layers, poolings and baselines get
# the same classifier, in the same nested folds that keep families together. Rows such as
# *embedding, chosen inside* choose a layer and a pooling without the families that judge them;
# what is said about the embedding below is about this row. Intervals are over families.

# %%
depth = max(Engine(MODEL, layers="all").layers)
layers = sorted({round(layer) for layer in np.linspace(0, depth, 4)})
esm = ESM2Transformer(MODEL)
by_family = compare_features(
    X,
    y,
    groups=families,
    transformer=esm,
    layers=layers,
    poolings=["mean", "std"],
    n_bootstrap=200,
    n_jobs=-1,
)
say(by_family.verdict)
say(by_family.layer_advice)

# %% mystnb={"image": {"alt": "Left: score against the layer of the model, one line for each pooling, with the best baseline as a dashed line. Right: scores of procedures, baselines and the best embedding, with 95 % intervals over families."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
by_family.plot_layers(left)
by_family.plot_scores(right)
plt.show()

# %% [markdown]
# ## What a random split would have claimed
#
# The same again, with `groups=None`: rows are split at random. The library then warns that
# relatives are on both sides, and `check_splits` says how many; here we know, and go on.

# %%
with warnings.catch_warnings(action="ignore", category=LeakageWarning):
    at_random = compare_features(
        X,
        y,
        groups=None,
        transformer=esm,
        layers=depth,
        poolings="mean",
        n_bootstrap=200,
        n_jobs=-1,
    )
    leaks = check_splits(at_random.splits, families).mean()

scores = {"random rows": at_random.to_frame(), "families together": by_family.to_frame()}
both = pd.concat({k: v.set_index("features").score for k, v in scores.items()}, axis=1).dropna()
both["difference"] = both["random rows"] - both["families together"]
display(both.round(3))
say(
    f"In a random split, {leaks:.0%} of the test peptides have a relative in the training set. "
    f"*{both.difference.idxmax()}* gains most from it, {both.difference.max():+.3f}."
)

# %% [markdown]
# Is it the relatives? `train_test_identity` finds the nearest training sequence of each test
# sequence, so the mistakes can be counted by how near it is.

# %% tags=["card"] mystnb={"image": {"alt": "Share of wrong predictions in bands of identity to the nearest training sequence, for random splits and for splits by family, with the number of peptides in each band."}}
bands = ["no relative", "below 40 %", "40 to 70 %", "70 % or more"]
figure, axis = plt.subplots(figsize=(7, 3.4))
for (split, found), colour, shift in zip(
    {"random rows": at_random, "families together": by_family}.items(),
    (AMBER, TEAL),
    (-0.2, 0.2),
    strict=True,
):
    identity = np.empty(len(X))
    for train, test in found.splits:
        identity[test] = train_test_identity(X[train], X[test]).identity
    wrong = found.classes[found.predictions.argmax(axis=1)] != found.targets
    band = pd.cut(identity, [-1, 0, 0.4, 0.7, 2], right=True, labels=bands)
    rate = pd.Series(wrong).groupby(band, observed=False).agg(["mean", "size"])
    places = np.arange(len(bands)) + shift
    axis.bar(places, rate["mean"], width=0.38, color=colour, label=split)
    for place, share, n in zip(places, rate["mean"].fillna(0), rate["size"], strict=True):
        axis.text(place, share + 0.005, n, ha="center", fontsize=8, color=colour)
axis.set_xticks(range(len(bands)), bands)
axis.set(xlabel="identity to the nearest training sequence (on each bar: peptides)")
axis.set(ylabel="called wrongly")
axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
axis.legend()
plt.show()

# %% [markdown]
# ## What does it get wrong?
#
# `by_family.predictions` are out of fold: no peptide was predicted by a model that has seen its
# family. Look at the mistakes that the model is surest of before you trust a label: that nobody
# has reported a peptide as harmful does not make it harmless.

# %%
codes = np.searchsorted(by_family.classes, by_family.targets)
judged = pd.DataFrame(
    {
        "sequence": X,
        "label": y,
        "predicted": by_family.classes[by_family.predictions.argmax(axis=1)],
        "P(label)": by_family.predictions[np.arange(len(X)), codes],
        "relatives": families.map(sizes) - 1,
    }
)
wrong = judged[judged["label"] != judged["predicted"]]
say(
    f"{len(wrong):,} of {len(judged):,} are called wrongly: "
    + ", ".join(
        f"{(wrong['label'] == label).sum() / n:.0%} of *{label}*" for label, n in classes.items()
    )
    + ". The three of each class that the model is surest of, and wrong:"
)
surest = wrong.sort_values("P(label)").groupby("label", sort=True).head(3).sort_values("label")
display(surest.style.format({"P(label)": "{:.3f}"}).hide())

# %% mystnb={"image": {"alt": "For each class, the mean of the descriptors in which the classes differ most: all of the class, and those of it that are called wrongly."}}
scaled = (described[telling.index] - described.mean()[telling.index]) / described.std()
figure, axis = plt.subplots(figsize=(7, 3.2))
for label, colour in zip(classes.index, PALETTE * 9, strict=False):
    of_class, missed = y == label, (y == label) & judged.index.isin(wrong.index)
    axis.plot(scaled[of_class][telling.index].mean(), telling.index, "o", color=colour, label=label)
    missed_label = f"{label}, called wrongly"
    axis.plot(
        scaled[missed][telling.index].mean(),
        telling.index,
        "o",
        mfc="white",
        color=colour,
        label=missed_label,
    )
axis.axvline(0, lw=0.7, color="black")
axis.invert_yaxis()
axis.set(xlabel="mean of the class (standard deviations from the mean of all)")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Real ESM-2 on four peptide activities
#
# Vectors that were computed elsewhere can be imported, and then no weights are needed. These are
# real ones of the smallest ESM-2 (last layer, mean) for four tasks of the UniDL4BioPep benchmark.
# `cv=[(train, test)]` is its published split.

# %%
REAL = "esm2_t6_8M_UR50D"
tasks = {"bitter": "bitter taste", "umami": "umami taste", "bbp": "blood-brain barrier"}
tasks["quorum"] = "quorum sensing"
files = {
    task: [DATA / f"real_esm2_t6_8M_{task}_{p}.npz" for p in ("train", "test")] for task in tasks
}
found = [task for task, paths in files.items() if all(path.is_file() for path in paths)]
if not found:
    say(
        "The vectors are not here. UniDL4BioPep (github.com/dzjxzyd/UniDL4BioPep) publishes them; "
        "saved as `real_esm2_t6_8M_bitter_train.npz` and so on, with the arrays `sequence`, "
        "`label` and `embedding`, in the folder that `ESM2_FEATURES_DATA` names, they are used here."
    )

published = {}
with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    cache = Cache(folder)
    for task in found:
        parts = []
        for path in files[task]:
            cache.import_(path, model=REAL, layer=6, pooling="mean")
            with np.load(path) as arrays:
                parts.append(pd.DataFrame({name: arrays[name] for name in ("sequence", "label")}))
        table = pd.concat(parts, ignore_index=True)
        split = np.split(np.arange(len(table)), [len(parts[0])])
        with warnings.catch_warnings(action="ignore", category=LeakageWarning):
            published[task] = compare_features(
                table["sequence"],
                table["label"],
                groups=None,
                transformer=ESM2Transformer(REAL, cache=cache),
                layers=6,
                poolings="mean",
                cv=[tuple(split)],
                n_bootstrap=200,
                n_jobs=-1,
            )
            leak = check_splits([tuple(split)], cluster_sequences(table["sequence"])).mean()
        say(
            f"**{tasks[task]}** ({len(split[1])} test peptides, {leak:.0%} of them with a relative "
            f"in the training set). {published[task].verdict}"
        )

# %% mystnb={"image": {"alt": "Scores on the published test sets of four peptide activities, for real ESM-2 vectors, baselines and both together, with 95 % intervals."}}
if found:
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.4), sharex=True)
    for axis, task in zip(axes.flat, found, strict=False):
        published[task].plot_scores(axis).set_title(tasks[task])
    plt.show()

# %% [markdown]
# ## To take home
#
# 1. Cluster first, and pass the families as `groups`.
# 2. Read any score against the baselines' in the same folds, and believe a difference only if its
#    interval excludes zero.
# 3. Ask what else gives the classes away, and look at the mistakes one by one.
#
# `by_family.estimator` is the pipeline that was best, fitted on all rows:

# %%
by_family.estimator.predict(X[:3])
