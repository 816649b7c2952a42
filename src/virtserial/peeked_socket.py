"""A VMM's socket from which nothing is lost when a process is killed: vfio-user's and vhost-user's streams use it.

A message is peeked at, applied, answered, and only then taken off.  So a successor finds the whole message again; a
journal in state memory says whether it was applied, the ledger (accounting.py) how much of its reply went out, or of
the message was taken off.

How a UNIX stream socket behaves here (Linux, unix_stream_read_generic): one read glues together what several sends
brought, but stops behind the first piece that came with descriptors; a peek duplicates those, also those of the piece
behind it if it ends where that begins; a read without a control buffer drops the originals, and says MSG_CTRUNC where
there were some.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final, Protocol

from virtserial.accounting import CONSUME, REPLY
from virtserial.errors import PeerError

if TYPE_CHECKING:
    import array

    from virtserial.accounting import Ledger, Note

_SO_PEEK_OFF: Final = 42  # <asm-generic/socket.h>; the socket module does not have it
# A plain number: arithmetic on the socket module's flags makes enum objects, which costs a microsecond each time.
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_MSG_CTRUNC: Final = int(socket.MSG_CTRUNC)
_CONSUMED: Final = memoryview(bytearray(128 << 10))
"""Where what was handled goes; nobody looks at it."""


class ReplyJournal(Protocol):
    """Of the message that was applied and is still in the socket; `length` and `sent` are bytes of its reply."""

    length: int
    sent: int

    def record_sent(self, count: int) -> None:
        """The kernel took `count` more bytes of the reply."""
        ...

    def record_consumed(self) -> None:
        """The message is off the socket."""
        ...


class PeekedSocket:
    """The socket, and what is under way on it.

    Args:
        sock: connected; owned by this object from now on and made non-blocking.
        view: where messages are peeked to.
        journal, ledger: see above.
        controller: what the ledger calls the device.
        max_fds: descriptors that may come with a message.

    Attributes:
        at_end: nothing more will come, close the stream.
    """

    def __init__(
        self,
        sock: socket.socket,
        view: memoryview,
        journal: ReplyJournal,
        ledger: Ledger,
        controller: int,
        max_fds: int,
    ) -> None:
        sock.setblocking(False)
        self.at_end = False
        self._sock = sock
        self._fd = sock.fileno()
        self._view = view
        self._reply_journal = journal
        self._ledger = ledger
        self._controller = controller
        self._max_fds = max_fds
        self._control_size = socket.CMSG_SPACE(4 * max_fds)
        self._took = False
        self._unsent = b""
        self._answered_size = 0

    def fileno(self) -> int:
        """The socket's descriptor, to be watched."""
        return self._fd

    def peek(self, size: int, fds: array.array[int] | None) -> bool:
        """Fill the view with the first `size` bytes in the socket; whether there are as many.

        Args:
            fds: takes the descriptors of the first piece that has some; None leaves all in the socket.

        Raises:
            PeerError: there are more than `max_fds`.
        """
        filled = 0
        # One peek ends behind descriptors, wherever in a message they are; with an offset the next goes on there.
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        try:
            while filled < size:
                # A message's descriptors come in one piece; what would come with its rest are those of the next.
                control_size = self._control_size if fds is not None and not fds else 0
                length, control, flags, _ = self._sock.recvmsg_into([self._view[filled:size]], control_size, _PEEK)
                if control_size and fds is not None:
                    for level, kind, data in control:
                        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                    if flags & _MSG_CTRUNC or len(fds) > self._max_fds:
                        raise PeerError(f"a message with more than {self._max_fds} descriptors")
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
        journal, ledger = self._reply_journal, self._ledger
        while self._unsent:
            ledger.begin_message(REPLY, self._controller, journal.sent)
            try:
                # Not `send`: what that sends is in no count of the kernel's (accounting.py).
                count = os.write(self._fd, self._unsent)
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
        self._consume_in_pieces(self._answered_size)
        journal.record_consumed()
        return True

    def _consume_in_pieces(self, size: int) -> None:
        """`_consume` of a message with descriptors: a read ends behind them, so it may take several."""
        self._ledger.begin_message(CONSUME, self._controller, size)
        self._consume(size)
        self._ledger.end_message()

    def _consume(self, size: int) -> None:
        """Take bytes off the socket; descriptors that came with them are closed by the kernel."""
        self._took = True
        while size:
            count = os.readv(self._fd, (_CONSUMED[:size],))
            self._ledger.account.read += count
            size -= count

    def finish(self, note: Note) -> None:
        """A predecessor was killed while it sent a reply, or took a message off the socket."""
        journal = self._reply_journal
        if note.kind == REPLY:
            if note.progress == journal.sent and 0 < note.moved <= journal.length - journal.sent:
                journal.record_sent(note.moved)
        elif 0 < note.moved <= note.progress:
            self._consume(note.progress - note.moved)
            journal.record_consumed()

    def abandon(self) -> None:
        """Close this process's descriptor of a socket that another process has too, and will close as it should be."""
        self._sock.close()
