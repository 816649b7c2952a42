"""The driver's side of a packed virtqueue, over a piece of memory that the device reaches too.

The device is not trusted: what the driver must remember of a chain stays in this process, and every used descriptor is
checked before it is believed.  The calls are those of the split queue's driver side (`DriverRing`).

Between two `publish` the first new descriptor keeps its old flags: the device looks at nothing behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from virtserial.errors import PeerError, StateError
from virtserial.memory import barrier
from virtserial.virtio.ring.packed.layout import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    EVENT_SIZE,
    INDEX,
    LAP_FLAGS,
    MAX_QUEUE_SIZE,
    RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE,
    START,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    advance,
    available_flags,
    event_needed,
    ring_size,
    used_flags,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.virtio.ring.driver_ring import Segment

Token = TypeVar("Token")

CHAIN_LIMIT = 1 << 32
"""virtio 1.3, 2.8.5.2: a driver must not add a chain longer than 2^32 bytes in total."""


class Chain(NamedTuple, Generic[Token]):
    """What the driver remembers of a chain it has made available."""

    token: Token
    slots: int
    writable_length: int


class PackedLayout(NamedTuple):
    """Where the areas of a packed virtqueue lie in one block: descriptor ring, the driver's events, the device's."""

    driver: int
    device: int
    length: int

    @classmethod
    def of(cls, size: int) -> PackedLayout:
        """The layout for `size` descriptors, in bytes from the start of the block, and the block's length."""
        driver = ring_size(size)
        return cls(driver, driver + EVENT_SIZE, driver + 16)


