"""A client of a port's host socket, and what a test asks of it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import hashlib
import socket
import termios
import threading
import time

from support.waiting import wait_until


class HostEnd:
    """One connection to a port's unix socket; every wait has an end."""

    def __init__(self, path, timeout=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        wait_until(lambda: self._connected(path), complaint=f"{path} takes no connection")

    def _connected(self, path):
        try:
            self.socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def send(self, data):
        self.socket.sendall(data)

    def receive(self, count):
        """Exactly `count` bytes, or fewer at the end of the connection."""
        received = bytearray()
        while len(received) < count and (data := self.socket.recv(min(count - len(received), 1 << 18))):
            received += data
        return bytes(received)

    def receive_until(self, wanted, seconds=90):
        """Everything up to and with `wanted`."""
        received = bytearray()
        deadline = time.monotonic() + seconds
        while wanted not in received:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                data = b""
            assert data, f"no {wanted!r} came in {seconds} s, only {bytes(received[-2000:])!r}"
            received += data
        return bytes(received)

    def receive_some(self, seconds):
        """What comes next, b"" after so many seconds."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1 << 16)
        except TimeoutError:
            return b""
        finally:
            self.socket.settimeout(60)

    def silent(self, seconds=0.3):
        """Whether nothing comes in that time."""
        self.socket.settimeout(seconds)
        try:
            return not self.socket.recv(1)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(60)

    def wait_sent(self):
        """Waits until the device has taken all that was sent from the socket (SIOCOUTQ)."""
        wait_until(lambda: self._unsent() == 0, complaint="the device did not take what was sent")

    def _unsent(self):
        count = array.array("i", [0])
        fcntl.ioctl(self.socket.fileno(), termios.TIOCOUTQ, count)
        return count[0]

    def shut(self):
        """Ends the connection under whoever waits in it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.socket.close()


class HostTransfer:
    """Bytes both ways over one host end at once, each direction in a thread, hashed as they pass."""

    def __init__(self, end, block, repeat, expected):
        self._end = end
        self._threads = [
            threading.Thread(target=self._send, args=(block, repeat)),
            threading.Thread(target=self._receive, args=(expected,)),
        ]
        self.received_sha1 = ""
        self.sent_sha1 = ""
        for thread in self._threads:
            thread.start()

    def _send(self, block, repeat):
        digest = hashlib.sha1()
        try:
            for _ in range(repeat):
                self._end.send(block)
                digest.update(block)
        except OSError as error:
            self.sent_sha1 = f"failed: {error!r}"
        else:
            self.sent_sha1 = digest.hexdigest()

    def _receive(self, expected):
        digest = hashlib.sha1()
        count = 0
        try:
            while count < expected and (data := self._end.socket.recv(min(expected - count, 1 << 18))):
                digest.update(data)
                count += len(data)
        except OSError as error:
            self.received_sha1 = f"failed after {count} bytes: {error!r}"
        else:
            self.received_sha1 = digest.hexdigest() if count == expected else f"only {count} bytes came"

    def join(self):
        for thread in self._threads:
            thread.join()
