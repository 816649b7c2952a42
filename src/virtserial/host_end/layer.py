"""A protocol between a port's bytes and a socket's: telnet, websocket, TLS.  A layer knows no socket and no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | memoryview


class Layer:
    """One protocol of a connection.

    Attributes:
        established: its handshake is done, payload can pass.
        ended: the peer has said that no more payload will come.
        pending: `received` stopped at its budget: call it again, with b"" or with more, in another turn.
        answers: what the layer itself sends (handshake, pong); the caller takes it after each call.
    """

    def __init__(self) -> None:
        self.established = False
        self.ended = False
        self.pending = False
        self.answers = bytearray()

    def begin(self) -> None:
        """Start: the layer below is established."""

    def received(self, data: bytes) -> bytes:
        """Take what the peer has sent, in pieces of any size; returns the payload in it.

        Raises:
            PeerError: the peer broke the protocol or a limit; `answers` may hold a last message.
        """
        raise NotImplementedError

    def sent(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """Return what is to be sent for this payload."""
        raise NotImplementedError

    def finish(self) -> None:
        """Tell the peer that nothing more will come."""
