"""Runs a link over a port's stream until its party is finished; the stream reconnects, the link starts sessions."""

from __future__ import annotations

import time
from typing import Callable

from .errors import NoPartner, ProtocolError
from .link import Established, Event, Link, Lost, Message
from .stream import READ_SIZE, PortStream

FAREWELL = 3.0
"""Seconds that a finished end waits for the port to take its last bytes."""


class Party:
    """A speaker on a link: a sender, a receiver, a log."""

    purpose: bytes
    partner: bytes
    finished: bool

    def established(self) -> None:
        """A session started."""
        raise NotImplementedError

    def lost(self) -> None:
        """The session ended."""
        raise NotImplementedError

    def message(self, kind: int, payload: bytes) -> None:
        """Take a message.

        Raises:
            ProtocolError: the other end broke the protocol.
        """
        raise NotImplementedError

    def pump(self) -> bool:
        """Queue messages; return whether anything happened."""
        raise NotImplementedError


def converse(
    stream: PortStream,
    link: Link,
    party: Party,
    patience: float | None = None,
    watch: Callable[[], None] = lambda: None,
    turn: float | None = None,
    sessions: Callable[[bool], None] = lambda _: None,
) -> None:
    """Serve a party until it is finished and the port has taken its last bytes.

    Args:
        stream: the port.
        link: the message layer, not connected yet.
        party: the speaker.
        patience: seconds without a session before it gives up; None for never.
        watch: called while bytes flow.
        turn: seconds between two calls of the party and of `watch` while nothing happens; None for never.
        sessions: called when a session starts (True) and ends (False).

    Raises:
        NoPartner: patience ran out.
        ProtocolError: the other end does not speak the protocol, or has another purpose.
        PortRemoved: the port is gone.
    """
    present = False
    quiet_since = time.monotonic()
    finished_at: float | None = None

    def handle(events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Message):
                party.message(event.kind, event.payload)
            elif isinstance(event, Established):
                if event.purpose != party.partner:
                    theirs = event.purpose.decode("ascii", "replace")
                    _say_goodbye(stream, link)
                    raise ProtocolError(f"the other end is {theirs!r}, not {party.partner.decode()}")
                party.established()
                sessions(True)
            elif isinstance(event, Lost):
                party.lost()
                sessions(False)

    while True:
        now = time.monotonic()
        if not present and stream.connected:
            present = True
            link.connected(now)
        worked = False
        if present:
            data = stream.take(READ_SIZE)
            if data == b"":
                present = False
                handle(link.disconnected())
            elif data:
                worked = True
                handle(link.receive(data, now))
            handle(link.handle_timer(now))
            worked = (not party.finished and party.pump()) or worked
            waiting = link.data_to_send()
            if waiting:
                taken = stream.send(waiting)
                link.sent(taken)
                worked = worked or taken > 0
        else:
            stream.probe()
        if party.finished:
            finished_at = finished_at or now
            if not present or not link.data_to_send() or now - finished_at > FAREWELL:
                return
        if link.established:
            quiet_since = now
        elif patience is not None and now - quiet_since > patience:
            raise NoPartner(f"nobody answered in {patience:g} s")
        watch()
        if not worked:
            ends = [turn, FAREWELL if party.finished else None, _until(link.timer(), now)]
            if patience is not None and not link.established:
                ends.append(_until(quiet_since + patience, now))
            stream.wait(min((end for end in ends if end is not None), default=None))


def _say_goodbye(stream: PortStream, link: Link) -> None:
    """Let the port take what waits, for FAREWELL seconds: it tells the other end too whom it has met."""
    deadline = time.monotonic() + FAREWELL
    while stream.connected and (waiting := link.data_to_send()) and (left := deadline - time.monotonic()) > 0:
        taken = stream.send(waiting)
        link.sent(taken)
        if not taken:
            stream.wait(left)


def _until(at: float | None, now: float) -> float | None:
    return None if at is None else max(at - now, 0.0) + 0.001
