"""Messages over a port that may lose, repeat or cut bytes at every connect, without I/O (docs/file-protocol.md).

A port is not a reliable stream: it may hold bytes of an earlier conversation, a close in the guest discards unread
bytes, a host that leaves cuts a frame, and neither end always notices.  So the link checks every frame, and a *session*
starts when both ends have seen each other's fresh random number; the link drops frames of no session or of an earlier
one.  Within a session no loss goes unnoticed: a missing or damaged frame ends it, and the ends start a new one.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Callable, NamedTuple, Sequence, Union

from .errors import ProtocolError
from .stream import Buffer, advance

MAGIC = b"\xf5vS1"
HEADER = struct.Struct("<4sB3xIIII")
"""magic, kind, tag, sequence number, length of the payload, CRC-32 of the header before it."""
TRAILER = struct.Struct("<I")
"""CRC-32 of the payload."""
MAX_PAYLOAD = 1 << 18
HELLO = 0
HELLO_BODY = struct.Struct("<8s8sB")
"""The sender's number, the other end's if known, whether an answer is wanted; a purpose follows."""
NOBODY = bytes(8)
MAX_PURPOSE = 64
FIRST_REPEAT, LAST_REPEAT = 0.5, 10.0
"""Seconds between two unanswered HELLOs; doubled each time."""
REMARK = 0xFFFFFFFF
"""A remark's tag is its session's, inverted; it has no number, and its loss is not noticed."""
SILENCE = 1.0
"""Seconds without a byte after which the link searches an incomplete frame for a HELLO."""
HIGH_WATER = 1 << 19
"""Unsent bytes above which `room` is False."""


class Established(NamedTuple):
    """A session started: everything before is void. `purpose` is the other end's."""

    purpose: bytes


class Lost(NamedTuple):
    """The session ended; a new one starts when the other end is connected."""

    reason: str


class Message(NamedTuple):
    """A message of the session, in order, complete and checked."""

    kind: int
    payload: bytes


Event = Union[Established, Lost, Message]


