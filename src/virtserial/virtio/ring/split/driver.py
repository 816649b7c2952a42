"""The driver's side of a split virtqueue, over a piece of memory that the device reaches too.

The device is not trusted: nothing is read back from the descriptor table, what the driver must remember of a
chain stays in this process, and every used element is checked before it is believed.

A turn is: `add` buffers, `publish` them once, notify the device if `publish` says so; later `harvest` what
the device has used.  `request_interrupt` says after how many used buffers it should interrupt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from virtserial.errors import PeerError, StateError
from virtserial.memory import barrier
from virtserial.virtio.ring.split.layout import (
    AVAIL_FLAGS,
    AVAIL_IDX,
    AVAIL_RING,
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    MAX_QUEUE_SIZE,
    USED_FLAGS,
    USED_IDX,
    USED_RING_ALIGNMENT,
    USED_RING_OFFSET,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
    avail_ring_size,
    descriptor_table_size,
    event_needed,
    used_ring_size,
    used_ring_start,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.virtio.ring.driver_ring import Segment

Token = TypeVar("Token")

CHAIN_LIMIT = 1 << 32
"""virtio 1.3, 2.7.5.2: "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total"."""


class Chain(NamedTuple, Generic[Token]):
    """What the driver remembers of a chain it has made available."""

    token: Token
    descriptors: tuple[int, ...]
    writable_length: int


class QueueLayout(NamedTuple):
    """Where the areas of a split virtqueue lie in one block: descriptor table, available ring, used ring."""

    avail: int
    used: int
    length: int

    @classmethod
    def of(cls, size: int, alignment: int = USED_RING_ALIGNMENT) -> QueueLayout:
        """The layout for `size` descriptors, in bytes from the start of the block, and the block's length.

        Args:
            alignment: of the used ring; with LEGACY_RING_ALIGNMENT also of the block's length.
        """
        used, step = used_ring_start(size, alignment), max(alignment, 16)
        return cls(descriptor_table_size(size), used, (used + used_ring_size(size) + step - 1) & -step)


class DriverQueue(Generic[Token]):
    """Makes descriptor chains available and takes them back.

    Args:
        memory: zeroed bytes the device reaches too, at least `QueueLayout.of(size).length`, 16-byte aligned.
        address: the device's address of `memory`.
        size: entries, a power of 2 up to 32768.
        event_idx: VIRTIO_F_EVENT_IDX was negotiated.
        alignment: of the used ring, see QueueLayout.

    Attributes:
        in_flight: chains that are made available and not yet harvested.
    """

    def __init__(
        self,
        memory: memoryview,
        address: int,
        size: int,
        *,
        event_idx: bool = False,
        alignment: int = USED_RING_ALIGNMENT,
    ) -> None:
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise StateError(f"split virtqueue of {size} entries: not a power of 2 up to {MAX_QUEUE_SIZE}")
        layout = QueueLayout.of(size, alignment)
        if len(memory) < layout.length or address & 15:
            raise StateError(
                f"split virtqueue at {address:#x} in {len(memory)} bytes: it takes {layout.length} aligned ones"
            )
        self.size = size
        self.desc_address = address
        self.avail_address = address + layout.avail
        self.used_address = address + layout.used
        self.in_flight = 0
        self._event_idx = event_idx
        table = memory[: layout.avail]
        self._desc_u64 = table.cast("Q")
        self._desc_u32 = table.cast("I")
        self._desc_u16 = table.cast("H")
        self._avail = memory[layout.avail : layout.avail + avail_ring_size(size)].cast("H")
        used = memory[layout.used : layout.used + used_ring_size(size)]
        self._used_u16 = used.cast("H")
        self._used_elements = used[USED_RING_OFFSET : USED_RING_OFFSET + 8 * size].cast("I")
        self._free = list(range(size - 1, -1, -1))
        self._chains: list[Chain[Token] | None] = [None] * size
        self._avail_idx = 0
        self._published_idx = 0
        self._used_idx = 0

    @property
    def free(self) -> int:
        """Descriptors that can still be used by `add`."""
        return len(self._free)

    def add(self, readable: Sequence[Segment], writable: Sequence[Segment], token: Token) -> int:
        """Put one chain on the available ring; the device sees it at the next `publish`.

        Args:
            readable: what the device reads, in order; these come first (virtio 1.3, 2.7.4.2).
            writable: what the device writes.
            token: returned by `harvest` with the chain.

        Returns:
            The chain's head.

        Raises:
            StateError: no segment, more segments than free descriptors, or 2**32 bytes and more.
        """
        count = len(readable) + len(writable)
        if not 0 < count <= len(self._free):
            raise StateError(f"chain of {count} descriptors: {len(self._free)} of {self.size} are free")
        self._check_length(readable, writable)
        free = self._free
        descriptors = tuple(free.pop() for _ in range(count))
        last = count - 1
        for position, index in enumerate(descriptors):
            if position < len(readable):
                (address, length), flags = readable[position], 0
            else:
                (address, length), flags = writable[position - len(readable)], VIRTQ_DESC_F_WRITE
            if position < last:
                flags |= VIRTQ_DESC_F_NEXT
                self._desc_u16[8 * index + 7] = descriptors[position + 1]
            self._desc_u64[2 * index] = address
            self._desc_u32[4 * index + 2] = length
            self._desc_u16[8 * index + 6] = flags
        return self._make_available(Chain(token, descriptors, sum(length for _, length in writable)))

    def add_indirect(
        self,
        table: memoryview,
        table_address: int,
        readable: Sequence[Segment],
        writable: Sequence[Segment],
        token: Token,
    ) -> int:
        """Put one chain on the available ring as an indirect table (needs VIRTIO_F_INDIRECT_DESC).

        Args:
            table: DMA memory of 16 bytes for each segment, not touched again until the chain is harvested.
            table_address: the device's address of `table`.

        Raises:
            StateError: as `add`; the chain is longer than the queue (2.7.5.3.1); the table is too small.
        """
        count = len(readable) + len(writable)
        if not 0 < count <= min(self.size, len(table) // DESCRIPTOR_SIZE) or not self._free:
            raise StateError(f"indirect chain of {count}: the queue has {self.size}, {self.free} free")
        self._check_length(readable, writable)
        entries = bytearray()
        for position, (address, length) in enumerate((*readable, *writable)):
            flags = VIRTQ_DESC_F_WRITE if position >= len(readable) else 0
            more = position + 1 < count
            entries += DESCRIPTOR.pack(
                address, length, flags | VIRTQ_DESC_F_NEXT if more else flags, position + 1 if more else 0
            )
        table[: len(entries)] = entries
        index = self._free.pop()
        self._desc_u64[2 * index] = table_address
        self._desc_u32[4 * index + 2] = len(entries)
        self._desc_u16[8 * index + 6] = VIRTQ_DESC_F_INDIRECT
        return self._make_available(Chain(token, (index,), sum(length for _, length in writable)))

    def publish(self) -> bool:
        """Show the device every chain added since the last call.

        Returns:
            Whether the device wants an available buffer notification for them (virtio 1.3, 2.7.10).
        """
        new, old = self._avail_idx, self._published_idx
        if new == old:
            return False
        self._avail[AVAIL_IDX] = new
        self._published_idx = new
        barrier.full()
        if self._event_idx:
            return event_needed(self._used_u16[2 + 4 * self.size], new, old)
        return not self._used_u16[USED_FLAGS] & VIRTQ_USED_F_NO_NOTIFY

    def harvest(self) -> list[tuple[Token, int]]:
        """Take back what the device has used: (token, bytes written to the chain), in the device's order.

        The length of a chain without writable parts is 0, whatever the device says of it.

        Raises:
            PeerError: the device lies: more elements than chains in flight, an id that is no head in flight,
                or more bytes than the chain can hold.  The queue must not be used until a reset.
        """
        used_idx = self._used_u16[USED_IDX]
        count = (used_idx - self._used_idx) & 0xFFFF
        if not count:
            return []
        if count > self.in_flight:
            raise PeerError(f"device: used ring shows {count} elements, {self.in_flight} are in flight")
        mask = self.size - 1
        done: list[tuple[Token, int]] = []
        for position in range(self._used_idx, self._used_idx + count):
            slot = 2 * (position & mask)
            head = self._used_elements[slot]
            length = self._used_elements[slot + 1]
            chain = self._chains[head] if head < self.size else None
            if chain is None:
                raise PeerError(f"device: used element {position & 0xFFFF} has id {head}, not in flight")
            if length > chain.writable_length:
                if chain.writable_length:
                    raise PeerError(
                        f"device: used element {position & 0xFFFF} says {length} bytes were written, "
                        f"its chain holds {chain.writable_length}"
                    )
                length = 0
            self._chains[head] = None
            self._free.extend(chain.descriptors)
            self.in_flight -= 1
            done.append((chain.token, length))
        self._used_idx = used_idx
        return done

    def request_interrupt(self, after: int = 1) -> bool:
        """Ask for a used buffer notification when `after` more chains than harvested so far are used.

        Without VIRTIO_F_EVENT_IDX the device interrupts for each of them.

        Returns:
            Whether that many are used already: then no interrupt may come, and the caller must harvest again.
        """
        if self._event_idx:
            self._avail[AVAIL_RING + self.size] = (self._used_idx + after - 1) & 0xFFFF
        else:
            self._avail[AVAIL_FLAGS] = 0
        barrier.full()
        return (self._used_u16[USED_IDX] - self._used_idx) & 0xFFFF >= after

    def suppress_interrupts(self) -> None:
        """Ask for no used buffer notifications; the device may send some all the same (virtio 1.3, 2.7.7)."""
        if self._event_idx:
            # The event the device has just passed: the farthest ahead a 16-bit index can be.
            self._avail[AVAIL_RING + self.size] = (self._used_idx - 1) & 0xFFFF
        else:
            self._avail[AVAIL_FLAGS] = VIRTQ_AVAIL_F_NO_INTERRUPT

    def detach_all(self) -> list[Token]:
        """Take back every chain in flight, used or not; only after the device or the queue was reset."""
        tokens = [chain.token for chain in self._chains if chain is not None]
        self._chains = [None] * self.size
        self._free = list(range(self.size - 1, -1, -1))
        self.in_flight = 0
        return tokens

    def _make_available(self, chain: Chain[Token]) -> int:
        head = chain.descriptors[0]
        self._chains[head] = chain
        self._avail[AVAIL_RING + (self._avail_idx & (self.size - 1))] = head
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.in_flight += 1
        return head

    @staticmethod
    def _check_length(readable: Sequence[Segment], writable: Sequence[Segment]) -> None:
        total = sum(length for _, length in readable) + sum(length for _, length in writable)
        if total > CHAIN_LIMIT:
            raise StateError(f"chain of {total} bytes: the limit is {CHAIN_LIMIT}")
