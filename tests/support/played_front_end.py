"""A vhost-user front end that says what a file of tests/vhost_user/sequences says, over memory of the file's form.

A message is the request's name, then its numbers in the order of the protocol's fields.  `ack` behind them is
NEED_REPLY.  SET_MEM_TABLE sends every region of the file; ADD_MEM_REG names one by its number.  A list in the list
is said for each queue in turn.  Words stand for numbers that nobody knows before:

| word | number |
|---|---|
| Q, SIZE | the queue, and the size that the driver has given it, 0 if it has not set it up |
| DESC, USED, AVAIL | the front end's addresses of the areas that the driver has given the queue |
| LOG | the guest's address of its used ring |
| AVAIL_INDEX | the queue's available index |
| BASE | the position that the back end has given for the queue |
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import tomllib

from support.places import ROOT
from support.ring_builder import RingBuilder, split_places
from support.waiting import PATIENCE

from virtserial.vhost_user import wire
from virtserial.virtio.features import VIRTIO_F_EVENT_IDX

SEQUENCES = ROOT / "tests" / "vhost_user" / "sequences"
LIMIT = 60 * PATIENCE
"""Seconds for what must come."""
STATE, NUMBER = struct.Struct("<II"), wire.U64
FIELDS = {
    "SET_FEATURES": NUMBER,
    "SET_PROTOCOL_FEATURES": NUMBER,
    "SET_STATUS": NUMBER,
    "SET_VRING_NUM": STATE,
    "SET_VRING_BASE": STATE,
    "SET_VRING_ENABLE": STATE,
    "GET_VRING_BASE": STATE,
    "SET_VRING_ADDR": wire.LAYOUTS[wire.VringAddress],
    "SET_VRING_KICK": NUMBER,
    "SET_VRING_CALL": NUMBER,
    "SET_VRING_ERR": NUMBER,
    "SET_DEVICE_STATE_FD": STATE,
    "GET_CONFIG": wire.CONFIG,
}
"""The payload of each request that has one of fixed form."""
ANSWERED = ("GET_", "CHECK_DEVICE_STATE", "SET_DEVICE_STATE_FD")
"""How the names of requests begin that have a reply of their own."""


def load(name):
    """A file of sequences."""
    return tomllib.loads((SEQUENCES / f"{name}.toml").read_text())


class PlayedMemory:
    """Guest memory as a front end has it: each region a part of a file, at addresses of the guest and its own."""

    def __init__(self, regions, sealed):
        self.regions = regions
        sizes = {}
        for region in regions:
            sizes[region["file"]] = max(sizes.get(region["file"], 0), region["offset"] + region["size"])
        self.fds, self._maps = {}, {}
        for file, size in sizes.items():
            fd = self.fds[file] = os.memfd_create(file, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            if sealed:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._maps[file] = mmap.mmap(fd, size)
        self._next = 0

    def _find(self, address, key="guest"):
        for region in self.regions:
            if region[key] <= address < region[key] + region["size"]:
                return region, address - region[key]
        raise AssertionError(f"{key} address {address:#x} is in no region")

    def guest_address(self, user):
        """The guest's address of one of the front end's."""
        region, inside = self._find(user, "user")
        return region["guest"] + inside

    def user_address(self, guest):
        region, inside = self._find(guest)
        return region["user"] + inside

    def read(self, address, length):
        region, inside = self._find(address)
        at = region["offset"] + inside
        return self._maps[region["file"]][at : at + length]

    def write(self, address, data):
        region, inside = self._find(address)
        at = region["offset"] + inside
        self._maps[region["file"]][at : at + len(data)] = data

    def start_buffers(self, address):
        """Buffers are from here on."""
        self._next = address

    def allocate(self, length):
        address, self._next = self._next, self._next + length
        return address

    def buffer(self, data):
        address = self.allocate(len(data))
        self.write(address, data)
        return address

    def close(self):
        for file, fd in self.fds.items():
            self._maps[file].close()
            os.close(fd)


class PlayedFrontEnd:
    """A connection to a back end, and the rings of its queues.

    Attributes:
        rings: by queue, what the driver fills.
        features: what SET_FEATURES has said.
        state: what the back end has written into the pipe or socket of SET_DEVICE_STATE_FD.
    """

    def __init__(self, path, sequence):
        self._sequence = sequence
        self.memory = PlayedMemory(sequence["memory"], sequence["sealed"])
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        self._channel, self._their_channel = socket.socketpair()
        self._eventfds = {}
        self._starts, self._sizes, self._bases = [], {}, {}
        self.rings = {}
        self.features = 0
        self.state = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        self._channel.close()
        self._their_channel.close()
        for fd in self._eventfds.values():
            os.close(fd)
        self.memory.close()

    def set_up(self, boot):
        """A driver begins anew: its queues are empty, and where they are at this boot."""
        self.rings.clear()
        self._starts = self._sequence["rings"][boot]
        self.memory.start_buffers(self._sequence["buffers"])

    def say(self, part):
        """Send the messages of a part of the sequence, and get every answer that the front end waits for."""
        for step in self._sequence[part]:
            if isinstance(step, str):
                self._say(step)
                continue
            for queue, size in enumerate(self._sequence["queues"]):
                for line in step:
                    self._say(line, queue, size)

    # Messages

    def _say(self, line, queue=0, size=0):
        name, *words = line.split()
        flags = wire.NEED_REPLY if words[-1:] == ["ack"] else 0
        numbers = [self._number(word, queue, size) for word in words if word != "ack"]
        request = getattr(wire, f"VHOST_USER_{name}")
        payload, fds = self._payload(name, numbers)
        self._send(wire.message(request, payload, flags), fds)
        if name.startswith(ANSWERED) or flags:
            answer = self._receive(line, request)
            self._answered(name, line, numbers, answer, fds)

    def _number(self, word, queue, size):
        if word in ("DESC", "USED", "AVAIL", "LOG"):
            places = split_places(self._starts[queue], size, self._sequence["ring_alignment"]) if size else (0, 0, 0)
            guest = places[{"DESC": 0, "AVAIL": 1}.get(word, 2)]
            return guest if word == "LOG" else self.memory.user_address(guest)
        if word == "BASE":
            return self._bases[queue]
        if word == "AVAIL_INDEX":
            return self.rings[queue].idx
        return {"Q": queue, "SIZE": size}[word] if word in ("Q", "SIZE") else int(word, 0)

    def _payload(self, name, numbers):
        """Payload and descriptors of a request, and what the front end then knows."""
        memory = self.memory
        if name == "SET_MEM_TABLE":
            regions = memory.regions
            table = b"".join(self._region(region) for region in regions)
            return wire.TABLE.pack(len(regions), 0) + table, [memory.fds[region["file"]] for region in regions]
        if name in ("ADD_MEM_REG", "REM_MEM_REG"):
            region = memory.regions[numbers[0]]
            return wire.SLOT_PADDING + self._region(region), [memory.fds[region["file"]]] * (name == "ADD_MEM_REG")
        if name == "SET_BACKEND_REQ_FD":
            return b"", [self._their_channel.fileno()]
        if name == "SET_DEVICE_STATE_FD":
            self._state_end, theirs = socket.socketpair()
            return STATE.pack(*numbers), [theirs.detach()]
        payload = FIELDS[name].pack(*numbers) if name in FIELDS else b""
        if name == "GET_CONFIG":
            payload += bytes(numbers[1])
        elif name == "SET_FEATURES":
            self.features = numbers[0]
        elif name == "SET_VRING_NUM":
            self._sizes[numbers[0]] = numbers[1]
        elif name == "SET_VRING_ADDR":
            self._place_ring(wire.VringAddress._make(numbers))
        elif name in ("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"):
            return payload, [self._eventfd(name, numbers[0])] if numbers[0] < wire.VRING_NO_DESCRIPTOR else []
        return payload, []

    @staticmethod
    def _region(region):
        return wire.pack(wire.MemoryRegion(*(region[key] for key in ("guest", "size", "user", "offset"))))

    def _eventfd(self, name, queue):
        """One for each purpose of each queue, or one for all calls."""
        key = (name, 0 if name == "SET_VRING_CALL" and self._sequence.get("one_call") else queue)
        if key not in self._eventfds:
            self._eventfds[key] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._eventfds[key]

    def _place_ring(self, address):
        queue = address.queue
        if queue in self.rings or not self._sizes[queue]:
            return
        places = [self.memory.guest_address(each) for each in (address.descriptor, address.available, address.used)]
        ring = RingBuilder(self.memory, self._sizes[queue], bool(self.features & VIRTIO_F_EVENT_IDX), places)
        self.memory.write(ring.desc, bytes(16 * ring.size))
        self.memory.write(ring.avail, bytes(6 + 2 * ring.size))
        self.memory.write(ring.used, bytes(6 + 8 * ring.size))
        self.rings[queue] = ring

    def _send(self, data, fds):
        sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
        self._socket.sendall(data[sent:])

    def _receive(self, line, request):
        """The payload of a reply, which every front end here checks like this."""
        header = wire.unpack_header(self._exactly(line, wire.HEADER_SIZE))
        assert (header.request, header.flags) == (request, wire.VERSION | wire.REPLY), f"{line}: {header}"
        return self._exactly(line, header.size)

    def _exactly(self, line, size):
        data = b""
        while len(data) < size:
            piece, ancillary, _, _ = self._socket.recvmsg(size - len(data), socket.CMSG_SPACE(4))
            assert piece, f"{line}: the back end has closed the connection"
            assert not ancillary, f"{line}: a descriptor came"
            data += piece
        return data

    def _answered(self, name, line, numbers, answer, fds):
        if name == "GET_VRING_BASE":
            queue, self._bases[numbers[0]] = STATE.unpack(answer)
            assert queue == numbers[0], line
        elif name == "GET_CONFIG":
            assert wire.CONFIG.unpack(answer[: wire.CONFIG.size])[:2] == tuple(numbers[:2]), line
            assert len(answer) == wire.CONFIG.size + numbers[1], line
        elif name == "SET_DEVICE_STATE_FD":
            os.close(fds[0])
            assert NUMBER.unpack(answer) == (wire.VRING_NO_DESCRIPTOR,), line
            with self._state_end:
                if numbers[0]:
                    self._state_end.sendall(self.state)
                else:
                    self.state = b"".join(iter(lambda: self._state_end.recv(65536), b""))
        elif not name.startswith("GET_"):
            assert NUMBER.unpack(answer) == (0,), f"{line}: refused"

    # The driver's rings

    def add(self, queue, **parts):
        """Make a chain available, and kick."""
        self.rings[queue].add(**parts)
        os.eventfd_write(self._eventfds["SET_VRING_KICK", queue], 1)

    def wait(self, queue):
        """What the device has used of a queue, something at least; it signals that, or this fails."""
        ring = self.rings[queue]
        call = self._eventfd("SET_VRING_CALL", queue)
        while not (done := ring.harvest()):
            ring.set_used_event(ring.seen)
            if ring.used_idx == ring.seen:
                assert select.select([call], [], [], LIMIT)[0], f"queue {queue}: no call"
                os.eventfd_read(call)
        return done