class Link:
    """One end of the message layer.

    Call connected() when the port's other end connects, receive() with received bytes, data_to_send() and sent() when
    the port has room, handle_timer() at the time of timer().
    """

    def __init__(self, purpose: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        """A link that is not connected.

        Args:
            purpose: this end's purpose, sent to the other end, at most 64 bytes.
            random: the source of session numbers.
        """
        self._purpose = purpose[:MAX_PURPOSE]
        self._random = random
        self._own = NOBODY
        self._peer = NOBODY
        self._present = False
        self.established = False
        self._buffer = bytearray()
        self._outgoing: list[Buffer] = []
        self._waiting_bytes = 0
        self._send_sequence = self._receive_sequence = 0
        self._repeat_at: float | None = None
        self._repeat_after = FIRST_REPEAT
        self._silent_at: float | None = None

    # The port

    def connected(self, now: float) -> None:
        """The port's other end has connected: send HELLO."""
        self._present = True
        self._buffer.clear()
        self._start_over(now)

    def disconnected(self) -> list[Event]:
        """The port's other end has disconnected."""
        lost: list[Event] = [Lost("the other end has gone")] if self.established else []
        self._present = self.established = False
        self._outgoing.clear()
        self._waiting_bytes = 0
        self._repeat_at = self._silent_at = None
        return lost

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take received bytes."""
        self._buffer += data
        events = self._parse(now)
        self._silent_at = now + SILENCE if self._buffer else None
        return events

    def timer(self) -> float | None:
        """The time of the next handle_timer(); None for never."""
        return min((at for at in (self._repeat_at, self._silent_at) if at is not None), default=None)

    def handle_timer(self, now: float) -> list[Event]:
        """Run the timers that are due."""
        if self._repeat_at is not None and now >= self._repeat_at:
            # An unsent HELLO is enough.
            if not self._outgoing:
                self._say_hello(wants_answer=True)
            self._repeat_after = min(self._repeat_after * 2, LAST_REPEAT)
            self._repeat_at = now + self._repeat_after
        if self._silent_at is not None and now >= self._silent_at:
            self._silent_at = None
            return self._look_into_frame(now)
        return []

    def data_to_send(self) -> list[Buffer]:
        """The bytes to write to the port, in order; report to sent() how many were written."""
        return self._outgoing

    def sent(self, count: int) -> None:
        """The port took `count` bytes."""
        self._outgoing, self._waiting_bytes = advance(self._outgoing, count)

    # Messages

    @property
    def room(self) -> bool:
        """Whether a sender of much data should continue."""
        return self._waiting_bytes < HIGH_WATER

    def send(self, kind: int, *parts: Buffer) -> None:
        """Send a message of a kind from 1 to 255; drop it without a session.

        Raises:
            ProtocolError: the message is too long.
        """
        if self.established:
            self._send_frame(kind, _tag(self._own, self._peer), self._send_sequence, parts)
            self._send_sequence = (self._send_sequence + 1) & 0xFFFFFFFF

    def remark(self, kind: int, *parts: Buffer) -> None:
        """Send a message that the other end may miss: one that does not know remarks takes it for another session's.

        Raises:
            ProtocolError: the message is too long.
        """
        if self.established:
            self._send_frame(kind, _tag(self._own, self._peer) ^ REMARK, 0, parts)

    def _send_frame(self, kind: int, tag: int, sequence: int, parts: Sequence[Buffer]) -> None:
        length = sum(map(len, parts))
        if length > MAX_PAYLOAD:
            raise ProtocolError(f"a message of {length} bytes; {MAX_PAYLOAD} are the limit")
        header = HEADER.pack(MAGIC, kind, tag, sequence, length, 0)[:-4]
        check = 0
        for part in parts:
            check = zlib.crc32(part, check)
        frame: list[Buffer] = [header + TRAILER.pack(zlib.crc32(header)), *parts, TRAILER.pack(check)]
        self._outgoing += frame if length > 4096 else [b"".join(frame)]
        self._waiting_bytes += HEADER.size + length + TRAILER.size

    # Sessions

    def _start_over(self, now: float) -> None:
        self.established = False
        self._own = self._random(8)
        # A half sent frame stays, so that the other end does not see a damaged one.
        self._repeat_after = FIRST_REPEAT
        self._repeat_at = now + self._repeat_after
        self._say_hello(wants_answer=True)

    def _say_hello(self, wants_answer: bool) -> None:
        self._send_frame(HELLO, 0, 0, (HELLO_BODY.pack(self._own, self._peer, wants_answer) + self._purpose,))

    def _take_hello(self, body: bytes, now: float) -> list[Event]:
        if not HELLO_BODY.size <= len(body) <= HELLO_BODY.size + MAX_PURPOSE:
            return []
        theirs, ours, wants_answer = HELLO_BODY.unpack_from(body)
        events: list[Event] = []
        if theirs in (NOBODY, self._own):
            return []  # An echoing port returns our own HELLO.
        if theirs != self._peer:
            if self.established:
                events.append(Lost("the other end began anew"))
                self._start_over(now)
            self._peer = theirs
        if ours == self._own:
            if not self.established:
                self.established = True
                self._send_sequence = self._receive_sequence = 0
                self._repeat_at = None
                events.append(Established(body[HELLO_BODY.size :]))
            if wants_answer:
                self._say_hello(wants_answer=False)
        elif wants_answer or not self.established:
            self._say_hello(wants_answer=not self.established)
        return events

    def _damaged(self, reason: str, now: float) -> list[Event]:
        if not self.established:
            return []
        self._start_over(now)
        return [Lost(reason)]

    # Frames

    def _parse(self, now: float) -> list[Event]:
        events: list[Event] = []
        buffer = self._buffer
        start = 0
        while True:
            found = buffer.find(MAGIC, start)
            if found != start:
                # The last bytes may be the start of a mark.
                skipped = (found if found >= 0 else max(len(buffer) - len(MAGIC) + 1, start)) - start
                start += skipped
                if skipped:
                    events += self._damaged("bytes are missing", now)
                if found < 0:
                    break
            if len(buffer) - start < HEADER.size:
                break
            _, kind, tag, sequence, length, check = HEADER.unpack_from(buffer, start)
            if length > MAX_PAYLOAD or zlib.crc32(buffer[start : start + HEADER.size - 4]) != check:
                start += 1
                events += self._damaged("the head of a message is damaged", now)
                continue
            end = start + HEADER.size + length
            if len(buffer) < end + TRAILER.size:
                break
            payload = bytes(memoryview(buffer)[start + HEADER.size : end])
            if zlib.crc32(payload) != TRAILER.unpack_from(buffer, end)[0]:
                start += 1
                events += self._damaged("a message is damaged", now)
                continue
            start = end + TRAILER.size
            events += self._take_frame(kind, tag, sequence, payload, now)
        del buffer[:start]
        return events

    def _take_frame(self, kind: int, tag: int, sequence: int, payload: bytes, now: float) -> list[Event]:
        if kind == HELLO:
            return self._take_hello(payload, now)
        if not self.established:
            return []
        own_tag = _tag(self._peer, self._own)
        if tag == own_tag ^ REMARK:
            return [Message(kind, payload)]
        if tag != own_tag:
            return []
        if sequence != self._receive_sequence:
            return self._damaged("messages are missing", now)
        self._receive_sequence = (sequence + 1) & 0xFFFFFFFF
        return [Message(kind, payload)]

    def _look_into_frame(self, now: float) -> list[Event]:
        """The rest of a frame does not come: if the other end restarted inside it, drop it."""
        start = 1
        while True:
            start = self._buffer.find(MAGIC, start)
            if start < 0 or len(self._buffer) - start < HEADER.size:
                return []
            _, kind, _, _, _length, check = HEADER.unpack_from(self._buffer, start)
            if kind == HELLO and zlib.crc32(self._buffer[start : start + HEADER.size - 4]) == check:
                del self._buffer[:start]
                return self._damaged("a message ends early", now) + self._parse(now)
            start += 1


def _tag(sender: bytes, receiver: bytes) -> int:
    return zlib.crc32(sender + receiver)
