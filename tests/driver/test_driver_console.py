"""The console driver on the project's own device, in memory."""

from __future__ import annotations

import pytest
from support.driver_devices import BufferEnd, Listening, console_device

from virtserial.console.wire import VIRTIO_CONSOLE_F_MULTIPORT, receiveq_index
from virtserial.driver.console_driver import DRIVER_FEATURES, DriverListener
from virtserial.driver.port_queues import BufferPlan
from virtserial.errors import PeerError, StateError
from virtserial.testing.memory_driver import MemoryDriver
from virtserial.virtio.features import VIRTIO_F_EVENT_IDX

EVENT_IDX_OR_NOT = pytest.mark.parametrize(
    "features", [DRIVER_FEATURES, DRIVER_FEATURES & ~VIRTIO_F_EVENT_IDX], ids=["event_idx", "flags"]
)
SEALED_OR_NOT = pytest.mark.parametrize("sealed", [True, False], ids=["mapped", "unsealed"])


class Record(DriverListener):
    def __init__(self):
        self.told = []

    def port_added(self, port):
        self.told.append(("added", port.number))

    def port_removed(self, port):
        self.told.append(("removed", port.number))

    def device_failed(self, error):
        self.told.append(("failed", str(error)))


class Machine:
    """A device with one named port, its host's end, and the driver, started."""

    def __init__(self, connected=True, **options):
        self.device, self.scheduler = console_device()
        self.host = BufferEnd()
        self.device_port = self.device.add_port(3, "org.example.port", False, True)
        if connected:
            self.device_port.attach(self.host)
        self.record = Record()
        self.memory = MemoryDriver(self.device, self.scheduler, self.record, **options)
        self.memory.start()
        self.run = self.memory.run
        self.port = self.memory.port("org.example.port")
        self.listener = Listening()

    def open(self):
        self.port.open(self.listener)
        self.run()
        return self.port


def test_a_port_is_known_by_number_name_and_host_connection():
    machine = Machine()
    assert machine.record.told == [("added", 3)]
    assert (machine.port.number, machine.port.name) == (3, "org.example.port")
    assert machine.port.host_connected
    assert not machine.port.is_console


def test_the_host_hears_of_open_and_close():
    machine = Machine()
    assert not machine.device_port.guest_open
    machine.open()
    assert machine.device_port.guest_open
    machine.port.close()
    machine.run()
    assert not machine.device_port.guest_open


@SEALED_OR_NOT
@EVENT_IDX_OR_NOT
def test_bytes_from_guest_to_host_and_back(features, sealed):
    machine = Machine(features=features, sealed=sealed, plan=BufferPlan(8, 4096, 8, 4096))
    port = machine.open()
    message = bytes(range(256)) * 400
    sent = 0
    while sent < len(message):
        sent += port.write(message[sent:])
        machine.run()
    assert machine.host.taken == message
    machine.host.give(message)
    received = bytearray()
    while len(received) < len(message):
        machine.run()
        part = port.read(10_000)
        assert part or "readable" in machine.listener.told
        received += part
    assert received == message


def test_reading_in_small_pieces_gives_the_same_bytes():
    machine = Machine(plan=BufferPlan(4, 64, 4, 64))
    port = machine.open()
    message = bytes(range(200))
    machine.host.give(message)
    machine.run()
    assert b"".join(port.read(7) for _ in range(29)) == message
    assert port.read(7) == b""


def test_a_host_that_does_not_take_makes_the_writer_wait_until_it_does():
    machine = Machine(plan=BufferPlan(4, 100, 4, 100))
    machine.host.room = 150
    port = machine.open()
    assert port.write(b"x" * 1000) == 400
    machine.run()
    assert not port.flushed()
    assert port.write(b"y" * 1000) == 100, "the one buffer whose bytes were taken whole"
    assert port.write(b"z" * 1000) == 0
    machine.listener.told.clear()
    machine.host.make_room()
    machine.run()
    assert "writable" in machine.listener.told
    assert port.flushed()
    assert machine.host.taken == b"x" * 400 + b"y" * 100


def test_nothing_is_written_while_the_host_is_away_and_writable_tells_when_it_comes():
    machine = Machine(connected=False)
    port = machine.open()
    assert not port.host_connected
    assert port.write(b"lost?") == 0
    assert port.at_end
    machine.device_port.attach(machine.host)
    machine.run()
    assert port.host_connected
    assert "writable" in machine.listener.told
    assert port.write(b"kept") == 4
    machine.run()
    assert machine.host.taken == b"kept"


def test_what_the_host_sent_before_it_left_is_read_first_then_the_end_shows():
    machine = Machine()
    port = machine.open()
    machine.host.give(b"last words")
    machine.run()
    machine.device_port.detach()
    machine.run()
    assert not port.at_end
    assert port.read(100) == b"last words"
    assert port.at_end
    assert port.read(100) == b""


def test_bytes_left_unread_at_close_are_dropped_and_counted():
    machine = Machine()
    port = machine.open()
    machine.host.give(b"0123456789")
    machine.run()
    assert port.read(4) == b"0123"
    port.close()
    machine.run()
    assert port.discarded == 6
    assert port.open(machine.listener) is None
    machine.run()
    assert port.read(100) == b""


