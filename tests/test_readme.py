"""What README.md shows works: its transcript is run as it stands, and its table is the one that its command prints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from support.places import ROOT

from virtserial.rig import Guest, RigUnavailable
from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu

README = (ROOT / "README.md").read_text()
PLACE = "/tmp/vs"
"""Where the transcript's sockets are; a folder of the test's own takes its place."""
PROMPT = re.compile(r"(host\$|guest#) (.*)")
OUTPUT_TIMEOUT = 20
GO_TO_THE_OTHER_SHELL = 0.3
"""Seconds that nobody who types is faster than: what goes on in the background has begun."""


class Step(NamedTuple):
    """A command of the transcript and the lines it prints."""

    where: str
    command: str
    expected: list[str]


def parse_transcript(readme):
    """The steps of the code block behind `<!-- transcript -->`; a line that ends in a backslash goes on in the next."""
    block = re.search(r"<!-- transcript -->\n```console\n(.*?)```", readme, re.DOTALL).group(1)
    steps = []
    lines = iter(block.splitlines())
    for line in lines:
        if prompt := PROMPT.fullmatch(line):
            where, command = prompt.groups()
            while command.endswith("\\"):
                command = command[:-1].rstrip() + " " + next(lines).strip()
            steps.append(Step(where, command, []))
        elif line:
            steps[-1].expected.append(line)
    return steps


def test_transcript_is_read_with_continued_lines_and_output():
    steps = parse_transcript("<!-- transcript -->\n```console\nhost$ a \\\n    b\nc\n\nguest# d\n```\n")
    assert steps == [Step("host$", "a b", ["c"]), Step("guest#", "d", [])]


def background(command):
    """The command without its &, and whether it had one."""
    stripped = command.removesuffix("&").rstrip()
    return stripped, stripped != command


class Reader:
    """The readers of the transcript: one at the host's shell, one who starts a QEMU and types in its guest."""

    def __init__(self, folder, stack):
        self.folder = folder
        self.stack = stack
        self.guest = None
        program = Path(folder, "bin", "virtserial")
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m virtserial "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
        }

    def do(self, step):
        command = step.command.replace(PLACE, self.folder)
        expected = [line.replace(PLACE, self.folder) for line in step.expected]
        if step.where == "guest#":
            self.type_in_guest(command, expected)
        elif command.startswith("qemu-system"):
            self.start_guest(command)
        else:
            self.type_on_host(command, expected)

    def type_on_host(self, command, expected):
        command, goes_on = background(command)
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        # What goes on, and what only waits for its end, is ended with the test.
        self.stack.callback(process.stdout.close)
        self.stack.callback(process.wait)
        self.stack.callback(self.end, process)
        if goes_on:
            time.sleep(GO_TO_THE_OTHER_SHELL)
        output = b""
        limit = time.monotonic() + OUTPUT_TIMEOUT
        while output.count(b"\n") < len(expected):
            remaining = limit - time.monotonic()
            assert select.select([process.stdout], [], [], max(0, remaining))[0], f"{command}: only {output!r}"
            data = os.read(process.stdout.fileno(), 65536)
            assert data, f"{command}: printed {output!r} and ended"
            output += data
        assert output.decode().splitlines() == expected

    @staticmethod
    def end(process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)

    def start_guest(self, command):
        """The rig's machine with the line's device; its memory is the rig's, and must be such as the line's."""
        words = shlex.split(command)
        assert words.pop() == "...", "the line ends where the reader's own options begin"
        options = dict(zip(words[1::2], words[2::2], strict=True))
        assert list(options) == ["-machine", "-m", "-object", "-device"]
        machine = dict(item.split("=") for item in options["-machine"].split(",") if "=" in item)
        backend, *properties = options["-object"].split(",")
        memory = dict(item.split("=") for item in properties)
        assert backend == "memory-backend-memfd"
        assert memory["share"] == "on"
        assert memory["id"] == machine["memory-backend"]
        assert memory["size"] == options["-m"]
        mebibytes = int(options["-m"].removesuffix("M"))
        self.guest = self.stack.enter_context(Guest(["-device", options["-device"]], memory_mib=mebibytes))

    def type_in_guest(self, command, expected):
        command, in_background = background(command)
        if in_background:
            self.guest.start(command)
        else:
            assert self.guest.check(command, timeout=OUTPUT_TIMEOUT).splitlines() == expected


def require(present, reason):
    """Skip with the reason, except where everything must be there."""
    if not present:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.qemu
@pytest.mark.timeout(120)
def test_transcript_runs_as_it_stands():
    require(shutil.which("socat"), "socat is not installed")
    try:
        find_qemu()
        guest_image()
    except RigUnavailable as reason:
        require(False, f"the rig is not available: {reason}")
    steps = parse_transcript(README)
    assert {step.where for step in steps} == {"host$", "guest#"}
    assert sum(bool(step.expected) for step in steps) >= 4
    with tempfile.TemporaryDirectory(prefix="vs-") as folder, contextlib.ExitStack() as stack:
        reader = Reader(folder, stack)
        for step in steps:
            reader.do(step)


def table_behind(marker):
    """The lines of the table behind a comment in README.md."""
    text = README.split(f"<!-- {marker} -->\n")[1]
    return text.split("\n\n")[0].splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_of_connected_ports_is_the_one_its_command_prints():
    """Its head and its columns: the numbers are held by tests/interop/test_many_ports.py."""
    module = re.search(r"`PYTHONPATH=src:tests python3 -m (\S+)` prints this table", README).group(1)
    program = importlib.import_module(module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        program.main([])
    head, rule = printed.getvalue().splitlines()
    table = table_behind("connected-ports")
    assert table[:2] == [head, rule]
    assert {len(cells(row)) for row in table[2:]} == {len(cells(head))}
    assert {cells(row)[0].split()[0] for row in table[2:]} >= {"30", "510"}


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_commands_of_the_readme_are_there():
    for command in re.findall(r"\./scripts/\w+", README):
        assert os.access(ROOT / command, os.X_OK), command
