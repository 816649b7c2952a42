"""Every error of this package; open(2), read(2) and write(2) raise their OSErrors beside these.

PortError
+- NoSuchPort        no port has that name or path.
+- PortRemoved       the port was unplugged while it was open.
+- PeerAway          the other end is not connected.
+- ProtocolError     the other end broke the protocol of a program (send, receive, log).
+- NoPartner         nobody answered in time.
+- TransferFailed    files could not be sent or received.
+- RecordingError    a file is no recording.
"""

from __future__ import annotations


class PortError(Exception):
    """The root of all errors that this package raises on purpose."""


class NoSuchPort(PortError):
    """No port has that name or path."""


class PortRemoved(PortError):
    """The port was unplugged while it was open (ENODEV); close it."""


class PeerAway(PortError):
    """The other end is not connected: bytes written now would be lost.

    Attributes:
        written: how many bytes of the call the port took before.
    """

    def __init__(self, message: str, written: int = 0) -> None:
        super().__init__(message)
        self.written = written


class ProtocolError(PortError):
    """The other end does not speak the protocol, or plays the wrong part in it."""


class NoPartner(PortError):
    """Nobody answered in the time that was given."""


class TransferFailed(PortError):
    """Files could not be sent or received; the text says which and why."""
