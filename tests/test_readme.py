"""What README.md shows works: its transcript and its demo run as they stand, on a machine with nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import select
import shlex
import signal
import subprocess
import time
from typing import NamedTuple

import pytest
from support.built import build_pyz
from support.empty_machine import empty_machine
from support.fetched import fetch_or_skip
from support.places import ROOT

from virtserial.rig import Guest
from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu

README = (ROOT / "README.md").read_text()
FEATURES = (ROOT / "docs/features.md").read_text()
DEVICE_SOCKET = "/tmp/vs/ser0.sock"
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
    """The readers of the transcript: one at an empty machine's shell, one who starts a QEMU and types in its guest."""

    def __init__(self, machine, stack):
        self.machine = machine
        self.stack = stack
        self.guest = None

    def do(self, step):
        if step.where == "guest#":
            self.type_in_guest(step.command, step.expected)
        elif step.command.startswith("qemu-system"):
            self.start_guest(step.command)
        else:
            self.type_on_host(step.command, step.expected)

    def type_on_host(self, command, expected):
        command, goes_on = background(command)
        process = subprocess.Popen(
            self.machine.command("/bin/sh", "-c", command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        # What goes on, and what only waits for its end, is ended with the test.
        self.stack.callback(process.stdout.close)
        self.stack.callback(process.wait)
        self.stack.callback(self.end, process)
        if goes_on:
            time.sleep(GO_TO_THE_OTHER_SHELL)
        elif not expected:
            assert process.wait(OUTPUT_TIMEOUT) == 0, command
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
        """The rig's machine, outside, with the line's device; its memory is the rig's, and must be as the line's."""
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
        device = options["-device"].replace(DEVICE_SOCKET, self.machine.path(DEVICE_SOCKET))
        self.guest = self.stack.enter_context(Guest(["-device", device], memory_mib=mebibytes))

    def type_in_guest(self, command, expected):
        command, in_background = background(command)
        if in_background:
            self.guest.start(command)
        else:
            assert self.guest.check(command, timeout=OUTPUT_TIMEOUT).splitlines() == expected


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """With Python, socat, virtserial.pyz and this source tree."""
    pyz = build_pyz(tmp_path_factory.mktemp("built"))
    names = ("virtserial", "virtserial-qemu", "virtserial-vhost-user")
    with empty_machine([(name, pyz) for name in names], [ROOT]) as machine:
        yield machine


@pytest.mark.qemu
@pytest.mark.timeout(120)
def test_transcript_runs_as_it_stands(machine):
    fetch_or_skip(find_qemu)
    fetch_or_skip(guest_image)
    steps = parse_transcript(README)
    assert {step.where for step in steps} == {"host$", "guest#"}
    assert sum(bool(step.expected) for step in steps) >= 4
    with contextlib.ExitStack() as stack:
        reader = Reader(machine, stack)
        for step in steps:
            reader.do(step)


@pytest.mark.parametrize("program", [f"{ROOT}/scripts/demo", "virtserial demo"])
def test_the_demo_runs_on_an_empty_machine(machine, program):
    command = machine.command(*program.split(), "--size", "1", network=False)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("all sha1sums are equal")


def test_the_zip_archive_is_each_of_the_programs(machine):
    for words, says in (
        (["virtserial", "--version"], "virtserial "),
        (["virtserial-vhost-user", "--print-capabilities"], '"type"'),
        (["virtserial-qemu", "--explain", "-device", "virtio-serial"], "vfio-user-pci"),
    ):
        done = subprocess.run(machine.command(*words), capture_output=True, text=True, timeout=60)
        assert says in done.stdout, (words, done)


def table_behind(marker):
    """The lines of the table behind a comment in docs/features.md."""
    text = FEATURES.split(f"<!-- {marker} -->\n")[1]
    return text.split("\n\n")[0].splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_of_connected_ports_is_the_one_its_command_prints():
    """Its head and its columns: the numbers are held by tests/interop/test_many_ports.py."""
    module = re.search(r"`PYTHONPATH=src:tests python3 -m (\S+)` prints this table", FEATURES).group(1)
    program = importlib.import_module(module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        program.main([])
    head, rule = printed.getvalue().splitlines()
    table = table_behind("connected-ports")
    assert table[:2] == [head, rule]
    assert {len(cells(row)) for row in table[2:]} == {len(cells(head))}
    assert {cells(row)[0].split()[0] for row in table[2:]} >= {"30", "510"}


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_commands_of_the_readme_are_there():
    for command in re.findall(r"\./scripts/\w+", README):
        assert os.access(ROOT / command, os.X_OK), command
