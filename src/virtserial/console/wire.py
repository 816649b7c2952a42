"""What console device and driver exchange beside data (virtio 1.3, section 5.3), shared by both halves.

The specification calls the first two port messages DEVICE_ADD and DEVICE_REMOVE in its list and PORT_ADD and
PORT_REMOVE in its prose; Linux and QEMU say PORT_, and so do we.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from virtserial.named_tuple import NamedTuple

VIRTIO_ID_CONSOLE: Final = 3

VIRTIO_CONSOLE_F_SIZE: Final = 1 << 0
VIRTIO_CONSOLE_F_MULTIPORT: Final = 1 << 1
VIRTIO_CONSOLE_F_EMERG_WRITE: Final = 1 << 2

CONFIG: Final = Struct("<HHII")
"""struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr."""
EMERG_WR_OFFSET: Final = 8

VIRTIO_CONSOLE_DEVICE_READY: Final = 0
VIRTIO_CONSOLE_PORT_ADD: Final = 1
VIRTIO_CONSOLE_PORT_REMOVE: Final = 2
VIRTIO_CONSOLE_PORT_READY: Final = 3
VIRTIO_CONSOLE_CONSOLE_PORT: Final = 4
VIRTIO_CONSOLE_RESIZE: Final = 5
VIRTIO_CONSOLE_PORT_OPEN: Final = 6
VIRTIO_CONSOLE_PORT_NAME: Final = 7

VIRTIO_CONSOLE_BAD_ID: Final = 0xFFFFFFFF
"""The port number of messages that concern the whole device (Linux and QEMU)."""

CONTROL: Final = Struct("<IHH")
"""struct virtio_console_control: id, event, value."""
RESIZE: Final = Struct("<HH")

CONTROL_RECEIVEQ: Final = 2
CONTROL_TRANSMITQ: Final = 3
DATA_QUEUE_SIZE: Final = 128
CONTROL_QUEUE_SIZE: Final = 32

MAX_PORTS: Final = 511
"""1024 queues are two for each port and two for control (QEMU's VIRTIO_QUEUE_MAX)."""


class ControlMessage(NamedTuple):
    """The fixed part of a control message."""

    port: int
    event: int
    value: int


def pack_control(port: int, event: int, value: int, payload: bytes = b"") -> bytes:
    """Return a control message: port number, VIRTIO_CONSOLE_* event, 16-bit value, and what the event adds."""
    return CONTROL.pack(port, event, value) + payload


def receiveq_index(port: int) -> int:
    """The queue on which port `port` gives data to the driver."""
    return 0 if port == 0 else 2 * port + 2


def transmitq_index(port: int) -> int:
    """The queue on which the driver gives data to port `port`."""
    return receiveq_index(port) + 1


def queue_count(max_ports: int) -> int:
    """Queues of a multiport device with room for `max_ports` ports."""
    return 2 * max_ports + 2


def queue_sizes(max_ports: int) -> list[int]:
    """The size of each queue, QEMU's: 32 for control, 128 for data."""
    return [CONTROL_QUEUE_SIZE if 2 <= index <= 3 else DATA_QUEUE_SIZE for index in range(queue_count(max_ports))]
