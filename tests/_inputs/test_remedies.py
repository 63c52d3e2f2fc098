"""Whoever follows a remedy gets the right sequence, or a refusal for another good reason."""

from __future__ import annotations

import ast
import io
import re
import time

import pytest

from esm2_features import Engine, read_fasta, score_variants
from esm2_features._inputs.messages import in_shell
from esm2_features._inputs.remedies import Remedy, is_three_letter_code
from esm2_features._inputs.residues import normalise
from esm2_features.exceptions import Esm2FeaturesError, InvalidSequenceError

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQ"


def as_list(value):
    return value if isinstance(value, list) else [value]


def joined(text):
    return "".join(text.split())


def split_at(separator):
    return lambda text: text.split(separator)


def without(pattern):
    return lambda text: re.sub(pattern, "", text)


def write(residues):
    return lambda text: residues


def read_as_fasta(text):
    return [record.seq for record in read_fasta(io.BytesIO(text.encode()))]


def broken(text):
    return read_as_fasta(">first\n" + text.replace(">", "\n>"))


def scored(text):
    return score_variants(Engine("mini", cache=None), WILDTYPE, [text])


# What was written; a part of the remedy; how to follow it; what comes of it.
FOLLOWED = [
    # chains in one text, of AlphaFold, ESMFold, ColabFold, SAbDab and IEDB
    ("EVQLVESGGG:DIQMTQSPS", "several chains", split_at(":"), ["EVQLVESGGG", "DIQMTQSPS"]),
    ("EVQLVESGGG/DIQMTQSPS", "several chains", split_at("/"), ["EVQLVESGGG", "DIQMTQSPS"]),
    ("EVQLVESGGG|DIQMTQSPS", "several chains", split_at("|"), ["EVQLVESGGG", "DIQMTQSPS"]),
    ("EVQLVESGGG;DIQMTQSPS", "several chains", split_at(";"), ["EVQLVESGGG", "DIQMTQSPS"]),
    ("EVQLVESGGG, DIQMTQSPS", "several chains", split_at(","), ["EVQLVESGGG", "DIQMTQSPS"]),
    ("EVQLVE//DIQMTQ", "text.split('//')", split_at("//"), ["EVQLVE", "DIQMTQ"]),
    ("EVQLVE + DIQMTQ", "text.split('+')", split_at("+"), ["EVQLVE", "DIQMTQ"]),
    ("H/L", "several chains", split_at("/"), ["H", "L"]),
    # modified residues, of the PDB, UNIMOD and vendors
    ("GS(MSE)KTAYIA(SEP)KQ", "Modified residues", write("GSMKTAYIASKQ"), "GSMKTAYIASKQ"),
    ("GS(MSE)KTAYIA(SEP)KQ", "or X", without(r"\(MSE\)|\(SEP\)"), "GSKTAYIAKQ"),
    ("MKT[Phospho]AY", "Modified residues", without(r"\[\w+\]"), "MKTAY"),
    ("M[+15.99]KT", "Modified residues", without(r"\[.*\]"), "MKT"),
    ("_M(ox)KT_", "Modified residues", without(r"\(ox\)|_"), "MKT"),
    ("C(Cam)KT", "Modified residues", without(r"\(\w+\)"), "CKT"),
    ("MK{d}TAY", "Modified residues", without(r"\{d\}"), "MKTAY"),
    ("GSpSKTpYR", "modified residue", without("p"), "GSSKTYR"),
    ("ARTacKQTARme3KS", "Digits stand for no residue", without("[0-9]|ac|me"), "ARTKQTARKS"),
    ("ARTacKQTA", "modified residue", without("ac"), "ARTKQTA"),
    ("cyclo(RGDfK)", "Modified residues", write("RGDFK"), "RGDFK"),
    # ends of peptides
    ("H-MKTAY-OH", "ends of a peptide", without("^H-|-OH$"), "MKTAY"),
    ("Ac-DEVD-NH2", "ends of a peptide", without("^Ac-|-NH2$"), "DEVD"),
    ("Ac-DEVD-AMC", "ends of a peptide", without("^Ac-|-AMC$"), "DEVD"),
    ("Z-VAD-FMK", "ends of a peptide", without("^Z-|-FMK$"), "VAD"),
    ("MKTAY-CONH2", "ends of a peptide", without("-CONH2$"), "MKTAY"),
    ("pGlu-HWSYGLRPG-NH2", "ends of a peptide", without("^pGlu-|-NH2$"), "HWSYGLRPG"),
    ("Biotin-MKTAY", "ends of a peptide", without("^Biotin-"), "MKTAY"),
    ("NH2-MKTAY-COOH", "ends of a peptide", without("^NH2-|-COOH$"), "MKTAY"),
    ("H-Met-Lys-OH", "ends of a peptide", without("^H-|-OH$"), "codes of three letters"),
    ("MKT-(NH2)", "ends of a peptide", without(r"-\(NH2\)$"), "MKT"),
    # codes of three letters
    ("Met-Lys-Thr", "Met-Lys-Thr is MKT", write("MKT"), "MKT"),
    ("MetLysThr", "Met-Lys-Thr is MKT", write("MKT"), "MKT"),
    ("MET LYS THR ALA", "codes of three letters", write("MKTA"), "MKTA"),
    ("met lys thr", "codes of three letters", write("MKT"), "MKT"),
    # white space and numbers
    ("MKTAY IAK", "If this is one sequence, join it", joined, "MKTAYIAK"),
    ("MKT\nAYI", "If this is one sequence, join it", joined, "MKTAYI"),
    ("EVQLVES DIQMTQ", "Several chains are columns", str.split, ["EVQLVES", "DIQMTQ"]),
    (
        "1 mktayiakqr qisfvk 61 grk",
        "numbers of positions",
        without("[^A-Za-z]"),
        "MKTAYIAKQRQISFVKGRK",
    ),
    ("MKTAYIAKQR 10\nQISFVK 16", "numbers of positions", without("[^A-Za-z]"), "MKTAYIAKQRQISFVK"),
    ("MKTAYI10AYIRR", "Digits stand for no residue", without("[0-9]"), "MKTAYIAYIRR"),
    ("(GGGGS)3", "Write repeats out", lambda text: "GGGGS" * 3, "GGGGSGGGGSGGGGS"),
    ("MKT(G4S)2AY", "Write repeats out", write("MKTGGGGSGGGGSAY"), "MKTGGGGSGGGGSAY"),
    # alignments and stops
    ("MK-TAY", "Remove alignment gaps", without("-"), "MKTAY"),
    ("MKT..ay", "Remove alignment gaps", without(r"\."), "MKTAY"),
    ("AC-DEF", "Remove alignment gaps", without("-"), "ACDEF"),
    ("MKT*AY", "cut the sequence there", lambda text: text.partition("*")[0], "MKT"),
    ("CASSLG_GETQYF", "reading frame", without("_"), "CASSLGGETQYF"),
    # FASTA in the wrong place
    ("MKTAYIAKQR>b GSH\nGSHMVL", "put a line break before it", broken, ["MKTAYIAKQR", "GSHMVL"]),
    (">sp|P01308|INS_HUMAN Insulin\nMALWMRLL", "It is FASTA text", read_as_fasta, ["MALWMRLL"]),
    (">id MKTAY", "It is FASTA text", read_as_fasta, "has no residues"),
    (">id MKTAY", "below the header", write(""), "Empty sequence"),
    # what Python prints
    ("b'MKTAY'", "ast.literal_eval", ast.literal_eval, "MKTAY"),
    ("['MKT', 'GSH']", "ast.literal_eval", ast.literal_eval, ["MKT", "GSH"]),
    ('"MKTAY"', "remove the quotes", without('"'), "MKTAY"),
    ("\u201cMKTAY\u201d", "remove the quotes", without("\u201c|\u201d"), "MKTAY"),
    # mutations
    ("K2R", "score_variants takes mutations", scored, None),
    ("K2R:Q9E", "score_variants takes mutations", scored, None),
    ("p.=", "score_variants takes mutations", scored, None),
    ("p.Lys2Arg", "score_variants takes mutations", scored, None),
    ("R10*", "score_variants takes mutations", scored, "drop such rows"),
    ("A999G", "score_variants takes mutations", scored, "mutates position 999"),
    # letters
    ("MKJT", 'unknown="X"', lambda text: normalise(text, index=0, unknown="X"), "MKXT"),
    ("MK?T", 'unknown="X"', lambda text: normalise(text, index=0, unknown="X"), "MKXT"),
    ("MKT*AY", 'unknown="X"', lambda text: normalise(text, index=0, unknown="X"), "MKTXAY"),
    # words for a missing value
    ("NA", "write it as 'NA*'", lambda text: f"{text}*", "NA"),
    ("MISSING", "write it as 'MISSING*'", lambda text: f"{text}*", "MISSING"),
    ("nan", "NAN*", lambda text: f"{text.upper()}*", "NAN"),
]


