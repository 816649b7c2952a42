"""Code blocks of the pages: what says `runs` is run, and the words of every other block are checked as far as they go.

`<!-- runs: prints X -->` before a block of Python runs it; tests/embed and tests/test_readme.py run more.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest
from support.places import ENVIRONMENT, ROOT

from virtserial.cli.commands import COMMANDS

OUTSIDE = ("README.md", "CONTRIBUTING.md", "guest/README.md")
PAGES = sorted([*(ROOT / name for name in OUTSIDE), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"(?ms)(?:<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$")
INDENTED = re.compile(r"(?:^\n(?:    [^\n]*\n)+)+", re.MULTILINE)


HAVE_ACTIONS = ("fleet", "guest")
"""Commands whose next word has options of its own."""


class Block(NamedTuple):
    """A code block: its page, its language, the comment before it, its text."""

    page: str
    language: str
    mark: str
    text: str

    def __str__(self):
        return f"{self.page}-{self.text.split(chr(10))[0][:40]}"


def blocks(page):
    name, text = page.relative_to(ROOT).as_posix(), page.read_text()
    for found in BLOCK.finditer(text):
        yield Block(name, found["language"], found["mark"] or "", found["text"])
    for found in INDENTED.finditer(BLOCK.sub("", text)):
        yield Block(name, "", "", textwrap.dedent(found[0]))


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.mark.startswith("runs: prints ") and block.page != "docs/api.md"]


def of(*languages):
    return [block for block in BLOCKS if block.language in languages]


def test_blocks_are_found():
    assert len(BLOCKS) > 50
    assert {"", "console", "python", "sh", "xml"} <= {block.language for block in BLOCKS}


@pytest.mark.process
@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_program_prints_what_its_page_says(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (block.mark.removeprefix("runs: prints ") + "\n", "")


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_compiles_and_imports_what_there_is(block):
    tree = compile(block.text, block.page, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("virtserial"):
            module = __import__(node.module.replace("virtserial_guest", "virtserial.guest"), fromlist=["*"])
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("block", of("json", "xml"), ids=str)
def test_data_can_be_read(block):
    if block.language == "json":
        json.loads(block.text)
    else:
        ET.fromstring(f"<page xmlns:qemu='q'>{block.text}</page>")


def command_lines(text):
    """The command lines of a block, continued lines joined, prompts, comments and variables taken off."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r"^(\w+[$#]|\$|#) +", "", line.strip())
        for command in re.split(r" (?:\||&&|;) |\| ?", line):
            words = re.sub(r"^(sudo |env |exec |\w+=\S+ )+", "", command.strip())
            if re.match(r"(\./scripts/|virtserial)[\w-]*( |$)", words):
                yield words


def split(command):
    try:
        return shlex.split(command, comments=True)
    except ValueError:  # a quotation that goes on in the next line
        return command.split()


LINES = [(block, line) for block in of("", "console", "sh") for line in command_lines(block.text)]


def test_command_lines_are_found():
    assert len(LINES) > 40


@pytest.mark.parametrize(("block", "line"), LINES, ids=lambda value: str(value)[:60])
def test_a_command_line_says_only_what_its_program_knows(block, line):
    program, *words = split(line)
    if program.startswith("./scripts/"):
        assert (ROOT / program).exists()
    if program != "virtserial" or not words or words[0].startswith(("-", "[", "COMMAND")):
        return
    assert words[0] in COMMANDS, line
    known = help_of(*(words[:2] if words[0] in HAVE_ACTIONS and not words[1].startswith("-") else words[:1]))
    for word in words[1:]:
        if word == "--":
            break
        if re.match(r"--[a-z]", word):
            assert word.partition("=")[0] in known, line


@cache
def help_of(*words):
    command = [sys.executable, "-m", "virtserial", *words, "--help"]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True).stdout
