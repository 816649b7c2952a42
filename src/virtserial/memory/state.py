"""State memory: the registers and positions of a device, kept where they outlive the process.

A device's state is a block of bytes: a bytearray in tests, a memory file in a worker.  Objects are not saved into
it, they live in it: every register is a field of a `Record`.  So a successor that builds the same objects over the same
block resumes where its predecessor was killed.

Layout: a 64-byte header, then the records in the order in which the device's constructor allocates them, each
aligned to 8 bytes.  All fields are native little-endian; a load or store of a field is one aligned access.
"""

from __future__ import annotations

import sys
from typing import ClassVar, overload

from virtserial.errors import StateError

if sys.byteorder != "little":  # pragma: no cover - refused at start
    raise StateError("virtserial runs on little-endian machines only: its views of guest memory are native")

MAGIC = 0x6C61697265737476  # "vtserial"
VERSION = 2
HEADER_SIZE = 64


class StateMemory:
    """A block of state, handed out piece by piece.

    Args:
        buffer: writable bytes: zeros for a new device, a predecessor's block for a successor.
    """

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self.u8 = memoryview(buffer).cast("B")
        if len(self.u8) < HEADER_SIZE or len(self.u8) % 8:
            raise StateError(f"state memory of {len(self.u8)} bytes: at least {HEADER_SIZE}, in multiples of 8")
        self.u16 = self.u8.cast("H")
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")
        self._end = HEADER_SIZE
        self.restored = self.u64[0] == MAGIC
        if self.restored and self.u64[1] != VERSION:
            raise StateError(f"state memory of version {self.u64[1]}; this program reads version {VERSION}")
        self.u64[0], self.u64[1] = MAGIC, VERSION

    def allocate(self, size: int) -> int:
        """Return the offset of the next `size` bytes (rounded up to 8).

        Raises:
            StateError: the block is too small.
        """
        base = self._end
        self._end += (size + 7) & ~7
        if self._end > len(self.u8):
            raise StateError(f"state memory of {len(self.u8)} bytes is too small: {self._end} are needed")
        return base

    def bytes_at(self, size: int) -> memoryview:
        """Allocate `size` bytes and return a view of them."""
        base = self.allocate(size)
        return self.u8[base : base + size]


class Record:
    """A group of fields in state memory.  Subclasses declare fields with `U8`, `U16`, `U32`, `U64` and a SIZE."""

    SIZE: ClassVar[int]

    __slots__ = ("base", "state")

    def __init__(self, state: StateMemory) -> None:
        self.state = state
        self.base = state.allocate(self.SIZE)

    def holds(self, data: bytes) -> bool:
        """Whether the record starts with these bytes: one comparison instead of a load for every field."""
        return bool(self.state.u8[self.base : self.base + len(data)] == data)

    def clear(self) -> None:
        """Set every field to 0."""
        self.state.u8[self.base : self.base + self.SIZE] = bytes(self.SIZE)


class _Field:
    """One field: a descriptor that loads and stores in the record's state memory.

    The four kinds repeat a few lines: a common method would double the cost of the hot path's most frequent call.
    """

    __slots__ = ("index",)

    def __init__(self, offset: int) -> None:
        self.index = offset


class U8(_Field):
    """An 8-bit field at a byte offset of its record."""

    @overload
    def __get__(self, record: None, owner: type) -> U8: ...
    @overload
    def __get__(self, record: Record, owner: type) -> int: ...
    def __get__(self, record: Record | None, owner: type) -> int | U8:
        return self if record is None else record.state.u8[record.base + self.index]

    def __set__(self, record: Record, value: int) -> None:
        record.state.u8[record.base + self.index] = value


class U16(_Field):
    """A 16-bit field at an even offset."""

    @overload
    def __get__(self, record: None, owner: type) -> U16: ...
    @overload
    def __get__(self, record: Record, owner: type) -> int: ...
    def __get__(self, record: Record | None, owner: type) -> int | U16:
        return self if record is None else record.state.u16[(record.base + self.index) >> 1]

    def __set__(self, record: Record, value: int) -> None:
        record.state.u16[(record.base + self.index) >> 1] = value


class U32(_Field):
    """A 32-bit field at an offset divisible by 4."""

    @overload
    def __get__(self, record: None, owner: type) -> U32: ...
    @overload
    def __get__(self, record: Record, owner: type) -> int: ...
    def __get__(self, record: Record | None, owner: type) -> int | U32:
        return self if record is None else record.state.u32[(record.base + self.index) >> 2]

    def __set__(self, record: Record, value: int) -> None:
        record.state.u32[(record.base + self.index) >> 2] = value


class U64(_Field):
    """A 64-bit field at an offset divisible by 8."""

    @overload
    def __get__(self, record: None, owner: type) -> U64: ...
    @overload
    def __get__(self, record: Record, owner: type) -> int: ...
    def __get__(self, record: Record | None, owner: type) -> int | U64:
        return self if record is None else record.state.u64[(record.base + self.index) >> 3]

    def __set__(self, record: Record, value: int) -> None:
        record.state.u64[(record.base + self.index) >> 3] = value
