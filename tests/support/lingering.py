"""A socket whose last close waits."""

from __future__ import annotations

import contextlib
import socket
import struct

SECONDS = 60


@contextlib.contextmanager
def lingering_socket():
    """A TCP socket whose last close waits a minute for its peer, who reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lingering = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with lingering, peer:
        lingering.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lingering.send(bytes(1 << 16))
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, SECONDS))
        yield lingering
