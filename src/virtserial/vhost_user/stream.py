"""The front end's socket: whole messages, one after the other, each with its descriptors (peeked_socket.py)."""

from __future__ import annotations

import array
import os
import socket
import time
from typing import TYPE_CHECKING, Final

from virtserial.peeked_socket import PeekedSocket
from virtserial.vhost_user.wire import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, unpack_header

if TYPE_CHECKING:
    from virtserial.accounting import Ledger
    from virtserial.vhost_user.server import Server

TURN_SECONDS: Final = 0.002
"""Then what is left in the socket waits for the next call."""

_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_BUFFER: Final = bytearray(HEADER_SIZE + MAX_PAYLOAD)
"""All streams of a process share it: each peeks into it anew."""
_VIEW: Final = memoryview(_BUFFER)


class FrontEndStream(PeekedSocket):
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
        busy_since: when this `serve` began (monotonic seconds); 0: there was none yet.
        weight: how many times its time counts.
    """

    weight = 1

    def __init__(self, sock: socket.socket, server: Server, controller: int, ledger: Ledger) -> None:
        super().__init__(sock, _VIEW, server.journal, ledger, controller, MAX_FDS)
        self._server = server
        self.busy_since = 0.0

    @property
    def wants_to_send(self) -> bool:
        """Whether a reply waits for room in the socket: nothing else is handled before that."""
        return bool(self._unsent)

    def serve(self, _events: int | None = None) -> bool:
        """Handle what has arrived, for about TURN_SECONDS.

        Returns whether there may be more that no edge of EPOLLET will tell of: then call again soon.

        Raises:
            PeerError: the connection cannot be trusted any more; close it.
        """
        self.busy_since = time.monotonic()
        due = self.busy_since + TURN_SECONDS
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
        if length < HEADER_SIZE and not self.peek(HEADER_SIZE, None):
            return False
        header = unpack_header(_BUFFER)
        self._server.check_header(header)
        size = HEADER_SIZE + header.size
        # A peek ends behind descriptors.  Those behind this message are not its: a peek of just as many bytes as it has
        # would bring them too (unix_stream_read_generic looks at the next buffer though no room is left).
        has_descriptors = bool(flags & socket.MSG_CTRUNC) and length <= size
        fds = array.array("i")
        try:
            if (length < size or has_descriptors) and not self.peek(size, fds if has_descriptors else None):
                return False
            taken = fds.tolist()
            del fds[:]
        finally:
            for fd in fds:
                os.close(fd)
        self._answered_size = size
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
