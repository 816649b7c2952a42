"""What a worker cannot do, tried from inside of one: a handler whose callbacks are code that runs there."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import resource
import socket
from pathlib import Path

import pytest
from support.device_process import controller_options
from support.embedded_guest import EmbeddedGuest

from virtserial.daemon.worker.sandbox import confine
from virtserial.daemon.worker.seccomp import CALLS, Process, table, worker_filter

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
    "status": system_call(5, 0, ctypes.create_string_buffer(144)),
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
        "open", "openat", "openat2", "creat", "execve", "execveat", "connect", "bind", "listen",
        "socket", "socketpair", "clone", "clone3", "fork", "vfork", "kill", "tkill", "ptrace", "unlink", "unlinkat",
        "rename", "mkdir", "mknod", "link", "symlink", "chmod", "chown", "mount", "pidfd_open", "memfd_create",
        "io_uring_setup", "process_vm_readv", "process_vm_writev", "stat", "lstat", "newfstatat", "statx",
        "inotify_add_watch", "dup2", "dup3", "close_range", "ftruncate", "capset", "sendmmsg",
    }  # fmt: skip
    assert not forbidden & {call.name for call in CALLS}
    assert len({call.number for call in CALLS}) == len({call.name for call in CALLS}) == len(CALLS)
    # BPF_MAXINSNS
    assert len(worker_filter(Process(os.getpid(), 3))) // 8 < 4096


def test_numbers_are_the_kernels():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    numbers = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", header.read_text(), re.MULTILINE))
    assert {call.name: str(call.number) for call in CALLS} == {call.name: numbers[call.name] for call in CALLS}


def test_document_has_the_table():
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    listed = text.partition("<!-- calls -->\n")[2].partition("<!-- end of calls -->")[0].splitlines()
    assert listed[2:] == table()


class Confined:
    """Forks processes that confine themselves, do one thing, and report how it ended."""

    def __init__(self, channel):
        self.channel_fd = channel.fileno()

    def outcome(self, action):
        """The errno of `action` in a confined process, "done", or the number of the signal that ended it."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                lacking = confine(self.channel_fd)
                try:
                    action()
                    outcome = "done"
                except OSError as error:
                    outcome = error.errno
                os.write(write, json.dumps([lacking, outcome]).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as report:
            text = report.read()
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            return os.WTERMSIG(status)
        lacking, outcome = json.loads(text)
        assert lacking == []
        return outcome


LIBC = ctypes.CDLL(None, use_errno=True)


def system_call(number, *arguments):
    def call():
        if LIBC.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "")

    return call


@pytest.fixture
def confined():
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, other:
        confined = Confined(channel)
        confined.channel = channel
        yield confined


def test_a_path_cannot_be_looked_at(confined):
    buffer = ctypes.create_string_buffer(256)
    assert confined.outcome(system_call(262, -100, b"/etc/hostname", buffer, 0x1000)) == EPERM  # newfstatat
    assert confined.outcome(system_call(332, -100, b"/etc/hostname", 0x1000, 0, buffer)) == EPERM  # statx


def test_no_socket_sends_to_an_address(confined, tmp_path):
    path = str(tmp_path / "datagrams")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket() as listener,
        socket.socket() as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
    ):
        receiver.bind(path)
        receiver.setblocking(False)
        bound.bind(("127.0.0.1", 0))
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0)
        assert confined.outcome(lambda: unix.sendmsg([b"x"], [], 0, path)) == EPERM
        assert confined.outcome(lambda: unix.sendto(b"x", path)) == EPERM
        assert confined.outcome(lambda: udp.sendmsg([b"x"], [], 0, bound.getsockname())) == EPERM
        assert confined.outcome(lambda: tcp.sendmsg([b"x"], [], socket.MSG_FASTOPEN, listener.getsockname())) == EPERM
        assert confined.outcome(system_call(44, tcp.fileno(), b"x", 1, socket.MSG_FASTOPEN, None, 0)) == EPERM
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_channel_carries_descriptors_and_keeps_its_number(confined, tmp_path):
    def pass_on():
        socket.send_fds(confined.channel, [b"x"], [0])

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "datagrams"))
        assert confined.outcome(pass_on) == "done"
        # An address beside the channel's message leads nowhere.
        assert confined.outcome(lambda: confined.channel.sendmsg([b"x"], [], 0, str(tmp_path / "datagrams"))) == "done"
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
    assert confined.outcome(lambda: os.close(confined.channel_fd)) == EPERM
    assert confined.outcome(system_call(33, 0, confined.channel_fd)) == EPERM  # dup2
    assert confined.outcome(system_call(292, 0, confined.channel_fd, 0)) == EPERM  # dup3
    assert confined.outcome(system_call(436, 3, 1 << 20, 0)) == EPERM  # close_range


def test_root_is_nobody_special(confined):
    def look():
        sets = dict(line.split(":\t", 1) for line in status.read().splitlines())
        names = ["CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if root else [])]
        wrong = {name: sets[name] for name in names if int(sets[name], 16)}
        if wrong or sets["NoNewPrivs"] != "1":
            raise OSError(f"{wrong}, NoNewPrivs {sets['NoNewPrivs']}")

    root = os.geteuid() == 0
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # Opened before it is confined, read after.
            status = open("/proc/self/status")  # noqa: SIM115
            confine(confined.channel_fd)
            look()
            os.write(write, b"done")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as report:
        assert report.read() == "done"


@pytest.mark.parametrize(
    ("level", "option"),
    [(1, 36), (1, 32), (6, 19), (0, 64), (1, 1), (1, 13), (41, 64), (1, 25)],
    ids=["SO_MARK", "SO_SNDBUFFORCE", "TCP_REPAIR", "IPT_SO_SET_REPLACE", "SO_DEBUG", "SO_LINGER",
         "IP6T_SO_SET_REPLACE", "SO_BINDTODEVICE"],
)  # fmt: skip
def test_options_of_sockets_stay_as_they_are(confined, level, option):
    with socket.socket() as tcp:
        assert confined.outcome(lambda: tcp.setsockopt(level, option, bytes(200))) == EPERM
        assert confined.outcome(lambda: tcp.getsockopt(6, 11, 100)) == EPERM  # TCP_INFO
        assert confined.outcome(lambda: tcp.getsockopt(1, 4)) == "done"


def test_limits_of_others_are_not_read_and_its_own_not_set(confined):
    buffer = ctypes.create_string_buffer(16)
    assert confined.outcome(system_call(302, os.getpid(), 7, None, buffer)) == EPERM
    assert confined.outcome(system_call(302, 0, 7, buffer, None)) == EPERM
    assert confined.outcome(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)) == "done"


def test_a_listening_socket_that_was_handed_over_can_be_accepted_on(confined):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")
        listener.listen()
        client.connect(listener.getsockname())
        assert confined.outcome(lambda: listener.accept()[0].recv(1, socket.MSG_DONTWAIT)) == errno.EAGAIN


def test_ledger_that_the_keeper_maps_cannot_shrink(confined):
    fd = os.memfd_create("x", os.MFD_CLOEXEC)
    os.ftruncate(fd, 4096)
    assert confined.outcome(lambda: os.ftruncate(fd, 0)) == EPERM
    os.close(fd)
