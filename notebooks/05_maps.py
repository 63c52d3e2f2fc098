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
# Can a protein without annotation borrow that of its nearest neighbour in the space of embeddings,
# also where no alignment finds a relative? And what does the model say of a single protein: who
# attends to whom, and which substitutions does it doubt? This notebook draws the pictures, and
# measures what they promise.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"`.

# %%
import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import PercentFormatter
from scipy.stats import binomtest, bootstrap, spearmanr
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from style import DATA, GREY, PALETTE, RED, TEAL, say  # style.py, beside this notebook

from esm2_features import (
    DescriptorTransformer,
    Engine,
    ESM2Transformer,
    datasets,
    nearest,
    read_fasta,
    scan_variants,
    transfer_labels,
)
from esm2_features.exceptions import CheckpointError
from esm2_features.model_selection import cluster_sequences, train_test_identity

with warnings.catch_warnings():  # where ipywidgets is missing, it asks for it, and draws no bars
    warnings.filterwarnings("ignore", message="IProgress not found")
    import umap

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"
SCALE = LinearSegmentedColormap.from_list("scale", ["#f2f7f8", TEAL, "#001d24"])
SIGNED = LinearSegmentedColormap.from_list("signed", [RED, "#ffffff", TEAL])
SIGNED.set_bad("#dddddd")

# %% [markdown]
# ## Families that were not made from sequences
#
# A test of "similar proteins have similar functions" needs families that somebody else defined.
# These human proteins are listed by their names in UniProt. Some families hold close relatives,
# others (cytokines) are hard to recognise by sequence.

# %%
FAMILIES = {
    "GPCR class A": "5HT1A AA1R ACM1 ADRB1 AG2R C5AR CCR5 CNR2 CXCR1 DRD1 FPR1 MC4R OPRM OXYR TA2R",
    "GPCR class B": "CALRL GHRHR GLP1R VIPR1 VIPR2",
    "Cys-loop channel": "ACHA7 GBRA1 GBRB1 GBRB3 GBRG2 GBRR1 GLRA1",
    "kinase": "AKT1 CDC2 CDK2 CDK4 CHK1 CSK CSK21 E2AK2 GSK3B HCK KCC1 MK01 MK14 PAK1 PDPK1 TGFR1",
    "small GTPase": "ARF1 ARF6 CDC42 RAC1 RAC2 RAP1A RAP2A RASH RASK RHOA RRAS",
    "trypsin-like protease": "ACRO CATG CFAD CFAI CLCR EL2A EL3A FA7 FA9 FA10 PRN3 PROC TPA UROK",
    "serpin": "A1AT AACT ANGT ANT3 CBG HEP2 IC1 KAIN PAI1 SPB9",
    "cytochrome P450": "C11B2 C2F1 CP17A CP19A CP21A CP2B CP2C8 CP2D6 CP3A4 CP51 CPF2 CY24B",
    "four-helix cytokine": "CNTF CSF2 CSH EPO IFNA1 IFNB IFNG IL2 IL3 IL4 IL5 IL6 IL7 IL13 PRL",
    "chemokine": "CCL2 CCL3 CCL4 CCL5 CCL11 GROA IL8 PLF4",
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names.split()}


def human_families(path):
    """One protein for each name in `FAMILY_OF`: a table of name, family and sequence."""
    found = {}
    for record in read_fasta(path):
        name = re.search(r"([A-Z0-9]+)_HUMAN", record.id)
        if name and name[1] in FAMILY_OF and len(record.seq) <= 600:
            found.setdefault(name[1], record.seq)  # the file has point mutants, too
    table = pd.DataFrame(found.items(), columns=["name", "sequence"])
    return table.assign(family=table["name"].map(FAMILY_OF))


# %% [markdown]
# ## Your own table
#
# Replace the next cell by something like `table = pd.read_csv("my_proteins.csv")`, with the columns
# `name`, `sequence` and `family` (any annotation that you would like to see on a map, or to
# transfer). Without the file of human proteins (any FASTA of UniProt with ids that end in
# `_HUMAN`), the peptides that ship with the library are taken.

# %% tags=["your-data"]
FASTA = DATA / "natural_proteins.fasta.gz"
if FASTA.is_file():
    table = human_families(FASTA)
else:
    table = datasets.load_demo_peptides(as_frame=True).frame.rename(columns={"kind": "family"})

