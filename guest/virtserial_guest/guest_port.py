"""A port in a Linux guest: /dev/vportNpM of the kernel's driver, or of a user-space driver with the same contract."""

from __future__ import annotations

import errno
import os
import select
import stat
from typing import Sequence

from .errors import PortRemoved
from .stream import READ_SIZE, Buffer, EpollStream

MAX_BUFFERS = 64
KEPT_WHILE_AWAY = 1 << 20


class GuestPort(EpollStream):
    """An open port; Linux lets one process open it at a time.

    Closing it discards unread bytes of the host; written bytes are still delivered.
    `connected` misses a host that disconnects and reconnects before this process wakes.
    """

    def __init__(self, path: str) -> None:
        """Open the port.

        Args:
            path: its device, such as /dev/vport0p1 or /dev/virtio-ports/NAME.

        Raises:
            OSError: EBUSY if another program has it open, ENXIO for a console's and for a socket, ENOENT, EACCES.
        """
        super().__init__()
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            self._epoll.register(self._fd, self.EDGES)
        except OSError as error:
            self.close()
            if error.errno == errno.ENXIO and stat.S_ISSOCK(os.stat(path).st_mode):
                hint = "a socket, no device: use virtserial.HostStream('unix:PATH') or `virtserial send unix:PATH`"
                raise OSError(error.errno, hint, path) from None
            raise
        self._state = select.poll()
        self._state.register(self._fd, 0)

    @property
    def connected(self) -> bool:
        """Whether the host is connected; False after an unplug."""
        return not self._state.poll(0)

    def receive(self, limit: int = READ_SIZE) -> bytes | None:
        """See PortStream.receive."""
        try:
            return os.read(self._fd, limit)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._translated(error) from error

    def send(self, buffers: Sequence[Buffer]) -> int:
        """See PortStream.send; Linux takes 32 KiB of a buffer in one call."""
        try:
            return os.writev(self._fd, buffers[:MAX_BUFFERS])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._translated(error) from error

    def probe(self) -> None:
        """See PortStream.probe: only a read tells an unplugged port from one without a host."""
        if len(self._received) < KEPT_WHILE_AWAY:
            self._received += self.receive() or b""

    def close(self) -> None:
        """See PortStream.close."""
        super().close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _translated(self, error: OSError) -> Exception:
        if error.errno == errno.ENODEV:
            return PortRemoved(f"{self.path} was unplugged")
        return error
