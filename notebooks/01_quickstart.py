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
# # Quickstart: from a FASTA file to a saved model
#
# Can a classifier tell the toxins of venoms from human hormones, given nothing but their
# sequences? Two files, a FASTA and a CSV, become a scikit-learn `Pipeline` that is evaluated,
# saved, loaded again and asked about peptides that it has not seen.
#
# You will learn how embeddings enter a pipeline, what the cache does, how to search over layers
# and poolings at the cost of one forward pass per sequence, and what an error looks like.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"` in the
# > next cell; nothing else has to change.

# %%
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import joblib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.colors import LinearSegmentedColormap
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from esm2_features import Cache, Engine, ESM2Transformer, datasets, read_fasta
from esm2_features.exceptions import InputError

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"
SEED = 0

local = Path("../shared/data") if Path("../shared/data").is_dir() else Path("../../shared/data")
if local.is_dir():
    os.environ.setdefault("ESM2_FEATURES_DATA", str(local))

folder = TemporaryDirectory(ignore_cleanup_errors=True)  # for the files of this notebook
here = Path(folder.name)

# For this notebook only: an empty cache, so that you see it being filled. Leave this line out in
# your own work, and vectors are kept from one session to the next.
os.environ["ESM2_FEATURES_CACHE"] = str(here / "cache")

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
# ## Two files
#
# Most projects begin with sequences in a FASTA file and something that was measured in a table. To
# have such files, we write the peptides that ship with the library into a temporary folder.

# %%
peptides = datasets.load_demo_peptides(as_frame=True).frame
peptides.insert(0, "id", [f"pep{number:03d}" for number in range(1, len(peptides) + 1)])

with (here / "peptides.fasta").open("w") as file:
    for row in peptides.itertuples():
        file.write(f">{row.id} {row.name}\n{row.sequence}\n")
peptides[["id", "name", "kind"]].to_csv(here / "peptides.csv", index=False)

for name in ("peptides.fasta", "peptides.csv"):
    lines = (here / name).read_text().splitlines()
    print(f"{name}, {len(lines)} lines:", *lines[:4], "...", sep="\n  ")

# %% [markdown]
# ## Your own data
#
# Put the paths of your own files here. The FASTA needs an id for each sequence (the header up to
# the first white space), and the table two columns: `id`, the same ids, and `kind`, your classes.
# A column `name` is only used for showing. What follows is for two classes; change `POSITIVE` to
# yours.

# %% tags=["your-data"]
FASTA = here / "peptides.fasta"
TABLE = here / "peptides.csv"
POSITIVE = "toxin"  # the class whose probability is predicted

records = read_fasta(FASTA)
sequences = pd.Series({record.id: record.seq for record in records}, name="sequence")
table = pd.read_csv(TABLE).join(sequences, on="id", validate="one_to_one")

is_positive = (table["kind"] == POSITIVE).to_numpy()
display(table.head(4))
say(
    f"{len(table)} sequences of {table['sequence'].str.len().min()} to "
    f"{table['sequence'].str.len().max()} residues, {is_positive.sum()} of them of the class "
    f"*{POSITIVE}*; {table['sequence'].isna().sum()} rows of the table have no sequence in the "
    "FASTA."
)

# %% [markdown]
# `read_fasta` is strict: a damaged record or an id that occurs twice is an error, because a row
# that is lost here is lost in all that follows. The join is by id, not by order, for the same
# reason.
#
# ## Sequences in, numbers out
#
# `ESM2Transformer` turns each sequence into one vector: by default, the mean over the residues of
# the last layer. It takes the records of a FASTA as they are, a column of a table, a list or an
# array. The second time nothing is computed: every vector lies in the cache, under a key made of
# the residues and of everything that could change the result.

# %%
turns = []
for turn in ("first time", "second time"):
    before, start = Cache().info().rows, time.perf_counter()
    vectors = ESM2Transformer(MODEL).fit_transform(records)
    seconds = time.perf_counter() - start
    computed = Cache().info().rows - before
    turns.append({"": turn, "computed": computed, "seconds": round(seconds, 3)})

display(pd.DataFrame(turns).set_index(""))
say(
    f"{vectors.shape[0]} sequences became {vectors.shape[1]} numbers each ({vectors.dtype}). The "
    "second "
    f"time took {turns[1]['seconds'] / turns[0]['seconds']:.1%} of the first, which had to load "
    "the model, too."
)

