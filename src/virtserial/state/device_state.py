"""What is saved of a device, and how a device takes it over.

Saved is what the driver can see or has a right to: registers, features and status, the queues with their positions
(how much of a chain was served included), what each port is for the driver, the control messages that are still to be
sent, console output that waits for its host end, and the PCI registers.  Not saved is what belongs to others: guest
memory and interrupt eventfds are the VMM's, connections and what waits in them are the hosts'.

A device takes over a state only if the driver cannot tell the difference: the same number of ports and vectors, every
feature that was negotiated, and the same ports at the same numbers.  Every value is checked before it is used; rings
and chains are checked when the device goes on, as those of any driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtserial.console.control import REMOVE, SIZE
from virtserial.console.port import CONSOLE_BUFFER
from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.errors import ConfigError
from virtserial.pci.layout import (
    PCI_CONFIG_SPACE_SIZE,
    VIRTIO_MSI_NO_VECTOR,
    VIRTIO_PCI_ISR_CONFIG,
    VIRTIO_PCI_ISR_QUEUE,
)
from virtserial.state.envelope import seal, unseal
from virtserial.state.fields import encode
from virtserial.virtio.ring.chains import MAX_CHAIN_BYTES
from virtserial.virtio.status import DEVICE_NEEDS_RESET, DRIVER_BITS, FEATURES_OK

if TYPE_CHECKING:
    from virtserial.console.device import ConsoleDevice
    from virtserial.console.slot import PortSlot
    from virtserial.pci.function import VirtioPciFunction
    from virtserial.state.fields import Fields
    from virtserial.virtio.queue import Virtqueue

U16: Final = 0xFFFF
U32: Final = 0xFFFFFFFF
U64: Final = 0xFFFFFFFFFFFFFFFF
_PENDING: Final = 2 * SIZE - 1
_COUNTERS: Final = ("transmitted", "received", "discarded", "dropped")
_ADDRESSES: Final = ("desc_address", "avail_address", "used_address")


def size_limit(function: VirtioPciFunction, console: ConsoleDevice) -> int:
    """The most bytes the saved state of a device like this one has."""
    consoles = sum(slot.port is not None and slot.port.is_console for slot in console.slots)
    # A character of a name may take two escapes of 6 bytes.
    names = sum(12 * len(slot.port.name or "") for slot in console.slots if slot.port is not None)
    in_base64 = consoles * CONSOLE_BUFFER + len(function.msix_table)
    return 8192 + in_base64 * 4 // 3 + names + 2048 * console.max_ports + 8 * function.interrupts.vectors


def save(function: VirtioPciFunction, console: ConsoleDevice) -> bytes:
    """Return the state of a device that stands still.

    Args:
        function: its PCI function.
        console: the device itself.
    """
    return seal(
        {
            "device_type": VIRTIO_ID_CONSOLE,
            "max_ports": console.max_ports,
            "vectors": function.interrupts.vectors,
            "status": console.status,
            "config_generation": console.config_generation,
            "failures": console.record.failures,
            "driver_features": console.driver_features,
            "queues": [_saved_queue(queue) for queue in console.queues if _is_used(queue)],
            "ports": [_saved_port(slot) for slot in _slots_in_order(console) if slot.port or slot.record.pending],
            "pci": _saved_function(function),
        }
    )


def load(function: VirtioPciFunction, console: ConsoleDevice, data: bytes | bytearray | memoryview) -> None:
    """Give a device that stands still another one's state; it goes on with it by `console.resume`.

    Raises:
        ConfigError: the state is none, is damaged or senseless, or is that of a device with other ports or properties;
            then the device is as after a reset.
    """
    state = unseal(data, size_limit(function, console))
    _check_device(state, function, console)
    function.reset_registers()
    try:
        _load_device(state, console)
        for entry in state.groups("queues", console.num_queues):
            _load_queue(entry, console, function.interrupts.vectors)
        _load_ports(state.groups("ports", console.max_ports), console)
        _load_function(state.group("pci"), function)
    except ConfigError:
        function.reset_registers()
        raise


# The device as a whole


def _check_device(state: Fields, function: VirtioPciFunction, console: ConsoleDevice) -> None:
    for name, most, ours in (
        ("device_type", U16, VIRTIO_ID_CONSOLE),
        ("max_ports", U16, console.max_ports),
        ("vectors", U16, function.interrupts.vectors),
    ):
        value = state.number(name, most)
        if value != ours:
            raise state.refuse(name, f"is {value}, this device has {ours}")
    features = state.number("driver_features", U64)
    missing = features & ~console.device_features
    if state.number("status", 0xFF) & FEATURES_OK and missing:
        raise state.refuse("driver_features", f"has {missing:#x}, which this device does not offer")


def _load_device(state: Fields, console: ConsoleDevice) -> None:
    record = console.record
    status = state.number("status", 0xFF)
    if status & ~(DRIVER_BITS | DEVICE_NEEDS_RESET):
        raise state.refuse("status", f"is {status:#x}, which no device has")
    record.driver_features = state.number("driver_features", U64)
    record.status = status
    record.config_generation = state.number("config_generation", 0xFF)
    record.failures = state.number("failures", U32)


# Queues


def _is_used(queue: Virtqueue) -> bool:
    record = queue.record
    return bool(
        record.enabled
        or record.progress
        or record.size != queue.max_size
        or record.vector != VIRTIO_MSI_NO_VECTOR
        or any(getattr(record, name) for name in _ADDRESSES)
    )


def _saved_queue(queue: Virtqueue) -> dict[str, object]:
    record = queue.record
    return {
        "index": queue.index,
        "size": record.size,
        "enabled": bool(record.enabled),
        "vector": record.vector,
        "event_idx": bool(record.event_idx),
        "indirect": bool(record.indirect),
        **{name: getattr(record, name) for name in _ADDRESSES},
        "position": record.position,
        "offset": record.offset,
        "signalled": record.signalled,
    }


def _load_queue(state: Fields, console: ConsoleDevice, vectors: int) -> None:
    queue = console.queues[state.number("index", console.num_queues - 1)]
    record = queue.record
    if _is_used(queue):
        raise state.refuse("index", f"is {queue.index} a second time")
    size = state.number("size", queue.max_size)
    if not size or size & (size - 1):
        raise state.refuse("size", f"is {size}, a queue's size is a power of 2")
    record.size = size
    record.vector = _vector(state, "vector", vectors)
    record.event_idx, record.indirect = state.flag("event_idx"), state.flag("indirect")
    for name in _ADDRESSES:
        setattr(record, name, state.number(name, U64))
    record.signalled = state.number("signalled", U16)
    record.position = state.number("position", U16)
    record.offset = state.number("offset", MAX_CHAIN_BYTES)
    record.enabled = state.flag("enabled")


def _vector(state: Fields, name: str, vectors: int) -> int:
    vector = state.number(name, U16)
    if vector >= vectors and vector != VIRTIO_MSI_NO_VECTOR:
        raise state.refuse(name, f"is {vector}, there are {vectors}")
    return vector


# Ports


def _slots_in_order(console: ConsoleDevice) -> list[PortSlot]:
    return sorted(console.slots, key=lambda slot: (slot.record.order, slot.number))


def _saved_port(slot: PortSlot) -> dict[str, object]:
    record, port = slot.record, slot.port
    return {
        "number": slot.number,
        "plugged": port is not None,
        "name": port.name if port else None,
        "is_console": port is not None and port.is_console,
        "cols": port.cols if port else 0,
        "rows": port.rows if port else 0,
        "pending": record.pending,
        "known": bool(record.known),
        "ready": bool(record.ready),
        "guest_open": bool(record.guest_open),
        "told_open": bool(record.told_open),
        **{name: getattr(record, name) for name in _COUNTERS},
        "backlog": encode(port.backlog) if port else "",
    }


def _load_ports(states: list[Fields], console: ConsoleDevice) -> None:
    """The order of the list is the order in which the ports were plugged in; the driver hears of them in it."""
    slots: list[PortSlot] = []
    for state in states:
        slot = console.slots[state.number("number", console.max_ports - 1)]
        if slot in slots:
            raise state.refuse("number", f"is {slot.number} a second time")
        slots.append(slot)
    _check_port_map(states, slots, console)
    orders = iter(sorted(slot.record.order for slot in console.slots if slot.port is not None))
    for state, slot in zip(states, slots, strict=True):
        if slot.port is not None:
            slot.record.order = next(orders)
        _load_port(state, slot, console)


def _check_port_map(states: list[Fields], slots: list[PortSlot], console: ConsoleDevice) -> None:
    theirs = {
        slot.number: (state.text_or_none("name"), state.flag("is_console"))
        for state, slot in zip(states, slots, strict=True)
        if state.flag("plugged")
    }
    ours = {slot.number: (slot.port.name, slot.port.is_console) for slot in console.slots if slot.port is not None}
    for number in sorted(theirs.keys() | ours.keys()):
        if theirs.get(number) != ours.get(number):
            raise ConfigError(
                f"saved state: port {number} is {_in_words(theirs.get(number))} there "
                f"and {_in_words(ours.get(number))} here"
            )


def _in_words(port: tuple[str | None, bool] | None) -> str:
    if port is None:
        return "not plugged in"
    name, is_console = port
    kind = "a console" if is_console else "a serial port"
    return f"{kind} without a name" if name is None else f"{kind} named {name[:80]!r}"


def _load_port(state: Fields, slot: PortSlot, console: ConsoleDevice) -> None:
    record, port = slot.record, slot.port
    record.pending = state.number("pending", _PENDING)
    record.known, record.ready = state.flag("known"), state.flag("ready")
    record.told_open = state.flag("told_open")
    for name in _COUNTERS:
        setattr(record, name, state.number(name, U64))
    size = state.number("cols", U16), state.number("rows", U16)
    backlog = state.data("backlog", CONSOLE_BUFFER)
    guest_open = state.flag("guest_open")
    if port is None:
        # Unplugged, and the driver not told yet.
        record.pending &= REMOVE
        record.ready = record.told_open = 0
        return
    if backlog and not port.is_console:
        raise state.refuse("backlog", "is not empty, and the port is no console")
    port.backlog[:] = backlog
    port.set_guest_open(guest_open)
    if record.ready and port.host is not None:
        port.host.guest_ready()
    if size != (port.cols, port.rows):
        console.set_size(port, port.cols, port.rows)


# The PCI function


def _saved_function(function: VirtioPciFunction) -> dict[str, object]:
    common = function.common.record
    return {
        "configuration": encode(function.configuration.read(0, PCI_CONFIG_SPACE_SIZE)),
        "device_feature_select": common.device_feature_select,
        "driver_feature_select": common.driver_feature_select,
        "config_vector": common.config_vector,
        "queue_select": common.queue_select,
        "isr": function.record.isr,
        "msix_table": encode(function.msix_table),
        "msix_pending": sorted(function.pending_vectors),
    }


def _load_function(state: Fields, function: VirtioPciFunction) -> None:
    vectors = function.interrupts.vectors
    common = function.common.record
    common.device_feature_select = state.number("device_feature_select", U32)
    common.driver_feature_select = state.number("driver_feature_select", U32)
    common.config_vector = _vector(state, "config_vector", vectors)
    common.queue_select = state.number("queue_select", U16)
    function.record.isr = state.number("isr", VIRTIO_PCI_ISR_QUEUE | VIRTIO_PCI_ISR_CONFIG)
    table = state.data("msix_table", len(function.msix_table))
    if len(table) != len(function.msix_table):
        raise state.refuse("msix_table", f"has {len(table)} bytes, this function's has {len(function.msix_table)}")
    function.msix_table[:] = table
    pending = state.numbers("msix_pending", vectors - 1, vectors)
    function.configuration.restore(state.data("configuration", PCI_CONFIG_SPACE_SIZE))
    function.registers_restored(pending)
