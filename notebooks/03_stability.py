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
# # How much does a mutation destabilise a protein?
#
# ΔΔG, the change of folding free energy, is to be predicted for mutants of proteins that the model
# has never seen. Does a language model see more in a mutation than which residue became which? This
# notebook goes from a table of mutations to an answer with intervals, protein by protein, and then
# tests the model where no measurement is needed: with mutations backwards, and in half precision.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"`.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from scipy.stats import bootstrap
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from style import AMBER, GREY, RED, TEAL, say  # style.py, beside this notebook

from esm2_features import (
    DescriptorTransformer,
    Engine,
    ESM2DifferenceTransformer,
    ESM2LikelihoodTransformer,
    build_mutants,
    datasets,
)
from esm2_features.exceptions import LeakageWarning
from esm2_features.model_selection import check_splits, cluster_sequences, compare_features

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"

# %% [markdown]
# ## Your own table
#
# Replace the next cell by something like `table = pd.read_csv("my_mutants.csv")`, with these columns:
#
# | column | meaning |
# |---|---|
# | `protein` | name of the protein |
# | `wildtype` | its sequence |
# | `mutation` | such as `A123G`, `A123G:D42N` or `p.Ala123Gly`, or the sequence of the mutant |
# | `ddG` | in kcal/mol; which sign destabilises does not matter, but look at it below |

# %% tags=["your-data"]
table = datasets.fetch_stability_s2648(as_frame=True).frame.drop(columns=["position", "sequence"])

# %% [markdown]
# `build_mutants` reads the mutations, finds out how each protein is numbered (as in its PDB file,
# for instance), and says which rows cannot be read.

# %%
if not pd.api.types.is_numeric_dtype(table["ddG"]):
    raise ValueError(
        f"The column ddG holds text, such as {table['ddG'].iloc[0]!r}, and this notebook is about "
        "numbers. pandas.to_numeric reads numbers from text; for classes, take 02_toxicity."
    )
table = table.dropna(subset=["ddG"]).reset_index(drop=True)
mutants = build_mutants(table["mutation"], table["wildtype"], table["protein"])
say(f"{mutants.ok.sum():,} of {len(table):,} rows can be read. `print(mutants)` says more:")
print("\n".join(str(mutants).splitlines()[:4]))

table = table.assign(mutant=mutants.sequences, positions=mutants.positions)
table = table[mutants.ok & table["positions"].map(bool)].drop_duplicates(["wildtype", "mutant"])
sites = zip(table["wildtype"], table["mutant"], table["positions"], strict=True)
changed = [("".join(w[i] for i in at), "".join(m[i] for i in at)) for w, m, at in sites]
table[["lost", "gained"]] = changed
n_rows, most = len(table), 10  # so that no protein dominates; and to be done in a minute
table = table.sample(frac=1, random_state=0).groupby("protein").head(most).head(600)
table = table.sort_index().reset_index(drop=True)
X, ddg = table[["wildtype", "mutant", "lost", "gained"]], table["ddG"]
say(
    f"{len(table):,} of {n_rows:,} mutants ({most} of a protein at most, drawn at random), of "
    f"{table['protein'].nunique()} proteins of {X['wildtype'].str.len().min()} to "
    f"{X['wildtype'].str.len().max()} residues. {(ddg < 0).mean():.0%} have a negative ΔΔG; most "
    "mutations of natural proteins destabilise, so here "
    f"**{'negative' if (ddg < 0).mean() > 0.5 else 'positive'} should mean destabilising**."
)

# %% mystnb={"image": {"alt": "Two panels. Left: histogram of measured changes of stability. Right: measured change of stability by the residue that was lost, as box plots, sorted by their medians."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.1))
left.hist(ddg, 30, color=TEAL)
left.axvline(0, color=GREY, lw=1, ls="--")
left.set(title="What was measured", xlabel="ΔΔG (kcal/mol)", ylabel="mutants")
by_lost = {letters: values for letters, values in ddg.groupby(table["lost"]) if len(letters) == 1}
order = sorted(by_lost, key=lambda letter: by_lost[letter].median())
right.boxplot([by_lost[letter] for letter in order], sym=".", medianprops={"color": RED})
right.axhline(0, color=GREY, lw=1, ls="--")
right.set_xticks(range(1, len(order) + 1), order)
right.set(title="By the residue that was lost", ylabel="ΔΔG (kcal/mol)")
plt.show()

# %% [markdown]
# ## What stays together
#
# Mutants of one protein differ by one residue, so they must not lie on both sides of a split, nor
# should close relatives, such as lysozymes of two species. (If there are fewer than five families,
# as in a scan of one protein, mutations of one position are kept together instead.)

