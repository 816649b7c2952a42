"""virtio-serial ports from inside a guest: find them, open them, talk over them.

    from virtserial_guest import open_port
    with open_port("org.example.port.0") as port:
        port.wait_connected()
        port.write(b"hello, host\\n")
        print(port.readline())

Pure standard library, Python 3.8 or newer; the folder may be copied into a guest or a program as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import NoSuchPort, PeerAway, PortError, PortRemoved, ProtocolError, TransferFailed
from .ports import Port, find_port, list_ports, open_port, wait_for_port
from .stream import PortStream

if TYPE_CHECKING:
    from .aio import AsyncStream

__version__ = "0.2.0"
__all__ = [
    "AsyncStream",
    "NoSuchPort",
    "PeerAway",
    "Port",
    "PortError",
    "PortRemoved",
    "PortStream",
    "ProtocolError",
    "TransferFailed",
    "find_port",
    "list_ports",
    "open_port",
    "wait_for_port",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import asyncio only on use: it takes longer than the rest of the package."""
    if name == "AsyncStream":
        from .aio import AsyncStream

        return AsyncStream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
