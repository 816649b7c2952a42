"""A vfio-user connection against a model of it: what is mapped, which descriptors are open, who may speak when."""

from __future__ import annotations

import gc
import os
import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.served_device import build_server

from virtserial.errors import PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.negotiation import encode
from virtserial.vfio_user.wire import HEADER_SIZE, Header

PAGE = 4096
VECTORS = 8
PAGES = st.integers(0, 7)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


class ConnectionModel(RuleBasedStateMachine):
    """A VMM that maps, unmaps, gives eventfds, leaves and comes back, and is sometimes wrong."""

    @initialize()
    def set_up(self):
        self.server = build_server(vectors=VECTORS)
        self.before = open_descriptors()
        self.maps, self.vectors, self.negotiated, self.refusals, self.id = {}, set(), False, 0, 0

    def ask(self, command, body, fds=(), flags=0):
        """Send a request; the errno of the reply (0: none), None if it wants no reply."""
        self.id = (self.id + 1) & 0xFFFF
        given = list(fds)
        header = Header(self.id, command, HEADER_SIZE + len(body), flags, 0)
        if not self.negotiated and command != wire.VFIO_USER_VERSION:
            with pytest.raises(PeerError, match="before VFIO_USER_VERSION"):
                self.server.handle(header, body, given)
            assert given == []
            return None
        answer = self.server.handle(header, body, given)
        assert given == []
        if flags:
            assert answer is None
            return None
        self.server.journal.record_consumed()
        reply = Header.unpack_from(answer)
        assert (reply.id, reply.command, reply.size) == (self.id, command, len(answer))
        return reply.error

    def expect(self, error, allowed):
        """An error where the model says so, and nowhere else; nothing is known of a posted or premature request."""
        if error is not None:
            assert (error == 0) == allowed
            self.refusals += not allowed

    @rule(good=st.booleans())
    def version(self, good):
        body = wire.Version(0 if good else 7, 0).pack() + encode({"max_msg_fds": 16})
        error = self.ask(wire.VFIO_USER_VERSION, body)
        self.expect(error, good and not self.negotiated)
        self.negotiated = self.negotiated or good

    @rule(first=PAGES, count=st.integers(0, 3), with_file=st.booleans(), file_pages=st.integers(0, 3))
    def dma_map(self, first, count, with_file, file_pages):
        fds = [os.memfd_create("guest")] if with_file else []
        for fd in fds:
            os.ftruncate(fd, file_pages * PAGE)
        body = wire.DmaMap(wire.DmaMap.FORMAT.size, 3, 0, first * PAGE, count * PAGE).pack()
        overlaps = any(first < start + size and start < first + count for start, size in self.maps.items())
        # The test's device does not look at a file's size until it is read, except where it maps the file.
        allowed = count > 0 and not overlaps
        error = self.ask(wire.VFIO_USER_DMA_MAP, body, fds)
        self.expect(error, allowed)
        if error == 0:
            self.maps[first] = count

    @rule(first=PAGES, count=st.integers(0, 9))
    def dma_unmap(self, first, count):
        end = first + count
        inside = {start for start, size in self.maps.items() if first <= start and start + size <= end}
        touched = {start for start, size in self.maps.items() if start < end and first < start + size}
        body = wire.DmaUnmap(wire.DmaUnmap.FORMAT.size, 0, first * PAGE, count * PAGE).pack()
        error = self.ask(wire.VFIO_USER_DMA_UNMAP, body)
        self.expect(error, count > 0 and touched == inside)
        if error == 0:
            for start in inside:
                del self.maps[start]

    @rule()
    def dma_unmap_all(self):
        body = wire.DmaUnmap(wire.DmaUnmap.FORMAT.size, wire.VFIO_DMA_UNMAP_FLAG_ALL, 0, 0).pack()
        if self.ask(wire.VFIO_USER_DMA_UNMAP, body) == 0:
            self.maps.clear()

    @rule(start=st.integers(0, VECTORS + 1), count=st.integers(1, 3), given=st.integers(0, 4))
    def give_eventfds(self, start, count, given):
        fds = [os.eventfd(0) for _ in range(given)]
        flags = wire.VFIO_IRQ_SET_DATA_EVENTFD | wire.VFIO_IRQ_SET_ACTION_TRIGGER
        body = wire.IrqSet(wire.IrqSet.FORMAT.size, flags, wire.VFIO_PCI_MSIX_IRQ_INDEX, start, count).pack()
        error = self.ask(wire.VFIO_USER_DEVICE_SET_IRQS, body, fds)
        self.expect(error, start + count <= VECTORS and given in (0, count))
        if error == 0:
            chosen = set(range(start, start + count))
            self.vectors = self.vectors | chosen if given else self.vectors - chosen

    @rule()
    def disable_interrupts(self):
        flags = wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_TRIGGER
        body = wire.IrqSet(wire.IrqSet.FORMAT.size, flags, wire.VFIO_PCI_MSIX_IRQ_INDEX, 0, 0).pack()
        if self.ask(wire.VFIO_USER_DEVICE_SET_IRQS, body) == 0:
            self.vectors.clear()

    @rule(command=st.integers(0, 30), body=st.binary(max_size=15), stray=st.integers(0, 3), posted=st.booleans())
    def nonsense(self, command, body, stray, posted):
        if command in (wire.VFIO_USER_VERSION, wire.VFIO_USER_DEVICE_RESET):
            return
        error = self.ask(command, body, [os.eventfd(0) for _ in range(stray)], 16 if posted else 0)
        self.expect(error, False)

    @rule(offset=st.integers(0, 0x5000), length=st.sampled_from((0, 1, 2, 4, 64)))
    def read_registers(self, offset, length):
        error = self.ask(wire.VFIO_USER_REGION_READ, struct.pack("<QII", offset, 4, length))
        self.expect(error, offset + length <= 0x4000)

    @rule()
    def leave(self):
        self.server.disconnected()
        self.negotiated = False
        self.maps.clear()
        self.vectors.clear()

    @invariant()
    def memory_and_descriptors_are_those_of_the_model(self):
        if not hasattr(self, "server"):
            return
        regions = {region.iova // PAGE: region.size // PAGE for region in self.server.device.memory}
        assert regions == self.maps
        files = sum(hasattr(region, "_fd") for region in self.server.device.memory)
        assert open_descriptors() == self.before + files + len(self.vectors)

    def teardown(self):
        if hasattr(self, "server"):
            self.leave()
            assert open_descriptors() == self.before


def test_a_connection_is_what_was_asked_for():
    # Descriptors that other tests have left to the garbage collector must not be closed while ours are counted.
    gc.collect()
    run_state_machine_as_test(
        ConnectionModel, settings=settings(max_examples=50, stateful_step_count=40)
    )
