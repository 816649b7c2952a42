"""A VMM that says what a test wants it to say, byte by byte."""

from __future__ import annotations

import array
import socket

from virtserial.vfio_user import wire
from virtserial.vfio_user.negotiation import encode
from virtserial.vfio_user.wire import HEADER_SIZE, Header

VERSION = wire.request(
    wire.VFIO_USER_VERSION,
    1,
    wire.Version(wire.VFIO_USER_MAJOR_VER, wire.VFIO_USER_MINOR_VER).pack() + encode({"max_msg_fds": 16}),
)
GET_INFO = wire.request(
    wire.VFIO_USER_DEVICE_GET_INFO, 2, wire.DeviceInfo(wire.DeviceInfo.FORMAT.size, 0, 0, 0).pack()
)


def read_config(message_id, flags=0):
    """A read of the vendor and device id."""
    access = wire.RegionAccess(0, wire.VFIO_PCI_CONFIG_REGION_INDEX, 4)
    return wire.request(wire.VFIO_USER_REGION_READ, message_id, access.pack(), flags)


class RawVmm:
    """A connection to a vfio-user server."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data, fds=()):
        """Send bytes, the descriptors with the first of them."""
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        count = self.socket.sendmsg([data], control)
        self.socket.sendall(data[count:])

    def reply(self):
        """The next message's header and payload."""
        header = Header.unpack_from(self._exactly(HEADER_SIZE))
        return header, self._exactly(header.size - HEADER_SIZE)

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "the server has closed the connection"
            data += piece
        return data

    def closed_by_server(self):
        """Wait for the end of the stream; bytes before it are dropped."""
        while self.socket.recv(65536):
            pass
        return True