@pytest.mark.parametrize(("text", "remedy", "follow", "expected"), FOLLOWED)
def test__remedy__helps_whoever_follows_it(text, remedy, follow, expected):
    policy = Engine("mini", cache=None).policy
    with pytest.raises(Esm2FeaturesError) as caught:
        policy.normalise([text])
    first = str(caught.value)
    assert remedy in first
    second, found = "", None
    try:
        result = follow(text)
        found = result if expected is None else policy.normalise(as_list(result))
    except Esm2FeaturesError as error:
        second = str(error)
    if expected is None:
        assert found.shape == (1,)
    elif second:
        assert isinstance(expected, str)
        assert expected in second
        assert first.partition(". ")[2] not in second, "the same remedy again"
    else:
        assert found == as_list(expected)


NO_SEQUENCES = [
    *("P01308", "Q9Y2X7-3", "A0A024R161", "P01308.2", "INS_HUMAN", "A0A024R161_HUMAN"),
    *("sp|P01308|INS_HUMAN", "tr|A0A024R161|A0A024R161_HUMAN", "UniRef50_P01308", "UPI0000000001"),
    *(
        "NP_000198.1",
        "XP_011511.2",
        "WP_000001.1",
        "AAA59172.1",
        "gi|386828|gb|AAA59172.1| insulin",
    ),
    *("ENSP00000369497.3", "ENSMUSP00000000001", "PF00049", "IPR000971", "EPI_ISL_402124"),
    *("1ABC", "1abc_A", "1ABC:HL", "1A43A", "pdb_00001abc", "3HFM_HL_Y", "AF-P01308-F1"),
    *("HLA-A*02:01", "B*07:02", "TRBV7-2*01", "IGHV3-23", "DRAMP00001", "seq_12", "TP53", "CD8"),
]


