"""A VMM on a controller's vhost-user socket: it has the driver's registers, and hands over what is said in them."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

from virtserial.conformance.driver import PATIENCE
from virtserial.conformance.steps import (
    DEVICE_CONFIG,
    DEVICE_FEATURE,
    DEVICE_FEATURE_SELECT,
    DRIVER_FEATURE,
    DRIVER_FEATURE_SELECT,
    ISR,
    MEMORY_SIZE,
    NOTIFY,
    NUM_QUEUES,
    QUEUE_DESC,
    QUEUE_DEVICE,
    QUEUE_DRIVER,
    QUEUE_ENABLE,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUES,
    STATUS,
)
from virtserial.conformance.vfio_user_vmm import LOOKS, QUIET
from virtserial.errors import PeerError
from virtserial.pci.layout import NOTIFY_AREA
from virtserial.vhost_user import wire
from virtserial.vhost_user.client import FrontEnd, new_base
from virtserial.vhost_user.wire import MemoryRegion, VringAddress
from virtserial.virtio.features import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1
from virtserial.virtio.status import DEVICE_NEEDS_RESET, DRIVER_OK, next_status

if TYPE_CHECKING:
    from pathlib import Path

USER: Final = 0x7F00_0000_0000
"""The front end's own address of guest memory."""
MAX_SIZES: Final = [32 if queue in (2, 3) else 128 for queue in range(QUEUES)]
"""The front end's limits, as in QEMU's device."""
_OF_PROTOCOL: Final = wire.VHOST_USER_F_PROTOCOL_FEATURES | wire.VHOST_F_LOG_ALL


