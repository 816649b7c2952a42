"""What a hostile driver can do, in words of the specification; a case is a list of these.

The driver has rings of 16 entries.  Addresses are guest addresses; `BUFFER` and what follows is free memory.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

RING_SIZE: Final = 16
MAX_PORTS: Final = 4
QUEUES: Final = 2 * MAX_PORTS + 2
MEMORY_SIZE: Final = 64 << 20

CONTROL_RX, CONTROL_TX, RX, TX = 2, 3, 4, 5
"""The control queues, and those of port 1."""
NO_PORT_TX: Final = 9
"""The transmitq of port 3, which does not exist."""

RINGS: Final = 0x100000
RING_STRIDE: Final = 0x10000
AVAIL_OFFSET: Final = 0x4000
USED_OFFSET: Final = 0x8000
BUFFER: Final = 0x300000
CONTROL_BUFFERS: Final = 0x310000
TABLE: Final = 0x320000
UNMAPPED: Final = 0x70_0000_0000
BAR: Final = 0xE000_0000
"""Where the driver has put the registers: an address of the device itself."""

NEXT, WRITE, INDIRECT = 1, 2, 4

# Registers in the BAR (virtio 1.3, 4.1.4.3; the areas where QEMU has them).
DEVICE_FEATURE_SELECT, DEVICE_FEATURE, NUM_QUEUES = 0x00, 0x04, 0x12
DRIVER_FEATURE_SELECT, DRIVER_FEATURE, STATUS, QUEUE_SELECT, QUEUE_SIZE = 0x08, 0x0C, 0x14, 0x16, 0x18
QUEUE_ENABLE, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x1C, 0x20, 0x28, 0x30
ISR, DEVICE_CONFIG, NOTIFY = 0x1000, 0x2000, 0x3000
EMERG_WR: Final = DEVICE_CONFIG + 8
LEGACY: Final = 0x100000
"""From here on, the registers of the legacy interface (4.1.4.8), in cases that are for it alone."""


class Describe(NamedTuple):
    """Write a descriptor into a queue's table, or into a table at `table`."""

    queue: int
    number: int
    address: int
    length: int
    flags: int = 0
    following: int = 0
    table: int | None = None


class Put(NamedTuple):
    """Write bytes into guest memory."""

    address: int
    data: bytes


class Offer(NamedTuple):
    """Make heads available, and ring unless `quietly`."""

    queue: int
    heads: tuple[int, ...]
    quietly: bool = False


class AvailIndex(NamedTuple):
    """Set a queue's available index, and ring."""

    queue: int
    value: int


class AvailField(NamedTuple):
    """Write a 16-bit word of an available ring, counted from its begin: flags, idx, ring[16], used_event."""

    queue: int
    word: int
    value: int


class Ring(NamedTuple):
    """Write a queue's number to its doorbell, so many times."""

    queue: int
    times: int = 1


class Store(NamedTuple):
    """Write a register of 1, 2, 4 or 8 bytes."""

    offset: int
    value: int
    width: int


class Load(NamedTuple):
    """Read a register; the value is among what was seen."""

    offset: int
    width: int


class Say(NamedTuple):
    """Send a control message, so many times; the buffers of the answers are posted again if `listening`."""

    port: int
    event: int
    value: int
    times: int = 1


class Listen(NamedTuple):
    """Post control receive buffers of so many bytes; the count of the messages that come is seen."""

    buffers: int
    length: int = 256


class Used(NamedTuple):
    """See a queue's used index."""

    queue: int


class Area(NamedTuple):
    """Set a queue's three addresses and enable it."""

    queue: int
    desc: int
    avail: int
    used: int


class Start(NamedTuple):
    """Reset the device and bring it up to a point: "acknowledged", "features", "queues", "live", "open".

    "open" is a driver as it should be: control buffers posted, port 1 ready and open.
    """

    point: str
    features: int | None = None
    queues: tuple[int, ...] = tuple(range(QUEUES))


Step: TypeAlias = (
    Describe | Put | Offer | AvailIndex | AvailField | Ring | Store | Load | Say | Listen | Used | Area | Start
)


class Outcome(NamedTuple):
    """What became of it.

    Attributes:
        stopped: the device has set DEVICE_NEEDS_RESET.
        interrupt: a configuration interrupt was raised.
        works: the driver's next message reaches the host.
        seen: what the steps have seen, and then the used elements of the case's queue as (head, length).
        heard: the bytes that came out at the host's ends of ports 0 and 1 (None: it cannot be known).
        told: the host's ends of a stopped device were told that the guest has left (None: not looked at).
    """

    stopped: bool = False
    interrupt: bool = False
    works: bool = True
    seen: tuple[object, ...] = ()
    heard: bytes | None = b""
    told: bool | None = None

    def __str__(self) -> str:
        words = ["stopped" if self.stopped else "goes on" if self.works else "deaf"]
        if self.stopped and not self.interrupt:
            words.append("no interrupt")
        if self.stopped and self.works:
            words.append("works nevertheless")
        if self.seen:
            words.append("saw " + " ".join(map(_show, self.seen)))
        if self.told is False:
            words.append("hosts are not told")
        if self.heard:
            words.append(f"host got {self.heard if len(self.heard) <= 24 else f'{len(self.heard)} bytes'!r}")
        return ", ".join(words)


def _show(seen: object) -> str:
    if isinstance(seen, tuple):
        return "used({},{})".format(*seen)
    return f"{seen:#x}" if isinstance(seen, int) else str(seen)


class Case(NamedTuple):
    """An attack.

    Attributes:
        name: number and a word or two.
        rule: what the specification says of it.
        steps: what the driver does, on a device that was reset.
        expected: what must come of it on our device.
        queue: whose used elements are seen at the end.
        qemu: what comes of it on QEMU's device where that is something else.
        reason: why ours does otherwise than QEMU's.
    """

    name: str
    rule: str
    steps: tuple[Step, ...]
    expected: Outcome
    queue: int | None = None
    qemu: Outcome | None = None
    reason: str = ""
