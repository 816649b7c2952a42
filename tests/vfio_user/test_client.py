"""The client: against the real server over a socket, and against servers that lie."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time

import pytest
from support.served_device import NOTIFY, build_server, sealed_memory

from virtserial.errors import PeerError, StateError
from virtserial.vfio_user import wire
from virtserial.vfio_user.client import Client
from virtserial.vfio_user.dma import MessageMemory
from virtserial.vfio_user.stream import MessageStream

TIMEOUT = 2.0


class RunningServer(threading.Thread):
    """Server and stream in a thread, as a worker runs them."""

    def __init__(self, sock):
        super().__init__(daemon=True)
        self.server = build_server()
        self.device = self.server.device
        self.stream = MessageStream(sock, self.server)
        self.device.access = MessageMemory(self.stream, self.server.session)
        self.work = []
        self.wake = os.eventfd(0)
        self.failure = None

    def run(self):
        poll = select.poll()
        poll.register(self.stream, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        try:
            while not self.stream.at_end:
                events = poll.poll()
                if any(fd == self.wake for fd, _ in events):
                    os.eventfd_read(self.wake)
                    for call in self.work:
                        call()
                    self.work.clear()
                while self.stream.serve():
                    pass
        except BaseException as error:
            self.failure = error
        self.stream.abandon()
        self.server.disconnected()
        os.close(self.wake)

    def do(self, call):
        """Run a call in the server's thread."""
        self.work.append(call)
        os.eventfd_write(self.wake, 1)


class Memory:
    def __init__(self):
        self.data = bytearray(b"guest" + bytes(0x20000))

    def read(self, iova, length):
        if iova + length > len(self.data):
            raise PeerError("no such memory", errno.EFAULT)
        return bytes(self.data[iova : iova + length])

    def write(self, iova, data):
        self.read(iova, len(data))
        self.data[iova : iova + len(data)] = data


@pytest.fixture
def running():
    ours, theirs = socket.socketpair()
    made = RunningServer(theirs)
    made.start()
    made.memory = Memory()
    made.client = Client(ours, timeout=TIMEOUT, dma_handler=made.memory)
    yield made
    made.client.close()
    made.join(60)
    assert made.failure is None


class TestWithTheServer:
    def test_infos(self, running):
        client = running.client
        assert (client.info.num_regions, client.info.num_irqs, client.info.flags) == (9, 5, 3)
        assert client.region_info(7).size == 256
        assert client.irq_info(2).count == 32
        assert client.capabilities.max_data_xfer_size == 65536
        assert client.capabilities.max_msg_fds == 16

    def test_registers(self, running):
        client = running.client
        assert client.region_read(7, 0, 4) == b"\xf4\x1a\x43\x10"
        client.region_write(4, 0x14, b"\1")
        client.region_write(4, 0x14, b"\3", posted=True)
        assert client.region_read(4, 0x14, 1) == b"\3"
        client.reset()
        assert client.region_read(4, 0x14, 1) == b"\0"

    def test_refusals_carry_the_errno(self, running):
        with pytest.raises(PeerError, match="Invalid argument") as refused:
            running.client.region_read(7, 256, 1)
        assert refused.value.errno == errno.EINVAL
        running.client.dma_map(0, 0x1000)
        with pytest.raises(PeerError) as refused:
            running.client.dma_map(0, 0x1000)
        assert refused.value.errno == errno.EEXIST

    def test_doorbells(self, running):
        for number in range(3000):
            running.client.region_write(4, NOTIFY + 4 * (number % 4), bytes(2), posted=True)
        running.client.region_read(7, 0, 1)
        assert running.device.doorbells == [number % 4 for number in range(3000)]

    def test_memory_by_descriptor(self, running):
        fd = sealed_memory(0x3000)
        os.pwrite(fd, b"shared", 0x1000)
        running.client.dma_map(0x8000, 0x1000, fd=fd, offset=0x1000, writable=False)
        assert running.device.memory.read(0x8000, 6) == b"shared"
        running.client.dma_unmap(0x8000, 0x1000)
        running.client.dma_map(0, 0x1000)
        running.client.dma_unmap_all()
        assert len(running.device.memory) == 0
        os.close(fd)

    def test_memory_by_messages(self, running):
        running.client.dma_map(0, 0x20000)
        results = []

        def use():
            results.append(running.device.memory.read(0, 5))
            running.device.memory.write(0x100, bytes(range(256)) * 400)
            # A write does not wait for its answer; the read behind it does.
            running.device.memory.read(0, 1)
            results.append("done")

        running.do(use)
        while "done" not in results:
            select.select([running.client], [], [], 0.01)
            running.client.poll()
        assert results[0] == b"guest"
        assert running.memory.data[0x100 : 0x100 + 102400] == bytes(range(256)) * 400

    def test_memory_by_messages_while_a_request_is_under_way(self, running):
        running.client.dma_map(0, 0x20000)
        results = []
        for _ in range(50):
            running.do(lambda: results.append(running.device.memory.read(0, 5)))
            assert running.client.region_read(7, 0, 2) == b"\xf4\x1a"
        while len(results) < 50:
            running.client.poll()
        assert set(results) == {b"guest"}

    def test_eventfds_go_in_messages_of_at_most_16_and_gaps_by_themselves(self, running):
        eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(32)]
        running.client.set_irqs(2, 0, eventfds)
        running.client.set_irqs(2, 3, [-1, -1, eventfds[5], -1])
        running.client.trigger_irqs(2, 0, 32)
        assert [bool(select.select([fd], [], [], 0)[0]) for fd in eventfds] == [
            number not in (3, 4, 6) for number in range(32)
        ]
        running.client.disable_irqs(2)
        assert not running.device.interrupts.uses_msix
        for fd in eventfds:
            os.close(fd)

    def test_intx(self, running):
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)
        running.client.set_irqs(0, 0, [eventfd])
        running.client.mask_irqs()
        running.do(running.device.config_interrupt)
        running.client.region_read(7, 0, 1)
        assert not select.select([eventfd], [], [], 0.01)[0]
        running.client.unmask_irqs()
        assert os.eventfd_read(eventfd) == 1
        os.close(eventfd)

    def test_reconnect_finds_the_device_as_it_was(self, running):
        running.client.region_write(4, 0x14, b"\1")
        running.client.close()
        running.join(60)
        ours, theirs = socket.socketpair()
        second = RunningServer(theirs)
        second.server, second.device = running.server, running.device
        second.stream = MessageStream(theirs, running.server)
        second.start()
        with Client(ours, timeout=TIMEOUT) as client:
            assert client.region_read(4, 0x14, 1) == b"\1"
        second.join(60)


