"""MSI-X that the function sends itself: to QEMU, which aborts when it deletes a device that it saw MSI-X on."""

from __future__ import annotations

import os
import random
import struct

import pytest
from support.console_function import build_function

from virtserial.pci import layout

MSIX, CONFIG = 2, 7
VECTORS = 3
CAPABILITY_SIZE = 12
ENABLE, MASKALL = 0x8000, 0x4000
MASTER = layout.PCI_COMMAND_MASTER
ADDRESS = 0xFEE01000


class Writer:
    """Notes the messages; takes none while `is_full`."""

    def __init__(self):
        self.messages = []
        self.is_full = False
        self.retries = 0

    def write_message(self, address, data):
        if not self.is_full:
            self.messages.append((address, data))
        return not self.is_full

    def ask_for_retry(self):
        self.retries += 1

    def taken(self):
        messages, self.messages = self.messages, []
        return messages


class Guest:
    """A driver behind QEMU, which has read the capabilities and reset the function."""

    def __init__(self, block=None, vectors=VECTORS):
        self.writer = Writer()
        self.function, self.block = build_function(vectors, block=block, message_writer=self.writer)
        if block is None:
            self.function.client_negotiated(deletes_only_without_msix=True)
            self.function.reset()

    def close(self):
        self.function.interrupts.close()

    def set_up(self):
        for vector in range(VECTORS):
            self.entry(vector, ADDRESS, 0x40 + vector)
        self.command(MASTER)
        self.control(ENABLE)

    def entry(self, vector, address, data, control=0):
        self.function.region_write(layout.MSIX_BAR, 16 * vector, struct.pack("<QII", address, data, control))

    def mask(self, vector, masked):
        self.function.region_write(layout.MSIX_BAR, 16 * vector + 12, masked.to_bytes(4, "little"))

    def command(self, value):
        self.function.region_write(CONFIG, layout.PCI_COMMAND, value.to_bytes(2, "little"))

    def control(self, value):
        self.function.region_write(CONFIG, find_msix(self.function) + 2, value.to_bytes(2, "little"))

    def pending_bits(self):
        return int.from_bytes(self.function.region_read(layout.MSIX_BAR, 2048, 8), "little")

    def retry(self):
        self.function.messages.send_pending()


def capabilities(function):
    """The list as [(id, offset)]."""
    found, at = [], function.region_read(CONFIG, layout.PCI_CAPABILITY_LIST, 1)[0]
    while at:
        kind, following = function.region_read(CONFIG, at, 2)
        found.append((kind, at))
        at = following
    return found


def find_msix(function):
    return next(at for kind, at in capabilities(function) if kind == layout.PCI_CAP_ID_MSIX)


@pytest.fixture
def guest():
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def running(guest):
    guest.set_up()
    return guest


class TestWhoSeesIt:
    def test_qemu_sees_a_vendor_specific_capability_until_it_resets(self):
        function, _ = build_function(VECTORS, message_writer=Writer())
        function.client_negotiated(deletes_only_without_msix=True)
        hidden = capabilities(function)
        assert layout.PCI_CAP_ID_MSIX not in dict(hidden)
        at = hidden[-1][1]
        assert function.region_read(CONFIG, at, CAPABILITY_SIZE) == b"\x09\0\x0c" + bytes(9)
        function.reset()
        shown = capabilities(function)
        assert [offset for _, offset in shown] == [offset for _, offset in hidden]
        assert shown[-1] == (layout.PCI_CAP_ID_MSIX, at)

    @pytest.mark.parametrize("width", [1, 2, 4, 16])
    def test_it_is_hidden_at_any_offset_and_width(self, width):
        function, _ = build_function(VECTORS, message_writer=Writer())
        function.client_negotiated(deletes_only_without_msix=True)
        whole = function.region_read(CONFIG, 0, 256)
        assert b"".join(function.region_read(CONFIG, at, width) for at in range(0, 256, width)) == whole

    def test_the_next_qemu_finds_it_hidden_again(self, guest):
        guest.function.reset()
        guest.function.client_negotiated(deletes_only_without_msix=True)
        assert layout.PCI_CAP_ID_MSIX not in dict(capabilities(guest.function))

    def test_other_clients_see_it_at_once_and_give_eventfds(self):
        function, _ = build_function(VECTORS, message_writer=Writer())
        function.client_negotiated(deletes_only_without_msix=False)
        assert layout.PCI_CAP_ID_MSIX in dict(capabilities(function))
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        function.set_irq_eventfds(MSIX, 0, [os.dup(eventfd)])
        function.trigger_irqs(MSIX, 0, 1)
        assert os.eventfd_read(eventfd) == 1
        os.close(eventfd)
        function.interrupts.close()

    def test_a_client_that_gives_eventfds_is_signalled_by_them(self, running):
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        running.function.set_irq_eventfds(MSIX, 1, [os.dup(eventfd)])
        running.function.trigger_irqs(MSIX, 1, 1)
        assert os.eventfd_read(eventfd) == 1
        assert not running.writer.messages
        running.function.set_irq_eventfds(MSIX, 0, [])
        running.function.trigger_irqs(MSIX, 1, 1)
        assert running.writer.taken() == [(ADDRESS, 0x41)]
        os.close(eventfd)

    def test_without_a_writer_nothing_is_hidden(self, function):
        function.client_negotiated(deletes_only_without_msix=True)
        assert layout.PCI_CAP_ID_MSIX in dict(capabilities(function))

    def test_without_vectors_there_is_nothing_to_hide(self):
        function, _ = build_function(0, message_writer=Writer())
        before = capabilities(function)
        function.client_negotiated(deletes_only_without_msix=True)
        assert capabilities(function) == before
        function.reset()