# %%
n_before = len(table)  # of near-copies, which would make every search look good, one is kept
copies = pd.Series(cluster_sequences(table["sequence"], min_identity=0.9), index=table.index)
table = table[~copies.duplicated()].sort_values(["family", "name"]).reset_index(drop=True)
X, families = table["sequence"], table["family"].to_numpy(dtype=object)
sizes = table["family"].value_counts()
say(
    f"{len(table)} proteins of {X.str.len().min()} to {X.str.len().max()} residues in {len(sizes)} "
    f"families of {sizes.min()} to {sizes.max()} members. Near-copies left out: "
    f"{n_before - len(table)}."
)

# %% [markdown]
# ## Two maps of one space
#
# Each protein becomes one vector, the mean over its residues in the last layer. PCA is a linear
# shadow: distances on it mean something, but it shows little of the variance. UMAP keeps
# neighbours together, and distances between its islands mean nothing.

# %%
vectors = ESM2Transformer(MODEL).fit_transform(X)
scaled = StandardScaler().fit_transform(vectors)
pca = PCA(2, random_state=0).fit(scaled)
mapper = umap.UMAP(n_neighbors=10, min_dist=0.4, metric="cosine", random_state=0, n_jobs=1)
planes = {"PCA": pca.transform(scaled), "UMAP": mapper.fit_transform(scaled)}

