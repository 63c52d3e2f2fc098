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
# A regression of ΔΔG, the change of folding free energy, for single mutants of proteins that the
# model has never seen. Each way to turn a mutation into features (amino acids alone, embeddings,
# likelihoods) runs under the same splits, with the same regressor, and has an interval.
#
# You will learn how to make features of a pair (wild type and mutant), how to pool at the mutated
# position, how much a random split of the rows flatters, what reversed mutations reveal, and why
# half precision is dangerous here.
#
# > **The numbers below are a demonstration.** They come from `mini`, the small model that ships
# > with this library and is not ESM-2. For science, set `MODEL = "esm2_t33_650M_UR50D"` in the
# > next cell.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from Bio.Align import PairwiseAligner, substitution_matrices
from IPython.display import Markdown, display
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter
from scipy.sparse import coo_array, triu
from scipy.sparse.csgraph import connected_components
from scipy.stats import spearmanr
from sklearn import set_config
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from esm2_features import (
    Engine,
    ESM2DifferenceTransformer,
    ESM2Transformer,
    datasets,
    score_variants,
)
from esm2_features.exceptions import DatasetError

MODEL = "mini"  # for science: "esm2_t33_650M_UR50D"
SEED = 0

local = Path("../shared/data") if Path("../shared/data").is_dir() else Path("../../shared/data")
if local.is_dir():
    os.environ.setdefault("ESM2_FEATURES_DATA", str(local))

# With this switch, scikit-learn hands the groups on to the splitter inside the regressor. Without
# it, the strength of the ridge would be chosen on random rows, with relatives on both sides.
set_config(enable_metadata_routing=True)

AMINO_ACIDS = list("ACDEFGHIKLMNPQRSTVWY")
TEAL, RED, AMBER, VIOLET, GREY = "#00738a", "#c8384d", "#e8a33d", "#5b5b9d", "#8a8a8a"
DDG = "ΔΔG (kcal/mol; negative = destabilising)"
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
# One table, a row for each mutant, with these columns. Replace the first line of the next cell by
# something like `mutants = pd.read_csv("my_mutants.csv")`.
#
# | column | meaning |
# |---|---|
# | `protein` | name of the protein; rows of one protein are kept together |
# | `wildtype`, `sequence` | the two sequences, equally long |
# | `position` | of the mutation in the sequence, **counted from 0** |
# | `ddG` | in kcal/mol, **negative = destabilising** here; many papers use the opposite sign |
#
# Two things go wrong often: the sign, and positions that are numbered as in a PDB file. The check
# below finds the second; nothing but a look at your data finds the first.

# %% tags=["your-data"]
mutants = datasets.fetch_stability_s2648(as_frame=True).frame


def check(table):
    """Refuse a row that is not one substitution at its position."""
    for row, (wildtype, mutant, p) in enumerate(
        zip(table.wildtype, table.sequence, table.position, strict=True)
    ):
        same = wildtype[:p] == mutant[:p] and wildtype[p + 1 :] == mutant[p + 1 :]
        if not same or wildtype[p : p + 1] == mutant[p : p + 1]:
            raise ValueError(f"Row {row} is not one substitution at position {p}, counted from 0.")


check(mutants)
ddg = mutants.ddG.to_numpy()
destabilising = (ddg < 0).mean()
say(
    f"{len(mutants):,} mutants of {mutants.protein.nunique()} proteins, all of them one "
    "substitution "
    f"where the table says so. {destabilising:.0%} have a negative ΔΔG: "
    + (
        "most mutations destabilise, so negative means destabilising, as expected."
        if destabilising > 0.5
        else "**most mutations would stabilise, which is rare: check the sign.**"
    )
)
longest = int(mutants.sequence.str.len().max())
say(
    f"The longest protein has {longest} residues"
    + (
        ", so none needs windows (ESM-2 was trained on up to 1022)."
        if longest <= 1022
        else '. Pass `too_long="window"` to the transformers below: cutting could lose mutations.'
    )
)

# %% [markdown]
# ## The data at a glance
#
# A few proteins hold a large part of the rows. Numbers over all rows are numbers about these
# proteins, so we also report one number for each protein that has enough mutants.

# %% mystnb={"image": {"alt": "Two panels. Left: histogram of measured changes of stability. Right: mutants of each protein, sorted, on a logarithmic axis; a few proteins hold many."}}
ENOUGH = 10  # mutants of a protein for a rank correlation of its own

counts = mutants.protein.value_counts()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1))
left.hist(ddg, np.arange(-5.25, 7.3, 0.5), color=TEAL)
left.axvline(0, color=GREY, lw=1, ls="--")
left.set(title="What was measured", xlabel=DDG, ylabel="mutants")
right.fill_between(np.arange(len(counts)), counts, 0.8, step="mid", color=TEAL)
right.axhline(ENOUGH, color=RED, lw=1, ls="--")
right.text(len(counts), ENOUGH * 1.1, f"{ENOUGH} mutants", color=RED, ha="right")
right.annotate(
    f"{counts.index[0]}: {counts.iloc[0]}", (0, counts.iloc[0]), (6, -4), textcoords="offset points"
)
right.set(
    title="How many of each protein",
    xlabel="proteins, sorted",
    ylabel="mutants",
    yscale="log",
    ylim=(0.8, counts.iloc[0] * 1.4),
)
plt.show()

AT_MOST = 30  # mutants of one protein; None keeps all

