"""The catalogue of data sets: addresses, digests, and conversion of the published files.

Rows are in the published order, and numbers are written as Python writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from esm2_features.datasets.files import DataFile, Pin, Provider, csv_rows


def _toxicity(parts: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Rows of the one published table, without its numbering."""
    return ((row["sequence"], row["label"]) for row in csv_rows(parts[0]))


def _s2648(parts: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Rows of the one published table, without its numbering; positions are counted from 0."""
    names = ("pdb_id", "mut_info", "pos", "wt_seq", "mut_seq")
    for row in csv_rows(parts[0]):
        yield (*(row[name] for name in names), repr(float(row["ddg"])))


def _megascale(parts: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Mutants of each domain from its table and its FASTA file, and then its wild type.

    The published tables have no sequences, and mutations alone do not give the wild type: five
    domains have a residue that was never mutated.
    """
    for table, fasta in zip(parts[::2], parts[1::2], strict=True):
        wildtype = "".join(fasta.read_text(encoding="ascii").split("\n")[1:])
        domain = ""
        for row in csv_rows(table):
            domain, mutation = row["protein_id"], row["mutation_fasta"]
            at = int(mutation[1:-1]) - 1
            if wildtype[at] != mutation[0]:
                raise ValueError(f"{mutation} does not fit the wild type of {domain}")
            mutant = wildtype[:at] + mutation[-1] + wildtype[at + 1 :]
            yield domain, mutation, repr(float(row["DDG"])), mutant
        yield domain, WILDTYPE, repr(0.0), wildtype


WILDTYPE = "WT"  # in place of a mutation

_DOMAINS = """
    1aoy_A_7-75 1csq_A_1-67_F49A 1f0m_A_10-75 1gb4_A_1-57_F53D 1gjs_A_18-62 1gl5_A_180-237
    1gyz_A_59-117 1h92_A_6-62 1ify_A_161-204 1k1v_A_24-64 1lp1_A_4-58 1mhn_A_91-147
    1mjc_A_3-70_L45S 1o6x_A_8-79 1orc_A_3-60 1pv0_A_1-44 1qkh_A_9-76 1qly_A_1-58 1qp2_A_1-70
    1r69_A_1-61 1s1n_A_153-211_V181A 1srm_A_9-63 1tg0_A_3-66 1tuc_A_101-16 1tud_A_49-47
    1ubq_A_1-72_L67S 1ufm_A_293-364 1uzc_A_8-70 1v1c_A_2-66 1w4g_A_126-169 1wcl_A_351-419
    1y0m_A_793-850 1yg0_A_1-66 1yu5_X_12-76 1zlm_A_14-69 2ami_A_3-74 2b88_A_3-56
    2btt_A_1122-1182 2d1u_A_2-73 2hbb_A_1-48 2hbb_con_af 2hdz_A_11-60 2j6k_A_2-58_mut9
    2j6k_con_af 2jn4_A_1-66 2jro_A_1-64 2jrr_A_4-60 2jvd_A_1-39 2jws_A_7-54 2jwt_A_5-54
    2jy8_A_5-49 2jz2_A_1-56 2k1b_A_4-52 2k28_A_7-56 2k2a_A_92-154 2k52_A_2-72_F22S
    2k5h_A_35-96_G57A 2k5n_A_1-67 2k5p_A_1-64 2kcm_A_1-68 2kfv_A_24-92 2kgt_A_9-71 2kr3_A_5-69
    2krs_A_1-63_W42A 2kru_A_3-54 2kt8_A_1-67_G54S 2kvt_A_8-59 2kvv_A_8-68_K50S 2kwh_A_393-444
    2l09_A_2-53 2l3x_A_2-67_mut1 2l6q_A_2-56 2l7m_P_6-57 2l8d_A_3-62 2l9r_A_8-68 2ldm_A_85-135
    2lgw_A_3-67 2lo1_A_6-70 2lp5_A_2-58 2lqk_A_5-66 2lss_A_2-70_G7S 2lt1_A_4-75 2lxk_A_1-66_G4A
    2lyr_A_1-62 2m0c_A_15-62 2m0y_A_4-69 2m2j_A_21-91 2m2l_A_12-63 2m5a_A_1-56 2m8e_A_12-49
    2m8j_A_1-43 2m8u_A_9-75 2ma4_A_22-91 2mi6_A_8-62 2mkx_A_4-50_L14A 2mky_A_19-73
    2mlb_A_2-73_L44D 2mwa_A_428-464_af 2myx_A_61-112 2n7y_A_5-76 2n88_A_53-100 2o2w_A_818-884
    2och_A_5-66 2op7_A_1-39 2rrt_A_5-71 2ru9_A_2-69 2wxc_A_127-170 2ysb_A_7-49 2ysc_A_8-39
    2ysf_A_7-40 2ysh_A_4-40 2zw1_A_0-56_V54S 3dkm_A_1267-1338 3i35_A_205-261 3l1x_A_1227-1295
    3v1a_A_1-44 4c26_A_-2-59 4g3o_A_452-498 4hck_A_80-138 4uzw_A_1-44 5aht_A_1-43
    5gu9_A_80-149_V139D 5jrt_A_876-934 5ubs_A_1-56 5vnt_A_21-82 5z2s_A_5-51 6acv_A_29-94
    6nmw_A_64-122 7jjk_A_339-395
"""

TOXICITY = DataFile(
    name="toxicity_peptides.csv.gz",
    columns=("sequence", "label"),
    tables={"": Pin(120_801, "a2f6e85f625ebeacf6116c4b312bb5383aa45853668ef5b3d6c97db541383ac9")},
    sources=(
        Provider(
            "dzjxzyd/UniDL4BioPep",
            "30e6124bf482f96887def1ae913743d383371137",
            ("17. Tooxicity 2021 Dataset/train_3284.csv",),
        ),
    ),
    convert=_toxicity,
    size="0.1 MB",
)

S2648 = DataFile(
    name="stability_s2648.csv.gz",
    columns=("pdb_id", "mutation", "pos", "wildtype_sequence", "sequence", "ddg"),
    tables={"": Pin(749_330, "ac96f25151264d08a5efec8fd319bb118d595cb73131d6149637146b7226c259")},
    sources=(
        Provider(
            "mitiau/PROSTATA", "03d8a032b874d6b156331be61fcd354eaa3e2eaa", ("DATASETS/S2648.csv",)
        ),
    ),
    convert=_s2648,
    size="0.8 MB",
)

MEGASCALE = DataFile(
    name="stability_megascale.csv.gz",
    columns=("protein_id", "mutation", "ddG_kcal_mol_positive_destabilising", "sequence"),
    tables={
        "": Pin(13_243_148, "99e19393a5ee0ca653806aafd5e42deee7240aef5420329151dc7739c28a26ad")
    },
    sources=(
        Provider(
            "3BioCompBio/EvoStability",
            "598323bbaef4c3c897bfbe715a257c544dd0d4ef",
            tuple(
                path
                for domain in _DOMAINS.split()
                for path in (f"0_datasets/{domain}.csv", f"fasta/{domain}.fasta")
            ),
        ),
    ),
    convert=_megascale,
    size="about 45 MB",
)

# The archive was packed anew (with FASTA files in it), so its tables are pinned, not its bytes.
GB1_SPLITS = DataFile(
    name="stability_flip_gb1_splits.zip",
    columns=("sequence", "target", "set", "validation"),
    tables={
        "splits/one_vs_rest.csv": Pin(
            2_499_685, "e901db7f88f5851f6d5177ca78d8ba9c7b01b4712cd553cb309f29a34f569d02"
        ),
        "splits/two_vs_rest.csv": Pin(
            2_500_241, "b368e4564e10e33735f897c9b63f1be7030082e565c6d4e1368d6f1641a310de"
        ),
        "splits/three_vs_rest.csv": Pin(
            2_503_831, "b8aa60cc061013a5c2e6f4070593c82976b1d9e5c9058a66ad57c6e9c3cec023"
        ),
        "splits/low_vs_high.csv": Pin(
            2_506_770, "190217d19cdafec40d8a961fce2dcbfd9fc89c9f4c6fa994aa90861b06e073fa"
        ),
        "splits/sampled.csv": Pin(
            2_509_429, "19bcb946fb9f8fe5ac1d5ed0aa85d4a85848b44744560d9684cc278935f3bd16"
        ),
    },
    sources=(
        Provider(
            "J-SNACKKB/FLIP", "0a3cf047f63e70c14f7af29e88de256222fe9ee7", ("splits/gb1/splits.zip",)
        ),
        Provider("J-SNACKKB/FLIP", "main", ("splits/gb1/splits.zip",)),
    ),
    convert=None,
    size="1 MB",
)
