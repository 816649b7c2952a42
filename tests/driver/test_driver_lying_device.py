"""The console driver with a device that breaks the rules: what it can do is lose itself."""

from __future__ import annotations

import pytest
from support.driver_devices import Listening, LyingDevice

from virtserial.console.wire import (
    RESIZE,
    VIRTIO_CONSOLE_BAD_ID,
    VIRTIO_CONSOLE_CONSOLE_PORT,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    VIRTIO_CONSOLE_PORT_REMOVE,
    VIRTIO_CONSOLE_RESIZE,
    pack_control,
    receiveq_index,
    transmitq_index,
)
from virtserial.driver.console_driver import ConsoleDriver, DriverListener
from virtserial.driver.ports import file_name
from virtserial.errors import PeerError, StateError
from virtserial.virtio.features import VIRTIO_F_VERSION_1
from virtserial.virtio.status import FAILED


class Failures(DriverListener):
    def __init__(self):
        self.errors = []

    def device_failed(self, error):
        self.errors.append(str(error))


@pytest.fixture
def device():
    return LyingDevice()


@pytest.fixture
def failures():
    return Failures()


@pytest.fixture
def driver(device, failures):
    driver = ConsoleDriver(device, failures, memory=device.memory)
    driver.start()
    yield driver
    driver.close()


@pytest.fixture
def port(device, driver):
    device.send(1, VIRTIO_CONSOLE_PORT_ADD)
    device.send(1, VIRTIO_CONSOLE_PORT_OPEN)
    return driver.ports[1]


# Initialization


def test_the_driver_says_that_it_is_ready_and_nothing_before_driver_ok(device, driver):
    assert device.status == 1 | 2 | 4 | 8
    assert device.take_control() == [(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY, 1)]
    assert device.rung


def refused(device):
    driver = ConsoleDriver(device, memory=device.memory)
    with pytest.raises(PeerError) as caught:
        driver.start()
    assert device.status & FAILED
    driver.close()
    assert device.closed
    return str(caught.value)


def test_a_device_without_version_1_is_refused(device):
    device.features &= ~VIRTIO_F_VERSION_1
    assert "VIRTIO_F_VERSION_1" in refused(device)


def test_a_device_that_refuses_its_own_features_is_refused(device):
    device.refuses_features = True
    assert "refuses the features" in refused(device)


def test_features_that_were_not_offered_are_not_accepted(device):
    device.features = VIRTIO_F_VERSION_1 | VIRTIO_CONSOLE_F_MULTIPORT | 1 << 50
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    assert device.accepted == VIRTIO_F_VERSION_1 | VIRTIO_CONSOLE_F_MULTIPORT
    driver.close()


@pytest.mark.parametrize(("max_nr_ports", "usable"), [(0xFFFFFFFF, 4), (5, 4), (3, 3)])
def test_ports_without_queues_are_not_counted(max_nr_ports, usable):
    device = LyingDevice(max_nr_ports=max_nr_ports)
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    assert driver.max_ports == usable
    driver.close()


def test_no_ports_at_all_are_refused():
    assert "max_nr_ports is 0" in refused(LyingDevice(max_nr_ports=0))


def test_a_queue_that_does_not_exist_is_refused(device):
    device.missing_queues.add(3)
    assert "queue 3 does not exist" in refused(device)


def test_a_configuration_cut_short_reads_as_zeros(device):
    device.config = b"\x50\x00"
    assert "max_nr_ports is 0" in refused(device)


# Control messages


