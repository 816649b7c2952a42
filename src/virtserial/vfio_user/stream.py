"""The server's end of the socket: as many messages at once as a peek without descriptors sees (peeked_socket.py).

Such a greedy peek tells whether there are any: if not, everything it saw is handled in one go; else the messages are
peeked at one by one, by exact sizes.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError, StateError
from virtserial.peeked_socket import PeekedSocket
from virtserial.vfio_user.asked import REQUEST_TIMEOUT, AskedRequests
from virtserial.vfio_user.wire import (
    COMMAND_NAMES,
    DOORBELL,
    DOORBELL_SIZE,
    HEADER_SIZE,
    MAX_MESSAGE_FDS,
    MAX_MESSAGE_SIZE,
    VFIO_USER_DMA_WRITE,
    VFIO_USER_ERROR,
    VFIO_USER_NO_REPLY,
    VFIO_USER_REPLY,
    VFIO_USER_TYPE,
    Header,
    request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.vfio_user.server import Server

TURN_SECONDS: Final = 0.002
"""Other devices wait no longer than that for one VMM's messages, and for the last of them."""

CROWD_BYTES: Final = 12 * DOORBELL_SIZE
"""So many bytes at once, 12 doorbells, are more than a driver has to say: their time counts..."""
CROWD_WEIGHT: Final = 16
"""...so many times if the first and the last are the same: who rings for nothing keeps a processor busy as well, until
it has to wait."""

POST_ID: Final = 0
"""The id of a message that wants no reply; requests that want one are counted from 1 on."""

SEND_TIMEOUT: Final = 0.5
"""Seconds to wait until the client's socket has room for a request of ours."""

# Plain numbers: arithmetic on the socket module's flags makes enum objects, which costs a microsecond each time.
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_MSG_CTRUNC: Final = int(socket.MSG_CTRUNC)
_HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

_BUFFER_SIZE: Final = 2 * MAX_MESSAGE_SIZE
_BUFFER: Final = bytearray(_BUFFER_SIZE)
"""Room for the largest message behind others, so that a peek is always worth it.

All streams of a process share it: each peeks into it anew, and is done with what it saw before another does."""
_VIEW: Final = memoryview(_BUFFER)


class RequestRefused(PeerError):
    """The client answered a request of ours with an error; the connection is as good as before."""


