"""One /dev/cuse: a character device while it is open; requests are read from it, replies written to it.

The data of a write(2) goes from the kernel straight into the port's DMA buffers, that of a read(2) straight out of
them: the system call that brings a request scatters, the one that answers gathers.
"""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Final

from virtserial.driver.cuse_wire import (
    CUSE_INIT,
    FUSE_KERNEL_VERSION,
    FUSE_WRITE,
    HEAD_SIZE,
    INIT_IN,
    MAX_REQUEST_DATA,
    OLDEST_MINOR_VERSION,
    Request,
    init_reply,
    poll_wakeup,
    reply_header,
)
from virtserial.errors import ConfigError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    from virtserial.driver.cuse_node import CuseNode
    from virtserial.loop import EventLoop

CUSE: Final = Path("/dev/cuse")
CLASS: Final = Path("/sys/class/cuse")
INIT_SECONDS: Final = 5.0
TURN_REQUESTS: Final = 32
"""The most requests that one turn serves."""
_NOBODY_WAITS: Final = (errno.ENOENT, errno.ENOTCONN, errno.ENODEV)


def cuse_available() -> bool:
    """Whether this process may make character devices."""
    return os.access(CUSE, os.R_OK | os.W_OK)


class CuseChannel:
    """A character device and its requests; `serve` starts to serve them, `close` removes the device.

    Args:
        name: of the device and its node in /dev.

    Raises:
        ConfigError: /dev/cuse is missing or not accessible, or the name is taken.
    """

    def __init__(self, loop: EventLoop, name: str) -> None:
        self._loop = loop
        self._node: CuseNode | None = None
        self._head = memoryview(bytearray(HEAD_SIZE))
        self._spare = memoryview(bytearray(MAX_REQUEST_DATA))
        try:
            self._fd = os.open(CUSE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError(f"{CUSE}: {error.strerror}") from error
        try:
            self.device = self._create(name)
        except BaseException:
            os.close(self._fd)
            raise

    def _create(self, name: str) -> int:
        """Answer the kernel's first request; return the device's number."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(INIT_SECONDS * 1000)
        request = Request.parse(os.read(self._fd, HEAD_SIZE + MAX_REQUEST_DATA))
        if request is None or request.opcode != CUSE_INIT or len(request.body) < INIT_IN.size:
            raise ConfigError(f"{CUSE}: the kernel does not begin with CUSE_INIT")
        major, minor, *_ = INIT_IN.unpack_from(request.body)
        if major != FUSE_KERNEL_VERSION or minor < OLDEST_MINOR_VERSION:
            known = f"{FUSE_KERNEL_VERSION}.{OLDEST_MINOR_VERSION}"
            raise ConfigError(f"{CUSE}: the kernel speaks version {major}.{minor}, known is {known} and up")
        self.reply(request.unique, init_reply(minor, name))
        try:
            major_number, _, minor_number = (CLASS / name / "dev").read_text().partition(":")
            return os.makedev(int(major_number), int(minor_number))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{CUSE}: the kernel makes no device {name} (is there one of that name?)") from error

    def serve(self, node: CuseNode) -> None:
        """Pass requests to `node` from now on."""
        self._node = node
        self._loop.watch(self._fd, EPOLLIN, self._ready)

    def close(self) -> None:
        """Remove the device; programs that have it open get errors.  A second call does nothing."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1

    # Requests

    def _ready(self, _events: int) -> None:
        for _ in range(TURN_REQUESTS):
            if self._fd < 0 or not self._serve_one():
                return

    def _serve_one(self) -> bool:
        """Read a request and pass it to the node; False if none waits."""
        node = self._node
        assert node is not None
        lent = node.lend()
        try:
            count = os.readv(self._fd, [self._head, *lent, self._spare])
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: its caller was killed meanwhile.
                return True
            self.close()
            return False
        request = Request.parse(bytes(self._head[:count]))
        if request is None:
            return True
        in_place = request.opcode == FUSE_WRITE and bool(lent)
        node.handle(request, None if in_place else self._spare[: max(count - HEAD_SIZE, 0)], sum(map(len, lent)))
        return True

    # RequestChannel

    def reply(self, unique: int, *payload: bytes | memoryview) -> bool:
        """Answer a request; False if its caller no longer waits."""
        return self._send([reply_header(unique, 0, sum(map(len, payload))), *payload])

    def refuse(self, unique: int, error: int) -> None:
        """Answer a request by an errno."""
        self._send([reply_header(unique, error, 0)])

    def wake(self, handle: int) -> None:
        """Make the kernel poll an open file again."""
        self._send([poll_wakeup(handle)])

    def _send(self, parts: list[bytes | memoryview]) -> bool:
        if self._fd < 0:
            return False
        try:
            os.writev(self._fd, parts)
        except OSError as error:
            if error.errno not in _NOBODY_WAITS:
                raise
            return False
        return True
