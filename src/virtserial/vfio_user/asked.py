"""The requests that a server has sent to its client and whose replies are still to come."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from virtserial.errors import PeerError
from virtserial.named_tuple import NamedTuple
from virtserial.vfio_user.wire import COMMAND_NAMES, VFIO_USER_REPLY, VFIO_USER_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.vfio_user.server import SessionRecord
    from virtserial.vfio_user.wire import Header

REQUEST_TIMEOUT: Final = 2.5
"""Seconds for a reply to a request of ours: half of what QEMU waits for ours (x-msg-timeout)."""
MAX_ASKED: Final = 4096
"""Requests of ours, and of dead predecessors, whose replies are still to come."""


class Asked(NamedTuple):
    """One request."""

    command: int
    on_reply: Callable[[Header, bytes], None]
    since: float


class AskedRequests:
    """All of one connection, oldest first.

    Args:
        session: has the last request's id, which a successor must not use again while its reply is under way.
    """

    def __init__(self, session: SessionRecord) -> None:
        self._session = session
        self._asked: dict[int, Asked] = {}
        # Requests of a predecessor that was killed before it had the reply, which comes to us.
        self._inherited_id = session.last_request_id

    def __len__(self) -> int:
        return len(self._asked)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._asked

    @property
    def last_id(self) -> int:
        """The id of the newest request without an answer; 0: all are answered."""
        return next(reversed(self._asked), 0)

    def command(self, request_id: int) -> int:
        """What was asked."""
        return self._asked[request_id].command

    def add(self, command: int, on_reply: Callable[[Header, bytes], None]) -> int:
        """Record a request before it is sent; return its id.

        Raises:
            PeerError: the client leaves too many unanswered.
        """
        if len(self._asked) >= MAX_ASKED:
            raise PeerError(f"{COMMAND_NAMES[command]}: {MAX_ASKED} requests are not answered", errno.ETIMEDOUT)
        session = self._session
        request_id = session.last_request_id = session.last_request_id % 0xFFFF + 1
        self._asked[request_id] = Asked(command, on_reply, time.monotonic())
        return request_id

    def take(self, header: Header) -> Callable[[Header, bytes], None] | None:
        """Return who gets this message, if it is the reply to a request of ours, and forget that."""
        asked = self._asked.get(header.id)
        if asked is None or header.flags & VFIO_USER_TYPE != VFIO_USER_REPLY or asked.command != header.command:
            return None
        del self._asked[header.id]
        return asked.on_reply

    def answers_a_predecessor(self, header: Header) -> bool:
        """Whether this message is the reply to a request of a dead predecessor."""
        if header.flags & VFIO_USER_TYPE != VFIO_USER_REPLY or not self._inherited_id:
            return False
        return (self._inherited_id - header.id) & 0xFFFF < MAX_ASKED

    def check(self) -> None:
        """Look whether the client leaves a request unanswered for too long.

        Raises:
            PeerError: it does, for REQUEST_TIMEOUT; close the stream.
        """
        oldest = next(iter(self._asked.values()), None)
        if oldest is not None and time.monotonic() >= oldest.since + REQUEST_TIMEOUT:
            raise PeerError(f"{COMMAND_NAMES[oldest.command]}: no reply in time", errno.ETIMEDOUT)
