"""`virtserial serve` as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.places import ENVIRONMENT
from support.waiting import wait_until

from virtserial.vfio_user.client import Client

READY_TIMEOUT = 60


def open_descriptors(pid):
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def holds(pid, inode):
    """Whether a process has a socket open."""
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(each) == f"socket:[{inode}]":
                return True
    return False


def resident(pid):
    """How many bytes of memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def connect(path):
    """A host's connection to a socket chardev."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def port_options(folder, name, number=1, bus="ser0"):
    """A port with a listening socket of its name as the host's end."""
    return [
        *("-chardev", f"socket,id={name},path={folder}/{name},server=on,wait=off"),
        *("-device", f"virtserialport,bus={bus}.0,nr={number},chardev={name},name={name}"),
    ]


def controller_options(folder, name="ser0", more=""):
    """A controller that listens at NAME.sock."""
    return ["-device", f"virtio-serial,id={name},socket={folder}/{name}.sock{more}"]


class DeviceProcess:
    """A running `virtserial serve`, ready.

    Attributes:
        process: the keeper's Popen.
        announced: what it printed, once it is ready.
    """

    def __init__(self, folder, *options, environment=None, allow_path="/", **popen):
        self._folder = Path(folder)
        number = len(list(self._folder.glob("log*")))
        self._log = self._folder / f"log{number}"
        output = self._folder / f"out{number}"
        allowed = ["--allow-path", allow_path] if allow_path else []
        ready, ready_at_child = os.pipe()
        try:
            with self._log.open("wb") as log, output.open("wb") as out:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "virtserial", "serve", *allowed, *options,
                     "--ready-fd", str(ready_at_child)],
                    env=environment or ENVIRONMENT, stdin=subprocess.DEVNULL,
                    pass_fds=[ready_at_child, *popen.pop("pass_fds", ())],
                    stdout=popen.pop("stdout", out), stderr=log, **popen,
                )  # fmt: skip
            os.close(ready_at_child)
            self.pid = self.process.pid
            try:
                assert select.select([ready], [], [], READY_TIMEOUT)[0], "it does not become ready"
                wait_until(lambda: self.process.poll() is not None or self.worker is not None)
                assert self.process.poll() is None, f"it ended: {self.log}"
            except BaseException:
                self.kill()
                raise
        finally:
            os.close(ready)
        self.announced = output.read_text()

    @property
    def log(self):
        """What it has written to standard error."""
        return self._log.read_text(errors="replace")

    def children(self):
        """The keeper's children, oldest first: the worker, and perhaps one that is to take its place."""
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []

    @property
    def worker(self):
        """The worker's pid, None while there is none."""
        return next(iter(self.children()), None)

    def descriptors(self):
        """How many descriptors keeper and worker have."""
        return open_descriptors(self.pid), open_descriptors(self.worker)

    def descriptors_at_rest(self, path):
        """How many descriptors keeper and worker have while nobody is connected to the controller at `path`."""
        Client(path).close()
        return self.settled_descriptors()

    def settled_descriptors(self):
        """How many descriptors keeper and worker have when that does not change any more."""
        seen = []
        wait_until(lambda: seen.append(self.descriptors()) or (len(seen) > 20 and len(set(seen[-20:])) == 1))
        return seen[-1]

    def worker_maps(self, name):
        """How many mappings of files of that name the worker has."""
        return Path(f"/proc/{self.worker}/maps").read_text().count(name)

    def wait_for_log(self, text, seconds=60):
        """Wait until the log has a text."""
        wait_until(lambda: text in self.log, seconds, f"{text!r} is not logged, but {self.log!r}")

    def worker_sleeps(self):
        """Whether the worker waits for something to happen."""
        return Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    def kill_worker(self, number=signal.SIGKILL):
        """Signal the worker and return the pid it had."""
        pid = wait_until(lambda: self.worker, complaint="there is no worker")
        os.kill(pid, number)
        return pid

    def wait_for_new_worker(self, old):
        """Wait for a worker that is not `old`; return its pid."""
        return wait_until(lambda: self.worker not in (None, old) and self.worker, complaint="no new worker came")

    def stop(self, number=signal.SIGTERM):
        """End it as an operator would; return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self):
        """End it by force, whatever state it is in."""
        worker = self.worker
        self.process.kill()
        self.process.wait()
        if worker is not None:
            # It ends by itself, except where a test has stopped it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
