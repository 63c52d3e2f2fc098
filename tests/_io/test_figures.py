"""Pictures show what they are given, whole and readable, at all lengths."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from full_disk import no_room
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from esm2_features._inputs.alphabet import CANONICAL_RESIDUES
from esm2_features._io.figures import (
    RESIDUES_BY_PROPERTY,
    check_picture_output,
    contact_figure,
    save_png,
    scan_figure,
)
from esm2_features._io.paths import check_output
from esm2_features.exceptions import InputError, MissingDependencyError

ORDER = "".join(RESIDUES_BY_PROPERTY)
LONG_TITLE = "sp|P42212|GFP_AEQVI Green $fluorescent_protein OS=Aequorea victoria" * 3


def a_scan(length, wildtype=None):
    rng = np.random.default_rng(0)
    wildtype = wildtype or "".join(rng.choice(list(CANONICAL_RESIDUES), length))
    return rng.normal(-4, 3, (length, 20)), wildtype


def drawn(figure):
    """Draw, and give each text that is seen with its box, in pixels."""
    FigureCanvasAgg(figure).draw()
    axes = figure.axes
    texts = [*figure.texts, *(text for part in axes for text in part.texts)]
    for axis in (axis for part in axes for axis in (part.xaxis, part.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        texts += [axis.label, *(label for at, label in ticks if low <= at <= high)]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


def lines(text, box):
    """Split the box of a letter with a number below: the number is wider."""
    above, _, below = text.partition("\n")
    if not below.lstrip("-").isdecimal():
        return [box]
    middle, half = (box.y0 + box.y1) / 2, box.width * len(above) / len(below) / 2
    centre = (box.x0 + box.x1) / 2
    return [
        Bbox.from_extents(centre - half, middle, centre + half, box.y1),
        Bbox.from_extents(box.x0, box.y0, box.x1, middle - 1e-9),
    ]


def check_readable(figure):
    boxes = [part for text, box in drawn(figure) for part in lines(text, box)]
    x0, y0, x1, y1 = np.array([box.extents for box in boxes]).T
    overlaps = (x0 < x1[:, None]) & (x0[:, None] < x1) & (y0 < y1[:, None]) & (y0[:, None] < y1)
    assert (overlaps.sum(axis=1) == 1).all()  # each with itself
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height


@pytest.mark.parametrize("length", [1, 2, 50, 230, 1000, 1022])
@pytest.mark.parametrize("title", ["P01308", LONG_TITLE])
def test__contacts__nothing_overlaps_or_is_cut(length, title):
    check_readable(contact_figure(np.zeros((length, length), np.float32), title=title))


@pytest.mark.parametrize(
    ("length", "offset"),
    [(1, 0), (50, 0), (76, 1234), (230, -3), pytest.param(1000, 0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("title", ["P01308", LONG_TITLE])
def test__scan__nothing_overlaps_or_is_cut(length, offset, title):
    check_readable(scan_figure(*a_scan(length), offset=offset, title=title))


def test__contacts__shows_probabilities_from_residue_1():
    contacts = np.random.default_rng(0).random((30, 30)).astype(np.float32)
    axes, bar = contact_figure(contacts, title="x").axes
    [image] = axes.images
    np.testing.assert_array_equal(image.get_array(), contacts)
    assert image.get_clim() == (0, 1)
    assert image.get_extent() == [0.5, 30.5, 30.5, 0.5]
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == [1, 5, 10, 15, 20, 25, 30]
    assert image.to_rgba(np.zeros((1, 1)), bytes=True)[0, 0].tolist() == [255] * 4  # white
    assert bar.get_ylabel() == "contact probability"


def test__contacts__of_long_proteins_have_a_pixel_for_each_residue():
    figure = contact_figure(np.zeros((1022, 1022), np.float32), title="x")
    assert figure.axes[0].bbox.width >= 1022


def test__scan__shows_scores_by_property_and_marks_the_wild_type():
    scores, wildtype = a_scan(100)
    figure = scan_figure(scores, wildtype, offset=20, title="x")
    first, second, _ = figure.axes
    limits = {axes.images[0].get_clim() for axes in (first, second)}
    [(least, most)] = limits
    assert most == -least == np.abs(scores).max()
    for axes, start in ((first, 0), (second, 50)):
        shown = axes.images[0].get_array()
        assert shown.shape == (20, 50)
        for j, letter in enumerate(ORDER):
            column = scores[start : start + 50, CANONICAL_RESIDUES.index(letter)]
            np.testing.assert_array_equal(shown[j], column)
        dots = axes.collections[0].get_offsets().astype(int).tolist()
        expected = [[x, ORDER.index(c)] for x, c in enumerate(wildtype[start : start + 50])]
        assert dots == expected
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert "".join(label[0] for label in labels) == wildtype[start : start + 50]
        assert labels[0] == f"{wildtype[start]}\n{start + 21}"
        assert labels[9] == f"{wildtype[start + 9]}\n{start + 30}"
        assert "".join(label.get_text() for label in axes.get_yticklabels()) == ORDER
    assert any("log-likelihood ratio to the wild type (nats)" in text for text, _ in drawn(figure))


def test__scan__leaves_out_positions_that_compare_with_no_others():
    scores, wildtype = a_scan(4, "AXCD")
    scores[1] = 1000
    scores[2, 0] = np.nan
    image = scan_figure(scores, wildtype, title="x").axes[0].images[0]
    assert image.get_array().mask[:, 1].all()
    assert image.get_array().mask.sum() == 21
    assert image.get_clim()[1] < 1000


@pytest.mark.parametrize("wildtype", ["A", "X"])
def test__scan__without_any_difference(wildtype):
    image = scan_figure(np.zeros((1, 20)), wildtype, title="x").axes[0].images[0]
    assert image.get_clim() == (-1, 1)


def test__residues_by_property__are_the_canonical_ones():
    assert sorted(ORDER) == list(CANONICAL_RESIDUES)


def test__save_png__whatever_the_name_ends_in(tmp_path):
    save_png(contact_figure(np.zeros((3, 3), np.float32), title="x"), tmp_path / "x.part")
    assert (tmp_path / "x.part").read_bytes().startswith(b"\x89PNG")


def test__save_png__full_disk(tmp_path):
    figure = contact_figure(np.zeros((3, 3), np.float32), title="x")
    with pytest.raises(OSError, match="File too large"), no_room():
        save_png(figure, tmp_path / "x.png")


def test__figures__leave_pyplot_alone(tmp_path):
    code = (
        "import pathlib, sys, numpy as np\n"
        "from esm2_features._io.figures import contact_figure, save_png\n"
        "save_png(contact_figure(np.zeros((3, 3)), title='x'), pathlib.Path(sys.argv[1]))\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test__check_picture_output__without_matplotlib(tmp_path, monkeypatch):
    numbers = check_output(tmp_path / "x.csv", formats=("csv",))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"pip install \"esm2-features\[plot\]\""):
        check_picture_output(tmp_path / "x.png", beside=numbers)


def test__check_picture_output__not_that_of_the_numbers(tmp_path):
    numbers = check_output(tmp_path / "x.npy", formats=("npy",))
    with pytest.raises(InputError, match="have the same name"):
        check_picture_output(tmp_path / "x.npy", beside=numbers, is_folder=True)
    with pytest.raises(InputError, match="would be in"):
        check_picture_output(tmp_path / "x.npy" / "maps", beside=numbers, is_folder=True)
    with pytest.raises(InputError, match="would be in"):
        check_picture_output(tmp_path, beside=numbers, is_folder=True)
    with pytest.raises(InputError, match=r"Let it end in \.png"):
        check_picture_output(tmp_path / "x.pdf", beside=numbers)
