"""Guest memory that only the VMM can reach: VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE, sent by the server.

A VMM may answer slowly, and others must be served meanwhile:

| access | waits |
|---|---|
| write | never; a refusal is told later.  The client handles requests in order, so a later read sees what was written |
| read | as long as `patience` says; then AccessPending: the turn is dropped and repeated when the answer is there |
| repeated turn | not for what the dropped turn has done already: reads give what they gave, writes are not sent twice |

A turn reads before it moves bytes, and moves bytes before it writes; so a turn that is repeated moves nothing twice.

QEMU 10.1 (hw/vfio-user/protocol.h, VFIOUserDMARW) differs from the specification, QEMU 11.1 does not: its count has
32 bits and the data follows at once, at byte 12 of the payload instead of 16; messages have the same length
nevertheless, 4 bytes of padding end them; and the reply to a write is a bare header.  Which form a client speaks is
asked once, by a read of 2^32 bytes in the specified form: who takes the count for 0 answers it, all others refuse it.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from virtserial.errors import AccessPending, AddressError, PeerError
from virtserial.vfio_user.asked import REQUEST_TIMEOUT
from virtserial.vfio_user.stream import POST_ID, SEND_TIMEOUT
from virtserial.vfio_user.wire import (
    VFIO_USER_DMA_READ,
    VFIO_USER_DMA_WRITE,
    VFIO_USER_ERROR,
    VFIO_USER_NO_REPLY,
    DmaAccess,
    request,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.errors import DriverError
    from virtserial.memory.region import Buffer
    from virtserial.vfio_user.server import SessionRecord
    from virtserial.vfio_user.stream import MessageStream
    from virtserial.vfio_user.wire import Header

_QEMU_FORM: Final = struct.Struct("<QI")
_PADDING: Final = bytes(4)
_POST: Final = struct.Struct("<HHIIIQQI")
_POST_IN_QEMU_FORM: Final = struct.Struct("<HHIIIQII4x")
"""A whole posted DMA_WRITE of 4 bytes: header, address, count, data."""


def _wait_for_ever() -> float:
    return REQUEST_TIMEOUT


def _ignore(error: DriverError) -> None:
    pass


class MessageMemory:
    """The memory of a stream's client; what memory.region.MessageRegion calls.

    Args:
        stream: the connection.
        session: what was agreed on it.
        patience: how many seconds an access may wait now.
        on_refused: takes the error of a write that the client has refused.
    """

    def __init__(
        self,
        stream: MessageStream,
        session: SessionRecord,
        patience: Callable[[], float] = _wait_for_ever,
        on_refused: Callable[[DriverError], None] = _ignore,
    ) -> None:
        self._stream = stream
        self._session = session
        self._patience = patience
        self._on_refused = on_refused
        self._post: struct.Struct | None = None
        # The accesses of the turn that is under way, in order: (address, count or data) and what a read gave.
        self._done: list[tuple[tuple[int, int | bytes], bytes]] = []
        self._repeated = 0
        self._pending: tuple[int, int] | None = None
        self._pending_id = 0
        self._reply: tuple[Header, bytes] | None = None

    @property
    def answered(self) -> bool:
        """Whether the answer that an access waits for is there."""
        return self._pending is not None and self._reply is not None

    def begin(self) -> None:
        """The accesses to come are those of another turn."""
        self._done.clear()
        self._repeated = 0
        self._pending = None

    def repeat(self) -> None:
        """The accesses to come are those of the last turn again."""
        self._repeated = 0

    def dma_read(self, address: int, length: int) -> bytes:
        """Return `length` bytes.

        Raises:
            AddressError: the client refuses it.
            AccessPending: the client has not answered yet.
            PeerError: the connection is gone, or the reply is not what was asked for.
            StateError: called while a request of the client is being handled.
        """
        parts = []
        while length:
            count = min(length, self._session.max_data_xfer_size)
            parts.append(self._read(address, count))
            address += count
            length -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, address: int, count: int) -> bytes:
        if self._repeats((address, count)):
            return self._done[self._repeated - 1][1]
        offset = self._form(address)
        header, body = self._ask(address, count)
        if header.flags & VFIO_USER_ERROR:
            raise _refusal(header, address, count)
        if len(body) < DmaAccess.FORMAT.size + count or _QEMU_FORM.unpack_from(body) != (address, count):
            raise PeerError(f"DMA_READ of {count} bytes at {address:#x}: the reply has {len(body)} others")
        data = body[offset : offset + count]
        self._did((address, count), data)
        return data

    def dma_write(self, address: int, data: Buffer) -> None:
        """Store `data`.

        Raises:
            PeerError: the connection is gone.
            StateError: as `dma_read`.
        """
        view = memoryview(data)
        limit = self._session.max_data_xfer_size
        for start in range(0, len(view), limit):
            self._write(address + start, bytes(view[start : start + limit]))

    def store_posted(self, stores: Sequence[tuple[int, bytes]]) -> None:
        """Store bytes at many addresses, and wait once, until all of it is done.

        What cannot be stored is not: the client answers none of these messages.

        Args:
            stores: addresses, and at most `max_data_xfer_size` bytes for each.

        Raises:
            PeerError: the connection is gone, or the client does not answer.
            StateError: as `dma_read`.
        """
        if not stores:
            return
        last, data = stores[-1]
        as_specified = self._form_for_a_write(last) == DmaAccess.FORMAT.size
        messages = bytearray()
        for address, part in stores:
            payload = _write_payload(address, part, as_specified)
            messages += request(VFIO_USER_DMA_WRITE, POST_ID, payload, flags=VFIO_USER_NO_REPLY)
        self._stream.send_posted(VFIO_USER_DMA_WRITE, bytes(messages))
        # Messages are handled in order, so what answers this has done all before it.
        self._stream.request(VFIO_USER_DMA_READ, DmaAccess(last, len(data)).pack())

    def _write(self, address: int, data: bytes) -> None:
        if self._repeats((address, data)):
            return
        payload = _write_payload(address, data, self._form_for_a_write(address) == DmaAccess.FORMAT.size)
        count = len(data)

        def check(header: Header, body: bytes) -> None:
            if header.flags & VFIO_USER_ERROR:
                self._on_refused(_refusal(header, address, count))
            # The specification gives the reply's count 8 bytes in one place and 4 in another, QEMU sends no payload.
            elif body and (len(body) < _QEMU_FORM.size or _QEMU_FORM.unpack_from(body) != (address, count)):
                raise PeerError(f"DMA_WRITE of {count} bytes at {address:#x}: the reply is about another access")

        self._stream.ask(VFIO_USER_DMA_WRITE, payload, check)
        self._did((address, data), b"")

    def _repeats(self, access: tuple[int, int | bytes]) -> bool:
        """Whether this is the next access of the dropped turn; if it is another one, that turn is forgotten."""
        if self._repeated < len(self._done):
            if self._done[self._repeated][0] == access:
                self._repeated += 1
                return True
            del self._done[self._repeated :]
        return False

    def _did(self, access: tuple[int, int | bytes], data: bytes) -> None:
        self._done.append((access, data))
        self._repeated += 1

    def _ask(self, address: int, count: int) -> tuple[Header, bytes]:
        """Return the reply to a read."""
        if self._pending != (address, count):
            self._pending, self._reply = (address, count), None
            asked = self._pending_id = self._stream.ask(
                VFIO_USER_DMA_READ,
                DmaAccess(address, count).pack(),
                lambda header, body: self._take(asked, header, body),
            )
        if self._reply is None and not self._stream.wait_for(self._pending_id, self._patience()):
            raise AccessPending(f"DMA_READ of {count} bytes at {address:#x}: no reply yet")
        reply, self._pending, self._reply = self._reply, None, None
        assert reply is not None
        return reply

    def _take(self, asked: int, header: Header, body: bytes) -> None:
        # The answer to a read that nobody waits for any more is dropped.
        if self._pending is not None and asked == self._pending_id:
            self._reply = header, body

    def _form(self, address: int) -> int:
        """Where the data starts in a payload."""
        session = self._session
        if not session.dma_data_offset:
            header, _ = self._ask(address, 1 << 32)
            refused = header.flags & VFIO_USER_ERROR
            session.dma_data_offset = DmaAccess.FORMAT.size if refused else _QEMU_FORM.size
        return session.dma_data_offset

    def _form_for_a_write(self, address: int) -> int:
        """The same; a write cannot be repeated, so an unknown form is waited for."""
        if not self._session.dma_data_offset:
            patience, self._patience = self._patience, lambda: SEND_TIMEOUT
            try:
                return self._form(address)
            except AccessPending as error:
                raise PeerError(f"{error} in {SEND_TIMEOUT} s") from None
            finally:
                self._patience = patience
        return self._session.dma_data_offset

    @property
    def can_post(self) -> bool:
        """Whether the client's form is known; `prepare_posts` asks for it."""
        return self._session.dma_data_offset != 0

    def prepare_posts(self, address: int) -> None:
        """Find out what `post` needs to know; `can_post` may still be False then.

        Args:
            address: one that the client can be asked about.

        Raises:
            PeerError, StateError: as `dma_read`.
        """
        with suppress(AccessPending):
            self._form(address)

    def post(self, address: int, data: int) -> bool:
        """Store 32 bits without waiting; False if that cannot be now (MessageStream.post).  `can_post` must be True."""
        form = self._post
        if form is None:
            specified = self._session.dma_data_offset == DmaAccess.FORMAT.size
            form = self._post = _POST if specified else _POST_IN_QEMU_FORM
        return self._stream.post(
            form.pack(POST_ID, VFIO_USER_DMA_WRITE, _POST.size, VFIO_USER_NO_REPLY, 0, address, 4, data)
        )


def _write_payload(address: int, data: bytes, as_specified: bool) -> bytes:
    if as_specified:
        return DmaAccess(address, len(data)).pack() + data
    return _QEMU_FORM.pack(address, len(data)) + data + _PADDING


def _refusal(header: Header, address: int, count: int) -> AddressError:
    reason = f"{header.name} was refused: {os.strerror(header.error)}"
    return AddressError(f"{count} bytes at guest address {address:#x}: {reason}")
