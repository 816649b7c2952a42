"""The server's half of the protocol, without any socket: a request in, its reply out.

Two faults are kept apart.  A request that makes no sense is refused: its reply carries an errno, and life goes on.  A
stream that makes no sense - a size that cannot be, a reply nobody waits for, a command before the version was agreed -
raises PeerError from `check_header` or `handle`: no later byte of it can be trusted, the connection must be closed.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from virtserial.accounting import nowhere
from virtserial.errors import PeerError
from virtserial.foreign import check_room
from virtserial.memory.state import U8, U16, U32, Record
from virtserial.vfio_user import wire
from virtserial.vfio_user.journal import Journal
from virtserial.vfio_user.migration import Migration, MigrationRecord
from virtserial.vfio_user.negotiation import Capabilities, server_version_data
from virtserial.vfio_user.wire import (
    DOORBELL,
    DOORBELL_SIZE,
    HEADER_SIZE,
    MAX_DATA_XFER_SIZE,
    MAX_MESSAGE_SIZE,
    PAGE_SIZE,
    VFIO_USER_NO_REPLY,
    VFIO_USER_REGION_WRITE,
    Header,
    error_reply,
    reply,
)

if TYPE_CHECKING:
    from virtserial.accounting import Ledger
    from virtserial.memory.state import StateMemory
    from virtserial.vfio_user.device import VfioDevice
    from virtserial.vfio_user.migration import MigratableDevice

_DOORBELL_SIZE_AND_FLAGS: Final = DOORBELL_SIZE | VFIO_USER_NO_REPLY << 32

_DATA_TYPES: Final = wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_DATA_BOOL | wire.VFIO_IRQ_SET_DATA_EVENTFD
_ACTIONS: Final = wire.VFIO_IRQ_SET_ACTION_MASK | wire.VFIO_IRQ_SET_ACTION_UNMASK | wire.VFIO_IRQ_SET_ACTION_TRIGGER


class SessionRecord(Record):
    """What was agreed with the client, for a successor of this process."""

    __slots__ = ()
    SIZE = 8
    negotiated = U8(0)
    dma_data_offset = U8(1)
    """Where the data of a DMA_READ or DMA_WRITE stands in the client's form of it (dma.py), 0 before that is known."""
    last_request_id = U16(2)
    max_data_xfer_size = U32(4)


