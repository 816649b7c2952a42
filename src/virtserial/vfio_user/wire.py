"""Messages as bytes: header, commands, flags and fixed payloads of vfio-user.

`Payload.unpack(body)` reads the fixed part of a body and raises PeerError where it is too short or where its argsz
cannot be; `pack()` writes it.  What the other fields may hold is checked by who uses them.  All fields are
little-endian ("the endianness of the host system", and this package runs on little-endian hosts only).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final, dataclass_transform

from virtserial.errors import PeerError
from virtserial.named_tuple import NamedTuple

if TYPE_CHECKING:
    from typing import Self

VFIO_USER_VERSION: Final = 1
VFIO_USER_DMA_MAP: Final = 2
VFIO_USER_DMA_UNMAP: Final = 3
VFIO_USER_DEVICE_GET_INFO: Final = 4
VFIO_USER_DEVICE_GET_REGION_INFO: Final = 5
VFIO_USER_DEVICE_GET_REGION_IO_FDS: Final = 6
VFIO_USER_DEVICE_GET_IRQ_INFO: Final = 7
VFIO_USER_DEVICE_SET_IRQS: Final = 8
VFIO_USER_REGION_READ: Final = 9
VFIO_USER_REGION_WRITE: Final = 10
VFIO_USER_DMA_READ: Final = 11
VFIO_USER_DMA_WRITE: Final = 12
VFIO_USER_DEVICE_RESET: Final = 13
VFIO_USER_DIRTY_PAGES: Final = 14
VFIO_USER_REGION_WRITE_MULTI: Final = 15
VFIO_USER_DEVICE_FEATURE: Final = 16
VFIO_USER_MIG_DATA_READ: Final = 17
VFIO_USER_MIG_DATA_WRITE: Final = 18

COMMAND_NAMES: Final = {
    value: name for name, value in list(globals().items()) if name.startswith("VFIO_USER_") and isinstance(value, int)
}
"""What a command is called in a message to people."""

# Bits of Header.flags.
VFIO_USER_REPLY: Final = 0x1
VFIO_USER_TYPE: Final = 0xF
VFIO_USER_NO_REPLY: Final = 0x10
VFIO_USER_ERROR: Final = 0x20

VFIO_USER_MAJOR_VER: Final = 0
VFIO_USER_MINOR_VER: Final = 0

VFIO_DEVICE_FLAGS_RESET: Final = 1 << 0
VFIO_DEVICE_FLAGS_PCI: Final = 1 << 1

VFIO_REGION_INFO_FLAG_READ: Final = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE: Final = 1 << 1

VFIO_IRQ_INFO_EVENTFD: Final = 1 << 0
VFIO_IRQ_INFO_MASKABLE: Final = 1 << 1
VFIO_IRQ_INFO_AUTOMASKED: Final = 1 << 2
VFIO_IRQ_INFO_NORESIZE: Final = 1 << 3

VFIO_IRQ_SET_DATA_NONE: Final = 1 << 0
VFIO_IRQ_SET_DATA_BOOL: Final = 1 << 1
VFIO_IRQ_SET_DATA_EVENTFD: Final = 1 << 2
VFIO_IRQ_SET_ACTION_MASK: Final = 1 << 3
VFIO_IRQ_SET_ACTION_UNMASK: Final = 1 << 4
VFIO_IRQ_SET_ACTION_TRIGGER: Final = 1 << 5

VFIO_DMA_MAP_FLAG_READ: Final = 1 << 0
VFIO_DMA_MAP_FLAG_WRITE: Final = 1 << 1

VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: Final = 1 << 0
VFIO_DMA_UNMAP_FLAG_ALL: Final = 1 << 1

# Indexes of VFIO PCI: regions 0 to 5 are the BARs.
VFIO_PCI_CONFIG_REGION_INDEX: Final = 7
VFIO_PCI_NUM_REGIONS: Final = 9
VFIO_PCI_INTX_IRQ_INDEX: Final = 0
VFIO_PCI_MSIX_IRQ_INDEX: Final = 2
VFIO_PCI_NUM_IRQS: Final = 5

MAX_DATA_XFER_SIZE: Final = 65536
"""The largest `count` taken here: a whole message then fits into a socket's queue, where it is peeked at."""
MAX_MESSAGE_SIZE: Final = 16 + 16 + MAX_DATA_XFER_SIZE
"""Header, the 16 bytes of a REGION_WRITE or of a DMA_READ's reply, and the data."""
MAX_MESSAGE_FDS: Final = 16
"""Descriptors in one message: QEMU's VFIO_USER_MAX_MAX_FDS, more would be refused by it as malformed."""
MAX_WRITES: Final = 200
"""Writes in one VFIO_USER_REGION_WRITE_MULTI: as many as QEMU gathers (VFIO_USER_MULTI_MAX)."""
PAGE_SIZE: Final = 4096
"""The DMA page size we announce: every map starts and ends on such a boundary."""


