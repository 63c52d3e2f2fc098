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
# sequences? Two files, a FASTA and a CSV, become a scikit-learn `Pipeline` that is compared with
# baselines, saved, loaded again, and asked about peptides that it has not seen.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"`; nothing
# > else has to change.

# %%
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from style import say  # style.py, beside this notebook

from esm2_features import Cache, ESM2Transformer, datasets, read_fasta
from esm2_features.exceptions import InputError
from esm2_features.model_selection import (
    cluster_sequences,
    compare_features,
    load_model,
    save_model,
)

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"

folder = TemporaryDirectory(ignore_cleanup_errors=True)  # for the files of this notebook
here = Path(folder.name)

# For this notebook only: an empty cache, so that you see it being filled. Leave this line out in
# your own work, and vectors are kept from one session to the next.
os.environ["ESM2_FEATURES_CACHE"] = str(here / "cache")

# %% [markdown]
# ## Two files
#
# Most projects begin with sequences in a FASTA file and something that was measured in a table. To
# have such files, we write the peptides that ship with the library into a temporary folder.

# %%
peptides = datasets.load_demo_peptides(as_frame=True).frame
peptides.insert(0, "id", [f"pep{number:03d}" for number in range(1, len(peptides) + 1)])
entries = ">" + peptides["id"] + " " + peptides["name"] + "\n" + peptides["sequence"] + "\n"
(here / "peptides.fasta").write_text("".join(entries))
peptides[["id", "name", "kind"]].to_csv(here / "peptides.csv", index=False)

for name in ("peptides.fasta", "peptides.csv"):
    lines = (here / name).read_text().splitlines()
    print(f"{name}, {len(lines)} lines:", *lines[:4], "...", sep="\n  ")

# %% [markdown]
# ## Your own files
#
# Put the paths of your own files here. The FASTA needs an id for each sequence (the header up to
# the first white space), and the table two columns: `id`, the same ids, and `kind`, your classes.
# (A column of numbers is predicted as such, by regression.)

# %% tags=["your-data"]
records = read_fasta(here / "peptides.fasta")
table = pd.read_csv(here / "peptides.csv")

# %%
sequences = pd.Series({record.id: record.seq for record in records}, name="sequence")
table = table.join(sequences, on="id", validate="one_to_one")
n_missing = table["sequence"].isna().sum()
table = table.dropna(subset=["sequence", "kind"]).reset_index(drop=True)
X, y = table["sequence"], table["kind"]
display(table.head(4))
say(
    f"{len(table)} sequences of {X.str.len().min()} to {X.str.len().max()} residues; {n_missing} "
    "rows of the table have no sequence in the FASTA."
)

# %% [markdown]
# `read_fasta` is strict: a damaged record or an id that occurs twice is an error, because a row
# that is lost here is lost in all that follows. The join is by id, not by order, for the same
# reason.
#
# ## Sequences in, numbers out
#
# `ESM2Transformer` turns each sequence into one vector: by default, the mean over the residues of
# the last layer. It takes the records of a FASTA, a column of a table, a list or an array. The
# second time nothing is computed: every vector lies in the cache, under a key made of the residues
# and of everything that could change the result.

# %%
esm = ESM2Transformer(MODEL)
turns = []
for turn in ("first time", "second time"):
    before, start = Cache().info().rows, time.perf_counter()
    vectors = esm.fit_transform(X)
    seconds = time.perf_counter() - start
    turns.append({"": turn, "computed": Cache().info().rows - before, "seconds": seconds})
display(pd.DataFrame(turns).set_index("").round(3))
say(f"{vectors.shape[0]} sequences became {vectors.shape[1]} numbers each ({vectors.dtype}).")

# %% [markdown]
# ## A pipeline, with relatives on one side
#
# The transformer is a step like any other. Peptides come in families, and if a toxin is in the
# training set and its twin in the test set, the test asks for memory: `cluster_sequences` finds
# families, and scikit-learn's splitters keep them together.

# %%
families = cluster_sequences(X)
sizes = np.bincount(families)
say(f"{len(sizes)} families; the largest has {sizes.max()} members, and {(sizes == 1).sum()} one.")

if pd.api.types.is_numeric_dtype(y) and y.nunique() > 10:
    say("`kind` holds numbers: take `Ridge()` and `GroupKFold(5)` here.")
else:
    pipeline = make_pipeline(esm, StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    options = {"groups": families, "cv": splitter, "scoring": "balanced_accuracy"}
    accuracies = cross_val_score(pipeline, X, y, **options)
    say(f"Balanced accuracy in 5 folds: {', '.join(f'{score:.2f}' for score in accuracies)}.")

# %% [markdown]
# ## Which layer, which pooling, and is a language model worth it?
#
# One call compares all layers and poolings with simple baselines (length, composition, k-mers),
# under the same nested folds. It costs one forward pass for each sequence.

# %%
comparison = compare_features(X, y, groups=families, transformer=esm, n_bootstrap=200, n_jobs=-1)
say(comparison.verdict)
say(comparison.layer_advice)
display(comparison.to_frame().head(8).round(3))

# %% tags=["card"] mystnb={"image": {"alt": "Left: score against the layer of the model, one line for each pooling, with the best baseline as a dashed line. Right: scores of procedures, baselines and the best embedding, with 95 % intervals over families."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
comparison.plot_layers(left)
comparison.plot_scores(right)
plt.show()

# %% [markdown]
# ## Save, load, predict
#
# `comparison.estimator` is the pipeline that was best, fitted on all rows. `save_model` puts it into
# one small file, without the weights of the language model but with their digest, with versions,
# and with the training sequences; loading it runs no code, unlike a pickle.

# %%
path = here / "model.skops"
save_model(path, comparison.estimator, target="kind", sequences=X, ids=table["id"])
model = load_model(path)

same = np.array_equal(comparison.estimator.predict(X), model.estimator.predict(X))
say(
    f"The file has {path.stat().st_size / 1000:.0f} kB. The pipeline that was loaded gives "
    f"{'exactly the same' if same else 'OTHER'} predictions."
)

# %% [markdown]
# Now some peptides that are not in the table, from another FASTA file. How near a peptide is to
# what was learned should always stand beside its prediction, so `predict` of a saved model gives
# the id of the nearest training peptide and their sequence identity (0: no relative). Exenatide is
# the odd one out: it comes from the venom of a lizard, and is used as a drug because it acts like a
# human hormone.

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
answers = pd.DataFrame(model.predict(new))
answers.insert(0, "what it is", [record.description for record in new])
display(answers.round(2).set_index("what it is"))

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
        esm.fit_transform(bad)
    except InputError as error:
        say(f"**{what}**: `{type(error).__name__}`, row {error.index}\n> {error}")

# %% [markdown]
# ## Where next
#
# * [Toxicity](02_toxicity.ipynb): what gives classes away, distant peptides, and mistakes.
# * [Stability](03_stability.ipynb): mutants, and what they do to a fold.
# * [Affinity](04_affinity.ipynb): binding, of one chain or two, and what to measure next.
# * [Maps](05_maps.ipynb): embedding spaces, neighbours, attention, mutational scans.
# * The same without Python: `esm2-features embed peptides.fasta -o peptides.npz`; `esm2-features
#   --help` lists the rest.

# %%
folder.cleanup()
