"""Columns that hold labels, codes or letters are refused by name; true sequences never are."""

from __future__ import annotations

import zipfile

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from esm2_features import Engine, ESM2LikelihoodTransformer, ESM2Transformer
from esm2_features.exceptions import InputError

PROTEINS = [
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ",
    "GSHMVLSEGEWQLVLHVWAKVEADVAGHGQDIL",
    "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGS",
]


def esm2(**parameters):
    return ESM2Transformer("mini", cache=None, **parameters)


NO_CHAINS = {
    # FLIP, TAPE, TDC
    "set": ["train", "test", "train"],
    "validation": ["holdout", "train", "valid"],
    "split": ["TRAIN", "TEST", "VALIDATION"],
    "stage": ["train", "valid", "test"],
    "is_validation": ["True", "False", "False"],
    "mutated": ["TRUE", "FALSE", "TRUE"],
    # UniProt and NCBI
    "Entry": ["P01308", "P69905", "Q9Y2X7-3"],
    "Entry name": ["INS_HUMAN", "HBA_HUMAN", "MYG_HORSE"],
    "Organism": ["Homo sapiens", "Mus musculus", "Escherichia coli (strain K12)"],
    "species": ["human", "mouse", "yeast"],
    "Protein names": ["Insulin", "Hemoglobin subunit alpha", "Myoglobin"],
    "gene": ["INS", "HEMA", "MYG"],
    "Gene Names": ["TP53", "BRCA1", "HER2"],
    "RefSeq": ["NP_000198.1", "XP_011511", "WP_000001.1"],
    "Ensembl": ["ENSP00000369497.3", "ENST00000380152", "ENSG00000139618"],
    "header": ["sp|P01308|INS_HUMAN", "sp|P69905|HBA_HUMAN", "tr|A0A024R161|A0A024R161_HUMAN"],
    "cluster": ["UniRef50_P01308", "UniRef50_P69905", "UniRef90_Q9Y2X7"],
    "Pfam": ["PF00049", "PF00042", "IPR000971"],
    # PDB and SAbDab
    "pdb": ["1ABC", "2xyz", "3HFM"],
    "pdb_chain": ["1ABC_A", "2XYZ_H", "1A43A"],
    "complex": ["1ACB:E", "3HFM_HL_Y", "1A22_A_B"],
    "Hchain": ["H", "A", "B"],
    "chains": ["HL", "AB", "HL"],
    "light_ctype": ["kappa", "lambda", "kappa"],
    # ProteinGym, MaveDB, mutant tables
    "mutant": ["A4G", "A4G:K2R", "P65R"],
    "hgvs_pro": ["p.Lys2Arg", "p.=", "p.Ala4Gly"],
    "wt_aa": ["A", "G", "L"],
    "mut_aa": ["L", "V", "*"],
    "genotype": ["WT", "MUT", "WT"],
    "effect": ["missense", "synonymous", "nonsense"],
    # IEDB, VDJdb, IMGT
    "allele": ["HLA-A*02:01", "HLA-B*07:02", "HLA-A0201"],
    "v_gene": ["TRBV7-2*01", "TRBV20-1", "TRAV12"],
    "assay": ["Positive", "Negative", "Positive-Low"],
    "host": ["Human", "Mouse", "Human"],
    # data sets of peptides, vendors' sheets
    "kind": ["linear", "cyclic", "linear"],
    "family": ["kinase", "ligase", "transporter"],
    "activity": ["active", "inactive", "active"],
    "label": ["toxic", "non-toxic", "toxic"],
    "class": ["AMP", "non-AMP", "AMP"],
    "kingdom": ["E. coli", "S. aureus", "E. coli"],
    "binder": ["BINDER", "NONBINDER", "BINDER"],
    "Name": ["Melittin", "Apamin", "Secapin"],
    "peptide name": ["melittin", "apamin", "secapin"],
    "DRAMP": ["DRAMP00001", "AP00002", "DB00003"],
    "catalog": ["AS-20276", "H-3164", "RP10433"],
    "SMILES": ["CC(C)C[C@H](N)C(=O)O", "NCC(=O)O", "C[C@H](N)C(=O)O"],
    "purity": ["98%", "95%", ">95"],
    "mass": ["1.5", "2.25", "1e3"],
    "date": ["2020-01-01", "2021-10-03", "2022-12-31"],
    "file": ["a.pdb", "b.fasta", "c.cif"],
    "link": ["https://www.rcsb.org/structure/1ABC", "http://x.org/y", "https://z.org"],
}


