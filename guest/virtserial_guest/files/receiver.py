"""The receiving half of a transfer: requests missing bytes, checks every file, renames it into place."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Callable

from ..conversation import Party
from ..errors import ProtocolError, TransferFailed
from . import messages as wire
from .sender import Progress
from .source import Total

if TYPE_CHECKING:
    from ..link import Link
    from .messages import Entry
    from .target import PartialFile, Target


class Receiver(Party):
    """Receives a tree into a target, entry after entry."""

    purpose, partner = wire.RECEIVER, wire.SENDER

    def __init__(
        self, target: Target, link: Link, complain: Callable[[str], None], limit: int | None = None
    ) -> None:
        """A receiver that waits for a session.

        Args:
            target: takes the files.
            link: to the sender.
            complain: takes a text about each failure.
            limit: the most bytes of all files.
        """
        self._target = target
        self._link = link
        self._complain = complain
        self._limit = limit
        self._entries: deque[Entry] = deque()
        self._partial: PartialFile | None = None
        self._partial_of: Entry | None = None
        self._broken = ""
        self._files = self._bytes = self._failures = 0
        self._next_index = 0
        self.result: wire.Result | None = None
        self.total: Total | None = None
        self.finished = False

    @property
    def progress(self) -> Progress:
        """The progress so far."""
        under_way = self._partial.position if self._partial else 0
        return Progress(self._files, self._bytes + under_way, self._entries[0].path if self._entries else b"")

    def established(self) -> None:
        """A session started: the sender announces its entries again."""
        self._entries.clear()
        self._broken = ""

    def lost(self) -> None:
        """The session ended."""

    def pump(self) -> bool:
        """A receiver only answers."""
        return False

    def message(self, kind: int, payload: bytes) -> None:
        """Take a message.

        Raises:
            ProtocolError: the sender broke the protocol.
        """
        if kind == wire.TOTAL:
            self.total = Total(*wire.unpack_total(payload))
        elif kind == wire.ENTRY:
            self._announce(wire.unpack_entry(payload))
        elif kind == wire.DATA:
            index, offset, data = wire.unpack_data(payload)
            self._append(index, offset, len(data), lambda partial: partial.write(data))
        elif kind == wire.HOLE:
            index, offset, length = wire.unpack_hole(payload)
            self._append(index, offset, length, lambda partial: partial.skip(length))
        elif kind == wire.END:
            self._end(*wire.unpack_end(payload))
        elif kind == wire.FINISH and not self._entries:
            if self.result is None:
                self._target.remove_partials()
                self.result = wire.Result(self._files, self._bytes, self._failures)
            self._link.send(wire.RESULT, self.result.pack())
        elif kind == wire.GOODBYE and self.result is not None:
            self._link.send(wire.GOODBYE)
            self.finished = True
        else:
            raise ProtocolError(f"the sender sent a message of kind {kind} out of order")

    def close(self) -> None:
        """Close open files; keep a partial file for the next transfer."""
        self._close_partial()

    # Entries

    def _announce(self, entry: Entry) -> None:
        if len(self._entries) >= wire.WINDOW:
            raise ProtocolError(f"the sender announces more than {wire.WINDOW} entries ahead")
        if self._entries and entry.number != self._entries[-1].number + 1:
            raise ProtocolError(f"entry {entry.number} comes after entry {self._entries[-1].number}")
        if entry.number == 0:
            # A restarted sender announces everything again.
            self._files = self._bytes = self._failures = self._next_index = 0
            self.result = None
        self._entries.append(entry)
        if entry.kind == wire.FILE:
            self._ask(entry)
        self._settle()

    def _ask(self, entry: Entry) -> None:
        """Report how much of a file is here."""
        if self._partial is not None and _same(self._partial_of, entry):
            offset, digest = self._partial.position, self._partial.digest()
        else:
            existing = self._target.existing(entry) if entry.size else None
            offset, digest = (entry.size, existing) if existing else self._target.partial_state(entry)
        self._link.send(wire.WANT, wire.pack_want(entry.number, offset, digest))

    def _settle(self) -> None:
        """Finish entries in order, up to the first incomplete file."""
        while self._entries and self._entries[0].kind != wire.FILE:
            entry = self._entries[0]
            try:
                if entry.kind == wire.FOLDER:
                    self._target.make_folder(entry)
                elif entry.kind == wire.FOLDER_END:
                    self._target.finish_folder(entry)
                else:
                    self._target.make_link(entry)
            except (OSError, TransferFailed, OverflowError) as error:
                self._done(_reason(error))
            else:
                self._done("")

    def _done(self, reason: str) -> None:
        entry = self._entries.popleft()
        if reason:
            self._complain("{}: {}".format(wire.printable(entry.path.decode("utf-8", "replace")), reason))
        # A lost DONE makes the entry come again: count it once.
        if entry.number >= self._next_index:
            self._next_index = entry.number + 1
            self._failures += bool(reason)
            if entry.kind == wire.FILE and not reason:
                self._files += 1
                self._bytes += entry.size
        self._link.send(wire.DONE, wire.pack_done(entry.number, reason))

    # The current file

    def _under_way(self, index: int) -> Entry:
        if not self._entries or self._entries[0].number != index:
            raise ProtocolError(f"data of the entry {index} comes out of order")
        return self._entries[0]

    def _append(self, index: int, offset: int, length: int, write: Callable[[PartialFile], None]) -> None:
        entry = self._under_way(index)
        if self._broken:
            return
        try:
            partial = self._open(entry, offset)
            if offset != partial.position:
                raise ProtocolError(f"data at {offset} of a file that has {partial.position} bytes")
            if offset + length > entry.size:
                raise ProtocolError(f"data up to {offset + length} of a file of {entry.size} bytes")
            if self._limit is not None and self._bytes + offset + length > self._limit:
                raise TransferFailed(f"more than {self._limit} bytes in all")
            write(partial)
        except (OSError, TransferFailed) as error:
            # Data that the sender has already sent still comes; the END answers it.
            self._broken = _reason(error)

    def _open(self, entry: Entry, offset: int) -> PartialFile:
        if self._partial is None or not _same(self._partial_of, entry):
            self._close_partial()
            self._partial, self._partial_of = self._target.begin_file(entry), entry
        if offset == 0 and self._partial.position:
            self._partial.restart()
        return self._partial

    def _end(self, index: int, digest: bytes, reason: str) -> None:
        entry = self._under_way(index)
        reason = reason or self._broken
        self._broken = ""
        if not reason:
            try:
                reason = self._complete(entry, digest)
            except (OSError, TransferFailed) as error:
                reason = _reason(error)
        if reason and self._partial is not None and _same(self._partial_of, entry):
            self._partial.discard()
            self._partial = self._partial_of = None
        self._done(reason)
        self._settle()

    def _complete(self, entry: Entry, digest: bytes) -> str:
        """Check a file and rename it into place; return the reason of a failure."""
        if self._partial is None or not _same(self._partial_of, entry):
            if entry.size and self._target.existing(entry) == digest:
                self._target.keep_existing(entry)
                return ""
            self._close_partial()
            self._partial, self._partial_of = self._target.begin_file(entry), entry
        if self._partial.position != entry.size or self._partial.digest() != digest:
            return "the file that came is not the one that was sent"
        self._target.place_file(self._partial, entry)
        self._close_partial()
        return ""

    def _close_partial(self) -> None:
        if self._partial is not None:
            self._partial.close()
            self._partial = self._partial_of = None


def _same(one: Entry | None, other: Entry) -> bool:
    """Whether two entries are the same file; a restarted sender numbers them anew."""
    return one is not None and (one.path, one.size, one.modified) == (other.path, other.size, other.modified)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
