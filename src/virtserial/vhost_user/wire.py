"""Messages as bytes: header, requests, and the payloads of fixed form.

All numbers are in the machine's byte order, which is little-endian here.  `unpack` refuses a payload of another size;
what the fields may hold is checked by who uses them.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeVar

from virtserial.errors import PeerError
from virtserial.named_tuple import NamedTuple

VHOST_USER_GET_FEATURES: Final = 1
VHOST_USER_SET_FEATURES: Final = 2
VHOST_USER_SET_OWNER: Final = 3
VHOST_USER_RESET_OWNER: Final = 4
VHOST_USER_SET_MEM_TABLE: Final = 5
VHOST_USER_SET_LOG_BASE: Final = 6
VHOST_USER_SET_LOG_FD: Final = 7
VHOST_USER_SET_VRING_NUM: Final = 8
VHOST_USER_SET_VRING_ADDR: Final = 9
VHOST_USER_SET_VRING_BASE: Final = 10
VHOST_USER_GET_VRING_BASE: Final = 11
VHOST_USER_SET_VRING_KICK: Final = 12
VHOST_USER_SET_VRING_CALL: Final = 13
VHOST_USER_SET_VRING_ERR: Final = 14
VHOST_USER_GET_PROTOCOL_FEATURES: Final = 15
VHOST_USER_SET_PROTOCOL_FEATURES: Final = 16
VHOST_USER_GET_QUEUE_NUM: Final = 17
VHOST_USER_SET_VRING_ENABLE: Final = 18
VHOST_USER_SET_BACKEND_REQ_FD: Final = 21
VHOST_USER_GET_CONFIG: Final = 24
VHOST_USER_SET_CONFIG: Final = 25
VHOST_USER_RESET_DEVICE: Final = 34
VHOST_USER_GET_MAX_MEM_SLOTS: Final = 36
VHOST_USER_ADD_MEM_REG: Final = 37
VHOST_USER_REM_MEM_REG: Final = 38
VHOST_USER_SET_STATUS: Final = 39
VHOST_USER_GET_STATUS: Final = 40
VHOST_USER_SET_DEVICE_STATE_FD: Final = 42
VHOST_USER_CHECK_DEVICE_STATE: Final = 43

REQUEST_NAMES: Final = {
    value: name for name, value in list(globals().items()) if name.startswith("VHOST_USER_") and isinstance(value, int)
}
"""What a request of the front end is called in a message to people."""

VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: Final = 2
"""The one request of ours, on the channel that SET_BACKEND_REQ_FD gives."""

# Bits of Header.flags.
VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
REPLY: Final = 0x4
NEED_REPLY: Final = 0x8

# Bits of the features that belong to the protocol and not to the device.
VHOST_F_LOG_ALL: Final = 1 << 26
VHOST_USER_F_PROTOCOL_FEATURES: Final = 1 << 30

VHOST_USER_PROTOCOL_F_MQ: Final = 1 << 0
VHOST_USER_PROTOCOL_F_LOG_SHMFD: Final = 1 << 1
VHOST_USER_PROTOCOL_F_REPLY_ACK: Final = 1 << 3
VHOST_USER_PROTOCOL_F_BACKEND_REQ: Final = 1 << 5
VHOST_USER_PROTOCOL_F_CONFIG: Final = 1 << 9
VHOST_USER_PROTOCOL_F_RESET_DEVICE: Final = 1 << 13
VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS: Final = 1 << 15
VHOST_USER_PROTOCOL_F_STATUS: Final = 1 << 16
VHOST_USER_PROTOCOL_F_DEVICE_STATE: Final = 1 << 19

VHOST_VRING_F_LOG: Final = 1
VRING_INDEX_MASK: Final = 0xFF
"""SET_VRING_KICK, _CALL and _ERR name a queue by 8 bits."""
VRING_NO_DESCRIPTOR: Final = 0x100
"""The bit above them.  With a descriptor it says nothing, and rust-vmm's and crosvm's front ends put a queue's whole
number there: so queues behind the 256th can be had, if each message brings a descriptor."""

MAX_VRINGS: Final = 1024
MAX_VRING_SIZE: Final = 1024
"""QEMU's VIRTQUEUE_MAX_SIZE."""
MAX_CONFIG_SIZE: Final = 256
MAX_TABLE_REGIONS: Final = 32
"""Regions of one SET_MEM_TABLE; QEMU sends 8, rust-vmm's front ends up to 32."""
MAX_SLOTS: Final = 509
"""Regions altogether: the slots that KVM once had."""
MAX_PAYLOAD: Final = 4096
"""rust-vmm's limit; the largest payload known here is a table of 32 regions, 1,032 bytes."""
MAX_FDS: Final = MAX_TABLE_REGIONS

