"""Guest memory by messages, with clients that speak the specified form and that of QEMU 10.1."""

from __future__ import annotations

import errno
import socket
import struct
import threading

import pytest
from support.served_device import build_server, handle, version

from virtserial.errors import AccessPending, AddressError, PeerError
from virtserial.vfio_user import wire
from virtserial.vfio_user.dma import MessageMemory
from virtserial.vfio_user.stream import MessageStream

SIZE = 0x40000


class MemoryClient(threading.Thread):
    """A client with memory at addresses 0 to SIZE, in a thread of its own."""

    def __init__(self, sock):
        super().__init__(daemon=True)
        self.sock = sock
        self.memory = bytearray(index * 7 % 251 for index in range(SIZE))
        self.requests = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def run(self):
        stream = self.sock.makefile("rb")
        while len(head := stream.read(16)) == 16:
            header = wire.Header.unpack_from(head)
            body = stream.read(header.size - 16)
            self.requests.append(header)
            self.may_answer.wait(5)
            self.sock.sendall(self.answer(header, body))
        stream.close()

    def answer(self, header, body):
        address, count = struct.unpack_from("<QQ", body)
        if count > 65536:
            return wire.error_reply(header, errno.E2BIG)
        if address + count > SIZE:
            return wire.error_reply(header, errno.EFAULT)
        if header.command == wire.VFIO_USER_DMA_READ:
            return wire.reply(header, body[:16] + self.memory[address : address + count])
        assert len(body) == 16 + count
        self.memory[address : address + count] = body[16:]
        return wire.reply(header, body[:16])


class Qemu101MemoryClient(MemoryClient):
    """As hw/vfio-user/pci.c of QEMU 10.1: count of 32 bits, data at byte 12, 4 bytes more at the end."""

    def answer(self, header, body):
        address, count = struct.unpack_from("<QI", body)
        assert count <= 65536
        if address + count > SIZE:
            return wire.error_reply(header, errno.EFAULT)
        if header.command == wire.VFIO_USER_DMA_READ:
            message = bytearray(body[:16] + bytes(count))
            message[12 : 12 + count] = self.memory[address : address + count]
            return wire.reply(header, bytes(message))
        assert count <= header.size - 32
        self.memory[address : address + count] = body[12 : 12 + count]
        return wire.reply(header)


class ShortReplyClient(MemoryClient):
    """A 4-byte count in the reply to a write, as one table of the specification has it."""

    def answer(self, header, body):
        answer = super().answer(header, body)
        if header.command == wire.VFIO_USER_DMA_WRITE and len(answer) > 16:
            return wire.reply(header, body[:12])
        return answer


class Connection:
    def __init__(self, client_class, **options):
        ours, theirs = socket.socketpair()
        self.client = client_class(theirs, **options)
        self.client.start()
        server = build_server()
        handle(server, version())
        self.stream = MessageStream(ours, server)
        self.session = server.session
        self.refused = []
        self.memory = MessageMemory(self.stream, self.session, on_refused=self.refused.append)

    def write(self, address, data):
        """Write, and have everything answered."""
        self.memory.dma_write(address, data)
        self.memory.dma_read(0, 1)

    def close(self):
        self.stream.abandon()
        self.client.join(60)
        self.client.sock.close()


@pytest.fixture(params=[MemoryClient, Qemu101MemoryClient, ShortReplyClient])
def connection(request):
    made = Connection(request.param)
    yield made
    made.close()


@pytest.mark.parametrize(("address", "length"), [(0, 1), (3, 2), (5, 4), (0, 16), (100, 4096), (1, 65536), (7, 200000)])
def test_read(connection, address, length):
    expected = bytes(connection.client.memory[address : address + length])
    assert connection.memory.dma_read(address, length) == expected


def test_zeros_are_read_as_zeros(connection):
    connection.client.memory[:64] = bytes(64)
    connection.client.memory[8] = 1
    assert connection.memory.dma_read(0, 16) == bytes(8) + b"\1" + bytes(7)
    assert connection.memory.dma_read(8, 1) == b"\1"


@pytest.mark.parametrize("length", [1, 2, 8, 4096, 65536, 150000])
def test_write(connection, length):
    data = bytes(index % 255 for index in range(length))
    connection.write(11, memoryview(data))
    assert connection.client.memory[11 : 11 + length] == data
    assert connection.client.memory[10] == 70
    assert connection.client.memory[11 + length] == (11 + length) * 7 % 251


def test_nothing_needs_no_message(connection):
    connection.memory.dma_write(0, b"")
    assert connection.memory.dma_read(0, 0) == b""


def test_the_form_is_asked_once(connection):
    for _ in range(5):
        connection.memory.dma_read(0, 4)
    assert len(connection.client.requests) == 6


def test_an_address_that_the_client_does_not_have(connection):
    connection.memory.dma_read(0, 4)
    with pytest.raises(AddressError, match="Bad address"):
        connection.memory.dma_read(SIZE - 2, 4)
    connection.write(SIZE, b"1234")
    (error,) = connection.refused
    assert isinstance(error, AddressError)
    assert "Bad address" in str(error)


