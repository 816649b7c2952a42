"""The site: `./scripts/docs` builds it into build/site, with warnings as errors.

The pages are the Markdown files that one reads in the source tree; three kinds are made from what is written elsewhere
(docs/made_pages.py): man pages, every command's --help, and the Python interface from its docstrings.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "src"), str(ROOT / "guest")]

from made_pages import FOLDER, make_pages  # noqa: E402

from virtserial.version import __version__  # noqa: E402

project, author = "virtserial", "the virtserial developers"
copyright = f"2026, {author}"  # noqa: A001
version = release = __version__
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "guest/README.md", "docs/**", f"{FOLDER}/**"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
smartquotes = False
"""Else --option becomes a dash."""
html_theme = "furo"
html_title = f"virtserial {__version__}"
html_copy_source = False
html_show_sphinx = False
suppress_warnings = ["myst.header"]
"""docs/performance.md has the figures' headings, as ./scripts/bench writes them."""


def setup(_: object) -> None:
    """Sphinx calls it before it looks for pages."""
    os.environ.setdefault("COLUMNS", "80")
    make_pages(ROOT)