class Server:
    """One client's session with one device.

    Args:
        device: what is served.
        state: where the session and the journal live; one that a predecessor used goes on where that was killed.
        migratable: the device as one that can be moved; None refuses that.
        controller: what the ledger calls this device.
        ledger: where the message that is under way is noted (accounting.py).

    Attributes:
        refusals: how many requests were refused, posted ones included.
        last_refusal: why the last one was.
    """

    state_size = SessionRecord.SIZE + Journal.SIZE + MigrationRecord.SIZE
    """Bytes of state memory a server needs."""

    def __init__(
        self,
        device: VfioDevice,
        state: StateMemory,
        migratable: MigratableDevice | None = None,
        *,
        controller: int = 0,
        ledger: Ledger | None = None,
    ) -> None:
        self.device = device
        self.controller = controller
        self.ledger = ledger or nowhere()
        self.session = SessionRecord(state)
        self.journal = Journal(state)
        self.migration = Migration(migratable, state) if migratable is not None else None
        # A copy outside of state memory, for the hot path.
        self._negotiated = bool(self.session.negotiated)
        self.refusals = 0
        self.last_refusal = ""
        self._doorbell_target = device.doorbell_region | 2 << 32
        self._handlers = {
            wire.VFIO_USER_DMA_MAP: self._dma_map,
            wire.VFIO_USER_DMA_UNMAP: self._dma_unmap,
            wire.VFIO_USER_DEVICE_GET_INFO: self._device_get_info,
            wire.VFIO_USER_DEVICE_GET_REGION_INFO: self._device_get_region_info,
            wire.VFIO_USER_DEVICE_GET_REGION_IO_FDS: self._not_supported,
            wire.VFIO_USER_DEVICE_GET_IRQ_INFO: self._device_get_irq_info,
            wire.VFIO_USER_DEVICE_SET_IRQS: self._device_set_irqs,
            wire.VFIO_USER_REGION_READ: self._region_read,
            wire.VFIO_USER_REGION_WRITE: self._region_write,
            wire.VFIO_USER_DEVICE_RESET: self._device_reset,
            wire.VFIO_USER_DIRTY_PAGES: self._not_supported,
            wire.VFIO_USER_REGION_WRITE_MULTI: self._region_write_multi,
            wire.VFIO_USER_DEVICE_FEATURE: self._device_feature,
            wire.VFIO_USER_MIG_DATA_READ: self._mig_data_read,
            wire.VFIO_USER_MIG_DATA_WRITE: self._mig_data_write,
        }

    @property
    def negotiated(self) -> bool:
        """Whether the version was agreed."""
        return self._negotiated

    def disconnected(self) -> None:
        """The client is gone: the next one starts with VERSION.

        "All client memory regions are unmapped and cleaned up, all IRQ file descriptors are closed, the device state
        should otherwise be retained" (Client Disconnection).
        """
        self.session.clear()
        self._negotiated = False
        self.journal.record_consumed()
        if self.migration is not None:
            self.migration.reset()
        for index in range(self.device.num_irqs):
            if self.device.irq_count(index):
                self.device.set_irq_eventfds(index, 0, ())
        self.device.dma_unmap_all()

    @staticmethod
    def check_header(header: Header) -> None:
        """Whether a message with this header may be waited for.

        Raises:
            PeerError: its size or its type cannot be.
        """
        if not HEADER_SIZE <= header.size <= MAX_MESSAGE_SIZE:
            raise PeerError(
                f"{header.name} message of {header.size} bytes, allowed are {HEADER_SIZE} to {MAX_MESSAGE_SIZE}"
            )
        if header.flags & wire.VFIO_USER_TYPE > wire.VFIO_USER_REPLY:
            raise PeerError(f"{header.name} message of unknown type {header.flags & wire.VFIO_USER_TYPE}")

    def ring_doorbells(self, buffer: bytes | bytearray | memoryview, start: int, end: int) -> int:
        """Ring all doorbells that stand in `buffer` one behind the other from `start` on, before `end`.

        The hot path: QEMU sends one such message for every notification of the driver.  Returns where the first message
        stands that is no doorbell, or not a whole one.
        """
        if not self._negotiated:
            return start
        unpack_from = DOORBELL.unpack_from
        target = self._doorbell_target
        offsets = self.device.doorbell_offsets
        end -= DOORBELL_SIZE
        ring = self.device.ring_doorbell
        while start <= end:
            command, size_and_flags, offset, region_and_count = unpack_from(buffer, start)
            if (
                region_and_count != target
                or size_and_flags != _DOORBELL_SIZE_AND_FLAGS
                or command != VFIO_USER_REGION_WRITE
                or offset not in offsets
            ):
                break
            ring(offsets[offset])
            start += DOORBELL_SIZE
        return start

    def ring_lone_doorbell(self, buffer: bytearray) -> bool:
        """Ring the doorbell that is all that `buffer` has, the lane's way (console/lane.py); False: it is none."""
        command, size_and_flags, offset, region_and_count = DOORBELL.unpack_from(buffer)
        number = self.device.doorbell_offsets.get(offset)
        if (
            number is None
            or region_and_count != self._doorbell_target
            or size_and_flags != _DOORBELL_SIZE_AND_FLAGS
            or command != VFIO_USER_REGION_WRITE
            or not self._negotiated
        ):
            return False
        self.device.ring_lone_doorbell(number)
        return True

    def handle(self, header: Header, body: bytes | memoryview, fds: list[int]) -> bytes | None:
        """Handle one request and return its whole reply, None if it wants none.

        Of the reply to a request that a predecessor has applied, this is what was not sent yet (perhaps b"").

        Args:
            header: the message's header.
            body: its payload; it is not kept.
            fds: the descriptors that came with it.  Those that the device does not take are closed.

        Raises:
            PeerError: the stream cannot be trusted any more.
        """
        try:
            self.check_header(header)
            if header.flags & wire.VFIO_USER_TYPE:
                raise PeerError(f"{header.name} reply with id {header.id}, which answers no request of ours")
            if header.size != HEADER_SIZE + len(body):
                raise PeerError(f"{header.name} message of {header.size} bytes came with a body of {len(body)}")
            if not self._negotiated and header.command != wire.VFIO_USER_VERSION:
                raise PeerError(f"{header.name} before VFIO_USER_VERSION")
            posted = header.flags & VFIO_USER_NO_REPLY
            if not posted:
                recorded = self.journal.unsent_reply(header)
                if recorded is not None:
                    return recorded
            answer = self._apply(header, body, fds)
            if posted:
                return None
            self.journal.record_applied(header, answer)
            return answer
        finally:
            for fd in fds:
                os.close(fd)
            fds.clear()

    def _apply(self, header: Header, body: bytes | memoryview, fds: list[int]) -> bytes:
        try:
            if header.command == wire.VFIO_USER_VERSION:
                return reply(header, self._version(body))
            handler = self._handlers.get(header.command)
            if handler is None:
                raise PeerError(f"{header.name} is not known", errno.ENOSYS)
            check_room(fds)
            return reply(header, handler(body, fds))
        except PeerError as error:
            self.refusals += 1
            self.last_refusal = str(error)
            return error_reply(header, error.errno)

    # One method per command: body and descriptors in, the reply's payload out.  A descriptor that is taken is removed
    # from the list.

    def _version(self, body: bytes | memoryview) -> bytes:
        if self._negotiated:
            raise PeerError("a second VFIO_USER_VERSION")
        version = wire.Version.unpack(body)
        if version.major != wire.VFIO_USER_MAJOR_VER:
            raise PeerError(
                f"version {version.major}.{version.minor} is offered, "
                f"{wire.VFIO_USER_MAJOR_VER}.{wire.VFIO_USER_MINOR_VER} is spoken here"
            )
        fixed = wire.Version.FORMAT.size
        client = Capabilities.parse(bytes(body[fixed:]))
        self.session.max_data_xfer_size = min(client.max_data_xfer_size, MAX_DATA_XFER_SIZE)
        self.session.negotiated = 1
        self._negotiated = True
        # No capability tells of it; QEMU, which has this trouble, is the VMM that knows VFIO_USER_REGION_WRITE_MULTI.
        self.device.client_negotiated(deletes_only_without_msix=client.write_multiple)
        agreed = wire.Version(wire.VFIO_USER_MAJOR_VER, min(version.minor, wire.VFIO_USER_MINOR_VER))
        return agreed.pack() + server_version_data(client, len(body) - fixed)

    def _dma_map(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        dma_map = wire.DmaMap.unpack(body)
        known = wire.VFIO_DMA_MAP_FLAG_READ | wire.VFIO_DMA_MAP_FLAG_WRITE
        if dma_map.flags & ~known or not dma_map.flags:
            raise PeerError(f"{dma_map}: flags must be some of {known:#x}")
        _check_dma_range(dma_map, dma_map.address, dma_map.size)
        if len(fds) > 1:
            raise PeerError(f"{dma_map} came with {len(fds)} descriptors, at most 1 belongs to it")
        if fds and (dma_map.offset % PAGE_SIZE or dma_map.offset + dma_map.size >= 1 << 63):
            raise PeerError(f"{dma_map}: the file offset is no multiple of {PAGE_SIZE}, or leaves 63 bits")
        fd = fds.pop() if fds else None
        self.device.dma_map(dma_map.address, dma_map.size, dma_map.flags, fd, dma_map.offset)
        return b""

    def _dma_unmap(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        unmap = wire.DmaUnmap.unpack(body)
        if unmap.flags & wire.VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP:
            raise PeerError(f"{unmap}: dirty pages are not tracked", errno.ENOTSUP)
        if unmap.flags & ~wire.VFIO_DMA_UNMAP_FLAG_ALL:
            raise PeerError(f"{unmap}: unknown flags")
        if unmap.flags:
            if unmap.address or unmap.size:
                raise PeerError(f"{unmap}: VFIO_DMA_UNMAP_FLAG_ALL takes no address and no size")
            self.device.dma_unmap_all()
        else:
            _check_dma_range(unmap, unmap.address, unmap.size)
            self.device.dma_unmap(unmap.address, unmap.size)
        return wire.DmaUnmap(unmap.FORMAT.size, unmap.flags, unmap.address, unmap.size).pack()

    def _device_get_info(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        wire.DeviceInfo.unpack(body)
        flags = wire.VFIO_DEVICE_FLAGS_RESET | wire.VFIO_DEVICE_FLAGS_PCI
        size = wire.DeviceInfo.FORMAT.size
        return wire.DeviceInfo(size, flags, self.device.num_regions, self.device.num_irqs).pack()

    def _device_get_region_info(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        index = wire.RegionInfo.unpack(body).index
        self._check_region(index)
        size = wire.RegionInfo.FORMAT.size
        flags = self.device.region_flags(index)
        return wire.RegionInfo(size, flags, index, 0, self.device.region_size(index), 0).pack()

    def _device_get_irq_info(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        index = wire.IrqInfo.unpack(body).index
        self._check_irq_type(index)
        size = wire.IrqInfo.FORMAT.size
        return wire.IrqInfo(size, self.device.irq_flags(index), index, self.device.irq_count(index)).pack()

    def _device_set_irqs(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        irqs = wire.IrqSet.unpack(body)
        fixed = irqs.FORMAT.size
        if irqs.argsz > len(body):
            raise PeerError(f"{irqs}: argsz is more than the {len(body)} bytes there are")
        self._check_irq_type(irqs.index)
        data_type, action = irqs.flags & _DATA_TYPES, irqs.flags & _ACTIONS
        if irqs.flags != data_type | action or data_type.bit_count() != 1 or action.bit_count() != 1:
            raise PeerError(f"{irqs}: flags must be one data type and one action")
        if irqs.start + irqs.count > self.device.irq_count(irqs.index):
            raise PeerError(f"{irqs}: there are {self.device.irq_count(irqs.index)} interrupts of this type")
        if fds and data_type != wire.VFIO_IRQ_SET_DATA_EVENTFD:
            raise PeerError(f"{irqs} came with {len(fds)} descriptors, none belongs to it")
        if action != wire.VFIO_IRQ_SET_ACTION_TRIGGER:
            if not self.device.irq_flags(irqs.index) & wire.VFIO_IRQ_INFO_MASKABLE:
                raise PeerError(f"{irqs}: interrupts of this type cannot be masked")
            if data_type == wire.VFIO_IRQ_SET_DATA_EVENTFD:
                # What KVM would use to unmask INTx behind our back; QEMU does it by messages when refused.
                raise PeerError(f"{irqs}: no eventfds for masking and unmasking", errno.ENOTSUP)
        if not irqs.count:
            if irqs.start or irqs.flags != wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_TRIGGER:
                raise PeerError(f"{irqs}: a count of 0 disables a whole type, by DATA_NONE and ACTION_TRIGGER only")
            self.device.set_irq_eventfds(irqs.index, 0, ())
        elif data_type == wire.VFIO_IRQ_SET_DATA_EVENTFD:
            if fds and len(fds) != irqs.count:
                raise PeerError(f"{irqs} came with {len(fds)} descriptors")
            taken, fds[:] = fds[:] or [-1] * irqs.count, []
            self.device.set_irq_eventfds(irqs.index, irqs.start, taken)
        else:
            act = {
                wire.VFIO_IRQ_SET_ACTION_MASK: self.device.mask_irqs,
                wire.VFIO_IRQ_SET_ACTION_UNMASK: self.device.unmask_irqs,
                wire.VFIO_IRQ_SET_ACTION_TRIGGER: self.device.trigger_irqs,
            }[action]
            if data_type == wire.VFIO_IRQ_SET_DATA_NONE:
                act(irqs.index, irqs.start, irqs.count)
            else:
                wanted = bytes(body[fixed : irqs.argsz])
                if len(wanted) != irqs.count:
                    raise PeerError(f"{irqs}: {len(wanted)} booleans came with it")
                for number, chosen in enumerate(wanted, irqs.start):
                    if chosen:
                        act(irqs.index, number, 1)
        return b""

    def _region_read(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        access = wire.RegionAccess.unpack(body)
        self._check_access(access)
        return access.pack() + self.device.region_read(access.region, access.offset, access.count)

    def _region_write(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        access = wire.RegionAccess.unpack(body)
        data = body[access.FORMAT.size :]
        if len(data) != access.count:
            raise PeerError(f"{access} came with {len(data)} bytes of data")
        self._check_access(access)
        if access.region == self.device.doorbell_region and access.count == 2:
            number = self.device.doorbell_offsets.get(access.offset)
            if number is not None:
                self.device.ring_doorbell(number)
                return access.pack()
        self.device.region_write(access.region, access.offset, data)
        return access.pack()

    def _region_write_multi(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        if len(body) < wire.WRITE_COUNT.size:
            raise PeerError(f"VFIO_USER_REGION_WRITE_MULTI: {len(body)} bytes of payload, at least 8 are needed")
        (count,) = wire.WRITE_COUNT.unpack_from(body)
        if count > wire.MAX_WRITES:
            raise PeerError(f"VFIO_USER_REGION_WRITE_MULTI: {count} writes, at most {wire.MAX_WRITES}")
        writes = bytes(body[wire.WRITE_COUNT.size :])
        if len(writes) != count * wire.ONE_WRITE.size:
            raise PeerError(f"VFIO_USER_REGION_WRITE_MULTI: {count} writes came in {len(writes)} bytes")
        for offset, region, length, data in wire.ONE_WRITE.iter_unpack(writes):
            if length > len(data):
                raise PeerError(f"VFIO_USER_REGION_WRITE_MULTI: a write of {length} bytes, at most 8 fit")
            self._region_write(wire.RegionAccess(offset, region, length).pack() + data[:length], fds)
        return wire.WRITE_COUNT.pack(count)

    def _device_reset(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        self.device.reset()
        if self.migration is not None:
            self.migration.reset()
        return b""

    def _device_feature(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        return self._migration().feature(body)

    def _mig_data_read(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        return self._migration().read_data(body)

    def _mig_data_write(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        return self._migration().write_data(body)

    def _migration(self) -> Migration:
        if self.migration is None:
            raise PeerError("migration is an optional feature that this server does not have", errno.ENOTSUP)
        return self.migration

    def _not_supported(self, body: bytes | memoryview, fds: list[int]) -> bytes:
        raise PeerError("a command of an optional feature that this server does not have", errno.ENOTSUP)

    # Checks shared by commands

    def _check_region(self, index: int) -> None:
        if index >= self.device.num_regions:
            raise PeerError(f"region {index}: there are {self.device.num_regions}")

    def _check_irq_type(self, index: int) -> None:
        if index >= self.device.num_irqs:
            raise PeerError(f"interrupt type {index}: there are {self.device.num_irqs}")

    def _check_access(self, access: wire.RegionAccess) -> None:
        self._check_region(access.region)
        size = self.device.region_size(access.region)
        if access.count > MAX_DATA_XFER_SIZE:
            raise PeerError(f"{access}: at most {MAX_DATA_XFER_SIZE} bytes at a time")
        if access.offset + access.count > size:
            raise PeerError(f"{access}: the region has {size:#x} bytes")


def _check_dma_range(what: wire.Payload, address: int, size: int) -> None:
    if not size or address % PAGE_SIZE or size % PAGE_SIZE or address + size > 1 << 64:
        raise PeerError(f"{what}: no range of whole {PAGE_SIZE}-byte pages below 2^64")