_HEADER: Final = struct.Struct("<HHIII")


class Header(NamedTuple):
    """The 16 bytes before every message; `size` counts them too."""

    id: int
    command: int
    size: int
    flags: int
    error: int

    @classmethod
    def unpack_from(cls, buffer: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Read the header at `offset`; nothing in it is checked."""
        return cls._make(_HEADER.unpack_from(buffer, offset))

    def pack(self) -> bytes:
        """The header as bytes."""
        return _HEADER.pack(*self)

    @property
    def name(self) -> str:
        """The command's name."""
        return COMMAND_NAMES.get(self.command, f"command {self.command}")


HEADER_SIZE: Final = _HEADER.size
DOORBELL: Final = struct.Struct("<2xHQ4xQQ2x")
"""A posted 2-byte REGION_WRITE, in few comparisons: command, size and flags, offset, region and count."""
DOORBELL_SIZE: Final = DOORBELL.size


def request(command: int, message_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A whole request message."""
    return _HEADER.pack(message_id, command, HEADER_SIZE + len(payload), flags, 0) + payload


def reply(header: Header, payload: bytes = b"") -> bytes:
    """The whole message that answers a request."""
    return _HEADER.pack(header.id, header.command, HEADER_SIZE + len(payload), VFIO_USER_REPLY, 0) + payload


def error_reply(header: Header, error: int) -> bytes:
    """The whole message that refuses a request: "the reply message must only include the reply header"."""
    return _HEADER.pack(header.id, header.command, HEADER_SIZE, VFIO_USER_REPLY | VFIO_USER_ERROR, error)


@dataclass_transform()
class Payload:
    """The fixed part of a message's body; a subclass names its fields and their layout.

    A dataclass in all but name: importing dataclasses takes 18 ms, half of what `import virtserial` may.
    """

    FORMAT: ClassVar[struct.Struct]
    FIELDS: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, layout: str) -> None:
        cls.FORMAT = struct.Struct(layout)
        cls.FIELDS = tuple(cls.__annotations__)

    def __init__(self, *values: int) -> None:
        self.__dict__.update(zip(self.FIELDS, values, strict=True))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value:#x}' for name, value in self.__dict__.items())})"

    @classmethod
    def unpack(cls, body: bytes | memoryview) -> Self:
        """Read the fixed part of a body; what follows it is the caller's.

        Raises:
            PeerError: (EINVAL) the body is shorter, or its argsz - the largest reply the sender takes, or its own
                size - is less than the fixed part.
        """
        size = cls.FORMAT.size
        if len(body) < size:
            raise PeerError(f"{cls.__name__}: {len(body)} bytes of payload, at least {size} are needed")
        payload = cls(*cls.FORMAT.unpack_from(body))
        if payload.__dict__.get("argsz", size) < size:
            raise PeerError(f"{payload}: argsz is less than {size}")
        return payload

    def pack(self) -> bytes:
        """The fixed part as bytes."""
        return self.FORMAT.pack(*self.__dict__.values())


class Version(Payload, layout="<HH"):
    """VFIO_USER_VERSION, before its capabilities (negotiation.py has those)."""

    major: int
    minor: int


class DmaMap(Payload, layout="<IIQQQ"):
    """VFIO_USER_DMA_MAP."""

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


class DmaUnmap(Payload, layout="<IIQQ"):
    """VFIO_USER_DMA_UNMAP, request and reply."""

    argsz: int
    flags: int
    address: int
    size: int


class DeviceInfo(Payload, layout="<IIII"):
    """VFIO_USER_DEVICE_GET_INFO, request and reply."""

    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


class RegionInfo(Payload, layout="<IIIIQQ"):
    """VFIO_USER_DEVICE_GET_REGION_INFO, request and reply."""

    argsz: int
    flags: int
    index: int
    cap_offset: int
    size: int
    offset: int


class IrqInfo(Payload, layout="<IIII"):
    """VFIO_USER_DEVICE_GET_IRQ_INFO, request and reply."""

    argsz: int
    flags: int
    index: int
    count: int


class IrqSet(Payload, layout="<IIIII"):
    """VFIO_USER_DEVICE_SET_IRQS, before its data."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int


class RegionAccess(Payload, layout="<QII"):
    """VFIO_USER_REGION_READ and VFIO_USER_REGION_WRITE, request and reply, before the data."""

    offset: int
    region: int
    count: int


class DmaAccess(Payload, layout="<QQ"):
    """VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE as specified, before the data (dma.py knows QEMU's form)."""

    address: int
    count: int


WRITE_COUNT: Final = struct.Struct("<Q")
"""VFIO_USER_REGION_WRITE_MULTI: the number of writes, request and reply."""
ONE_WRITE: Final = struct.Struct("<QII8s")
"""One write of a VFIO_USER_REGION_WRITE_MULTI: offset, region, count, data (8 bytes, `count` of them used)."""
