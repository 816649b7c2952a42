"""The front end's socket: a message is peeked at, applied, answered, and only then taken off.

So a successor of a killed process finds the whole message again; the journal (records.py) says whether it was applied,
the ledger (accounting.py) how much of the reply went out or of the message was taken off.
"""

from __future__ import annotations

import array
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from virtserial.accounting import CONSUME, REPLY
from virtserial.errors import PeerError
from virtserial.vhost_user.wire import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, unpack_header

if TYPE_CHECKING:
    from virtserial.accounting import Ledger, Note
    from virtserial.vhost_user.server import Server

TURN_SECONDS: Final = 0.002
"""Then what is left in the socket waits for the next call."""

_SO_PEEK_OFF: Final = 42  # <asm-generic/socket.h>; the socket module does not have it
_CONTROL_SIZE: Final = socket.CMSG_SPACE(4 * MAX_FDS)
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_BUFFER: Final = bytearray(HEADER_SIZE + MAX_PAYLOAD)
"""All streams of a process share it: each peeks into it anew."""
_VIEW: Final = memoryview(_BUFFER)
_CONSUMED: Final = memoryview(bytearray(len(_BUFFER)))


class FrontEndStream:
    """A connected front end.

    Watch `fileno()` with EPOLLIN | EPOLLRDHUP | EPOLLET, and EPOLLOUT while `wants_to_send`; call `serve` with every
    event.

    Args:
        sock: owned by this object from now on.
        server: handles the requests.
        controller: what the ledger calls the device.
        ledger: where the message that is under way is noted.

    Attributes:
        at_end: nothing more will come from the front end, close the stream.
    """

    def __init__(self, sock: socket.socket, server: Server, controller: int, ledger: Ledger) -> None:
        sock.setblocking(False)
        self.at_end = False
        self._sock = sock
        self._server = server
        self._controller = controller
        self._ledger = ledger
        self._unsent = b""
        self._size = 0

    def fileno(self) -> int:
        """The socket's descriptor, to be watched."""
        return self._sock.fileno()

    @property
    def wants_to_send(self) -> bool:
        """Whether a reply waits for room in the socket: nothing else is handled before that."""
        return bool(self._unsent)

    def serve(self) -> bool:
        """Handle what has arrived, for about TURN_SECONDS.

        Returns whether there may be more that no edge of EPOLLET will tell of: then call again soon.

        Raises:
            PeerError: the connection cannot be trusted any more; close it.
        """
        due = time.monotonic() + TURN_SECONDS
        if self._unsent and not self._flush():
            return False
        while self._serve_one():
            if time.monotonic() > due:
                return True
        return False

    def _serve_one(self) -> bool:
        """Handle the message at the head of the socket; False if it is not there as a whole, or its reply waits."""
        try:
            length, _, flags, _ = self._sock.recvmsg_into([_BUFFER], 0, _PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            length, flags = 0, 0
        if not length:
            self.at_end = True
            return False
        if length < HEADER_SIZE and not self._peek(HEADER_SIZE, None):
            return False
        header = unpack_header(_BUFFER)
        self._server.check_header(header)
        size = HEADER_SIZE + header.size
        # A peek ends behind descriptors.  Those behind this message are not its: a peek of just as many bytes as it has
        # would bring them too (unix_stream_read_generic looks at the next buffer though no room is left).
        has_descriptors = bool(flags & socket.MSG_CTRUNC) and length <= size
        fds = array.array("i")
        try:
            if (length < size or has_descriptors) and not self._peek(size, fds if has_descriptors else None):
                return False
            taken = fds.tolist()
            del fds[:]
        finally:
            for fd in fds:
                os.close(fd)
        self._size = size
        journal, request = self._server.journal, _VIEW[:size]
        answer = journal.unsent_reply(request)
        if answer is None:
            answer = self._server.handle(header, _VIEW[HEADER_SIZE:size], taken)
            journal.record_applied(request, answer)
        else:
            for fd in taken:
                os.close(fd)
        self._unsent = answer
        return self._flush()

    def _peek(self, size: int, fds: array.array[int] | None) -> bool:
        """Fill the buffer with the first `size` bytes in the socket; whether there are as many.

        Args:
            fds: takes the descriptors among them; None leaves those in the socket.
        """
        filled = 0
        # One peek ends behind descriptors, wherever in a message they are; with an offset the next goes on there.
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        try:
            while filled < size:
                # Descriptors come in one piece; what would come with the rest are those of the next message.
                wanted = fds is not None and not fds
                length, control, flags, _ = self._sock.recvmsg_into(
                    [_VIEW[filled:size]], _CONTROL_SIZE if wanted else 0, _PEEK
                )
                if wanted and fds is not None:
                    for level, kind, data in control:
                        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                    if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
                        raise PeerError(f"a message with more than {MAX_FDS} descriptors")
                if not length:
                    self.at_end = True
                    return False
                filled += length
        except BlockingIOError:
            return False
        except ConnectionError:
            self.at_end = True
            return False
        finally:
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
        return True

    def _flush(self) -> bool:
        """Send what is left of the reply, then take its request off the socket; False if there is no room for it."""
        journal, ledger = self._server.journal, self._ledger
        while self._unsent:
            ledger.begin_message(REPLY, self._controller, journal.sent)
            try:
                # Not `send`: what that sends is in no count of the kernel's (accounting.py).
                count = os.write(self.fileno(), self._unsent)
                ledger.account.written += count
                journal.record_sent(count)
            except BlockingIOError:
                return False
            except ConnectionError:
                self.at_end = True
                self._unsent = b""
                return False
            finally:
                ledger.end_message()
            self._unsent = self._unsent[count:]
        ledger.begin_message(CONSUME, self._controller, self._size)
        self._consume(self._size)
        journal.record_consumed()
        ledger.end_message()
        return True

    def _consume(self, size: int) -> None:
        """Take bytes off the socket; the kernel closes descriptors that came with them."""
        while size:
            count = os.readv(self.fileno(), [_CONSUMED[:size]])
            self._ledger.account.read += count
            size -= count

    def finish(self, note: Note) -> None:
        """A predecessor was killed while it sent a reply, or took a message off the socket."""
        journal = self._server.journal
        if note.kind == REPLY:
            if note.progress == journal.sent and 0 < note.moved <= journal.length - journal.sent:
                journal.record_sent(note.moved)
        elif 0 < note.moved <= note.progress:
            self._consume(note.progress - note.moved)
            journal.record_consumed()

    def abandon(self) -> None:
        """Close this process's descriptor of a socket that another process has too, and will close as it should be."""
        self._sock.close()