class TestMessages:
    def test_queues_and_configuration_have_their_vectors(self, running):
        registers = running.function
        registers.region_write(4, 0x10, b"\0\0")
        registers.region_write(4, 0x16, b"\4\0")
        registers.region_write(4, 0x1A, b"\2\0")
        registers.config_interrupt()
        registers.queue_interrupt(4)
        registers.queue_interrupt(3)  # has no vector
        assert running.writer.taken() == [(ADDRESS, 0x40), (ADDRESS, 0x42)]
        assert running.pending_bits() == 0

    @pytest.mark.parametrize(
        ("close", "reopen"),
        [
            (lambda guest: guest.control(ENABLE | MASKALL), lambda guest: guest.control(ENABLE)),
            (lambda guest: guest.control(0), lambda guest: guest.control(ENABLE)),
            (lambda guest: guest.command(0), lambda guest: guest.command(MASTER)),
            (lambda guest: guest.mask(1, 1), lambda guest: guest.mask(1, 0)),
        ],
        ids=["function mask", "disabled", "bus mastering", "vector mask"],
    )
    def test_held_back_and_sent_once(self, running, close, reopen):
        close(running)
        running.function.trigger_irqs(MSIX, 1, 1)
        running.function.trigger_irqs(MSIX, 1, 1)
        running.retry()
        assert running.writer.taken() == []
        assert running.pending_bits() == 0b10
        before = running.writer.retries
        reopen(running)
        assert running.writer.retries > before
        running.retry()
        running.retry()
        assert running.writer.taken() == [(ADDRESS, 0x41)]
        assert running.pending_bits() == 0

    def test_after_a_reset_every_vector_is_masked(self, running):
        running.function.trigger_irqs(MSIX, 0, 1)
        running.function.reset()
        assert running.function.region_read(layout.MSIX_BAR, 0, 48) == (bytes(12) + b"\1\0\0\0") * 3
        running.command(MASTER)
        running.control(ENABLE)
        running.function.trigger_irqs(MSIX, 0, 3)
        assert running.writer.taken() == [(ADDRESS, 0x40)]
        assert running.pending_bits() == 0b111

    def test_a_virtio_reset_forgets_what_is_pending_and_keeps_the_table(self, running):
        running.mask(0, 1)
        running.function.trigger_irqs(MSIX, 0, 1)
        running.function.region_write(4, 0x14, b"\0")
        assert running.pending_bits() == 0
        running.function.trigger_irqs(MSIX, 1, 1)
        assert running.writer.taken() == [(ADDRESS, 0x41)]

    def test_a_new_address_takes_effect(self, running):
        """As Linux changes the affinity: mask, address, data, unmask."""
        running.function.trigger_irqs(MSIX, 1, 1)
        running.mask(1, 1)
        running.function.trigger_irqs(MSIX, 1, 1)
        running.function.region_write(1, 16, (0xFEE02000).to_bytes(4, "little"))
        running.function.region_write(1, 24, (0x99).to_bytes(4, "little"))
        running.mask(1, 0)
        running.retry()
        running.function.trigger_irqs(MSIX, 1, 1)
        assert running.writer.taken() == [(ADDRESS, 0x41), (0xFEE02000, 0x99), (0xFEE02000, 0x99)]

    def test_a_full_socket_keeps_it_pending(self, running):
        running.writer.is_full = True
        running.function.trigger_irqs(MSIX, 0, 3)
        assert running.pending_bits() == 0b111
        running.writer.is_full = False
        running.retry()
        assert [data for _, data in running.writer.taken()] == [0x40, 0x41, 0x42]

    def test_pending_bits_are_not_writable(self, running):
        running.function.region_write(layout.MSIX_BAR, 2040, b"\xff" * 16)
        assert running.pending_bits() == 0
        running.retry()
        assert not running.writer.messages


