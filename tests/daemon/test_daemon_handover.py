"""What one keeper leaves to the next: a document with descriptors, whole or refused, and nobody's connection torn."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from support.places import ENVIRONMENT

from virtserial.daemon.keeper import handover
from virtserial.daemon.keeper.handover import Handover
from virtserial.errors import StateError
from virtserial.machine.build import plug
from virtserial.machine.model import Machine
from virtserial.options.chardev_options import parse_chardev
from virtserial.options.device_options import parse_device


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def pipes(count):
    """The reading ends of pipes, each with its number in it."""
    for number in range(count):
        reading, writing = os.pipe()
        os.write(writing, b"%d" % number)
        os.close(writing)
        yield reading


@pytest.mark.parametrize("count", [0, 1, 252, 253, 254, 700])
def test_document_and_descriptors_arrive_in_order(count):
    before = open_descriptors()
    left = Handover()
    fds = list(pipes(count))
    left.document = {"numbers": [left.put(fd) for fd in fds], "text": "\udcff"}
    packed = left.pack()
    for fd in fds:
        os.close(fd)
    assert open_descriptors() == before + 1
    come = Handover.unpack(packed)
    assert come.document == {"numbers": list(range(count)), "text": "\udcff"}
    for number in reversed(come.document["numbers"]):
        fd = come.take(number)
        assert not os.get_inheritable(fd)
        assert os.read(fd, 100) == b"%d" % number
        os.close(fd)
        with pytest.raises(StateError, match=f"no descriptor {number}"):
            come.take(number)
    assert come.rest() == []
    assert open_descriptors() == before


def test_another_version_is_refused_and_vmms_are_parted_from_in_order(monkeypatch):
    before = open_descriptors()
    vmm, ours = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0virtserial-test-{os.getpid()}")
    listener.listen()
    left = Handover()
    left.document = {"vmm": left.put(ours.fileno()), "listener": left.put(listener.fileno())}
    vmm.sendall(b"nobody has read this")
    monkeypatch.setattr(handover, "VERSION", 1001)
    packed = left.pack()
    monkeypatch.undo()
    ours.close()
    listener.close()
    with pytest.raises(StateError, match="of version 1001, and this program reads version 2"):
        Handover.unpack(packed)
    # A socket that is closed with bytes in it would be ECONNRESET here.
    assert vmm.recv(1) == b""
    vmm.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"null", b"{}", b'{"version": "1"}', b"\xff", b"[" * 100_000])
def test_what_is_no_document_is_refused(text):
    before = open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fd = os.memfd_create("no document")
    os.write(fd, text)
    socket.send_fds(ours, [bytes(4)], [fd])
    os.close(fd)
    ours.close()
    with pytest.raises(StateError, match="makes no sense"):
        Handover.unpack(theirs.detach())
    assert open_descriptors() == before


def test_what_is_cut_short_is_refused():
    before = open_descriptors()
    for count, sent in ((1, 0), (3, 1), (1, 2), (1 << 30, 2)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        document = handover.write_document({})
        socket.send_fds(ours, [count.to_bytes(4, "little")], [document])
        if sent:
            socket.send_fds(ours, [b"+"], [document] * sent)
        os.close(document)
        ours.close()
        with pytest.raises(StateError, match="makes no sense"):
            Handover.unpack(theirs.detach())
    for fd in pipes(1):
        with pytest.raises(StateError, match="makes no sense"):
            Handover.unpack(fd)
    assert open_descriptors() == before


def test_machine_is_the_same_and_goes_on_counting():
    machine, chardevs = Machine(), {}
    for text in ("null,id=c", "socket,path=/x,server=on,wait=off,id=d", "hub,id=h,chardevs.0=c"):
        chardev = parse_chardev(text, chardevs)
        chardevs[chardev.id] = chardev
    for text in (
        "virtio-serial", "virtio-serial,id=s,max_ports=4,vectors=0", "virtio-serial,id=t",
        "virtconsole,bus=s.0,chardev=d,cols=80,rows=25", "virtserialport,bus=s.0,id=p,name=n",
        "virtserialport,bus=virtio-serial-bus.0",
    ):  # fmt: skip
        plug(machine, parse_device(text), chardevs, "/run")
    machine.remove_port(machine.find("p"))
    machine.remove_controller(machine.find("t"))
    next(machine.ports()).guest_open = True
    again = Machine.from_description(json.loads(json.dumps(machine.describe())))
    assert again.describe() == machine.describe()
    for each in (machine, again):
        plug(each, parse_device("virtio-serial"), chardevs, "/run")
        plug(each, parse_device("virtserialport,bus=s.0,id=p,name=n"), chardevs, "/run")
    assert again.describe() == machine.describe()


OLD_DOCUMENT = {
    # As the release before the codec has written it.
    "state_version": 1,
    "machine": {"counts": [1, 1, 1], "controllers": [], "ports": []},
    "objects": [],
    "chardevs": [{"id": "c", "recipe": ["null", {}], "saved": {}}],
    "held": [["vmm/0", {"type": "vmm", "controller": 0}, [0]]],
    "states": [[0, 1]],
    "listeners": [[0, {"path": "/x", "listener": 2, "made": [1, 2], "busy": True, "waiting": []}]],
    "connections": 0,
    "workers": {"inheritance": [], "restarts": 0, "upgrades": 0, "doubtful": 0},
    "allowed": None,
    "monitors": None,
    "words": [],
    "version": 1,
}


def test_document_of_the_release_before_is_refused_in_one_sentence():
    fd = os.memfd_create("old document")
    os.write(fd, json.dumps(OLD_DOCUMENT).encode())
    program = f"from virtserial.cli.serve import check; check({fd})"
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, pass_fds=[fd], capture_output=True, text=True, timeout=60
    )
    os.close(fd)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "it is of version 1, and this program reads version 2\n"
