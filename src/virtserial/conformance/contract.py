"""The contract of a virtio console device: what it owes to a driver that keeps the rules (virtio 1.3)."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.conformance.check import Bench, Check, Geometry, NotHere, Violation
from virtserial.conformance.driver import PATIENCE, HostileDriver, Machine
from virtserial.conformance.steps import (
    BUFFER,
    CONTROL_BUFFERS,
    CONTROL_RX,
    CONTROL_TX,
    ISR,
    QUEUE_SELECT,
    QUEUE_SIZE,
    RING_SIZE,
    RX,
    STATUS,
    TX,
    WRITE,
    Start,
)
from virtserial.console.wire import (
    CONTROL,
    VIRTIO_CONSOLE_BAD_ID,
    VIRTIO_CONSOLE_DEVICE_READY,
    VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_PORT_ADD,
    VIRTIO_CONSOLE_PORT_NAME,
    VIRTIO_CONSOLE_PORT_OPEN,
    VIRTIO_CONSOLE_PORT_READY,
    queue_count,
)
from virtserial.virtio.features import VIRTIO_F_VERSION_1
from virtserial.virtio.status import ACKNOWLEDGE, DRIVER, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONTROL_QUEUES: Final = (CONTROL_RX, CONTROL_TX)
BUFFER_SIZE: Final = 256
SILENCE: Final = 0.3
"""Seconds without a message after which none is on its way: a device that has buffers has no reason to wait."""


class Message(NamedTuple):
    """A control message of the device's."""

    port: int
    event: int
    value: int
    payload: bytes = b""


class Listener:
    """The driver's end of the control queues, with as many buffers as a check wants."""

    def __init__(self, driver: HostileDriver) -> None:
        self.driver = driver
        self.messages: list[Message] = []
        self._taken = 0
        driver.reset_control(CONTROL_QUEUES)

    def post(self, count: int) -> None:
        """Give the device so many more buffers, 16 in all at most."""
        for _ in range(count):
            slot = self.driver.offered(CONTROL_RX) % RING_SIZE
            self.driver.send(CONTROL_RX, CONTROL_BUFFERS + BUFFER_SIZE * slot, BUFFER_SIZE, WRITE)

    def say(self, port: int, event: int, value: int = 1) -> None:
        """Send a message."""
        driver = self.driver
        slot = driver.offered(CONTROL_TX) % RING_SIZE
        driver.machine.write(BUFFER + 64 * slot, CONTROL.pack(port, event, value))
        driver.send(CONTROL_TX, BUFFER + 64 * slot, CONTROL.size)
        deadline = time.monotonic() + PATIENCE
        while driver.used_index(CONTROL_TX) != driver.offered(CONTROL_TX):
            if time.monotonic() > deadline:
                raise Violation("the device does not take control messages")
            driver.machine.step()

    def take(self) -> list[Message]:
        """Return the messages that have come."""
        driver = self.driver
        driver.machine.settle()
        new = []
        for slot, length in driver.used_elements(CONTROL_RX, self._taken):
            if not CONTROL.size <= length <= BUFFER_SIZE:
                raise Violation(f"a control message of {length} bytes; a message has 8, and a name behind it")
            data = driver.machine.read(CONTROL_BUFFERS + BUFFER_SIZE * slot, length)
            port, event, value = CONTROL.unpack_from(data)
            new.append(Message(port, event, value, data[CONTROL.size :]))
        self._taken += len(new)
        self.messages += new
        return new

    def take_all(self, buffers: int) -> list[Message]:
        """Return all messages that come, while each gets its buffer back; at first there are `buffers`."""
        self.post(buffers)
        everything: list[Message] = []
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < SILENCE:
            new = self.take()
            everything += new
            self.post(len(new))
            if new:
                quiet_since = time.monotonic()
        return everything


@contextmanager
def _many(bench: Bench) -> Iterator[Machine]:
    """A machine with as many ports as can be had."""
    if bench.target.open_many is None:
        yield bench.machine
        return
    machine = bench.target.open_many()
    try:
        yield machine
    finally:
        machine.close()


def announced_ports(bench: Bench) -> list[int]:
    """The ports that the device adds for a driver that is ready and has buffers enough."""
    return _added(_announced(bench, bench.machine))


def _added(messages: list[Message]) -> list[int]:
    return [message.port for message in messages if message.event == VIRTIO_CONSOLE_PORT_ADD]


def _announced(bench: Bench, machine: Machine) -> list[Message]:
    """What the device says to a driver that is ready, with all buffers there from the start."""
    listener = Listener(bench.driver(machine))
    listener.post(RING_SIZE)
    listener.say(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY)
    new = listener.take()
    listener.post(len(new))
    return new + listener.take_all(0)


# What the device says of itself


def _status(bench: Bench) -> None:
    bench.machine.store(STATUS, ACKNOWLEDGE, 1)
    bench.machine.store(STATUS, 0, 1)
    if status := bench.machine.load(STATUS, 1):
        raise Violation(f"the status is {status:#x} after a reset")


