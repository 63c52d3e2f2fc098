"""An output takes no other's place, and is there when it is complete."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm2_features._io.paths import (
    atomic_output,
    check_inputs,
    check_nesting,
    check_output,
    file_names,
    write_index,
)
from esm2_features.exceptions import InputError


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test__check_output__one_format_needs_no_other_name(tmp_path):
    with pytest.raises(InputError, match=r"which is not a format\. Let it end in \.csv\.$"):
        check_output(tmp_path / "x.txt", formats=("csv",))
    assert check_output(tmp_path / "x.csv", formats=("csv",)).format == "csv"


def test__check_output__folders_by_format_or_as_said(tmp_path):
    formats = ("npz", "npy", "png")
    assert not check_output(tmp_path / "x.npz", formats=formats).is_folder
    assert check_output(tmp_path / "x.npy", formats=formats).is_folder
    assert check_output(tmp_path / "x", formats=formats, format="png", is_folder=True).is_folder


def test__atomic_output__is_there_at_the_end(tmp_path):
    output = check_output(tmp_path / "x.npy", formats=("npy",))
    with atomic_output(output) as part:
        (part / "a.npy").touch()
        assert not output.path.exists()
    assert listed(output.path) == ["a.npy"]
    assert listed(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test__atomic_output__leaves_nothing_behind_after_any_error(tmp_path, name, error):
    output = check_output(tmp_path / name, formats=("npy", "npz"))

    def interrupted():
        with atomic_output(output) as part:
            (part / "a.npy" if output.is_folder else part).touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert listed(tmp_path) == []


def test__atomic_output__replaces_a_folder_of_its_own_kind_only(tmp_path):
    output = check_output(
        tmp_path / "x", formats=("png",), format="png", is_folder=True, force=True
    )
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").touch()
    with atomic_output(output) as part:
        (part / "b.png").touch()
    assert listed(tmp_path / "x") == ["b.png"]
    (tmp_path / "x" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"other things than \.png files"), atomic_output(output):
        pass
    assert listed(tmp_path / "x") == ["b.png", "thesis.tex"]


@pytest.mark.parametrize("kind", ["npy", "pt", "png"])
def test__check_output__never_replaces_a_folder_that_holds_a_folder(tmp_path, kind):
    folder = tmp_path / f"backup.{kind}"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    message = rf"other things than \.{kind} files, such as the folder backup\.{kind}"
    for force in (False, True):
        with pytest.raises(InputError, match=message):
            check_output(tmp_path, formats=(kind,), format=kind, force=force, is_folder=True)
    assert listed(folder) == ["thesis.tex"]


def test__check_output__replaces_links_to_files_but_none_to_folders(tmp_path):
    out, other = tmp_path / "x.npy", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (tmp_path / "a.npy").touch()
    (out / "a.npy").symlink_to(tmp_path / "a.npy")
    assert check_output(out, formats=("npy",), force=True).path == out
    (out / "b.npy").symlink_to(other)
    with pytest.raises(InputError, match=r"such as the folder b\.npy"):
        check_output(out, formats=("npy",), force=True)


@pytest.mark.parametrize("name", ["loop.npz", "loop.npz/x.npz"])
def test__check_output__a_circle_of_links_leads_nowhere(tmp_path, name):
    (tmp_path / "loop.npz").symlink_to(tmp_path / "back.npz")
    (tmp_path / "back.npz").symlink_to(tmp_path / "loop.npz")
    with pytest.raises(InputError, match=r"leads nowhere|is no file|There is no folder"):
        check_output(tmp_path / name, formats=("npz",), force=True)


def index_of(folder):
    with (folder / "ids.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test__write_index__says_which_file_is_whose_where_names_do_not(tmp_path):
    write_index(tmp_path, ["a", "b|c"], "npy")
    assert listed(tmp_path) == []
    write_index(tmp_path, ["a/b", "a", 'A,"'], "npy")
    expected = [["file", "id"], ["a_b.npy", "a/b"], ["a.npy", "a"], ['A,".npy', 'A,"']]
    assert index_of(tmp_path) == expected


@pytest.mark.parametrize("kind", ["npy", "png"])
def test__check_output__replaces_an_index_with_its_folder(tmp_path, kind):
    def find(force):
        return check_output(tmp_path, formats=(kind,), format=kind, force=force, is_folder=True)

    write_index(tmp_path, ["a/b"], kind)
    (tmp_path / f"a_b.{kind}").touch()
    assert find(force=True).path == tmp_path
    with pytest.raises(InputError, match="exists already"):
        find(force=False)
    for own in ("file,id,what took me weeks\n", "file,id\nmy own table\n", "file,id\nx.csv,a\n"):
        (tmp_path / "ids.csv").write_text(own)
        with pytest.raises(InputError, match=r"such as ids\.csv"):
            find(force=True)


def test__check_output__knows_no_index_of_a_format_that_has_none(tmp_path):
    write_index(tmp_path, ["a/b"], "npy")
    with pytest.raises(InputError, match=r"such as ids\.csv"):
        check_output(tmp_path, formats=("pt",), format="pt", force=True)


def test__refuse_nesting__of_outputs_that_would_go_with_each_other(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "x")
    check_nesting(tmp_path / "x", tmp_path / "xy")
    check_nesting(tmp_path / "x" / "a", tmp_path / "x" / "b")
    for one, other in [("x", "x"), ("x", "link"), ("a/../x", "x")]:
        with pytest.raises(InputError, match="have the same name"):
            check_nesting(tmp_path / one, tmp_path / other)
    for one, other in [("x", "x/a"), ("x/a/b", "x"), ("link", "x/a"), ("link/a", "x")]:
        with pytest.raises(InputError, match=r"would be in .* Write them side by side"):
            check_nesting(tmp_path / one, tmp_path / other)


def test__refuse_inputs__of_a_folder_that_they_are_in(tmp_path):
    file = tmp_path / "maps" / "x.png"
    file.parent.mkdir()
    file.touch()
    with pytest.raises(InputError, match=r"The folder of pictures is the folder of IN, .*x\.png"):
        check_inputs(file.parent, str(file), called="The folder of pictures")
    check_inputs(tmp_path / "map", str(file))


def test__refuse_inputs__names_the_one_that_would_be_lost(tmp_path):
    (tmp_path / "x.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "x.csv")
    check_inputs(tmp_path / "y.csv", str(tmp_path / "x.csv"), "-")
    with pytest.raises(InputError, match=r"OUT is IN, .*x\.csv"):
        check_inputs(tmp_path / "link.csv", "-", str(tmp_path / "x.csv"))


def test__file_names__labels_that_can_be_names_stay():
    labels = ["sp|P01308|INS_HUMAN Insulin OS=Homo sapiens", "a_b", "a-2", "-x", "a"]
    assert file_names(["a/b", *labels])[1:] == labels


def test__file_names__upper_and_lower_case_differ_by_more_than_case():
    assert file_names(["abc", "ABC", "Abc"]) == ["abc", "ABC-2", "Abc-3"]


def test__file_names__long_labels_are_cut_and_differ():
    names = file_names(["x" * 1000 + "1", "x" * 1000 + "2"])
    assert len(set(names)) == 2
    assert max(map(len, names)) < 250


@given(st.lists(st.text(st.characters(max_codepoint=127), min_size=1), unique=True))
def test__file_names__are_safe_and_different(labels):
    names = file_names(labels)
    assert len({name.casefold() for name in names}) == len(labels)
    for name in names:
        assert Path("folder", f"{name}.pt").parent == Path("folder")
        assert not name.startswith(".")
        assert "\\" not in name
        assert all(ord(character) >= 32 for character in name)
