"""Our guest driver in one's own program: the guest's ends of a device's ports, as streams.

Its streams have the calls of every other stream (virtserial.guest.stream), so that one program can be both ends.
The driver works while a stream waits, and for asyncio whenever the loop runs.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from typing import TYPE_CHECKING, Self, TypeVar

from virtserial.driver.attachment import open_device
from virtserial.driver.console_driver import DriverListener
from virtserial.driver.ports import PortListener
from virtserial.errors import ConfigError, PeerError, StateError
from virtserial.guest.aio import AsyncStream
from virtserial.guest.errors import PortRemoved
from virtserial.guest.stream import READ_SIZE, Buffer, EpollStream
from virtserial.loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.driver.ports import Port

T = TypeVar("T")
OPEN_TIME = 30.0
"""Seconds that a port may take to appear."""


class GuestStream(EpollStream, PortListener):
    """The guest's end of a port; `connected` is "host is connected".

    Args:
        loop: the driver's.
        port: opened here, closed by `close`.

    Raises:
        StateError: it is open already.
    """

    def __init__(self, loop: EventLoop, port: Port) -> None:
        super().__init__()
        self._loop = loop
        self._port = port
        self._removed = False
        self._changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._changed, select.EPOLLIN)
        self._epoll.register(loop.fileno(), select.EPOLLIN)
        port.open(self)

    # virtserial.driver.ports.PortListener

    def port_readable(self) -> None:
        os.eventfd_write(self._changed, 1)

    def port_writable(self) -> None:
        os.eventfd_write(self._changed, 1)

    def port_unplugged(self) -> None:
        self._removed = True
        os.eventfd_write(self._changed, 1)

    # virtserial.guest.stream.PortStream

    @property
    def connected(self) -> bool:
        return self._port.host_connected

    def probe(self) -> None:
        if self._removed:
            raise PortRemoved(f"{self._port.label} was unplugged")

    def receive(self, limit: int = READ_SIZE) -> bytes | None:
        self.probe()
        data = self._port.read(limit)
        return data or (None if self._port.host_connected else b"")

    def send(self, buffers: Sequence[Buffer]) -> int:
        self.probe()
        total = 0
        for buffer in buffers:
            taken = self._port.write(buffer)
            total += taken
            if taken < len(buffer):
                break
        return total

    def wait(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ready = {fd for fd, _ in self._epoll.poll(left)}
            if self._loop.fileno() in ready:
                self._loop.run_once(0)
            try:
                os.eventfd_read(self._changed)
            except BlockingIOError:
                if left == 0.0:
                    return False
                continue
            return True

    def _until(self, attempt: Callable[[], T | None], timeout: float | None) -> T:
        if not self._port.host_connected:
            self._loop.run_once(0)  # The host may have come since the last call: only now the driver learns of it.
        return super()._until(attempt, timeout)

    def close(self) -> None:
        if self._changed >= 0:
            if not self._removed:
                self._port.close()
            os.close(self._changed)
            self._changed = -1
            super().close()


class EmbeddedGuest(DriverListener):
    """Our driver on a controller; what Machine.attach gives.

    Args:
        path: the controller's socket.
        vhost_user: it speaks vhost-user, not vfio-user.

    Attributes:
        failure: why the device cannot be used any more, or None.

    Raises:
        PeerError: nobody listens there, it has a VMM already, or it is no virtio console.
    """

    def __init__(self, path: os.PathLike[str] | str, *, vhost_user: bool = False) -> None:
        self.failure: PeerError | None = None
        self.loop = EventLoop()
        self._streams: list[GuestStream] = []
        self._closed = False
        # Relative stays relative: a socket's path has 107 bytes at most.
        where = os.path.join(os.curdir, os.fspath(path))
        try:
            self.driver = open_device(f"vhost-user:{where}" if vhost_user else where, self.loop, self)
        except BaseException:
            self.loop.close()
            raise
        try:
            self.driver.start()
        except BaseException:
            self.close()
            raise

    def device_failed(self, error: PeerError) -> None:
        """See DriverListener.device_failed."""
        self.failure = error

    def ports(self) -> list[str]:
        """The names of the ports that are plugged in, as far as the device has told; "" for those without one.

        Raises:
            StateError: the guest is closed.
        """
        self._check_open()
        self.loop.run_once(0)
        return [port.name for port in self.driver.ports.values()]

    def open(self, name: str, timeout: float = OPEN_TIME) -> GuestStream:
        """Open a port by its name, once it is there.

        Raises:
            ConfigError: it does not appear in `timeout` seconds.
            StateError: it is open already, or the guest is closed.
            PeerError: the device has failed.
        """
        deadline = time.monotonic() + timeout
        while (port := self.find(name)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                names = ", ".join(map(repr, self.ports())) or "none"
                raise ConfigError(f"no port is named {name!r} after {timeout:g} s; there are: {names}")
            self.loop.run_once(left)
        return self.stream(port)

    def find(self, name: str) -> Port | None:
        """Return the port of that name, if it is there.

        Raises:
            StateError: the guest is closed.
            PeerError: the device has failed.
        """
        self._check_open()
        if self.failure is not None:
            raise self.failure
        return next((port for port in self.driver.ports.values() if port.name == name), None)

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the guest is closed")

    def stream(self, port: Port) -> GuestStream:
        """Open a port."""
        stream = GuestStream(self.loop, port)
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """Reset the device and let go of it; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for stream in self._streams:
            stream.close()
        self.driver.close()
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncEmbeddedGuest:
    """The same for asyncio; what AsyncMachine.attach gives.

    Args:
        guest: owned from here on; call it in the running loop that will use it.
    """

    def __init__(self, guest: EmbeddedGuest) -> None:
        self.guest = guest
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._streams: list[AsyncStream] = []
        self._watched = guest.loop.fileno()
        self._loop.add_reader(self._watched, self._ready)

    def _ready(self) -> None:
        self.guest.loop.run_once(0)
        self._news.set()

    def ports(self) -> list[str]:
        """As EmbeddedGuest.ports."""
        return self.guest.ports()

    async def open(self, name: str) -> AsyncStream:
        """As EmbeddedGuest.open; asyncio.timeout limits it."""
        while (port := self.guest.find(name)) is None:
            self._news.clear()
            await self._news.wait()
        stream = AsyncStream(self.guest.stream(port))
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """As EmbeddedGuest.close."""
        if self._watched < 0:
            return
        # Before the descriptors are closed, which asyncio watches.
        for stream in self._streams:
            stream.close()
        self._loop.remove_reader(self._watched)
        self._watched = -1
        self.guest.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