def test_large_accesses_keep_the_clients_limit():
    made = Connection(MemoryClient)
    made.session.max_data_xfer_size = 4096
    made.write(0, bytes(10000))
    made.close()
    assert [header.size - 32 for header in made.client.requests[1:-1]] == [4096, 4096, 1808]


class LyingClient(MemoryClient):
    def __init__(self, sock, lie):
        super().__init__(sock)
        self.lie = lie

    def answer(self, header, body):
        honest = super().answer(header, body)
        return honest if struct.unpack_from("<Q", body, 8)[0] > 65536 else wire.reply(header, self.lie(honest[16:]))


@pytest.mark.parametrize(
    "lie",
    [
        lambda body: b"",
        lambda body: body[:15],
        lambda body: body[:-1],
        lambda body: struct.pack("<QQ", 1, 8) + body[16:],
        lambda body: struct.pack("<QQ", 0, 7) + body[16:],
    ],
)
def test_a_reply_that_is_not_about_the_read(lie):
    made = Connection(LyingClient, lie=lie)
    with pytest.raises(PeerError, match="DMA_READ of 8 bytes"):
        made.memory.dma_read(0, 8)
    made.close()


@pytest.mark.parametrize("lie", [lambda body: body[:11], lambda body: struct.pack("<QQ", 0, 7)])
def test_a_reply_that_is_not_about_the_write(lie):
    made = Connection(LyingClient, lie=lie)
    made.memory.dma_write(0, bytes(8))
    with pytest.raises(PeerError, match="another access"):
        while True:
            made.stream.serve()
    made.close()


def test_posts_have_the_clients_form(connection):
    assert not connection.memory.can_post
    connection.memory.prepare_posts(0)
    assert connection.memory.can_post
    assert connection.memory.post(0x100, 0x12345678)
    # This client answers what wants no answer.  A request behind it finds the right reply nevertheless.
    assert connection.memory.dma_read(0x100, 4) == b"\x78\x56\x34\x12"
    assert connection.memory.dma_read(0x104, 1) == bytes([0x104 * 7 % 251])
    assert [header.flags for header in connection.client.requests] == [0, wire.VFIO_USER_NO_REPLY, 0, 0]


def wait_until_answered(stream, memory):
    while not memory.answered:
        stream.serve()


def test_a_repeated_turn_reads_what_it_read_and_writes_nothing_twice(connection):
    patience = [5.0]
    memory = MessageMemory(connection.stream, connection.session, lambda: patience[0])
    first = memory.dma_read(0, 4)
    memory.dma_write(100, b"once")
    patience[0] = 0.0
    connection.client.may_answer.clear()
    with pytest.raises(AccessPending):
        memory.dma_read(200, 4)
    connection.client.may_answer.set()
    wait_until_answered(connection.stream, memory)
    asked = len(connection.client.requests)
    connection.client.memory[:4] = b"new!"
    memory.repeat()
    assert memory.dma_read(0, 4) == first
    memory.dma_write(100, b"once")
    assert memory.dma_read(200, 4) == bytes(connection.client.memory[200:204])
    assert len(connection.client.requests) == asked
    memory.begin()
    patience[0] = 5.0
    assert memory.dma_read(0, 4) == b"new!"


def test_a_turn_that_goes_another_way_reads_anew(connection):
    patience = [5.0]
    memory = MessageMemory(connection.stream, connection.session, lambda: patience[0])
    memory.dma_read(0, 4)
    patience[0] = 0.0
    connection.client.may_answer.clear()
    with pytest.raises(AccessPending):
        memory.dma_read(200, 4)
    connection.client.may_answer.set()
    wait_until_answered(connection.stream, memory)
    connection.client.memory[:4] = b"new!"
    memory.repeat()
    patience[0] = 5.0
    assert memory.dma_read(8, 4) == bytes(connection.client.memory[8:12])
    assert memory.dma_read(0, 4) == b"new!"


class QuietClient(MemoryClient):
    """It answers no message that asks for no reply."""

    def answer(self, header, body):
        answer = super().answer(header, body)
        return b"" if header.flags & wire.VFIO_USER_NO_REPLY else answer


def test_many_stores_are_posted_and_waited_for_once():
    connection = Connection(QuietClient)
    stores = [(page * 4096 + page % 100, bytes([page % 255])) for page in range(SIZE // 4096)] * 100
    connection.memory.store_posted(stores)
    assert all(connection.client.memory[address] == data[0] for address, data in stores)
    asked = [header for header in connection.client.requests if not header.flags & wire.VFIO_USER_NO_REPLY]
    assert [header.command for header in asked] == [wire.VFIO_USER_DMA_READ] * 2  # the form, and the wait
    assert len(connection.client.requests) == len(stores) + 2
    connection.memory.store_posted([])
    connection.close()