def test_by_path(tmp_path):
    path = tmp_path / "device.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: RunningServer(listener.accept()[0]).run())
        thread.start()
        with Client(path, timeout=TIMEOUT) as client:
            assert client.info.num_regions == 9
        thread.join(60)


def test_nobody_listens(tmp_path):
    with pytest.raises(FileNotFoundError):
        Client(tmp_path / "nothing.sock")


# Servers that lie: a function turns each honest reply into what is sent.


def region_body(offset=0, region=7, count=4):
    return struct.pack("<QII", offset, region, count)


HONEST = {
    wire.VFIO_USER_VERSION: struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":1}}\0',
    wire.VFIO_USER_DEVICE_GET_INFO: struct.pack("<IIII", 16, 3, 9, 5),
    wire.VFIO_USER_DEVICE_GET_REGION_INFO: struct.pack("<IIIIQQ", 32, 3, 7, 0, 256, 0),
    wire.VFIO_USER_DEVICE_GET_IRQ_INFO: struct.pack("<IIII", 16, 1, 2, 3),
    wire.VFIO_USER_REGION_READ: region_body() + b"data",
    wire.VFIO_USER_REGION_WRITE: region_body(),
    wire.VFIO_USER_DEVICE_RESET: b"",
    wire.VFIO_USER_DEVICE_SET_IRQS: b"",
}


class LyingServer(threading.Thread):
    """Answers as it is told: by (command, a function of header and honest body that returns bytes to send)."""

    def __init__(self, sock, command, lie):
        super().__init__(daemon=True)
        self.sock, self.command, self.lie = sock, command, lie
        self.requests = []

    def run(self):
        stream = self.sock.makefile("rb")
        with self.sock, stream:
            while len(head := stream.read(16)) == 16:
                header = wire.Header.unpack_from(head)
                body = stream.read(header.size - 16)
                self.requests.append((header, body))
                if header.flags & wire.VFIO_USER_REPLY:
                    continue
                honest = HONEST.get(header.command, b"")
                answer = self.lie(header, honest) if header.command == self.command else wire.reply(header, honest)
                if answer is None:
                    return
                self.sock.sendall(answer)


@pytest.fixture
def lying():
    made = []

    def connect(command, lie, **options):
        ours, theirs = socket.socketpair()
        server = LyingServer(theirs, command, lie)
        server.start()
        made.append((ours, server))
        return Client(ours, **{"timeout": 0.3, **options})

    yield connect
    for ours, server in made:
        ours.close()
        server.join(60)


def say(body):
    return lambda header, honest: wire.reply(header, body)


