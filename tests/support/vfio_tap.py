"""Between a VMM and our device on a vfio-user socket: counts and records messages, and cuts the VMM off at one."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading

from virtserial.vfio_user import wire
from virtserial.vfio_user.wire import HEADER_SIZE, Header

MAX_FDS = 64


class Message:
    """A message of the VMM's, with duplicates of its descriptors."""

    def __init__(self, data, fds):
        self.data, self.fds = data, fds
        header = Header.unpack_from(data)
        self.wants_reply = not header.flags & (wire.VFIO_USER_REPLY | wire.VFIO_USER_NO_REPLY)


class Tap(threading.Thread):
    """Passes one VMM's connection on to the device.

    Args:
        path: where the VMM connects.
        device: the device's socket.
        last: the number of the message that is the VMM's last; None: there is no last one.
        part: how many bytes of it the device still gets.
        kill: called at that message, before the device notices anything.

    Attributes:
        messages: the VMM's, if there is no last one.
        count: how many came.
    """

    def __init__(self, path, device, last=None, part=0, kill=lambda: None):
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._device_path = device
        self._last, self._part, self._kill = last, part, kill
        self.messages = []
        self.count = 0
        self.start()

    def run(self):
        with contextlib.suppress(OSError):
            self._vmm, _ = self._listener.accept()
            self._device = socket.socket(socket.AF_UNIX)
            self._device.connect(self._device_path)
            threading.Thread(target=self._pass_back, daemon=True).start()
            self._pass_on()

    def _pass_on(self):
        while (received := receive(self._vmm)) is not None:
            self.count += 1
            data, fds = received
            if self.count == self._last:
                self._kill()
                send(self._device, data[: self._part], fds)
            else:
                send(self._device, data, fds)
            if self._last is None:
                self.messages.append(Message(data, fds))
            else:
                close_all(fds)
            if self.count == self._last:
                break
        self.close()

    def _pass_back(self):
        with contextlib.suppress(OSError):
            while data := self._device.recv(65536):
                self._vmm.sendall(data)
        # A device that has had enough of its VMM.
        with contextlib.suppress(OSError):
            self._vmm.shutdown(socket.SHUT_WR)

    def close(self):
        """End both connections, as the kernel does for a killed VMM."""
        for one in (self._listener, getattr(self, "_vmm", None), getattr(self, "_device", None)):
            if one is not None:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()


def receive(connection, header_size=HEADER_SIZE, whole_size=lambda header: Header.unpack_from(header).size):
    """One message and its descriptors; None at the end."""
    data, fds = b"", []
    size = header_size
    while len(data) < size:
        try:
            piece, ancillary, _, _ = connection.recvmsg(size - len(data), socket.CMSG_SPACE(4 * MAX_FDS))
        except OSError:
            piece, ancillary = b"", []
        for _, _, payload in ancillary:
            fds += array.array("i", payload[: len(payload) & ~3])
        if not piece:
            close_all(fds)
            return None
        data += piece
        if len(data) == header_size:
            size = whole_size(data)
    return data, fds


def send(connection, data, fds):
    """Send bytes, the descriptors with the first of them."""
    if data:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        count = connection.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        connection.sendall(data[count:])


def close_all(fds):
    for fd in fds:
        os.close(fd)


def replay(device, messages, part):
    """Be a VMM that sends these messages, waits for its replies as QEMU does, and is gone within the next one.

    Args:
        part: how many bytes of the last message are sent.
    """
    *whole, last = messages
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(device)
        for message in whole:
            send(connection, message.data, message.fds)
            while message.wants_reply:
                header = Header.unpack_from(exactly(connection, HEADER_SIZE))
                exactly(connection, header.size - HEADER_SIZE)
                if header.flags & wire.VFIO_USER_REPLY:
                    break
        send(connection, last.data[:part], last.fds)


def exactly(connection, count):
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the device has closed the connection"
        data += piece
    return data
