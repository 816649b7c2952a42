"""Messages over a real socket pair: peeked at, handled, answered, then taken off."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading

import pytest
from support.served_device import (
    build_server,
    dma_map,
    doorbell,
    handle,
    message,
    open_descriptors,
    region_read,
    sealed_memory,
    set_irqs,
    state_block,
    version,
)

from virtserial.errors import PeerError, StateError
from virtserial.vfio_user import wire
from virtserial.vfio_user.stream import CROWD_BYTES, MessageStream, RequestRefused

ID = b"\xf4\x1a\x43\x10"


class Vmm:
    """The other end of the socket."""

    def __init__(self):
        self.sock, self.peer = socket.socketpair()
        self.sock.settimeout(60)

    def send(self, data, fds=()):
        if fds:
            socket.send_fds(self.sock, [data], fds)
            for fd in fds:
                os.close(fd)
        else:
            self.sock.sendall(data)

    def receive(self):
        """The next message as (header, body)."""
        header = wire.Header.unpack_from(self._exactly(16))
        return header, self._exactly(header.size - 16)

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            assert part, "the stream ended inside a message"
            data += part
        return data

    def nothing(self):
        return not select.select([self.sock], [], [], 0)[0]


@pytest.fixture
def vmm():
    made = Vmm()
    yield made
    made.sock.close()
    made.peer.close()


@pytest.fixture
def stream(vmm, server):
    made = MessageStream(vmm.peer, server)
    yield made
    made.abandon()


def queued(sock):
    """Bytes in the socket that nobody has taken off."""
    try:
        return len(sock.recv(1 << 20, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return 0


def test_a_request_is_answered_and_taken_off(vmm, stream):
    vmm.send(region_read(7, 0, 4, message_id=3))
    assert not stream.serve(select.EPOLLIN)
    header, body = vmm.receive()
    assert (header.id, body[16:]) == (3, ID)
    assert queued(vmm.peer) == 0


def test_without_events_an_end_behind_the_last_message_is_found(vmm, stream, server):
    vmm.send(doorbell(0))
    vmm.sock.close()
    assert stream.serve()
    assert not stream.serve()
    assert stream.at_end


def test_without_events_a_part_of_a_message_does_not_spin(vmm, stream):
    vmm.send(doorbell(0)[:20])
    assert not stream.serve()


def test_nothing_to_do(stream):
    assert not stream.serve(select.EPOLLIN)
    assert not stream.at_end


def test_a_burst_of_doorbells_and_requests(vmm, stream, server):
    burst = b"".join(doorbell(number % 4) for number in range(1000))
    vmm.send(burst + region_read(7, 0, 4) + doorbell(3))
    while stream.serve():
        pass
    assert len(server.device.doorbells) == 1001
    assert vmm.receive()[1][16:] == ID
    assert queued(vmm.peer) == 0


def test_a_full_buffer_leaves_more_to_do(vmm, stream, server):
    vmm.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    vmm.sock.setblocking(False)
    count = 0
    try:
        while count < 10000:
            vmm.send(doorbell(0) * 100)
            count += 100
    except BlockingIOError:
        pass
    turns = 1
    while stream.serve():
        turns += 1
    assert len(server.device.doorbells) >= count
    assert turns > 1 or count * 34 < 2 * wire.MAX_MESSAGE_SIZE


def test_dribbled_byte_by_byte(vmm, stream, server):
    for byte in doorbell(2) + region_read(7, 0, 4):
        vmm.send(bytes([byte]))
        stream.serve()
    assert server.device.doorbells == [2]
    assert vmm.receive()[1][16:] == ID


def test_a_part_of_a_message_stays(vmm, stream):
    whole = region_read(7, 0, 4)
    vmm.send(doorbell(0) + whole[:20])
    assert not stream.serve(select.EPOLLIN)
    assert queued(vmm.peer) == 20
    vmm.send(whole[20:])
    stream.serve()
    assert vmm.receive()[1][16:] == ID


class TestDescriptors:
    def test_they_belong_to_their_message(self, vmm, stream, server):
        first, second = sealed_memory(0x1000), sealed_memory(0x2000)
        os.pwrite(first, b"one", 0)
        os.pwrite(second, b"two", 0)
        vmm.send(doorbell(1) + dma_map(0x100000, 0x1000)[:0])
        vmm.send(dma_map(0x1000, 0x1000), [first])
        vmm.send(region_read(7, 0, 4))
        vmm.send(dma_map(0x2000, 0x2000), [second])
        vmm.send(doorbell(2) + region_read(7, 0, 4))
        while stream.serve():
            pass
        assert server.device.memory.read(0x1000, 3) == b"one"
        assert server.device.memory.read(0x2000, 3) == b"two"
        assert server.device.doorbells == [1, 2]
        replies = [vmm.receive()[0].command for _ in range(4)]
        assert replies == [2, 9, 2, 9]
        assert queued(vmm.peer) == 0

    def test_interrupts(self, vmm, stream, server):
        eventfd = os.eventfd(0)
        vmm.send(set_irqs(2, 4 | 32, 0, 16), [os.dup(eventfd) for _ in range(16)])
        assert stream.serve()
        assert vmm.receive()[0].flags == wire.VFIO_USER_REPLY
        server.device.trigger_irqs(2, 0, 16)
        assert os.eventfd_read(eventfd) == 16
        os.close(eventfd)

    def test_header_and_body_sent_apart(self, vmm, stream, server):
        whole = dma_map(0x1000, 0x1000)
        vmm.send(whole[:5], [sealed_memory(0x1000)])
        assert not stream.serve(select.EPOLLIN)
        vmm.send(whole[5:16])
        assert not stream.serve(select.EPOLLIN)
        vmm.send(whole[16:] + region_read(7, 0, 4))
        while stream.serve():
            pass
        assert [vmm.receive()[0].flags for _ in range(2)] == [1, 1]
        assert server.device.memory.mapped_view(0x1000, 16) is not None

    def test_in_the_middle_of_a_message(self, vmm, stream, server):
        whole = dma_map(0x1000, 0x1000)
        vmm.send(whole[:20])
        vmm.send(whole[20:], [sealed_memory(0x1000)])
        while stream.serve():
            pass
        assert server.device.memory.mapped_view(0x1000, 16) is not None

    def test_stray_ones_do_not_stay(self, vmm, stream, server):
        before = open_descriptors()
        for _ in range(50):
            vmm.send(doorbell(0), [os.eventfd(0), os.eventfd(0)])
            vmm.send(region_read(7, 0, 4), [os.eventfd(0)])
            while stream.serve():
                pass
            vmm.receive()
        assert open_descriptors() == before
        assert len(server.device.doorbells) == 50

    def test_a_partial_message_keeps_no_duplicates(self, vmm, stream):
        vmm.send(dma_map(0x1000, 0x1000)[:40], [sealed_memory(0x1000)])
        before = open_descriptors()
        for _ in range(10):
            assert not stream.serve(select.EPOLLIN)
        assert open_descriptors() == before

    @pytest.mark.parametrize("count", [17, 100])
    def test_too_many_end_the_stream_and_are_closed(self, vmm, stream, count):
        before = open_descriptors()
        vmm.send(set_irqs(2, 4 | 32, 0, count), [os.eventfd(0) for _ in range(count)])
        with pytest.raises(PeerError, match="more than 16"):
            stream.serve()
        assert open_descriptors() == before

    def test_received_ones_are_not_inherited(self, vmm, stream, server):
        taken = []
        server.device.set_irq_eventfds = lambda index, start, fds: taken.extend(fds)
        vmm.send(set_irqs(2, 4 | 32, 0, 1), [os.eventfd(0)])
        stream.serve()
        assert not os.get_inheritable(taken[0])
        os.close(taken[0])
        del server.device.set_irq_eventfds


class TestEnd:
    def test_the_client_closes(self, vmm, stream):
        vmm.sock.close()
        assert not stream.serve(select.EPOLLIN | select.EPOLLHUP)
        assert stream.at_end

    def test_requests_before_the_close_are_handled(self, vmm, stream, server):
        vmm.send(doorbell(0))
        vmm.send(dma_map(0x1000, 0x1000), [sealed_memory(0x1000)])
        vmm.send(doorbell(1))
        vmm.sock.shutdown(socket.SHUT_WR)
        while stream.serve(select.EPOLLIN | select.EPOLLRDHUP):
            pass
        assert stream.at_end
        assert server.device.doorbells == [0, 1]

    @pytest.mark.parametrize("fds", [False, True])
    @pytest.mark.parametrize("length", [1, 15, 16, 40, 47])
    def test_in_the_middle_of_a_message(self, vmm, stream, length, fds):
        vmm.send(doorbell(0))
        vmm.send(dma_map(0x1000, 0x1000)[:length], [os.eventfd(0)] if fds else ())
        vmm.sock.close()
        while stream.serve(select.EPOLLHUP):
            pass
        assert stream.at_end

    def test_with_a_reply_unread_it_is_a_reset(self, vmm, stream):
        vmm.send(region_read(7, 0, 4))
        stream.serve()
        vmm.sock.close()
        stream.serve()
        assert stream.at_end

    def test_a_reply_to_nobody(self, vmm, stream):
        vmm.send(region_read(7, 0, 4))
        vmm.sock.close()
        while stream.serve(select.EPOLLHUP):
            pass
        assert stream.at_end
        assert not stream.wants_to_send

    @pytest.mark.parametrize(
        "nonsense",
        [b"GET / HTTP/1.1\r\n\r\n", bytes(16), b"\xff" * 64, message(9, flags=1), message(9, flags=3)],
        ids=["http", "zeros", "ones", "reply", "type"],
    )
    def test_nonsense_raises(self, vmm, stream, nonsense):
        vmm.send(nonsense)
        with pytest.raises(PeerError):
            stream.serve()

    def test_nonsense_with_descriptors_raises(self, vmm, stream):
        vmm.send(bytes(16), [os.eventfd(0)])
        with pytest.raises(PeerError):
            stream.serve()

    def test_abandoning_leaves_the_connection_to_others(self, vmm, stream):
        with vmm.peer.dup() as other:
            stream.abandon()
            other.send(b"x")
            assert vmm.sock.recv(10) == b"x"


class TestBackPressure:
    def test_a_reply_that_does_not_fit_waits_and_nothing_is_handled_before_it_is_out(self, vmm, stream, server):
        vmm.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        requests = 10
        for number in range(requests):
            vmm.send(region_read(4, 0, 0x4000, message_id=number) + doorbell(0))
        stream.serve()
        assert stream.wants_to_send
        assert len(server.device.doorbells) < requests
        assert queued(vmm.peer)
        assert not stream.serve(select.EPOLLIN)
        ids = []
        reader = threading.Thread(target=lambda: ids.extend(vmm.receive()[0].id for _ in range(requests)))
        reader.start()
        while reader.is_alive():
            stream.serve(select.EPOLLOUT)
        reader.join()
        stream.serve()
        assert ids == list(range(requests))
        assert len(server.device.doorbells) == requests
        assert queued(vmm.peer) == 0

    def test_a_client_that_leaves_before_it_is_out(self, vmm, stream):
        vmm.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        vmm.send(region_read(4, 0, 0x4000) * 5)
        stream.serve()
        assert stream.wants_to_send
        vmm.sock.close()
        assert not stream.serve(select.EPOLLHUP)
        assert stream.at_end


class TestTakeOver:
    """A worker is killed between two steps; another one goes on with the same socket and state."""

    def test_before_the_reply(self, vmm):
        block = state_block()
        killed = build_server(block)
        handle(killed, version())
        killed.device.config_interrupt()
        whole = region_read(4, 0x1000, 1)
        vmm.send(whole)
        killed.handle(wire.Header.unpack_from(whole), whole[16:], [])  # ... and killed
        MessageStream(vmm.peer, build_server(block)).serve()
        assert vmm.receive()[1][-1] == 2
        assert vmm.nothing()
        assert queued(vmm.peer) == 0

    def test_inside_the_reply(self, vmm):
        block = state_block()
        killed = build_server(block)
        handle(killed, version())
        whole = region_read(4, 0, 0x4000)
        vmm.send(whole)
        answer = killed.handle(wire.Header.unpack_from(whole), whole[16:], [])
        killed.journal.record_sent(vmm.peer.send(answer[:1000]))
        MessageStream(vmm.peer, build_server(block)).serve()
        assert len(vmm.receive()[1]) == 16 + 0x4000
        assert vmm.nothing()

    def test_behind_the_reply(self, vmm):
        block = state_block()
        killed = build_server(block)
        handle(killed, version())
        whole = region_read(7, 0, 4)
        vmm.send(whole + doorbell(1))
        answer = killed.handle(wire.Header.unpack_from(whole), whole[16:], [])
        killed.journal.record_sent(vmm.peer.send(answer))
        successor = build_server(block)
        MessageStream(vmm.peer, successor).serve()
        assert vmm.receive()[1][16:] == ID
        assert vmm.nothing()
        assert successor.device.doorbells == [1]
        assert queued(vmm.peer) == 0


class TestRequests:
    """Requests of ours, and a VMM that does something else first."""

    def answering(self, vmm, *steps):
        """Run the VMM's part in a thread; errors in it fail the test when it is joined."""
        failures = []

        def run():
            try:
                for step in steps:
                    step()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()

        def join():
            thread.join(60)
            assert not failures, failures

        return join

    def answer(self, vmm, payload=b"", error=0):
        header, body = vmm.receive()
        vmm.send(wire.error_reply(header, error) if error else wire.reply(header, payload + body))

    def test_a_reply_is_returned(self, vmm, stream):
        join = self.answering(vmm, lambda: self.answer(vmm, b"echo:"))
        assert stream.request(wire.VFIO_USER_DMA_READ, b"payload") == b"echo:payload"
        join()

    def test_replies_are_no_requests_whose_time_counts(self, vmm, stream):
        """Memory that is not shared comes in replies, and in nothing but replies."""
        replies = []
        stream.ask(wire.VFIO_USER_DMA_READ, b"", lambda header, body: replies.append(body))
        self.answer(vmm, bytes(CROWD_BYTES))
        stream.serve(select.EPOLLIN)
        assert replies == [bytes(CROWD_BYTES)]
        assert not stream.busy_since
        vmm.send(doorbell(0) * (CROWD_BYTES // len(doorbell(0)) + 1))
        stream.serve(select.EPOLLIN)
        assert stream.busy_since

    def test_requests_of_the_vmm_before_the_reply_are_answered(self, vmm, stream, server):
        def vmm_part():
            header, body = vmm.receive()
            vmm.send(doorbell(1) + region_read(7, 0, 4))
            vmm.send(dma_map(0x1000, 0x1000), [sealed_memory(0x1000)])
            assert vmm.receive()[1][16:] == ID
            assert vmm.receive()[0].command == wire.VFIO_USER_DMA_MAP
            vmm.send(wire.reply(header, body) + doorbell(2))

        join = self.answering(vmm, vmm_part)
        assert stream.request(wire.VFIO_USER_DMA_READ, b"x") == b"x"
        join()
        stream.serve()
        assert server.device.doorbells == [1, 2]

    def test_an_error_reply_is_raised_and_the_stream_is_good(self, vmm, stream):
        join = self.answering(vmm, lambda: self.answer(vmm, error=14))
        with pytest.raises(RequestRefused, match="Bad address") as refused:
            stream.request(wire.VFIO_USER_DMA_WRITE, b"")
        assert refused.value.errno == 14
        join()
        join = self.answering(vmm, lambda: self.answer(vmm))
        assert stream.request(wire.VFIO_USER_DMA_WRITE, b"") == b""
        join()

    def test_descriptors_with_a_reply_are_closed(self, vmm, stream):
        def vmm_part():
            header, body = vmm.receive()
            vmm.send(wire.reply(header, body), [os.eventfd(0)])

        join = self.answering(vmm, vmm_part)
        assert stream.request(wire.VFIO_USER_DMA_READ, b"x") == b"x"
        join()

    def test_no_reply_in_time(self, stream):
        with pytest.raises(PeerError, match="no reply in time"):
            stream.request(wire.VFIO_USER_DMA_READ, b"", timeout=0.05)

    def test_a_part_of_a_message_is_no_reply(self, vmm, stream):
        vmm.send(region_read(7, 0, 4)[:20])
        with pytest.raises(PeerError, match="no reply in time"):
            stream.request(wire.VFIO_USER_DMA_READ, b"", timeout=0.05)

    def test_the_client_leaves_meanwhile(self, vmm, stream):
        join = self.answering(vmm, vmm.receive, vmm.sock.close)
        with pytest.raises(PeerError, match="has closed"):
            stream.request(wire.VFIO_USER_DMA_READ, b"")
        join()

    def test_the_client_has_left_before(self, vmm, stream):
        vmm.sock.close()
        with pytest.raises(PeerError):
            stream.request(wire.VFIO_USER_DMA_READ, b"")

    @pytest.mark.parametrize("change", [{"id": 999}, {"command": wire.VFIO_USER_DMA_WRITE}])
    def test_a_reply_to_another_request_ends_the_stream(self, vmm, stream, change):
        def vmm_part():
            header, _ = vmm.receive()
            vmm.send(wire.reply(header._replace(**change)))

        join = self.answering(vmm, vmm_part)
        with pytest.raises(PeerError, match="answers no request"):
            stream.request(wire.VFIO_USER_DMA_READ, b"")
        join()

    def test_a_second_reply_ends_the_stream(self, vmm, stream):
        def vmm_part():
            header, _ = vmm.receive()
            vmm.send(wire.reply(header) * 2)

        join = self.answering(vmm, vmm_part)
        with pytest.raises(PeerError, match="answers no request"):
            stream.request(wire.VFIO_USER_DMA_READ, b"")
        join()

    def test_a_client_that_does_not_read_our_requests(self, vmm, stream, monkeypatch):
        monkeypatch.setattr("virtserial.vfio_user.stream.SEND_TIMEOUT", 0.05)
        with pytest.raises(PeerError, match="the client does not read"):
            while True:
                stream.ask(wire.VFIO_USER_DMA_WRITE, bytes(60000), lambda header, body: None)

    def test_not_while_a_request_of_the_vmm_is_handled(self, vmm, stream, server):
        def reset():
            stream.request(wire.VFIO_USER_DMA_READ, b"")

        server.device.reset = reset
        vmm.send(message(wire.VFIO_USER_DEVICE_RESET))
        with pytest.raises(StateError, match="being handled"):
            stream.serve()
        del server.device.reset

    def test_a_reply_that_is_held_up_goes_first(self, vmm, stream):
        vmm.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        vmm.send(region_read(4, 0, 0x4000, message_id=5))
        stream.serve()
        assert stream.wants_to_send
        got = []

        def vmm_part():
            got.append(vmm.receive()[0].id)
            self.answer(vmm)

        join = self.answering(vmm, vmm_part)
        stream.request(wire.VFIO_USER_DMA_WRITE, struct.pack("<QQ", 0, 60000) + bytes(60000))
        join()
        assert got == [5]

    def test_a_flood_of_requests_does_not_hold_us_for_ever(self, vmm, stream):
        stop = threading.Event()

        def flood():
            vmm.sock.settimeout(0.2)
            try:
                while not stop.is_set():
                    socket.send_fds(vmm.sock, [doorbell(0)], [0])
            except OSError:
                pass

        join = self.answering(vmm, flood)
        with pytest.raises(PeerError, match=r"stop sending|no reply in time"):
            stream.request(wire.VFIO_USER_DMA_READ, b"", timeout=0.2)
        stop.set()
        join()


class TestPosts:
    """Messages of ours that want no answer, and answers to them."""

    POST = message(wire.VFIO_USER_DMA_WRITE, wire.DmaAccess(0xFEE00000, 4).pack() + b"data", 0, wire.VFIO_USER_NO_REPLY)
    ANSWERS = (
        message(wire.VFIO_USER_DMA_WRITE, b"", 0, wire.VFIO_USER_REPLY),
        message(wire.VFIO_USER_DMA_WRITE, wire.DmaAccess(0xFEE00000, 4).pack(), 0, wire.VFIO_USER_REPLY),
        wire.error_reply(wire.Header(0, wire.VFIO_USER_DMA_WRITE, 16, 0, 0), 14),
    )

    def test_one_goes_out_whole(self, vmm, stream):
        assert stream.post(self.POST)
        header, body = vmm.receive()
        assert header.pack() + body == self.POST
        assert not stream.wants_to_send

    def test_none_goes_into_the_middle_of_a_reply(self, vmm, stream):
        vmm.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        vmm.send(region_read(4, 0, 0x4000, message_id=9))
        stream.serve()
        assert stream.wants_to_send
        assert not stream.post(self.POST)
        vmm.sock.setblocking(False)
        whole = b""
        while len(whole) < 16 + 16 + 0x4000:
            whole += vmm.sock.recv(1 << 16)
            stream.serve()
        assert wire.Header.unpack_from(whole).id == 9
        assert len(whole) == 16 + 16 + 0x4000
        assert stream.post(self.POST)
        vmm.sock.settimeout(60)
        assert vmm.receive()[0].command == wire.VFIO_USER_DMA_WRITE

    def test_a_full_socket_takes_it_whole_or_not_at_all(self, vmm, stream):
        vmm.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        sent = 0
        while stream.post(self.POST):
            sent += 1
        assert stream.wants_to_send
        assert [vmm.receive()[0].size for _ in range(sent)] == [len(self.POST)] * sent
        assert vmm.nothing()
        stream.serve(select.EPOLLOUT)
        assert not stream.wants_to_send
        assert stream.post(self.POST)

    def test_the_client_has_left(self, vmm, stream):
        vmm.sock.close()
        assert stream.post(self.POST)
        stream.serve()
        assert stream.at_end

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_an_answer_is_ignored_wherever_it_stands(self, vmm, stream, server, answer):
        server.session.dma_data_offset = 16
        vmm.send(answer + doorbell(1) + answer + region_read(7, 0, 4) + answer + doorbell(2))
        vmm.send(answer, [os.eventfd(0)])
        vmm.send(answer[:20] if len(answer) > 20 else answer[:7])
        while stream.serve():
            pass
        vmm.send(answer[20:] if len(answer) > 20 else answer[7:])
        while stream.serve():
            pass
        assert server.device.doorbells == [1, 2]
        assert vmm.receive()[1][16:] == ID
        assert queued(vmm.peer) == 0

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_an_answer_before_the_first_post_is_nonsense(self, vmm, stream, answer):
        vmm.send(answer)
        with pytest.raises(PeerError, match="answers no request"):
            stream.serve()

    def test_an_answer_to_another_command_is_nonsense(self, vmm, stream, server):
        server.session.dma_data_offset = 16
        vmm.send(message(wire.VFIO_USER_DMA_READ, b"", 0, wire.VFIO_USER_REPLY))
        with pytest.raises(PeerError, match="answers no request"):
            stream.serve()

    def test_a_successor_ignores_answers_to_its_predecessors(self, vmm, stream, server):
        server.session.dma_data_offset = 16
        vmm.send(self.ANSWERS[0] + doorbell(3))
        successor = build_server(server.session.state.u8.obj)
        second = MessageStream(vmm.peer.dup(), successor)
        while second.serve():
            pass
        assert successor.device.doorbells == [3]
        second.abandon()