class PackedQueue(Generic[Token]):
    """Makes descriptor chains available and takes them back (a `DriverRing`).

    Args:
        memory: zeroed bytes the device reaches too, at least `PackedLayout.of(size).length`, 16-byte aligned.
        address: the device's address of `memory`.
        size: descriptors, up to 32768.
        event_idx: VIRTIO_F_EVENT_IDX was negotiated.
    """

    def __init__(self, memory: memoryview, address: int, size: int, *, event_idx: bool = False) -> None:
        if not 0 < size <= MAX_QUEUE_SIZE:
            raise StateError(f"packed virtqueue of {size} descriptors: at most {MAX_QUEUE_SIZE}")
        layout = PackedLayout.of(size)
        if len(memory) < layout.length or address & 15:
            raise StateError(
                f"packed virtqueue at {address:#x} in {len(memory)} bytes: it takes {layout.length} aligned ones"
            )
        self.size = size
        self.desc_address = address
        self.avail_address = address + layout.driver
        self.used_address = address + layout.device
        self.in_flight = 0
        self._event_idx = event_idx
        ring = memory[: layout.driver]
        self._u64, self._u32, self._u16 = ring.cast("Q"), ring.cast("I"), ring.cast("H")
        self._driver_event = memory[layout.driver : layout.device].cast("I")
        self._device_event = memory[layout.device : layout.device + EVENT_SIZE].cast("I")
        self._ids = list(range(size - 1, -1, -1))
        self._chains: list[Chain[Token] | None] = [None] * size
        self._next = self._published = self._used = START
        self._first_flags = 0
        self.free = size

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: Token) -> int:
        """Add one chain (see `DriverRing`); return its buffer id."""
        count = len(readable) + len(writable)
        if not 0 < count <= self.free:
            raise StateError(f"chain of {count} descriptors: {self.free} of {self.size} are free")
        identifier = self._take_id(readable, writable, token, count)
        last = count - 1
        parts = [(*part, 0) for part in readable] + [(*part, VIRTQ_DESC_F_WRITE) for part in writable]
        # The first descriptor's flags show the whole chain.
        start = self._next
        for number in range(last, -1, -1):
            address, length, flags = parts[number]
            position = advance(start, number, self.size)
            self._store(position, address, length, identifier, flags | (VIRTQ_DESC_F_NEXT if number < last else 0))
        self._next = advance(start, count, self.size)
        return identifier

    def add_indirect(
        self,
        table: memoryview,
        table_address: int,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        token: Token,
    ) -> int:
        """Add one chain as an indirect table (needs VIRTIO_F_INDIRECT_DESC); return its buffer id.

        Args:
            table: DMA memory of 16 bytes for each segment, not touched again until the chain is harvested.
            table_address: the device's address of `table`.

        Raises:
            StateError: as `add`; the chain is longer than the queue; the table is too small.
        """
        count = len(readable) + len(writable)
        if not 0 < count <= min(self.size, len(table) // DESCRIPTOR_SIZE) or not self.free:
            raise StateError(f"indirect chain of {count}: the queue has {self.size}, {self.free} free")
        identifier = self._take_id(readable, writable, token, 1)
        entries = b"".join(DESCRIPTOR.pack(*part, 0, 0) for part in readable)
        entries += b"".join(DESCRIPTOR.pack(*part, 0, VIRTQ_DESC_F_WRITE) for part in writable)
        table[: len(entries)] = entries
        self._store(self._next, table_address, len(entries), identifier, VIRTQ_DESC_F_INDIRECT)
        self._next = advance(self._next, 1, self.size)
        return identifier

    def _take_id(
        self, readable: Sequence[Segment], writable: Sequence[Segment], token: Token, slots: int
    ) -> int:
        written = sum(length for _, length in writable)
        total = written + sum(length for _, length in readable)
        if total > CHAIN_LIMIT:
            raise StateError(f"chain of {total} bytes: the limit is {CHAIN_LIMIT}")
        identifier = self._ids.pop()
        self._chains[identifier] = Chain(token, slots, written)
        self.in_flight += 1
        self.free -= slots
        return identifier

    def _store(self, position: int, address: int, length: int, identifier: int, flags: int) -> None:
        at = position & INDEX
        flags |= available_flags(position)
        self._u64[2 * at] = address
        self._u32[4 * at + 2] = length
        self._u16[8 * at + 6] = identifier
        if position == self._published:
            self._first_flags = flags
        else:
            self._u16[8 * at + 7] = flags

    def publish(self) -> bool:
        """Show the device every chain added since the last call.

        Returns:
            Whether the device wants an available buffer notification for them (virtio 1.3, 2.8.7).
        """
        new, old = self._next, self._published
        if new == old:
            return False
        self._u16[8 * (old & INDEX) + 7] = self._first_flags
        self._published = new
        barrier.full()
        event = self._device_event[0]
        flags = event >> 16 & 3
        if flags == RING_EVENT_FLAGS_DESC and self._event_idx:
            return event_needed(event & 0xFFFF, new, old, self.size)
        return flags != RING_EVENT_FLAGS_DISABLE

    def harvest(self) -> list[tuple[Token, int]]:
        """Take back what the device has used: (token, bytes written to the chain), in the device's order.

        The length of a chain without writable parts is 0, whatever the device says of it.

        Raises:
            PeerError: the device lies: an id that is not in flight, or more bytes than the chain can hold.
        """
        done: list[tuple[Token, int]] = []
        while self._is_used(self._used):
            at = self._used & INDEX
            chain, identifier = self._chain_at(at)
            length = self._u32[4 * at + 2]
            if length > chain.writable_length:
                if chain.writable_length:
                    raise PeerError(
                        f"device: used descriptor {at} says {length} bytes were written, "
                        f"its chain holds {chain.writable_length}"
                    )
                length = 0
            self._chains[identifier] = None
            self._ids.append(identifier)
            self.free += chain.slots
            self.in_flight -= 1
            self._used = advance(self._used, chain.slots, self.size)
            done.append((chain.token, length))
        return done

    def _is_used(self, position: int) -> bool:
        """Whether the device has used what the driver made available at a position."""
        if not self.in_flight:
            return False
        return self._u16[8 * (position & INDEX) + 7] & LAP_FLAGS == used_flags(position)

    def _chain_at(self, index: int) -> tuple[Chain[Token], int]:
        identifier = self._u16[8 * index + 6]
        chain = self._chains[identifier] if identifier < self.size else None
        if chain is None:
            raise PeerError(f"device: used descriptor {index} has id {identifier}, not in flight")
        return chain, identifier

    def request_interrupt(self, after: int = 1) -> bool:
        """Ask for a used buffer notification when `after` more chains than harvested so far are used.

        Without VIRTIO_F_EVENT_IDX the device interrupts for each of them; if chains have several descriptors, the
        interrupt may come earlier.

        Returns:
            Whether that many are used already: then no interrupt may come, and the caller must harvest again.
        """
        if self._event_idx:
            at = advance(self._used, min(after, self.size) - 1, self.size)
            self._driver_event[0] = RING_EVENT_FLAGS_DESC << 16 | at
        else:
            self._driver_event[0] = RING_EVENT_FLAGS_ENABLE << 16
        barrier.full()
        position = self._used
        for number in range(after):
            if number >= self.in_flight or not self._is_used(position):
                return False
            position = advance(position, self._chain_at(position & INDEX)[0].slots, self.size)
        return True

    def suppress_interrupts(self) -> None:
        """Ask for no used buffer notifications; the device may send some all the same (virtio 1.3, 2.8.7)."""
        self._driver_event[0] = RING_EVENT_FLAGS_DISABLE << 16

    def detach_all(self) -> list[Token]:
        """Take back every chain in flight, used or not; only after the device or the queue was reset."""
        tokens = [chain.token for chain in self._chains if chain is not None]
        self._chains = [None] * self.size
        self._ids = list(range(self.size - 1, -1, -1))
        self.in_flight = 0
        self.free = self.size
        return tokens