@pytest.mark.parametrize("name", NO_CHAINS)
@pytest.mark.parametrize("n", [1, 3, 60])
def test__fit__refuses_a_column_of_something_else_beside_sequences(name, n):
    X = pd.DataFrame({"seq": PROTEINS * 20, name: NO_CHAINS[name] * 20}).head(n)
    for change in (lambda X: X, lambda X: X[X.columns[::-1]]):
        with pytest.raises(InputError, match=r"X\[\['seq'\]\]") as caught:
            esm2().fit(change(X))
        assert f"The column {name!r} of X holds" in str(caught.value)
        assert repr(NO_CHAINS[name][0])[:20] in str(caught.value)
    esm2().fit(X[["seq"]])


@pytest.mark.parametrize("transformer", [esm2(), esm2(join="linker")], ids=["apart", "linker"])
def test__transform__without_fit_refuses_it_as_well(transformer):
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"]})
    for method in (transformer.fit, transformer.transform, transformer.fit_transform):
        with pytest.raises(InputError, match="'set' of X holds labels, not sequences: 'train'"):
            method(X)


def test__likelihood__refuses_it_as_well():
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"]})
    with pytest.raises(InputError, match="ESM2LikelihoodTransformer"):
        ESM2LikelihoodTransformer("mini", cache=None).fit(X)
    with pytest.raises(InputError, match=r"'set' of X holds labels.*X\[\['seq'\]\]"):
        Engine("mini", cache=None).embed(X)


SELECTIONS = {
    "frame": (pd.DataFrame({"s": PROTEINS, "k": ["train"] * 3}), "X[['s']]"),
    "frame without names": (pd.DataFrame({0: PROTEINS, 1: ["train"] * 3}), "X.iloc[:, [0]]"),
    "Polars": (pl.DataFrame({"s": PROTEINS, "k": ["train"] * 3}), "X[['s']]"),
    "Arrow": (pa.table({"s": PROTEINS, "k": ["train"] * 3}), "X.select(['s'])"),
    "array": (np.array([PROTEINS, ["train"] * 3]).T, "X[:, [0]]"),
    "lists": ([[s, "train"] for s in PROTEINS], "[row[0] for row in X]"),
    "mappings": ([{"s": s, "k": "train"} for s in PROTEINS], "[row['s'] for row in X]"),
    "two chains": (
        pd.DataFrame({"h": PROTEINS, "k": ["train"] * 3, "l": PROTEINS[::-1]}),
        "X[['h', 'l']]",
    ),
    "lists of two chains": (
        [[s, "train", s] for s in PROTEINS],
        "[[row[0], row[2]] for row in X]",
    ),
    "numbers too": (pd.DataFrame({"s": PROTEINS, "k": ["train"] * 3, "y": [1, 2, 3]}), "X[['s']]"),
}


@pytest.mark.parametrize(("X", "remedy"), SELECTIONS.values(), ids=SELECTIONS.keys())
def test__error__says_how_to_select_the_sequences_of_each_container(X, remedy):
    with pytest.raises((InputError, TypeError)) as caught:
        esm2().fit(X)
    assert f": {remedy}." in str(caught.value)
    esm2().fit(eval(remedy, {"X": X}))  # what the message says works


# ------------------------------------------------------------------ one column alone

