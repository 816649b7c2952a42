"""Pages of the site that are made from what is written elsewhere: man pages, --help, docstrings.

| page | from |
|---|---|
| NAME-SECTION | man/NAME.SECTION, in the part of man(7) that these use |
| commands | `virtserial COMMAND --help` of every command |
| python | docstrings of the names that docs/api.md promises |
| more | names of pages that docs/index.md has no place for yet |
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "build/pages"
MACRO = re.compile(r"\.(\w+) ?(.*)")
FONTS = {"B": "**", "I": "*", "R": "", "P": ""}
"""\\fP, the previous font, is the roman one in these pages."""
STABLE = (
    ("virtserial", "The device, our driver, ports"),
    ("virtserial.client", "The host's end elsewhere"),
    ("virtserial.handler", "Ports served by Python code"),
    ("virtserial.testing.plugin", "Fixtures for pytest"),
    ("virtserial_guest", "In a guest"),
)


def make_pages(root: Path) -> None:
    """Write the pages into FOLDER; one that has not changed stays as it is, so that it is not read again."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{path.stem}-{path.suffix[1:]}": man_page(path.read_text()) for path in sorted((root / "man").iterdir())}
    pages |= {"commands": commands(root), "python": python(), "more": more(root)}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def man_page(text: str) -> str:
    """A page of man(7) as Markdown.

    Raises:
        ValueError: it uses a macro that is not known here.
    """
    lines: list[str] = []
    paragraph: list[str] = []
    tag: str | None = None
    in_list = literal = False

    def end_paragraph() -> None:
        if paragraph:
            body = " ".join(paragraph)
            lines.extend([f"  {body}" if in_list else body, ""])
            paragraph.clear()

    for line in text.splitlines():
        macro = MACRO.fullmatch(line)
        name, rest = macro.groups() if macro else ("", line)
        if name == "TH":
            title, section = rest.split()[:2]
            lines += [f"# {title.lower()}({section})", ""]
        elif literal and name not in ("fi", "EE"):
            lines.append(("  " if in_list else "") + plain(rest if not name else " ".join(arguments(rest))))
        elif name in ("SH", "SS"):
            end_paragraph()
            in_list = False
            lines += [f"{'##' if name == 'SH' else '###'} {inline(rest.strip(chr(34))).capitalize()}", ""]
        elif name in ("PP", "P", "RS", "RE", "IP"):
            end_paragraph()
            in_list = in_list and name in ("RS", "IP")
        elif name == "TP":
            end_paragraph()
            in_list, tag = True, ""
        elif name in ("nf", "EX"):
            end_paragraph()
            lines.append(("  " if in_list else "") + "```text")
            literal = True
        elif name in ("fi", "EE"):
            lines += [("  " if in_list else "") + "```", ""]
            literal = False
        elif name == "br":
            paragraph.append("\\\n" if not in_list else "\\\n ")
        elif name == "in" or line.startswith('.\\"') or not line.strip():
            continue
        else:
            words = font(name, rest) if name else inline(rest)
            if tag == "":
                lines += [f"* {words}", ""]
                tag = None
            else:
                paragraph.append(words)
    end_paragraph()
    return "\n".join(lines).rstrip() + "\n"


def arguments(text: str) -> list[str]:
    """The arguments of a macro: words, or what is in quotation marks."""
    return [quoted or word for quoted, word in re.findall(r'"([^"]*)"|(\S+)', text.replace("\\ ", "\xa0"))]


def font(name: str, rest: str) -> str:
    """A macro of one font (.B) or of two that alternate (.BR)."""
    if not set(name) <= set("BIR"):
        raise ValueError(f".{name} is not known to docs/made_pages.py")
    if len(name) == 1:
        return inline(f"\\f{name}{' '.join(arguments(rest))}\\fR")
    return inline("".join(f"\\f{name[n % 2]}{word}" for n, word in enumerate(arguments(rest))) + "\\fR")


def plain(text: str) -> str:
    """Text without the escapes of troff."""
    text = re.sub(r"\\f.", "", text).replace("\\-", "-").replace("\\&", "").replace("\xa0", " ")
    return text.replace("\\(aq", "'").replace("\\(dq", '"').replace("\\e", "\\")


def inline(text: str) -> str:
    """A line with fonts as Markdown."""
    pieces = re.split(r"\\f(.)", f"\\fR{text}")[1:]
    out = []
    for shape, piece in zip(pieces[::2], pieces[1::2], strict=True):
        words = re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", plain(piece))
        mark = FONTS[shape]
        inner = words.strip()
        out.append(words.replace(inner, f"{mark}{inner}{mark}", 1) if inner and mark else words)
    return "".join(out)


def commands(root: Path) -> str:
    """Every command's help."""
    from virtserial.cli.commands import GROUPS

    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "COLUMNS": "80", "NO_COLOR": "1"}

    def help_of(words: list[str]) -> str:
        done = subprocess.run([sys.executable, *words, "--help"], env=environment, capture_output=True, text=True)
        return f"```text\n{done.stdout.rstrip()}\n```\n"

    names = [name for group in GROUPS.values() for name in group]
    with ThreadPoolExecutor(2) as threads:

        def helps_of(lines: list[str]) -> dict[str, str]:
            helps = threads.map(lambda line: help_of(["-m", "virtserial", *line.split()]), lines)
            return dict(zip(lines, helps, strict=True))

        helps = helps_of(names)
        actions = helps_of([f"{name} {action}" for name in names for action in actions_of(helps[name])])
    text = ["# Every command, every option", "", "This is what `--help` says.", ""]
    for title, group in GROUPS.items():
        text += [f"## {title}", ""]
        for name in group:
            text += [f"### virtserial {name}", "", helps[name]]
            text += [said for line, said in actions.items() if line.startswith(f"{name} ")]
    text += ["## virtserial-qemu", "", help_of(["-m", "virtserial.cli.qemu"])]
    return "\n".join(text)


def actions_of(text: str) -> list[str]:
    """The actions that a command's help lists below the word ACTION."""
    listed = re.search(r"^  ACTION\n((?:    .*\n)+)", text, re.MULTILINE)
    return re.findall(r"^    ([a-z-]+)", listed[1], re.MULTILINE) if listed else []


def python() -> str:
    """The stable interface: Sphinx reads the docstrings of the names in each `__all__`."""
    text = ["# The Python interface", "", "[api.md](../../docs/api.md) says how to use it, and what is stable.", ""]
    shown: set[int] = set()
    for name, title in STABLE:
        module = import_module(name)
        text += [f"## {title}: {name}", "", "```{eval-rst}"]
        for word in getattr(module, "__all__", None) or vars(module):
            value = getattr(module, word)
            kind = "class" if isinstance(value, type) else "function" if callable(value) else ""
            is_ours = getattr(value, "__module__", "").startswith("virtserial")
            if kind and is_ours and not word.startswith("_") and id(value) not in shown:
                shown.add(id(value))
                text += [f".. auto{kind}:: {name}.{word}", "   :no-index:"]
                text += ["   :members:", ""] if kind == "class" else [""]
        text += ["```", ""]
    return "\n".join(text)


def more(root: Path) -> str:
    """The contents of what the index does not name."""
    named = (root / "docs/index.md").read_text().split()
    names = sorted(path.stem for path in (root / "docs").glob("*.md") if path.stem not in (*named, "index"))
    return "\n".join(["# More pages", "", "```{toctree}", *(f"../../docs/{name}" for name in names), "```", ""])