# %% tags=["card"] mystnb={"image": {"alt": "Two scatter plots of the same proteins, PCA on the left and UMAP on the right, coloured by family; colour and marker together name a family in the legend."}}
figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.9))
for axes, (method, plane) in zip(panels, planes.items(), strict=True):
    for i, family in enumerate(sorted(sizes.index)):
        style = {"color": PALETTE[i % 5], "marker": "o^sD"[i // 5 % 4], "label": family}
        axes.scatter(*plane[families == family].T, s=30, lw=0.4, edgecolors="white", **style)
    axes.set(xticks=[], yticks=[], title=f"{method} of embeddings of {MODEL}")
shares = pca.explained_variance_ratio_
panels[0].set(xlabel=f"first component ({shares[0]:.0%} of the variance)")
panels[0].set(ylabel=f"second component ({shares[1]:.0%})")
panels[1].set(xlabel="UMAP 1 (no unit)", ylabel="UMAP 2 (no unit)")
legend = panels[0].get_legend_handles_labels()
figure.legend(*legend, loc="outside lower center", ncols=5, fontsize=8.5, handletextpad=0.1)
plt.show()

# %% [markdown]
# How much of the space is on the map? Count the proteins whose nearest neighbour is of their own
# family. What is lost on a plane is lost in the picture, not in the embedding.

# %%
flat = {"scale": None, "metric": "euclidean"}
found = {f"all {vectors.shape[1]} components": nearest(vectors)}
found |= {f"the {method} plane": nearest(plane, **flat) for method, plane in planes.items()}
found["length alone"] = nearest(X.str.len().to_numpy(dtype=float)[:, None], **flat)
same = {name: np.mean(families[near.indices[:, 0]] == families) for name, near in found.items()}
by_chance = (sizes * (sizes - 1)).sum() / (len(table) * (len(table) - 1))
say(
    "The nearest neighbour is of the same family: "
    + ", ".join(f"{share:.0%} by {name}" for name, share in same.items())
    + f", and {by_chance:.0%} by chance."
)

# %% [markdown]
# ## Search
#
# What resembles a protein? `nearest` ranks by the cosine of standardised vectors; beside it stands
# the identity of an alignment (0 where it is not significant). Put any name of the table here.

# %%
QUERY = "VIPR1" if "VIPR1" in set(table["name"]) else table["name"].iloc[0]
row = table.index[table["name"] == QUERY][0]
indices, distances = nearest(vectors, n_neighbors=min(8, len(table) - 1))
hits = table.iloc[indices[row]].assign(cosine=1 - distances[row])
hits["identity"] = train_test_identity(X[[row]], hits["sequence"]).identity
say(f"Query: **{QUERY}** ({families[row]}, {len(X[row])} residues).")
display(hits.set_index("name")[["family", "cosine", "identity"]].round(2))

# %% [markdown]
# ## Annotation transfer: who needs a language model?
#
# Every protein takes the family of its nearest one in the other folds: by embedding, composition,
# 3-mers, or alignment, which may find nothing. Easy cases hide the difference, so the results are
# shown by how near the best hit of the alignment is. Intervals are Wilson's.

# %%
spaces = {f"embedding ({MODEL})": vectors}
spaces["3-mers"] = DescriptorTransformer("kmers", k=3).fit_transform(X)
spaces["composition"] = DescriptorTransformer("composition").fit_transform(X)
taken = {name: np.empty(len(table), dtype=object) for name in [*spaces, "alignment"]}
identity, reliability = np.empty(len(table)), np.empty(len(table))
for train, test in KFold(min(20, len(table)), shuffle=True, random_state=0).split(X):
    for name, space in spaces.items():
        scale = None if name == "3-mers" else "standardize"
        near = nearest(space[test], space[train], scale=scale)
        taken[name][test], sure = transfer_labels(near, families[train])
        if space is vectors:
            reliability[test] = sure
    identity[test], hit = train_test_identity(X[train], X[test])
    taken["alignment"][test] = np.where(hit >= 0, families[train][hit], "no hit")
right = pd.DataFrame({name: labels == families for name, labels in taken.items()})
zone = pd.cut(identity, [-1, 0, 0.25, 0.4, 1], labels=["no hit", "to 25 %", "to 40 %", "above"])

# %% mystnb={"image": {"alt": "Share of proteins that get the right family, with intervals, for embeddings, 3-mers, composition and alignment, by identity to the best hit of the alignment."}}
figure, axes = plt.subplots(figsize=(7.5, 3.8))
for k, (name, colour) in enumerate(zip(right, PALETTE, strict=False)):
    counts = right[name].groupby(zone, observed=False).agg(["sum", "size"])
    for i, (hits, n) in enumerate(counts.to_numpy()):
        if n:
            low, high = binomtest(int(hits), int(n)).proportion_ci(method="wilson")
            axes.plot([i + k * 0.12] * 2, [low, high], color=colour, lw=1.5)
            axes.plot(i + k * 0.12, hits / n, "o", color=colour, label=name)
axes.axhline(by_chance, color=GREY, lw=0.8, ls=":")
axes.text(3.5, by_chance + 0.015, "chance", color=GREY, fontsize=9, ha="right")
ticks = [f"{label}\n({n} proteins)" for label, n in zip(counts.index, counts["size"], strict=True)]
axes.set_xticks(np.arange(4) + 0.18, ticks)
axes.yaxis.set_major_formatter(PercentFormatter(1))
axes.set(xlabel="identity to the best hit of the alignment", ylabel="right family", ylim=(0, 1.04))
legend = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
axes.legend(legend.values(), legend, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
ours, *others = right
for name in others:
    gain = right[ours].astype(float) - right[name]
    between = bootstrap((gain,), np.mean, method="percentile", rng=0).confidence_interval
    is_clear = between.low > 0 or between.high < 0
    words = (
        ("ahead of" if gain.mean() > 0 else "behind") if is_clear else "not clearly different from"
    )
    say(
        f"- *{ours}* is {words} *{name}*: {right[ours].mean():.0%} and {right[name].mean():.0%} "
        f"right (difference {gain.mean():+.0%}, {between.low:+.0%} to {between.high:+.0%})."
    )
sure = reliability >= np.median(reliability)
say(
    "`transfer_labels` says how reliable a label is: of the more reliable half, "
    f"{right[ours][sure].mean():.0%} are right, of the other {right[ours][~sure].mean():.0%}."
)

# %% [markdown]
# ## Contacts and attention
#
# `Engine.contacts` predicts which residues touch. It needs the contact regression that comes with
# every official model; `mini` has none, and says so.

# %%
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"

engine = Engine(MODEL)
try:
    contacts = engine.contacts([UBIQUITIN])[0]
    say(f"{(contacts > 0.5).sum() // 2} contacts; `esm2-features contacts --plot` draws them.")
except CheckpointError as error:
    say(f"`{type(error).__name__}`\n> {str(error).replace(error.path, Path(error.path).name)}")

# %% [markdown]
# Contacts are made of attention: each head of each layer has a map of how much each residue looks
# at each other one. Left: how much of it goes at least six positions away. Right: the sum over all
# heads, symmetric and freed of what each residue gets from everywhere (average product correction).

# %% mystnb={"image": {"alt": "Left: heat map of the share of attention that goes six or more positions away, by layer and head. Right: sum over all heads of the corrected attention between residues of ubiquitin that are six or more apart."}}
maps = engine.attentions([UBIQUITIN])[0][:, :, 1:-1, 1:-1]  # without <cls> and <eos>
distance = np.abs(np.subtract.outer(*[np.arange(len(UBIQUITIN))] * 2))
far = maps[..., distance >= 6].sum(axis=-1) / maps.sum(axis=(-1, -2))
symmetric = maps + maps.swapaxes(-1, -2)  # contacts have no direction
gets = symmetric.sum(axis=-1)
background = gets[..., :, None] * gets[..., None, :] / gets.sum(axis=-1)[..., None, None]
corrected = (symmetric - background).sum(axis=(0, 1))
corrected[distance < 6] = np.nan  # neighbours attend to each other whatever the structure

figure, (left, right_panel) = plt.subplots(1, 2, figsize=(10.5, 4.3))
edges = (0.5, far.shape[1] + 0.5, far.shape[0] + 0.5, 0.5)
image = left.imshow(far, vmin=0, vmax=1, cmap=SCALE, extent=edges, aspect="auto")
figure.colorbar(image, ax=left, shrink=0.8, format=PercentFormatter(1))
left.set(xlabel="head", ylabel="layer", title="Attention to residues 6 or more away")
edges = (0.5, len(UBIQUITIN) + 0.5, len(UBIQUITIN) + 0.5, 0.5)
limit = np.nanpercentile(np.abs(corrected), 99.5)
image = right_panel.imshow(corrected, vmin=-limit, vmax=limit, cmap=SIGNED, extent=edges)
figure.colorbar(image, ax=right_panel, label="attention minus background", shrink=0.8)
right_panel.set(xlabel="residue of ubiquitin", ylabel="residue of ubiquitin")
right_panel.set_title("All heads together (grey: closer than 6)")
plt.show()

# %% [markdown]
# ## A mutational scan
#
# `scan_variants` masks each position in turn and asks how likely each amino acid is there,
# compared with the one that is there. Ubiquitin is among the domains whose stability was measured
# for nearly all substitutions (Tsuboyama et al. 2023); where that table is at hand, the measurement
# stands below. (Very stable domains were measured with a mutation, such as L67S in their name.)

# %%
AMINO_ACIDS, ORDER = "ACDEFGHIKLMNPQRSTVWY", "GAVLIMPFWYSTCNQKRHDE"
protein, subject, measured = UBIQUITIN, "ubiquitin", None
try:
    stability = datasets.fetch_stability_megascale(as_frame=True, download_if_missing=False).frame
except OSError:
    say("`datasets.fetch_stability_megascale()` downloads the measurements; they are not here.")
else:
    rows = stability[stability["protein"].str.startswith("1ubq")]
    protein, subject = rows["wildtype"].iloc[0], rows["protein"].iloc[0]
    columns = rows["mutation"].str[-1].map(AMINO_ACIDS.index)
    measured = np.full((len(protein), 20), np.nan)
    measured[rows["position"], columns] = -rows["ddG"]
scan = scan_variants(engine, protein)
pictures = {f"{MODEL}, {subject}: ln(P substituted / P unchanged)": scan}
if measured is not None:
    pictures["Measured: -ddG (kcal/mol; grey: not measured)"] = measured
    known = np.isfinite(measured)
    rho = spearmanr(scan[known], measured[known]).statistic
    say(
        f"Rank correlation with the measurement, {known.sum():,} substitutions of `{subject}`: "
        f"**{rho:.2f}**. One domain proves nothing: `03_stability` asks many."
    )

# %% mystnb={"image": {"alt": "Heat map of all single substitutions of ubiquitin, in the background that was measured: log-likelihood ratios of the model, and measured changes of stability below them. Dots mark the residues of that background."}}
size = (10.5, 3.1 * len(pictures))
figure, panels = plt.subplots(len(pictures), 1, figsize=size, sharex=True, squeeze=False)
for axes, (title, values) in zip(panels[:, 0], pictures.items(), strict=True):
    limit = np.nanpercentile(np.abs(values), 99)
    image = axes.imshow(
        values[:, [AMINO_ACIDS.index(letter) for letter in ORDER]].T,
        cmap=SIGNED,
        norm=plt.Normalize(-limit, limit),
        aspect="auto",
        extent=(0.5, len(protein) + 0.5, 19.5, -0.5),
    )
    dots = [ORDER.index(letter) for letter in protein]
    axes.plot(range(1, len(protein) + 1), dots, ".", ms=4, color="#333333")
    axes.set_yticks(range(20), list(ORDER), fontsize=7, family="monospace")
    axes.set(title=title, ylabel="substituted by")
    figure.colorbar(image, ax=axes, pad=0.01)
axes.set_xlabel(f"position in {subject} (dots: unchanged)")
plt.show()

# %% [markdown]
# ## Where next
#
# * The pictures without Python: `esm2-features scan ubiquitin.fasta -o scan.csv --plot scan.png`
#   and `esm2-features contacts proteins.fasta -o contacts.npz --plot maps`.
# * For many thousand proteins, embed them once with `esm2-features embed`: vectors stay cached.
