"""The site is built without a warning, has every page, and its made pages say what their sources say."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT, ROOT

from virtserial.cli.commands import COMMANDS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages.  A warning is an error: a link without a target, a page without a place in the contents."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--jobs", "2", "-c", "docs", "-d", folder / "doctrees"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", folder / "html"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def made_pages():
    spec = importlib.util.spec_from_file_location("made_pages", ROOT / "docs/made_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(200)
def test_the_site_has_every_page_and_every_command(site):
    for path in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / f"{path.stem}.html").exists(), path
    commands = (site / "build/pages/commands.html").read_text()
    assert [name for name in COMMANDS if f"virtserial {name}" not in commands] == []
    python = (site / "build/pages/python.html").read_text()
    assert all(f"virtserial.{name}" in python or name in python for name in ("serve", "Machine", "HostStream"))


@pytest.mark.timeout(200)
def test_every_internal_link_of_the_site_leads_somewhere(site):
    lost = []
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            target = link.partition("?")[0]
            if not os.path.exists(page.parent / target):
                lost.append((page.name, link))
    assert lost == []


def test_a_man_page_becomes_markdown(made_pages):
    page = '.TH X 1 2026 "v" "u"\n.SH NAME\nx \\- does *it*\n.TP\n.BI \\-\\-to " FILE"\nWhere.\n.PP\nSee\n.BR y (7).\n'
    text = made_pages.man_page(page)
    assert text == "# x(1)\n\n## Name\n\nx - does \\*it\\*\n\n* **--to** *FILE*\n\n  Where.\n\nSee **y**(7).\n"


def test_an_unknown_macro_of_a_man_page_is_an_error(made_pages):
    with pytest.raises(ValueError, match=r"\.XX is not known"):
        made_pages.man_page(".TH X 1\n.XX y\n")
