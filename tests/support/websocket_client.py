"""A WebSocket client of a few lines, as RFC 6455 has it, over any connected socket."""

import base64
import hashlib
import os

KEY = base64.b64encode(bytes(range(16))).decode()
REQUEST = (
    "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n"
)
ACCEPT = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())


def frame(opcode, payload=b"", *, final=True, mask=None, masked=True):
    """A client's frame."""
    mask = os.urandom(4) if mask is None else mask
    size = len(payload)
    head = bytes([opcode | (0x80 if final else 0)])
    bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


class WebSocketClient:
    def __init__(self, sock):
        self.socket = sock
        self._received = b""

    def request(self, headers="Sec-WebSocket-Protocol: binary\r\n"):
        self.socket.sendall((REQUEST + headers + "\r\n").encode())

    def response(self):
        """The head of the server's answer."""
        while b"\r\n\r\n" not in self._received:
            self._fill()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head.decode()

    def _fill(self):
        data = self.socket.recv(65536)
        assert data, f"the end, after {self._received}"
        self._received += data

    def _take(self, count):
        while len(self._received) < count:
            self._fill()
        data, self._received = self._received[:count], self._received[count:]
        return data

    def receive(self):
        """(opcode, payload) of the next frame."""
        first, second = self._take(2)
        assert first & 0x80, "a server's frame is whole"
        assert not second & 0x80, "a server's frame is not masked"
        size = second
        if second == 126:
            size = int.from_bytes(self._take(2), "big")
        elif second == 127:
            size = int.from_bytes(self._take(8), "big")
        return first & 0x0F, self._take(size)

    def receive_bytes(self, count):
        """Binary payload of several frames."""
        received = b""
        while len(received) < count:
            opcode, payload = self.receive()
            assert opcode == 2
            received += payload
        return received
