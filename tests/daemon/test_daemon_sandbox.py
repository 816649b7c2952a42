"""What a worker cannot do, tried from inside of one: a handler whose callbacks are code that runs there."""

from __future__ import annotations

import json
import os
import socket

import pytest
from support.device_process import controller_options
from support.embedded_guest import EmbeddedGuest

from virtserial.daemon.worker.seccomp import ALLOWED, worker_filter

CANARY = '''
import ctypes, json, mmap, os, signal, socket, subprocess, sys, time
from virtserial.chardev.handler import PortHandler

LIBC = ctypes.CDLL(None, use_errno=True)
PAIR = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
STREAM = socket.socket(socket.AF_UNIX)
TCP = socket.socket()
ALLOWED_BEFORE = len(open("/proc/self/status").read())


def system_call(number, *arguments):
    def call():
        if LIBC.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
    return call


TRIALS = {
    "open": lambda: open("/etc/hostname"),
    "open for writing": lambda: open("FOLDER/made", "w"),
    "open by openat2": system_call(437, -100, b"/etc/hostname", ctypes.create_string_buffer(24), 24),
    "listdir": lambda: os.listdir("/"),
    "stat": lambda: os.stat("/etc"),
    "unlink": lambda: os.unlink("FOLDER/victim"),
    "rename": lambda: os.rename("FOLDER/victim", "FOLDER/other"),
    "mkdir": lambda: os.mkdir("FOLDER/made"),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "thread": system_call(56, 0x10f00, 0, 0, 0, 0),
    "socket": lambda: socket.socket(),
    "socketpair": lambda: socket.socketpair(),
    "bind": lambda: STREAM.bind("FOLDER/bound"),
    "listen": lambda: TCP.listen(),
    "connect by path": lambda: STREAM.connect("FOLDER/listener"),
    "connect by address": lambda: TCP.connect(("127.0.0.1", 1)),
    "send to a path": lambda: PAIR[0].sendto(b"x", "FOLDER/listener"),
    "ptrace": system_call(101, 16, os.getppid(), 0, 0),
    "process_vm_readv": system_call(310, os.getppid(), 0, 0, 0, 0, 0),
    "pidfd_getfd": system_call(438, 0, 0, 0),
    "kill the keeper": lambda: os.kill(os.getppid(), 0),
    "kill all": lambda: os.kill(-1, 0),
    "code in memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "io_uring": system_call(425, 8, ctypes.create_string_buffer(120)),
    "bpf": system_call(321, 0, 0, 0),
    "userfaultfd": system_call(323, 0),
    "mount": system_call(165, 0, 0, 0, 0, 0),
    "unshare": system_call(272, 0x10000000),
    "put input into a terminal": lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"),
    "set a limit": system_call(160, 7, ctypes.create_string_buffer(16)),
    # What it is there for, and what it must not break.
    "read a clock": time.time,
    "local time": lambda: time.localtime(),
    "random": lambda: os.urandom(8),
    "send": lambda: PAIR[0].send(b"x"),
    "memory": lambda: mmap.mmap(-1, 1 << 22).close(),
    "status": lambda: os.fstat(0),
}


class Canary(PortHandler):
    def guest_open(self):
        found = {}
        for name in NAMES or TRIALS:
            try:
                TRIALS[name]()
                found[name] = "done"
            except OSError as error:
                found[name] = error.errno
        self.port.write(json.dumps(found).encode() + b"\\n")
'''
HARMLESS = {"read a clock", "local time", "random", "send", "memory", "status"}
EPERM = 1


@pytest.fixture
def canary(start, folder):
    """Starts a device whose port `a` ends at a handler that tries everything; returns what it found."""
    (folder / "victim").touch()
    source = folder / "canary.py"

    def findings(*options, names=()):
        source.write_text(CANARY.replace("FOLDER", str(folder)).replace("NAMES", repr(names)))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "listener"))
            listener.listen()
            device = start(
                *controller_options(folder),
                "-chardev", f"handler,id=a,path={source}",
                "-device", "virtserialport,bus=ser0.0,nr=1,chardev=a,name=a",
                *options,
            )  # fmt: skip
            with EmbeddedGuest(folder / "ser0.sock", "a") as guest:
                received = guest.open("a")
                guest.run_until(lambda: received.data.endswith(b"\n"))
            return device, json.loads(bytes(received.data))

    return findings


def test_worker_can_do_nothing_but_move_bytes(canary, folder):
    device, found = canary()
    refused = {name for name, outcome in found.items() if outcome == EPERM}
    assert set(found) - refused == HARMLESS, found
    assert {found[name] for name in HARMLESS} == {"done"}
    assert (folder / "victim").exists()
    assert not (folder / "made").exists()
    # Nothing of that ended it.
    assert "takes over" not in device.log
    assert "sandbox: this system lacks" not in device.log


def test_sandbox_can_be_left(canary, folder):
    _, found = canary("--sandbox=off", names=("open", "stat", "connect by path"))
    assert set(found.values()) == {"done"}


def test_filter_allows_no_call_that_takes_a_path_or_makes_a_descriptor_of_an_address():
    forbidden = {
        "open", "openat", "openat2", "creat", "execve", "execveat", "connect", "bind", "listen", "accept", "accept4",
        "socket", "socketpair", "clone", "clone3", "fork", "vfork", "kill", "tkill", "ptrace", "unlink", "unlinkat",
        "rename", "mkdir", "mknod", "link", "symlink", "chmod", "chown", "mount", "pidfd_open", "memfd_create",
        "io_uring_setup", "process_vm_readv", "process_vm_writev", "stat", "lstat", "statx", "inotify_add_watch",
    }  # fmt: skip
    assert not forbidden & set(ALLOWED)
    assert len(set(ALLOWED.values())) == len(ALLOWED)
    # BPF_MAXINSNS
    assert len(worker_filter(os.getpid())) // 8 < 4096