all_mutants = mutants
if AT_MOST is not None:
    shuffled = mutants.sample(frac=1, random_state=SEED)
    mutants = shuffled[shuffled.groupby("protein").cumcount() < AT_MOST].sort_index()
    mutants = mutants.reset_index(drop=True)
    ddg = mutants.ddG.to_numpy()
enough = counts.index[counts >= ENOUGH]
say(
    f"The largest protein has {counts.iloc[0] / counts.sum():.0%} of all rows, the five largest "
    f"{counts.iloc[:5].sum() / counts.sum():.0%}. "
    + (
        "All rows are used. "
        if AT_MOST is None
        else f"So that no protein dominates, and to stay quick, we keep {AT_MOST} mutants of a "
        f"protein at most, drawn at random: {len(mutants):,} of {counts.sum():,}. "
    )
    + f"{len(enough)} proteins have {ENOUGH} mutants or more."
)

# %% [markdown]
# ## Relatives stay together
#
# Mutants of one protein differ by one residue, so they must not lie on both sides of a split. Nor
# should close relatives, such as lysozymes of two species. We align the wild types that share
# words of three letters, and put proteins into one family if a good part of the shorter one is
# identical. For many proteins, take MMseqs2; all that is needed is a family number.

# %%
SHARED_3MERS = 4  # fewer, and a pair is not aligned
IDENTITY = 0.3  # of the shorter protein; from here on, two proteins are relatives


def families_of(wildtypes):
    """Give the family of each protein: a dict from wild type to family."""
    proteins = sorted(set(wildtypes))
    words = CountVectorizer(
        analyzer="char", ngram_range=(3, 3), lowercase=False, binary=True, dtype=np.int32
    ).fit_transform(proteins)
    shared = triu(words @ words.T, k=1).tocoo()
    aligner = PairwiseAligner(
        mode="local",
        substitution_matrix=substitution_matrices.load("BLOSUM62"),
        open_gap_score=-11,
        extend_gap_score=-1,
    )
    links = []
    for i, j, n in zip(shared.row, shared.col, shared.data, strict=True):
        if n >= SHARED_3MERS:
            a, b = proteins[i], proteins[j]
            identical = aligner.align(a, b)[0].counts().identities
            if identical >= IDENTITY * min(len(a), len(b)):
                links.append((i, j))
    rows, columns = np.array(links, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=shared.shape)
    return dict(zip(proteins, connected_components(graph, directed=False)[1], strict=True))


mutants["family"] = mutants.wildtype.map(families_of(mutants.wildtype))
in_family = mutants.groupby("family").protein.nunique()
say(
    f"The {mutants.protein.nunique()} proteins make {len(in_family)} families; "
    f"{(in_family > 1).sum()} of them hold more than one protein, the largest {in_family.max()}. "
    f"{mutants.family.isin(in_family.index[in_family > 1]).mean():.0%} of the rows have a "
    "relative in another protein."
)

# %% [markdown]
# ## Features of a mutation
#
# All features are made of the columns `wildtype`, `sequence` and `position`, with scikit-learn's
# own parts. First the baseline, which knows which residue became which, and nothing of the protein
# around it.

# %%
# fmt: off
HYDROPATHY = {  # Kyte and Doolittle (1982)
    "A": 1.8, "R": -4.5, "N": -3.5, "D": -3.5, "C": 2.5, "Q": -3.5, "E": -3.5, "G": -0.4,
    "H": -3.2, "I": 4.5, "L": 3.8, "K": -3.9, "M": 1.9, "F": 2.8, "P": -1.6, "S": -0.8,
    "T": -0.7, "W": -0.9, "Y": -1.3, "V": 4.2,
}
VOLUME = {  # cubic angstroms, Zamyatnin (1972)
    "A": 88.6, "R": 173.4, "N": 114.1, "D": 111.1, "C": 108.5, "Q": 143.8, "E": 138.4, "G": 60.1,
    "H": 153.2, "I": 166.7, "L": 166.7, "K": 168.6, "M": 162.9, "F": 189.9, "P": 112.7, "S": 89.0,
    "T": 116.1, "W": 227.8, "Y": 193.6, "V": 140.0,
}
# fmt: on
BLOSUM62 = substitution_matrices.load("BLOSUM62")


def residues(table):
    """Give the wild-type and the mutant residue: (n, 2)."""
    rows = zip(table.wildtype, table.sequence, table.position, strict=True)
    return np.array([(w[p], m[p]) for w, m, p in rows], dtype=object)


def substitution(table):
    """Give BLOSUM62, and changes of hydropathy and volume with and without sign: (n, 5)."""
    rows = []
    for w, m in residues(table):
        polar, size = HYDROPATHY[m] - HYDROPATHY[w], VOLUME[m] - VOLUME[w]
        rows.append((float(BLOSUM62[w, m]), polar, size, abs(polar), abs(size)))
    return np.array(rows)


amino_acids = FeatureUnion(
    [
        (
            "residues",
            make_pipeline(
                FunctionTransformer(residues),
                OneHotEncoder(categories=[AMINO_ACIDS] * 2, sparse_output=False),
            ),
        ),
        ("substitution", FunctionTransformer(substitution)),
    ]
)

# %% [markdown]
# Then embeddings. `ESM2DifferenceTransformer` takes two columns, wild types and mutants, and gives
# the embedding of the mutant minus that of its wild type: of the whole protein, or with
# `region="site"` of the mutated residue alone, with the whole protein as its context. To have both
# representations side by side, `ESM2Transformer` pools each over the column `position`.

