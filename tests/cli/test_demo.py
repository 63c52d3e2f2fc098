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
from esm2_features.cli.demo import _name_well_known, read_peptides, run
from esm2_features.exceptions import CheckpointError, MissingDependencyError


def size_of_png(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


@pytest.fixture(scope="module")
def shown(tmp_path_factory, tiny_checkpoint):
    """What a demonstration on every third peptide says, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    lines = []
    run(folder, model=str(tiny_checkpoint), peptides=read_peptides()[::3], print_line=lines.append)
    return "\n".join(lines), folder


def test__run__prints_scores_with_intervals_and_a_verdict(shown):
    text, _ = shown
    for name in ("embedding, chosen inside", "composition", "layer 2, mean"):
        [found] = re.findall(
            rf"^{name} +(\d\.\d{{3}}) +(\d\.\d{{3}}) to (\d\.\d{{3}})$", text, re.M
        )
        score, low, high = map(float, found)
        assert low <= score <= high <= 1
    # The cysteines of toxins give them away, with or without a network.
    assert float(re.search(r"composition +(\S+)", text)[1]) > 0.8
    assert "a classifier on embeddings of tiny reaches an AUC of" in text
    assert max(map(len, text.splitlines())) <= 100 + len(str(shown[1]))


def test__run__embeds_once_and_then_reads_the_cache(shown):
    n = len(read_peptides()[::3])
    assert re.search(rf"^  first +{n} computed +0 from the cache", shown[0], re.M)
    assert re.search(rf"^  second +0 computed +{n} from the cache", shown[0], re.M)


def test__run__draws_a_picture_and_says_where(shown):
    text, folder = shown
    assert sorted(path.name for path in folder.iterdir()) == ["layers.png", "peptide_map.png"]
    assert size_of_png(folder / "peptide_map.png") == (1600, 1056)
    assert f"The score of each layer: {folder / 'layers.png'}" in text
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


@pytest.mark.slow
def test__command__runs_with_the_model_that_ships(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert "on embeddings of mini" in result.stdout
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
