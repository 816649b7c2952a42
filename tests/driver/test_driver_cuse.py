"""The character device without a kernel: requests as bytes in, replies as bytes out, on the device in memory."""

from __future__ import annotations

import errno
import os
import select
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.driver_devices import LyingDevice

from virtserial.console.wire import VIRTIO_CONSOLE_PORT_ADD, VIRTIO_CONSOLE_PORT_OPEN, VIRTIO_CONSOLE_PORT_REMOVE
from virtserial.driver import cuse_wire as wire
from virtserial.driver.console_driver import ConsoleDriver
from virtserial.driver.cuse_node import MAX_WAITING, CuseNode

O_NONBLOCK = os.O_NONBLOCK


@pytest.fixture(autouse=True, scope="module")
def device_of_this_thread():
    """The device is in this thread: it takes no message while the node waits for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virtserial.driver.cuse_node.OPEN_SECONDS", 0.0)
        yield


class Kernel:
    """The other end of a node: makes requests byte for byte, keeps what comes back.

    Attributes:
        answers: unique -> (error, payload).
        woken: handles of wake-ups.
        gone: uniques whose callers were killed: their replies find nobody.
    """

    def __init__(self, port, released=lambda: None):
        self.node = CuseNode(port, self, released)
        self.answers = {}
        self.woken = []
        self.gone = set()
        self.unique = 0
        self.spare = bytearray(wire.MAX_REQUEST_DATA)

    # RequestChannel

    def reply(self, unique, *payload):
        assert unique not in self.answers, "answered twice"
        if unique in self.gone:
            return False
        self.answers[unique] = (0, b"".join(payload))
        return True

    def refuse(self, unique, error):
        assert unique not in self.answers, "answered twice"
        self.answers[unique] = (error, b"")

    def wake(self, handle):
        self.woken.append(handle)

    # Requests

    def request(self, opcode, body=b"", data=b"", *, killed=False):
        """Brings a request in as CuseChannel does; returns its unique."""
        self.unique += 2
        if killed:
            self.gone.add(self.unique)
        head = wire.IN_HEADER.pack(wire.IN_HEADER.size + len(body) + len(data), opcode, self.unique, 0, 0, 0, 1, 0)
        lent = self.node.lend()
        request = wire.Request.parse((head + body)[: wire.HEAD_SIZE])
        if opcode == wire.FUSE_WRITE and lent:
            rest = data
            for view in lent:
                view[: len(rest[: len(view)])] = rest[: len(view)]
                rest = rest[len(view) :]
            self.node.handle(request, None, sum(map(len, lent)))
        else:
            # One buffer for all requests: what is kept must have been copied.
            self.spare[: len(data)] = data
            self.node.handle(request, memoryview(self.spare)[: len(data)], sum(map(len, lent)))
            self.spare[:] = bytes(len(self.spare))
        return self.unique

    def answer(self, unique):
        """(errno, payload) of a request; None while it waits."""
        return self.answers.get(unique)

    def open(self, flags=os.O_RDWR):
        return self.answer(self.request(wire.FUSE_OPEN, struct.pack("=II", flags, 0)))

    def close(self):
        return self.answer(self.request(wire.FUSE_RELEASE, bytes(24)))

    def read(self, size, flags=0, **how):
        return self.request(wire.FUSE_READ, wire.READ_IN.pack(1, 0, size, 0, 0, flags, 0), **how)

    def write(self, data, flags=0):
        return self.request(wire.FUSE_WRITE, wire.READ_IN.pack(1, 0, len(data), 0, 0, flags, 0), data)

    def written(self, data, flags=0):
        """What a write that need not wait says: (errno, bytes taken)."""
        error, payload = self.answer(self.write(data, flags))
        return error, wire.WRITE_OUT.unpack(payload)[0] if payload else 0

    def poll(self, handle=7):
        error, payload = self.answer(self.request(wire.FUSE_POLL, wire.POLL_IN.pack(1, handle, 1, 0)))
        assert error == 0
        return wire.POLL_OUT.unpack(payload)[0]

    def interrupt(self, unique):
        before = len(self.answers)
        self.request(wire.FUSE_INTERRUPT, wire.INTERRUPT_IN.pack(unique))
        return len(self.answers) - before


@pytest.fixture
def plugged(machine):
    """(kernel, the device's port, the host's end, the driver's port)."""
    port, device_port, host = machine.plug()
    return Kernel(port), device_port, host, port


IN, OUT, HUP = select.POLLIN | select.POLLRDNORM, select.POLLOUT, select.POLLHUP


def test_opening_opens_the_port_and_the_last_close_closes_it(machine, plugged):
    kernel, device_port, _, _ = plugged
    assert kernel.open()[0] == 0
    machine.until(lambda: device_port.guest_open)
    assert kernel.open()[0] == errno.EBUSY
    assert kernel.close() == (0, b"")
    machine.until(lambda: not device_port.guest_open)
    assert kernel.open()[0] == 0


def test_a_console_is_enxio(machine):
    port, _, _ = machine.plug(0, None, is_console=True)
    machine.until(lambda: port.is_console)
    assert Kernel(port).open()[0] == errno.ENXIO


def test_a_port_that_a_library_user_has_is_busy(plugged):
    from virtserial.driver.ports import PortListener

    kernel, _, _, port = plugged
    port.open(PortListener())
    assert kernel.open()[0] == errno.EBUSY


def test_a_write_goes_to_the_host_and_says_how_much_was_taken(machine, plugged):
    kernel, _, host, _ = plugged
    kernel.open()
    assert kernel.written(b"hello") == (0, 5)
    machine.until(lambda: host.taken == b"hello")


def test_a_write_takes_32_kib_at_most(machine, plugged):
    kernel, _, host, _ = plugged
    kernel.open()
    data = bytes(n % 251 for n in range(wire.MAX_REQUEST_DATA))
    assert kernel.written(data) == (0, wire.MAX_TRANSFER)
    machine.until(lambda: host.taken == data[: wire.MAX_TRANSFER])


def test_a_read_gives_what_came_and_waits_where_nothing_did(machine, plugged):
    kernel, _, host, _ = plugged
    kernel.open()
    first, second = kernel.read(100), kernel.read(100)
    assert kernel.answer(first) is None
    host.give(b"one")
    machine.until(lambda: kernel.answer(first))
    assert kernel.answer(first) == (0, b"one")
    assert kernel.answer(second) is None
    host.give(b"two")
    machine.until(lambda: kernel.answer(second) == (0, b"two"))


def test_a_read_is_never_longer_than_was_asked_for_nor_than_32_kib(machine, plugged):
    kernel, _, host, port = plugged
    kernel.open()
    host.give(bytes(100_000))
    machine.until(lambda: sum(map(len, port.readable_views())) > 70_000)
    assert len(kernel.answer(kernel.read(10))[1]) == 10
    assert len(kernel.answer(kernel.read(wire.MAX_REQUEST_DATA))[1]) == wire.MAX_TRANSFER


def test_nonblocking_calls_say_again_instead_of_waiting(machine, plugged):
    kernel, _, host, _ = plugged
    host.room = 0
    kernel.open()
    assert kernel.answer(kernel.read(10, O_NONBLOCK)) == (errno.EAGAIN, b"")
    taken = 0
    while (answer := kernel.written(bytes(32768), O_NONBLOCK))[0] == 0:
        taken += answer[1]
        machine.loop.run_once(timeout=0.001)
    assert answer == (errno.EAGAIN, 0)
    host.make_room()
    machine.until(lambda: len(host.taken) == taken)


def test_a_blocked_write_is_done_when_the_host_makes_room_in_order(machine, plugged):
    kernel, _, host, _ = plugged
    host.room = 0
    kernel.open()
    taken = 0
    while kernel.answer(unique := kernel.write(b"a" * 32768)) is not None:
        taken += 32768
        machine.loop.run_once(timeout=0.001)
    later = kernel.write(b"b" * 10)
    assert kernel.answer(later) is None
    host.make_room()
    machine.until(lambda: kernel.answer(later))
    assert wire.WRITE_OUT.unpack(kernel.answer(unique)[1])[0] == 32768
    machine.until(lambda: host.taken == b"a" * (taken + 32768) + b"b" * 10)


def test_reads_end_when_the_host_has_left_and_all_is_read(machine, plugged):
    kernel, device_port, host, port = plugged
    kernel.open()
    host.give(b"last words")
    machine.until(lambda: port.readable_views())
    device_port.detach()
    machine.until(lambda: not port.host_connected)
    assert kernel.poll() == IN | HUP
    assert kernel.answer(kernel.read(100)) == (0, b"last words")
    assert kernel.answer(kernel.read(100)) == (0, b"")
    assert kernel.answer(kernel.write(b"x")) is None
    assert kernel.answer(kernel.write(b"x", O_NONBLOCK)) == (errno.EAGAIN, b"")


def test_a_read_that_waits_ends_when_the_host_leaves(machine, plugged):
    kernel, device_port, _, _ = plugged
    kernel.open()
    unique = kernel.read(100)
    device_port.detach()
    machine.until(lambda: kernel.answer(unique) == (0, b""))


def test_a_signal_ends_the_call_that_waits_and_only_that(machine, plugged):
    kernel, _, host, _ = plugged
    kernel.open()
    first, second = kernel.read(10), kernel.read(10)
    assert kernel.interrupt(first) == 1
    assert kernel.answer(first) == (errno.EINTR, b"")
    assert kernel.interrupt(first) == 0
    assert kernel.interrupt(999_999) == 0
    host.give(b"data")
    machine.until(lambda: kernel.answer(second) == (0, b"data"))


def test_bytes_for_a_caller_that_was_killed_go_to_the_next(machine, plugged):
    kernel, _, host, _ = plugged
    kernel.open()
    kernel.read(10, killed=True)
    second = kernel.read(10)
    host.give(b"precious")
    machine.until(lambda: kernel.answer(second))
    assert kernel.answer(second) == (0, b"precious")


def test_poll_tells_and_wakes_once_for_every_time_it_was_asked(machine, plugged):
    kernel, device_port, host, port = plugged
    kernel.open()
    machine.until(lambda: kernel.poll(7) == OUT)
    kernel.woken.clear()
    assert kernel.poll(7) == OUT
    host.give(b"x")
    machine.until(lambda: kernel.woken)
    device_port.detach()
    machine.until(lambda: not port.host_connected)
    assert kernel.woken == [7]
    assert kernel.poll(7) == IN | HUP


def test_a_poller_that_reads_one_message_at_a_time_hears_of_the_next(machine, plugged):
    kernel, _, host, _ = plugged
    kernel.open()
    kernel.poll(7)
    for number in range(5):
        kernel.woken.clear()
        host.give(b"message %d" % number)
        machine.until(lambda: kernel.woken)
        assert kernel.poll(7) & IN
        assert kernel.answer(kernel.read(100)) == (0, b"message %d" % number)


def test_unplugging_refuses_what_waits_and_everything_until_the_last_close(machine):
    port, _, _ = machine.plug()
    released = []
    kernel = Kernel(port, lambda: released.append(True))
    kernel.open()
    kernel.poll(9)
    kernel.woken.clear()
    unique = kernel.read(10)
    machine.device.remove_port(1)
    machine.until(lambda: kernel.answer(unique))
    assert kernel.answer(unique) == (errno.ENODEV, b"")
    assert kernel.woken == [9]
    assert kernel.answer(kernel.read(1)) == (errno.ENODEV, b"")
    assert kernel.answer(kernel.write(b"x")) == (errno.ENODEV, b"")
    assert kernel.open() == (errno.ENODEV, b"")
    assert kernel.poll() == HUP
    assert kernel.node.in_use
    assert released == []
    assert kernel.close() == (0, b"")
    assert released == [True]


def test_so_many_may_wait_and_no_more(plugged):
    kernel, _, _, _ = plugged
    kernel.open()
    waiting = [kernel.read(10) for _ in range(MAX_WAITING)]
    assert not any(kernel.answer(unique) for unique in waiting)
    assert kernel.answer(kernel.read(10)) == (errno.EAGAIN, b"")
    kernel.interrupt(waiting[0])
    assert kernel.answer(kernel.read(10)) is None


def test_requests_that_a_port_does_not_have_are_refused(plugged):
    kernel, _, _, _ = plugged
    kernel.open()
    assert kernel.answer(kernel.request(wire.FUSE_IOCTL, bytes(32)))[0] == errno.ENOTTY
    assert kernel.answer(kernel.request(21, bytes(16)))[0] == errno.ENOSYS
    assert kernel.answer(kernel.request(wire.FUSE_READ, b"short"))[0] == errno.ENOSYS
    for opcode in wire.WITHOUT_REPLY:
        assert kernel.answer(kernel.request(opcode, b"")) is None


def test_a_device_that_lies_in_the_middle_of_a_call_is_enodev(loop):
    device = LyingDevice()
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    device.send(1, VIRTIO_CONSOLE_PORT_ADD)
    device.send(1, VIRTIO_CONSOLE_PORT_OPEN)
    kernel = Kernel(driver.ports[1])
    assert kernel.open()[0] == 0
    waiting = kernel.read(10)
    device.use(4, 999, 1)
    assert kernel.answer(kernel.read(10, O_NONBLOCK)) in ((errno.EAGAIN, b""), (errno.ENODEV, b""))
    device.sink.queue_interrupt(4)
    assert kernel.answer(waiting) == (errno.ENODEV, b"")
    assert kernel.answer(kernel.write(b"x")) == (errno.ENODEV, b"")


@pytest.fixture
def slow_interrupts():
    """(kernel, device): a device that fills and empties queues without telling the driver."""
    device = LyingDevice()
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    device.send(1, VIRTIO_CONSOLE_PORT_ADD)
    device.send(1, VIRTIO_CONSOLE_PORT_OPEN)
    kernel = Kernel(driver.ports[1])
    kernel.open()
    return kernel, device


def test_who_came_first_reads_first(slow_interrupts):
    kernel, device = slow_interrupts
    first = kernel.read(10)
    head, address, _ = device.next_chain(4)
    device.memory.write(address, b"the data")
    device.use(4, head, 8)
    second = kernel.read(10)
    assert kernel.answer(first) is None
    assert kernel.answer(second) is None
    device.sink.queue_interrupt(4)
    assert kernel.answer(first) == (0, b"the data")
    assert kernel.answer(second) is None


def test_who_came_first_writes_first(slow_interrupts):
    kernel, device = slow_interrupts
    while kernel.answer(first := kernel.write(b"a" * 32768)) is not None:
        pass
    taken = []
    while (chain := device.next_chain(5)) is not None:
        taken.append(chain)
        device.use(5, chain[0], 0)
    second = kernel.write(b"b")
    assert kernel.answer(second) is None
    device.sink.queue_interrupt(5)
    assert kernel.answer(first)[0] == kernel.answer(second)[0] == 0
    chains = [device.next_chain(5), device.next_chain(5)]
    assert [bytes(device.memory.read(address, 1)) for _, address, _ in chains] == [b"a", b"b"]


def test_a_port_that_flaps_leaves_nothing_behind(loop):
    device = LyingDevice()
    driver = ConsoleDriver(device, memory=device.memory)
    driver.start()
    for _ in range(200):
        device.send(1, VIRTIO_CONSOLE_PORT_ADD)
        kernel = Kernel(driver.ports[1])
        assert kernel.open()[0] == 0
        device.send(1, VIRTIO_CONSOLE_PORT_REMOVE)
        assert kernel.answer(kernel.read(1)) == (errno.ENODEV, b"")
        device.take_control()
    assert len(device.memory.regions) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2, 14, 15, 16, 18, 25, 36, 39, 40, 42, 4096, 1 << 31]), st.binary(max_size=60)),
        max_size=20,
    )
)
def test_no_request_ends_the_process_and_each_has_one_answer_at_most(plugged, requests):
    kernel = Kernel(plugged[3])
    kernel.open()
    for opcode, body in requests:
        kernel.request(opcode, body, b"data")
    kernel.close()


