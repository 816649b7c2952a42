"""As much of D-Bus as QEMU's dbus-vmstate object speaks, without I/O: the bus's side of one connection.

QEMU's object (backends/dbus-vmstate.c, over GDBus) greets a bus, asks it who owns org.qemu.VMState1, reads that
owner's properties, and calls its Save or Load.  Bus and owner are the same here, so every call is answered at once.

| the client calls | it is answered with |
|---|---|
| Hello | its unique name |
| StartServiceByName, GetNameOwner | it runs, and is us |
| ListQueuedOwners | the one owner there is |
| GetAll, Get | Id |
| Save | what `save` returns, or the error that it raises |
| Load | nothing, or the error that `load` raises |
| AddMatch, RemoveMatch | nothing: no signal is ever sent |
| anything else | an error |

The D-Bus Specification (0.41), "Message Protocol" and "Authentication Protocol".  Only little-endian messages are
taken, as QEMU's machines send them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial.errors import PeerError, VirtserialError

if TYPE_CHECKING:
    from collections.abc import Callable

VMSTATE_NAME: Final = "org.qemu.VMState1"
MAX_STATE: Final = 1 << 20
"""Bytes that QEMU takes of one helper (DBUS_VMSTATE_SIZE_LIMIT)."""
MAX_MESSAGE: Final = MAX_STATE + 4096
MAX_LINE: Final = 512
"""Bytes of a line of the authentication."""
MAX_LINES: Final = 16
OUR_NAME: Final = ":1.0"
CLIENT_NAME: Final = ":1.1"
GUID: Final = "0" * 31 + "1"
FAILED: Final = "org.freedesktop.DBus.Error.Failed"

METHOD_CALL: Final = 1
METHOD_RETURN: Final = 2
ERROR: Final = 3
NO_REPLY_EXPECTED: Final = 1
ALREADY_RUNNING: Final = 2
MEMBER: Final = 3
ERROR_NAME: Final = 4
REPLY_SERIAL: Final = 5
DESTINATION: Final = 6
SENDER: Final = 7
SIGNATURE: Final = 8

_FIXED: Final = struct.Struct("<BBBBIII")
"""Byte order, type, flags, protocol version, bytes of body, serial, bytes of header fields."""
_U32: Final = struct.Struct("<I")
_LITTLE_ENDIAN: Final = ord("l")


class Call(NamedTuple):
    """A message of the client's.

    Attributes:
        kind: METHOD_CALL or another type.
        wants_reply: whether it is to be answered.
        member: the method's name.
        signature: the types of the body.
        body: the arguments.
    """

    kind: int
    wants_reply: bool
    serial: int
    member: str
    signature: str
    body: bytes


class BusSession:
    """One client's connection.

    Args:
        helper: the Id that the state is known by in QEMU's stream.
        look: called when QEMU looks for us, which is before it saves and before it loads.
        save: returns the state, at most MAX_STATE bytes.
        load: takes a state.  What all three raise (a VirtserialError) is the client's answer; QEMU fails a migration
            whose `look` or `load` fails, and completes one whose `save` fails.
    """

    def __init__(
        self, helper: str, look: Callable[[], None], save: Callable[[], bytes], load: Callable[[bytes], None]
    ) -> None:
        self._helper = helper
        self._look = look
        self._save = save
        self._load = load
        self._received = bytearray()
        self._begun = False
        self._lines = 0
        self._sent = 0

    def receive(self, data: bytes) -> bytes:
        """Take what the client has sent; return what to answer.

        Raises:
            PeerError: it is no D-Bus, or more than such a client may say; close the connection.
        """
        self._received += data
        answer = bytearray()
        while not self._begun and b"\n" in self._received:
            line, _, rest = bytes(self._received).partition(b"\n")
            self._received = bytearray(rest)
            answer += self._authenticate(line)
        if not self._begun:
            if len(self._received) > MAX_LINE:
                raise PeerError(f"D-Bus: a line of more than {MAX_LINE} bytes")
            return bytes(answer)
        while (size := _message_size(self._received)) is not None and len(self._received) >= size:
            message = bytes(self._received[:size])
            del self._received[:size]
            answer += self._answer(parse_call(message))
        return bytes(answer)

    def _authenticate(self, line: bytes) -> bytes:
        """SASL: who the client is has been asked of the kernel, so EXTERNAL is as good as said."""
        self._lines += 1
        if len(line) > MAX_LINE or self._lines > MAX_LINES:
            raise PeerError("D-Bus: the authentication does not end")
        words = line.strip(b"\0\r").split()
        if words[:2] == [b"AUTH", b"EXTERNAL"]:
            return f"OK {GUID}\r\n".encode()
        if words[:1] == [b"AUTH"]:
            return b"REJECTED EXTERNAL\r\n"
        if words[:1] == [b"BEGIN"]:
            self._begun = True
            return b""
        return b"ERROR\r\n"

    def _answer(self, call: Call) -> bytes:
        if call.kind != METHOD_CALL:
            return b""
        try:
            signature, body = self._run(call)
        except VirtserialError as error:
            answer = self._message(ERROR, call.serial, "s", string(str(error)))
        else:
            answer = self._message(METHOD_RETURN, call.serial, signature, body)
        return answer if call.wants_reply else b""

    def _run(self, call: Call) -> tuple[str, bytes]:
        """Run a method; return the types of its answer and the answer."""
        if call.member == "Hello":
            return "s", string(CLIENT_NAME)
        if call.member == "StartServiceByName":
            return "u", _U32.pack(ALREADY_RUNNING)
        if call.member == "GetNameOwner":
            return "s", string(OUR_NAME)
        if call.member == "ListQueuedOwners":
            self._look()
            return "as", array(string(OUR_NAME))
        if call.member == "GetAll":
            entry = _padded(string("Id") + signature_of("s"), 4) + string(self._helper)
            # Entries of a dictionary stand at multiples of 8.
            return "a{sv}", _U32.pack(len(entry)) + bytes(4) + entry
        if call.member == "Get":
            return "v", _padded(signature_of("s"), 4) + string(self._helper)
        if call.member == "Save":
            state = self._save()
            if len(state) > MAX_STATE:
                raise PeerError(f"the state has {len(state)} bytes, QEMU takes {MAX_STATE}")
            return "ay", array(state)
        if call.member == "Load":
            self._load(byte_array(call))
            return "", b""
        if call.member in ("AddMatch", "RemoveMatch"):
            return "", b""
        raise PeerError(f"there is no {call.member}")

    def _message(self, kind: int, reply_to: int, signature: str, body: bytes) -> bytes:
        self._sent += 1
        fields = bytearray()
        values = [(REPLY_SERIAL, "u", _U32.pack(reply_to)), (DESTINATION, "s", string(CLIENT_NAME)),
                  (SENDER, "s", string(OUR_NAME))]  # fmt: skip
        if kind == ERROR:
            values.append((ERROR_NAME, "s", string(FAILED)))
        if signature:
            values.append((SIGNATURE, "g", signature_of(signature)))
        for number, kind_of_value, value in values:
            fields += bytes(-len(fields) % 8)
            fields.append(number)
            fields += signature_of(kind_of_value)
            if kind_of_value != "g":
                fields += bytes(-len(fields) % 4)
            fields += value
        head = _FIXED.pack(_LITTLE_ENDIAN, kind, NO_REPLY_EXPECTED, 1, len(body), self._sent, len(fields))
        return _padded(head + bytes(fields), 8) + body


# Values


def string(text: str) -> bytes:
    """A STRING that stands at a multiple of 4."""
    data = text.replace("\0", "").encode(errors="replace")
    return _U32.pack(len(data)) + data + b"\0"


def signature_of(types: str) -> bytes:
    """A SIGNATURE."""
    return bytes([len(types)]) + types.encode() + b"\0"


def array(elements: bytes) -> bytes:
    """An ARRAY of elements that need no padding before the first."""
    return _U32.pack(len(elements)) + elements


def byte_array(call: Call) -> bytes:
    """The one argument of a call, an array of bytes.

    Raises:
        PeerError: it has others.
    """
    if call.signature != "ay" or len(call.body) < 4 or _U32.unpack_from(call.body)[0] != len(call.body) - 4:
        raise PeerError(f"D-Bus: {call.member} with arguments {call.signature!r} of {len(call.body)} bytes")
    return call.body[4:]


def _padded(data: bytes, unit: int) -> bytes:
    return data + bytes(-len(data) % unit)


# Messages


def _message_size(data: bytearray) -> int | None:
    """Bytes of the message that `data` begins with; None: not all of its fixed part is there."""
    if len(data) < _FIXED.size:
        return None
    order, kind, _, version, body, _, fields = _FIXED.unpack_from(data)
    size = _FIXED.size + fields + -fields % 8 + body
    if order != _LITTLE_ENDIAN or version != 1 or not kind:
        raise PeerError("D-Bus: what follows is no little-endian message of version 1")
    if fields > MAX_MESSAGE or body > MAX_MESSAGE or size > MAX_MESSAGE:
        raise PeerError(f"D-Bus: a message of {size} bytes, at most {MAX_MESSAGE} are taken")
    return int(size)


def parse_call(message: bytes) -> Call:
    """Read a whole message.

    Raises:
        PeerError: its header makes no sense.
    """
    _, kind, flags, _, body, serial, fields = _FIXED.unpack_from(message)
    member = signature = ""
    at, end = _FIXED.size, _FIXED.size + fields
    try:
        while at < end:
            at += -at % 8
            number, types, at = message[at], message[at + 2], at + 4
            if message[at - 3] != 1:
                raise PeerError("D-Bus: a header field of more than one type")
            text, at = _read_value(message, at, chr(types))
            if number == MEMBER:
                member = text
            elif number == SIGNATURE:
                signature = text
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise PeerError("D-Bus: the header fields of a message make no sense") from error
    if at > end:
        raise PeerError("D-Bus: the header fields of a message are longer than it says")
    return Call(kind, not flags & NO_REPLY_EXPECTED, serial, member, signature, message[len(message) - body :])


def _read_value(message: bytes, at: int, types: str) -> tuple[str, int]:
    """The value of a header field as text, and where it ends."""
    if types == "g":
        length, start = message[at], at + 1
    else:
        at += -at % 4
        (length,), start = _U32.unpack_from(message, at), at + 4
        if types == "u":
            return str(length), start
        if types not in ("s", "o"):
            raise PeerError(f"D-Bus: a header field of type {types!r}")
    end = start + length
    if message[end]:
        raise PeerError("D-Bus: a string without its end")
    return message[start:end].decode(), end + 1
