"""The server's commands, by messages as bytes."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import struct

import pytest
from support.message_batches import handle_batch
from support.served_device import (
    NOTIFY,
    build_server,
    dma_map,
    dma_unmap,
    doorbell,
    handle,
    message,
    open_descriptors,
    region_read,
    region_write,
    sealed_memory,
    set_irqs,
    state_block,
    version,
)

from virtserial.errors import PeerError
from virtserial.memory.table import MAX_REGIONS
from virtserial.vfio_user import wire
from virtserial.vfio_user.device import VfioDevice
from virtserial.vfio_user.server import Server

NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = 1, 2, 4, 8, 16, 32
INTX, MSIX = 0, 2


def signalled(fd):
    return os.eventfd_read(fd) if select.select([fd], [], [], 0)[0] else 0


class TestFraming:
    @pytest.mark.parametrize("size", [0, 15, 16 + 16 + 65536 + 1, 0xFFFFFFFF])
    def test_impossible_sizes_end_the_stream(self, server, size):
        header = wire.Header(1, wire.VFIO_USER_DEVICE_RESET, size, 0, 0)
        with pytest.raises(PeerError, match="allowed are"):
            Server.check_header(header)
        with pytest.raises(PeerError, match="allowed are"):
            server.handle(header, b"", [])

    def test_a_size_that_is_not_the_bodys_ends_the_stream(self, server):
        with pytest.raises(PeerError, match="body of 3"):
            server.handle(wire.Header(1, wire.VFIO_USER_DEVICE_RESET, 20, 0, 0), b"123", [])

    @pytest.mark.parametrize("kind", [2, 15])
    def test_an_unknown_type_ends_the_stream(self, server, kind):
        with pytest.raises(PeerError, match="unknown type"):
            handle(server, message(wire.VFIO_USER_DEVICE_RESET, flags=kind))

    def test_a_reply_to_nothing_ends_the_stream(self, server):
        with pytest.raises(PeerError, match="answers no request"):
            handle(server, message(wire.VFIO_USER_DMA_READ, flags=wire.VFIO_USER_REPLY))

    @pytest.mark.parametrize("command", [0, 19, 0xFFFF, wire.VFIO_USER_DMA_READ, wire.VFIO_USER_DMA_WRITE])
    def test_unknown_commands_are_refused(self, server, command):
        assert handle(server, message(command, bytes(64))) == (errno.ENOSYS, b"")

    @pytest.mark.parametrize(
        "command",
        [
            wire.VFIO_USER_DEVICE_GET_REGION_IO_FDS,
            wire.VFIO_USER_DIRTY_PAGES,
            wire.VFIO_USER_DEVICE_FEATURE,
            wire.VFIO_USER_MIG_DATA_READ,
            wire.VFIO_USER_MIG_DATA_WRITE,
        ],
    )
    def test_optional_features_are_not_supported(self, server, command):
        assert handle(server, message(command, bytes(16))) == (errno.ENOTSUP, b"")

    @pytest.mark.parametrize("command", [1, 2, 3, 4, 5, 7, 8, 9, 10, 15])
    @pytest.mark.parametrize("length", [0, 1, 15])
    def test_short_bodies_are_refused(self, server, command, length):
        assert handle(server, message(command, bytes(length)))[0] == errno.EINVAL

    def test_a_refused_posted_message_has_no_reply(self, server):
        assert handle(server, message(77, flags=wire.VFIO_USER_NO_REPLY)) is None
        assert server.refusals == 1
        assert "77" in server.last_refusal

    def test_names_of_commands(self):
        assert wire.Header(0, 10, 0, 0, 0).name == "VFIO_USER_REGION_WRITE"
        assert wire.Header(0, 99, 0, 0, 0).name == "command 99"


class TestInfo:
    def test_device(self, server):
        assert handle(server, message(4, struct.pack("<IIII", 16, 0, 0, 0))) == (0, struct.pack("<IIII", 16, 3, 9, 5))

    @pytest.mark.parametrize(
        ("index", "flags", "size"), [(0, 0, 0), (1, 3, 4096), (4, 3, 0x4000), (6, 0, 0), (7, 3, 256), (8, 0, 0)]
    )
    def test_regions(self, server, index, flags, size):
        asked = struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)
        assert handle(server, message(5, asked)) == (0, struct.pack("<IIIIQQ", 32, flags, index, 0, size, 0))

    def test_a_larger_argsz_gets_what_there_is(self, server):
        asked = struct.pack("<IIIIQQ", 4096, 0, 7, 0, 0, 0)
        assert handle(server, message(5, asked)) == (0, struct.pack("<IIIIQQ", 32, 3, 7, 0, 256, 0))

    @pytest.mark.parametrize(("index", "flags", "count"), [(0, 7, 1), (1, 0, 0), (2, 1, 32), (3, 0, 0), (4, 0, 0)])
    def test_interrupts(self, server, index, flags, count):
        asked = struct.pack("<IIII", 16, 0, index, 0)
        assert handle(server, message(7, asked)) == (0, struct.pack("<IIII", 16, flags, index, count))

    @pytest.mark.parametrize(
        ("command", "payload"),
        [
            (4, struct.pack("<IIII", 15, 0, 0, 0)),
            (5, struct.pack("<IIIIQQ", 31, 0, 7, 0, 0, 0)),
            (7, struct.pack("<IIII", 0, 0, 0, 0)),
        ],
    )
    def test_argsz_below_the_structure_is_refused(self, server, command, payload):
        assert handle(server, message(command, payload))[0] == errno.EINVAL

    @pytest.mark.parametrize("index", [9, 0xFFFFFFFF])
    def test_indexes_past_the_last_are_refused(self, server, index):
        assert handle(server, message(5, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)))[0] == errno.EINVAL
        assert handle(server, message(7, struct.pack("<IIII", 16, 0, index, 0)))[0] == errno.EINVAL


class TestRegions:
    def test_read(self, server):
        assert handle(server, region_read(7, 0, 4)) == (0, struct.pack("<QII", 0, 7, 4) + b"\xf4\x1a\x43\x10")

    def test_write(self, server):
        assert handle(server, region_write(4, 0x14, b"\1")) == (0, struct.pack("<QII", 0x14, 4, 1))
        assert server.device.device.status == 1

    def test_posted_write(self, server):
        assert handle(server, region_write(4, 0x14, b"\1", flags=wire.VFIO_USER_NO_REPLY)) is None
        assert server.device.device.status == 1

    def test_a_doorbell_that_wants_a_reply(self, server):
        assert handle(server, region_write(4, NOTIFY + 8, b"\2\0")) == (0, struct.pack("<QII", NOTIFY + 8, 4, 2))
        assert server.device.doorbells == [2]

    @pytest.mark.parametrize(
        ("region", "offset", "count"),
        [(7, 253, 4), (7, 256, 1), (7, 2**64 - 1, 1), (7, 2**64 - 1, 0xFFFFFFFF), (9, 0, 1), (0, 0, 1), (4, 0, 65537)],
    )
    def test_accesses_past_a_region_are_refused(self, server, region, offset, count):
        assert handle(server, region_read(region, offset, count))[0] == errno.EINVAL
        write = struct.pack("<QII", offset, region, min(count, 65536)) + bytes(min(count, 65536))
        assert handle(server, message(wire.VFIO_USER_REGION_WRITE, write))[0] == errno.EINVAL or count == 65537

    def test_a_write_of_the_largest_size_fits_a_message(self, server):
        payload = struct.pack("<QII", 0, 4, 65536) + bytes(65536)
        assert handle(server, message(wire.VFIO_USER_REGION_WRITE, payload))[0] == errno.EINVAL  # BAR of 16 KiB

    @pytest.mark.parametrize("claimed", [0, 1, 3, 0xFFFFFFFF])
    def test_a_count_that_is_not_the_datas_is_refused(self, server, claimed):
        payload = struct.pack("<QII", 0x14, 4, claimed) + b"\1\2"
        assert handle(server, message(wire.VFIO_USER_REGION_WRITE, payload))[0] == errno.EINVAL
        assert server.device.device.status == 0

    def test_a_count_of_0_is_an_access_to_nothing(self, server):
        assert handle(server, region_read(7, 0, 0)) == (0, struct.pack("<QII", 0, 7, 0))
        assert handle(server, region_write(7, 0, b""))[0] == 0

    def test_reset(self, server):
        handle(server, region_write(4, 0x14, b"\1"))
        assert handle(server, message(wire.VFIO_USER_DEVICE_RESET)) == (0, b"")
        assert server.device.device.status == 0


class TestWriteMulti:
    def writes(self, *entries, count=None):
        payload = struct.pack("<Q", len(entries) if count is None else count)
        for offset, region, length, data in entries:
            payload += struct.pack("<QII8s", offset, region, length, data)
        return payload

    def test_all_are_written_in_order(self, server):
        payload = self.writes((0x14, 4, 1, b"\1"), (0x14, 4, 1, b"\3"), (NOTIFY + 4, 4, 2, b"\1\0"))
        assert handle(server, message(15, payload)) == (0, struct.pack("<Q", 3))
        assert server.device.device.status == 3
        assert server.device.doorbells == [1]

    def test_posted_as_qemu_sends_it(self, server):
        payload = self.writes(*[(NOTIFY, 4, 2, b"\0\0")] * 200)
        assert handle(server, message(15, payload, flags=wire.VFIO_USER_NO_REPLY)) is None
        assert server.device.doorbells == [0] * 200

    @pytest.mark.parametrize("count", [0, 2, 2**61, 2**64 - 1])
    def test_a_count_that_is_not_the_datas_is_refused(self, server, count):
        assert handle(server, message(15, self.writes((NOTIFY, 4, 2, b""), count=count)))[0] == errno.EINVAL

    def test_more_than_8_bytes_are_refused(self, server):
        assert handle(server, message(15, self.writes((0x20, 4, 9, b""))))[0] == errno.EINVAL

    def test_a_write_past_a_region_is_refused(self, server):
        assert handle(server, message(15, self.writes((0x4000, 4, 1, b""))))[0] == errno.EINVAL


class TestDmaMap:
    def test_sealed_memory_is_mapped(self, server):
        fd = sealed_memory(0x4000)
        os.pwrite(fd, b"hello", 0x2000)
        assert handle(server, dma_map(0x10000, 0x2000, offset=0x2000), [os.dup(fd)]) == (0, b"")
        assert server.device.memory.read(0x10000, 5) == b"hello"
        assert server.device.memory.mapped_view(0x10000, 16) is not None
        os.close(fd)

    def test_without_descriptor_as_qemu_maps_a_rom(self, server):
        assert handle(server, dma_map(0xFFFC0000, 0x40000, flags=1)) == (0, b"")

    def test_read_only_memory_is_not_writable(self, server):
        fd = sealed_memory(0x1000)
        assert handle(server, dma_map(0, 0x1000, flags=1), [fd])[0] == 0
        assert not next(iter(server.device.memory)).writable

    @pytest.mark.parametrize(
        ("iova", "size", "flags", "offset", "argsz"),
        [
            (0, 0, 3, 0, 32),
            (0x800, 0x1000, 3, 0, 32),
            (0, 0x1001, 3, 0, 32),
            (2**64 - 0x1000, 0x2000, 3, 0, 32),
            (0x1000, 2**64 - 0x1000, 3, 0, 31),
            (0, 0x1000, 0, 0, 32),
            (0, 0x1000, 4, 0, 32),
            (0, 0x1000, 0x80000003, 0, 32),
            (0, 0x1000, 3, 0x800, 32),
            (0, 0x1000, 3, 2**63, 32),
            (0, 0x1000, 3, 2**64 - 0x1000, 32),
        ],
    )
    def test_nonsense_is_refused_and_its_descriptor_closed(self, server, iova, size, flags, offset, argsz):
        fd = sealed_memory(0x1000)
        before = open_descriptors()
        assert handle(server, dma_map(iova, size, flags, offset, argsz), [fd])[0] == errno.EINVAL
        assert open_descriptors() == before - 1
        assert len(server.device.memory) == 0

    def test_the_last_page_of_all_may_be_mapped(self, server):
        assert handle(server, dma_map(2**64 - 0x1000, 0x1000))[0] == 0

    @pytest.mark.parametrize(("iova", "size"), [(0x2000, 0x1000), (0x1000, 0x2000), (0x3000, 0x8000), (0, 0x10000)])
    def test_an_overlap_is_eexist(self, server, iova, size):
        assert handle(server, dma_map(0x2000, 0x2000))[0] == 0
        assert handle(server, dma_map(iova, size))[0] == errno.EEXIST

    def test_two_descriptors_are_refused(self, server):
        assert handle(server, dma_map(0, 0x1000), [sealed_memory(4096), sealed_memory(4096)])[0] == errno.EINVAL

    def test_a_map_past_the_files_end_is_refused(self, server):
        assert handle(server, dma_map(0, 0x2000), [sealed_memory(0x1000)])[0] == errno.EINVAL

    def test_as_many_regions_as_a_vmm_may_have(self, server):
        for number in range(MAX_REGIONS):
            assert handle(server, dma_map(number * 0x2000, 0x1000))[0] == 0
        assert len(server.device.memory) == MAX_REGIONS
        assert handle(server, dma_unmap(0, 0, flags=2))[0] == 0
        assert len(server.device.memory) == 0


class TestDmaUnmap:
    def test_the_entry_comes_back(self, server):
        handle(server, dma_map(0x1000, 0x1000))
        assert handle(server, dma_unmap(0x1000, 0x1000)) == (0, struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000))
        assert len(server.device.memory) == 0

    def test_all(self, server):
        for iova in (0, 0x10000):
            handle(server, dma_map(iova, 0x1000))
        assert handle(server, dma_unmap(0, 0, flags=2)) == (0, struct.pack("<IIQQ", 24, 2, 0, 0))
        assert len(server.device.memory) == 0

    @pytest.mark.parametrize(
        ("iova", "size", "flags", "argsz", "expected"),
        [
            (0, 0x1000, 1, 40, errno.ENOTSUP),
            (0, 0, 3, 40, errno.ENOTSUP),
            (0, 0x1000, 4, 24, errno.EINVAL),
            (0x1000, 0, 2, 24, errno.EINVAL),
            (0, 0x1000, 2, 24, errno.EINVAL),
            (0, 0, 0, 24, errno.EINVAL),
            (0, 0x1000, 0, 23, errno.EINVAL),
            (2**64 - 0x1000, 0x2000, 0, 24, errno.EINVAL),
            (0x100, 0x1000, 0, 24, errno.EINVAL),
        ],
    )
    def test_nonsense_is_refused(self, server, iova, size, flags, argsz, expected):
        handle(server, dma_map(0, 0x1000))
        assert handle(server, dma_unmap(iova, size, flags, argsz))[0] == expected
        assert len(server.device.memory) == 1

    def test_a_part_of_a_region_is_refused(self, server):
        handle(server, dma_map(0, 0x2000))
        assert handle(server, dma_unmap(0, 0x1000))[0] == errno.EINVAL


class TestSetIrqs:
    @pytest.fixture
    def eventfds(self):
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)]
        yield fds
        for fd in fds:
            os.close(fd)

    def give(self, server, index, start, eventfds):
        return handle(server, set_irqs(index, EVENTFD | TRIGGER, start, len(eventfds)), list(map(os.dup, eventfds)))

    def test_eventfds_hear_of_triggers(self, server, eventfds):
        assert self.give(server, MSIX, 4, eventfds) == (0, b"")
        assert handle(server, set_irqs(MSIX, NONE | TRIGGER, 5, 2))[0] == 0
        assert [signalled(fd) for fd in eventfds] == [0, 1, 1]

    def test_booleans_choose(self, server, eventfds):
        self.give(server, MSIX, 0, eventfds)
        assert handle(server, set_irqs(MSIX, BOOL | TRIGGER, 0, 3, b"\1\0\2"))[0] == 0
        assert [signalled(fd) for fd in eventfds] == [1, 0, 1]

    def test_no_descriptors_take_eventfds_away(self, server, eventfds):
        self.give(server, MSIX, 0, eventfds)
        assert handle(server, set_irqs(MSIX, EVENTFD | TRIGGER, 1, 2))[0] == 0
        handle(server, set_irqs(MSIX, NONE | TRIGGER, 0, 3))
        assert [signalled(fd) for fd in eventfds] == [1, 0, 0]

    def test_a_count_of_0_disables_the_type(self, server, eventfds):
        self.give(server, MSIX, 0, eventfds)
        assert handle(server, set_irqs(MSIX, NONE | TRIGGER, 0, 0))[0] == 0
        assert not server.device.interrupts.uses_msix

    @pytest.mark.parametrize("data", [(NONE, b""), (BOOL, b"\1")])
    def test_intx_is_masked_and_unmasked(self, server, eventfds, data):
        flags, booleans = data
        self.give(server, INTX, 0, eventfds[:1])
        assert handle(server, set_irqs(INTX, flags | MASK, 0, 1, booleans))[0] == 0
        server.device.config_interrupt()
        assert signalled(eventfds[0]) == 0
        assert handle(server, set_irqs(INTX, flags | UNMASK, 0, 1, booleans))[0] == 0
        assert signalled(eventfds[0]) == 1

    def test_a_false_boolean_unmasks_nothing(self, server, eventfds):
        self.give(server, INTX, 0, eventfds[:1])
        handle(server, set_irqs(INTX, NONE | MASK, 0, 1))
        server.device.config_interrupt()
        assert handle(server, set_irqs(INTX, BOOL | UNMASK, 0, 1, b"\0"))[0] == 0
        assert signalled(eventfds[0]) == 0

    @pytest.mark.parametrize("action", [MASK, UNMASK])
    @pytest.mark.parametrize("data_type", [NONE, BOOL, EVENTFD])
    def test_msix_is_not_maskable(self, server, action, data_type):
        data = b"\1" if data_type == BOOL else b""
        assert handle(server, set_irqs(MSIX, data_type | action, 0, 1, data))[0] == errno.EINVAL

    @pytest.mark.parametrize("action", [MASK, UNMASK])
    def test_eventfds_for_masking_are_not_supported(self, server, action):
        assert handle(server, set_irqs(INTX, EVENTFD | action, 0, 1), [os.eventfd(0)])[0] == errno.ENOTSUP

    @pytest.mark.parametrize(
        "request_bytes",
        [
            set_irqs(MSIX, NONE | TRIGGER, 0, 1, argsz=19),
            set_irqs(MSIX, NONE | TRIGGER, 0, 1, argsz=21),
            set_irqs(5, NONE | TRIGGER, 0, 1),
            set_irqs(0xFFFFFFFF, NONE | TRIGGER, 0, 0),
            set_irqs(1, NONE | TRIGGER, 0, 1),
            set_irqs(MSIX, 0, 0, 1),
            set_irqs(MSIX, NONE, 0, 1),
            set_irqs(MSIX, TRIGGER, 0, 1),
            set_irqs(MSIX, NONE | BOOL | TRIGGER, 0, 1, b"\1"),
            set_irqs(MSIX, NONE | TRIGGER | UNMASK, 0, 1),
            set_irqs(MSIX, NONE | TRIGGER | 64, 0, 1),
            set_irqs(MSIX, NONE | TRIGGER, 32, 1),
            set_irqs(MSIX, NONE | TRIGGER, 31, 2),
            set_irqs(MSIX, NONE | TRIGGER, 0xFFFFFFFF, 0xFFFFFFFF),
            set_irqs(MSIX, NONE | TRIGGER, 1, 0),
            set_irqs(MSIX, BOOL | TRIGGER, 0, 0),
            set_irqs(MSIX, EVENTFD | TRIGGER, 0, 0),
            set_irqs(INTX, NONE | MASK, 0, 0),
            set_irqs(MSIX, BOOL | TRIGGER, 0, 2, b"\1"),
            set_irqs(MSIX, BOOL | TRIGGER, 0, 2, b"\1\1\1"),
            set_irqs(MSIX, BOOL | TRIGGER, 0, 2, b"\1\1", argsz=21),
        ],
    )
    def test_nonsense_is_refused(self, server, request_bytes):
        assert handle(server, request_bytes)[0] == errno.EINVAL

    @pytest.mark.parametrize("count", [1, 3])
    def test_another_number_of_descriptors_is_refused_and_they_are_closed(self, server, count):
        before = open_descriptors()
        fds = [os.eventfd(0) for _ in range(count)]
        assert handle(server, set_irqs(MSIX, EVENTFD | TRIGGER, 0, 2), fds)[0] == errno.EINVAL
        assert open_descriptors() == before

    def test_descriptors_with_another_data_type_are_refused(self, server):
        assert handle(server, set_irqs(MSIX, NONE | TRIGGER, 0, 1), [os.eventfd(0)])[0] == errno.EINVAL


class TestDescriptors:
    @pytest.mark.parametrize("whole", [region_read(7, 0, 4), message(13), message(99), doorbell(0), dma_unmap(0, 4096)])
    def test_stray_ones_are_closed(self, server, whole):
        before = open_descriptors()
        for _ in range(1000):
            handle(server, whole, [os.eventfd(0), os.eventfd(0)])
        assert open_descriptors() == before

    def test_they_are_closed_when_the_stream_ends(self):
        before = open_descriptors()
        with pytest.raises(PeerError):
            handle(build_server(), message(13), [os.eventfd(0)])
        assert open_descriptors() == before

    def test_all_are_closed_when_the_client_leaves(self, server):
        before = open_descriptors()
        handle(server, dma_map(0, 0x1000), [sealed_memory(0x1000)])
        handle(server, set_irqs(MSIX, EVENTFD | TRIGGER, 0, 2), [os.eventfd(0), os.eventfd(0)])
        handle(server, set_irqs(INTX, EVENTFD | TRIGGER, 0, 1), [os.eventfd(0)])
        handle(server, region_write(4, 0x14, b"\1"))
        server.disconnected()
        assert open_descriptors() == before
        assert len(server.device.memory) == 0
        assert server.device.device.status == 1, "the device's state is retained"

    def test_a_socket_instead_of_an_eventfd_does_us_no_harm(self, server):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            handle(server, set_irqs(MSIX, EVENTFD | TRIGGER, 0, 1), [os.dup(ours.fileno())])
            for _ in range(20000):
                handle(server, set_irqs(MSIX, NONE | TRIGGER, 0, 1))


NO_DOORBELLS = [
    region_read(7, 0, 4),
    doorbell(4),
    region_write(4, NOTIFY, b"\0\0"),
    region_write(4, NOTIFY, b"\0", flags=wire.VFIO_USER_NO_REPLY),
    region_write(1, NOTIFY, b"\0\0", flags=wire.VFIO_USER_NO_REPLY),
    region_write(4, NOTIFY + 1, b"\0\0", flags=wire.VFIO_USER_NO_REPLY),
    message(9, doorbell(0)[16:], flags=wire.VFIO_USER_NO_REPLY),
    doorbell(0)[:33],
]


class TestBatches:
    def test_doorbells_are_rung_in_one_go(self, server):
        batch = b"".join(map(doorbell, [0, 1, 2, 3, 1]))
        assert server.ring_doorbells(batch, 0, len(batch)) == len(batch)
        assert server.device.doorbells == [0, 1, 2, 3, 1]

    @pytest.mark.parametrize("other", NO_DOORBELLS)
    def test_they_stop_before_anything_else(self, server, other):
        batch = doorbell(1) + doorbell(2) + other
        assert server.ring_doorbells(batch, 34, len(batch)) == 68
        assert server.device.doorbells == [2]

    def test_one_alone_is_rung_as_such(self, server):
        alone = []
        server.device.ring_lone_doorbell = alone.append
        assert server.ring_lone_doorbell(bytearray(doorbell(3)))
        assert (alone, server.device.doorbells) == ([3], [])

    @pytest.mark.parametrize("other", [each for each in NO_DOORBELLS if len(each) == len(doorbell(0))])
    def test_nothing_else_is_rung_alone(self, server, other):
        assert not server.ring_lone_doorbell(bytearray(other))
        assert server.device.doorbells == []

    def test_before_the_version_there_are_none(self):
        server = build_server()
        assert server.ring_doorbells(doorbell(0), 0, 34) == 0
        assert not server.ring_lone_doorbell(bytearray(doorbell(0)))

    def test_a_mixed_batch(self, server):
        batch = doorbell(1) + region_read(7, 0, 4, 5) + doorbell(2) + region_read(7, 8, 4, 6) + doorbell(3)[:20]
        consumed, replies = handle_batch(server, bytearray(batch) + bytes(100), len(batch))
        assert consumed == len(batch) - 20
        assert [wire.Header.unpack_from(answer).id for answer in replies] == [5, 6]
        assert server.device.doorbells == [1, 2]

    def test_posted_writes_that_are_no_doorbells(self, server):
        posted = [
            region_write(4, 0x14, b"\1", flags=wire.VFIO_USER_NO_REPLY),
            region_write(4, 0x16, b"\3\0", flags=wire.VFIO_USER_NO_REPLY),
        ]
        batch = b"".join(posted)
        assert handle_batch(server, batch, len(batch)) == (len(batch), [])
        assert server.device.device.status == 1
        assert server.device.common.record.queue_select == 3

    def test_every_cut_leaves_a_whole_number_of_messages(self):
        messages = [version(), doorbell(0), region_read(7, 0, 2), doorbell(1)]
        batch = b"".join(messages)
        ends = [sum(map(len, messages[:count])) for count in range(len(messages) + 1)]
        for length in range(len(batch) + 1):
            consumed, _ = handle_batch(build_server(), batch, length)
            assert consumed == max(end for end in ends if end <= length)

    def test_an_impossible_header_ends_the_stream_before_its_body_is_there(self, server):
        with pytest.raises(PeerError, match="allowed are"):
            handle_batch(server, wire.Header(0, 9, 1 << 30, 0, 0).pack(), 16)


class TestSuccessor:
    """A server over the state of one that was killed."""

    def killed_and_succeeded(self, until):
        block = state_block()
        first = build_server(block)
        handle(first, version())
        until(first)
        return build_server(block)

    def test_it_goes_on_without_a_new_version(self):
        second = self.killed_and_succeeded(lambda first: None)
        assert second.negotiated
        assert handle(second, region_read(7, 0, 2))[0] == 0

    def test_a_request_that_was_applied_is_only_answered(self):
        whole = region_read(4, 0x1000, 1, message_id=9)
        header = wire.Header.unpack_from(whole)

        def until(first):
            first.device.config_interrupt()
            assert first.handle(header, whole[16:], [])[-1] == 2

        second = self.killed_and_succeeded(until)
        answer = second.handle(header, whole[16:], [])
        assert answer[-1] == 2, "reading ISR again would give 0"

    def test_the_rest_of_a_reply_is_sent(self):
        whole = region_read(7, 0, 4)
        header = wire.Header.unpack_from(whole)

        def until(first):
            first.handle(header, whole[16:], [])
            first.journal.record_sent(20)

        second = self.killed_and_succeeded(until)
        assert second.handle(header, whole[16:], []) == struct.pack("<QII", 0, 7, 4)[4:] + b"\xf4\x1a\x43\x10"
        second.journal.record_sent(16)
        assert second.handle(header, whole[16:], []) == b""

    def test_the_next_request_is_another_one_even_if_its_header_is_the_same(self):
        second = self.killed_and_succeeded(lambda first: handle(first, region_write(4, 0x14, b"\1")))
        assert handle(second, region_write(4, 0x14, b"\3"))[0] == 0
        assert second.device.device.status == 3
        assert handle(second, region_read(7, 0, 4))[0] == 0

    def test_its_descriptors_are_closed(self):
        whole = dma_map(0, 0x1000)
        header = wire.Header.unpack_from(whole)

        def until(first):
            first.handle(header, whole[16:], [sealed_memory(0x1000)])

        second = self.killed_and_succeeded(until)
        gc.collect()  # What earlier tests have left is closed now, not meanwhile.
        before = open_descriptors()
        assert second.handle(header, whole[16:], [sealed_memory(0x1000)]) is not None
        assert open_descriptors() == before


def test_what_is_served_here_is_a_vfio_device(server):
    assert isinstance(server.device, VfioDevice)


def test_payloads_compare_and_show_themselves():
    assert wire.Version(0, 1) == wire.Version(0, 1)
    assert wire.Version(0, 1) != wire.Version(0, 2)
    assert wire.DmaAccess(0, 1) != wire.Version(0, 1)
    assert repr(wire.DmaAccess(0x1000, 16)) == "DmaAccess(address=0x1000, count=0x10)"
