"""Sphinx's settings; `make docs` builds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

import fastloss  # noqa: E402

project = "fastloss"
author = "The fastloss developers"
copyright = f"{author}, BSD-3-Clause"
version = release = fastloss.__version__

extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # what single backticks mean in the docstrings
add_module_names = False
autodoc_typehints = "none"  # the docstrings name the types
numpydoc_show_class_members = False  # methods are those of `Loss`, on a page of their own
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"fastloss {release}"
html_copy_source = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Write the losses' pages before Sphinx looks for its sources."""
    app.connect("builder-inited", lambda app: generate.write(Path(app.srcdir)))
