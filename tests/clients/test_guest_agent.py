"""The real qemu-guest-agent in a Linux guest, on a port of ours."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time

import pytest
from support.fetched import fetch_or_skip
from support.waiting import wait_until

from virtserial.rig import Guest
from virtserial.rig.programs import programs

NAME = "org.qemu.guest_agent.0"
MANAGED = "org.test.managed"
SYNC_TIMEOUT = 60


class Agent:
    """A client of the agent, as libvirt is one: guest-sync-delimited first, then a command at a time."""

    def __init__(self, connection):
        self._socket = connection
        self._socket.settimeout(SYNC_TIMEOUT)
        self._received = b""
        mark = int.from_bytes(os.urandom(4), "big")
        # 0xff ends whatever half a request stands in the agent's parser, and comes back before the answer.
        self.send({"execute": "guest-sync-delimited", "arguments": {"id": mark}}, b"\xff")
        while b"\xff" not in self._received:
            self._receive()
        self._received = self._received.rpartition(b"\xff")[2]
        assert self._line() == {"return": mark}

    def send(self, request, before=b""):
        self._socket.sendall(before + json.dumps(request).encode() + b"\n")

    def __call__(self, command, **arguments):
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.send({"execute": command, "arguments": arguments})
        answer = self._line()
        assert "return" in answer, answer
        return answer["return"]

    def _line(self):
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _receive(self):
        data = self._socket.recv(65536)
        assert data, "the agent's port was closed"
        self._received += data


@contextlib.contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SYNC_TIMEOUT)
        connection.connect(path)
        yield Agent(connection)


@pytest.fixture(scope="module")
def files():
    return fetch_or_skip(programs, "qemu-guest-agent").guest_files("qemu-ga")


@pytest.fixture(scope="module")
def path(our_device, module_folder, files):
    """The socket of a port that a guest's agent serves; another agent serves a port whose chardev is the client."""
    path = f"{module_folder}/agent"
    options = ["-device", "virtio-serial", "-chardev", f"socket,id=ga,path={path},server=on,wait=off"]
    options += ["-device", f"virtserialport,chardev=ga,name={NAME}"]
    options += ["-chardev", f"socket,id=manager,path={module_folder}/manager,reconnect-ms=100"]
    options += ["-device", f"virtserialport,chardev=manager,name={MANAGED}"]
    with our_device.attach(options) as attached, Guest(attached.arguments, files=files) as guest:
        for name in (NAME, MANAGED):
            start_agent(guest, name)
        yield path


def start_agent(guest, name):
    port, state = f"/dev/virtio-ports/{name}", f"/var/run/{name}"
    guest.check(f"mkdir -p {state} /var/lib/qemu-ga")
    guest.check(f"for n in $(seq 1200); do [ -e {port} ] && exit; sleep 0.05; done; exit 1")
    guest.start(f"qemu-ga -m virtio-serial -p {port} -t {state} -l {state}/log -v")


def test_ping_and_info(path):
    with connected(path) as agent:
        assert agent("guest-ping") == {}
        assert {"guest-exec", "guest-file-read"} <= {each["name"] for each in agent("guest-info")["supported_commands"]}


def test_exec_gives_output_and_status(path):
    with connected(path) as agent:
        command = "echo to stdout; echo to stderr >&2; exit 3"
        pid = agent("guest-exec", path="/bin/sh", arg=["-c", command], capture_output=True)["pid"]
        status = wait_until(lambda: (s := agent("guest-exec-status", pid=pid))["exited"] and s)
    assert status["exitcode"] == 3
    assert base64.b64decode(status["out-data"]) == b"to stdout\n"
    assert base64.b64decode(status["err-data"]) == b"to stderr\n"


def test_a_file_is_written_and_read_back(path):
    """Both directions of the port with lines of some 700 KiB."""
    content = os.urandom(1 << 19)
    with connected(path) as agent:
        handle = agent("guest-file-open", path="/tmp/file", mode="w+")
        written = agent("guest-file-write", handle=handle, buf_b64=base64.b64encode(content).decode())
        assert written["count"] == len(content)
        assert agent("guest-file-seek", handle=handle, offset=0, whence="set")["position"] == 0
        read = agent("guest-file-read", handle=handle, count=len(content))
        assert base64.b64decode(read["buf-b64"]) == content
        assert agent("guest-file-read", handle=handle, count=1)["eof"]
        assert agent("guest-file-close", handle=handle) == {}


def test_it_survives_its_clients(path):
    """Clients that leave in the middle of a request, or of an answer, as a restarted libvirtd does."""
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(path)
            rude.sendall(b'{"execute": "guest-in')
        with connected(path) as agent:
            assert agent("guest-ping") == {}
            agent.send({"execute": "guest-info"})


@pytest.mark.usefixtures("path")
def test_it_survives_a_server_that_comes_and_goes(module_folder):
    """The chardev is the client: `reconnect-ms=`, as management software that listens has it."""
    manager = f"{module_folder}/manager"
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(SYNC_TIMEOUT)
            listener.bind(manager)
            listener.listen(1)
            connection, _ = listener.accept()
            with connection:
                assert Agent(connection)("guest-ping") == {}
        os.unlink(manager)
        time.sleep(0.2)
