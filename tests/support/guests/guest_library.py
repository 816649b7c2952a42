"""The guest library inside the rig's guest, and what tests of it need on the host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from support.guests.host_device import ENDS_WITH_ITS_PARENT
from support.places import ENVIRONMENT, SOURCE

LIBRARY = SOURCE.parent / "guest" / "virtserial_guest"
PLACE = "/opt"
PROGRAM = f"PYTHONPATH={PLACE} python3 -m virtserial_guest"


def library_files():
    """The library's folder as files for a guest."""
    place = f"{PLACE}/virtserial_guest"
    return {f"{place}/{path.relative_to(LIBRARY)}": path.read_bytes() for path in LIBRARY.rglob("*.py")}


class CuttingRelay:
    """Between a program and a chardev's socket: the program connects to `path`, and tests cut the connection.

    Attributes:
        passed: bytes that went through in both directions.
    """

    def __init__(self, path, target):
        self.path = path
        self.passed = 0
        self.cuts = 0
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._pairs = []
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                far.close()
                continue
            self._pairs.append((near, far))
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                thread = threading.Thread(target=self._copy, args=(one, other))
                thread.start()
                self._threads.append(thread)

    def _copy(self, one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
                self.passed += len(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """End every connection, in the middle of whatever goes on."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self.cuts += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(60)
        self.cut()
        for thread in self._threads:
            thread.join(60)
        for each in self._sockets:
            each.close()


class Program:
    """`virtserial ...` on the host; ended with the test."""

    def __init__(self, *words, **more):
        environment = ENVIRONMENT
        command = [*ENDS_WITH_ITS_PARENT, sys.executable, "-m", "virtserial", *words]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        self.process = subprocess.Popen(command, env=environment, **streams)

    def wait(self, seconds=60):
        """Its (exit status, standard output, standard error) as text."""
        output, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, (output or b"").decode(), (errors or b"").decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


MANIFEST = """
import hashlib, os, stat

def manifest(root):
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = b''
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path).hex()
            elif stat.S_ISREG(status.st_mode):
                digest = hashlib.sha256()
                with open(path, 'rb') as file:
                    while data := file.read(1 << 20):
                        digest.update(data)
                content = digest.hexdigest()
            mode = 0 if stat.S_ISLNK(status.st_mode) else status.st_mode
            found[os.path.relpath(path, os.fsencode(root)).hex()] = (mode, status.st_mtime_ns, content)
    return found
"""
"""Source for both sides: everything that must be the same of two trees, hex where it may be no text."""


def manifest(root):
    """The host's side of MANIFEST."""
    scope = {}
    exec(MANIFEST, scope)
    return scope["manifest"](root)


def make_tree(root, mib):
    """A tree with what tar and rsync keep: large and small files, empty ones, holes, links, odd names and modes."""
    root = Path(root)
    (root / "deep" / "er" / "still").mkdir(parents=True)
    (root / "small").mkdir()
    (root / "nothing").mkdir()
    block = os.urandom(1 << 20)
    for number, share in enumerate((mib // 2, mib // 4, mib - mib // 2 - mib // 4)):
        with (root / "deep" / f"large{number}").open("wb") as file:
            for piece in range(share):
                file.write(hashlib.sha256(b"%d/%d" % (number, piece)).digest() + block[32:])
    for number in range(300):
        (root / "small" / f"{number}").write_bytes(block[: number * 7])
    (root / "empty").touch()
    with (root / "sparse").open("wb") as file:
        file.seek(20 << 20)
        file.write(b"an end behind a hole")
        file.truncate(24 << 20)
    (root / "deep" / "er" / "ünïcödé 文件.txt").write_text("Grüße")
    Path(os.fsdecode(bytes(root) + b"/not \xff utf-8\n")).write_bytes(b"odd")
    (root / "deep" / "link").symlink_to("large0")
    (root / "dangling").symlink_to("nowhere")
    (root / "deep" / "er" / "up").symlink_to("../large1")
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o750)
    (root / "small" / "7").chmod(0o400)
    os.utime(root / "empty", ns=(1, 123456789_123456789))
    (root / "nothing").chmod(0o555)
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            os.utime(path, ns=(1, 1_000_000_000_000_000_007))
    return manifest(root)