def test_a_port_is_answered_with_port_ready(device, driver, port):
    device.take_control()
    assert (1, VIRTIO_CONSOLE_PORT_READY, 1) in device.sent


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (4, VIRTIO_CONSOLE_PORT_ADD),
        (0xFFFFFFFF, VIRTIO_CONSOLE_PORT_ADD),
        (1, VIRTIO_CONSOLE_PORT_ADD),
        (2, VIRTIO_CONSOLE_PORT_REMOVE),
        (2, VIRTIO_CONSOLE_PORT_OPEN),
        (2, VIRTIO_CONSOLE_PORT_NAME),
        (0xFFFFFFFF, VIRTIO_CONSOLE_CONSOLE_PORT),
        (1, VIRTIO_CONSOLE_RESIZE),
        (1, 99),
        (1, VIRTIO_CONSOLE_PORT_READY),
    ],
)
def test_messages_that_make_no_sense_are_ignored_and_counted(device, driver, failures, port, number, event):
    device.send(number, event)
    assert driver.ignored == 1
    assert list(driver.ports) == [1]
    assert failures.errors == []
    device.send(2, VIRTIO_CONSOLE_PORT_ADD)
    assert 2 in driver.ports


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_message_shorter_than_its_header_is_ignored(device, driver, length):
    device.send_raw(bytes(length))
    device.send(2, VIRTIO_CONSOLE_PORT_ADD)
    assert list(driver.ports) == [2]
    assert driver._control.malformed == 1


def test_a_short_resize_is_ignored_and_a_whole_one_is_not(device, driver, port):
    device.send(1, VIRTIO_CONSOLE_CONSOLE_PORT)
    device.send(1, VIRTIO_CONSOLE_RESIZE, 0, b"\x50\x00\x19")
    assert (port.cols, port.rows) == (0, 0)
    device.send(1, VIRTIO_CONSOLE_RESIZE, 0, RESIZE.pack(80, 25))
    assert (port.cols, port.rows) == (80, 25)


def test_more_messages_than_there_are_buffers_all_arrive(device, driver, port):
    for number in range(1000):
        device.send(1, VIRTIO_CONSOLE_PORT_OPEN, number & 1)
    assert port.host_connected
    assert driver.ignored == 0


def test_a_device_that_never_takes_our_messages_costs_bounded_memory(device, driver):
    for _ in range(500):
        device.send(1, VIRTIO_CONSOLE_PORT_ADD)
        device.send(1, VIRTIO_CONSOLE_PORT_REMOVE)
    assert len(driver._control._pending) <= 2
    device.send(1, VIRTIO_CONSOLE_PORT_ADD)
    driver.ports[1].open(Listening())
    device.take_control()
    device.sink.queue_interrupt(3)
    device.take_control()
    assert device.sent[-2:] == [(1, VIRTIO_CONSOLE_PORT_READY, 1), (1, VIRTIO_CONSOLE_PORT_OPEN, 1)]


@pytest.mark.parametrize(
    ("payload", "name", "usable"),
    [
        (b"org.example\0", "org.example", True),
        (b"org.example", "org.example", True),
        ("größe".encode(), "größe", True),
        (b"", "", False),
        (b"\0", "", False),
        (b"../../etc/passwd\0", "../../etc/passwd", False),
        (b"..\0", "..", False),
        (b"a\0b\0", "a\0b", False),
        (b"bell\x07\0", "bell\x07", False),
        (b"\xff\xfe\0", "\udcff\udcfe", False),
        (b"x" * 256, "x" * 256, False),
        (b"x" * 4088, "x" * 4088, False),
    ],
)
def test_names_are_kept_as_they_are_and_checked_before_they_become_files(device, driver, port, payload, name, usable):
    device.send(1, VIRTIO_CONSOLE_PORT_NAME, 1, payload)
    assert port.name == name
    assert file_name(name) == (name if usable else None)


def test_a_second_name_is_ignored(device, driver, port):
    device.send(1, VIRTIO_CONSOLE_PORT_NAME, 1, b"first\0")
    device.send(1, VIRTIO_CONSOLE_PORT_NAME, 1, b"second\0")
    assert port.name == "first"


# Lies about rings


def test_received_bytes_are_lent_as_long_as_the_buffer_says(device, driver, port):
    port.open(Listening())
    head, address, _ = device.next_chain(receiveq_index(1))
    device.memory.write(address, b"hello")
    device.use(receiveq_index(1), head, 5)
    assert port.read(100) == b"hello"