@pytest.mark.parametrize("text", NO_SEQUENCES)
@pytest.mark.parametrize("unknown", ["raise", "X", "mask"])
def test__identifier__is_called_one_and_never_embedded(text, unknown):
    with pytest.raises(InvalidSequenceError, match="It looks like an identifier"):
        normalise(text, index=0, unknown=unknown)


OTHER = {
    "12.5": "It is a number",
    "1e-5": "It is a number",
    "0": "It is a number",
    ">100": "It is a number",
    "CC(C)C[C@H](N)C(=O)O": "SMILES",
    "c1ccccc1": "SMILES",
    "NCC(=O)NCC(O)=O": "SMILES",
    "InChI=1S/C2H5NO2/c3-1-2(4)5/h1,3H2,(H,4,5)": "InChI",
    "PEPTIDE1{A.R.C}$$$$V2.0": "HELM",
    "https://www.uniprot.org/uniprotkb/P01308": "address",
    "proteins.fasta": "name of a file",
    "/data/1abc.pdb": "name of a file",
    "c.76A>T": "It looks like a mutation",
    "p.(Lys2Arg)": "It looks like a mutation",
    "Lys2del": "It looks like a mutation",
    "A123fs": "It looks like a mutation",
    "_wt": "It looks like a mutation",
    "non-AMP": "It looks like a word or a name",
    "non-toxic": "It looks like a word or a name",
}


