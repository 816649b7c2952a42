"""The front end's half of the protocol: requests to a back end, one after the other, each with its reply."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Final

from virtserial.closing import received_descriptors
from virtserial.errors import PeerError
from virtserial.vhost_user import wire
from virtserial.vhost_user.wire import HEADER_SIZE, VringState
from virtserial.virtio.features import VIRTIO_F_RING_PACKED
from virtserial.virtio.ring.packed.layout import START

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from virtserial.vhost_user.wire import MemoryRegion

_KNOWN: Final = (
    wire.VHOST_USER_PROTOCOL_F_MQ
    | wire.VHOST_USER_PROTOCOL_F_REPLY_ACK
    | wire.VHOST_USER_PROTOCOL_F_BACKEND_REQ
    | wire.VHOST_USER_PROTOCOL_F_CONFIG
    | wire.VHOST_USER_PROTOCOL_F_RESET_DEVICE
    | wire.VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | wire.VHOST_USER_PROTOCOL_F_LOG_SHMFD
    | wire.VHOST_USER_PROTOCOL_F_STATUS
    | wire.VHOST_USER_PROTOCOL_F_DEVICE_STATE
)


def new_base(features: int) -> int:
    """What SET_VRING_BASE says of a ring that was never used; a packed one has two positions."""
    return START << 16 | START if features & VIRTIO_F_RING_PACKED else 0


class FrontEnd:
    """A connection to a back end.

    Args:
        path_or_socket: where it listens, or a connected socket, owned from here on.
        timeout: seconds to wait for any reply.
        protocol_features: what to use of what it offers.

    Attributes:
        protocol_features: what was agreed.

    Raises:
        OSError: nobody listens there.
        PeerError: the back end breaks the protocol, or has no protocol features.
    """

    def __init__(
        self,
        path_or_socket: str | os.PathLike[str] | socket.socket,
        timeout: float = 5.0,
        protocol_features: int = _KNOWN,
    ) -> None:
        if isinstance(path_or_socket, socket.socket):
            self._sock = path_or_socket
        else:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._sock.connect(os.fspath(path_or_socket))
            except BaseException:
                self._sock.close()
                raise
        self._sock.settimeout(timeout)
        self.protocol_features = 0
        try:
            self.send(wire.VHOST_USER_SET_OWNER)
            if not self.get(wire.VHOST_USER_GET_FEATURES) & wire.VHOST_USER_F_PROTOCOL_FEATURES:
                raise PeerError("back end: it has no protocol features")
            offered = self.get(wire.VHOST_USER_GET_PROTOCOL_FEATURES)
            self.set(wire.VHOST_USER_SET_PROTOCOL_FEATURES, wire.U64.pack(offered & protocol_features))
            self.protocol_features = offered & protocol_features
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when the back end is gone."""
        return self._sock.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    # Requests

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send a request and wait for nothing.

        Raises:
            PeerError: the back end is gone, or does not read.
        """
        try:
            data = wire.message(request, payload, flags)
            sent = socket.send_fds(self._sock, [data], list(fds)) if fds else self._sock.send(data)
            self._sock.sendall(data[sent:])
        except OSError as error:
            raise PeerError(f"back end: {error.strerror or error}", error.errno or errno.ETIMEDOUT) from error

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> bytes:
        """Send a request and return the payload of its reply.

        Raises:
            PeerError: there is none in time, or it is another's.
        """
        self.send(request, payload, fds, flags)
        header = wire.unpack_header(self._receive(HEADER_SIZE))
        if header.request != request or header.flags & ~wire.NEED_REPLY != wire.VERSION | wire.REPLY:
            raise PeerError(f"back end: {header} in answer to {wire.REQUEST_NAMES.get(request, request)}")
        if header.size > wire.MAX_PAYLOAD:
            raise PeerError(f"back end: {header} is too large")
        return self._receive(header.size)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece, ancillary, _, _ = self._sock.recvmsg(size - len(data), socket.CMSG_SPACE(4))
            except OSError as error:
                raise PeerError(f"back end: {error.strerror or error}", error.errno or errno.ETIMEDOUT) from error
            for fd in received_descriptors(ancillary):
                os.close(fd)
            if not piece:
                raise PeerError("back end: it has closed the connection", errno.ECONNRESET)
            data += piece
        return data

    def get(self, request: int) -> int:
        """Ask for a number."""
        return wire.unpack_u64(self.ask(request))

    def set(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request without a reply of its own; with REPLY_ACK wait until the back end has applied it.

        Raises:
            PeerError: it refuses, or is gone.
        """
        if not self.protocol_features & wire.VHOST_USER_PROTOCOL_F_REPLY_ACK:
            self.send(request, payload, fds)
        elif wire.unpack_u64(self.ask(request, payload, fds, wire.NEED_REPLY)):
            raise PeerError(f"back end: it refuses {wire.REQUEST_NAMES.get(request, request)}")

    # In the protocol's words

    def add_region(self, region: MemoryRegion, fd: int) -> None:
        """ADD_MEM_REG; the descriptor stays the caller's."""
        self.set(wire.VHOST_USER_ADD_MEM_REG, wire.SLOT_PADDING + wire.pack(region), [fd])

    def remove_region(self, region: MemoryRegion) -> None:
        """REM_MEM_REG."""
        self.set(wire.VHOST_USER_REM_MEM_REG, wire.SLOT_PADDING + wire.pack(region))

    def set_table(self, regions: Sequence[MemoryRegion], fds: Sequence[int]) -> None:
        """SET_MEM_TABLE; the descriptors stay the caller's."""
        table = wire.TABLE.pack(len(regions), 0) + b"".join(map(wire.pack, regions))
        self.set(wire.VHOST_USER_SET_MEM_TABLE, table, fds)

    def set_vring(self, request: int, index: int, number: int) -> None:
        """SET_VRING_NUM, SET_VRING_BASE or SET_VRING_ENABLE."""
        self.set(request, wire.pack(VringState(index, number)))

    def set_vring_descriptor(self, request: int, index: int, fd: int) -> None:
        """SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR; the descriptor stays the caller's, -1: none.

        A queue behind the 256th needs one (wire.VRING_NO_DESCRIPTOR).
        """
        number = index if fd >= 0 else index | wire.VRING_NO_DESCRIPTOR
        self.set(request, wire.U64.pack(number), [fd] if fd >= 0 else [])

    def stop_vring(self, index: int) -> int:
        """GET_VRING_BASE: stop a ring; return its position."""
        reply = self.ask(wire.VHOST_USER_GET_VRING_BASE, wire.pack(VringState(index, 0)))
        state = wire.unpack(VringState, reply)
        if state.queue != index:
            raise PeerError(f"back end: the position of queue {state.queue} in the place of {index}")
        return state.num

    def get_config(self, offset: int, length: int) -> bytes:
        """GET_CONFIG: bytes of the configuration."""
        header = wire.CONFIG.pack(offset, length, 0)
        reply = self.ask(wire.VHOST_USER_GET_CONFIG, header + bytes(length))
        if len(reply) != len(header) + length or reply[: len(header)] != header:
            raise PeerError(f"back end: {len(reply)} bytes in answer to {length} of the configuration")
        return reply[len(header) :]

    def set_config(self, offset: int, data: bytes) -> None:
        """SET_CONFIG, as for a write of the driver."""
        self.set(wire.VHOST_USER_SET_CONFIG, wire.CONFIG.pack(offset, len(data), 0) + data)
