"""Moving a device to another server: device features, migration data and dirty pages, the server's half.

VFIO's migration protocol, version 2, as vfio-user has it: the client takes the device through states (RUNNING, STOP,
STOP_COPY on the one side, RESUMING, STOP, RUNNING on the other) and reads or writes its saved state as a stream of
messages.  PRE_COPY is not offered: the state is small, it is saved when the device stands still.  Every way between two
states leads over STOP.

The specification is libvfio-user's docs/vfio-user.rst (QEMU's client knows none of this), numbers are those of
<linux/vfio.h>.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, Protocol

from virtserial.errors import PeerError, VirtserialError
from virtserial.memory.dirty_log import LOGGED_PAGE_SIZE, DirtyLog
from virtserial.memory.state import U8, Record
from virtserial.vfio_user.wire import HEADER_SIZE, MAX_DATA_XFER_SIZE, MAX_MESSAGE_SIZE

if TYPE_CHECKING:
    from virtserial.memory.state import StateMemory

VFIO_DEVICE_FEATURE_MASK: Final = 0xFFFF
VFIO_DEVICE_FEATURE_GET: Final = 1 << 16
VFIO_DEVICE_FEATURE_SET: Final = 1 << 17
VFIO_DEVICE_FEATURE_PROBE: Final = 1 << 18

VFIO_DEVICE_FEATURE_MIGRATION: Final = 1
VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: Final = 2
VFIO_DEVICE_FEATURE_DMA_LOGGING_START: Final = 6
VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: Final = 7
VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: Final = 8

VFIO_MIGRATION_STOP_COPY: Final = 1

VFIO_DEVICE_STATE_ERROR: Final = 0
VFIO_DEVICE_STATE_STOP: Final = 1
VFIO_DEVICE_STATE_RUNNING: Final = 2
VFIO_DEVICE_STATE_STOP_COPY: Final = 3
VFIO_DEVICE_STATE_RESUMING: Final = 4
STATE_NAMES: Final = ("ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING")

FEATURE: Final = struct.Struct("<II")
"""struct vfio_device_feature: argsz, flags."""
MIGRATION: Final = struct.Struct("<Q")
"""struct vfio_device_feature_migration: flags."""
DEVICE_STATE: Final = struct.Struct("<II")
"""struct vfio_device_feature_mig_state: device_state, data_fd (not used)."""
LOGGING_CONTROL: Final = struct.Struct("<QII")
"""struct vfio_device_feature_dma_logging_control: page_size, num_ranges, reserved."""
LOGGING_RANGE: Final = struct.Struct("<QQ")
"""struct vfio_device_feature_dma_logging_range: iova, length."""
LOGGING_REPORT: Final = struct.Struct("<QQQ")
"""struct vfio_device_feature_dma_logging_report: iova, length, page_size; the bitmap follows."""
MIG_DATA: Final = struct.Struct("<II")
"""VFIO_USER_MIG_DATA_READ and _WRITE: argsz, size; the data follows."""

MAX_BITMAP: Final = (MAX_MESSAGE_SIZE - HEADER_SIZE - FEATURE.size - LOGGING_REPORT.size) // 8 * 8
"""Bytes of a report's bitmap: what fits into one message, some 2 GiB of memory in pages of 4 KiB."""

_METHODS: Final = {
    VFIO_DEVICE_FEATURE_MIGRATION: VFIO_DEVICE_FEATURE_GET,
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START: VFIO_DEVICE_FEATURE_SET,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: VFIO_DEVICE_FEATURE_SET,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: VFIO_DEVICE_FEATURE_GET,
}


class MigratableDevice(Protocol):
    """A device that can be moved."""

    @property
    def max_state_size(self) -> int:
        """The most bytes that a saved state of it has."""
        ...

    def pause(self) -> None:
        """Stand still: touch no guest memory and nothing outside."""
        ...

    def resume(self) -> None:
        """Run again; what happened meanwhile is caught up with soon."""
        ...

    def save_state(self) -> bytes:
        """Return the state of the device, which stands still."""
        ...

    def load_state(self, data: bytes) -> None:
        """Take a state over and stand still.

        Raises:
            VirtserialError: it cannot be taken; the device is as after a reset.
        """
        ...

    def log_writes(self, log: DirtyLog | None) -> None:
        """Note in `log` what is written into guest memory; None: nowhere."""
        ...


class MigrationRecord(Record):
    """What a successor of this process has to know."""

    __slots__ = ()
    SIZE = 8
    device_state = U8(0)
    """VFIO_DEVICE_STATE_* and 1 more; 0 stands for RUNNING, in which every device begins."""
    logging = U8(1)


