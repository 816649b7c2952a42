"""Completions of bash, zsh and fish: made by shtab from the programs' parsers, and tried in the real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest
from support.fetched import fetch_or_skip
from support.places import ENVIRONMENT, ROOT

from virtserial.cli.commands import COMMANDS
from virtserial.rig.programs import programs

FILES = ROOT / "packaging" / "completions"
RUNNING = """#!/bin/sh
case "$1" in
    ls) printf 'alpha\\nbeta\\n';;
    ports) printf 'alpha/org.example.0\\nalpha/hvc0\\nbeta/org.x\\n';;
esac
"""
"""A `virtserial` that sees two machines."""
CASES = [
    ("virtserial resta", ["restart"]),
    ("virtserial console ", ["alpha/org.example.0", "alpha/hvc0", "beta/org.x"]),
    ("virtserial restart b", ["beta"]),
    ("virtserial console --fo", ["--force"]),
    ("virtserial serve --device virtserialp", ["virtserialport"]),
    ("virtserial guest at", ["attach"]),
    ("virtserial-qemu --expl", ["--explain"]),
    ("virtserial-guest rece", ["receive"]),
]
BASH = """
for file in {files}; do source "$file"; done
complete_line() {{
    local line=$1 words
    read -ra COMP_WORDS <<< "$line"
    [ "${{line% }}" = "$line" ] || COMP_WORDS+=("")
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMP_LINE=$line COMP_POINT=${{#line}} COMPREPLY=()
    words=$(complete -p "${{COMP_WORDS[0]}}")
    $(sed -E 's/.*-F ([^ ]+).*/\\1/' <<< "$words") "${{COMP_WORDS[0]}}" "${{COMP_WORDS[COMP_CWORD]}}" \\
        "${{COMP_WORDS[COMP_CWORD-1]}}"
    echo "${{COMPREPLY[*]}}"
}}
"""


def files_of(shell):
    return sorted(path for folder in (FILES, FILES / "guest") for path in (folder / shell).iterdir())


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("running")
    (folder / "virtserial").write_text(RUNNING)
    (folder / "virtserial").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "LC_ALL": "C.UTF-8"}


def test_the_files_are_made_from_the_parsers_and_know_every_command(tmp_path):
    """An option may be newer than the files: they are made anew before a release."""
    pytest.importorskip("shtab")
    words = [sys.executable, str(FILES / "generate.py"), str(tmp_path)]
    subprocess.run(words, env={**ENVIRONMENT, "COLUMNS": "80"}, check=True, timeout=60)
    for shell in ("bash", "zsh", "fish"):
        made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob(f"**/{shell}/*"))
        assert made == sorted(str(path.relative_to(FILES)) for path in files_of(shell))
        (shipped,) = (path.read_text() for path in files_of(shell) if path.stem.lstrip("_") == "virtserial")
        missing = [name for name in COMMANDS if not re.search(rf"(?<![\w-]){name}(?![\w-])", shipped)]
        assert not missing, "run packaging/completions/generate.py"


def bash(script, environment):
    command = [shutil.which("bash"), "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_bash(environment):
    script = BASH.format(files=" ".join(map(str, files_of("bash"))))
    script += "".join(f"complete_line '{line}'\n" for line, _ in CASES)
    done = bash(script, environment)
    assert done.stderr == ""
    assert [line.split() for line in done.stdout.splitlines()] == [words for _, words in CASES]
    script = BASH.format(files=files_of("bash")[0]) + "complete_line 'virtserial serve -devi'\n"
    assert bash(script, environment).stdout == "-device\n"


def test_fish(environment):
    found = fetch_or_skip(programs, "fish")
    script = "".join(f"source {path}\n" for path in files_of("fish"))
    script += "function __fish_complete_path; end; function __fish_complete_directories; end\n"
    script += "".join(f"complete -C '{line}'; echo =\n" for line, _ in CASES)
    command = [*found.command("fish"), "--no-config", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    answers = [[line.split("\t")[0] for line in text.splitlines()] for text in done.stdout.split("=\n")[:-1]]
    assert [sorted(answer) for answer in answers] == [sorted(words) for _, words in CASES]


def test_zsh(environment, tmp_path):
    found = fetch_or_skip(programs, "zsh")
    (modules,) = (found.root / "usr/lib/x86_64-linux-gnu/zsh").iterdir()
    functions = [path for path in (found.root / "usr/share/zsh/functions").rglob("*") if path.is_dir()]
    folders = " ".join(map(str, [FILES / "zsh", FILES / "guest/zsh", *functions]))
    home = tmp_path / "zsh"
    home.mkdir()
    (home / ".zshenv").write_text(
        f"module_path=({modules})\nfpath=({folders})\nzmodload zsh/zle\nsetopt no_beep\n"
        "autoload -Uz compinit && compinit -D -u\nPROMPT='ready '\nunset zle_bracketed_paste\n"
    )
    settings = {**environment, "TERM": "dumb", "ZDOTDIR": str(home)}
    command = [*found.command("zsh"), "-d", "-i"]
    pid, terminal = pty.fork()
    if not pid:
        os.execve(command[0], command, settings)
    try:
        shown(terminal, "ready ")
        for line, words in CASES:
            # Ctrl-U, the line, and Tab.
            os.write(terminal, b"\x15" + line.encode() + b"\t")
            shown(terminal, re.escape(words[0]))
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def shown(terminal, pattern):
    """Read until the terminal shows what is awaited."""
    seen, deadline = "", time.monotonic() + 90
    while not re.search(pattern, seen):
        assert select.select([terminal], [], [], max(deadline - time.monotonic(), 0))[0], seen
        seen += os.read(terminal, 65536).decode(errors="replace").replace("\r", "")