ALONE = {
    "set": ["train", "test"],
    "upper case": ["TRAIN", "TEST"],
    "one row": ["train"],
    "species": ["human", "mouse"],
    "activity": ["active", "inactive"],
    "chain": ["A", "B"] * 20,
    "letters of one protein": list("MKTAYIAKQRQISFVKSHFSRQLEERLG"),
    "names": ["Melittin", "Apamin"],
    "families": ["GPCR", "kinase"] * 2,
    "words, repeated": ["transporter", "synthetase"] * 20,
}


@pytest.mark.parametrize("values", ALONE.values(), ids=ALONE.keys())
def test__one_column__of_labels_is_refused(values):
    for X in (pd.DataFrame({"x": values}), pd.Series(values), np.array(values), values):
        with pytest.raises(InputError, match="not sequences"):
            esm2().fit(X)
    with pytest.raises(InputError, match=r"write them with a stop, such as [A-Z]+\*"):
        Engine("mini", cache=None).embed(values)


def test__engine__takes_words_that_are_marked_as_peptides():
    engine = Engine("mini", cache=None)
    marked = engine.embed(["TRAIN*", "TEST*"])
    np.testing.assert_array_equal(marked, esm2(chains=[0]).fit_transform(["TRAIN", "TEST"]))


LETTERS = {
    "lists": [list("MKTAY"), list("GSHMV")],
    "tuples": [tuple("MKTAY")] * 2,
    "array": np.array([list("MKTAY"), list("GSHMV")]),
    "array of bytes": np.array([list("MKTAY"), list("GSHMV")]).astype("S1"),
    "array of objects": np.array([list("MKTAY"), list("GSHMV")], dtype=object),
    "aligned": np.array([list("MK-AY"), list("GSHMV")]),
    "padded": np.array([list("MKAY-"), list("GSHM-")]),
    "frame": pd.DataFrame([list("MKTAY"), list("GSHMV")], columns=[f"pos{i}" for i in range(5)]),
    "Polars": pl.DataFrame({"a": ["M", "K"], "b": ["G", "S"]}),
    "one row": [list("MKTAY")],
}


@pytest.mark.parametrize("X", LETTERS.values(), ids=LETTERS.keys())
def test__letters__as_columns_are_refused_and_said_how_to_join(X):
    with pytest.raises(InputError) as caught:
        esm2().fit(X)
    if "tuples" in str(caught.value):
        return
    assert "letter by letter" in str(caught.value)
    remedy = str(caught.value).partition("join them: ")[2].partition(". The residues")[0]
    joined = eval(remedy, {"X": X})
    texts = list(joined)
    assert texts[0].replace("-", "") in ("MKTAY", "MKAY", "MKAY", "MG")


# ------------------------------------------------------------------ to insist


def test__chains__embeds_what_it_names_and_leaves_out_the_others():
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"], "y": [1, 2, 3]})
    one = esm2(chains=["seq"]).fit(X)
    assert one.n_features_in_ == 1
    assert one.feature_names_in_.tolist() == ["seq"]
    np.testing.assert_array_equal(one.transform(X), esm2().transform(X[["seq"]]))
    both = esm2(chains=["set", "seq"]).fit(X)
    assert both.get_feature_names_out()[0].startswith("set__")
    np.testing.assert_array_equal(both.transform(X)[:, 192:], one.transform(X))
    np.testing.assert_array_equal(
        both.transform(X)[:, :192], esm2().transform(["TRAIN*", "TEST*", "TRAIN*"])
    )


@pytest.mark.parametrize("chains", ["set", ["set"], [1], 1, np.array(["set"])])
def test__chains__may_be_a_name_or_a_number(chains):
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"]})
    assert esm2(chains=chains).fit(X).feature_names_in_.tolist() == ["set"]


def test__chains__with_regions_needs_no_selection():
    X = pd.DataFrame({"id": ["a1", "b2"], "seq": ["MKTAYI", "GSHMVL"], "site": ["2:4", "1:3"]})
    named = esm2(chains=["seq"], region="site").fit_transform(X)
    np.testing.assert_array_equal(named, esm2(region="site").fit_transform(X[["seq", "site"]]))


