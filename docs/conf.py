"""Sphinx configuration. Build the site with `python -m sphinx -W -b html docs docs/_build`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate_reference import fill
from sphinx.application import Sphinx

from scen_cli import __version__

project = "scen"
author = "the scen contributors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"scen {__version__}"
exclude_patterns = ["_build"]
smartquotes = False  # `--option` in prose keeps its two hyphens

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]

default_role = "code"  # docstrings quote code with single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}
napoleon_numpy_docstring = False


def setup(app: Sphinx) -> None:
    """Fill `<!-- generated: NAME -->` in each page before it is parsed."""

    def fill_page(_app: Sphinx, _page: str, source: list[str]) -> None:
        source[0] = fill(source[0])

    app.connect("source-read", fill_page)
