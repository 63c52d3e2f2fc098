"""What the notebooks share: colours, the looks of figures, and where local data are."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

TEAL, RED, AMBER, VIOLET, GREY = "#00738a", "#c8384d", "#e8a33d", "#5b5b9d", "#8a8a8a"
PALETTE = [TEAL, RED, AMBER, VIOLET, GREY]
FIGURE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "legend.frameon": False,
}

_shared = Path(__file__).resolve().parents[2] / "shared" / "data"
if _shared.is_dir():
    os.environ.setdefault("ESM2_FEATURES_DATA", str(_shared))
DATA = Path(os.environ.get("ESM2_FEATURES_DATA", "."))
"""Folder of data that cannot be downloaded; set ``ESM2_FEATURES_DATA`` to yours."""

plt.rcParams.update(FIGURE)


def say(text: str) -> None:
    """Show a sentence whose numbers were computed."""
    display(Markdown(text))
