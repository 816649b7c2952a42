"""A device goes on where another one was saved, and its driver cannot tell."""

from __future__ import annotations

import struct

import pytest
from support.console_guest import ADD, CONTROL_RX, NAME, OPEN, PORT_READY, READY, REMOVE, FakeHost, queues_of
from support.movable_guest import CONSOLE, SERIAL, VECTORS, MovableGuest

from virtserial.errors import ConfigError, DriverError
from virtserial.pci import layout
from virtserial.pci.function import VFIO_PCI_CONFIG_REGION_INDEX
from virtserial.state.device_state import load, save
from virtserial.state.pci_state import PciState
from virtserial.testing.memory_driver import MemoryTransport
from virtserial.virtio.status import DEVICE_NEEDS_RESET

RX, TX = queues_of(SERIAL)


class TestStreams:
    def test_a_half_sent_chain_goes_on_at_its_next_byte(self, guest):
        guest.hosts[SERIAL].room = 5
        guest.send(TX, b"hello world", b" and more")
        assert guest.hosts[SERIAL].taken == b"hello"
        assert guest.rings[TX].harvest() == []
        guest.move()
        assert guest.hosts[SERIAL].taken == b" world and more"
        assert len(guest.rings[TX].harvest()) == 2

    def test_receive_buffers_that_were_posted_before_are_filled_after(self, guest):
        guest.post(RX, 8, 8)
        guest.hosts[SERIAL].feed(b"one")
        guest.run()
        guest.move()
        guest.hosts[SERIAL].feed(b"two")
        guest.run()
        assert guest.received(RX) == b"onetwo"

    def test_what_a_console_could_not_write_is_written_there(self, guest):
        guest.hosts[CONSOLE].room = 0
        guest.send(queues_of(CONSOLE)[1], b"kernel says hello")
        assert guest.hosts[CONSOLE].taken == b""
        guest.move()
        assert guest.hosts[CONSOLE].taken == b"kernel says hello"

    def test_a_device_that_stands_still_takes_and_gives_nothing(self, guest):
        guest.post(RX, 8)
        guest.device.pause()
        reads = guest.hosts[SERIAL].reads
        guest.hosts[SERIAL].feed(b"wait")
        guest.send(TX, b"wait")
        guest.hosts[CONSOLE].drain()
        guest.run()
        assert guest.hosts[SERIAL].taken == b""
        assert guest.hosts[SERIAL].reads == reads
        guest.device.resume()
        guest.run()
        assert guest.hosts[SERIAL].taken == b"wait"
        assert guest.received(RX) == b"wait"

    def test_a_successor_of_a_killed_process_stands_still_as_well(self, guest):
        guest.device.pause()
        guest.state = type(guest.state)(guest.state.u8)
        guest.boot()
        guest.memory.map_into(guest.device.memory)
        guest.plug_both()
        guest.device.take_over()
        guest.send(TX, b"wait")
        assert guest.hosts[SERIAL].taken == b""
        guest.device.resume()
        guest.run()
        assert guest.hosts[SERIAL].taken == b"wait"


class TestControlMessages:
    def test_messages_that_were_still_to_be_sent_are_sent_there(self, guest):
        for _ in range(4):
            guest.tell(0xFFFFFFFF, READY)
        guest.heard(repost=False)
        guest.tell(SERIAL, PORT_READY)
        guest.tell(0xFFFFFFFF, READY)
        assert guest.heard() == [], "no buffer is left"
        guest.move()
        guest.post(CONTROL_RX, *[256] * 8)
        heard = [message[:2] for message in guest.heard()]
        assert sorted(heard) == sorted([(SERIAL, ADD), (SERIAL, NAME), (SERIAL, OPEN), (CONSOLE, ADD)])

    def test_a_host_that_is_connected_there_and_was_not_here_is_told_of(self, guest):
        guest.move(connected=False)
        assert [message[:3] for message in guest.heard()] == [(SERIAL, OPEN, 0)]
        guest.hosts[SERIAL].come()
        guest.run()
        assert [message[:3] for message in guest.heard()] == [(SERIAL, OPEN, 1)]

    def test_a_port_that_was_unplugged_and_not_told_of_is_told_of_there(self, guest):
        guest.device.pause()
        guest.device.remove_port(SERIAL)

        def plug_console(connected, first_plug):
            guest.hosts[CONSOLE] = FakeHost(connected)
            guest.plug(CONSOLE, guest.hosts[CONSOLE], name="con", is_console=True, has_backend=True, plug=first_plug)

        data = guest.save()
        guest.replace(plug=plug_console)
        guest.take_over(data)
        assert [message[:2] for message in guest.heard()] == [(SERIAL, REMOVE)]

    def test_ports_are_named_in_the_order_in_which_they_were_plugged_in(self, guest):
        guest.move()
        guest.heard()
        guest.tell(0xFFFFFFFF, READY)
        assert [port for port, event, _, _ in guest.heard() if event == ADD] == [SERIAL, CONSOLE]

    def test_host_ends_hear_of_the_guest(self, guest):
        guest.move()
        assert guest.hosts[SERIAL].heard == ["opened", "ready"]
        assert guest.hosts[SERIAL].wants_input


