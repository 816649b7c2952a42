"""virtual machines that are started by `virtserial-qemu`, with any words of QEMU's."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.places import REGISTRY, SOURCE
from support.waiting import wait_until

from virtserial.client.qmp import QmpClient
from virtserial.rig import Guest
from virtserial.rig.channel import AgentChannel
from virtserial.rig.guest import CPU, ENDS_WITH_ITS_PARENT, KERNEL_OPTIONS
from virtserial.rig.image import guest_image
from virtserial.rig.qemu import find_qemu

PROGRAM = [sys.executable, "-m", "virtserial.cli.qemu"]
QUIET = ("-display", "none", "-accel", "tcg", "-cpu", CPU)


def qemu_script(folder):
    """A program that is the rig's QEMU, whatever it takes to start that."""
    program = find_qemu()
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in program.environment.items())
    path = Path(folder, "qemu-system-x86_64")
    path.write_text(f'#!/bin/sh\n{settings}exec {shlex.join(program.command)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def environment(folder):
    """Where virtserial-qemu finds QEMU and a place for its sockets."""
    own = {"VIRTSERIAL_QEMU": qemu_script(folder), "PYTHONPATH": str(SOURCE)}
    return {"VIRTSERIAL_REGISTRY": REGISTRY, **os.environ, **own}


def device_processes(folder):
    """The pids of the device processes whose machine has something in `folder`: keeper and worker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"virtserial.cli.qemu" in words and any(os.fsencode(str(folder)) in word for word in words):
            found.append(int(entry.name))
    return found


def wait_until_nothing_is_left(folder):
    """The device process ends when QEMU does."""
    wait_until(lambda: not device_processes(folder), complaint="the device process stays")


class DropinGuest(Guest):
    """A Linux guest of the rig, booted by virtserial-qemu.

    Args:
        words: QEMU's, but for kernel, display and the lines of the rig.
        stdin: what its standard input (and output) is; else none and a log.
        wants_qmp: the rig has a monitor of its own.
    """

    def __init__(self, words, *, stdin=None, wants_qmp=True, pass_fds=(), append=""):
        super().__init__(boot_timeout=180)
        self._words = list(words)
        self._stdin = stdin
        self._wants_qmp = wants_qmp
        self._pass_fds = tuple(pass_fds)
        self._kernel_options = f"{KERNEL_OPTIONS} {append}".strip()
        self.folder = Path(tempfile.mkdtemp(prefix="vs-"))

    def _start(self):
        image = guest_image()
        agent_end, agent_line = socket.socketpair()
        qmp_end, qmp_line = socket.socketpair()
        with agent_line, qmp_line:
            monitor = f"socket,id=rig-qmp,fd={qmp_line.fileno()}"
            words = [
                *(*QUIET, "-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
                *("-append", self._kernel_options, "-serial", f"file:{self.folder}/kernel.log"),
                *("-chardev", f"socket,id=rig-agent,fd={agent_line.fileno()}", "-serial", "chardev:rig-agent"),
                *(("-chardev", monitor, "-mon", "chardev=rig-qmp,mode=control") if self._wants_qmp else ()),
                *self._words,
            ]
            started = time.monotonic()
            with (self.folder / "stderr").open("wb") as log:
                self._process = subprocess.Popen(
                    [*ENDS_WITH_ITS_PARENT, *PROGRAM, *words],
                    env=environment(self.folder),
                    pass_fds=(agent_line.fileno(), qmp_line.fileno(), *self._pass_fds),
                    stdin=subprocess.DEVNULL if self._stdin is None else self._stdin,
                    stdout=log if self._stdin is None else self._stdin,
                    stderr=log,
                    start_new_session=self._stdin is not None,
                )
        self._channel = AgentChannel(agent_end)
        if self._wants_qmp:
            self._qmp = QmpClient(qmp_end, 60)
        else:
            qmp_end.close()
        self._channel.wait_for_boot(self._boot_timeout)
        self.boot_seconds = time.monotonic() - started

    def close(self):
        self.kill()
        wait_until_nothing_is_left(self.folder)
        super().close()
