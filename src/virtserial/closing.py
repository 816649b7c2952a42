"""Descriptors that others pass to us (SCM_RIGHTS): refusing them, and closing them without waiting.

The last close of a TCP socket whose owner has set SO_LINGER blocks until its peer has taken all bytes or the owner's
time is over, also if the socket is non-blocking (tcp_close in net/ipv4/tcp.c).  The kernel closes passed descriptors
itself where a read does not ask for them, and where a socket closes with unread bytes: so a peer could hold us.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import struct

MAX_RIGHTS = 253
"""Descriptors of one message (SCM_MAX_FD in include/net/scm.h)."""
_SO_PASSRIGHTS = 83
_NO_LINGER = struct.pack("ii", 0, 0)


def pass_descriptors(unix_socket: socket.socket, allowed: bool) -> None:
    """Let peers pass descriptors over a UNIX socket, or refuse them (EPERM); accepted sockets inherit it.

    Before Linux 6.16 nobody can refuse them.
    """
    with contextlib.suppress(OSError):
        unix_socket.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, int(allowed))


def received_descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg returned; they are the caller's."""
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return fds.tolist()


def stop_lingering(fd: int) -> None:
    """Let no close of a passed descriptor, nor of its duplicates, wait."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            foreign = socket.socket(fileno=fd)
            try:
                foreign.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            finally:
                foreign.detach()


def close_foreign(fd: int) -> None:
    """Close a descriptor that was passed to us."""
    stop_lingering(fd)
    os.close(fd)


def drain(unix_socket: socket.socket, reads: int) -> None:
    """Before a non-blocking socket closes: receive no more, and close what was passed and not read."""
    with contextlib.suppress(OSError):
        unix_socket.shutdown(socket.SHUT_RD)
        for _ in range(reads):
            data, ancillary, _, _ = unix_socket.recvmsg(1 << 16, socket.CMSG_SPACE(4 * MAX_RIGHTS))
            for fd in received_descriptors(ancillary):
                close_foreign(fd)
            if not data:
                break
