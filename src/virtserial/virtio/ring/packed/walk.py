"""One chain of a packed virtqueue, read descriptor by descriptor and checked against 2.8.5 to 2.8.7, device side.

Everything read from guest memory is read once, checked, and never trusted again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.errors import DriverError
from virtserial.virtio.ring.chains import MAX_CHAIN_BYTES, MAX_CHAIN_LENGTH
from virtserial.virtio.ring.packed.layout import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    INDEX,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    advance,
    available_flags,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtserial.memory.table import MemoryTable
    from virtserial.virtio.ring.packed.access import RingAccess

LOOKAHEAD = 16
"""Descriptors that one look loads: a ring that is not mapped costs two messages for each look."""


class Chain:
    """A chain as the driver has made it available.

    Args:
        identifier: the buffer id, from its last descriptor (2.8.6).
        slots: descriptors of the ring that it takes.
        buffers: (address, length, flags) of each buffer.
    """

    __slots__ = ("buffers", "identifier", "slots")

    def __init__(self, identifier: int, slots: int, buffers: list[tuple[int, int, int]]) -> None:
        self.identifier = identifier
        self.slots = slots
        self.buffers = buffers

    @property
    def writable(self) -> int:
        """Bytes of its device-writable part."""
        return sum(length for _, length, flags in self.buffers if flags & VIRTQ_DESC_F_WRITE)


class ChainWalker:
    """Reads the chains of one attached queue.

    Args:
        index: of the queue, for messages.
        size: descriptors in the ring.
        memory: where indirect tables are.
        indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
    """

    __slots__ = ("_index", "_indirect", "_memory", "_size")

    def __init__(self, index: int, size: int, memory: MemoryTable, indirect: bool) -> None:
        self._index = index
        self._size = size
        self._memory = memory
        self._indirect = indirect

    def chain_at(self, access: RingAccess, position: int) -> Chain:
        """Return the chain whose first descriptor is at `position`.

        Raises:
            DriverError: it breaks a rule, or not all of it is available.
            AddressError: its indirect table is not mapped for DMA.
        """
        name = self._name(position)
        buffers: list[tuple[int, int, int]] = []
        slots = last = 0
        for flags, address, length, identifier in self._descriptors(access, position):
            slots, last = slots + 1, identifier
            if flags & VIRTQ_DESC_F_INDIRECT:
                if slots > 1 or flags & VIRTQ_DESC_F_NEXT:
                    raise DriverError(f"{name}: an indirect descriptor in a list of several")
                self._read_table(name, address, length, buffers)
            else:
                buffers.append((address, length, flags))
        _check(name, buffers)
        return Chain(last, slots, buffers)

    def identifier_at(self, access: RingAccess, position: int) -> int:
        """Return the buffer id of a chain whose first descriptor has lost its length.

        Raises:
            DriverError: not all of it is available.
        """
        return list(self._descriptors(access, position))[-1][3]

    def _name(self, position: int) -> str:
        return f"queue {self._index}: chain at descriptor {position & INDEX}"

    def _descriptors(self, access: RingAccess, position: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the (flags, address, length, buffer id) of each descriptor that the chain takes in the ring."""
        name, slots, most = self._name(position), 0, min(self._size, MAX_CHAIN_LENGTH)
        while True:
            index = position & INDEX
            run, fields = access.available(index, min(LOOKAHEAD, self._size - index), available_flags(position))
            if not run:
                raise DriverError(f"{name}: its descriptor {index} is not available")
            for flags, (address, length, identifier, _) in zip(run, fields, strict=True):
                yield flags, address, length, identifier
                if not flags & VIRTQ_DESC_F_NEXT:
                    return
                slots += 1
                if slots >= most:
                    raise DriverError(f"{name}: more than {most} descriptors")
            position = advance(position, len(run), self._size)

    def _read_table(self, name: str, address: int, length: int, buffers: list[tuple[int, int, int]]) -> None:
        """Append the buffers of an indirect table: all its descriptors, whatever their NEXT says (2.8.7)."""
        if not self._indirect:
            raise DriverError(f"{name}: an indirect descriptor, but VIRTIO_F_INDIRECT_DESC was not negotiated")
        if not length or length % DESCRIPTOR_SIZE:
            raise DriverError(f"{name}: an indirect table of {length} bytes, not a multiple of 16")
        if length // DESCRIPTOR_SIZE > MAX_CHAIN_LENGTH:
            raise DriverError(
                f"{name}: {length // DESCRIPTOR_SIZE} indirect descriptors, at most {MAX_CHAIN_LENGTH}"
            )
        for at, size, _, flags in DESCRIPTOR.iter_unpack(self._memory.read(address, length)):
            if flags & VIRTQ_DESC_F_INDIRECT:
                raise DriverError(f"{name}: an indirect descriptor inside an indirect table")
            buffers.append((at, size, flags))


def _check(name: str, buffers: list[tuple[int, int, int]]) -> None:
    total, writable_seen = 0, False
    for address, length, flags in buffers:
        if not length:
            raise DriverError(f"{name}: zero-length buffer at {address:#x}")
        if flags & VIRTQ_DESC_F_WRITE:
            writable_seen = True
        elif writable_seen:
            raise DriverError(f"{name}: a device-readable descriptor behind a device-writable one")
        total += length
    if total > MAX_CHAIN_BYTES:
        raise DriverError(f"{name}: longer than {MAX_CHAIN_BYTES} bytes")