def test_a_second_opener_is_refused_and_a_closed_port_moves_nothing():
    machine = Machine()
    with pytest.raises(StateError, match=r"org\.example\.port is not open"):
        machine.port.read(1)
    machine.open()
    with pytest.raises(StateError, match=r"org\.example\.port is open already"):
        machine.port.open(Listening())
    machine.port.close()
    machine.port.close()
    with pytest.raises(StateError, match="is not open"):
        machine.port.write(b"x")


def test_consuming_or_committing_more_than_there_is_is_a_mistake():
    machine = Machine(plan=BufferPlan(2, 64, 2, 64))
    port = machine.open()
    with pytest.raises(StateError, match="1 bytes consumed, 0 are there"):
        port.consume(1)
    port.writable_views(10)
    with pytest.raises(StateError, match="more were committed"):
        port.commit(129)


def test_an_unplugged_port_ends_its_user_and_can_come_back():
    machine = Machine()
    port = machine.open()
    machine.host.give(b"unread")
    machine.run()
    machine.device.remove_port(3)
    machine.run()
    assert machine.listener.told[-1] == "unplugged"
    assert machine.record.told == [("added", 3), ("removed", 3)]
    with pytest.raises(StateError, match="was unplugged"):
        port.read(1)
    with pytest.raises(StateError, match="was unplugged"):
        port.open(machine.listener)
    host = BufferEnd()
    machine.device.add_port(3, "org.example.again", False, True).attach(host)
    machine.run()
    again = machine.memory.port("org.example.again")
    again.open(machine.listener)
    machine.run()
    for round_number in range(5):
        assert again.write(b"hello %d" % round_number) == 7
        host.give(b"world %d" % round_number)
        machine.run()
        assert again.read(100) == b"world %d" % round_number
    assert host.taken == b"hello 0hello 1hello 2hello 3hello 4"


def test_every_one_of_510_ports_is_told_of_its_name_and_host():
    device, scheduler = console_device(max_ports=511)
    for number in range(1, 511):
        device.add_port(number, f"port.{number}", False, True).attach(BufferEnd())
    memory = MemoryDriver(device, scheduler)
    memory.start()
    ports = memory.driver.ports
    assert {number: port.name for number, port in ports.items()} == {n: f"port.{n}" for n in range(1, 511)}
    assert all(port.host_connected for port in ports.values())


def test_a_console_port_has_its_kind_and_size():
    device, scheduler = console_device()
    device_port = device.add_port(0, None, True, True)
    device_port.attach(BufferEnd())
    device.set_size(device_port, 132, 43)
    memory = MemoryDriver(device, scheduler)
    memory.start()
    console = memory.driver.ports[0]
    assert console.is_console
    assert (console.cols, console.rows) == (132, 43)
    listener = Listening()
    console.open(listener)
    device.set_size(device_port, 80, 25)
    memory.run()
    assert (80, 25) in listener.told


@pytest.mark.parametrize("max_ports", [1, 4], ids=["not offered", "not accepted"])
def test_without_multiport_port_0_is_a_console_whose_size_is_in_the_configuration(max_ports):
    device, scheduler = console_device(max_ports=max_ports)
    device_port = device.add_port(0, None, True, True)
    host = BufferEnd()
    device_port.attach(host)
    device.set_size(device_port, 100, 30)
    memory = MemoryDriver(device, scheduler, features=DRIVER_FEATURES & ~VIRTIO_CONSOLE_F_MULTIPORT)
    memory.start()
    console = memory.driver.ports[0]
    assert list(memory.driver.ports) == [0]
    assert console.is_console
    assert console.host_connected
    assert (console.cols, console.rows) == (100, 30)
    console.open(Listening())
    assert console.write(b"login: ") == 7
    host.give(b"root\n")
    memory.run()
    assert host.taken == b"login: "
    assert console.read(100) == b"root\n"
    device.set_size(device_port, 120, 40)
    memory.run()
    assert (console.cols, console.rows) == (120, 40)


def test_emergency_write_works_before_the_driver_has_started():
    device, scheduler = console_device()
    host = BufferEnd()
    device.add_port(0, None, True, True).attach(host)
    memory = MemoryDriver(device, scheduler)
    for byte in b"panic":
        memory.driver.emergency_write(byte)
    memory.run()
    assert host.taken == b"panic"


def test_a_device_that_needs_a_reset_is_given_up_and_can_be_started_again():
    machine = Machine()
    machine.open()
    machine.host.give(b"x")
    queue = machine.memory.driver._queues[receiveq_index(3)]
    machine.memory.memory.write(queue.avail_address + 2, (999).to_bytes(2, "little"))
    machine.host.give(b"y")
    machine.device_port.schedule(3)
    machine.run()
    assert machine.listener.told[-1] == "unplugged"
    assert machine.record.told[-1] == ("failed", "device: it needs a reset")
    machine.memory.start()
    port = machine.memory.port("org.example.port")
    port.open(machine.listener)
    machine.run()
    assert port.write(b"alive again") == 11
    machine.run()
    assert machine.host.taken.endswith(b"alive again")


def test_starting_twice_is_a_mistake_and_stopping_gives_everything_back():
    machine = Machine()
    machine.open()
    with pytest.raises(StateError, match="runs already"):
        machine.memory.start()
    machine.memory.close()
    assert machine.device.status == 0
    assert len(machine.device.memory) == 0
    assert machine.listener.told[-1] == "unplugged"
    machine.memory.driver.stop()


def test_memory_without_a_file_is_refused_by_the_in_memory_transport():
    machine = Machine()
    with pytest.raises(PeerError, match="without a file"):
        machine.memory.transport.dma_map(0, 4096)
