"""Plays the cases with packed rings: a chain of a case's descriptor table is copied into the ring when it is offered.

The ring begins where a split queue has its descriptor table, the event suppression structures where it has its
available and used ring.  A head is the chain's buffer id.  The used index counts the chains that came back.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from virtserial.conformance.driver import USUAL_FEATURES, HostileDriver
from virtserial.conformance.steps import NEXT, QUEUES, RING_SIZE, RING_STRIDE, RINGS
from virtserial.virtio.features import VIRTIO_F_RING_PACKED
from virtserial.virtio.ring.packed.layout import INDEX, LAP_FLAGS, START, advance, available_flags, used_flags

if TYPE_CHECKING:
    from virtserial.conformance.driver import Machine

_NOTHING: Final = (0, 0, 0, 0)
_EVENT_WORDS: Final = {2 + RING_SIZE: 0, 0: 1}
"""The words of an available ring that say when the driver wants interrupts: which of its event structure they are."""


class PackedHostileDriver(HostileDriver):
    """See the module's text."""

    def __init__(self, machine: Machine, features: int = USUAL_FEATURES) -> None:
        super().__init__(machine, features)
        self._forget()

    def _forget(self) -> None:
        self._tables = [[_NOTHING] * RING_SIZE for _ in range(QUEUES)]
        self._next = [START] * QUEUES
        self._used_at = [START] * QUEUES
        self._slots: list[list[int]] = [[] for _ in range(QUEUES)]
        self._came_back: list[list[tuple[int, int]]] = [[] for _ in range(QUEUES)]

    def _start(self, point: str, features: int, queues: tuple[int, ...]) -> None:
        self._forget()
        for queue in range(QUEUES):
            self.machine.write(RINGS + queue * RING_STRIDE, bytes(16 * RING_SIZE))
        super()._start(point, features | VIRTIO_F_RING_PACKED, queues)

    def _write_descriptor(self, base: int, index: int, address: int, length: int, flags: int, following: int) -> None:
        queue, at = divmod(base - RINGS, RING_STRIDE)
        if 0 <= queue < QUEUES and at == 0:
            self._tables[queue][index] = (address, length, flags, following)
        else:
            # The descriptors of an indirect table follow each other.
            super()._write_descriptor(base, index, address, length, 0, flags & ~NEXT)

    def _write_avail(self, queue: int, word: int, value: int) -> None:
        super()._write_avail(queue, _EVENT_WORDS.get(word, 2), value)

    def _offer(self, queue: int, head: int) -> None:
        chain: list[tuple[int, int, int, int]] = []
        index = head
        while len(chain) < RING_SIZE:
            # What is outside the table is a descriptor that no device takes.
            chain.append(self._tables[queue][index] if index < RING_SIZE else _NOTHING)
            _, _, flags, index = chain[-1]
            if not flags & NEXT or index >= RING_SIZE:
                break
        ring, start = RINGS + queue * RING_STRIDE, self._next[queue]
        for number in range(len(chain) - 1, -1, -1):
            at = advance(start, number, RING_SIZE)
            address, length, flags, _ = chain[number]
            data = struct.pack("<QIHH", address & (1 << 64) - 1, length, head, flags & 7 | available_flags(at))
            self.machine.write(ring + 16 * (at & INDEX), data)
        self._next[queue] = advance(start, len(chain), RING_SIZE)
        self._slots[queue].append(len(chain))
        self._avail[queue] = (self._avail[queue] + 1) & 0xFFFF

    def used_index(self, queue: int) -> int:
        """How many chains have come back, modulo 65536."""
        ring = self.machine.read(RINGS + queue * RING_STRIDE, 16 * RING_SIZE)
        while len(self._came_back[queue]) < len(self._slots[queue]):
            at = self._used_at[queue]
            _, length, identifier, flags = struct.unpack_from("<QIHH", ring, 16 * (at & INDEX))
            if flags & LAP_FLAGS != used_flags(at):
                break
            slots = self._slots[queue][len(self._came_back[queue])]
            self._came_back[queue].append((identifier, length))
            self._used_at[queue] = advance(at, slots, RING_SIZE)
        return len(self._came_back[queue]) & 0xFFFF

    def used_elements(self, queue: int, since: int) -> list[tuple[int, int]]:
        """See HostileDriver.used_elements."""
        return self._used_elements(queue)[since:]

    def _used_elements(self, queue: int) -> list[tuple[int, int]]:
        self.used_index(queue)
        return self._came_back[queue]