@pytest.mark.parametrize(("text", "kind"), OTHER.items())
@pytest.mark.parametrize("unknown", ["raise", "X", "mask"])
def test__no_sequence__is_called_what_it_is(text, kind, unknown):
    with pytest.raises(InvalidSequenceError, match=kind):
        normalise(text, index=0, unknown=unknown)


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        ("MKTAYIAKQR QISFVKSHFS RQ", "MKTAYIAKQRQISFVKSHFSRQ"),
        ("mktayiakqr qisfvkshfs", "MKTAYIAKQRQISFVKSHFS"),
        ("MKTAYIAKQR\tQISFVKSHFS", "MKTAYIAKQRQISFVKSHFS"),
        ("MKTAYIAKQR  QISFVKSHFS\nRQLEE", "MKTAYIAKQRQISFVKSHFSRQLEE"),
        ("MKTAYIAKQRQI\nSFVKSHFSRQLE\nERL*", "MKTAYIAKQRQISFVKSHFSRQLEERL"),
        ("M K T A Y I A", "MKTAYIA"),
        ("MKTAYIAKQR QJ", "MKTAYIAKQRQX"),
    ],
)
def test__normalise__reads_blocks_lines_and_letters_apart(text, sequence):
    assert normalise(text, index=0, unknown="X") == sequence


@pytest.mark.parametrize(
    "text", ["kLAKLAk", "RGDfK", "aPKa", "MKTayiakQRQ", "Mktay", "klpsf", "PeP"]
)
def test__normalise__takes_d_residues_and_soft_masks(text):
    assert normalise(text, index=0) == text.upper()


@pytest.mark.parametrize("text", ["Ala", "AlaGly", "Alaska", "METLYSTHR", "MetLys"])
def test__is_three_letter_code(text):
    assert is_three_letter_code(text) == (text in ("AlaGly", "MetLys"))


LONG = [
    *("(" + "A" * 100_000, "1" * 100_000 + "x", "[" * 100_000, "a1" * 50_000, "A " * 50_000 + "1"),
    *("A-" * 50_000, "K2R:" * 20_000 + "x", "'" * 100_000, "a" * 100_000 + "_b-c", "1 A " * 20_000),
    *("A" * 100_000 + ":" + "C" * 100_000, "(A" * 50_000, "C(=O)" * 20_000, "Ala-" * 20_000),
]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test__remedy__of_a_long_text_takes_no_time(text):
    start = time.process_time()
    with pytest.raises(InvalidSequenceError):
        normalise(text, index=0)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("text", "shell"),
    [
        ("MK-TAY", "Remove the alignment gaps ('-')."),
        ("MKT AYI", "remove the white space; several chains are several records."),
        ("EVQLV:DIQMT", "write each as a record of its own."),
        ("K2R", "`esm2-features score` takes mutations"),
        ("nan", "Drop such rows. If a peptide is meant"),
    ],
)
def test__in_shell__has_no_python(text, shell):
    with pytest.raises(Esm2FeaturesError) as caught:
        normalise(text, index=0)
    told = in_shell(caught.value)
    assert shell in told
    assert not re.search(r"\w\(|ESM2Transformer|text\.split", told)
    assert in_shell(ValueError("x")) == "x"
    assert in_shell(ValueError()) == ""


def test__remedy__after_has_both_wordings_and_survives_pickling():
    import pickle

    message = Remedy("Pass X.", "Write X.").after("Wrong.")
    assert (str(message), message.shell) == ("Wrong. Pass X.", "Wrong. Write X.")
    copied = pickle.loads(pickle.dumps(InvalidSequenceError(message, index=0)))
    assert in_shell(copied) == "Wrong. Write X."
    assert message.with_text(str.upper).shell == "WRONG. WRITE X."