def _version(bench: Bench) -> None:
    if bench.legacy:
        raise NotHere("the legacy interface has no such feature")
    if not bench.geometry.features & VIRTIO_F_VERSION_1:
        raise Violation(f"the features {bench.geometry.features:#x} are without VIRTIO_F_VERSION_1")


def _queues(bench: Bench) -> None:
    geometry = Geometry.of(bench.machine)
    if not geometry.features & VIRTIO_CONSOLE_F_MULTIPORT:
        raise NotHere("the device does not offer VIRTIO_CONSOLE_F_MULTIPORT")
    if not geometry.max_nr_ports:
        raise Violation("max_nr_ports is 0")
    if geometry.queues < queue_count(geometry.max_nr_ports):
        needed = queue_count(geometry.max_nr_ports)
        raise Violation(f"{geometry.queues} queues; {geometry.max_nr_ports} ports take {needed}")


def _sizes(bench: Bench) -> None:
    if bench.target.name.startswith("vhost-user"):
        raise NotHere("the front end has the queue sizes")
    machine = bench.machine
    machine.store(STATUS, 0, 1)
    for queue in range(min(bench.geometry.queues, queue_count(bench.geometry.max_nr_ports))):
        machine.store(QUEUE_SELECT, queue, 2)
        size = machine.load(QUEUE_SIZE, 2)
        if not 0 < size <= 32768 or size & (size - 1):
            raise Violation(f"queue {queue} has {size} entries")


def _features(bench: Bench) -> None:
    if bench.legacy:
        raise NotHere("the legacy interface has no FEATURES_OK")
    bench.driver().bring_up(Start("features"))
    if not bench.machine.load(STATUS, 1) & FEATURES_OK:
        raise Violation("FEATURES_OK does not stay set for a subset of the device's features")
    bench.machine.store(STATUS, 0, 1)
    bench.machine.store(STATUS, ACKNOWLEDGE | DRIVER, 1)
    if bench.machine.load(STATUS, 1) & FEATURES_OK:
        raise Violation("FEATURES_OK outlives a reset")


# Control messages


def _adds(bench: Bench) -> None:
    with _many(bench) as machine:
        ports = _added(_announced(bench, machine))
        limit = Geometry.of(machine).max_nr_ports
    if not ports:
        raise Violation("DEVICE_READY is answered by no PORT_ADD")
    if len(set(ports)) != len(ports):
        raise Violation(f"ports are added twice: {ports}")
    if beyond := [port for port in ports if port >= limit]:
        raise Violation(f"PORT_ADD of {beyond}; max_nr_ports is {limit}")


def _late_buffers(bench: Bench) -> None:
    with _many(bench) as machine:
        expected = bench.target.many or len(_added(_announced(bench, machine)))
        listener = Listener(bench.driver(machine))
        listener.say(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY)
        machine.settle()
        came = len(_added(listener.take_all(1)))
    if came != expected:
        count = f"{came} of {expected} PORT_ADD came"
        raise Violation(f"with one buffer at a time, posted after DEVICE_READY, {count}")


def _states(bench: Bench, machine: Machine, ports: Sequence[int], *, patiently: bool) -> tuple[int, int]:
    """How many names, and how many connected hosts, a driver learns of that is ready for these ports."""
    listener = Listener(bench.driver(machine))
    listener.post(RING_SIZE)
    listener.say(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY)
    listener.post(len(listener.take()))
    listener.take_all(0)
    for port in ports:
        listener.say(port, VIRTIO_CONSOLE_PORT_READY)
        if patiently:
            listener.post(len(listener.take()))
    listener.post(len(listener.take()))
    listener.take_all(0)
    names = {each.port for each in listener.messages if each.event == VIRTIO_CONSOLE_PORT_NAME}
    connected = {each.port for each in listener.messages if each.event == VIRTIO_CONSOLE_PORT_OPEN and each.value}
    return len(names), len(connected)


def _burst(bench: Bench) -> None:
    with _many(bench) as machine:
        many = bench.target.many
        ports = range(1, many + 1) if many else _added(_announced(bench, machine))
        names, hosts = _states(bench, machine, ports, patiently=True)
        some_names, some_hosts = _states(bench, machine, ports, patiently=False)
    if (some_names, some_hosts) != (names, hosts):
        raise Violation(
            f"a driver that is ready for all {len(ports)} ports at once, with {RING_SIZE} buffers, "
            f"learns {some_names} of {names} names, and that {some_hosts} of {hosts} hosts are connected"
        )


# Bytes


def _needs_host(bench: Bench) -> None:
    if 1 not in bench.machine.hosts:
        raise NotHere("the host's end of port 1 is not known: --host 1=ADDRESS")
    bench.machine.hosts.connect(1)