def test__chains__of_the_likelihood_transformer():
    X = pd.DataFrame({"seq": ["MKTAYI", "MRTAYI"], "set": ["train", "test"]})
    named = ESM2LikelihoodTransformer("mini", chains=["seq"], wildtype="MKTAYI", cache=None)
    assert named.fit_transform(X)[:, -1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        (["Seq"], "it has ['seq', 'set']. Did you mean \"seq\"?"),
        ([7], "no such column as 7"),
        ([-1], "no such column as -1"),
        ([], "at least one"),
        (["seq", 0], "name each column once"),
        (5.0, "no such column as 5.0"),
    ],
)
def test__chains__that_are_not_there(chains, message):
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"]})
    with pytest.raises(InputError, match="Got chains=") as caught:
        esm2(chains=chains).fit(X)
    assert message in str(caught.value)


def test__error__offers_to_insist_only_where_that_works():
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"], "id": ["a1", "b2", "c3"]})
    with pytest.raises(InputError, match=r"ESM2Transformer\(chains=\['seq', 'set'\]\)"):
        esm2().fit(X[["seq", "set"]])
    with pytest.raises(InputError) as caught:
        esm2().fit(X[["seq", "id"]])
    assert "chains=" not in str(caught.value)


# ------------------------------------------------------------------ true sequences

HEAVY = ["EVQLVESGGGLVQPGGSLRLSCAAS", "QVQLQQSGAELARPGASVKMSCKAS", "EVQLLESGGGLVQPGGSLRLSC"]
KAPPA = "DIQMTQSPSSLSASVGDRVTITC"
TRUE_CHAINS = {
    "one light chain for all": {"heavy": HEAVY * 20, "light": [KAPPA] * 60},
    "lower-case wild type": {"wildtype": [p.lower() for p in PROTEINS * 20], "seq": PROTEINS * 20},
    "all in lower case": {"a": [p.lower() for p in PROTEINS * 20], "b": [KAPPA.lower()] * 60},
    "alpha and beta": {
        "cdr3a": ["CAVRDSNYQLIW", "CAVSDLEPNSSASKIIF", "CALSEAGTYKYIF"] * 20,
        "cdr3b": ["CASSLGQAYEQYF", "CASSIRSSYEQYF", "CASSPGTGGNEQFF"] * 20,
    },
    "receptor and few peptides": {
        "cdr3": ["CASSLGQAYEQYF", "CASSIRSSYEQYF", "CASSPGTGGNEQFF"] * 20,
        "peptide": ["GILGFVFTL", "NLVPMVATV", "GLCTLVAML"] * 20,
    },
    "peptide and pseudo-sequence": {
        "peptide": ["SIINFEKL", "GILGFVFTL", "NLVPMVATV"] * 20,
        "mhc": ["YFAMYQENMAHTDANTLYIIYRDYTWVARVYRGY", "YYATYRNIFTNTYESNLYIRYDSYTWAVLAYLWY"] * 30,
    },
    "loops of antibodies": {
        "cdrl1": ["QSISSY", "QGIRND", "SSNIGAGYD"] * 20,
        "cdrl2": ["AAS", "GAS", "GNS"] * 20,
        "cdrl3": ["QQSYSTPLT", "LQHNSYPLT", "QSYDSSLSGV"] * 20,
        "seq": PROTEINS * 20,
    },
    "linker": {"heavy": HEAVY * 20, "linker": ["GGGGS", "GGGGSGGGGS", "GS"] * 20},
    "constant linker": {"a": HEAVY * 20, "between": ["GGGGS"] * 60, "b": HEAVY * 20},
    "loops, unnamed": {
        0: ["ARDYWGQG", "ARGGWFDP", "AKDRWYFD"] * 20,
        1: ["GAS", "AAS", "KVS"] * 20,
    },
    "substrates": {"protease": PROTEINS * 20, "substrate": ["DEVD", "LEHD", "IETD"] * 20},
    "linkers, unnamed": {0: HEAVY * 20, 1: ["GGGGS", "GGGSG", "GSGSG"] * 20},
    "neoantigens": {
        "wt_peptide": ["SIINFEKL", "GILGFVFTL", "NLVPMVATV"] * 20,
        "mut": ["SIINFEKV", "GILGFVFTV", "NLVPMVATL"] * 20,
        "wild_type": ["SIINFEKL", "GILGFVFTL", "NLVPMVATV"] * 20,
        "mhc": PROTEINS * 20,
    },
    "tag": {"seq": PROTEINS * 20, "tag": ["HHHHHH"] * 60},
    "constant antigen": {"cdrh3": ["ARDYW", "ARGGW", "AKDRW"] * 20, "antigen": [PROTEINS[0]] * 60},
    "dipeptides": {"first": ["AA", "GP", "VY"] * 20, "second": ["LL", "IP", "GA"] * 20},
    "tripeptides": {"a": ["VAL", "DEV", "IPP"] * 20, "b": ["VPP", "LKP", "GAS"] * 20},
    "D-residues": {"peptide": ["kLAKLAk", "rGDfK", "KLVFFAe"] * 20, "target": PROTEINS * 20},
    "soft mask": {"seq": PROTEINS * 20, "masked": [p[:9] + p[9:].lower() for p in PROTEINS] * 20},
    "three wild types": {
        "wildtype_sequence": PROTEINS * 20,
        "sequence": [p + "K" for p in PROTEINS] * 20,
    },
    "missing in part": {"heavy": HEAVY * 20, "light": [KAPPA, None, KAPPA] * 20},
}


