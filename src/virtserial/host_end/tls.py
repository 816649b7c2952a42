"""TLS on a chardev socket (`tls-creds=`), by the standard ssl module without a socket of its own."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

from virtserial.channel.connections import Tls
from virtserial.channel.tls_context import make_context, reason_of
from virtserial.errors import PeerError
from virtserial.host_end.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.channel.connections import TlsFiles
    from virtserial.host_end.layer import Buffer

MAX_HANDSHAKE = 256 << 10
"""Bytes: OpenSSL accepts certificate lists up to 100 KiB."""
READ_SIZE = 64 << 10
HEADER_SIZE = 5
"""Of a record: its type, a version, and the length of what follows, 16 bits each but the type."""
RECORDS = 16
"""Handled in one call of `received`: a key update (TLS 1.3) takes 0.1 ms, and 64 KiB hold 2,400."""


_contexts: dict[Tls, ssl.SSLContext] = {}
"""By what a connection asks for, its hostname "" for any."""


def _any_host(layer: Tls) -> Tls:
    return layer if layer.hostname is None else Tls(layer.files, "")


def prepare_contexts(files: TlsFiles, fds: Sequence[int]) -> None:
    """Make the contexts that connections with these credentials will need, while their files can still be opened.

    Raises:
        BackendError: see `make_context`.
    """
    "host.example".encode("idna")  # The codec is imported with its first use.
    _contexts[Tls(files, None)] = make_context(files, fds, check_hostname=False)
    if not files.server:
        _contexts[Tls(files, "")] = make_context(files, fds, check_hostname=True)


def context_of(layer: Tls, fds: Sequence[int]) -> ssl.SSLContext:
    """The context of a connection: one that was prepared, else a new one.

    Raises:
        BackendError: see `make_context`.
    """
    return _contexts.get(_any_host(layer)) or make_context(
        layer.files, fds, check_hostname=layer.hostname is not None
    )


class TlsLayer(Layer):
    """
    Args:
        hostname: what a server's certificate must be for; None: any that the CA has signed.
    """

    def __init__(self, context: ssl.SSLContext, *, server: bool, hostname: str | None = None) -> None:
        super().__init__()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server, hostname)
        self._handshake_size = 0
        self._raw = bytearray()
        self._left_of_record = 0

    def begin(self) -> None:
        self._shake_hands()

    def received(self, data: bytes) -> bytes:
        self._raw += data
        size = self._size_of_records()
        self._incoming.write(self._raw[:size])
        del self._raw[:size]
        if not self.established:
            self._handshake_size += size
            if self._handshake_size > MAX_HANDSHAKE:
                raise PeerError(f"TLS handshake: longer than {MAX_HANDSHAKE} bytes")
            self._shake_hands()
            if not self.established:
                return b""
        payload = bytearray()
        try:
            while data := self._session.read(READ_SIZE):
                payload += data
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._take_outgoing()
            if not payload:
                raise PeerError(f"TLS: {reason_of(error)}") from error
            self.ended = True  # What came before the error is authentic.
        self._take_outgoing()
        return bytes(payload)

    def _size_of_records(self) -> int:
        """Return how many of the waiting bytes belong to the next RECORDS records."""
        raw, size = self._raw, 0
        self.pending = False
        for _ in range(RECORDS):
            part = min(self._left_of_record, len(raw) - size)
            size += part
            self._left_of_record -= part
            if self._left_of_record or len(raw) - size < HEADER_SIZE:
                return size
            self._left_of_record = HEADER_SIZE + int.from_bytes(raw[size + 3 : size + HEADER_SIZE], "big")
        self.pending = True
        return size

    def _shake_hands(self) -> None:
        try:
            self._session.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLError, ValueError) as error:
            self._take_outgoing()
            raise PeerError(f"TLS handshake: {reason_of(error)}") from error
        self._take_outgoing()

    def _take_outgoing(self) -> None:
        self.answers += self._outgoing.read()

    def sent(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        # One record for many small buffers.
        if payload := b"".join(buffers):
            self._session.write(payload)
        return [self._outgoing.read()]

    def finish(self) -> None:
        # It wants the peer's close_notify, or there was no handshake.
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._session.unwrap()
        self._take_outgoing()
