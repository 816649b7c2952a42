"""The saved state of a device: a part for the console device, and a part for the front by which its driver reaches it.

Saved is what the driver can see or has a right to: features and status, the queues with their positions (how much of a
chain was served included), what each port is for the driver, the control messages that are still to be sent, console
output that waits for its host end, and the front's registers; beside it, what ports keep for clients who come late
(backlogs.py).  Not saved is what belongs to others: guest memory and interrupt eventfds are the VMM's, connections and
what waits in them are the hosts'.

A device loads a state only if the driver cannot tell the difference: the same number of ports, every feature that was
negotiated, the same ports at the same numbers, and a front that looks the same.  Every value is checked before it is
used; rings and chains are checked when the device runs, as those of any driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from virtserial.console.control import REMOVE, SIZE
from virtserial.console.port import CONSOLE_BUFFER
from virtserial.console.slot import PortSlot, in_plug_order
from virtserial.console.wire import VIRTIO_ID_CONSOLE
from virtserial.errors import ConfigError
from virtserial.state.backlogs import MAX_BACKLOGS, loaded_backlogs, saved_backlogs
from virtserial.state.envelope import seal, unseal
from virtserial.state.fields import encode
from virtserial.virtio.queue import NO_VECTOR, Virtqueue
from virtserial.virtio.ring.chains import MAX_CHAIN_BYTES
from virtserial.virtio.ring.packed.layout import INDEX
from virtserial.virtio.status import DEVICE_NEEDS_RESET, DRIVER_BITS, FEATURES_OK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtserial.console.device import ConsoleDevice
    from virtserial.state.fields import Fields

U16: Final = 0xFFFF
U32: Final = 0xFFFFFFFF
U64: Final = 0xFFFFFFFFFFFFFFFF
_PENDING: Final = 2 * SIZE - 1
_COUNTERS: Final = ("transmitted", "received", "discarded", "dropped")
_ADDRESSES: Final = ("desc_address", "avail_address", "used_address")


class FrontState(Protocol):
    """What a front adds to the saved state: members of the same JSON object, under names that are its own."""

    @property
    def size_limit(self) -> int:
        """The most bytes that its members take."""
        ...

    def reset(self) -> None:
        """Return the device and the front's registers to their state after power-on."""
        ...

    def save(self) -> Mapping[str, object]:
        """Its members."""
        ...

    def check(self, state: Fields) -> None:
        """Look whether its driver could tell this state's front from it, before anything is changed.

        Raises:
            ConfigError: it could.
        """
        ...

    def load(self, state: Fields) -> None:
        """Take its members over; the device and its queues are loaded already.

        Raises:
            ConfigError: they make no sense; the device is reset then.
        """
        ...


def size_limit(console: ConsoleDevice, front: FrontState) -> int:
    """The most bytes the saved state of a device like this one has."""
    consoles = sum(slot.port is not None and slot.port.is_console for slot in console.slots)
    # A character of a name may take two escapes of 6 bytes.
    names = sum(12 * len(slot.port.name or "") for slot in console.slots if slot.port is not None)
    output = (consoles * CONSOLE_BUFFER + MAX_BACKLOGS) * 4 // 3
    return 4096 + output + names + 2048 * console.max_ports + front.size_limit


def save(console: ConsoleDevice, front: FrontState, backlogs: int | None = None) -> bytes:
    """Return the state of a device that is paused.

    Args:
        backlogs: the most bytes of all backlogs together; None: MAX_BACKLOGS, which it is never above.
    """
    added = saved_backlogs(console.slots, MAX_BACKLOGS if backlogs is None else min(backlogs, MAX_BACKLOGS))
    return seal(
        {
            "device_type": VIRTIO_ID_CONSOLE,
            "max_ports": console.max_ports,
            "status": console.status,
            "config_generation": console.config_generation,
            "failures": console.record.failures,
            "driver_features": console.driver_features,
            "queues": [_saved_queue(queue) for queue in console.queues if _is_used(queue)],
            "ports": [
                _saved_port(slot) | added.get(slot.number, {})
                for slot in in_plug_order(console.slots)
                if slot.port or slot.record.pending
            ],
            **front.save(),
        }
    )


def load(console: ConsoleDevice, front: FrontState, data: bytes | bytearray | memoryview) -> None:
    """Give a paused device another one's state; `console.resume` runs it.

    Raises:
        ConfigError: the state is not valid, is damaged or senseless, or is that of a device with other ports or
            properties; then the device is as after a reset.
    """
    state = unseal(data, size_limit(console, front))
    _check_device(state, console)
    front.check(state)
    front.reset()
    console.touch_all()
    try:
        _load_device(state, console)
        for entry in state.groups("queues", console.num_queues):
            _load_queue(entry, console)
        ports = state.groups("ports", console.max_ports)
        _load_ports(ports, console)
        backlogs = loaded_backlogs(ports, console)
        front.load(state)
    except ConfigError:
        front.reset()
        raise
    for port, backlog in backlogs:
        port.restore_backlog(backlog)


# The device as a whole


def _check_device(state: Fields, console: ConsoleDevice) -> None:
    for name, ours in (("device_type", VIRTIO_ID_CONSOLE), ("max_ports", console.max_ports)):
        value = state.number(name, U16)
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
    console.status = status
    record.config_generation = state.number("config_generation", 0xFF)
    record.failures = state.number("failures", U32)


# Queues


def _is_used(queue: Virtqueue) -> bool:
    record = queue.record
    return bool(
        record.enabled
        or record.progress
        or record.size != queue.max_size
        or record.vector != NO_VECTOR
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
        "packed": bool(record.packed),
        **{name: getattr(record, name) for name in _ADDRESSES},
        "position": record.position,
        "offset": record.offset,
        "signalled": record.signalled,
    }


def _load_queue(state: Fields, console: ConsoleDevice) -> None:
    queue = console.queues[state.number("index", console.num_queues - 1)]
    record = queue.record
    if _is_used(queue):
        raise state.refuse("index", f"is {queue.index} a second time")
    size = state.number("size", queue.max_size)
    record.packed = packed = state.flag("packed", default=False)
    if not size or (size & (size - 1) and not packed):
        raise state.refuse("size", f"is {size}, a queue's size is a power of 2")
    record.size = size
    record.vector = state.number("vector", U16)
    record.event_idx, record.indirect = state.flag("event_idx"), state.flag("indirect")
    for name in _ADDRESSES:
        setattr(record, name, state.number(name, U64))
    record.signalled = state.number("signalled", U16)
    record.position = record.began = state.number("position", U16)
    if packed and not size > record.position & INDEX:
        raise state.refuse("position", f"is {record.position:#x} in a ring of {size} descriptors")
    record.offset = state.number("offset", MAX_CHAIN_BYTES)
    record.enabled = state.flag("enabled")


# Ports


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
