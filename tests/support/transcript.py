"""Transcripts in pages: what a reader types at a shell of an empty machine and in a guest, and what is printed.

| prompt | types where |
|---|---|
| `host$`, `guest$` | at a shell of the empty machine; a command with & goes on |
| `host$ qemu-system...` | nowhere: the rig boots its own guest with the line's memory and device |
| `guest#` | in that guest |

`...` in an expected line stands for anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from typing import NamedTuple

from support.waiting import PATIENCE

from virtserial.rig import Guest

DEVICE_SOCKET = "/tmp/vs/ser0.sock"
PROMPT = re.compile(r"(host\$|guest\$|guest#) (.*)")
OUTPUT_TIMEOUT = 60
GO_TO_THE_OTHER_SHELL = 0.3 * PATIENCE
"""Seconds that nobody who types is faster than: what goes on in the background has begun."""


class Step(NamedTuple):
    """A command of the transcript and the lines it prints."""

    where: str
    command: str
    expected: list[str]


def parse_transcripts(page):
    """The steps of all code blocks behind `<!-- transcript -->`; a backslash at the end joins a line and the next."""
    found = re.findall(r"<!-- transcript -->\n```console\n(.*?)```", page, re.DOTALL)
    steps = []
    lines = iter("".join(found).splitlines())
    for line in lines:
        if prompt := PROMPT.fullmatch(line):
            where, command = prompt.groups()
            while command.endswith("\\"):
                command = command[:-1].rstrip() + " " + next(lines).strip()
            steps.append(Step(where, command, []))
        elif line:
            steps[-1].expected.append(line)
    return steps


def background(command):
    """The command without its &, and whether it had one."""
    stripped = command.removesuffix("&").rstrip()
    return stripped, stripped != command


def assert_like(lines, expected):
    """Compare printed lines with those of a page; columns may be wider."""
    for line, pattern in zip(lines, expected, strict=True):
        words = re.escape(" ".join(pattern.split())).replace(re.escape("..."), ".*")
        assert re.fullmatch(words, " ".join(line.split())), (line, pattern)


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
        assert_like(output.decode().splitlines(), expected)

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