# %% [markdown]
# ## Relatives on one side
#
# Peptides come in families. If a toxin is in the training set and its twin in the test set, the
# test asks for memory. Here, two peptides are related if they share a fifth of the 3-mers of the
# shorter one; relatives of relatives make a family, and no family is ever split. (For longer
# proteins, cluster with MMseqs2 or alignments instead. All that is needed is a family number for
# each row.)

# %%
SHARED = 0.2  # of the 3-mers; from here on, two peptides are relatives


def shared_3mers(some, others):
    """Share of 3-mers in common, of those of the shorter sequence: (n, m)."""
    words = CountVectorizer(analyzer="char", ngram_range=(3, 3), lowercase=False, binary=True)
    words.fit([*some, *others])
    a, b = words.transform(some), words.transform(others)
    shorter = np.minimum(a.sum(axis=1).reshape(-1, 1), b.sum(axis=1).reshape(1, -1))
    return (a @ b.T).toarray() / np.maximum(np.asarray(shorter), 1)


shared = shared_3mers(table["sequence"], table["sequence"])
family = connected_components(shared >= SHARED, directed=False)[1]
sizes = np.bincount(family)
across = shared[family[:, None] != family].max()
say(
    f"{len(sizes)} families; the largest has {sizes.max()} members, and {(sizes == 1).sum()} "
    "peptides have no relative. The most similar two of different families share "
    f"{across:.0%} of the 3-mers."
)

# %% [markdown]
# ## A pipeline, and a baseline under the same splits
#
# The embedding is a step like any other. The baseline gets the same splits, scaling and
# classifier, and nothing but the share of each amino acid: what it can do needs no language model.
# Venom toxins are full of cysteines, so expect it to be strong.

# %%
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


def composition(sequences):
    """Share of each amino acid: (n, 20)."""
    return np.array([[s.count(letter) / len(s) for letter in AMINO_ACIDS] for s in sequences])


def with_classifier(features):
    """Put features before the classifier that all of them get."""
    return make_pipeline(features, StandardScaler(), LogisticRegression(C=0.1, solver="liblinear"))


def splits(seed):
    """Five folds that keep families together, and the share of both classes about equal."""
    return StratifiedGroupKFold(5, shuffle=True, random_state=seed)


candidates = {"embedding": ESM2Transformer(MODEL), "composition": FunctionTransformer(composition)}
scores = pd.DataFrame(
    {
        name: np.concatenate(
            [
                cross_val_score(
                    with_classifier(features),
                    table["sequence"],
                    is_positive,
                    groups=family,
                    cv=splits(seed),
                    scoring="roc_auc",
                )
                for seed in range(5)
            ]
        )
        for name, features in candidates.items()
    }
)
display(scores.agg(["mean", "std", "min"]).T.round(3).rename_axis("ROC AUC of test folds"))

gain = scores["embedding"] - scores["composition"]
better = "ahead of" if gain.mean() > 0 else "behind"
clear = abs(gain.mean()) > gain.std()
say(
    f"Over {len(scores)} test folds (five splits into five), the embedding of `{MODEL}` is on "
    "average "
    f"{abs(gain.mean()):.3f} {better} composition, and ahead in {(gain > 0).sum()} folds. That is "
    f"{'more' if clear else 'less'} than the spread of this difference between folds "
    f"({gain.std():.3f}), so "
    + ("it is unlikely to be the luck of a split." if clear else "do not build a conclusion on it.")
)

# %% [markdown]
# ## All layers and poolings, for one forward pass
#
# The last layer is not always the best, nor is the mean. With `store="all"`, whatever is computed
# is kept for all layers and poolings at once. To make the count visible we fill a new cache with
# an `Engine`, which is the library without scikit-learn and counts what went through the network
# (`ESM2Transformer(MODEL).precompute(sequences)` does the same, and a search with `store="all"`
# fills the cache by itself).

# %%
search_cache = Cache(here / "search")
engine = Engine(MODEL, store="all", cache=search_cache)
start = time.perf_counter()
engine.embed(table["sequence"])
filled = time.perf_counter() - start

kept = pd.DataFrame(
    [
        {
            "model": space.spec.model,
            "layer": space.spec.layer,
            "pooling": space.spec.pooling,
            "vectors": space.rows,
        }
        for space in search_cache.info().spaces
    ]
)
layers, poolings = sorted(set(kept["layer"])), list(dict.fromkeys(kept["pooling"]))
display(kept.pivot(index="pooling", columns="layer", values="vectors"))
say(
    f"{engine.n_computed} forward passes for {table['sequence'].nunique()} different sequences, in "
    f"{filled:.1f} s, left {search_cache.info().rows:,} vectors: {len(layers)} layers (0 is "
    "before the first "
    f"block) times {len(poolings)} poolings."
)