# %%
pair = ["wildtype", "sequence"]
esm = ESM2Transformer(MODEL)
esm_here = ESM2Transformer(MODEL, region="position")

whole_change = ColumnTransformer([("change", ESM2DifferenceTransformer(MODEL), pair)])
here_change = ColumnTransformer([("change", ESM2DifferenceTransformer(MODEL, region="site"), pair)])
here_both = ColumnTransformer(
    [
        ("mutant", esm_here, ["sequence", "position"]),
        ("wildtype", esm_here, ["wildtype", "position"]),
    ]
)

# %% [markdown]
# Last, likelihoods: how much less likely does the model find the mutant residue than that of the
# wild type? `score_variants` takes the wild type of each row. Masked marginals cost a forward pass
# for each mutated position; marginals of the unmasked wild type cost one for each protein.

# %%
engine = Engine(MODEL)


def log_ratios(table):
    """Log-likelihood ratio of each mutant to its own wild type, by two methods: (n, 2)."""
    methods = ("masked-marginals", "wildtype-marginals")
    pairs = table.wildtype, table.sequence
    return np.column_stack([score_variants(engine, *pairs, method) for method in methods])


likelihoods = FunctionTransformer(log_ratios)

FEATURES = {
    "amino acids": amino_acids,
    "likelihood ratios": likelihoods,
    "whole protein, change": whole_change,
    "position, change": here_change,
    "position, both": here_both,
}

# %% [markdown]
# The mean and the position can share one forward pass. Each step would compute its own, unless the
# cache is filled first: below, every sequence occurs with two regions, its position and all of it.
# (A region that is all of a sequence is the same vector as no region.)

# %%


def both_regions(table):
    """List wild types and mutants twice: with the mutated position, and as a whole."""
    parts = [
        pd.DataFrame({"sequence": table[column], "region": region})
        for column in ("wildtype", "sequence")
        for region in (table.position.astype(str), "0:" + table[column].str.len().astype(str))
    ]
    return pd.concat(parts)


ESM2Transformer(MODEL, region="region").precompute(both_regions(mutants), layers=-1, pooling="mean")
X = {
    name: features.fit_transform(mutants).astype(np.float32) for name, features in FEATURES.items()
}
UNION = ["amino acids", "likelihood ratios", "whole protein, change", "position, both"]
X["all of it"] = np.hstack([X[name] for name in UNION])
say(
    "Columns of each: "
    + ", ".join(f"{name} {values.shape[1]}" for name, values in X.items())
    + ". These steps learn nothing from the data, so they may stand in front of the splits. What "
    "learns (scaling and ridge) stays inside."
)

# %% [markdown]
# ## One regressor for all, and three splits
#
# The regressor is ridge regression, because there are few proteins and many columns. How strong it
# is, it chooses for itself, by cross-validation on families inside the training part. In the
# union, each block of features gets the same total variance, or five columns would drown in
# hundreds.
#
# The splits: at random by row, as is often seen; by protein; and by family, which is what we
# believe.

# %%
STRENGTHS = np.logspace(1, 5, 5)


def regressor(blocks=None):
    """Make a ridge; blocks are the numbers of columns that are scaled together."""
    ridge = RidgeCV(STRENGTHS, cv=GroupKFold(3), scoring="neg_mean_squared_error")
    if blocks is None:
        return make_pipeline(StandardScaler(), ridge)
    ends = np.cumsum(blocks)
    scale = ColumnTransformer(
        [
            (f"block{k}", StandardScaler(), slice(ends[k] - n, ends[k]))
            for k, n in enumerate(blocks)
        ],
        transformer_weights={
            f"block{k}": np.sqrt(np.mean(blocks) / n) for k, n in enumerate(blocks)
        },
    )
    return make_pipeline(scale, ridge)


REGRESSORS = {name: regressor() for name in FEATURES}
REGRESSORS["all of it"] = regressor([X[name].shape[1] for name in UNION])


def predict(name, values, target, groups, folds=5):
    """Predict each row from a model that has seen no row of its group."""
    # Hundreds of small ridges: several threads for each would mostly wait for one another.
    with threadpool_limits(1, user_api="blas"):
        return cross_val_predict(
            REGRESSORS[name],
            values[name],
            target,
            cv=GroupKFold(folds, shuffle=True, random_state=SEED),
            params={"groups": groups},
        )


families = mutants.family.to_numpy()
SPLITS = {
    "rows": np.arange(len(mutants)),
    "proteins": mutants.protein.to_numpy(),
    "families": families,
}
COMPARED = ["amino acids", "position, both", "all of it"]
predicted = {
    (name, split): predict(name, X, ddg, groups)
    for split, groups in SPLITS.items()
    for name in (X if split == "families" else COMPARED)
}

# %% [markdown]
# Every figure comes with a bootstrap over families: mutants of one protein, and proteins that are
# relatives, are not independent evidence. The Spearman correlation per protein asks what a user asks, which of my mutants is
# the more stable one. The pooled one also rewards telling proteins apart.

# %%
DRAWS = 1000
rng = np.random.default_rng(SEED)


def spearman(a, b):
    """Spearman correlation, without a p-value."""
    return float(spearmanr(a, b).statistic)


