"""What a worker does for a machine that QEMU moves or takes a snapshot of; migration/ says when.

QEMU's dirty log does not see what we store through its memory file.  What it stores for us it does see: so one byte of
each page that we may have written is stored once more, as it is, by a message to QEMU (`touch_written`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.errors import AddressError, ConfigError
from virtserial.memory.dirty_log import LOGGED_PAGE_SIZE, DirtyLog

if TYPE_CHECKING:
    from virtserial.daemon.worker.guest_device import GuestDevice

TOUCHED_AT_ONCE = 4096
"""Pages between two waits for QEMU, which queues what it has not stored."""


def log_writes(device: GuestDevice, on: bool) -> None:
    """Note from now on which pages are written past QEMU, or no more."""
    device.log_writes(DirtyLog(shared_only=True) if on else None)


def pause(device: GuestDevice) -> bytes:
    """Stand still, and let go of the interrupt line; return the PCI configuration space as it is now.

    Raises:
        PeerError: QEMU has not done what it was asked to store.
    """
    device.pause()
    device.front.settle()
    device.front.hold_intx(True)
    return device.front.configuration_space()


def touch_written(device: GuestDevice) -> None:
    """Have QEMU mark every page dirty that was written since `log_writes`.

    Raises:
        ConfigError: it is not known which, or QEMU does not do it.
    """
    memory = device.console.memory
    pages = memory.log.written() if memory.log is not None else None
    if pages is None:
        raise ConfigError(f"{device.name}: it is not known which pages of guest memory were written")
    stores: list[tuple[int, bytes]] = []
    for page in pages:
        address = page * LOGGED_PAGE_SIZE
        try:
            region = memory.find(address)
        except AddressError:
            continue  # No memory any more, and nothing of it is copied.
        # What is written by messages QEMU has stored itself.
        if region.is_shared:
            stores.append((address, region.read(address - region.iova, 1)))
    for start in range(0, len(stores), TOUCHED_AT_ONCE):
        device.front.store_posted(stores[start : start + TOUCHED_AT_ONCE])


def load(device: GuestDevice, fd: int) -> None:
    """Take a state over from a file, and stand still.

    Raises:
        ConfigError: it is none of a device like this one, which is then as after a reset.
    """
    limit = device.max_state_size
    state = bytearray()
    while len(state) <= limit and (part := os.pread(fd, limit + 1 - len(state), len(state))):
        state += part
    pause(device)
    device.take_state(bytes(state))


def store(device: GuestDevice, address: int, data: bytes) -> None:
    """Store words at a guest-physical address by QEMU, which reaches device registers too.

    Raises:
        ConfigError: QEMU does not do it.
    """
    device.front.store_posted([(address + at, data[at : at + 4]) for at in range(0, len(data), 4)])


def resume(device: GuestDevice, signal: bool) -> None:
    """Run again; with `signal` interrupt the driver once for every queue: what was on its way may be lost."""
    device.front.hold_intx(False)
    device.resume()
    if signal:
        for queue in device.console.queues:
            if queue.enabled:
                device.front.queue_interrupt(queue.index)
