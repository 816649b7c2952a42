"""How the device side reaches the descriptor ring and the event suppression structures of a packed virtqueue.

`MappedRing` works on views of mapped guest memory, where a used descriptor is one aligned store of 64 bits: length,
buffer id and flags together.  `RemoteRing` works where some area is not mapped in one piece: the same by reads and
writes of the memory table.

A descriptor's flags are loaded before its other fields: the driver stores them in the opposite order (2.8.6).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

from virtserial.virtio.ring.packed.layout import DESCRIPTOR, DESCRIPTOR_SIZE, EVENT_SIZE, LAP_FLAGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.memory.table import MemoryTable

    Run = tuple[list[int], list[tuple[int, int, int, int]]]
    """Descriptors in a row: their flags, and their (address, length, buffer id, flags to be ignored)."""

_USED_OFFSET = 8
_FLAGS_OFFSET = 14


class RingAccess(Protocol):
    """Loads and stores of one queue's shared fields.

    Attributes:
        mapped: they are no system calls.
    """

    mapped: bool

    def is_available(self, index: int, available: int) -> bool:
        """Whether AVAIL and USED of the descriptor at `index` are `available`."""
        ...

    def available(self, index: int, count: int, available: int) -> Run:
        """Return the descriptors from `index` on that are available in a row, at most `count`, not beyond the ring."""
        ...

    def store_used(self, index: int, used: Sequence[int]) -> None:
        """Store the upper halves of used descriptors from `index` on, the last one first."""
        ...

    def show_used(self, index: int, used: int) -> None:
        """Store the upper half of the used descriptor that the driver waits for."""
        ...

    def driver_event(self) -> int:
        """Return the driver's event suppression: a position, and flags from bit 16 on."""
        ...

    def store_device_event(self, event: int) -> None:
        """Store the device's event suppression."""
        ...


class MappedRing:
    """A ring whose areas lie each in mapped memory."""

    mapped = True

    __slots__ = ("_desc", "_device", "_driver", "_quads", "_words")

    def __init__(self, desc: memoryview, driver: memoryview, device: memoryview) -> None:
        self._desc = desc
        self._words = desc.cast("H")
        self._quads = desc.cast("Q")
        self._driver = driver.cast("I")
        self._device = device.cast("I")

    def is_available(self, index: int, available: int) -> bool:
        return self._words[8 * index + 7] & LAP_FLAGS == available

    def available(self, index: int, count: int, available: int) -> Run:
        words, at = self._words, 8 * index + 7
        if words[at] & LAP_FLAGS != available:
            return [], []
        # Few loads tell how far to look; each flag is looked at below.
        reach = 1
        while reach < count and words[at + 8 * reach] & LAP_FLAGS == available:
            reach *= 2
        flags = words[at : at + 8 * min(reach, count) : 8].tolist()
        if flags.count(flags[0]) != len(flags):
            for number, value in enumerate(flags):
                if value & LAP_FLAGS != available:
                    del flags[number:]
                    break
        start = DESCRIPTOR_SIZE * index
        copy = bytes(self._desc[start : start + DESCRIPTOR_SIZE * len(flags)])
        return flags, list(DESCRIPTOR.iter_unpack(copy))

    def store_used(self, index: int, used: Sequence[int]) -> None:
        at = 2 * index + 1
        last = at + 2 * len(used) - 2
        self._quads[last : at - 1 : -2] = array("Q", used[::-1])

    def show_used(self, index: int, used: int) -> None:
        self._quads[2 * index + 1] = used

    def driver_event(self) -> int:
        return self._driver[0]

    def store_device_event(self, event: int) -> None:
        self._device[0] = event


class RemoteRing:
    """A ring reached through the memory table, access by access.

    A load needs no second look here: AVAIL is in one byte of the flags, and USED, in the other, does not change when
    a descriptor is made available.
    """

    mapped = False

    __slots__ = ("_desc", "_device", "_driver", "_memory")

    def __init__(self, memory: MemoryTable, desc: int, driver: int, device: int) -> None:
        self._memory = memory
        self._desc = desc
        self._driver = driver
        self._device = device

    def is_available(self, index: int, available: int) -> bool:
        data = self._memory.read(self._desc + DESCRIPTOR_SIZE * index + _FLAGS_OFFSET, 2)
        return int.from_bytes(data, "little") & LAP_FLAGS == available

    def available(self, index: int, count: int, available: int) -> Run:
        start = self._desc + DESCRIPTOR_SIZE * index
        words = memoryview(self._memory.read(start, DESCRIPTOR_SIZE * count)).cast("H")
        flags: list[int] = []
        for value in words[7::8].tolist():
            if value & LAP_FLAGS != available:
                break
            flags.append(value)
        if not flags:
            return [], []
        return flags, list(DESCRIPTOR.iter_unpack(self._memory.read(start, DESCRIPTOR_SIZE * len(flags))))

    def store_used(self, index: int, used: Sequence[int]) -> None:
        at = self._desc + DESCRIPTOR_SIZE * index + _USED_OFFSET
        for number in range(len(used) - 1, -1, -1):
            self._memory.write(at + DESCRIPTOR_SIZE * number, used[number].to_bytes(8, "little"))

    def show_used(self, index: int, used: int) -> None:
        at, data = self._desc + DESCRIPTOR_SIZE * index + _USED_OFFSET, used.to_bytes(8, "little")
        # The driver may be looking: flags last.
        self._memory.write(at, data[:6])
        self._memory.write(at + 6, data[6:])

    def driver_event(self) -> int:
        return int.from_bytes(self._memory.read(self._driver, EVENT_SIZE), "little")

    def store_device_event(self, event: int) -> None:
        self._memory.write(self._device, event.to_bytes(EVENT_SIZE, "little"))
