"""Guest memory that only the VMM can reach: VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE, sent by the server.

QEMU 10.1 (hw/vfio-user/protocol.h, VFIOUserDMARW) differs from the specification, QEMU 11.1 does not: its count has
32 bits and the data follows at once, at byte 12 of the payload instead of 16; messages have the same length
nevertheless, 4 bytes of padding end them; and the reply to a write is a bare header.  Which form a client speaks is
asked once, by a read of 2^32 bytes in the specified form: who takes the count for 0 answers it, all others refuse it.

An interrupt's message is a DMA_WRITE that nobody answers: the VMM's reply would be one message more for each.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from virtserial.errors import AddressError, PeerError
from virtserial.vfio_user.stream import POST_ID, RequestRefused
from virtserial.vfio_user.wire import (
    VFIO_USER_DMA_READ,
    VFIO_USER_DMA_WRITE,
    VFIO_USER_NO_REPLY,
    DmaAccess,
)

if TYPE_CHECKING:
    from virtserial.memory.region import Buffer
    from virtserial.vfio_user.server import SessionRecord
    from virtserial.vfio_user.stream import MessageStream

_QEMU_FORM: Final = struct.Struct("<QI")
_PADDING: Final = bytes(4)
_POST: Final = struct.Struct("<HHIIIQQI")
_POST_IN_QEMU_FORM: Final = struct.Struct("<HHIIIQII4x")
"""A whole posted DMA_WRITE of 4 bytes: header, address, count, data."""


class MessageMemory:
    """The memory of a stream's client; what memory.region.MessageRegion calls.

    Args:
        stream: the connection.
        session: what was agreed on it.
    """

    def __init__(self, stream: MessageStream, session: SessionRecord) -> None:
        self._stream = stream
        self._session = session
        self._post: struct.Struct | None = None

    def dma_read(self, address: int, length: int) -> bytes:
        """Return `length` bytes.

        Raises:
            AddressError: the client refuses it.
            PeerError: the connection is gone, or the reply is not what was asked for.
            StateError: called while a request of the client is being handled.
        """
        offset = self._form(address)
        parts = []
        while length:
            count = min(length, self._session.max_data_xfer_size)
            body = self._request(VFIO_USER_DMA_READ, address, count, DmaAccess(address, count).pack())
            if len(body) < DmaAccess.FORMAT.size + count or _QEMU_FORM.unpack_from(body) != (address, count):
                raise PeerError(f"DMA_READ of {count} bytes at {address:#x}: the reply has {len(body)} others")
            parts.append(body[offset : offset + count])
            address += count
            length -= count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def dma_write(self, address: int, data: Buffer) -> None:
        """Store `data`.

        Raises:
            AddressError, PeerError, StateError: as `dma_read`.
        """
        as_specified = self._form(address) == DmaAccess.FORMAT.size
        view = memoryview(data)
        limit = self._session.max_data_xfer_size
        for start in range(0, len(view), limit):
            part = bytes(view[start : start + limit])
            at = address + start
            if as_specified:
                payload = DmaAccess(at, len(part)).pack() + part
            else:
                payload = _QEMU_FORM.pack(at, len(part)) + part + _PADDING
            body = self._request(VFIO_USER_DMA_WRITE, at, len(part), payload)
            # The specification gives the reply's count 8 bytes in one place and 4 in another, QEMU sends no payload.
            if body and (len(body) < _QEMU_FORM.size or _QEMU_FORM.unpack_from(body) != (at, len(part))):
                raise PeerError(f"DMA_WRITE of {len(part)} bytes at {at:#x}: the reply is about another access")

    def _request(self, command: int, address: int, count: int, payload: bytes) -> bytes:
        try:
            return self._stream.request(command, payload)
        except RequestRefused as error:
            raise AddressError(f"{count} bytes at guest address {address:#x}: {error}") from error

    def _form(self, address: int) -> int:
        """Where the data starts in a payload."""
        session = self._session
        if not session.dma_data_offset:
            try:
                self._stream.request(VFIO_USER_DMA_READ, DmaAccess(address, 1 << 32).pack())
                session.dma_data_offset = _QEMU_FORM.size
            except RequestRefused:
                session.dma_data_offset = DmaAccess.FORMAT.size
        return session.dma_data_offset

    @property
    def can_post(self) -> bool:
        """Whether the client's form is known; `prepare_posts` asks for it."""
        return self._session.dma_data_offset != 0

    def prepare_posts(self, address: int) -> None:
        """Find out what `post` needs to know.

        Args:
            address: one that the client can be asked about.

        Raises:
            PeerError, StateError: as `dma_read`.
        """
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