def per_protein(values, target, table):
    """Spearman of each protein with enough mutants, indexed by family and protein."""
    rows = table[["protein", "family"]].assign(value=values, target=target)
    found = {
        (own.family.iloc[0], protein): spearman(own.value, own.target)
        for protein, own in rows.groupby("protein")
        if len(own) >= ENOUGH
    }
    return pd.Series(found).rename_axis(["family", "protein"])


def interval(draws):
    """Middle 95 % of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return low, high


def mean_interval(values):
    """Interval of a mean over proteins, whose families are drawn with replacement."""
    of_family = values.groupby(level="family").agg(["sum", "size"]).to_numpy()
    drawn = of_family[rng.integers(len(of_family), size=(DRAWS, len(of_family)))].sum(axis=1)
    return interval(drawn[:, 0] / drawn[:, 1])


def resampled_rows(families, draws=300):
    """Rows of each draw of as many families, with replacement."""
    of_family = list(pd.Series(families).groupby(families).indices.values())
    for _ in range(draws):
        chosen = rng.integers(len(of_family), size=len(of_family))
        yield np.concatenate([of_family[k] for k in chosen])


def pooled_intervals(values, target, families):
    """Intervals of the pooled Spearman and of the RMSE, families drawn with replacement."""
    found = [
        (spearman(values[rows], target[rows]), rmse(values[rows], target[rows]))
        for rows in resampled_rows(families)
    ]
    by_spearman, by_rmse = np.array(found).T
    return interval(by_spearman), interval(by_rmse)


def rmse(values, target):
    """Root mean squared error."""
    return float(np.sqrt(np.mean((values - target) ** 2)))


by_protein = {key: per_protein(values, ddg, mutants) for key, values in predicted.items()}
zero_shot = {
    "masked marginals, no training": per_protein(X["likelihood ratios"][:, 0], ddg, mutants),
    "wild-type marginals, no training": per_protein(X["likelihood ratios"][:, 1], ddg, mutants),
    "BLOSUM62, no training": per_protein(substitution(mutants)[:, 0], ddg, mutants),
}
constant = cross_val_predict(
    DummyRegressor(), X["amino acids"], ddg, cv=GroupKFold(5), params={"groups": families}
)

rows = []
for name in X:
    values = predicted[name, "families"]
    own = by_protein[name, "families"]
    of_spearman, of_rmse = pooled_intervals(values, ddg, families)
    rows.append(
        {
            "features": name,
            "Spearman per protein (mean)": f"{own.mean():z.2f} [{mean_interval(own)[0]:.2f}, {mean_interval(own)[1]:.2f}]",
            "Spearman pooled": f"{spearman(values, ddg):.2f} [{of_spearman[0]:.2f}, {of_spearman[1]:.2f}]",
            "RMSE (kcal/mol)": f"{rmse(values, ddg):.2f} [{of_rmse[0]:.2f}, {of_rmse[1]:.2f}]",
        }
    )
rows.append(
    {"features": "mean of the training set", "RMSE (kcal/mol)": f"{rmse(constant, ddg):.2f}"}
)
display(pd.DataFrame(rows).fillna("").set_index("features"))

# %% [markdown]
# ## What a row split would have claimed
#
# With rows split at random, nearly every test mutant has siblings of the same protein, often at
# the same position, in the training set. The score then answers a question that nobody asked: how
# well can I fill gaps in a protein that has already been measured?

# %% mystnb={"image": {"alt": "Pooled Spearman correlation of three feature sets under row, protein and family splits, with bootstrap intervals, pooled and per protein."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
colours = {"rows": RED, "proteins": AMBER, "families": TEAL}
measures = {"pooled": {}, "per protein": {}}
for k, name in enumerate(COMPARED):
    for shift, split in zip((-0.22, 0, 0.22), SPLITS, strict=True):
        values = predicted[name, split]
        own = by_protein[name, split]
        measures["pooled"][name, split] = spearman(values, ddg)
        measures["per protein"][name, split] = own.mean()
        limits = (pooled_intervals(values, ddg, families)[0], mean_interval(own))
        for axis, (low, high), measure in zip(axes, limits, measures.values(), strict=True):
            axis.plot([k + shift] * 2, [low, high], color=colours[split], lw=2)
            axis.plot(
                k + shift,
                measure[name, split],
                "o",
                color=colours[split],
                ms=7,
                label=f"split by {split}" if k == 0 else None,
            )
top = max(line.get_ydata().max() for axis in axes for line in axis.lines)
for axis, measure in zip(axes, measures, strict=True):
    axis.set_xticks(range(len(COMPARED)), COMPARED)
    axis.set(title=f"Spearman, {measure}", ylabel="predicted vs measured ΔΔG", ylim=(0, top * 1.12))
    axis.margins(x=0.12)
axes[1].legend(loc="upper left", ncols=3, fontsize=8, handletextpad=0.1, columnspacing=0.8)
plt.show()

claims = []
for name in COMPARED:
    claimed, honest = measures["pooled"][name, "rows"], measures["pooled"][name, "families"]
    claims.append(f"{name} {claimed:.2f} instead of {honest:.2f} ({claimed - honest:+.2f})")
say("Pooled Spearman by row instead of by family: " + "; ".join(claims) + ".")


def gain(name, rows=slice(None)):
    """Pooled Spearman of the row split less that of the family split."""
    by_row, by_family = predicted[name, "rows"][rows], predicted[name, "families"][rows]
    return spearman(by_row, ddg[rows]) - spearman(by_family, ddg[rows])


drawn = pd.DataFrame(
    {name: gain(name, rows) for name in COMPARED} for rows in resampled_rows(families)
)
baseline = "amino acids"
for name in COMPARED:
    low, high = interval(drawn[name])
    text = f"- **{name}** gains {gain(name):+.2f} [{low:+.2f}, {high:+.2f}] from the leak"
    if name != baseline:
        low, high = interval(drawn[name] - drawn[baseline])
        word = (
            "more than" if low > 0 else "less than" if high < 0 else "not clearly more or less than"
        )
        more = gain(name) - gain(baseline)
        text += f", {word} {baseline} do ({more:+.2f} [{low:+.2f}, {high:+.2f}])"
    say(text + ".")


def compare(first, second):
    """Difference of two means over the same proteins, with its interval, and a word for it."""
    difference = first - second
    low, high = mean_interval(difference)
    word = "is better than" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
    return word, f"{difference.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


leak = by_protein["all of it", "rows"] - by_protein["all of it", "families"]
low, high = mean_interval(leak)
say(
    "Ranking within one protein, with all features, the row split differs from the family split by "
    f"{leak.mean():+.2f} [{low:+.2f}, {high:+.2f}] in Spearman per protein. "
    + (
        "The leak reaches into the ranking of one protein's mutants, too."
        if low > 0
        else "Here the row split is even worse."
        if high < 0
        else "So no leak into the ranking within proteins was found here. One of up to "
        f"{high:+.2f} is not excluded."
    )
)

# %% [markdown]
# ## Predicted and measured

# %% mystnb={"image": {"alt": "Predicted against measured change of stability as density of points, for amino acids alone and for all features, with the identity line."}}
figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.4), sharex=True, sharey=True)
low, high = ddg.min() - 0.4, ddg.max() + 0.4
for axis, name in zip(axes, ("amino acids", "all of it"), strict=True):
    values = predicted[name, "families"]
    cells = axis.hexbin(
        ddg,
        values,
        gridsize=45,
        extent=(low, high, low, high),
        bins="log",
        mincnt=1,
        cmap="viridis",
    )
    axis.plot([low, high], [low, high], color=RED, lw=1.2)
    axis.set(
        title=f"{name}\nSpearman {spearman(values, ddg):.2f}, RMSE {rmse(values, ddg):.2f} kcal/mol",
        xlabel="measured " + DDG,
        aspect="equal",
        xlim=(low, high),
        ylim=(low, high),
    )
    axis.xaxis.label.set_fontsize(9)
axes[0].set_ylabel("predicted ΔΔG (kcal/mol)")
axes[0].text(
    high - 0.9, high - 0.5, "identity", color=RED, ha="right", rotation=45, rotation_mode="anchor"
)
figure.colorbar(cells, ax=axes, label="mutants", shrink=0.8)
plt.show()
spread = predicted["all of it", "families"].std() / ddg.std()
say(
    f"The predictions of all features spread over {spread:.0%} of the measured standard deviation. "
    "A regression that is unsure stays near the mean: rank with it, and do not read its values "
    "as kcal/mol."
)

# %% [markdown]
# ## Protein by protein
#
# A mean hides that some proteins work and others do not. Each point is one protein; the scores
# without training need no split, because they have seen no measurement.

# %% mystnb={"image": {"alt": "Spearman correlation of each protein by feature set, as points with the mean and its bootstrap interval."}}
shown = {name: by_protein[name, "families"] for name in X} | zero_shot
jitter = np.random.default_rng(SEED)
figure, axis = plt.subplots(figsize=(9, 4.2))
for k, (name, values) in enumerate(shown.items()):
    colour = GREY if "no training" in name else AMBER if name == "amino acids" else TEAL
    y = -k + jitter.uniform(-0.22, 0.22, len(values))
    axis.plot(values, y, "o", color=colour, ms=4, alpha=0.45, mew=0)
    axis.plot(mean_interval(values), [-k, -k], color="black", lw=2.2)
    axis.plot(values.mean(), -k, "D", color="black", ms=5)
    axis.text(1.03, -k, f"{values.mean():z.2f}", va="center", fontsize=9)
axis.axvline(0, color=GREY, lw=1, ls="--")
axis.set_yticks([-k for k in range(len(shown))], shown)
axis.text(1.03, 0.75, "mean", fontsize=9)
axis.set(
    title=f"Spearman within each of {len(enough)} proteins, split by family",
    xlabel="Spearman, predicted vs measured ΔΔG (higher is better)",
    xlim=(-1, 1),
)
plt.show()

for name in X:
    if name != "amino acids":
        word, numbers = compare(by_protein[name, "families"], by_protein["amino acids", "families"])
        say(f"- **{name}** {word} amino acids alone: {numbers} in Spearman per protein.")
word, numbers = compare(
    zero_shot["masked marginals, no training"], zero_shot["BLOSUM62, no training"]
)
say(
    f"Without any training, the masked-marginal ratio of `{MODEL}` {word} BLOSUM62, a matrix of "
    f"{20 * 21 // 2} numbers from 1992: {numbers}; their means are "
    f"{zero_shot['masked marginals, no training'].mean():+.2f} and "
    f"{zero_shot['BLOSUM62, no training'].mean():+.2f}. "
    + (
        "It has learned too little about which residue a place needs to beat a matrix. "
        + (
            "It is a demonstration model: the ratios of real ESM-2 have to be tried anew."
            if MODEL == "mini"
            else "Compare with a smaller or larger model before you use its ratios."
        )
        if "worse" in word or "cannot" in word
        else "It has learned something about places that no matrix can know."
    )
)

# %% [markdown]
# ## The same mutations, backwards
#
# If A to G costs 2 kcal/mol, G to A in the mutant gains 2 kcal/mol. Most tables hold mutations of
# natural proteins, which mostly destabilise, so a model may just learn to say "destabilises". A
# test that costs no measurement: swap wild type and mutant. Training on both directions makes the
# predictions symmetric and needs no measurement either, but it has a price, which is computed
# below.

# %% mystnb={"image": {"alt": "Two panels, predicted change of a mutation against that of its reverse, with the line of opposite values: trained on the measured direction, and on both directions."}}
reversed_mutants = mutants.rename(columns={"wildtype": "sequence", "sequence": "wildtype"})
both_ways = FeatureUnion([("amino_acids", amino_acids), ("here", here_change)])
forward, backward = both_ways.fit_transform(mutants), both_ways.fit_transform(reversed_mutants)
blocks = [X["amino acids"].shape[1], X["position, change"].shape[1]]

directions = {"trained on measured mutations": False, "trained on both directions": True}
there = {title: np.empty(len(ddg)) for title in directions}
back = {title: np.empty(len(ddg)) for title in directions}
for train, test in GroupKFold(5, shuffle=True, random_state=SEED).split(forward, ddg, families):
    for title, twice in directions.items():
        features = np.vstack([forward[train], backward[train]]) if twice else forward[train]
        target = np.concatenate([ddg[train], -ddg[train]]) if twice else ddg[train]
        groups = np.tile(families[train], 2) if twice else families[train]
        with threadpool_limits(1, user_api="blas"):
            model = regressor(blocks).fit(features, target, groups=groups)
        there[title][test], back[title][test] = (
            model.predict(forward[test]),
            model.predict(backward[test]),
        )

figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), sharex=True, sharey=True)
for axis, title, colour in zip(axes, directions, (RED, TEAL), strict=True):
    axis.plot([-4, 4], [4, -4], color=GREY, lw=1)
    axis.plot(
        there[title], back[title], "o", color=colour, ms=3, alpha=0.25, mew=0, rasterized=True
    )
    axis.axhline(0, color=GREY, lw=0.6, ls=":")
    axis.axvline(0, color=GREY, lw=0.6, ls=":")
    axis.set(
        title=title,
        xlabel="predicted ΔΔG, as measured (kcal/mol)",
        aspect="equal",
        xlim=(-4, 4),
        ylim=(-4, 4),
    )
axes[0].set_ylabel("predicted ΔΔG, reversed (kcal/mol)")
axes[0].text(-3.9, 3.2, "  reverse = -forward", color=GREY, rotation=-45, rotation_mode="anchor")
plt.show()

for title in directions:
    bias = (there[title] + back[title]).mean() / 2
    say(
        f"- **{title}**: mean of both directions {bias:+.2f} kcal/mol (0 is right), correlation "
        "between them "
        f"{np.corrcoef(there[title], back[title])[0, 1]:+.2f} (-1 is right); RMSE "
        f"{rmse(there[title], ddg):.2f} as "
        f"measured and {rmse(back[title], -ddg):.2f} reversed."
    )


def rmse_less(first, second):
    """RMSE of the first less that of the second, with its interval and a word for it."""
    low, high = interval(
        [
            rmse(first[rows], ddg[rows]) - rmse(second[rows], ddg[rows])
            for rows in resampled_rows(families)
        ]
    )
    word = "worse than" if low > 0 else "better than" if high < 0 else "not clearly different from"
    return word, f"{rmse(first, ddg) - rmse(second, ddg):+.2f} [{low:+.2f}, {high:+.2f}] kcal/mol"


one_way, two_ways = directions
word, numbers = rmse_less(there[two_ways], there[one_way])
to_mean, numbers_to_mean = rmse_less(there[two_ways], constant)
say(
    "**What symmetry was bought with.** On mutations in the measured direction, training on both "
    f"directions is {word} training on one: RMSE {rmse(there[two_ways], ddg):.2f} instead of "
    f"{rmse(there[one_way], ddg):.2f} kcal/mol ({numbers}). It is {to_mean} the mean of the "
    f"training set, {rmse(constant, ddg):.2f} ({numbers_to_mean}). What it gets for that is the "
    f"reversed direction: {rmse(back[two_ways], -ddg):.2f} instead of "
    f"{rmse(back[one_way], -ddg):.2f} kcal/mol."
)

# %% [markdown]
# ## Is bfloat16 precise enough? Why it is dangerous here
#
# Half precision is good enough to tell proteins apart, and much faster on some hardware. Of its two
# kinds, bfloat16 is the coarse one: its error is 8 times that of float16. And a
# mutant differs from its wild type by one residue, and we use that difference alone. So the error
# has to be compared with the difference, not with the embedding. We embed the mutants of one
# protein in float32 and again with `precision="bfloat16"`.

# %%
protein = "1BNIA" if "1BNIA" in counts else counts.index[0]
one = all_mutants[all_mutants.protein == protein].iloc[:120]
esm_half = ESM2Transformer(MODEL, precision="bfloat16")
esm_here_half = ESM2Transformer(MODEL, precision="bfloat16", region="position")


def change_of(whole, here, table):
    """Mutant minus wild type over the whole protein, and at the position."""
    return {
        "mean over the protein": whole.fit_transform(table[["sequence"]])
        - whole.fit_transform(table[["wildtype"]]),
        "at the position": here.fit_transform(table[["sequence", "position"]])
        - here.fit_transform(table[["wildtype", "position"]]),
    }


for precision in ("float32", "bfloat16"):
    both = ESM2Transformer(MODEL, precision=precision, region="region")
    both.precompute(both_regions(one), layers=-1, pooling="mean")
exact = change_of(esm, esm_here, one)
rounded = change_of(esm_half, esm_here_half, one)


def relative_error(name):
    """Error of each difference, as a share of its length."""
    error = np.linalg.norm(rounded[name] - exact[name], axis=1)
    return error / np.linalg.norm(exact[name], axis=1)


def distances(differences):
    """Distance of every two mutants."""
    i, j = np.triu_indices(len(differences), k=1)
    return np.linalg.norm(differences[i] - differences[j], axis=1)


embedding = esm.fit_transform(one[["sequence"]])
of_embedding = np.linalg.norm(esm_half.fit_transform(one[["sequence"]]) - embedding, axis=1)
of_embedding /= np.linalg.norm(embedding, axis=1)

# %% mystnb={"image": {"alt": "Three panels. Left: relative error of bfloat16 in the embedding and in differences between mutant and wild type, on a logarithmic axis. Middle: distances of pairs of mutants in bfloat16 against float32. Right: predicted change of stability in bfloat16 against float32."}}
name = "mean over the protein"
pairs = pd.DataFrame({"float32": distances(exact[name]), "bfloat16": distances(rounded[name])})
pairs = pairs.sample(min(len(pairs), 1500), random_state=SEED)

# A model of the other families, trained on float32, is given this protein in both precisions.
others = families != mutants.family[mutants.protein == protein].iloc[0]
model = regressor().fit(X["whole protein, change"][others], ddg[others], groups=families[others])
in_float32, in_bfloat16 = model.predict(exact[name]), model.predict(rounded[name])

figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), width_ratios=[1.35, 1, 1])
kinds = {
    "embedding\nitself": (of_embedding, GREY),
    "change,\nwhole protein": (relative_error(name), RED),
    "change, at\nthe position": (relative_error("at the position"), AMBER),
}
for k, (values, colour) in enumerate(kinds.values()):
    x = k + jitter.uniform(-0.16, 0.16, len(values))
    axes[0].plot(x, values, "o", color=colour, ms=3.5, alpha=0.5, mew=0)
    axes[0].plot([k - 0.28, k + 0.28], [np.median(values)] * 2, color="black", lw=2)
    axes[0].text(k + 0.31, np.median(values), f"{np.median(values):.1%}", va="center", fontsize=8.5)
axes[0].set_xticks(range(len(kinds)), kinds, fontsize=9)
axes[0].set(
    title="Error of bfloat16",
    ylabel="error / length of the vector",
    yscale="log",
    xlim=(-0.5, 2.85),
)
axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
axes[0].yaxis.set_major_formatter(PercentFormatter(1))
axes[0].yaxis.set_minor_locator(NullLocator())
for axis, x, y, colour, title, what in (
    (axes[1], pairs.float32, pairs.bfloat16, VIOLET, "How far are two mutants apart?", "distance"),
    (axes[2], in_float32, in_bfloat16, TEAL, "What is predicted?", "ΔΔG (kcal/mol)"),
):
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    axis.plot([low, high], [low, high], color=GREY, lw=1)
    axis.plot(x, y, "o", color=colour, ms=3, alpha=0.35, mew=0, rasterized=True)
    axis.set(title=title, xlabel=f"{what}, float32", ylabel=f"{what}, bfloat16", aspect="equal")
plt.show()


def nearest(differences):
    """For each mutant, which other one is most like it."""
    apart = np.linalg.norm(differences[:, None] - differences[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return apart.argmin(axis=1)


of_change, of_change_here = relative_error(name), relative_error("at the position")
size = np.median(np.linalg.norm(exact[name], axis=1) / np.linalg.norm(embedding, axis=1))
apart = np.abs(distances(rounded[name]) - distances(exact[name])) / distances(exact[name])
moved = np.abs(in_bfloat16 - in_float32)
say(
    f"{len(one)} mutants of {protein}, `{MODEL}`. A mutation changes the mean over the protein by "
    f"{size:.1%} of its length. bfloat16 is off by {np.median(of_embedding):.2%} of an embedding, "
    "but "
    f"by {np.median(of_change):.1%} of that change (at worst {of_change.max():.1%}), "
    f"{np.median(of_change) / np.median(of_embedding):.0f} times as much. At the position, where "
    f"the change is not diluted by all other residues, it is {np.median(of_change_here):.2%}. "
    f"Distances between two mutants are off by {np.median(apart):.1%} (at worst {apart.max():.1%})."
)
small = np.median(of_change) < 0.05
say(
    f"{(nearest(exact[name]) != nearest(rounded[name])).mean():.0%} of the mutants get another "
    f"nearest neighbour. Predicted ΔΔG moves by {moved.mean():.3f} kcal/mol on average, "
    f"{moved.mean() / in_float32.std():.1%} of the spread of the predictions; the Spearman "
    f"correlation of the two rankings is {spearman(in_float32, in_bfloat16):.3f}. "
    + (
        f"**For `{MODEL}` this is small.** That says nothing of ESM-2 itself: in a fine-tuned ESM-2 "
        "of 8M parameters, bfloat16 was off by 15 % of the spread of single mutants. float16 was "
        "off by 2 %: on a card, take that, and run this cell with your model before you leave "
        "float32, which is the default."
        if small
        else f"**For `{MODEL}` this is too much.** Stay with float32, which is the default."
    )
)

# %% [markdown]
# ## Within a domain and across domains
#
# The mega-scale data have nearly all single mutants of small domains, measured in one way. This
# lets us ask more finely what the training set may know: other mutants of the domain, also at the
# same position; only other positions of the domain; or other families only.
#
# **They are published with the opposite sign (positive = destabilising). We turn it round**, so
# that negative is destabilising in this whole notebook.

# %%
DOMAINS, MUTANTS = 16, 60

try:
    mega = datasets.fetch_stability_megascale(as_frame=True).frame
except DatasetError:
    mega = None
    say(
        "The mega-scale data are not here and could not be downloaded, so this part is skipped. "
        "`datasets.fetch_stability_megascale()` fetches them where there is a network."
    )

if mega is not None:
    mega["ddG"] = -mega.ddG  # as published: positive = destabilising
    chosen = np.random.default_rng(SEED).choice(
        np.sort(mega.protein.unique()), DOMAINS, replace=False
    )
    mega = mega[mega.protein.isin(chosen)].groupby("protein").sample(MUTANTS, random_state=SEED)
    mega = mega.reset_index(drop=True)
    check(mega)
    mega["family"] = mega.wildtype.map(families_of(mega.wildtype))
    mega_ddg = mega.ddG.to_numpy()
    say(
        f"{MUTANTS} mutants, drawn at random, of each of {DOMAINS} domains "
        f"({mega.family.nunique()} "
        "families), "
        f"{(mega_ddg < 0).mean():.0%} of them destabilising after turning the sign."
    )

    ESM2Transformer(MODEL, region="region").precompute(
        both_regions(mega), layers=-1, pooling="mean"
    )
    Z = {
        name: features.fit_transform(mega).astype(np.float32) for name, features in FEATURES.items()
    }
    Z["all of it"] = np.hstack([Z[name] for name in UNION])

    QUESTIONS = {
        "rows at random": np.arange(len(mega)),
        "new position, domain seen": (mega.protein + "/" + mega.position.astype(str)).to_numpy(),
        "new family": mega.family.to_numpy(),
    }
    mega_scores = {
        (name, question): per_protein(predict(name, Z, mega_ddg, groups), mega_ddg, mega)
        for question, groups in QUESTIONS.items()
        for name in COMPARED
    }

# %% mystnb={"image": {"alt": "Spearman correlation per domain for three feature sets when rows are split at random, by position and by family, with bootstrap intervals."}}
if mega is not None:
    figure, axis = plt.subplots(figsize=(8, 3.6))
    tints = {"amino acids": AMBER, "position, both": VIOLET, "all of it": TEAL}
    for k, question in enumerate(QUESTIONS):
        for shift, (name, colour) in zip((-0.24, 0, 0.24), tints.items(), strict=True):
            own = mega_scores[name, question]
            x = k + shift + jitter.uniform(-0.06, 0.06, len(own))
            axis.plot(x, own, "o", color=colour, ms=3.5, alpha=0.4, mew=0)
            axis.plot([k + shift] * 2, mean_interval(own), color="black", lw=2.2)
            axis.plot(
                k + shift,
                own.mean(),
                "D",
                color=colour,
                mec="black",
                ms=6.5,
                label=None if k else name,
            )
    axis.axhline(0, color=GREY, lw=1, ls="--")
    axis.set_xticks(range(len(QUESTIONS)), QUESTIONS)
    axis.set(
        title=f"Mega-scale data: Spearman within each of {DOMAINS} domains",
        ylabel="predicted vs measured ΔΔG",
    )
    axis.set_ylim(min(axis.get_ylim()[0], 0) - 0.12, None)
    axis.legend(loc="lower left", ncols=3, fontsize=8.5, handletextpad=0.1)
    plt.show()

    for question in QUESTIONS:
        means = {name: mega_scores[name, question].mean() for name in COMPARED}
        word, numbers = compare(
            mega_scores["all of it", question], mega_scores["amino acids", question]
        )
        say(
            f"- **{question}**: "
            + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
            + f". All of it {word} amino acids alone ({numbers})."
        )
    llr_mega = per_protein(Z["likelihood ratios"][:, 0], mega_ddg, mega)
    matrix_mega = per_protein(substitution(mega)[:, 0], mega_ddg, mega)
    say(
        "Without training, the masked-marginal ratio has a mean Spearman of "
        f"{llr_mega.mean():z.2f} "
        f"[{mean_interval(llr_mega)[0]:.2f}, {mean_interval(llr_mega)[1]:.2f}] within domains, and "
        "BLOSUM62 "
        f"{matrix_mega.mean():.2f} [{mean_interval(matrix_mega)[0]:.2f}, "
        f"{mean_interval(matrix_mega)[1]:.2f}]."
    )

# %% [markdown]
# ## From table to prediction
#
# What is left, once the features are chosen, is an ordinary scikit-learn pipeline: columns in,
# kcal/mol out. This one is trained on everything, so it has no honest score of its own: that is in
# the table above.

# %%
final = make_pipeline(here_both, regressor())
final.fit(mutants, ddg, groups=families)
new = mutants[["wildtype", "sequence", "position"]].head(3)  # yours: the same three columns
final.predict(new).round(2)