def test_an_empty_receive_buffer_goes_back_to_the_device(device, driver, port):
    port.open(Listening())
    queue = receiveq_index(1)
    posted = device.queues[queue].in_flight
    head, _, _ = device.next_chain(queue)
    device.use(queue, head, 0)
    assert port.read(100) == b""
    assert device.queues[queue].in_flight == posted


@pytest.mark.parametrize(
    ("lie", "text"),
    [
        (lambda device, queue, head: device.use(queue, head, 1 << 20), "1048576 bytes were written"),
        (lambda device, queue, head: device.use(queue, 127, 5), "id 127, not in flight"),
        (lambda device, queue, head: device.use(queue, head, 5, idx=2000), "used ring shows 2000 elements"),
    ],
    ids=["length", "id", "idx"],
)
@pytest.mark.parametrize("is_open", [True, False])
def test_a_lie_about_a_receiveq_ends_the_device_and_not_the_process(
    device, driver, failures, port, lie, text, is_open
):
    listener = Listening()
    if is_open:
        port.open(listener)
    head, _, _ = device.next_chain(receiveq_index(1))
    lie(device, receiveq_index(1), head)
    device.sink.queue_interrupt(receiveq_index(1))
    if is_open:
        assert port.readable_views() == []
        assert listener.told == ["readable", "unplugged"]
    assert len(failures.errors) == 1
    assert text in failures.errors[0]
    assert driver.ports == {}
    assert device.status & FAILED
    for index in range(device.num_queues):
        device.sink.queue_interrupt(index)
    device.sink.config_interrupt()
    assert len(failures.errors) == 1
    driver.start()
    device.send(1, VIRTIO_CONSOLE_PORT_ADD)
    assert list(driver.ports) == [1]


def test_a_lie_about_a_transmitq_is_found_when_room_is_asked_for(device, driver, failures, port):
    listener = Listening()
    port.open(listener)
    assert port.write(b"x") == 1
    device.use(transmitq_index(1), 99, 0)
    assert not port.flushed()
    assert "id 99" in failures.errors[0]
    assert listener.told == ["unplugged"]
    with pytest.raises(StateError, match="unplugged"):
        port.write(b"x")


@pytest.mark.parametrize("queue", [2, 3])
def test_a_lie_about_a_control_queue_ends_the_device(device, driver, failures, queue):
    device.use(queue, 77, 8)
    device.sink.queue_interrupt(queue)
    assert "id 77" in failures.errors[0]


def test_a_device_that_is_gone_when_a_doorbell_is_rung(device, driver, failures, port):
    def notify(index):
        raise PeerError("the server is gone", 104)

    port.open(Listening())
    device.notify = notify
    port.write(b"x")
    assert failures.errors == ["the server is gone"]


def test_interrupts_nobody_asked_for_change_nothing(device, driver, failures, port):
    for index in (*range(device.num_queues), 9999):
        device.sink.queue_interrupt(index)
    device.sink.config_interrupt()
    assert failures.errors == []
    assert list(driver.ports) == [1]


def test_emergency_write_needs_the_device_s_offer(device):
    driver = ConsoleDriver(device, memory=device.memory)
    driver.emergency_write(0x41)
    assert device.written == [(8, b"A\0\0\0")]
    device.features &= ~VIRTIO_CONSOLE_F_EMERG_WRITE
    with pytest.raises(StateError, match="EMERG_WRITE"):
        driver.emergency_write(0x41)
    driver.close()


def test_a_listener_that_stops_the_driver_in_the_middle_of_its_messages(device):
    class Stopping(DriverListener):
        def port_added(self, port):
            driver.stop()

    driver = ConsoleDriver(device, Stopping(), memory=device.memory)
    driver.start()
    for number in range(3):
        device.send_raw(pack_control(number, VIRTIO_CONSOLE_PORT_ADD, 1), interrupt=False)
    device.sink.queue_interrupt(2)
    assert driver.ports == {}
    driver.close()