def _to_host(bench: Bench) -> None:
    _needs_host(bench)
    driver = bench.driver()
    driver.start()
    machine = bench.machine
    machine.settle()
    machine.heard()
    sent = b""
    for number in range(3 * RING_SIZE):
        piece = bytes([number]) * (number * 37 % 1000 + 1)
        machine.write(BUFFER + 0x1000 * (number % RING_SIZE), piece)
        driver.send(TX, BUFFER + 0x1000 * (number % RING_SIZE), len(piece))
        sent += piece
        _until_used(driver, TX)
    machine.settle()
    if (heard := machine.heard()) != sent:
        raise Violation(f"of {len(sent)} bytes {len(heard or b'')} came out at the host's end, or others")
    if any(length for _, length in driver.used_elements(TX, 0)):
        raise Violation("a used element of a transmitq says that bytes were written")


def _to_guest(bench: Bench) -> None:
    _needs_host(bench)
    driver = bench.driver()
    driver.start()
    machine = bench.machine
    for slot in range(4):
        machine.write(BUFFER + 0x1000 * slot, b"\xee" * 16)
        driver.send(RX, BUFFER + 0x1000 * slot, 10, WRITE)
    machine.settle()
    data = b"abcdefghijklmnopqrstuvwxyz"
    machine.hosts.send(1, data)
    deadline = time.monotonic() + PATIENCE
    received = b""
    while len(received) < len(data):
        if time.monotonic() > deadline:
            raise Violation(f"of {len(data)} bytes of the host's {len(received)} came")
        machine.settle()
        received = b""
        for slot, (_, length) in enumerate(driver.used_elements(RX, 0)):
            if length > 10:
                raise Violation(f"a used element says {length} bytes; the buffer has 10")
            received += machine.read(BUFFER + 0x1000 * slot, length)
            if machine.read(BUFFER + 0x1000 * slot + 10, 6) != b"\xee" * 6:
                raise Violation("the device writes behind a buffer's end")
    if received != data:
        raise Violation(f"the host sent {data!r}, {received!r} came")


def _until_used(driver: HostileDriver, queue: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while driver.used_index(queue) != driver.offered(queue):
        if time.monotonic() > deadline:
            raise Violation(f"a buffer of queue {queue} is not used")
        driver.machine.step()


def _host_comes_and_goes(bench: Bench) -> None:
    _needs_host(bench)
    listener = Listener(bench.driver())
    listener.post(RING_SIZE)
    listener.say(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY)
    listener.post(len(listener.take()))
    listener.say(1, VIRTIO_CONSOLE_PORT_READY)
    listener.post(len(listener.take()))
    for expected, act in ((0, bench.machine.hosts.disconnect), (1, bench.machine.hosts.connect)):
        listener.messages.clear()
        act(1)
        deadline = time.monotonic() + PATIENCE
        while not (states := _opens(listener.messages)):
            if time.monotonic() > deadline:
                what = "comes" if expected else "leaves"
                raise Violation(f"no PORT_OPEN tells that the host {what}")
            listener.post(len(listener.take()))
        if states[-1] != expected:
            raise Violation(f"PORT_OPEN says {states[-1]}, the host's end is {expected}")


def _opens(messages: list[Message]) -> list[int]:
    return [each.value for each in messages if each.event == VIRTIO_CONSOLE_PORT_OPEN and each.port == 1]


def _isr(bench: Bench) -> None:
    if bench.target.name.startswith("vhost-user"):
        raise NotHere("the front end has the ISR")
    driver = bench.driver()
    driver.start()
    machine = bench.machine
    machine.settle()
    machine.load(ISR, 1)
    machine.write(BUFFER, b"x")
    driver.send(TX, BUFFER, 1)
    _until_used(driver, TX)
    machine.settle()
    if not machine.load(ISR, 1) & 1:
        raise Violation("a used buffer without MSI-X sets no bit of the ISR")
    if isr := machine.load(ISR, 1):
        raise Violation(f"the ISR is {isr:#x} right after it was read")


CONTRACT: Final = (
    Check("k01", "a reset clears the status", "2.1.2, 4.1.4.3.1", _status),
    Check("k02", "VIRTIO_F_VERSION_1 is offered", "6.2", _version),
    Check("k03", "queues for max_nr_ports ports", "5.3.2, 5.3.4", _queues),
    Check("k04", "queue sizes", "2.7, 4.1.4.3.1", _sizes),
    Check("k05", "a subset of the features is accepted", "2.2.2, 3.1.1", _features),
    Check("k06", "PORT_ADD: each port once, below max_nr_ports", "5.3.6.2.1", _adds),
    Check("k07", "no PORT_ADD is lost when buffers come late", "5.3.6.2", _late_buffers),
    Check("k08", "no name and no PORT_OPEN is lost when all ports are ready at once", "5.3.6.2", _burst),
    Check("k09", "the driver's bytes reach the host in order", "5.3.6, 2.7.8.2", _to_host),
    Check("k10", "the host's bytes reach the driver, within its buffers", "5.3.6, 2.7.8.2", _to_guest),
    Check("k11", "PORT_OPEN tells that the host comes and goes", "5.3.6.2", _host_comes_and_goes),
    Check("k12", "the ISR tells of used buffers, and is cleared when it is read", "4.1.4.5.1", _isr),
)

