"""The device under test, behind one face: QEMU's own virtio-serial, or ours beside QEMU over vfio-user.

A test writes QEMU's options once (-device virtio-serial, -chardev ..., -device virtserialport ...) and gets the options
that attach that device to a virtual machine.  What a test expects is the same for both; known differences of QEMU's
device are said where they are expected, by `device.kind`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from support.places import ENVIRONMENT

from virtserial.options.vhost_user_device import vhost_user_words
from virtserial.rig.guest import ENDS_WITH_ITS_PARENT

CONTROLLERS = ("virtio-serial", "virtio-serial-pci")
READY_TIMEOUT = 90


class Attachment:
    """A device that is ready: `arguments` are the options for a VM, `per_controller` the same for a VM each."""

    def __init__(self, per_controller, shared=(), process=None, log=None):
        self.per_controller = per_controller
        self.arguments = [*shared, *(word for words in per_controller for word in words)]
        self.process = process
        self._log = log

    @property
    def worker_pid(self):
        """The pid of the process that moves the bytes, the only child of `virtserial serve`; None if there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if len(children) == 1 else None

    @property
    def log(self):
        """What `virtserial serve` has said."""
        return Path(self._log).read_text(errors="replace")


class QemuDevice:
    """QEMU's built-in device: the options as they are."""

    kind = "qemu"
    chardevs_to_come = frozenset()

    @contextmanager
    def attach(self, options):
        translated = []
        for option, value in zip(options[::2], options[1::2], strict=True):
            driver, comma, rest = value.partition(",")
            if option == "-device" and driver in CONTROLLERS:
                # QEMU offers VIRTIO_F_ACCESS_PLATFORM only on a device without the legacy interface.
                modern = ",disable-legacy=on" if "iommu_platform=on" in rest else ""
                value = f"virtio-serial-pci{comma}{rest}{modern}"
            translated += [option, value]
        yield Attachment([translated])


class VirtserialDevice:
    """Our device: `virtserial serve` with the same options, and a vfio-user-pci per controller for the VM."""

    kind = "virtserial"
    chardevs_to_come = frozenset()

    @contextmanager
    def attach(self, options):
        with tempfile.TemporaryDirectory(prefix="vs-dev-") as folder:
            served, sockets = [], []
            for option, value in zip(options[::2], options[1::2], strict=True):
                if option == "-device" and value.partition(",")[0] in CONTROLLERS:
                    sockets.append(f"{folder}/controller{len(sockets)}")
                    value = f"{value},socket={sockets[-1]}"
                served += [option, value]
            with self._serve(served, f"{folder}/log") as process:
                yield Attachment([["-device", vfio_user(path)] for path in sockets], (), process, f"{folder}/log")

    @staticmethod
    @contextmanager
    def _serve(options, log):
        ready, ready_at_child = os.pipe()
        environment = ENVIRONMENT
        options = ["--allow-path", "/", *options]
        serve = [sys.executable, "-m", "virtserial", "serve", *options, "--ready-fd", str(ready_at_child)]
        command = [*ENDS_WITH_ITS_PARENT, *serve]
        try:
            with open(log, "wb") as output:
                process = subprocess.Popen(
                    command, env=environment, pass_fds=[ready_at_child], stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            os.close(ready_at_child)
            try:
                readable, _, _ = select.select([ready], [], [], READY_TIMEOUT)
                assert readable, f"virtserial serve is not ready: {Path(log).read_text()}"
                # The server closes the descriptor when it is ready; if it dies, the kernel does.
                time.sleep(0.02)
                assert process.poll() is None, f"virtserial serve ended: {Path(log).read_text()}"
                yield process
            except BaseException as error:
                error.add_note(f"virtserial serve said:\n{Path(log).read_text()[-4000:]}")
                raise
            finally:
                _end(process)
        finally:
            os.close(ready)


class VhostUserDevice(VirtserialDevice):
    """Our device behind vhost-user: QEMU's own PCI function, and its queues handed over to `virtserial serve`."""

    kind = "virtserial"

    @contextmanager
    def attach(self, options):
        with tempfile.TemporaryDirectory(prefix="vs-dev-") as folder:
            served, arguments = [], []
            for option, value in zip(options[::2], options[1::2], strict=True):
                driver, _, rest = value.partition(",")
                if option == "-device" and driver in CONTROLLERS:
                    name = f"vhost{len(arguments)}"
                    words = [word for word in rest.split(",") if word and not word.startswith("vectors=")]
                    ports = next((int(word[10:]) for word in words if word.startswith("max_ports=")), 31)
                    value = ",".join(["vhost-user-serial", *words, f"socket={folder}/{name}"])
                    arguments.append(vhost_user_words(name, f"{folder}/{name}", ports))
                served += [option, value]
            with self._serve(served, f"{folder}/log") as process:
                yield Attachment(arguments, (), process, f"{folder}/log")


def vfio_user(path):
    """The -device value that attaches a vfio-user server's socket."""
    return json.dumps({"driver": "vfio-user-pci", "socket": {"path": path, "type": "unix"}})


def _end(process):
    """Ends a server as an operator would, and its whole session if it does not go."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