@pytest.mark.parametrize(
    ("command", "lie"),
    [
        (wire.VFIO_USER_VERSION, say(b"")),
        (wire.VFIO_USER_VERSION, say(struct.pack("<HH", 1, 0))),
        (wire.VFIO_USER_VERSION, say(struct.pack("<HH", 0, 1))),
        (wire.VFIO_USER_VERSION, say(bytes(4) + b"{}")),
        (wire.VFIO_USER_DEVICE_GET_INFO, say(struct.pack("<III", 16, 3, 9))),
        (wire.VFIO_USER_DEVICE_GET_INFO, say(struct.pack("<IIII", 12, 3, 9, 5))),
        (wire.VFIO_USER_DEVICE_GET_INFO, say(struct.pack("<IIII", 16, 3, 101, 5))),
        (wire.VFIO_USER_DEVICE_GET_INFO, say(struct.pack("<IIII", 16, 3, 9, 51))),
        (wire.VFIO_USER_VERSION, lambda header, honest: wire.reply(header._replace(id=header.id + 1), honest)),
        (wire.VFIO_USER_VERSION, lambda header, honest: wire.reply(header._replace(command=9), honest)),
        (wire.VFIO_USER_VERSION, lambda header, honest: header._replace(size=15, flags=1).pack()),
        (wire.VFIO_USER_VERSION, lambda header, honest: header._replace(size=1 << 20, flags=1).pack()),
        (wire.VFIO_USER_VERSION, lambda header, honest: header._replace(size=16, flags=2).pack()),
        (wire.VFIO_USER_VERSION, lambda header, honest: wire.error_reply(header, 22)),
        (wire.VFIO_USER_VERSION, lambda header, honest: wire.reply(header, honest)[:-3]),
        (wire.VFIO_USER_VERSION, lambda header, honest: None),
        (wire.VFIO_USER_DEVICE_GET_INFO, lambda header, honest: b""),
    ],
)
def test_a_connection_is_not_made(lying, command, lie):
    with pytest.raises(PeerError):
        lying(command, lie)


CALLS = {
    wire.VFIO_USER_DEVICE_GET_REGION_INFO: lambda client: client.region_info(7),
    wire.VFIO_USER_DEVICE_GET_IRQ_INFO: lambda client: client.irq_info(2),
    wire.VFIO_USER_REGION_READ: lambda client: client.region_read(7, 0, 4),
    wire.VFIO_USER_REGION_WRITE: lambda client: client.region_write(7, 0, b"data"),
    wire.VFIO_USER_DEVICE_RESET: lambda client: client.reset(),
}


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (wire.VFIO_USER_DEVICE_GET_REGION_INFO, b""),
        (wire.VFIO_USER_DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 31, 3, 7, 0, 256, 0)),
        (wire.VFIO_USER_DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 3, 6, 0, 256, 0)),
        (wire.VFIO_USER_DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 1, 1, 3)),
        (wire.VFIO_USER_DEVICE_GET_IRQ_INFO, struct.pack("<III", 16, 1, 2)),
        (wire.VFIO_USER_REGION_READ, b""),
        (wire.VFIO_USER_REGION_READ, region_body() + b"dat"),
        (wire.VFIO_USER_REGION_READ, region_body() + b"data!"),
        (wire.VFIO_USER_REGION_READ, region_body(count=3) + b"data"),
        (wire.VFIO_USER_REGION_READ, region_body(offset=4) + b"data"),
        (wire.VFIO_USER_REGION_READ, region_body(region=6) + b"data"),
        (wire.VFIO_USER_REGION_WRITE, b""),
        (wire.VFIO_USER_REGION_WRITE, region_body(count=3)),
    ],
)
def test_a_lie_about_the_device_is_seen(lying, command, body):
    client = lying(command, say(body))
    with pytest.raises(PeerError) as seen:
        CALLS[command](client)
    assert seen.value.errno == errno.EPROTO


@pytest.mark.parametrize("command", CALLS)
def test_honest_answers_are_believed(lying, command):
    CALLS[command](lying(command, lambda header, honest: wire.reply(header, honest)))


def test_a_server_that_dies(lying):
    client = lying(wire.VFIO_USER_DEVICE_RESET, lambda header, honest: None)
    with pytest.raises(PeerError) as seen:
        client.reset()
    assert seen.value.errno == errno.ECONNRESET
    with pytest.raises(PeerError):
        client.region_write(7, 0, b"x", posted=True)
    with pytest.raises(PeerError):
        client.poll()


def test_a_server_that_does_not_answer(lying):
    client = lying(wire.VFIO_USER_DEVICE_RESET, lambda header, honest: b"")
    with pytest.raises(PeerError) as seen:
        client.reset()
    assert seen.value.errno == errno.ETIMEDOUT


def test_a_server_that_takes_one_descriptor_gets_one_at_a_time(lying):
    eventfd = os.eventfd(0)
    client = lying(0, None)
    client.set_irqs(2, 0, [eventfd, eventfd, -1, -1])
    server = next(thread for thread in threading.enumerate() if isinstance(thread, LyingServer))
    sets = [struct.unpack("<IIIII", body) for header, body in server.requests if header.command == 8]
    assert [(start, count) for *_, start, count in sets] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    os.close(eventfd)


