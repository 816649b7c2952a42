"""Closing descriptors that others passed to us."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct

NO_LINGER = struct.pack("ii", 0, 0)


def close_foreign(fd: int) -> None:
    """Close a descriptor that came by SCM_RIGHTS, without waiting.

    The last close of a TCP socket whose owner has set SO_LINGER blocks until its bytes are acknowledged or its owner's
    time is over, also if the socket is non-blocking (tcp_close in net/ipv4/tcp.c).
    """
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            foreign = socket.socket(fileno=fd)
            try:
                foreign.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            finally:
                foreign.detach()
    os.close(fd)