# %%
families = pd.Series(cluster_sequences(X["wildtype"], min_identity=0.3))
n_families = families.nunique()
groups, kept = families, "families"
if n_families < 5:
    groups, kept = table["protein"].astype(str) + table["positions"].astype(str), "positions"
say(
    f"{table['protein'].nunique()} proteins, {n_families} families. Kept together: {kept} "
    f"({groups.nunique()}, the largest with {groups.value_counts().max()} mutants)."
)

# %% [markdown]
# ## The comparison
#
# * The embedding: `ESM2DifferenceTransformer` subtracts that of the wild type from that of the
#   mutant, at the mutated residue, with the whole protein as its context.
# * *Which residues*: the residues that were lost and gained, and their hydropathy, volume and so
#   on. It knows nothing of the protein around them.
# * *Likelihood*: how much less likely the model finds the mutant residue (marginals of the wild
#   type, one forward pass for each protein; the masked ones take one for each position).
# * *Wild type*: the composition of the protein. It knows nothing of the mutation.

# %%
depth = max(Engine(MODEL, layers="all").layers)
layers = sorted({round(layer) for layer in np.linspace(0, depth, 4)})
pair = ["wildtype", "mutant"]
site = ESM2DifferenceTransformer(MODEL, chains=pair, region="site")
likelihood = ESM2LikelihoodTransformer(
    MODEL, chains=pair, wildtype_column="wildtype", method="wildtype-marginals"
)
which = DescriptorTransformer(["composition", "properties"], chains=["lost", "gained"])
options = {
    "poolings": "mean",
    "baselines": {
        "which residues": which,
        "likelihood": likelihood,
        "wild type": DescriptorTransformer(chains=["wildtype"]),
    },
    "task": "regression",
    "n_bootstrap": 200,
    "n_jobs": -1,
}
cv = min(5, groups.nunique())
comparison = compare_features(
    X, ddg, groups=groups, transformer=site, layers=layers, cv=cv, **options
)
say(comparison.verdict)
say(comparison.layer_advice)

# %% mystnb={"image": {"alt": "Left: rank correlation against the layer of the model, with the best baseline as a dashed line. Right: rank correlation of procedures, baselines and the best embedding, with 95 % intervals."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.5))
comparison.plot_layers(left)
comparison.plot_scores(right)
plt.show()

# %% [markdown]
# ## Two ways to be wrong
#
# The same with the mean over the whole protein, in which one residue is diluted by all others; and
# with rows split at random, as is often seen: siblings of a test mutant, often at the same
# position, are then in the training set.

# %%
whole = ESM2DifferenceTransformer(MODEL, chains=pair)
of_whole = compare_features(
    X, ddg, groups=groups, transformer=whole, layers=layers, cv=cv, **options
)
with warnings.catch_warnings(action="ignore", category=LeakageWarning):
    at_random = compare_features(
        X, ddg, groups=None, transformer=site, layers=layers, cv=cv, **options
    )
    leaks = check_splits(at_random.splits, families).mean()
found = {f"site, {kept} together": comparison, "whole protein": of_whole, "random rows": at_random}
columns = {name: one.to_frame().set_index("features")["score"] for name, one in found.items()}
display(pd.concat(columns, axis=1).head(7).round(3))
say(f"In a random split, {leaks:.0%} of the test mutants have a relative in the training set.")

# %% [markdown]
# ## Protein by protein
#
# A score over all rows also rewards telling proteins apart. A user asks which of *my* mutants is
# the more stable one: the rank correlation within each protein. Predictions are out of fold; the
# likelihood needs no training at all. A protein whose predictions are all equal has no
# ranking, and gets no number.

# %%
zero_shot = likelihood.fit_transform(X)[:, 0]
sign = -np.sign(ddg.median()) or 1  # most mutations destabilise, whatever that sign is
ranked = table.assign(trained=comparison.predictions, likelihood=sign * zero_shot).round(6)
per_protein = pd.DataFrame(
    {
        protein: {
            name: rows[name].corr(rows["ddG"], method="spearman")
            for name in ("trained", "likelihood")
            if rows[name].nunique() > 1
        }
        for protein, rows in ranked.groupby("protein")
        if len(rows) >= 6 and rows["ddG"].nunique() > 1
    }
).T.dropna()

# %% tags=["card"] mystnb={"image": {"alt": "Left: predicted against measured change of stability, out of fold. Right: rank correlation within each protein, sorted, for the trained model and for the likelihood without training."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.plot(ddg, comparison.predictions, ".", color=TEAL, alpha=0.4, mew=0)
left.axline((0, 0), slope=1, color=GREY, lw=0.8)
left.set(xlabel="measured ΔΔG (kcal/mol)", ylabel="predicted, out of fold (kcal/mol)")
for name, colour in zip(per_protein, (TEAL, AMBER), strict=False):
    values = np.sort(per_protein[name])
    right.plot(values, np.arange(len(values)), "o", ms=4, color=colour, label=name)
