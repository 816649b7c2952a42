"""A device that notes what its vhost-user server asks of it (vhost_user.backend.VhostDevice)."""

from __future__ import annotations

import os

from virtserial.errors import PeerError

F_MULTIPORT = 2
VERSION_1 = 1 << 32


class NotingDevice:
    """Queues 2 and 3 are needed with F_MULTIPORT.

    Attributes:
        calls: what it was asked, each a tuple of the method's name and its arguments.
        places: by queue, where it stands while the device has it.
        memory: by guest address, the descriptor of each region.
        descriptors: by kind and queue, what the device was given.
    """

    num_queues = 10
    max_queue_size = 1024
    features = VERSION_1 | F_MULTIPORT
    driver_features = 0
    needs_reset = False

    def __init__(self):
        self.calls = []
        self.places = {}
        self.memory = {}
        self.descriptors = {}
        self.config = bytearray(12)
        self.refuses_maps = False
        self.state = {}

    def needed_queues(self, features):
        return (2, 3) if features & F_MULTIPORT else ()

    def map_region(self, region, fd):
        if self.refuses_maps:
            os.close(fd)
            raise PeerError("no room")
        self.memory[region.guest] = fd

    def unmap_region(self, region):
        os.close(self.memory.pop(region.guest))

    def unmap_all(self):
        for fd in self.memory.values():
            os.close(fd)
        self.memory.clear()

    def set_descriptor(self, kind, index, fd):
        before = self.descriptors.pop((kind, index), -1)
        if before >= 0:
            os.close(before)
        if fd >= 0:
            self.descriptors[kind, index] = fd

    def set_backend_channel(self, fd):
        os.close(fd)
        self.calls.append(("set_backend_channel",))

    def set_up(self, features, fresh):
        if fresh:
            assert not self.places
        self.driver_features = features
        self.calls.append(("set_up", fresh))

    def run(self):
        self.calls.append(("run",))

    def stand_still(self):
        self.calls.append(("stand_still",))

    def reset(self):
        self.driver_features = 0
        self.places.clear()
        self.calls.append(("reset",))

    def start_ring(self, index, ring):
        assert index not in self.places
        self.places[index] = ring.progress
        self.calls.append(("start_ring", index, ring))

    def progress(self, index):
        return self.places.get(index, 0)

    def stop_ring(self, index):
        self.places.pop(index, None)
        self.calls.append(("stop_ring", index))

    def read_config(self, offset, length):
        return bytes(self.config[offset : offset + length]).ljust(length, b"\0")

    def write_config(self, offset, data):
        self.calls.append(("write_config", offset, data))

    def set_log(self, fd, offset, size):
        os.close(fd)
        self.calls.append(("set_log", offset, size))

    def log_writes(self, on):
        self.calls.append(("log_writes", on))

    def transfer(self, fd, load):
        os.close(fd)
        self.calls.append(("transfer", load))

    def transfer_result(self):
        return self.state

    def close(self):
        self.unmap_all()
        for fd in self.descriptors.values():
            os.close(fd)
        self.descriptors.clear()

    def take_calls(self):
        """The calls since the last time, by name."""
        taken, self.calls = self.calls, []
        return [call[0] for call in taken]
