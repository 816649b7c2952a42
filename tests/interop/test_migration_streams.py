"""Streams that are damaged, and machines that are not the one that was saved: the destination ends with one line."""

from __future__ import annotations

import json
import struct
import zlib

import pytest
from support.guests.moved_guest import MACHINE, MovedGuest, Traffic

PORTS = {f"org.test.{number}": f"/dev/virtio-ports/org.test.{number}" for number in (1, 2)}
MAGIC = b"vtserial"
HEADER = struct.Struct("<8sIIQ")
"""Magic, version, CRC-32 of the rest, bytes of the rest."""


def words(controller=",max_ports=8,vectors=4", ports=(*PORTS,)):
    made = ["-device", f"virtio-serial-pci,id=ser0{controller}"]
    for number, name in enumerate(ports, 1):
        made += ["-chardev", f"socket,id=chr{number},path=FOLDER/{name},server=on,wait=off"]
        made += ["-device", f"virtserialport,nr={number},chardev=chr{number},name={name},bus=ser0.0"]
    return [*MACHINE, *made]


@pytest.fixture(scope="module")
def saved():
    """A guest that goes on, and the stream that it was saved to."""
    with MovedGuest(words()[len(MACHINE) :]) as guest:
        traffic = Traffic(guest, PORTS)
        traffic.check()
        guest.vm.qmp("stop")
        guest.vm.qmp("migrate", uri=f"file:{guest.folder}/stream")
        assert guest.vm.migration()["status"] == "completed"
        guest.vm.qmp("cont")
        yield guest, (guest.folder / "stream").read_bytes()
        traffic.check()
        traffic.close()


def ours(stream):
    """Where our part begins, and where it ends."""
    start = stream.index(MAGIC)
    _, _, _, size = HEADER.unpack_from(stream, start)
    return start, start + HEADER.size + size


def flipped(stream):
    start, end = ours(stream)
    at = (start + end) // 2
    return stream[:at] + bytes([stream[at] ^ 4]) + stream[at + 1 :]


def of_another_version(stream):
    start, _ = ours(stream)
    return stream[: start + 8] + b"\x63" + stream[start + 9 :]


def cut(stream):
    start, end = ours(stream)
    return stream[: (start + end) // 2]


def senseless(stream):
    """What has a checksum, and a value of another kind."""
    start, end = ours(stream)
    text = stream[start + HEADER.size : end]
    state = json.loads(text)
    state["controllers"][0]["bus"] = 7
    changed = json.dumps(state, separators=(",", ":")).encode().ljust(len(text))[: len(text)]
    head = HEADER.pack(MAGIC, 1, zlib.crc32(changed), len(changed))
    return stream[:start] + head + changed + stream[end:]


DAMAGE = {
    flipped: "saved state: it is damaged",
    of_another_version: "saved state: version 99",
    cut: "",
    senseless: "saved state: ",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_stream_ends_the_destination(saved, damage):
    guest, stream = saved
    path = guest.folder / damage.__name__
    path.write_bytes(damage(stream))
    fork = guest.fork("-incoming", f"file:{path}")
    try:
        assert fork.process.wait(30) == 1
        print(fork.said())
        assert DAMAGE[damage] in fork.said()
        assert "Traceback" not in fork.said()
    finally:
        fork.close()


OTHERS = {
    "more ports": (words(ports=(*PORTS, "org.test.3")), "port 3 is not plugged in there and a serial port named"),
    "fewer ports": (words(ports=["org.test.1"]), "port 2 is a serial port named 'org.test.2' there and not plugged in"),
    "another name": (words(ports=["org.test.1", "x"]), "port 2 is a serial port named 'org.test.2' there and a serial"),
    "other max_ports": (words(",max_ports=9,vectors=4"), "max_ports is 8, this device has 9"),
    "other vectors": (words(",max_ports=8,vectors=5"), "vectors is 4, this device has 5"),
    "another bus": (
        [word.replace("ser0", "other") for word in words()],
        "the stream has virtio-serial controllers with the buses ser0.0, here are other.0",
    ),
}


@pytest.mark.parametrize("which", OTHERS)
def test_another_machine_ends_with_a_line(saved, which):
    guest, stream = saved
    path = guest.folder / "whole"
    path.write_bytes(stream)
    before = guest.words
    guest.words, wanted = OTHERS[which]
    fork = guest.fork("-incoming", f"file:{path}")
    guest.words = before
    try:
        assert fork.process.wait(30) == 1
        print(fork.said())
        assert wanted in fork.said()
        assert len([line for line in fork.said().splitlines() if line.startswith("virtserial-qemu:")]) == 1
    finally:
        fork.close()