class Migration:
    """The migration of one device.

    Args:
        device: the device.
        state: where the state of the migration lives.  The data does not: where a process was killed that held it, the
            client is refused more of it.
    """

    def __init__(self, device: MigratableDevice, state: StateMemory) -> None:
        self._device = device
        self._record = MigrationRecord(state)
        self._outgoing: memoryview | None = None
        self._incoming: bytearray | None = None
        self._log: DirtyLog | None = None
        if self._record.logging:
            self._start_logging()

    @property
    def state(self) -> int:
        """The device's state, VFIO_DEVICE_STATE_*."""
        stored = self._record.device_state
        return stored - 1 if stored else VFIO_DEVICE_STATE_RUNNING

    def _set(self, state: int) -> None:
        self._record.device_state = state + 1

    def reset(self) -> None:
        """The device was reset or the client is gone: the device runs, nothing is logged."""
        self._outgoing = self._incoming = None
        self._set(VFIO_DEVICE_STATE_RUNNING)
        self._stop_logging()

    # VFIO_USER_DEVICE_FEATURE

    def feature(self, body: bytes | memoryview) -> bytes:
        """Handle VFIO_USER_DEVICE_FEATURE; return the reply's payload.

        Raises:
            PeerError: refused.
        """
        if len(body) < FEATURE.size:
            raise PeerError(f"VFIO_USER_DEVICE_FEATURE: {len(body)} bytes of payload, at least 8 are needed")
        argsz, flags = FEATURE.unpack_from(body)
        index = flags & VFIO_DEVICE_FEATURE_MASK
        method = flags & (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET)
        probe = flags & VFIO_DEVICE_FEATURE_PROBE
        name = f"VFIO_USER_DEVICE_FEATURE {index}"
        if index not in _METHODS:
            raise PeerError(f"{name}: there is no such feature", errno.ENOTTY)
        both = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET
        if flags & ~(VFIO_DEVICE_FEATURE_MASK | both | VFIO_DEVICE_FEATURE_PROBE) or not (method or probe):
            raise PeerError(f"{name}: flags {flags:#x} ask for nothing that can be done")
        if method & ~_METHODS[index]:
            raise PeerError(f"{name}: it cannot be {'set' if method & VFIO_DEVICE_FEATURE_SET else 'got'}")
        if argsz < FEATURE.size:
            raise PeerError(f"{name}: argsz is {argsz}, the reply has at least {FEATURE.size} bytes")
        if probe:
            return bytes(body[: FEATURE.size])
        if method == both:
            raise PeerError(f"{name}: it cannot be got and set at once")
        data = bytes(body[FEATURE.size :])
        if method == VFIO_DEVICE_FEATURE_SET:
            return FEATURE.pack(FEATURE.size + len(data), flags) + self._set_feature(index, data, name)
        answer = self._get_feature(index, data, argsz - FEATURE.size, name)
        return FEATURE.pack(FEATURE.size + len(answer), flags) + answer

    def _get_feature(self, index: int, data: bytes, room: int, name: str) -> bytes:
        if index == VFIO_DEVICE_FEATURE_MIGRATION:
            answer = MIGRATION.pack(VFIO_MIGRATION_STOP_COPY)
        elif index == VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
            answer = DEVICE_STATE.pack(self.state, 0)
        else:
            return self._report(data, room, name)
        if len(answer) > room:
            raise PeerError(f"{name}: argsz leaves room for {room} bytes of data, the reply has {len(answer)}")
        return answer

    def _set_feature(self, index: int, data: bytes, name: str) -> bytes:
        if index == VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
            if len(data) != DEVICE_STATE.size:
                raise PeerError(f"{name}: {len(data)} bytes of data, {DEVICE_STATE.size} belong to it")
            self._move_to(DEVICE_STATE.unpack(data)[0])
            return data
        if index == VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
            return self._start(data, name)
        self._stop_logging()
        return data

    # States

    def _move_to(self, target: int) -> None:
        current = self.state
        if not VFIO_DEVICE_STATE_STOP <= target <= VFIO_DEVICE_STATE_RESUMING:
            raise PeerError(f"device state {target}: a device cannot be put into it")
        if current == VFIO_DEVICE_STATE_ERROR:
            raise PeerError("the device is in state ERROR, which only a reset ends")
        if target == current:
            return
        if current != VFIO_DEVICE_STATE_STOP:
            self._leave(current)
            self._set(VFIO_DEVICE_STATE_STOP)
        if target != VFIO_DEVICE_STATE_STOP:
            self._enter(target)
            self._set(target)

    def _leave(self, state: int) -> None:
        """From a state to STOP."""
        if state == VFIO_DEVICE_STATE_RUNNING:
            self._device.pause()
        elif state == VFIO_DEVICE_STATE_STOP_COPY:
            self._outgoing = None
        else:
            received, self._incoming = self._incoming, None
            try:
                if received is None:
                    raise PeerError("a part of the state was lost with the process that had received it")
                self._device.load_state(bytes(received))
            except VirtserialError as error:
                self._set(VFIO_DEVICE_STATE_ERROR)
                raise PeerError(str(error)) from error

    def _enter(self, state: int) -> None:
        """From STOP to a state."""
        if state == VFIO_DEVICE_STATE_RUNNING:
            self._device.resume()
        elif state == VFIO_DEVICE_STATE_STOP_COPY:
            self._outgoing = memoryview(self._device.save_state())
        else:
            self._incoming = bytearray()

    # The data

    def read_data(self, body: bytes | memoryview) -> bytes:
        """Handle VFIO_USER_MIG_DATA_READ: less than was asked for is the end.

        Raises:
            PeerError: refused.
        """
        size = _data_size(body)
        data = self._outgoing
        if data is None:
            raise PeerError(f"migration data is read in state STOP_COPY, this is {STATE_NAMES[self.state]}")
        part, self._outgoing = bytes(data[:size]), data[size:]
        return MIG_DATA.pack(MIG_DATA.size + len(part), len(part)) + part

    def write_data(self, body: bytes | memoryview) -> bytes:
        """Handle VFIO_USER_MIG_DATA_WRITE.

        Raises:
            PeerError: refused.
        """
        size = _data_size(body)
        part = body[MIG_DATA.size :]
        if len(part) != size:
            raise PeerError(f"VFIO_USER_MIG_DATA_WRITE of {size} bytes came with {len(part)}")
        received = self._incoming
        if received is None:
            raise PeerError(f"migration data is written in state RESUMING, this is {STATE_NAMES[self.state]}")
        limit = self._device.max_state_size
        if len(received) + size > limit:
            raise PeerError(f"more than {limit} bytes of migration data", errno.EFBIG)
        received += part
        return b""

    # Dirty pages

    def _start(self, data: bytes, name: str) -> bytes:
        """Everything is logged, whatever ranges are asked for."""
        if len(data) < LOGGING_CONTROL.size:
            raise PeerError(f"{name}: {len(data)} bytes of data, at least {LOGGING_CONTROL.size} are needed")
        page_size, count, _ = LOGGING_CONTROL.unpack_from(data)
        ranges = data[LOGGING_CONTROL.size :]
        if len(ranges) != count * LOGGING_RANGE.size:
            raise PeerError(f"{name}: {count} ranges came in {len(ranges)} bytes")
        if page_size & (page_size - 1):
            raise PeerError(f"{name}: a page size of {page_size} is no power of 2")
        for iova, length in LOGGING_RANGE.iter_unpack(ranges):
            _check_range(name, iova, length)
        if self._log is None:
            self._start_logging()
        return LOGGING_CONTROL.pack(LOGGED_PAGE_SIZE, count, 0) + ranges

    def _start_logging(self) -> None:
        self._log = DirtyLog()
        self._record.logging = 1
        self._device.log_writes(self._log)

    def _stop_logging(self) -> None:
        if self._log is not None:
            self._log = None
            self._record.logging = 0
            self._device.log_writes(None)

    def _report(self, data: bytes, room: int, name: str) -> bytes:
        if len(data) != LOGGING_REPORT.size:
            raise PeerError(f"{name}: {len(data)} bytes of data, {LOGGING_REPORT.size} belong to it")
        iova, length, page_size = LOGGING_REPORT.unpack(data)
        _check_range(name, iova, length)
        if page_size < LOGGED_PAGE_SIZE or page_size & (page_size - 1) or iova % LOGGED_PAGE_SIZE:
            raise PeerError(
                f"{name}: pages of {page_size:#x} bytes from {iova:#x}, a page size is a power of 2 from "
                f"{LOGGED_PAGE_SIZE} on and ranges begin on pages"
            )
        size = (-(-length // page_size) + 63) // 64 * 8
        if size > MAX_BITMAP or size + LOGGING_REPORT.size > room:
            raise PeerError(f"{name}: a bitmap of {size} bytes, at most {min(MAX_BITMAP, room)} fit into the reply")
        if self._log is None:
            raise PeerError(f"{name}: dirty pages are not logged")
        return data + self._log.take(iova, length, page_size)


def _data_size(body: bytes | memoryview) -> int:
    if len(body) < MIG_DATA.size:
        raise PeerError(f"migration data: {len(body)} bytes of payload, at least {MIG_DATA.size} are needed")
    size: int = MIG_DATA.unpack_from(body)[1]
    if size > MAX_DATA_XFER_SIZE:
        raise PeerError(f"migration data: {size} bytes, at most {MAX_DATA_XFER_SIZE} at a time")
    return size


def _check_range(name: str, iova: int, length: int) -> None:
    if not length or iova + length > 1 << 64:
        raise PeerError(f"{name}: {length:#x} bytes at {iova:#x} are no range below 2^64")
