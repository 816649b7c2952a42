"""A blocking vfio-user client: the VMM's end, for the guest driver in user space, tests and measurements.

Clients should not trust servers: every reply is checked against its request before anything of it is used.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from virtserial.errors import PeerError, StateError
from virtserial.vfio_user import wire
from virtserial.vfio_user.negotiation import Capabilities, encode
from virtserial.vfio_user.wire import HEADER_SIZE, MAX_DATA_XFER_SIZE, MAX_MESSAGE_FDS, MAX_MESSAGE_SIZE, Header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

MAX_REGIONS: Final = 100
MAX_IRQS: Final = 50
"""What QEMU's client believes of a server (VFIO_USER_MAX_REGIONS, VFIO_USER_MAX_IRQS)."""
_MAX_UNREAD: Final = 1 << 20
_P = TypeVar("_P", bound=wire.Payload)


class DmaHandler(Protocol):
    """This client's memory, for a server that was given no descriptor of it."""

    def read(self, iova: int, length: int) -> bytes:
        """Return `length` bytes; PeerError refuses."""
        ...

    def write(self, iova: int, data: bytes) -> None:
        """Store `data`; PeerError refuses."""
        ...


class Client:
    """A connection to a vfio-user server, its version agreed.

    Args:
        path_or_socket: the server's socket, or one that is connected to it; the latter is owned from now on.
        timeout: seconds to wait for a reply.
        dma_handler: serves DMA_READ and DMA_WRITE; without one they are refused.

    Attributes:
        info: what the server told of its device.
        capabilities: what the server told of itself.

    Every method but `close` raises PeerError when the server refuses (errno is the server's), breaks the protocol
    (EPROTO), does not answer in time (ETIMEDOUT), or is gone (ECONNRESET); OSError where the connection fails.
    """

    def __init__(
        self,
        path_or_socket: str | os.PathLike[str] | socket.socket,
        *,
        timeout: float = 5.0,
        dma_handler: DmaHandler | None = None,
    ) -> None:
        self._timeout = timeout
        self._dma_handler = dma_handler
        self._received = bytearray()
        self._held_back = b""
        self._next_id = 0
        if isinstance(path_or_socket, socket.socket):
            self._sock = path_or_socket
        else:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not isinstance(path_or_socket, socket.socket):
                self._sock.settimeout(timeout)
                self._sock.connect(os.fspath(path_or_socket))
            self._sock.setblocking(False)
            self.capabilities = self._negotiate()
            self.info = self._device_info()
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the server forgets our memory and eventfds, and keeps the device as it is."""
        self._sock.close()

    def fileno(self) -> int:
        """The socket's descriptor: when it is readable, call `poll`."""
        return self._sock.fileno()

    # Device

    def _negotiate(self) -> Capabilities:
        ours = encode(
            {
                "max_msg_fds": MAX_MESSAGE_FDS,
                "max_data_xfer_size": MAX_DATA_XFER_SIZE,
                "pgsizes": wire.PAGE_SIZE,
                "max_dma_maps": 65535,
                "write_multiple": True,
            }
        )
        proposed = wire.Version(wire.VFIO_USER_MAJOR_VER, wire.VFIO_USER_MINOR_VER)
        body = self._transact(wire.VFIO_USER_VERSION, proposed.pack() + ours)
        agreed = _unpack(wire.Version, body)
        if agreed.major != proposed.major or agreed.minor > proposed.minor:
            raise _broken(f"version {agreed.major}.{agreed.minor} is no answer to {proposed.major}.{proposed.minor}")
        return Capabilities.parse(body[proposed.FORMAT.size :])

    def _device_info(self) -> wire.DeviceInfo:
        asked = wire.DeviceInfo(wire.DeviceInfo.FORMAT.size, 0, 0, 0)
        info = _unpack(wire.DeviceInfo, self._transact(wire.VFIO_USER_DEVICE_GET_INFO, asked.pack()))
        if info.num_regions > MAX_REGIONS or info.num_irqs > MAX_IRQS:
            raise _broken(f"{info}: more than {MAX_REGIONS} regions or {MAX_IRQS} interrupt types")
        return info

    def region_info(self, index: int) -> wire.RegionInfo:
        """Ask for the size (bytes) and flags (VFIO_REGION_INFO_FLAG_*) of a region."""
        asked = wire.RegionInfo(wire.RegionInfo.FORMAT.size, 0, index, 0, 0, 0)
        info = _unpack(wire.RegionInfo, self._transact(wire.VFIO_USER_DEVICE_GET_REGION_INFO, asked.pack()))
        if info.index != index:
            raise _broken(f"{info} is no answer about region {index}")
        return info

    def irq_info(self, index: int) -> wire.IrqInfo:
        """Ask for the count and flags (VFIO_IRQ_INFO_*) of an interrupt type."""
        asked = wire.IrqInfo(wire.IrqInfo.FORMAT.size, 0, index, 0)
        info = _unpack(wire.IrqInfo, self._transact(wire.VFIO_USER_DEVICE_GET_IRQ_INFO, asked.pack()))
        if info.index != index:
            raise _broken(f"{info} is no answer about interrupt type {index}")
        return info

    def reset(self) -> None:
        """Reset the device; returns when it is done."""
        self._transact(wire.VFIO_USER_DEVICE_RESET)

    # Regions

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of a region (at most capabilities.max_data_xfer_size)."""
        access = wire.RegionAccess(offset, region, length)
        body = self._transact(wire.VFIO_USER_REGION_READ, access.pack())
        fixed = access.FORMAT.size
        if len(body) != fixed + length or body[:fixed] != access.pack():
            raise _broken(f"{access}: the reply is about another access, or has {len(body) - fixed} bytes of data")
        return body[fixed:]

    def region_write(self, region: int, offset: int, data: bytes, posted: bool = False, more: bool = False) -> None:
        """Write to a region.

        Args:
            posted: return at once; there is no reply, so it cannot fail here.
            more: another message follows at once; a posted write goes out with that.
        """
        access = wire.RegionAccess(offset, region, len(data)).pack()
        if posted:
            self._next_id = (self._next_id + 1) & 0xFFFF
            message = wire.request(wire.VFIO_USER_REGION_WRITE, self._next_id, access + data, wire.VFIO_USER_NO_REPLY)
            self._held_back += message
            if not more or len(self._held_back) > MAX_MESSAGE_SIZE:
                self._send(b"")
        elif self._transact(wire.VFIO_USER_REGION_WRITE, access + data) != access:
            raise _broken(f"VFIO_USER_REGION_WRITE of region {region}: the reply is about another access")

    # Memory

    def dma_map(
        self,
        iova: int,
        size: int,
        *,
        fd: int | None = None,
        offset: int = 0,
        readable: bool = True,
        writable: bool = True,
    ) -> None:
        """Let the device use [iova, iova + size), in whole pages of 4096 bytes.

        Args:
            fd: the file with that memory, from `offset` on; it stays the caller's.  None: the device asks the
                DmaHandler for every byte.
        """
        flags = readable * wire.VFIO_DMA_MAP_FLAG_READ | writable * wire.VFIO_DMA_MAP_FLAG_WRITE
        dma_map = wire.DmaMap(wire.DmaMap.FORMAT.size, flags, offset, iova, size)
        self._transact(wire.VFIO_USER_DMA_MAP, dma_map.pack(), () if fd is None else (fd,))

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a range away; when this returns, the device does not use it any more."""
        unmap = wire.DmaUnmap(wire.DmaUnmap.FORMAT.size, 0, iova, size)
        self._transact(wire.VFIO_USER_DMA_UNMAP, unmap.pack())

    def dma_unmap_all(self) -> None:
        """Take every range away."""
        unmap = wire.DmaUnmap(wire.DmaUnmap.FORMAT.size, wire.VFIO_DMA_UNMAP_FLAG_ALL, 0, 0)
        self._transact(wire.VFIO_USER_DMA_UNMAP, unmap.pack())

    # Interrupts

    def set_irqs(self, index: int, start: int, eventfds: Sequence[int]) -> None:
        """Have interrupts start, start + 1, ... of type `index` signalled by these eventfds, -1 for none.

        The eventfds stay the caller's.  As QEMU does it: a message has as many descriptors as the server takes, or
        none for interrupts that lose theirs.
        """
        limit = min(self.capabilities.max_msg_fds, MAX_MESSAGE_FDS)
        flags = wire.VFIO_IRQ_SET_DATA_EVENTFD | wire.VFIO_IRQ_SET_ACTION_TRIGGER
        sent = 0
        while sent < len(eventfds):
            end = sent + 1
            while end < len(eventfds) and end - sent < limit and (eventfds[end] < 0) == (eventfds[sent] < 0):
                end += 1
            fds = [fd for fd in eventfds[sent:end] if fd >= 0]
            self._set_irqs(flags, index, start + sent, end - sent, fds)
            sent = end

    def disable_irqs(self, index: int) -> None:
        """Take away every eventfd of a type."""
        self._set_irqs(wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0)

    def trigger_irqs(self, index: int, start: int, count: int) -> None:
        """Have the device signal interrupts."""
        self._set_irqs(wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_TRIGGER, index, start, count)

    def mask_irqs(self, index: int = wire.VFIO_PCI_INTX_IRQ_INDEX, start: int = 0, count: int = 1) -> None:
        """Hold interrupts back."""
        self._set_irqs(wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_MASK, index, start, count)

    def unmask_irqs(self, index: int = wire.VFIO_PCI_INTX_IRQ_INDEX, start: int = 0, count: int = 1) -> None:
        """Let interrupts through again: after every INTx, which masks itself."""
        self._set_irqs(wire.VFIO_IRQ_SET_DATA_NONE | wire.VFIO_IRQ_SET_ACTION_UNMASK, index, start, count)

    def _set_irqs(self, flags: int, index: int, start: int, count: int, fds: Sequence[int] = ()) -> None:
        irqs = wire.IrqSet(wire.IrqSet.FORMAT.size, flags, index, start, count)
        self._transact(wire.VFIO_USER_DEVICE_SET_IRQS, irqs.pack(), fds)

    # Messages

    def request(self, command: int, payload: bytes) -> bytes:
        """Send a request that has no method here (migration_client.py has some) and return its reply's payload."""
        return self._transact(command, payload)

    def poll(self) -> None:
        """Serve the requests of the server that have arrived; does not wait."""
        self._receive()
        while (message := self._next_message()) is not None:
            header, body = message
            if header.flags & wire.VFIO_USER_TYPE == wire.VFIO_USER_REPLY:
                raise _broken(f"{header.name} reply with id {header.id} answers no request")
            self._serve(header, body)

    def _transact(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a request, wait for its reply, return that one's payload; serve what the server asks meanwhile."""
        message_id = self._next_id = (self._next_id + 1) & 0xFFFF
        deadline = time.monotonic() + self._timeout
        self._send(wire.request(command, message_id, payload), fds)
        while True:
            while (message := self._next_message()) is None:
                self._wait(select.POLLIN, deadline, wire.COMMAND_NAMES[command])
                self._receive()
            header, body = message
            if header.flags & wire.VFIO_USER_TYPE == wire.VFIO_USER_REPLY:
                break
            self._serve(header, body)
        if (header.id, header.command) != (message_id, command):
            raise _broken(f"{header.name} reply with id {header.id}, awaited is {message_id}")
        # A request that came right behind the reply: the socket will not be readable because of it any more.
        while self._begins_with_request() and (message := self._next_message()) is not None:
            self._serve(*message)
        if header.flags & wire.VFIO_USER_ERROR:
            raise PeerError(f"{header.name} was refused: {os.strerror(header.error)}", header.error)
        return body

    def _serve(self, header: Header, body: bytes) -> None:
        try:
            answer = wire.reply(header, self._dma(header, body))
        except PeerError as error:
            answer = wire.error_reply(header, error.errno)
        if not header.flags & wire.VFIO_USER_NO_REPLY:
            self._send(answer)

    def _dma(self, header: Header, body: bytes) -> bytes:
        if self._dma_handler is None or header.command not in (wire.VFIO_USER_DMA_READ, wire.VFIO_USER_DMA_WRITE):
            raise PeerError(f"{header.name} is not served here", errno.ENOSYS)
        access = wire.DmaAccess.unpack(body)
        data = body[access.FORMAT.size :]
        if access.count > MAX_DATA_XFER_SIZE:
            raise PeerError(f"{access}: at most {MAX_DATA_XFER_SIZE} bytes at a time", errno.E2BIG)
        if header.command == wire.VFIO_USER_DMA_READ:
            return access.pack() + self._dma_handler.read(access.address, access.count)
        if len(data) != access.count:
            raise PeerError(f"{access} came with {len(data)} bytes of data")
        self._dma_handler.write(access.address, data)
        return access.pack()

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        before, self._held_back = self._held_back, b""
        if before and fds:
            self._send(before)
        else:
            message = before + message
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = 0.0
        while message:
            try:
                count = (
                    self._sock.sendmsg([message], control, socket.MSG_NOSIGNAL)
                    if control
                    else self._sock.send(message, socket.MSG_NOSIGNAL)
                )
            except BlockingIOError:
                deadline = deadline or time.monotonic() + self._timeout
                # The server may be waiting for room as well: take in what it has to say.
                self._wait(select.POLLIN | select.POLLOUT, deadline, "a message to be sent")
                self._receive()
                continue
            except ConnectionError as error:
                raise PeerError(f"the server is gone: {error.strerror}", errno.ECONNRESET) from error
            # The descriptors go with the message's first byte.
            message, control = message[count:], []

    def _wait(self, events: int, deadline: float, what: str) -> None:
        remaining = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._sock, events)
        if remaining <= 0 or not poll.poll(remaining * 1000):
            raise PeerError(f"{what}: the server does not react within {self._timeout} s", errno.ETIMEDOUT)

    def _receive(self) -> None:
        """Take in what has arrived; descriptors that came with it are dropped by the kernel."""
        if self._sock.fileno() < 0:
            raise StateError("the connection is closed")
        try:
            data = self._sock.recv(MAX_MESSAGE_SIZE)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise PeerError("the server has closed the connection", errno.ECONNRESET)
        self._received += data
        if len(self._received) > _MAX_UNREAD:
            raise _broken(f"more than {_MAX_UNREAD} bytes that nobody asked for")

    def _begins_with_request(self) -> bool:
        if len(self._received) < HEADER_SIZE:
            return False
        return Header.unpack_from(self._received).flags & wire.VFIO_USER_TYPE != wire.VFIO_USER_REPLY

    def _next_message(self) -> tuple[Header, bytes] | None:
        received = self._received
        if len(received) < HEADER_SIZE:
            return None
        header = Header.unpack_from(received)
        if not HEADER_SIZE <= header.size <= MAX_MESSAGE_SIZE or header.flags & wire.VFIO_USER_TYPE > 1:
            raise _broken(f"{header.name} message of {header.size} bytes with flags {header.flags:#x}")
        if len(received) < header.size:
            return None
        body = bytes(received[HEADER_SIZE : header.size])
        del received[: header.size]
        return header, body


def _broken(text: str) -> PeerError:
    """The server broke the protocol."""
    return PeerError(text, errno.EPROTO)


def _unpack(kind: type[_P], body: bytes) -> _P:
    try:
        return kind.unpack(body)
    except PeerError as error:
        raise _broken(str(error)) from error
