r"""A port in a Windows guest: \\.\Global\NAME of the vioserial driver, by overlapped I/O.

**Untested**: written from the driver's public interface (virtio-win, vioserial/sys/public.h), never run on Windows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Any, Sequence

from .errors import NoSuchPort, PortRemoved
from .stream import READ_SIZE, Buffer, PortStream

GENERIC_READ_WRITE = 0xC0000000
OPEN_EXISTING = 3
FILE_FLAG_OVERLAPPED = 0x40000000
IOCTL_GET_INFORMATION = (0x22 << 16) | (0x800 << 2) | 2
"""CTL_CODE(FILE_DEVICE_UNKNOWN, 0x800, METHOD_OUT_DIRECT, FILE_ANY_ACCESS)."""
ERROR_FILE_NOT_FOUND, ERROR_SHARING_VIOLATION, ERROR_IO_PENDING, ERROR_IO_INCOMPLETE = 2, 32, 997, 996
WRITE_SIZE = 32768
STATE_INTERVAL = 0.2
"""Seconds between two looks at the host's state: the driver sends its events to windows only."""


class Overlapped(ctypes.Structure):
    """OVERLAPPED."""

    _fields_ = (
        ("internal", ctypes.c_void_p),
        ("internal_high", ctypes.c_void_p),
        ("offset", ctypes.c_uint32),
        ("offset_high", ctypes.c_uint32),
        ("event", ctypes.c_void_p),
    )


class PortInformation(ctypes.Structure):
    """VIRTIO_PORT_INFO with room for a name."""

    _fields_ = (
        ("id", ctypes.c_uint32),
        ("out_vq_full", ctypes.c_uint8),
        ("host_connected", ctypes.c_uint8),
        ("guest_connected", ctypes.c_uint8),
        ("name", ctypes.c_char * 249),
    )


class _Operation:
    """One pending read or write, with the buffer that the driver uses."""

    def __init__(self, kernel32: Any, size: int) -> None:  # noqa: ANN401  # ctypes.WinDLL is only on Windows
        self.buffer = ctypes.create_string_buffer(size)
        self.pending = False
        self.overlapped = Overlapped()
        self.overlapped.event = kernel32.CreateEventW(None, True, False, None)


