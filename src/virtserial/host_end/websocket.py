"""The server's side of a WebSocket (RFC 6455) as a chardev socket speaks it with `websocket=on`: a stream of bytes."""

from __future__ import annotations

import binascii
import struct
from typing import TYPE_CHECKING

from virtserial.errors import PeerError
from virtserial.host_end.layer import Layer

# hashlib reads OpenSSL, 4 ms and 0.5 MiB of each process, for one key of each client.
try:
    from _sha1 import sha1  # type: ignore[import-not-found]
except ImportError:
    from hashlib import sha1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.host_end.layer import Buffer

MAX_REQUEST = 8192
"""Bytes: QEMU takes 4096, a browser behind a proxy may send more than that in cookies."""
ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PROTOCOL = "binary"
"""The subprotocol that QEMU speaks."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FINAL, MASKED = 0x80, 0x80
MAX_CONTROL = 125
FRAMES = 128
"""Handled in one call of `received`: 64 KiB of empty frames would take 70 ms."""
GOING_AWAY, PROTOCOL_ERROR = 1001, 1002


class WebSocketLayer(Layer):
    """The payload of text and binary messages is input, without their boundaries; output is binary."""

    def __init__(self) -> None:
        super().__init__()
        self._received = bytearray()
        self._opcode = 0
        self._remaining = 0
        self._mask = b""
        self._in_message = False
        self._in_frame = False
        self._control = bytearray()
        self._closed = False

    def received(self, data: bytes) -> bytes:
        self._received += data
        if not self.established:
            end = self._received.find(b"\r\n\r\n")
            if (end < 0 and len(self._received) > MAX_REQUEST) or end > MAX_REQUEST:
                self._refuse("400 Bad Request", f"the request is longer than {MAX_REQUEST} bytes")
            if end < 0:
                return b""
            self._accept(bytes(self._received[:end]))
            del self._received[: end + 4]
            self.established = True
        payload = bytearray()
        for _ in range(FRAMES):
            if self.ended or not (self._in_frame or self._begin_frame()):
                break
            if not self._received and self._remaining:
                break
            self._read_payload(payload)
        else:
            self.pending = True
            return bytes(payload)
        self.pending = False
        return bytes(payload)

    # The handshake

    def _accept(self, request: bytes) -> None:
        first, *lines = request.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3 or words[0] != "GET" or words[2] != "HTTP/1.1":
            self._refuse("400 Bad Request", "it is no GET request of HTTP/1.1")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                self._refuse("400 Bad Request", "a header has no name")
            name = name.lower()
            headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
        key = headers.get("sec-websocket-key", "")
        if headers.get("sec-websocket-version") != "13":
            self._refuse("426 Upgrade Required\r\nSec-WebSocket-Version: 13", "it is not of WebSocket's version 13")
        if (
            "host" not in headers
            or "websocket" not in _tokens(headers, "upgrade")
            or "upgrade" not in _tokens(headers, "connection")
            or not _is_key(key)
        ):
            self._refuse("400 Bad Request", "it asks for no WebSocket")
        protocols = _tokens(headers, "sec-websocket-protocol")
        if protocols and PROTOCOL not in protocols:
            self._refuse("400 Bad Request", f"its protocols do not include '{PROTOCOL}'")
        accept = binascii.b2a_base64(sha1(key.encode("latin-1") + ACCEPT_SUFFIX).digest(), newline=False)
        self.answers += (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n"
        )
        if protocols:
            self.answers += f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n".encode()
        self.answers += b"\r\n"

    def _refuse(self, status: str, reason: str) -> None:
        self.answers += f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        raise PeerError(f"WebSocket handshake: {reason}")

    # Frames

    def _begin_frame(self) -> bool:
        """Read the head of a frame; return False if it is not complete."""
        received = self._received
        if len(received) < 2:
            return False
        opcode, length = received[0] & 0x0F, received[1] & 0x7F
        self._check_head(received[0], received[1], opcode, length)
        extra = {126: 2, 127: 8}.get(length, 0)
        if len(received) < 2 + extra + 4:
            return False
        if extra:
            length = int.from_bytes(received[2 : 2 + extra], "big")
            if length >= 1 << 63:
                self._fail(f"a frame of {length} bytes")
        if opcode < CLOSE:
            self._in_message = not received[0] & FINAL
        self._mask = bytes(received[2 + extra : 6 + extra])
        del received[: 6 + extra]
        self._opcode, self._remaining, self._in_frame = opcode, length, True
        return True

    def _check_head(self, first: int, second: int, opcode: int, length: int) -> None:
        final = bool(first & FINAL)
        if first & 0x70:
            self._fail("a frame has reserved bits set")
        if not second & MASKED:
            self._fail("a frame is not masked")
        if opcode in (CLOSE, PING, PONG):
            if not final or length > MAX_CONTROL:
                self._fail("a control frame is in parts or too long")
        elif opcode == CONTINUATION:
            if not self._in_message:
                self._fail("a message is continued that has not begun")
        elif opcode not in (TEXT, BINARY) or self._in_message:
            self._fail(f"opcode {opcode} is out of place")

    def _read_payload(self, payload: bytearray) -> None:
        size = min(self._remaining, len(self._received))
        data = _unmask(self._received[:size], self._mask)
        del self._received[:size]
        self._mask = self._mask[size % 4 :] + self._mask[: size % 4]
        self._remaining -= size
        if self._opcode < CLOSE:
            payload += data
        else:
            self._control += data
        if self._remaining == 0:
            self._in_frame = False
            if self._opcode >= CLOSE:
                self._handle_control(bytes(self._control))
                self._control.clear()

    def _handle_control(self, data: bytes) -> None:
        if self._opcode == PING:
            self.answers += _frame_head(PONG, len(data)) + data
        elif self._opcode == CLOSE:
            self._close(data[:2])
            self.ended = True

    def _fail(self, reason: str) -> None:
        self._close(PROTOCOL_ERROR.to_bytes(2, "big"))
        raise PeerError(f"WebSocket: {reason}")

    def _close(self, code: bytes) -> None:
        if not self._closed:
            self._closed = True
            self.answers += _frame_head(CLOSE, len(code)) + code

    def sent(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        return [_frame_head(BINARY, sum(map(len, buffers))), *buffers]

    def finish(self) -> None:
        if self.established:
            self._close(GOING_AWAY.to_bytes(2, "big"))


def _tokens(headers: dict[str, str], name: str) -> list[str]:
    return [token.strip().lower() for token in headers.get(name, "").split(",") if token.strip()]


def _is_key(key: str) -> bool:
    try:
        return len(key) == 24 and len(binascii.a2b_base64(key)) == 16
    except ValueError:
        return False


def _frame_head(opcode: int, length: int) -> bytes:
    if length <= 125:
        return bytes((FINAL | opcode, length))
    if length < 1 << 16:
        return struct.pack(">BBH", FINAL | opcode, 126, length)
    return struct.pack(">BBQ", FINAL | opcode, 127, length)


def _unmask(data: bytes | bytearray, mask: bytes) -> bytes:
    size = len(data)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pattern, "little")).to_bytes(size, "little")