# %% [markdown]
# One `GridSearchCV` over all of them only reads. (At layer 0 the special tokens `cls` and `eos`
# know nothing of the sequence yet, so chance is what they should give.) Afterwards, the cache
# holds what it held before, and asking for everything again sends nothing through the network.

# %%
pipeline = Pipeline(
    [
        ("esm", ESM2Transformer(MODEL, store="all", cache=search_cache)),
        ("scale", StandardScaler()),
        ("classify", LogisticRegression(C=0.1, solver="liblinear")),
    ]
)
grid = {"esm__layers": layers, "esm__pooling": poolings}
search = GridSearchCV(pipeline, grid, cv=splits(SEED), scoring="roc_auc")

before, start = search_cache.info().rows, time.perf_counter()
search.fit(table["sequence"], is_positive, groups=family)
seconds = time.perf_counter() - start
again = Engine(MODEL, layers="all", pooling="all", cache=search_cache)
again.embed(table["sequence"])
assert search_cache.info().rows == before
assert again.n_computed == 0

n_candidates = len(search.cv_results_["params"])
say(
    f"{n_candidates} candidates times {search.n_splits_} folds took {seconds:.1f} s, added "
    f"{search_cache.info().rows - before} vectors, and left {again.n_computed} sequences to "
    "compute. Without a "
    f"cache, every candidate would embed every sequence in every fold: "
    f"{n_candidates * search.n_splits_ * len(table):,} forward passes instead of "
    f"{engine.n_computed}."
)

# %% mystnb={"image": {"alt": "Heat map of the mean ROC AUC, a cell for each layer and pooling; the best is framed."}}
results = pd.DataFrame(search.cv_results_)
means = results.pivot(
    index="param_esm__pooling", columns="param_esm__layers", values="mean_test_score"
)
means = means.loc[poolings, layers].astype(float)

figure, axes = plt.subplots(figsize=(6.4, 3.4))
colours = LinearSegmentedColormap.from_list("teal", ["#f2f7f8", "#7fb9c4", TEAL])
low, high = np.quantile(means, 0.1), means.to_numpy().max()  # a few poor cells take no colours
axes.imshow(means, cmap=colours, vmin=low, vmax=high, aspect="auto")
for i, pooling in enumerate(poolings):
    for j, layer in enumerate(layers):
        value = means.loc[pooling, layer]
        axes.text(
            j,
            i,
            f"{value:.3f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if value > (low + high) / 2 else "#333333",
        )
best = search.best_params_
axes.add_patch(
    plt.Rectangle(
        (layers.index(best["esm__layers"]) - 0.5, poolings.index(best["esm__pooling"]) - 0.5),
        1,
        1,
        fill=False,
        edgecolor=AMBER,
        linewidth=3,
    )
)
axes.set_xticks(range(len(layers)), layers)
axes.set_yticks(range(len(poolings)), poolings)
axes.set_xlabel("layer (0: embedding before the first block)")
axes.set_ylabel("pooling")
axes.set_title(f"{POSITIVE.capitalize()} or not: ROC AUC by layer and pooling of {MODEL}")
axes.tick_params(length=0)
axes.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# The best of many cells is partly luck: it was chosen on the same folds that score it. The honest
# number comes from choosing again in every outer fold, without its test set, and scoring that
# choice on the test set once (nested cross-validation).

# %%
nested, chosen = [], []
for train, test in splits(SEED + 1).split(table["sequence"], is_positive, groups=family):
    inner = GridSearchCV(pipeline, grid, cv=splits(SEED), scoring="roc_auc")
    inner.fit(table["sequence"].iloc[train], is_positive[train], groups=family[train])
    nested.append(inner.score(table["sequence"].iloc[test], is_positive[test]))
    chosen.append(f"layer {inner.best_params_['esm__layers']} {inner.best_params_['esm__pooling']}")

