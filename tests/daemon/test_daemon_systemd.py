"""What a service manager and `virtserial serve` say to each other, over real sockets of both."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.device_process import controller_options, port_options
from support.embedded_guest import EmbeddedGuest
from support.places import ENVIRONMENT
from support.waiting import wait_for_socket

from virtserial.daemon.keeper import systemd
from virtserial.errors import ConfigError

ACTIVATE = """
import os, sys
fds, words = [int(fd) for fd in sys.argv[1].split(",")], sys.argv[2:]
for place, fd in enumerate(fds, 3):
    os.dup2(fd, place)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(words[0], words)
"""
"""Puts descriptors in the places that a service manager puts them in, and becomes the service."""
OUT_OF_THE_WAY = 100


class Manager:
    """A service manager for one service: a notification socket, and sockets that it listens at."""

    def __init__(self, folder, abstract=False):
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.settimeout(60)
        self.address = f"\0{folder}/notify" if abstract else f"{folder}/notify"
        self.channel.bind(self.address)
        self.folder = folder
        self.sockets = []
        self.process = None

    def listen(self, name):
        """A socket that listens at NAME.sock."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.folder}/{name}.sock")
        listener.listen(5)
        self.sockets.append(listener)

    def start(self, *options, names=()):
        environment = ENVIRONMENT | {"NOTIFY_SOCKET": self.address.replace("\0", "@")}
        command = [sys.executable, "-m", "virtserial", "serve", *options]
        passed = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD, OUT_OF_THE_WAY) for listener in self.sockets]
        if passed:
            environment |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(names)}
            command = [sys.executable, "-c", ACTIVATE, ",".join(map(str, passed)), *command]
        try:
            self.process = subprocess.Popen(
                command, env=environment, pass_fds=passed, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            for fd in passed:
                os.close(fd)

    def told(self):
        """The next notification, as a dict."""
        return dict(line.split("=", 1) for line in self.channel.recv(4096).decode().split("\n"))

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.communicate()
        for each in [self.channel, *self.sockets]:
            each.close()


@pytest.fixture(params=["path", "abstract"])
def manager(folder, request):
    manager = Manager(folder, request.param == "abstract")
    yield manager
    manager.close()


def test_it_says_that_it_is_ready_and_that_it_stops(manager, folder):
    manager.start(*controller_options(folder), *port_options(folder, "a"))
    assert manager.told() == {"READY": "1", "STATUS": "Serving 1 controllers, 1 ports"}
    # Ready means ready: whoever was told can connect at once.
    with EmbeddedGuest(f"{folder}/ser0.sock", "a"):
        manager.process.send_signal(signal.SIGTERM)
        assert manager.told() == {"STOPPING": "1"}
    assert manager.process.wait(60) == 0


def test_it_says_nothing_when_it_cannot_start(manager, folder):
    manager.start("-device", "virtio-serial,max_ports=0")
    assert manager.process.wait(60) == 2
    manager.channel.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.channel.recv(4096)


def test_a_manager_that_is_gone_is_no_reason_not_to_serve(manager, folder):
    manager.channel.close()
    manager.start(*controller_options(folder), *port_options(folder, "a"))
    wait_for_socket(f"{folder}/ser0.sock")
    with EmbeddedGuest(f"{folder}/ser0.sock", "a"):
        pass


def test_controllers_listen_at_the_sockets_of_their_names(manager, folder):
    manager.listen("b")
    manager.listen("a")
    options = [*("-device", "virtio-serial,id=serA"), *("-device", "virtio-serial,id=serB")]
    options += [*port_options(folder, "onA", bus="serA"), *port_options(folder, "onB", bus="serB")]
    manager.start(*options, names=["serB", "serA"])
    assert manager.told()["READY"] == "1"
    with EmbeddedGuest(f"{folder}/a.sock", "onA"), EmbeddedGuest(f"{folder}/b.sock", "onB"):
        pass
    manager.process.terminate()
    output, _ = manager.process.communicate(timeout=60)
    # What QEMU has to be told are the sockets' own paths, and they stay: they are the manager's.
    assert f'"id":"serA","socket":{{"path":"{folder}/a.sock"' in output
    assert Path(f"{folder}/a.sock").is_socket()
    assert Path(f"{folder}/b.sock").is_socket()


def test_a_client_from_before_the_start_is_served(manager, folder):
    """The point of socket activation: the VMM does not wait for the service."""
    manager.listen("early")
    with socket.socket(socket.AF_UNIX) as early:
        early.settimeout(60)
        early.connect(f"{folder}/early.sock")
        # VFIO_USER_VERSION 0.0 without capabilities.
        early.sendall(bytes.fromhex("0100 0100 14000000 00000000 00000000 0000 0000"))
        manager.start("-device", "virtio-serial,id=ser0", *port_options(folder, "a"), names=["virtserial@vm.socket"])
        assert early.recv(8)[:4] == bytes.fromhex("0100 0100")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["other", "ser0"], "('other'): no controller has this id ('ser0')"),
        (["ser0", "ser0"], "('ser0'): there are two"),
    ],
)
def test_a_socket_that_is_nobodys_is_refused(manager, folder, names, complaint):
    manager.listen("x")
    manager.listen("y")
    manager.start(*controller_options(folder), names=names)
    _, errors = manager.process.communicate(timeout=60)
    assert manager.process.returncode == 1
    assert errors.startswith("virtserial: passed descriptor ")
    assert complaint in errors


def test_only_a_socket_that_listens_at_a_path_is_taken(folder):
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagram.bind(f"{folder}/datagram")
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0{folder}/abstract")
    abstract.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    file = open(f"{folder}/file", "wb")  # noqa: SIM115  # its descriptor is given away
    for each in (datagram, abstract, tcp, file):
        fd = os.dup(each.fileno())
        each.close()
        with pytest.raises(ConfigError, match=r"passed descriptor \d+ \('ser0'\): "):
            systemd.listeners_by_controller([("ser0", fd)], ["ser0"])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize("count", ["x", "-1x", "999999", "9999999999999999999999"])
def test_descriptors_that_are_not_there_are_refused(count):
    with pytest.raises(ConfigError, match=f"LISTEN_FDS={count}: there are no such descriptors"):
        systemd.take_descriptors({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_descriptors_for_another_process_are_not_taken():
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "ser0", "OTHER": "1"}
    assert systemd.take_descriptors(environment) == []
    assert environment == {"OTHER": "1"}


def test_descriptors_go_with_a_notification(folder, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(f"{folder}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        fd = os.memfd_create("kept")
        os.write(fd, b"content")
        assert systemd.notify("FDSTORE=1", "FDNAME=state", fds=[fd])
        text, fds, _, _ = socket.recv_fds(channel, 100, 10)
    assert text == b"FDSTORE=1\nFDNAME=state"
    assert os.pread(fds[0], 10, 0) == b"content"
    for each in [fd, *fds]:
        os.close(each)
