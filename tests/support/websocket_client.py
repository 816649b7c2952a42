"""`websockets`' client without I/O as the peer of a WebSocket, over any connected socket."""

from collections import deque

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri


def frame(opcode, payload=b"", *, final=True):
    """A client's frame."""
    return Frame(Opcode(opcode), payload, fin=final).serialize(mask=True)


class WebSocketClient:
    def __init__(self, sock):
        self.socket = sock
        self._events = deque()
        self._peer = None

    def request(self, protocols=("binary",)):
        self._peer = ClientProtocol(parse_uri("ws://h/"), subprotocols=list(protocols) or None, max_size=None)
        self._peer.send_request(self._peer.connect())
        for data in self._peer.data_to_send():
            self.socket.sendall(data)

    def response(self):
        """The server's answer, which must be a right acceptance."""
        response = self._next()
        assert isinstance(response, Response)
        assert self._peer.handshake_exc is None, self._peer.handshake_exc
        return response

    @property
    def subprotocol(self):
        return self._peer.subprotocol

    def _next(self):
        while not self._events:
            data = self.socket.recv(65536)
            assert data, "the server has left"
            self._peer.receive_data(data)
            assert self._peer.parser_exc is None, self._peer.parser_exc
            self._events.extend(self._peer.events_received())
        return self._events.popleft()

    def receive(self):
        """(opcode, payload) of the next frame."""
        received = self._next()
        assert received.fin, "a server's frame is whole"
        return received.opcode, bytes(received.data)

    def receive_bytes(self, count):
        """Binary payload of several frames."""
        received = b""
        while len(received) < count:
            opcode, payload = self.receive()
            assert opcode == Opcode.BINARY
            received += payload
        return received