class MessageStream(PeekedSocket):
    """A connected client.

    Watch `fileno()` with EPOLLIN | EPOLLRDHUP | EPOLLET, and EPOLLOUT while `wants_to_send`; call `serve` with every
    event.

    Args:
        sock: the connected socket, owned by this object from now on and made non-blocking.
        server: handles the requests.

    Attributes:
        asked: requests of ours.
        at_end: nothing more will come from the client, close the stream.
        busy_since: when this `serve` came to a crowd of doorbells or the first other request (monotonic seconds);
            0: to none.
        weight: how many times its time counts.
    """

    def __init__(self, sock: socket.socket, server: Server) -> None:
        super().__init__(sock, _VIEW, server.journal, server.ledger, server.controller, MAX_MESSAGE_FDS)
        self._server = server
        self._hung_up = self._cut_short = False
        self._handling = False
        self._wants_room = False
        self.busy_since = 0.0
        self.weight = 1
        self.asked = AskedRequests(server.session)

    @property
    def wants_to_send(self) -> bool:
        """Whether a message of `post` waits for room in the socket, or a reply: nothing else is handled before that."""
        return self._wants_room or bool(self._unsent)

    def serve(self, events: int | None = None) -> bool:
        """Handle what has arrived.

        One call takes at most one buffer of messages without descriptors, or one message with some.  Returns whether
        there may be more that no edge of EPOLLET will tell of: then call again soon.

        Args:
            events: what epoll told, EPOLL* bits.  With them it is known whether the client has hung up behind its last
                message; without (None) only another look tells, so the answer is True if anything was handled.

        Raises:
            PeerError: the stream cannot be trusted any more; close it.
        """
        self._took = self._cut_short = self._wants_room = False
        self.busy_since = 0.0
        self.weight = 1
        if events is not None and events & _HUNG_UP:
            self._hung_up = True
        if self._unsent and not self._flush():
            return False
        try:
            length, _, flags, _ = self._sock.recvmsg_into((_BUFFER,), 0, _PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            length, flags = 0, 0
        if not length:
            self.at_end = True
            return False
        # Whatever arrives behind this peek raises a new edge; what it left out does not.
        if flags & _MSG_CTRUNC:
            more = self._serve_one(length)
        elif length == DOORBELL_SIZE and self._server.ring_lone_doorbell(_BUFFER):
            self._consume(length)
            return self._hung_up or events is None
        else:
            more = self._serve_buffer(length) and length == _BUFFER_SIZE
        more = more or self._cut_short or self._hung_up or (events is None and self._took)
        return more and not self._unsent and not self.at_end

    def _serve_buffer(self, end: int) -> bool:
        """Handle the whole messages in the buffer; False if a reply could not be sent and stopped that.

        What is behind TURN_SECONDS of work stays in the socket for the next call: a buffer has room for 4,000 resets.
        """
        server = self._server
        start = done = 0
        due = 0.0
        if end >= CROWD_BYTES and not Header.unpack_from(_BUFFER).flags & VFIO_USER_TYPE:
            self.busy_since = time.monotonic()
            if DOORBELL.unpack_from(_BUFFER) == DOORBELL.unpack_from(_BUFFER, CROWD_BYTES - DOORBELL_SIZE):
                self.weight = CROWD_WEIGHT
        while True:
            start = server.ring_doorbells(_BUFFER, start, end)
            header = Header.unpack_from(_BUFFER, start) if end - start >= HEADER_SIZE else None
            if header is not None:
                server.check_header(header)
                now = time.monotonic()
                due = due or now + TURN_SECONDS
                if end - start < header.size:
                    header = None
                elif now > due:
                    self._cut_short = True
                    if done < start:
                        self._consume(start - done)
                    return True
                elif header.flags == VFIO_USER_NO_REPLY:
                    self.busy_since = self.busy_since or now
                    # Posted ones are taken off together: a successor that handles them all once more ends where we did.
                    server.handle(header, _VIEW[start + HEADER_SIZE : start + header.size], [])
                    start += header.size
                    continue
            if done < start:
                self._consume(start - done)
            if header is None:
                break
            if not self._handle(header, _VIEW[start + HEADER_SIZE : start + header.size], []):
                return False
            start = done = start + header.size
        if start < end:
            # A part of a message: if the client is gone, the rest will never come.
            self.peek(end - start + 1, None)
        return True

    def _serve_one(self, seen: int) -> bool:
        """Handle the message at the head of the socket, with its descriptors; False if it is not there as a whole,
        or its reply could not be sent.

        Args:
            seen: bytes to the end of the first piece with descriptors; they are not this message's if that is longer.
        """
        if not self.peek(HEADER_SIZE, None):
            return False
        header = Header.unpack_from(_BUFFER)
        self._server.check_header(header)
        fds = array.array("i")
        try:
            if not self.peek(header.size, fds if seen <= header.size else None):
                return False
            taken = fds.tolist()
            del fds[:]
        finally:
            for fd in fds:
                os.close(fd)
        return self._handle(header, _VIEW[HEADER_SIZE : header.size], taken)

    def _handle(self, header: Header, body: memoryview | bytes, fds: list[int]) -> bool:
        """Handle the message at the head of the socket and take it off; False if its reply could not be sent."""
        if (on_reply := self.asked.take(header)) is not None:
            for fd in fds:
                os.close(fd)
            body = bytes(body)
            self._consume(header.size)
            on_reply(header, body)
            return True
        if self.asked.answers_a_predecessor(header) or self._answers_a_post(header):
            for fd in fds:
                os.close(fd)
            self._consume(header.size)
            return True
        self.busy_since = self.busy_since or time.monotonic()
        came_with_fds = bool(fds)
        self._handling = True
        try:
            answer = self._server.handle(header, body, fds)
        finally:
            self._handling = False
        if answer is None:
            if came_with_fds:
                self._consume_in_pieces(header.size)
            else:
                self._consume(header.size)
            return True
        self._unsent = answer
        self._answered_size = header.size
        return self._flush()

    def _answers_a_post(self, header: Header) -> bool:
        """Whether a client answers what wants no answer, as it may to report an error; it is ignored."""
        is_reply = header.flags & VFIO_USER_TYPE == VFIO_USER_REPLY
        # Nobody posts, a predecessor neither, before the form of the message is known.
        is_due = self._server.session.dma_data_offset != 0
        return is_reply and is_due and (header.id, header.command) == (POST_ID, VFIO_USER_DMA_WRITE)

    def ask(self, command: int, payload: bytes, on_reply: Callable[[Header, bytes], None]) -> int:
        """Send a request of ours; `on_reply` gets the header and the payload of its reply during some `serve`.

        Returns what `wait_for` takes.

        Raises:
            PeerError: the socket has no room for SEND_TIMEOUT, the client leaves too many requests unanswered, or it is
                gone; close the stream.
            StateError: a request of the client is being handled; it waits for that answer and would not give ours.
        """
        if self._handling:
            raise StateError(f"{COMMAND_NAMES[command]} while a request of the client is being handled")
        deadline = time.monotonic() + SEND_TIMEOUT
        while self._unsent and not self._flush():
            self._wait_for_room(deadline, command)
        request_id = self.asked.add(command, on_reply)
        message = request(command, request_id, payload)
        self._send(message, deadline, command)
        return request_id

    def wait_for(self, request_id: int, seconds: float) -> bool:
        """Wait for the reply to a request of ours, at most so long; return whether it came.

        Requests of the client that stand before the reply are handled meanwhile: the client may not answer ours before
        it has the answers to its own.  What stands behind it may be left: call `serve` soon.

        Raises:
            PeerError: the client is gone; close the stream.
        """
        deadline = time.monotonic() + seconds
        while request_id in self.asked:
            more = self.serve()
            if request_id not in self.asked:
                break
            if self.at_end:
                name = COMMAND_NAMES[self.asked.command(request_id)]
                raise PeerError(f"{name}: the client has closed the connection", errno.ECONNRESET)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            if not more:
                self._poll(select.POLLOUT if self._unsent else select.POLLIN, remaining)
        return True

    def settle(self, seconds: float = REQUEST_TIMEOUT) -> None:
        """Wait until no request of ours is unanswered; raises as `wait_for`, and PeerError if that takes longer."""
        if (last := self.asked.last_id) and not self.wait_for(last, seconds):
            raise PeerError(f"{COMMAND_NAMES[self.asked.command(last)]}: no reply in time", errno.ETIMEDOUT)

    def request(self, command: int, payload: bytes, timeout: float = REQUEST_TIMEOUT) -> bytes:
        """Send a request of ours, wait for the reply and return its payload.

        Raises:
            RequestRefused: the reply is an error.
            PeerError: no reply came in time, or as `ask` and `wait_for`.
        """
        replies: list[tuple[Header, bytes]] = []
        deadline = time.monotonic() + timeout
        asked = self.ask(command, payload, lambda header, body: replies.append((header, body)))
        if not self.wait_for(asked, timeout):
            raise PeerError(f"{COMMAND_NAMES[command]}: no reply in time", errno.ETIMEDOUT)
        while self.serve():
            if time.monotonic() > deadline:
                raise PeerError("the client does not stop sending requests", errno.ETIMEDOUT)
        header, body = replies[0]
        if header.flags & VFIO_USER_ERROR:
            raise RequestRefused(f"{header.name} was refused: {os.strerror(header.error)}", header.error)
        return body

    def post(self, message: bytes) -> bool:
        """Send a whole VFIO_USER_DMA_WRITE of ours that wants no reply; its id is POST_ID.

        Returns False, and nothing of it is sent, while a reply is half sent or the socket has no room: `wants_to_send`
        is True then, and the caller keeps the message until the next `serve` has returned.
        """
        if self._unsent:
            return False
        try:
            # So few bytes go out whole or not at all.
            self._sock.send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self._wants_room = True
            return False
        except ConnectionError:
            pass  # `serve` is told of the end
        return True

    def send_posted(self, command: int, messages: bytes) -> None:
        """Send messages of one command that want no reply, one behind the other; raises as `ask` does."""
        if self._handling:
            raise StateError(f"{COMMAND_NAMES[command]} while a request of the client is being handled")
        deadline = time.monotonic() + SEND_TIMEOUT
        while self._unsent and not self._flush():
            self._wait_for_room(deadline, command)
        self._send(messages, deadline, command)

    def _send(self, data: bytes, deadline: float, command: int) -> None:
        """Send all of it.  Requests of the client wait meanwhile: QEMU reads in a thread of its own."""
        unsent = memoryview(data)
        while unsent:
            try:
                unsent = unsent[self._sock.send(unsent, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait_for_room(deadline, command)
            except ConnectionError as error:
                raise PeerError(f"{COMMAND_NAMES[command]}: {error.strerror}", error.errno or errno.EPIPE) from error

    def _wait_for_room(self, deadline: float, command: int) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise PeerError(f"{COMMAND_NAMES[command]}: the client does not read", errno.ETIMEDOUT)
        self._poll(select.POLLOUT, remaining)

    def _poll(self, event: int, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        started = time.monotonic()
        poll.poll(seconds * 1000)
        if time.monotonic() - started < 0.0001:
            # Ready at once though nothing could be done a moment ago: a part of a message.  Do not spin on it.
            time.sleep(min(0.0005, seconds))
