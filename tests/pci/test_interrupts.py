"""INTx and MSI-X through real eventfds."""

from __future__ import annotations

import os
import select

import pytest
from support.console_function import build_function

from virtserial.errors import PeerError
from virtserial.pci import layout

INTX, MSIX = 0, 2
BAR = layout.REGISTER_BAR


class Eventfd:
    """The VMM's side of an interrupt; the device gets a duplicate of it, as over a socket."""

    def __init__(self, flags=os.EFD_NONBLOCK | os.EFD_CLOEXEC):
        self.fd = os.eventfd(0, flags)

    def for_device(self):
        return os.dup(self.fd)

    def count(self):
        """Signals since the last call."""
        if not select.select([self.fd], [], [], 0)[0]:
            return 0
        return os.eventfd_read(self.fd)


@pytest.fixture
def eventfds():
    made = []

    def make(count, **options):
        new = [Eventfd(**options) for _ in range(count)]
        made.extend(new)
        return new

    yield make
    for eventfd in made:
        os.close(eventfd.fd)


def set_vector(function, offset, vector, queue=0):
    function.region_write(BAR, 0x16, queue.to_bytes(2, "little"))
    function.region_write(BAR, offset, vector.to_bytes(2, "little"))


def read_isr(function):
    return function.region_read(BAR, layout.ISR_AREA, 1)[0]


class TestMsix:
    def test_queues_and_configuration_have_their_vectors(self, function, eventfds):
        fds = eventfds(3)
        function.set_irq_eventfds(MSIX, 0, [fd.for_device() for fd in fds])
        set_vector(function, 0x10, 0)
        set_vector(function, 0x1A, 1, queue=4)
        set_vector(function, 0x1A, 2, queue=5)
        function.queue_interrupt(4)
        function.config_interrupt()
        assert [fd.count() for fd in fds] == [1, 1, 0]
        function.queue_interrupt(5)
        function.queue_interrupt(5)
        assert [fd.count() for fd in fds] == [0, 0, 2]
        assert read_isr(function) == 0

    def test_no_vector_means_no_interrupt(self, function, eventfds):
        (fd,) = eventfds(1)
        function.set_irq_eventfds(MSIX, 0, [fd.for_device()])
        function.queue_interrupt(0)
        assert fd.count() == 0
        assert not function.interrupts.pending

    def test_a_message_without_eventfd_is_pending_and_sent_later(self, function, eventfds):
        fd, other = eventfds(2)
        function.set_irq_eventfds(MSIX, 0, [other.for_device()])
        set_vector(function, 0x1A, 2)
        function.queue_interrupt(0)
        assert function.region_read(1, 2048, 8) == b"\4\0\0\0\0\0\0\0"
        function.set_irq_eventfds(MSIX, 2, [fd.for_device()])
        assert fd.count() == 1
        assert function.region_read(1, 2048, 8) == bytes(8)

    def test_enabled_in_configuration_space_vectors_rule(self, function, eventfds):
        intx, fd = eventfds(2)
        function.set_irq_eventfds(INTX, 0, [intx.for_device()])
        function.region_write(7, function._msix_flags, b"\0\x80")
        set_vector(function, 0x10, 1)
        function.config_interrupt()
        assert intx.count() == 0
        function.set_irq_eventfds(MSIX, 1, [fd.for_device()])
        assert fd.count() == 1

    def test_disabled_as_a_whole(self, function, eventfds):
        fds = eventfds(3)
        function.set_irq_eventfds(MSIX, 0, [fd.for_device() for fd in fds])
        function.set_irq_eventfds(MSIX, 0, [])
        set_vector(function, 0x10, 0)
        function.config_interrupt()
        assert [fd.count() for fd in fds] == [0, 0, 0]
        assert read_isr(function) == layout.VIRTIO_PCI_ISR_CONFIG

    def test_replaced_and_removed_one_by_one(self, function, eventfds):
        first, second = eventfds(2)
        function.set_irq_eventfds(MSIX, 1, [first.for_device()])
        function.set_irq_eventfds(MSIX, 1, [second.for_device()])
        function.trigger_irqs(MSIX, 0, 3)
        assert (first.count(), second.count()) == (0, 1)
        function.set_irq_eventfds(MSIX, 1, [-1])
        assert not function.interrupts.uses_msix

    def test_reset_forgets_what_is_pending_and_keeps_eventfds(self, function, eventfds):
        fds = eventfds(3)
        function.trigger_irqs(MSIX, 0, 3)
        function.reset()
        function.set_irq_eventfds(MSIX, 0, [fd.for_device() for fd in fds])
        assert [fd.count() for fd in fds] == [0, 0, 0]
        function.reset()
        function.trigger_irqs(MSIX, 1, 1)
        assert [fd.count() for fd in fds] == [0, 1, 0]

    def test_table_reads_back_and_pending_bits_are_not_writable(self, function):
        function.region_write(1, 16, b"\xaa" * 16)
        assert function.region_read(1, 0, 48) == bytes(16) + b"\xaa" * 16 + bytes(16)
        function.region_write(1, 2040, b"\xff" * 16)
        function.region_write(1, 3000, b"\xff" * 16)
        assert function.region_read(1, 2040, 16) == b"\xff" * 8 + bytes(8)
        assert function.region_read(1, 3000, 16) == b"\0" * 16