class FrontEndVmm:
    """A VMM that has a virtio-pci function of its own (over_vfio_user.ServedVmm).

    Its registers do as the specification asks; a back end that refuses a queue, or signals ERR, needs a reset.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, MEMORY_SIZE)
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory = mmap.mmap(self._fd, MEMORY_SIZE)
        self._front_end = FrontEnd(path, timeout=PATIENCE)
        self._front_end.set_table([MemoryRegion(0, MEMORY_SIZE, USER, 0)], [self._fd])
        self._offered = self._front_end.get(wire.VHOST_USER_GET_FEATURES) & ~_OF_PROTOCOL
        self._kicks, self._calls = ([os.eventfd(0, os.EFD_NONBLOCK) for _ in range(QUEUES)] for _ in range(2))
        self._err = os.eventfd(0, os.EFD_NONBLOCK)
        self._channel, theirs = socket.socketpair()
        with theirs:
            if self._front_end.protocol_features & wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ:
                self._front_end.set(wire.VHOST_USER_SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        self._registers: dict[tuple[int, int], int] = {}
        self._features = self._status = 0
        self._running: set[int] = set()
        self._enabled: set[int] = set()

    def read(self, address: int, length: int) -> bytes:
        return self._memory[address : address + length]

    def write(self, address: int, data: bytes) -> None:
        self._memory[address : address + len(data)] = data

    # Registers

    @property
    def _selected(self) -> int:
        return self._registers.get((QUEUE_SELECT, 0), 0)

    def load(self, offset: int, width: int) -> int:
        if offset == STATUS:
            self._look()
            return self._status
        if offset == ISR:
            self._look()
            isr, self._registers[ISR, 0] = self._registers.get((ISR, 0), 0), 0
            return isr
        if offset == DEVICE_FEATURE:
            return self._offered >> 32 * self._registers.get((DEVICE_FEATURE_SELECT, 0), 0) & 0xFFFFFFFF
        if offset == NUM_QUEUES:
            return self._front_end.get(wire.VHOST_USER_GET_QUEUE_NUM)
        if DEVICE_CONFIG <= offset < NOTIFY:
            try:
                data = self._front_end.get_config(offset - DEVICE_CONFIG, width)
            except PeerError:
                return (1 << 8 * width) - 1
            return int.from_bytes(data, "little")
        if offset == QUEUE_SIZE:
            return self._size(self._selected)
        return self._registers.get((offset, self._selected), 0)

    def _size(self, queue: int) -> int:
        return self._registers.get((QUEUE_SIZE, queue), MAX_SIZES[queue] if queue < QUEUES else 0)

    def _look(self) -> None:
        """See whether the back end has signalled something."""
        if select.select([self._err], [], [], 0)[0]:
            os.eventfd_read(self._err)
            self._status |= DEVICE_NEEDS_RESET
            self._registers[ISR, 0] = 2
        if select.select([self._channel], [], [], 0)[0]:
            self._channel.recv(4096)
            self._registers[ISR, 0] = 2

    def store(self, offset: int, value: int, width: int) -> None:
        if offset >= NOTIFY_AREA:
            if value < QUEUES:
                os.eventfd_write(self._kicks[value], 1)
        elif offset >= DEVICE_CONFIG:
            if offset - DEVICE_CONFIG + width <= wire.MAX_CONFIG_SIZE:
                self._front_end.set_config(offset - DEVICE_CONFIG, value.to_bytes(width, "little"))
        elif offset == STATUS:
            self._set_status(value)
        elif offset == DRIVER_FEATURE:
            shift = 32 * self._registers.get((DRIVER_FEATURE_SELECT, 0), 0)
            self._features = self._features & ~(0xFFFFFFFF << shift) | value << shift
        elif offset in (QUEUE_SELECT, DRIVER_FEATURE_SELECT, DEVICE_FEATURE_SELECT):
            self._registers[offset, 0] = value
        elif offset == QUEUE_SIZE:
            packed = self._features & VIRTIO_F_RING_PACKED
            largest = MAX_SIZES[self._selected] if self._selected < QUEUES else 0
            if 0 < value <= largest and (packed or not value & (value - 1)):
                self._set(QUEUE_SIZE, value)
        elif offset == QUEUE_ENABLE:
            if value == 1 and self._selected < QUEUES:
                self._set(QUEUE_ENABLE, 1)
                self._enabled.add(self._selected)
                if self._status & DRIVER_OK:
                    self._start(self._selected)
        else:
            self._set(offset, value)

    def _set(self, register: int, value: int) -> None:
        if self._selected not in self._enabled:
            self._registers[register, self._selected] = value

    def _set_status(self, value: int) -> None:
        acceptable = not self._features & ~self._offered and bool(self._features & VIRTIO_F_VERSION_1)
        before, self._status = self._status, next_status(self._status, value, acceptable)
        if self._status == 0:
            self._reset()
        elif self._status & ~before & DRIVER_OK:
            features = self._features | wire.VHOST_USER_F_PROTOCOL_FEATURES
            try:
                self._front_end.set(wire.VHOST_USER_SET_FEATURES, wire.U64.pack(features))
            except PeerError:
                return
            for queue in sorted(self._enabled):
                self._start(queue)

    def _reset(self) -> None:
        for queue in sorted(self._running):
            self._front_end.stop_vring(queue)
        if self._front_end.protocol_features & wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE:
            self._front_end.set(wire.VHOST_USER_RESET_DEVICE)
        self._look()
        self._running.clear()
        self._enabled.clear()
        self._registers.clear()
        self._features = self._status = 0

    def _start(self, queue: int) -> None:
        front_end = self._front_end
        places = (self._address(register, queue) for register in (QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER))
        descriptor, used, available = ((USER + place) & (1 << 64) - 1 for place in places)
        self._running.add(queue)
        try:
            front_end.set_vring(wire.VHOST_USER_SET_VRING_NUM, queue, self._size(queue))
            front_end.set_vring(wire.VHOST_USER_SET_VRING_BASE, queue, new_base(self._features))
            address = VringAddress(queue, 0, descriptor, used, available, 0)
            front_end.set(wire.VHOST_USER_SET_VRING_ADDR, wire.pack(address))
            front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_CALL, queue, self._calls[queue])
            front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_ERR, queue, self._err)
            front_end.set_vring_descriptor(wire.VHOST_USER_SET_VRING_KICK, queue, self._kicks[queue])
            front_end.set_vring(wire.VHOST_USER_SET_VRING_ENABLE, queue, 1)
        except PeerError:
            # The driver is still about to set DRIVER_OK: it reads this, and needs no interrupt.
            self._status |= DEVICE_NEEDS_RESET

    def _address(self, register: int, queue: int) -> int:
        low, high = (self._registers.get((register + half, queue), 0) for half in (0, 4))
        return low | high << 32

    # Time

    def step(self) -> None:
        self._front_end.get(wire.VHOST_USER_GET_FEATURES)

    def settle(self) -> None:
        time.sleep(QUIET)
        for _ in range(LOOKS):
            self.step()

    def close(self) -> None:
        self._front_end.close()
        self._channel.close()
        self._memory.close()
        for fd in (self._fd, self._err, *self._kicks, *self._calls):
            os.close(fd)
