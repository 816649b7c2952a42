"""What a command line says of a machine that arrives; small, because every machine's start reads it."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, NamedTuple

OBJECT: Final = "virtserial-state"
"""The id of the dbus-vmstate object in QEMU."""
HELPER: Final = "virtserial"
"""What our state is called in QEMU's stream."""
SOCKET: Final = "state.sock"
_CREDENTIALS: Final = struct.Struct("3i")


class StartOfMachine(NamedTuple):
    """
    Attributes:
        is_incoming: QEMU waits for a stream (-incoming), or reads a snapshot first (-loadvm); it has -S and our object.
        by_stream: it is a stream.
        autostart: whether the guest shall run then.
        qemu_pid: QEMU's process, None if it is not known.
        take_hosts_from: the run directory of the virtserial-qemu whose host ends are taken.
    """

    is_incoming: bool = False
    by_stream: bool = False
    autostart: bool = True
    qemu_pid: int | None = None
    take_hosts_from: str | None = None


def bus_path(run_directory: str) -> str:
    """Where the bus of the saved state listens."""
    return os.path.join(run_directory, SOCKET)


def object_properties(run_directory: str) -> dict[str, object]:
    """The dbus-vmstate object, as object-add takes it."""
    address = f"unix:path={bus_path(run_directory)}"
    return {"qom-type": "dbus-vmstate", "id": OBJECT, "addr": address, "id-list": HELPER}


def peer_of(stream: socket.socket) -> tuple[int, int]:
    """The process id and user id of who made the other end of a unix socket (SO_PEERCRED)."""
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(pid), int(uid)
