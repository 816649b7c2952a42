"""A socket with telnet, websocket or TLS on it as a host end, or with one of them on TLS.

```
        guest memory                 _input: payload that the guest has not read
             | writev                     ^
             v                            | received
        layers[-1] (websocket, telnet) ---+---> answers: pongs, closes
             | sent                       ^
             v                            | received
        layers[0] (TLS) ------------------+---> answers: handshake, alerts
             |                            |
             v                            |
        _output: what the socket     os.read of READ_SIZE
        did not take
```

| limit | why |
|---|---|
| HANDSHAKE_SECONDS until the last layer is established | the next client waits for this one |
| TURN_SECONDS for input without payload, and a budget in each layer | 64 KiB of pings take 70 ms, of key updates 300 |
| no reading while `_output` is longer than MAX_OUTPUT | a peer that does not read gets no more answers |
| no reading while `_input` holds payload | back-pressure reaches the peer |

Handshakes run here, in the worker, on the descriptor that the keeper passed.  Payload is copied, unlike elsewhere: a
frame cannot be unmasked, nor a record encrypted, in place.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from virtserial.errors import PeerError
from virtserial.host_end.buffers import IOV_MAX, front_of, move_into
from virtserial.host_end.ending import EndingStream, unread_bytes
from virtserial.host_end.stream import HANG_UP, INPUT_EVENTS, PEER_GONE
from virtserial.loop import EPOLLIN, EPOLLOUT, EPOLLRDHUP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.accounting import Account
    from virtserial.host_end.layer import Buffer, Layer
    from virtserial.host_end.linger import Linger
    from virtserial.loop import EventLoop, Timer

HANDSHAKE_SECONDS = 10.0
"""From the connection until the last layer is established."""
READ_SIZE = 64 << 10
MAX_OUTPUT = 64 << 10
"""Payload bytes taken in one call; above it `_output` stops reading."""
TURN_SECONDS = 0.001
"""For input without payload; the rest has another turn."""
COMPLAINT_SECONDS = 1.0
"""Between two log lines about peers that break a protocol."""

logger = logging.getLogger("virtserial.chardev.socket")


class LayeredStream(EndingStream):
    """Connected when every layer is established.

    Args:
        fd: the socket.
        ticket_fd: an eventfd that can be read once.  A successor of this worker cannot read it again: it does not know
            the state of the protocols, so it ends the connection, and the peer connects again.
        layers: the one next to the socket first.
    """

    _next_complaint = 0.0

    def __init__(
        self,
        loop: EventLoop,
        name: str,
        fd: int,
        ticket_fd: int,
        layers: Sequence[Layer],
        account: Account,
        linger: Linger | None = None,
    ) -> None:
        super().__init__(loop, name, linger)
        self._account = account
        self._fd = fd
        self._ticket_fd = ticket_fd
        self._layers = layers
        self._established = 0
        self._input = bytearray()
        self._output = bytearray()
        self._raw_readable = False
        self._blocked = False
        self._waits_for_room = False
        self._at_end = False
        self._watched = False
        self._deadline: Timer | None = None

    # Starting and ending

    def start(self) -> None:
        self._account.stray = True
        try:
            os.eventfd_read(self._ticket_fd)
        except BlockingIOError:
            self._give_up("its protocols were begun by another worker; the peer has to connect again")
            return
        self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._too_late)
        self._loop.watch(self._fd, INPUT_EVENTS, self._event)
        self._watched = True
        try:
            self._begin_layer()
        except PeerError as error:
            self._give_up(str(error))

    def _begin_layer(self) -> None:
        """Begin the layers from `_established` on that need nothing from the peer, and the first that does."""
        while self._established < len(self._layers):
            layer = self._layers[self._established]
            layer.begin()
            self._send_answers(self._established)
            if not layer.established:
                return
            self._established += 1
        self._connect()

    def _connect(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.connected = True
        self.listener.host_opened()
        if self._input or self._raw_readable:
            self._loop.add_turn(self._announce_readable)

    def _too_late(self) -> None:
        self._give_up(f"the handshake took more than {HANDSHAKE_SECONDS:g} s")

    def _give_up(self, reason: str) -> None:
        """End the connection of a peer that broke a protocol, after a last message to it and a log line."""
        if self._finishing or self._closed:
            return
        if self._loop.now() >= LayeredStream._next_complaint:
            LayeredStream._next_complaint = self._loop.now() + COMPLAINT_SECONDS
            logger.warning("%s: %s", self.name, reason)
        self._flush()
        self._finish()

    def _unread_bytes(self) -> int:
        return len(self._input) + unread_bytes(self._fd)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._fd)

    def close(self) -> None:
        if self._closed:
            return
        if self.connected:
            for index in reversed(range(self._established)):
                self._layers[index].finish()
                self._send_answers(index)
            self._flush()
        self._closed = True
        self.connected = self.readable = False
        self._stop_watching()
        if self._linger is not None:
            self._linger.close()
        os.close(self._fd)
        os.close(self._ticket_fd)

    # Input

    def _wants_input_changed(self) -> None:
        if not self._wants_input and self._at_end:
            self._finish()

    def _event(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if self._finishing or self._closed or not events & (EPOLLIN | EPOLLRDHUP | HANG_UP):
            return
        self._raw_readable = True
        if not self.connected:
            self._read_some()
        elif self._wants_input:
            if events & (EPOLLRDHUP | HANG_UP):
                self._host_has_left()
            self._announce_readable()
        elif events & HANG_UP:
            self._finish()
        elif events & EPOLLRDHUP:
            self._host_has_left()

    def _announce_readable(self) -> None:
        if not self._closed and not self._finishing:
            self.readable = True
            self.listener.host_readable()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        if not self._input:
            self._read_some()
        given = move_into(buffers, self._input)
        if self._at_end and not self._input:
            self._finish()
        self.readable = not self._finishing and not self.wait_readable()
        return given

    def wait_readable(self) -> bool:
        return not (self._input or self._raw_readable or self._is_pending())

    def _read_some(self) -> None:
        """Read until there is payload, the socket is empty, the peer does not read answers, or the turn is over."""
        end = self._loop.now() + TURN_SECONDS
        while not (self._input or self._at_end or self._finishing):
            if len(self._output) > MAX_OUTPUT:
                return  # `_flush` continues.
            if self._loop.now() >= end:
                self._loop.add_turn(self._read_on)
                return
            if self._is_pending():
                data = b""
            elif self._raw_readable:
                data = self._read()
            else:
                return
            try:
                self._take(data)
            except PeerError as error:
                self._give_up(str(error))
                return
            self._flush()

    def _is_pending(self) -> bool:
        return any(layer.pending for layer in self._layers)

    def _read(self) -> bytes:
        """Read once; b"": there is nothing, or the peer has left."""
        self._account.stray = True
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            self._raw_readable = False
            return b""
        except OSError as error:
            self._hang_up(error.strerror or "")
            return b""
        if not data:
            self._hang_up("the peer has left")
        return data

    def _read_on(self) -> None:
        if self._closed or self._finishing or not (self._raw_readable or self._is_pending()):
            return
        if self.connected:
            if self._wants_input:
                self._announce_readable()
        else:
            self._read_some()

    def _take(self, data: bytes) -> None:
        """Pass what came from the socket through the layers, and let them continue what they have not finished."""
        for index, layer in enumerate(self._layers):
            if not data and not layer.pending:
                continue
            try:
                data = layer.received(data)
            finally:
                self._send_answers(index)
            if layer.ended:
                self._at_end = True
            if index == self._established and layer.established:
                self._established += 1
                self._begin_layer()
        self._input += data
        if self._at_end:
            self._hang_up("the peer has left")

    def _hang_up(self, reason: str) -> None:
        """Nothing more will come from the peer."""
        self._at_end = True
        self._raw_readable = False
        if not self.connected:
            self._give_up(f"no handshake: {reason}")
        elif not self._wants_input or not self._input:
            self._finish()
        else:
            self._host_has_left()

    # Output

    def writev(self, buffers: Sequence[memoryview]) -> int:
        size = sum(buffer.nbytes for buffer in buffers)
        if not self.connected or self._at_end or self._finishing:
            self.output_discarded += size
            return size
        if self._output:
            self._flush()
            if self._output:
                self._blocked = True
                return 0
        front = front_of(buffers[: IOV_MAX - 1], MAX_OUTPUT)
        size = sum(buffer.nbytes for buffer in front)
        if not size:
            return 0
        self._send(self._encoded(front, len(self._layers)))
        return size

    def wait_writable(self) -> bool:
        self._blocked = bool(self._output)
        return self._blocked

    def _encoded(self, buffers: Sequence[Buffer], index: int) -> Sequence[Buffer]:
        """Return what the layers below `index` send for it."""
        for layer in reversed(self._layers[:index]):
            buffers = layer.sent(buffers)
        return buffers

    def _send_answers(self, index: int) -> None:
        """Queue what a layer itself sends."""
        answers = self._layers[index].answers
        if answers:
            for buffer in self._encoded([bytes(answers)], index):
                self._output += buffer
            answers.clear()
            if not self._finishing:
                self._flush()

    def _send(self, buffers: Sequence[Buffer]) -> None:
        """Send; what the socket does not take is kept."""
        self._account.stray = True
        try:
            sent = os.writev(self._fd, buffers)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._write_failed(error)
            return
        for buffer in buffers:
            self._output += buffer[min(sent, len(buffer)) :]
            sent -= min(sent, len(buffer))
        if self._output:
            self._wait_for_room()

    def _flush(self) -> None:
        """Send what was kept."""
        if self._output:
            self._account.stray = True
            try:
                del self._output[: os.write(self._fd, self._output)]
            except BlockingIOError:
                pass
            except OSError as error:
                self._write_failed(error)
                return
        if self._output:
            self._wait_for_room()
            return
        if self._waits_for_room and self._watched:
            self._waits_for_room = False
            self._loop.rewatch(self._fd, INPUT_EVENTS)
            self._loop.add_turn(self._read_on)
        if self._blocked:
            self._blocked = False
            self._loop.add_turn(self._announce_writable)

    def _announce_writable(self) -> None:
        if not self._closed and not self._finishing:
            self.listener.host_writable()

    def _wait_for_room(self) -> None:
        if self._watched and not self._waits_for_room:
            self._waits_for_room = True
            self._loop.rewatch(self._fd, INPUT_EVENTS | EPOLLOUT)

    def _write_failed(self, error: OSError) -> None:
        self._output.clear()
        self._blocked = False
        if error.errno not in PEER_GONE:
            logger.warning("%s: cannot write: %s", self.name, error.strerror)
        if self.connected and self._wants_input and not self._at_end:
            self._raw_readable = True  # Read what the peer sent before it left.
            self._loop.add_turn(self._announce_readable)
        else:
            self._finish()
