"""Configuration of Sphinx. Neither the build nor the built pages need the network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import _generate  # noqa: E402

import esm2_features  # noqa: E402

_generate.write_all()

project = "esm2_features"
author = "The esm2_features developers"
project_copyright = f"{author}, MIT licence"
release = version = esm2_features.__version__.partition("+")[0]

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
]
# Generated parts are included by pages, and are no pages themselves.
exclude_patterns = ["_build", "_generated", "_templates", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "autolink"  # a name in a docstring's single backticks: a link if it is one of ours

# ------------------------------------------------------------------ pages

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are shown as they are committed; `make notebooks` runs them
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ------------------------------------------------------------------ reference

autosummary_generate = True
autodoc_typehints = "none"  # docstrings say types, and shapes with them
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def _skip_foreign(_: Any, __: str, ___: str, member: Any, skip: bool, ____: Any) -> bool | None:
    """Leave out members that are inherited from classes of other libraries."""
    home = getattr(getattr(member, "fget", member), "__module__", None)
    return True if not str(home).startswith("esm2_features") else skip or None


def _escape_underscores(_: Any, __: str, ___: str, ____: Any, _____: Any, lines: list[str]) -> None:
    """Keep "shape (n_features_in_,)" from being read as a reference to something."""
    lines[:] = [re.sub(r"(\w)_(?=,\))", r"\1\\_", line) for line in lines]


# ------------------------------------------------------------------ looks

html_theme = "pydata_sphinx_theme"
html_title = "esm2_features"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # needs requests that a browser refuses to pages opened as files
html_theme_options = {
    "logo": {
        "text": "esm2_features",
        "image_light": "_static/icon.svg",
        "image_dark": "_static/icon.svg",
        "alt_text": "esm2_features",
    },
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
}
html_context = {"default_mode": "auto"}
html_sidebars = {"index": []}


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("autodoc-skip-member", _skip_foreign)
    app.connect("autodoc-process-docstring", _escape_underscores, priority=1)  # before numpydoc