class TestRequestsOfTheServer:
    def ask(self, lying, *requests, handler=None):
        """Send requests before the reply to a reset; return what came back."""

        def lie(header, honest):
            return b"".join(requests) + wire.reply(header, honest)

        client = lying(wire.VFIO_USER_DEVICE_RESET, lie, dma_handler=handler)
        server = next(thread for thread in threading.enumerate() if isinstance(thread, LyingServer))
        client.reset()
        for _ in range(200):
            replies = [message for message in server.requests if message[0].flags & 1]
            if len(replies) == sum(not wire.Header.unpack_from(request).flags & 16 for request in requests):
                return replies
            time.sleep(0.01)
        raise AssertionError("replies are missing")

    def dma(self, command, address, count, data=b"", flags=0):
        return wire.request(command, 77, struct.pack("<QQ", address, count) + data, flags)

    def test_are_answered_first(self, lying):
        memory = Memory()
        (read, write) = self.ask(
            lying,
            self.dma(wire.VFIO_USER_DMA_READ, 0, 5),
            self.dma(wire.VFIO_USER_DMA_WRITE, 5, 3, b"abc", flags=wire.VFIO_USER_NO_REPLY),
            self.dma(wire.VFIO_USER_DMA_WRITE, 8, 2, b"de"),
            handler=memory,
        )
        assert read[1] == struct.pack("<QQ", 0, 5) + b"guest"
        assert write[1] == struct.pack("<QQ", 8, 2)
        assert memory.data[:10] == b"guestabcde"

    @pytest.mark.parametrize(
        ("command", "address", "count", "data", "expected"),
        [
            (wire.VFIO_USER_DMA_READ, 0x30000, 4, b"", errno.EFAULT),
            (wire.VFIO_USER_DMA_READ, 0, 65537, b"", errno.E2BIG),
            (wire.VFIO_USER_DMA_READ, 0, 1 << 32, b"", errno.E2BIG),
            (wire.VFIO_USER_DMA_WRITE, 0, 4, b"abc", errno.EINVAL),
            (wire.VFIO_USER_DMA_WRITE, 0, 2, b"abc", errno.EINVAL),
            (wire.VFIO_USER_REGION_READ, 0, 4, b"", errno.ENOSYS),
        ],
    )
    def test_nonsense_is_refused(self, lying, command, address, count, data, expected):
        ((header, _),) = self.ask(lying, self.dma(command, address, count, data), handler=Memory())
        assert (header.flags, header.error) == (0x21, expected)

    def test_a_short_one_is_refused(self, lying):
        ((header, _),) = self.ask(lying, wire.request(wire.VFIO_USER_DMA_READ, 1, b"short"), handler=Memory())
        assert header.error == errno.EINVAL

    def test_without_handler_they_are_refused(self, lying):
        ((header, _),) = self.ask(lying, self.dma(wire.VFIO_USER_DMA_READ, 0, 4))
        assert header.error == errno.ENOSYS

    def test_a_reply_to_nothing_is_seen_by_poll(self, lying):
        client = lying(wire.VFIO_USER_DEVICE_RESET, lambda header, honest: wire.reply(header) * 2)
        client.reset()
        with pytest.raises(PeerError, match="answers no request"):
            client.poll()

    def test_poll_does_not_wait(self, lying):
        lying(0, None).poll()


def test_a_server_that_does_not_read_stops_a_posted_write_in_the_end():
    ours, theirs = socket.socketpair()
    server = LyingServer(theirs, wire.VFIO_USER_DEVICE_GET_INFO, lambda header, honest: wire.reply(header, honest))
    server.start()
    client = Client(ours, timeout=0.2)
    server_stop = threading.Event()
    server.lie = lambda header, honest: (server_stop.wait(5), None)[1]
    server.command = wire.VFIO_USER_REGION_WRITE
    with pytest.raises(PeerError) as seen:
        for _ in range(100000):
            client.region_write(4, 0, bytes(1024), posted=True)
    assert seen.value.errno == errno.ETIMEDOUT
    server_stop.set()
    server.join(60)
    client.close()


def test_a_server_that_talks_without_end(lying):
    """Requests without end, none of which the client was called to serve."""
    client = lying(0, None)
    server = next(thread for thread in threading.enumerate() if isinstance(thread, LyingServer))
    endless = wire.Header(1, wire.VFIO_USER_DMA_READ, 60000, 0, 0).pack() + bytes(60000 - 16)
    with pytest.raises(PeerError) as seen:
        for _ in range(1000):
            server.sock.sendall(endless)
            client._receive()
    assert seen.value.errno == errno.EPROTO


def test_a_closed_client_says_so(lying):
    client = lying(0, None)
    client.close()
    with pytest.raises(StateError, match="closed"):
        client.poll()
