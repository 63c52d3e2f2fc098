"""The demonstration prints what it measured, and draws a picture that can be shown."""

from __future__ import annotations

import re
import struct
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from esm2_features.cli import main
from esm2_features.cli.demo import _name_well_known, group_families, read_peptides, run
from esm2_features.exceptions import CheckpointError, MissingDependencyError


def size_of_png(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


@pytest.fixture(scope="module")
def shown(tmp_path_factory, tiny_checkpoint):
    """What a demonstration on every other peptide says, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    lines = []
    run(folder, model=str(tiny_checkpoint), peptides=read_peptides()[::2], print_line=lines.append)
    return "\n".join(lines), folder


def test__run__prints_both_scores_as_they_are(shown):
    text, _ = shown
    for name in ("tiny", "composition"):
        [found] = re.findall(rf"^  {name} +(\d\.\d{{3}}) \+- (\d\.\d{{3}}) +\d+\.\d$", text, re.M)
        assert 0 < float(found[0]) <= 1
        assert 0 < float(found[1]) < 0.5
    # The cysteines of toxins give them away, with or without a network.
    assert float(re.search(r"composition +(\S+)", text)[1]) > 0.8


def test__run__embeds_once_and_then_reads_the_cache(shown):
    n = len(read_peptides()[::2])
    assert re.search(rf"^  first +{n} computed +0 from the cache", shown[0], re.M)
    assert re.search(rf"^  second +0 computed +{n} from the cache", shown[0], re.M)


def test__run__draws_a_picture_and_says_where(shown):
    text, folder = shown
    assert [path.name for path in folder.iterdir()] == ["peptide_map.png"]
    assert size_of_png(folder / "peptide_map.png") == (1600, 1056)
    assert f"A map of the embeddings: {folder / 'peptide_map.png'}" in text


def test__run__calls_only_the_small_model_a_demonstration(shown):
    assert "demonstration model" not in shown[0]


def test__run__no_such_model(tmp_path):
    with pytest.raises(CheckpointError):
        run(tmp_path / "demo", model="nothing", print_line=print)
    assert not (tmp_path / "demo").exists()


def test__run__without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as caught:
        run(tmp_path / "demo", print_line=print)
    assert str(caught.value).endswith('pip install "esm2-features[plot]"')
    assert not (tmp_path / "demo").exists()


def test__command__runs_with_the_model_that_ships(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert re.search(r"^  mini +0\.\d{3} \+- 0\.\d{3}", result.stdout, re.M)
    assert "mini is a demonstration model" in result.stdout
    assert size_of_png(tmp_path / "demo" / "peptide_map.png") == (1600, 1056)


@pytest.mark.parametrize("spread", [1.0, 0.2])
def test__map__names_cover_nothing_however_dense_the_points_are(spread):
    peptides = read_peptides()
    plane = np.random.default_rng(0).normal(scale=spread, size=(len(peptides), 2))
    plane[:2] = [-3, -3], [3, 3]
    axes = Figure(figsize=(10, 6.6), dpi=160).add_subplot()
    axes.scatter(*plane.T)
    axes.figure.draw_without_rendering()
    _name_well_known(axes, plane, peptides)
    names = [text for text in axes.texts if text.get_text()]
    assert names
    boxes = [name.get_window_extent() for name in names]
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)  # with itself
    points = axes.transData.transform(plane)
    assert sum(box.count_contains(points) for box in boxes) == 0


def test__related__twins_cousins_and_strangers():
    a, b, c, stranger = "ACDEFGHIKLMN", "GHIKLMNPQRST", "NPQRSTVWYACW", "WWHHMMWWHH"
    assert group_families([a, b, c, stranger]).tolist() == [0, 0, 0, 1]  # a and c by way of b
    assert group_families([a, c]).tolist() == [0, 1]
    assert group_families([a, a[2:7]]).tolist() == [0, 0]  # a part of it


def test__related__families_do_not_depend_on_the_order():
    sequences = [peptide.sequence for peptide in read_peptides()]
    order = np.random.default_rng(0).permutation(len(sequences))
    families, shuffled = group_families(sequences), group_families([sequences[i] for i in order])
    same, same_shuffled = families[:, None] == families, shuffled[:, None] == shuffled
    np.testing.assert_array_equal(same[np.ix_(order, order)], same_shuffled)