class TestRegisters:
    def test_the_driver_reads_the_same_registers(self, guest):
        function = guest.function
        function.region_write(VFIO_PCI_CONFIG_REGION_INDEX, layout.PCI_COMMAND, b"\x06\x04")
        function.region_write(layout.MSIX_BAR, 16, b"\x00\x10\xe0\xfe\x00\x00\x00\x00\x25\x40\x00\x00")
        function.region_write(layout.REGISTER_BAR, 0x10, (3).to_bytes(2, "little"))
        function.region_write(layout.REGISTER_BAR, 0x16, RX.to_bytes(2, "little"))
        function.region_write(layout.REGISTER_BAR, 0x1A, (5).to_bytes(2, "little"))
        function.record.isr = 2

        def seen():
            return [
                guest.function.region_read(index, 0, size)
                for index, size in (
                    (VFIO_PCI_CONFIG_REGION_INDEX, 256), (layout.REGISTER_BAR, 64), (layout.MSIX_BAR, 2048),
                )
            ]  # fmt: skip

        before = seen()
        guest.move()
        assert seen() == before
        assert guest.function.record.isr == 2

    def test_a_state_that_was_taken_over_is_saved_the_same(self, guest):
        guest.hosts[SERIAL].room = 3
        guest.send(TX, b"hello")
        data = guest.save()
        guest.replace()
        guest.hosts[SERIAL].room = 0
        guest.device.pause()
        load(guest.device, PciState(guest.function), data)
        assert save(guest.device, PciState(guest.function)) == data

    def test_a_broken_device_is_broken_there(self, guest):
        guest.rings[TX].add([b"x"])
        guest.device.fail(DriverError("a broken rule"))
        guest.move()
        assert guest.device.status & DEVICE_NEEDS_RESET
        assert guest.device.record.failures == 1

    def test_a_device_without_vectors_and_with_one_port_moves_too(self):
        small = MovableGuest(max_ports=1, vectors=0)
        try:
            small.hosts[0] = FakeHost()
            small.plug(0, small.hosts[0], is_console=True, has_backend=True, plug=1)
            small.start(accepted=1 << 32 | 1 << 29, queues=[0, 1], control_buffers=0)
            data = small.save()
            small.replace(plug=lambda connected, first_plug: small.plug(
                0, small.hosts[0], is_console=True, has_backend=True, plug=first_plug
            ))  # fmt: skip
            small.take_over(data)
            small.send(1, b"there")
            assert small.hosts[0].taken == b"there"
        finally:
            small.close()


@pytest.mark.parametrize("vector", range(VECTORS))
def test_an_interrupt_that_waited_for_its_eventfd_waits_there(guest, vector):
    guest.function.interrupts.signal_vector(vector)
    guest.move()
    assert vector in guest.function.interrupts.pending


def test_a_device_without_a_pci_function_has_a_state(guest):
    """Registers of a front are the front's part: the in-memory front has none."""
    data = save(guest.device, MemoryTransport(guest.device, guest.scheduler))
    guest.replace()
    guest.device.pause()
    load(guest.device, MemoryTransport(guest.device, guest.scheduler), data)
    guest.device.resume()
    guest.run()
    guest.post(RX, 64)
    guest.hosts[SERIAL].feed(b"to the guest")
    guest.run()
    assert guest.received(RX) == b"to the guest"


class TestWithUnplug:
    """unplug=on: the MSI-X table that counts is the device's own."""

    @pytest.fixture
    def guest(self):
        made = MovableGuest(unplug=True)
        made.begin()
        write = made.function.region_write
        for vector in range(VECTORS):
            write(layout.MSIX_BAR, 16 * vector, struct.pack("<QII", 0xFEE00000, 0x40 + vector, vector == 1))
        write(VFIO_PCI_CONFIG_REGION_INDEX, layout.PCI_COMMAND, layout.PCI_COMMAND_MASTER.to_bytes(2, "little"))
        write(VFIO_PCI_CONFIG_REGION_INDEX, made.function._msix_flags, b"\x00\x80")
        yield made
        made.close()

    def test_table_and_pending_bits_move(self, guest):
        guest.message_writer.is_full = True
        guest.function.trigger_irqs(2, 0, 3)
        guest.move()
        assert guest.function.pending_vectors == {0, 1, 2}
        guest.message_writer.is_full = False
        guest.function.messages.send_pending()
        assert guest.message_writer.messages == [(0xFEE00000, 0x40), (0xFEE00000, 0x42)]

    def test_both_sides_need_the_same(self, guest):
        data = guest.save()
        guest.message_writer = None
        guest.replace()
        with pytest.raises(ConfigError, match="msix_by_messages is True there and False here"):
            guest.take_over(data)
        assert not guest.device.status