class TestIntx:
    @pytest.fixture
    def line(self, function, eventfds):
        (fd,) = eventfds(1)
        function.set_irq_eventfds(INTX, 0, [fd.for_device()])
        return fd

    def test_signalled_once_until_unmasked(self, function, line):
        function.queue_interrupt(0)
        function.queue_interrupt(1)
        function.config_interrupt()
        assert line.count() == 1
        function.unmask_irqs(INTX, 0, 1)
        assert line.count() == 1, "nobody read ISR: the level is still high"

    def test_reading_isr_lets_go_of_the_line(self, function, line):
        function.queue_interrupt(0)
        function.config_interrupt()
        assert function.region_read(7, 0x06, 2) == b"\x18\0"
        assert function.region_read(BAR, layout.ISR_AREA, 4) == b"\3\0\0\0"
        assert read_isr(function) == 0
        assert function.region_read(7, 0x06, 2) == b"\x10\0"
        line.count()
        function.unmask_irqs(INTX, 0, 1)
        assert line.count() == 0
        function.queue_interrupt(0)
        assert line.count() == 1

    def test_masked_by_the_vmm(self, function, line):
        function.mask_irqs(INTX, 0, 1)
        function.queue_interrupt(0)
        assert line.count() == 0
        function.unmask_irqs(INTX, 0, 1)
        assert line.count() == 1

    def test_disabled_by_the_driver(self, function, line):
        function.region_write(7, 0x04, b"\0\4")
        function.queue_interrupt(0)
        assert line.count() == 0
        function.region_write(7, 0x04, b"\0\0")
        assert line.count() == 1

    def test_a_new_eventfd_hears_of_a_high_level(self, function, line, eventfds):
        function.queue_interrupt(0)
        (second,) = eventfds(1)
        function.set_irq_eventfds(INTX, 0, [second.for_device()])
        assert (line.count(), second.count()) == (1, 1)

    def test_without_eventfd_nothing_happens(self, function):
        function.queue_interrupt(0)
        function.trigger_irqs(INTX, 0, 1)
        assert read_isr(function) == 1

    def test_triggered_by_the_vmm(self, function, line):
        function.trigger_irqs(INTX, 0, 1)
        assert line.count() == 1

    def test_taken_away(self, function, line):
        function.set_irq_eventfds(INTX, 0, [])
        function.queue_interrupt(0)
        assert line.count() == 0

    def test_counts_and_flags(self, function):
        assert [function.irq_count(index) for index in range(5)] == [1, 0, 3, 0, 0]
        assert [function.irq_flags(index) for index in range(5)] == [7, 0, 1, 0, 0]


class TestHostileEventfds:
    def test_a_full_pipe_does_not_block_us(self, function):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, bytes(65536))
        os.set_blocking(writer, True)
        function.set_irq_eventfds(MSIX, 0, [writer])
        function.trigger_irqs(MSIX, 0, 1)
        os.close(reader)
        function.trigger_irqs(MSIX, 0, 1)

    def test_a_saturated_eventfd_does_not_block_us(self, function, eventfds):
        (fd,) = eventfds(1, flags=os.EFD_CLOEXEC)
        os.eventfd_write(fd.fd, 2**64 - 2)
        function.set_irq_eventfds(INTX, 0, [fd.for_device()])
        function.queue_interrupt(0)
        assert fd.count() == 2**64 - 2

    def test_a_descriptor_that_cannot_be_written_is_refused_and_all_are_closed(self, function):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(PeerError, match="cannot be used"):
            function.set_irq_eventfds(MSIX, 0, [os.eventfd(0), -1, os.open("/", os.O_PATH)])
        assert len(os.listdir("/proc/self/fd")) == before
        assert not function.interrupts.uses_msix


def test_close_gives_every_descriptor_back():
    before = len(os.listdir("/proc/self/fd"))
    function, _ = build_function(vectors=64)
    function.set_irq_eventfds(MSIX, 0, [os.eventfd(0) for _ in range(64)])
    function.set_irq_eventfds(INTX, 0, [os.eventfd(0)])
    function.interrupts.close()
    assert len(os.listdir("/proc/self/fd")) == before
