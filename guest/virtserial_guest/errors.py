"""What can go wrong on a port, beside the OSErrors that open(2), read(2) and write(2) have themselves."""

from __future__ import annotations


class PortError(Exception):
    """The root: everything this package raises on purpose."""


class NoSuchPort(PortError):
    """No port has that name or path."""


class PortRemoved(PortError):
    """The port was unplugged while it was open (ENODEV); close it."""


class PeerAway(PortError):
    """The other end is not connected, so that what is written would be lost.

    Attributes:
        written: how many bytes of the call had been taken before.
    """

    def __init__(self, message: str, written: int = 0) -> None:
        super().__init__(message)
        self.written = written


class ProtocolError(PortError):
    """The other end does not speak the protocol, or not the part of it that fits ours."""


class TransferFailed(PortError):
    """Files could not be sent or received; the text says which and why."""
