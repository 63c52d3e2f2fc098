"""Data sets: shapes, columns, units and signs, as their docstrings say."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import Bunch

from esm2_features import ESM2Transformer, datasets
from esm2_features.exceptions import DatasetError, InputError, MissingDependencyError

FETCHERS = {
    "fetch_toxicity_peptides": (3284, ["sequence"], "toxic"),
    "fetch_stability_s2648": (
        2648,
        ["protein", "mutation", "position", "wildtype", "sequence"],
        "ddG",
    ),
    "fetch_stability_megascale": (
        135056,
        ["protein", "mutation", "position", "wildtype", "sequence"],
        "ddG",
    ),
    "fetch_fitness_gb1": (8733, ["sequence", "set", "validation"], "fitness"),
}


def table_of(function: Any) -> dict[str, str]:
    """The small table in a docstring."""
    lines = re.findall(r"^ +(\w+)  +(.+)$", function.__doc__, flags=re.MULTILINE)
    return dict(lines)


def test__demo_peptides__are_what_the_docstring_says():
    bunch = datasets.load_demo_peptides(as_frame=True)
    frame = bunch.frame
    assert list(frame) == ["name", "sequence", "kind"]
    assert bunch.feature_names == ["name", "sequence"]
    assert bunch.target_names == np.unique(bunch.target).tolist() == ["hormone", "toxin"]
    encoded = LabelEncoder().fit_transform(bunch.target)
    np.testing.assert_array_equal(np.array(bunch.target_names)[encoded], bunch.target)
    said = table_of(datasets.load_demo_peptides)
    assert said["Samples"] == str(len(frame))
    assert said["Classes"].split(", ") == sorted(set(frame["kind"]), reverse=True)
    lengths = frame["sequence"].str.len()
    assert said["Lengths"] == f"{lengths.min()} to {lengths.max()} residues"


def test__demo_peptides__come_as_arrays_that_the_transformer_takes():
    X, kind = datasets.load_demo_peptides(return_X_y=True)
    bunch = datasets.load_demo_peptides()
    assert isinstance(bunch, Bunch)
    assert bunch.frame is None
    assert bunch.DESCR.startswith("Load well-known venom toxins")
    np.testing.assert_array_equal(bunch.data, X)
    np.testing.assert_array_equal(bunch.target, kind)
    embedded = ESM2Transformer("mini", cache=None).fit_transform(X[:3, [1]])
    assert embedded.shape == (3, 192)


def test__as_frame__needs_pandas_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"load_demo_peptides\(as_frame=True\) needs"):
        datasets.load_demo_peptides(as_frame=True)
    assert datasets.load_demo_peptides().data.shape == (155, 2)


def test__every_public_function__is_listed():
    public = {name for name in vars(datasets) if name.startswith(("load_", "fetch_"))}
    assert public == set(datasets.__all__) == {*FETCHERS, "load_demo_peptides"}


@pytest.mark.parametrize("name", FETCHERS)
def test__a_missing_file__is_an_error_that_names_it_and_its_address(name: str, tmp_path: Path):
    fetch = getattr(datasets, name)
    for parameters in ({}, {"download_if_missing": False}):  # offline, and told not to
        with pytest.raises(DatasetError, match=r"github.*\.com/") as caught:
            fetch(data_home=tmp_path, **parameters)
        assert Path(caught.value.path).parent == tmp_path
        assert "https://raw.githubusercontent.com/" in caught.value.url
        assert len(str(caught.value)) < 400 + 3 * len(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test__megascale_missing__is_told_with_its_folders_not_its_258_files(tmp_path: Path):
    with pytest.raises(DatasetError, match="is missing") as caught:
        datasets.fetch_stability_megascale(data_home=tmp_path, download_if_missing=False)
    said = (
        "258 files in 0_datasets and fasta of https://github.com/3BioCompBio/EvoStability at "
        "598323bbaef4c3c897bfbe715a257c544dd0d4ef"
    )
    assert said in str(caught.value)
    assert ".fasta" not in str(caught.value)


def test__an_unknown_split__is_an_error_that_names_the_known(tmp_path: Path):
    with pytest.raises(InputError, match=r"no split 'four_vs_rest'.*'one_vs_rest', 'sampled'"):
        datasets.fetch_fitness_gb1(split="four_vs_rest", data_home=tmp_path)


# ------------------------------------------------------------------ the real ones


@pytest.mark.parametrize("name", FETCHERS)
def test__each_data_set__has_the_shapes_and_columns_of_its_docstring(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ESM2_FEATURES_DATA", str(shared_data))
    fetch = getattr(datasets, name)
    n, columns, target = FETCHERS[name]
    bunch = fetch(as_frame=True)
    assert list(bunch.frame) == [*columns, target]
    assert bunch.feature_names == columns
    classes = ["not toxic", "toxic"] if target == "toxic" else [target]
    assert bunch.target_names == classes
    assert str(classes).replace("'", '"') in bunch.DESCR
    assert bunch.data.shape == (n, len(columns))
    pd.testing.assert_series_equal(bunch.target, bunch.frame[target])
    assert not bunch.frame.isna().any().any()
    X, y = fetch(return_X_y=True)
    assert X.dtype == object
    assert y.dtype == bunch.target.dtype
    np.testing.assert_array_equal(X, bunch.data.to_numpy(dtype=object))
    np.testing.assert_array_equal(y, bunch.target)

    said, lengths = table_of(fetch), bunch.frame["sequence"].str.len()
    assert re.match(r"[\d,]+", said["Samples"])[0].rstrip(",").replace(",", "") == str(n)
    assert f"shape ({n}, {len(columns)})" in bunch.DESCR
    shortest, longest = lengths.min(), lengths.max()
    either = f"{shortest} to {longest}" if shortest < longest else str(longest)
    assert said["Lengths"] == f"{either} residues"
    if "Target" in said:
        assert f"{y.min():.1f} to {y.max():.1f}" in said["Target"]


@pytest.mark.parametrize("name", ["fetch_stability_s2648", "fetch_stability_megascale"])
def test__mutants__differ_from_the_wild_type_where_they_say(name: str, shared_data: Path):
    frame = getattr(datasets, name)(data_home=shared_data, as_frame=True).frame
    offsets = set()
    for row in frame.sample(2000, random_state=0).itertuples():
        before, number, after = row.mutation[0], row.mutation[1:-1], row.mutation[-1]
        at = row.position
        assert row.wildtype[at] == before != after
        assert row.sequence == row.wildtype[:at] + after + row.wildtype[at + 1 :]
        offsets.add(int(number) - at)
    assert f"{frame['protein'].nunique()} " in table_of(getattr(datasets, name))["Samples"]
    if name == "fetch_stability_megascale":  # numbered from 1, where S2648 has the PDB's numbers
        assert offsets == {1}
    else:
        assert len(offsets) > 1


def test__signs_of_ddg__are_opposite_and_most_mutations_destabilise(shared_data: Path):
    _, s2648 = datasets.fetch_stability_s2648(data_home=shared_data, return_X_y=True)
    _, megascale = datasets.fetch_stability_megascale(data_home=shared_data, return_X_y=True)
    assert (s2648 < 0).mean() > 0.7
    assert (megascale > 0).mean() > 0.7


def test__toxic_means_one__in_spite_of_its_readme(shared_data: Path):
    X, toxic = datasets.fetch_toxicity_peptides(data_home=shared_data, return_X_y=True)
    assert int(toxic.sum()) == 1663
    names = np.array(datasets.fetch_toxicity_peptides(data_home=shared_data).target_names)
    assert (names[toxic] == "toxic").sum() == 1663
    cysteines = np.array([sequence.count("C") / len(sequence) for sequence in X[:, 0]])
    # Venom peptides are held together by disulphide bridges.
    assert cysteines[toxic == 1].mean() > 3 * cysteines[toxic == 0].mean()


@pytest.mark.parametrize(
    "split", ["one_vs_rest", "two_vs_rest", "three_vs_rest", "low_vs_high", "sampled"]
)
def test__splits_of_gb1__hold_the_same_variants(split: str, shared_data: Path):
    frame = datasets.fetch_fitness_gb1(split=split, data_home=shared_data, as_frame=True).frame
    first = datasets.fetch_fitness_gb1(data_home=shared_data, as_frame=True).frame
    pd.testing.assert_frame_equal(frame[["sequence", "fitness"]], first[["sequence", "fitness"]])
    assert set(frame["set"]) == {"train", "test"}
    training = frame["set"] == "train"
    assert (training | ~frame["validation"]).all()
    assert 0.08 < frame.loc[training, "validation"].mean() < 0.12
    wildtype = frame.loc[frame["fitness"] == 1.0, "sequence"].iloc[0]
    assert [wildtype[i] for i in (38, 39, 40, 53)] == ["V", "D", "G", "V"]
    mutated = frame["sequence"].map(
        lambda sequence: [
            i for i, (a, b) in enumerate(zip(sequence, wildtype, strict=True)) if a != b
        ]
    )
    assert {i for each in mutated for i in each} == {38, 39, 40, 53}
    number = {"one": 1, "two": 2, "three": 3}.get(split.partition("_")[0])
    if number is not None:
        assert (training == (mutated.map(len) <= number)).all()
    if split == "low_vs_high":
        assert (frame.loc[training, "fitness"] <= 1.0).all()