class WindowsPort(PortStream):
    """An open port; one opener at a time."""

    def __init__(self, name: str) -> None:
        """Open a port by its name.

        Raises:
            NoSuchPort: no port has that name.
            OSError: EBUSY if another program has it open; other errors of Windows.
        """
        super().__init__()
        self.path = name if name.startswith("\\\\") else "\\\\.\\Global\\" + name
        self._kernel32: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
        self._kernel32.CreateFileW.restype = ctypes.c_void_p
        self._kernel32.CreateEventW.restype = ctypes.c_void_p
        handle = self._kernel32.CreateFileW(
            self.path, GENERIC_READ_WRITE, 0, None, OPEN_EXISTING, FILE_FLAG_OVERLAPPED, None
        )
        if handle is None or handle == ctypes.c_void_p(-1).value:
            code = self._last_error()
            if code == ERROR_FILE_NOT_FOUND:
                raise NoSuchPort(f"no port is named {name!r}")
            if code == ERROR_SHARING_VIOLATION:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
            raise OSError(errno.EIO, f"Windows error {code}", name)
        self._handle: Any = ctypes.c_void_p(handle)
        self._reading = _Operation(self._kernel32, READ_SIZE)
        self._writing = _Operation(self._kernel32, WRITE_SIZE)

    def information(self) -> PortInformation:
        """The driver's information: Id, OutVqFull, HostConnected, GuestConnected, Name.

        Raises:
            PortRemoved: the port is gone.
        """
        operation = _Operation(self._kernel32, 1)
        information, count = PortInformation(), ctypes.c_uint32()
        try:
            done = self._kernel32.DeviceIoControl(
                self._handle, IOCTL_GET_INFORMATION, None, 0, ctypes.byref(information),
                ctypes.sizeof(information), ctypes.byref(count), ctypes.byref(operation.overlapped),
            )  # fmt: skip
            if not done and self._last_error() == ERROR_IO_PENDING:
                done = self._kernel32.GetOverlappedResult(
                    self._handle, ctypes.byref(operation.overlapped), ctypes.byref(count), True
                )
            if not done:
                raise PortRemoved(f"{self.path}: Windows error {self._last_error()}")
        finally:
            self._kernel32.CloseHandle(ctypes.c_void_p(operation.overlapped.event))
        return information

    @property
    def connected(self) -> bool:
        """Whether the host is connected."""
        try:
            return bool(self.information().host_connected)
        except PortRemoved:
            return False

    def probe(self) -> None:
        """See PortStream.probe."""
        self.information()

    def receive(self, limit: int = READ_SIZE) -> bytes | None:
        """See PortStream.receive."""
        operation = self._reading
        if not operation.pending:
            self._start(operation, self._kernel32.ReadFile, min(limit, READ_SIZE))
        count = self._result(operation)
        if count is None:
            return None if self.connected else b""
        return operation.buffer.raw[:count] or None

    def send(self, buffers: Sequence[Buffer]) -> int:
        """See PortStream.send; it copies the bytes, and sends one copy at a time."""
        operation = self._writing
        if operation.pending and self._result(operation) is None:
            return 0
        if not self.connected:
            return 0
        data = b"".join(bytes(buffer) for buffer in buffers)[:WRITE_SIZE]
        ctypes.memmove(operation.buffer, data, len(data))
        self._start(operation, self._kernel32.WriteFile, len(data))
        return len(data)

    def wait(self, timeout: float | None = None) -> bool:
        """See PortStream.wait; it also returns when the host's state may have changed."""
        events: list[Any] = [each.overlapped.event for each in (self._reading, self._writing) if each.pending]
        span = STATE_INTERVAL if timeout is None else min(timeout, STATE_INTERVAL)
        if events:
            handles = (ctypes.c_void_p * len(events))(*events)
            self._kernel32.WaitForMultipleObjects(len(events), handles, False, int(span * 1000))
        else:
            time.sleep(span)
        return timeout is None or timeout > STATE_INTERVAL

    def close(self) -> None:
        """See PortStream.close."""
        if self._handle is not None:
            self._kernel32.CancelIoEx(self._handle, None)
            count = ctypes.c_uint32()
            for operation in (self._reading, self._writing):
                if operation.pending:
                    self._kernel32.GetOverlappedResult(
                        self._handle, ctypes.byref(operation.overlapped), ctypes.byref(count), True
                    )
                self._kernel32.CloseHandle(ctypes.c_void_p(operation.overlapped.event))
            self._kernel32.CloseHandle(self._handle)
            self._handle = None

    def _start(self, operation: _Operation, call: Any, size: int) -> None:  # noqa: ANN401
        count = ctypes.c_uint32()
        done = call(self._handle, operation.buffer, size, ctypes.byref(count), ctypes.byref(operation.overlapped))
        if not done and self._last_error() != ERROR_IO_PENDING:
            raise PortRemoved(f"{self.path}: Windows error {self._last_error()}")
        operation.pending = True

    def _result(self, operation: _Operation) -> int | None:
        count = ctypes.c_uint32()
        if self._kernel32.GetOverlappedResult(
            self._handle, ctypes.byref(operation.overlapped), ctypes.byref(count), False
        ):
            operation.pending = False
            return count.value
        if self._last_error() == ERROR_IO_INCOMPLETE:
            return None
        operation.pending = False
        raise PortRemoved(f"{self.path}: Windows error {self._last_error()}")

    @staticmethod
    def _last_error() -> int:
        return int(ctypes.get_last_error())  # type: ignore[attr-defined]