@pytest.mark.parametrize("columns", TRUE_CHAINS.values(), ids=TRUE_CHAINS.keys())
@pytest.mark.parametrize("n", [1, 2, 5, 20, 60])
def test__true_chains__are_taken_in_folds_of_any_size(columns, n):
    X = pd.DataFrame(columns)
    assert esm2(on_missing="nan").fit(X.head(n)).n_features_in_ == len(columns)
    for column in X:
        esm2(on_missing="nan").fit(X[[column]].head(n))


TRUE_COLUMNS = {
    "dipeptides": ["AA", "GP", "VY", "LL"] * 10,
    "tripeptides": ["VAL", "IPP", "VPP", "RAT", "PIG"],
    "one tripeptide": ["VAL"],
    "one word": ["TEST"],
    "residues": list("ACDEFGHIKLMNPQRSTVWY"),
    "one residue": ["M"],
    "lower case": ["mktay", "gshmv", "acdef"],
    "one in lower case": ["mktay"],
    "three wild types": PROTEINS * 300,
    "one peptide": ["SIINFEKL"] * 100,
    "hexapeptides": ["RGDSPK", "YIGSRA"] * 50,
    "words among peptides": ["TRAIN", "CHAIN", "LIVER", "GAVLI"],
    "mask": ["MK<mask>AY", "<mask>"],
}


@pytest.mark.parametrize("values", TRUE_COLUMNS.values(), ids=TRUE_COLUMNS.keys())
def test__true_column__is_taken(values):
    esm2().fit(pd.DataFrame({"x": values}))
    Engine("mini", cache=None).policy.normalise_column(values, owner="Engine")


def test__fit__decides_for_transform():
    # Alone, the second column would be refused: repeated codes are told by their number only.
    X = pd.DataFrame({"seq": PROTEINS * 20, "code": ["GPCR", "KRAS", "EGFR"] * 20})
    fitted = esm2().fit(X.head(9))
    assert fitted.transform(X).shape == (60, 384)
    with pytest.raises(InputError, match="'code' of X holds few words, repeated"):
        esm2().fit(X)
    with pytest.raises(InputError, match="holds labels"):
        fitted.set_params().fit(X[["seq"]]).transform(["train", "test"])


