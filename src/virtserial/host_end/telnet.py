"""Telnet (RFC 854) as a chardev socket speaks it with `telnet=on`: character at a time, 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtserial.host_end.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtserial.host_end.layer import Buffer

SE, SB, WILL, DO, DONT, IAC = 240, 250, 251, 253, 254, 255
BINARY, ECHO, SUPPRESS_GO_AHEAD = 0, 1, 3
OFFER = bytes((IAC, WILL, ECHO, IAC, WILL, SUPPRESS_GO_AHEAD, IAC, WILL, BINARY, IAC, DO, BINARY))
"""What QEMU's server sends first (chardev/char-socket.c, tcp_chr_telnet_init)."""

STEPS = 512
"""Commands, or pieces of text between them, handled in one call of `received`."""

# The state of the input.
TEXT, COMMAND, OPTION, PARAMETERS, PARAMETERS_COMMAND = range(5)


class TelnetLayer(Layer):
    """Removes the peer's commands from the input; its answers to the offer change nothing, as with QEMU."""

    def __init__(self, *, server: bool) -> None:
        super().__init__()
        self._server = server
        self._state = TEXT
        self._rest = bytearray()

    def begin(self) -> None:
        self.established = True
        if self._server:
            self.answers += OFFER

    def received(self, data: bytes) -> bytes:
        if self._state == TEXT and not self._rest and IAC not in data:
            return data
        rest = self._rest
        rest += data
        text = bytearray()
        for _ in range(STEPS):
            if not rest:
                break
            if self._state in (TEXT, PARAMETERS):
                self._skip_to_command(rest, text)
            else:
                self._take_byte(rest.pop(0), text)
        self.pending = bool(rest)
        return bytes(text)

    def _skip_to_command(self, rest: bytearray, text: bytearray) -> None:
        """Take everything up to an IAC, and the IAC: text, or parameters, which are ignored."""
        end = rest.find(IAC)
        if self._state == TEXT:
            text += rest if end < 0 else rest[:end]
        if end < 0:
            rest.clear()
        else:
            del rest[: end + 1]
            self._state = COMMAND if self._state == TEXT else PARAMETERS_COMMAND

    def _take_byte(self, byte: int, text: bytearray) -> None:
        if self._state == COMMAND:
            self._command(byte, text)
        elif self._state == OPTION:
            self._state = TEXT
        else:
            self._state = TEXT if byte == SE else PARAMETERS

    def _command(self, byte: int, text: bytearray) -> None:
        self._state = TEXT
        if byte == IAC:
            text.append(IAC)
        elif byte == SB:
            self._state = PARAMETERS
        elif WILL <= byte <= DONT:
            self._state = OPTION

    def sent(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        return [b"".join(buffers).replace(b"\xff", b"\xff\xff")]
