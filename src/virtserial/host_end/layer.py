"""What stands between a port's bytes and a socket's: telnet, websocket, TLS.  No layer knows a socket or a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | memoryview


class Layer:
    """One protocol of a connection.

    Attributes:
        established: its handshake is over, payload may pass.
        ended: the peer has said that no more payload will come.
        pending: `received` stopped at its budget: call it again, with b"" or with more, in another turn.
        answers: what the layer has to say by itself (a handshake, a pong); whoever calls it takes this afterwards.
    """

    def __init__(self) -> None:
        self.established = False
        self.ended = False
        self.pending = False
        self.answers = bytearray()

    def begin(self) -> None:
        """The layer below is established: say what comes first."""

    def received(self, data: bytes) -> bytes:
        """Take what the peer has sent, in pieces of any size; returns the payload in it.

        Raises:
            PeerError: the peer broke the protocol, or was too long about it; `answers` may have a last word for it.
        """
        raise NotImplementedError

    def sent(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Return what is to be sent for this payload."""
        raise NotImplementedError

    def farewell(self) -> None:
        """Say that nothing more will come."""
