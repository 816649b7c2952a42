"""A front's connection to its VMM: it is served when something has come, and ends once, with a reason."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from virtserial.channel.messages import VmmGone
from virtserial.daemon.worker.request_budget import RequestBudget
from virtserial.errors import PeerError
from virtserial.loop import EPOLLET, EPOLLIN, EPOLLOUT, EPOLLRDHUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.accounting import Note
    from virtserial.daemon.worker.front import FrontOwner
    from virtserial.loop import Timer

log = logging.getLogger("virtserial.device")

VMM_EVENTS: Final = EPOLLIN | EPOLLRDHUP | EPOLLET


class VmmStream(Protocol):
    """The messages of a connected socket (vfio_user.stream, vhost_user.stream)."""

    @property
    def busy_since(self) -> float:
        """When the last `serve` came to what counts as a request (monotonic seconds); 0: to nothing."""
        ...

    @property
    def weight(self) -> int:
        """How many times the time since then counts."""
        ...

    @property
    def wants_to_send(self) -> bool:
        """Whether something waits for room in the socket."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether nothing more will come."""
        ...

    def fileno(self) -> int: ...

    def serve(self, events: int | None = None) -> bool:
        """Handle what has arrived; return whether there may be more that no edge tells of.

        Raises:
            PeerError: the connection cannot be trusted any more.
        """
        ...

    def finish(self, note: Note) -> None:
        """A dead predecessor was killed over this message."""
        ...

    def abandon(self) -> None:
        """Close the socket here; the keeper holds it too, and closes it without leaving bytes unread."""
        ...


Stream = TypeVar("Stream", bound=VmmStream)


class VmmConnection(Generic[Stream]):
    """
    Args:
        owner: the device.
        open_stream: takes a connected socket.
        has_left: lets go of everything that the VMM gave; then the keeper is told.

    Attributes:
        stream: None while no VMM is connected.
        served: if set, called after messages were handled.
        has_room: if set, called when what waited for room in the socket is sent.
        prepare: if set, called before messages are handled; while it returns True, they wait for another turn.
    """

    def __init__(
        self, owner: FrontOwner, open_stream: Callable[[socket.socket], Stream], has_left: Callable[[], None]
    ) -> None:
        self.stream: Stream | None = None
        self.served: Callable[[], None] | None = None
        self.has_room: Callable[[], None] | None = None
        self.prepare: Callable[[], bool] | None = None
        self._owner = owner
        self._open_stream = open_stream
        self._has_left = has_left
        self._half_done: Note | None = None
        self._waits_for_room = False
        self._use = owner.loop_use
        self._budget = RequestBudget(self._use, owner.now())
        self._pause: Timer | None = None

    def finish(self, note: Note) -> None:
        """A predecessor was killed over this message; the next `connect` finishes it."""
        self._half_done = note

    def connect(self, fd: int) -> None:
        """Serve a VMM, in place of the one before; a predecessor's is served from where that was killed."""
        if self.stream is not None:
            self.disconnect("a new VMM has come")
        self.stream = self._open_stream(socket.socket(fileno=fd))
        self._waits_for_room = False
        half_done, self._half_done = self._half_done, None
        if half_done is not None:
            self.stream.finish(half_done)
        self._owner.loop.watch(fd, VMM_EVENTS, self.serve)
        log.info("%s: VMM connected", self._owner.name)

    def serve(self, events: int | None = None) -> None:
        """Handle messages; `events` are epoll's, None: it has told nothing."""
        stream = self.stream
        if stream is None or self._pause is not None:
            return
        if self._use.latest is not self._owner:
            self.note_work()
        try:
            if self.prepare is not None and self.prepare():
                more = True
            else:
                more = stream.serve(events)
                if stream.busy_since:
                    self._spend(stream.busy_since, stream.weight)
            if more and self._pause is None:
                self._owner.loop.add_turn(self.serve)
            if self.served is not None:
                self.served()
            if stream.wants_to_send != self._waits_for_room:
                self.watch_for_room()
        except PeerError as error:
            self.disconnect(str(error))
        except Exception:
            self._owner.broken()
            self.disconnect("internal error")
        else:
            if stream.at_end:
                self.disconnect("")

    def note_work(self) -> None:
        """This device has work."""
        if self._use.latest is not self._owner:
            self._use.changed(self._owner)

    def _spend(self, started: float, weight: int) -> None:
        now = self._owner.now()
        if pause := self._budget.spend(started, now, weight):
            self._pause = self._owner.loop.call_at(now + pause, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self.serve()

    def watch_for_room(self) -> None:
        """Have epoll tell of room in the socket if something waits for it, else no longer."""
        stream = self.stream
        if stream is None or stream.wants_to_send == self._waits_for_room:
            return
        self._waits_for_room = stream.wants_to_send
        self._owner.loop.rewatch(stream.fileno(), VMM_EVENTS | (EPOLLOUT if self._waits_for_room else 0))
        if not self._waits_for_room and self.has_room is not None:
            self.has_room()

    def lose(self, reason: str) -> None:
        """The connection cannot be used any more: let go of it in a turn, outside of what is going on."""
        self._owner.loop.add_turn(lambda: self.disconnect(reason))

    def disconnect(self, reason: str) -> None:
        """Close the connection, if there is one.

        Args:
            reason: for the log; "": the VMM has left.
        """
        stream, self.stream = self.stream, None
        if stream is None:
            return
        if reason:
            self._owner.log.error("VMM's connection is closed: %s", reason)
        else:
            log.info("%s: VMM has left", self._owner.name)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._owner.loop.unwatch(stream.fileno())
        stream.abandon()
        self._has_left()
        self._owner.send(VmmGone(self._owner.index))
