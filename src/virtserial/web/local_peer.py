"""Which user of this machine is at the other end of a connection.

A UNIX socket knows it.  For TCP over the loopback interface the kernel lists it in /proc/net/tcp, but only for a
connection that is established: one whose process has closed it belongs to nobody, and is listed as root's.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ESTABLISHED = "01"
_CREDENTIALS = struct.Struct("3i")


def uid_of_peer(connection: socket.socket) -> int | None:
    """The number of the user at the other end; None if it is elsewhere, or there is no telling."""
    try:
        if connection.family == socket.AF_UNIX:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(credentials)[1])
        ours, theirs = connection.getsockname(), connection.getpeername()
        if not ipaddress.ip_address(theirs[0]).is_loopback:
            return None
        table = "/proc/net/tcp6" if connection.family == socket.AF_INET6 else "/proc/net/tcp"
        with open(table, encoding="ascii") as file:
            return _uid_in(file, _hexadecimal(theirs), _hexadecimal(ours))
    except (OSError, ValueError):
        return None


def _uid_in(lines: Iterable[str], local: str, remote: str) -> int | None:
    """The user of an established socket in the kernel's table."""
    for line in lines:
        fields = line.split()
        # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
        if fields[1:4] == [local, remote, ESTABLISHED] and fields[9] != "0":
            return int(fields[7])
    return None


def _hexadecimal(address: tuple[str, int]) -> str:
    """An address as the table has it: 32-bit words in the machine's order, then the port."""
    packed = ipaddress.ip_address(address[0]).packed
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{text}:{address[1]:04X}"
