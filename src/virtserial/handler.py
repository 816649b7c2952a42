"""A port served by Python code: what to write, and nothing else.

Two ways.  A coroutine, for a service in a few lines; it runs in a process of its own with an asyncio loop, and begins
again when the guest next opens the port after it has returned or crashed:

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()

A class, with QEMU's in-process interface (VirtIOSerialPortClass), for code that must see every event of the port; it
runs inside the worker, so it must never block, and what it raises closes its port:

    class Echo(PortHandler):
        def have_data(self, buffer: memoryview) -> int:
            return self.port.write(buffer)

        def guest_writable(self) -> None:
            self.port.throttle(False)

Either is used by `-chardev handler,id=h,class=package.module:Name` or `-chardev handler,id=h,path=FILE.py,class=Name`
(without `class=`: `serve`, or else the only PortHandler there).
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Port", "PortHandler"]


class Port(Protocol):
    """What a PortHandler can do with its port."""

    def open(self) -> None:
        """Say to the guest that the host side is connected (virtio_serial_open)."""

    def close(self) -> None:
        """Say to the guest that the host side is gone (virtio_serial_close).  `open` may follow."""

    def write(self, buffer: bytes | bytearray | memoryview) -> int:
        """Send to the guest; returns how many bytes were accepted (they are copied).

        Fewer than given, or 0 while the guest has the port closed: `guest_writable` is called when there is room.
        """

    def guest_ready(self) -> int:
        """How many bytes `write` would accept now; 0 while the guest has the port closed."""

    def throttle(self, on: bool) -> None:
        """On: no more `have_data` until it is turned off; the guest's writers wait."""


class PortHandler:
    """Serves one port.  Subclass it and override what matters.

    Attributes:
        port: the calls; there before `started`.
        open_at_start: the host side counts as connected from the beginning; else when `port.open` is called.
    """

    port: Port
    open_at_start = True

    def started(self) -> None:
        """The port is there."""

    def stopped(self) -> None:
        """The port goes away; `port` must not be used any more."""

    def guest_open(self) -> None:
        """The guest has opened the port."""

    def guest_close(self) -> None:
        """The guest has closed the port; what it wrote before has come by `have_data`."""

    def guest_ready(self) -> None:
        """The guest's driver is ready for the port."""

    def have_data(self, buffer: memoryview) -> int:
        """The guest wrote `buffer`; returns how many bytes were consumed.

        Fewer than given throttles the port until `port.throttle(False)`; the rest then comes again.  `buffer` is the
        guest's memory: copy what is kept (`bytes(buffer)`), its content changes as soon as this returns.
        """
        return len(buffer)

    def guest_writable(self) -> None:
        """`port.write` accepts bytes again, after it had accepted fewer than given."""