@pytest.mark.parametrize("opcode", [15, 16, 40], ids=["read", "write", "poll"])
def test_a_request_for_a_node_that_nobody_has_open_is_refused(plugged, opcode):
    kernel = Kernel(plugged[3])
    assert kernel.answer(kernel.request(opcode, bytes(40), b"data")) == (errno.EBADF, b"")
    kernel.open()
    kernel.close()
    assert kernel.answer(kernel.request(opcode, bytes(40), b"data")) == (errno.EBADF, b"")


def test_a_node_s_name_ends_the_answer_to_the_kernel_s_greeting():
    reply = wire.init_reply(38, "vport0p1")
    assert wire.INIT_OUT.unpack_from(reply)[:6] == (7, wire.KNOWN_MINOR_VERSION, 0, 0, 36864, 36864)
    assert reply[wire.INIT_OUT.size :] == b"DEVNAME=vport0p1\0"
    assert wire.INIT_OUT.size == 72
    assert wire.INIT_OUT.unpack_from(wire.init_reply(11, "x"))[1] == 11


def test_replies_and_wake_ups_have_the_kernel_s_layout():
    assert wire.reply_header(5, 0, 3) == struct.pack("=IiQ", 19, 0, 5)
    assert wire.reply_header(5, errno.EBUSY, 0) == struct.pack("=IiQ", 16, -errno.EBUSY, 5)
    assert wire.poll_wakeup(3) == struct.pack("=IiQQ", 24, 1, 0, 3)
    assert wire.Request.parse(b"short") is None