right.axvline(0, color=GREY, lw=0.8, ls="--")
right.set(xlabel="rank correlation within a protein", ylabel="proteins, sorted", yticks=[])
if len(per_protein):
    right.legend()
plt.show()

# %%
if len(per_protein) >= 5:
    means = per_protein.mean()
    gain = (per_protein["trained"] - per_protein["likelihood"]).to_numpy()
    between = bootstrap((gain,), np.mean, method="percentile", rng=0).confidence_interval
    is_clear = between.low > 0 or between.high < 0
    words = (
        ("ahead of" if gain.mean() > 0 else "behind") if is_clear else "not clearly different from"
    )
    say(
        f"Within {len(per_protein)} proteins of 6 mutants or more, the trained model has a mean "
        f"rank correlation of {means['trained']:.2f}, {words} the {means['likelihood']:.2f} of "
        f"the likelihood (difference {gain.mean():+.2f}, {between.low:+.2f} to "
        f"{between.high:+.2f}). The predictions spread over "
        f"{comparison.predictions.std() / ddg.std():.0%} of the measured standard deviation: rank "
        "with them, and do not read them as kcal/mol."
    )
else:
    say(f"{len(per_protein)} proteins have 6 mutants or more: too few for a number of their own.")

# %% [markdown]
# ## The same mutations, backwards
#
# If A to G costs 2 kcal/mol, G to A in the mutant gains 2 kcal/mol. A model may just learn to say
# "destabilises", and this shows without any measurement: swap wild type and mutant. Differences
# change their sign then, so a linear model without an intercept is symmetric by construction.

# %% mystnb={"image": {"alt": "Predicted change of mutations against that of their reverses, with the line of opposite values, for a ridge with an intercept and for one without."}}
backward = X[["mutant", "wildtype"]].set_axis(pair, axis=1)
ridges = {
    "with an intercept": make_pipeline(site, StandardScaler(), RidgeCV(np.logspace(0, 5, 6))),
    "without": make_pipeline(
        site, StandardScaler(with_mean=False), RidgeCV(np.logspace(0, 5, 6), fit_intercept=False)
    ),
}
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), sharex=True, sharey=True)
for axis, (title, model) in zip(axes, ridges.items(), strict=True):
    there, back = np.empty(len(X)), np.empty(len(X))
    for train, test in comparison.splits:
        model.fit(X[pair].iloc[train], ddg.iloc[train])
        there[test] = model.predict(X[pair].iloc[test])
        back[test] = model.predict(backward.iloc[test])
    axis.axline((0, 0), slope=-1, color=GREY, lw=1)
    axis.plot(there, back, ".", color=RED, alpha=0.4, mew=0)
    axis.set(title=title, xlabel="predicted ΔΔG (kcal/mol)")
    error = np.sqrt(np.mean((there - ddg) ** 2))
    say(
        f"- {title}: mean of both directions {(there + back).mean() / 2:+.2f} kcal/mol (0 is right); "
        f"error of the measured direction {error:.2f} kcal/mol."
    )
axes[0].set_ylabel("predicted ΔΔG of the reverse (kcal/mol)")
plt.show()

# %% [markdown]
# ## Is half precision enough?
#
# A mutant differs from its wild type by one residue, and we use that difference alone. So the error
# of bfloat16 has to be compared with the difference, not with the embedding.

# %%
few = X[pair].head(100)
changes = {}
for region in ("whole", "site"):
    for precision in ("float32", "bfloat16"):
        esm = ESM2DifferenceTransformer(MODEL, region=region, precision=precision)
        changes[region, precision] = esm.fit_transform(few)
for region in ("whole", "site"):
    exact, rounded = changes[region, "float32"], changes[region, "bfloat16"]
    error = np.linalg.norm(rounded - exact, axis=1) / np.linalg.norm(exact, axis=1)
    say(f"- {region}: bfloat16 is off by {np.median(error):.1%} of the difference (median).")
say(
    "In a fine-tuned ESM-2 of 8M parameters, bfloat16 was off by 15 % of the spread of single "
    "mutants, and float16 by 2 %. Run this cell with your model before you leave float32, the default."
)

# %% [markdown]
# ## From mutations to predictions
#
# `comparison.estimator` is the pipeline that was best, fitted on all rows. It takes the same
# columns.

# %%
table[["protein", "mutation"]].head(3).assign(predicted=comparison.estimator.predict(X.head(3)))