def test__transform__of_one_column_keeps_what_fit_decided_whatever_its_name():
    fitted = esm2().fit(pd.Series(["GA", "NA", "VY"], name="dipeptide"))
    assert fitted.transform(["NA"]).shape == (1, 192)
    with pytest.raises(InputError, match="holds labels"):
        fitted.transform(pd.Series(["train"], name="set"))
    with pytest.raises(ValueError, match="X has 2 features"):
        esm2().fit(["MKT"]).transform([["MKT", "GSH"]])


def test__precompute__reads_columns_as_fit_does(tmp_path):
    X = pd.DataFrame({"seq": PROTEINS, "set": ["train", "test", "train"]})
    with pytest.raises(InputError, match="holds labels"):
        ESM2Transformer("mini", cache=tmp_path).precompute(X, layers=-1, pooling="mean")
    fitted = ESM2Transformer("mini", cache=tmp_path).fit(["MKT"])
    fitted.precompute([["MKT", "GSH"]], layers=-1, pooling="mean")


def test__letters__in_a_cell_are_said_how_to_join():
    with pytest.raises(TypeError, match=r'letter by letter, join it: ""\.join\(letters\)'):
        esm2().fit(pd.DataFrame({"seq": [list("MKT"), list("GSHM")]}))


def test__records__are_sequences_whatever_they_spell():
    from Bio.Seq import Seq

    X = pd.DataFrame({"a": [Seq("TRAIN"), Seq("TEST")], "b": [Seq(p) for p in PROTEINS[:2]]})
    assert esm2().fit(X).n_features_in_ == 2


def real_tables(shared_data):
    def table(name, *columns):
        return pd.read_csv(shared_data / name)[list(columns)]

    yield table("toxicity_peptides.csv.gz", "sequence")
    yield table("stability_s2648.csv.gz", "wildtype_sequence")
    yield table("stability_s2648.csv.gz", "wildtype_sequence", "sequence")
    yield table("stability_megascale.csv.gz", "sequence").head(20_000)
    yield table("affinity_her2_vh.csv.gz", "cdrh3")
    yield table("affinity_her2_vh.csv.gz", "cdrh3", "sequence")
    yield table("affinity_skempi_pairs.csv.gz", "sequence_a", "sequence_b")
    yield table("affinity_skempi_pairs.csv.gz", "wildtype_a", "wildtype_b", "sequence_a")
    with zipfile.ZipFile(shared_data / "stability_flip_gb1_splits.zip") as archive:
        yield pd.read_csv(archive.open("splits/two_vs_rest.csv"))[["sequence"]]
    for path in sorted(shared_data.glob("real_esm2_*.npz")):
        yield pd.DataFrame({"peptide": np.load(path)["sequence"]})


def test__real_tables__are_taken_whole_and_in_folds(shared_data):
    random = np.random.default_rng(0)
    for X in real_tables(shared_data):
        esm2().fit(X)
        for size in (1, 2, 5, 20):
            for _ in range(6):
                fold = X.iloc[random.choice(len(X), size, replace=False)]
                esm2().fit(fold)
                esm2().fit(fold.to_numpy())


def test__real_tables__with_a_column_of_labels_are_refused_whole_and_in_folds(shared_data):
    stability = pd.read_csv(shared_data / "stability_s2648.csv.gz")
    pairs = pd.read_csv(shared_data / "affinity_skempi_pairs.csv.gz")
    with zipfile.ZipFile(shared_data / "stability_flip_gb1_splits.zip") as archive:
        gb1 = pd.read_csv(archive.open("splits/two_vs_rest.csv"))
    for X, sequence in (
        (stability[["pdb_id", "sequence"]], "sequence"),
        (stability[["sequence", "mutation"]], "sequence"),
        (pairs[["sequence_a", "complex"]], "sequence_a"),
        (gb1[["sequence", "set"]], "sequence"),
    ):
        for rows in (len(X), 20, 5, 1):
            with pytest.raises(InputError) as caught:
                esm2().fit(X.sample(rows, random_state=0))
            assert f"X[[{sequence!r}]]" in str(caught.value)