at_best = results.loc[search.best_index_]
close = (
    results["mean_test_score"] >= at_best["mean_test_score"] - at_best["std_test_score"] / 5**0.5
).sum()
say(
    f"The framed cell (layer {best['esm__layers']}, {best['esm__pooling']}) has an AUC of "
    f"{search.best_score_:.3f}; chosen anew in each outer fold, the search reaches "
    f"{np.mean(nested):.3f} +- "
    f"{np.std(nested):.3f} (mean and spread over {len(nested)} outer folds). {close} of "
    f"{n_candidates} cells are "
    "within one standard error of the best, and the outer folds chose: "
    f"{', '.join(sorted(set(chosen)))}."
)

# %% [markdown]
# ## Save, load, predict
#
# The fitted pipeline goes into one small file: the weights of the language model are not in it,
# only its name. Whoever loads the file needs this library, and the model is fetched or found when
# it is needed. (As any pickle, load it only from people you trust, and with the same version of
# scikit-learn.)

# %%
final = with_classifier(ESM2Transformer(MODEL)).fit(table["sequence"], is_positive)
joblib.dump(final, here / "toxins.joblib")
loaded = joblib.load(here / "toxins.joblib")

same = np.array_equal(
    final.predict_proba(table["sequence"]), loaded.predict_proba(table["sequence"])
)
say(
    f"The file has {(here / 'toxins.joblib').stat().st_size / 1000:.0f} kB. The pipeline that was "
    "loaded gives "
    f"{'exactly the same' if same else 'OTHER'} probabilities."
)

# %% [markdown]
# Now some peptides that are not in the table, from another FASTA file. How much of a peptide is
# known already should always stand beside its prediction, so the table tells what share of 3-mers
# it has in common with the most similar training peptide. Exenatide is the odd one out: it comes
# from the venom of a lizard, and is used as a drug because it acts like a human hormone.

# %%
(here / "new.fasta").write_text("""\
>glucagon human hormone
HSQGTFTSDYSKYLDSRRAQDFVQWLMNT
>kisspeptin-10 human hormone
YNWNSFGLRF
>exenatide from venom, acts as a hormone
HGEGTFTSDLSKQMEEEAVRLFIEWLKNGGPSSGAPPPS
>charybdotoxin scorpion toxin
EFTNVSCTTSKECWSVCQRLHNTSRGKCMNKKCRCYS
>melittin honeybee toxin
GIGAVLKVLTTGLPALISWIKRKRQQ
""")
new = read_fasta(here / "new.fasta")
new_sequences = [record.seq for record in new]
similarity = shared_3mers(new_sequences, table["sequence"])
display(
    pd.DataFrame(
        {
            "peptide": [record.id for record in new],
            "what it is": [record.description.partition(" ")[2] for record in new],
            f"P({POSITIVE})": loaded.predict_proba(new_sequences)[:, 1].round(2),
            "3-mers shared": [f"{share:.0%}" for share in similarity.max(axis=1)],
            "with": table["name"].iloc[similarity.argmax(axis=1)].to_numpy(),
            "in training": [s in set(table["sequence"]) for s in new_sequences],
        }
    ).set_index("peptide")
)

# %% [markdown]
# ## When a sequence is wrong
#
# Nothing is repaired in silence. A bad sequence stops the run before anything is computed, and the
# message says which row, which position, and what can be done about it; the attributes of the
# error (`error.index`, `error.position`) carry the same for programs.

# %%
wrong = {
    "a letter that is no amino acid": ["GIGAVLKVLTTGLPALISWIKRKRQQ", "GIGAVLK?LTTG"],
    "a missing value": ["GIGAVLKVLTTGLPALISWIKRKRQQ", None],
    "a protein longer than ESM-2 was trained on": ["GIGAVLKVLTTG" * 100],
}
for what, bad in wrong.items():
    try:
        ESM2Transformer(MODEL).fit_transform(bad)
    except InputError as error:
        say(f"**{what}**: `{type(error).__name__}`, row {error.index}\n> {error}")

# %% [markdown]
# ## Where next
#
# * [Toxicity](02_toxicity.ipynb): families by alignment, baselines, calibration, and what a model
#   gets wrong.
# * [Stability](03_stability.ipynb): mutants and what they do to a fold.
# * [Affinity](04_affinity.ipynb): binding, of one chain or two.
# * [Maps](05_maps.ipynb): embedding spaces, similarity search, attention, mutational scans.
# * Several chains in one row, or only a part of each sequence (a domain, the surroundings of a
#   mutation): the parameters `join` and `region` of `ESM2Transformer`.
# * The same without Python: `esm2-features embed peptides.fasta -o peptides.npz`; `esm2-features
#   --help` lists the rest.

# %%
folder.cleanup()
