"""The sending half of a transfer: announces a tree, sends the bytes that the receiver lacks, and says FINISH."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Callable, Iterator, NamedTuple

from ..conversation import Party
from ..errors import ProtocolError, TransferFailed
from . import messages as wire
from .source import FileReader, Item, Total

if TYPE_CHECKING:
    from ..link import Link

ANNOUNCE_AHEAD = 32
"""Entries announced ahead of data, so that the receiver's requests arrive in time."""


class Progress(NamedTuple):
    """Progress: files done, bytes sent or already there, and the current path."""

    files: int
    size: int
    path: bytes


class Sender(Party):
    """Sends a walk's items over a link; announces unfinished ones again in each new session."""

    purpose, partner = wire.SENDER, wire.RECEIVER

    def __init__(
        self, items: Iterator[Item], link: Link, complain: Callable[[str], None], total: Total | None = None
    ) -> None:
        """A sender that waits for a session.

        Args:
            items: the items to send.
            link: to the receiver.
            complain: takes a text about each item that the receiver refused or that could not be read.
            total: what all items are, to tell the receiver.
        """
        self._items = items
        self._link = link
        self._complain = complain
        self._total = total
        self._pending: deque[Item] = deque()
        self._announced = 0
        self._wants: deque[tuple[int, int, bytes]] = deque()
        self._reader: FileReader | None = None
        self._sending = False
        self._exhausted = self._finish_sent = False
        self._files = self._bytes = 0
        self.result: wire.Result | None = None
        self.finished = False

    @property
    def progress(self) -> Progress:
        """The progress so far."""
        under_way = self._reader.position if self._reader else 0
        path = self._pending[0].entry.path if self._pending else b""
        return Progress(self._files, self._bytes + under_way, path)

    def established(self) -> None:
        """A session started."""
        self._announced = 0
        self._wants.clear()
        self._sending = self._finish_sent = False
        if self._total is not None:
            self._link.remark(wire.TOTAL, wire.pack_total(*self._total))

    def lost(self) -> None:
        """The session ended; the goodbye may be lost."""
        self._sending = False
        if self.result is not None:
            self.finished = True

    def message(self, kind: int, payload: bytes) -> None:
        """Take a message.

        Raises:
            ProtocolError: the receiver broke the protocol.
        """
        if kind == wire.WANT:
            self._wants.append(wire.unpack_want(payload))
            if len(self._wants) > wire.WINDOW:
                raise ProtocolError("the receiver asks for more than was announced")
        elif kind == wire.DONE:
            self._done(*wire.unpack_done(payload))
        elif kind == wire.RESULT and self._finish_sent:
            self.result = wire.unpack_result(payload)
            self._link.send(wire.GOODBYE)
        elif kind == wire.GOODBYE and self.result is not None:
            self.finished = True
        else:
            raise ProtocolError(f"the receiver sent a message of kind {kind} out of order")

    def pump(self) -> bool:
        """Queue messages; return whether any was queued."""
        worked = False
        while self._link.established and self._link.room and self._step():
            worked = True
        return worked

    def _step(self) -> bool:
        while len(self._pending) < wire.WINDOW and not self._exhausted and self._announced >= len(self._pending):
            item = next(self._items, None)
            if item is None:
                self._exhausted = True
            else:
                self._pending.append(item)
                break
        window = wire.WINDOW if not (self._sending or self._wants) else ANNOUNCE_AHEAD
        if self._announced < len(self._pending) and self._announced < window:
            self._link.send(wire.ENTRY, self._pending[self._announced].entry.pack())
            self._announced += 1
            return True
        if self._sending or self._wants:
            self._send_piece()
            return True
        if self._exhausted and not self._pending and not self._finish_sent:
            self._link.send(wire.FINISH)
            self._finish_sent = True
            return True
        return False

    def _send_piece(self) -> None:
        try:
            if not self._sending:
                self._begin(*self._wants.popleft())
            reader = self._reader
            assert reader is not None
            index, position = reader.item.entry.number, reader.position
            piece = reader.read()
            if piece is None:
                self._link.send(wire.END, wire.pack_end(index, reader.finish(), ""))
                self._sending = False
            elif piece[1]:
                self._link.send(wire.HOLE, wire.pack_hole(index, position, piece[1]))
            else:
                self._link.send(wire.DATA, wire.pack_position(index, position), piece[0])
        except (OSError, TransferFailed) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._link.send(wire.END, wire.pack_end(self._under_way, b"", reason))
            self._sending = False

    def _begin(self, index: int, offset: int, digest: bytes) -> None:
        item = next((each for each in self._pending if each.entry.number == index), None)
        if item is None or item.entry.kind != wire.FILE:
            raise ProtocolError(f"the receiver asks for the entry {index}, which is no file under way")
        self._under_way = index
        self._sending = True
        if self._reader is None or self._reader.item is not item:
            self._close_reader()
            self._reader = FileReader(item)
        self._reader.seek(offset, digest)

    def _done(self, index: int, reason: str) -> None:
        if not self._announced or self._pending[0].entry.number != index:
            raise ProtocolError(f"the receiver is done with the entry {index} out of order")
        item = self._pending.popleft()
        self._announced -= 1
        if reason:
            self._complain("{}: {}".format(wire.printable(item.path.decode("utf-8", "replace")), reason))
        elif item.entry.kind == wire.FILE:
            self._files += 1
            self._bytes += item.entry.size
        if self._reader is not None and self._reader.item is item:
            self._close_reader()

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Close the open file."""
        self._close_reader()