class TestWhatTheGuestChooses:
    @pytest.mark.parametrize(
        "address",
        [0, 0x1000, 0xFEDFFFFC, 0xFEF00000, 0xFEE00001, 0xFEE00002, 0xFEE00003, 0x1_FEE00000, 0xFFFFFFFF_FEE00000]
        + [1 << bit for bit in range(64)],
    )
    def test_an_address_outside_the_interrupt_range_is_never_written(self, running, address):
        running.entry(1, address, 0xDEAD)
        running.function.trigger_irqs(MSIX, 1, 1)
        running.retry()
        assert running.writer.taken() == []
        assert running.pending_bits() == 0b10
        assert running.function.ignored_accesses
        running.entry(1, 0xFEEFFFFC, 0x77)
        running.retry()
        assert running.writer.taken() == [(0xFEEFFFFC, 0x77)]

    def test_a_storm_of_unmasking_sends_no_more_than_was_signalled(self, running):
        running.function.trigger_irqs(MSIX, 1, 1)
        for _ in range(1000):
            running.mask(1, 1)
            running.mask(1, 0)
            running.control(ENABLE | MASKALL)
            running.control(ENABLE)
            running.retry()
        assert running.writer.taken() == [(ADDRESS, 0x41)]
        assert running.writer.retries == 0, "nothing waited"

    def test_any_writes_in_any_order(self, running):
        """Whatever is written into the BAR and the capability: only interrupts, and no more than signals."""
        chance = random.Random(3)
        signals = 0
        control = find_msix(running.function) + 2
        for _ in range(5000):
            match chance.randrange(5):
                case 0:
                    offset = chance.randrange(4096)
                    data = chance.randbytes(min(chance.choice([1, 2, 4, 8, 64]), 4096 - offset))
                    running.function.region_write(layout.MSIX_BAR, offset, data)
                case 1:
                    running.entry(chance.randrange(3), chance.choice([ADDRESS, 0, 1 << 40]), 1, chance.randrange(2))
                case 2:
                    running.function.region_write(CONFIG, control, chance.randbytes(2))
                case 3:
                    running.command(chance.choice([0, MASTER]))
                case _:
                    running.function.trigger_irqs(MSIX, chance.randrange(3), 1)
                    signals += 1
            if chance.random() < 0.3:
                running.retry()
        sent = running.writer.taken()
        assert 0 < len(sent) <= signals
        assert all(address >> 20 == 0xFEE for address, _ in sent)


class TestTakeOver:
    def test_a_successor_has_table_pending_bits_and_what_is_shown(self, running):
        running.mask(2, 1)
        running.writer.is_full = True
        running.function.trigger_irqs(MSIX, 0, 3)
        successor = Guest(running.block)
        assert find_msix(successor.function)
        assert successor.function.pending_vectors == {0, 1, 2}
        successor.retry()
        assert successor.writer.taken() == [(ADDRESS, 0x40), (ADDRESS, 0x41)]
        successor.mask(2, 0)
        successor.retry()
        assert successor.writer.taken() == [(ADDRESS, 0x42)]

    def test_a_successor_of_one_that_was_hidden_hides_it(self):
        function, block = build_function(VECTORS, message_writer=Writer())
        function.client_negotiated(deletes_only_without_msix=True)
        successor = Guest(block)
        assert layout.PCI_CAP_ID_MSIX not in dict(capabilities(successor.function))