_HEADER: Final = Struct("<III")
HEADER_SIZE: Final = _HEADER.size
MAX_MESSAGE: Final = 4112
"""Header and payload, in multiples of 8 bytes."""
MAX_REPLY: Final = 280
"""Header and a whole configuration, the same."""
U64: Final = Struct("<Q")
TABLE: Final = Struct("<II")
"""The number of regions and padding, before the regions of a SET_MEM_TABLE."""
CONFIG: Final = Struct("<III")
"""Offset, size and flags, before the bytes of the configuration."""
SLOT_PADDING: Final = bytes(8)
"""What stands before the one region of ADD_MEM_REG and REM_MEM_REG."""


class Header(NamedTuple):
    """The 12 bytes before every message; `size` counts the payload alone."""

    request: int
    flags: int
    size: int

    @property
    def name(self) -> str:
        """The request's name."""
        return REQUEST_NAMES.get(self.request, f"request {self.request}")

    def pack(self) -> bytes:
        """The header as bytes."""
        return _HEADER.pack(*self)


class VringState(NamedTuple):
    """A number for a queue: its size, its position, or whether it is enabled."""

    queue: int
    num: int


class VringAddress(NamedTuple):
    """Where a queue's areas are, in the front end's own addresses; `log` is the used ring's guest address."""

    queue: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


class MemoryRegion(NamedTuple):
    """A part of guest memory: its guest address, the front end's own, and its offset in the file."""

    guest: int
    size: int
    user: int
    offset: int


class Log(NamedTuple):
    """The log of written pages, a part of a file."""

    size: int
    offset: int


class Transfer(NamedTuple):
    """SET_DEVICE_STATE_FD: 0 saves and 1 loads; phase 0 is a device that has stopped."""

    direction: int
    phase: int


LAYOUTS: Final = {
    VringState: Struct("<II"),
    VringAddress: Struct("<IIQQQQ"),
    MemoryRegion: Struct("<QQQQ"),
    Log: Struct("<QQ"),
    Transfer: Struct("<II"),
}
REGION_SIZE: Final = LAYOUTS[MemoryRegion].size

P = TypeVar("P", VringState, VringAddress, MemoryRegion, Log, Transfer)


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """Read a header; nothing in it is checked."""
    return Header._make(_HEADER.unpack_from(data))


def unpack(kind: type[P], payload: bytes | memoryview) -> P:
    """Read a payload.

    Raises:
        PeerError: it has another size.
    """
    layout = LAYOUTS[kind]
    if len(payload) != layout.size:
        raise PeerError(f"{kind.__name__} of {len(payload)} bytes, it has {layout.size}")
    return kind._make(layout.unpack(payload))


def unpack_u64(payload: bytes | memoryview) -> int:
    """Read a payload that is one number.

    Raises:
        PeerError: it has another size.
    """
    if len(payload) != U64.size:
        raise PeerError(f"a number of {len(payload)} bytes, it has {U64.size}")
    number: int = U64.unpack(payload)[0]
    return number


def unpack_table(payload: bytes | memoryview) -> list[MemoryRegion]:
    """Read the regions of a SET_MEM_TABLE.

    Raises:
        PeerError: its size is not that of its regions, or they are too many.
    """
    if len(payload) < TABLE.size:
        raise PeerError(f"memory table of {len(payload)} bytes, at least {TABLE.size} are needed")
    count = TABLE.unpack_from(payload)[0]
    if count > MAX_TABLE_REGIONS or len(payload) != TABLE.size + count * REGION_SIZE:
        raise PeerError(f"memory table of {count} regions in {len(payload)} bytes, at most {MAX_TABLE_REGIONS}")
    return [MemoryRegion._make(each) for each in LAYOUTS[MemoryRegion].iter_unpack(payload[TABLE.size :])]


def pack(payload: VringState | VringAddress | MemoryRegion | Log | Transfer) -> bytes:
    """A payload as bytes."""
    return LAYOUTS[type(payload)].pack(*payload)


def message(request: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A whole message; `flags` are added to the version."""
    return _HEADER.pack(request, VERSION | flags, len(payload)) + payload


def reply(header: Header, payload: bytes) -> bytes:
    """The whole message that answers a request."""
    return message(header.request, payload, REPLY)
