"""QMP as a server speaks it with one client: greeting, negotiation, requests, answers, events; no I/O.

`receive` takes bytes and yields what the client sent, in order; those marked `oob` overtake the others.  `request`
turns each into a command when its turn has come, `answer` reports its result, `data_to_send` returns the bytes to send.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from virtserial.errors import VirtserialError
from virtserial.monitor.json_stream import JsonError, JsonStream
from virtserial.named_tuple import NamedTuple
from virtserial.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

log = logging.getLogger("virtserial.monitor")

QEMU_VERSION: Final = {"major": 11, "minor": 1, "micro": 3}
"""The QEMU version that clients see: they choose by it what they use."""

GENERIC_ERROR: Final = "GenericError"
COMMAND_NOT_FOUND: Final = "CommandNotFound"
DEVICE_NOT_FOUND: Final = "DeviceNotFound"

_NO_ID: Final = object()
_NEGOTIATE: Final = "qmp_capabilities"
CAPABILITIES: Final = ("oob",)


class QmpError(VirtserialError):
    """A command that is refused.

    Attributes:
        error_class: QEMU's class of the error.
    """

    def __init__(self, text: str, error_class: str = GENERIC_ERROR) -> None:
        super().__init__(text)
        self.error_class = error_class


def internal_error(error: Exception, command: str) -> QmpError:
    """The refusal of a command that failed for no fault of its client's; logs why."""
    log.error("internal error in %s", command, exc_info=error)
    if isinstance(error, ImportError) and (error.name or "").startswith("virtserial."):
        return QmpError("virtserial's installed code is gone or was replaced: restart the service or the VM")
    return QmpError("internal error of virtserial; see its log")


def no_such_command(command: str) -> QmpError:
    """The refusal of an unknown command."""
    return QmpError(f"The command {command} has not been found", COMMAND_NOT_FOUND)


def no_oob(command: str) -> QmpError:
    """The refusal of a command that cannot run out of band."""
    return QmpError(f"The command {command} does not support OOB")


class Received(NamedTuple):
    """One value that a client sent, or a JsonError.

    Attributes:
        id: for the answer (_NO_ID: none).
        oob: it overtakes those that wait.
    """

    value: object
    id: object
    oob: bool


class Request(NamedTuple):
    """A command to run.

    Attributes:
        id: for the answer (_NO_ID: none).
        oob: it was sent out of band.
    """

    command: str
    arguments: dict[str, object]
    id: object
    oob: bool = False


def version() -> dict[str, object]:
    """The content of query-version and the greeting."""
    return {"qemu": QEMU_VERSION, "package": f"virtserial {__version__}"}


def greeting() -> dict[str, object]:
    """The greeting of a monitor without QEMU."""
    return {"QMP": {"version": version(), "capabilities": list(CAPABILITIES)}}


class QmpSession:
    """One client.

    Args:
        welcome: the greeting.
        pretty: indent what is sent.

    Attributes:
        oob: the client has asked for out-of-band commands.
    """

    def __init__(self, welcome: Mapping[str, object], pretty: bool = False) -> None:
        self.oob = False
        self._pretty = pretty
        self._stream = JsonStream()
        self._out: list[bytes] = []
        self._negotiated = False
        self.send(welcome)

    def hand_over(self) -> dict[str, object] | None:
        """Return what a successor needs (`take_over`); None: amid an error in the input, which it cannot take over."""
        unfinished = self._stream.unfinished()
        if unfinished is None:
            return None
        return {"negotiated": self._negotiated, "oob": self.oob, "unfinished": unfinished.decode("latin-1")}

    @classmethod
    def take_over(cls, saved: Mapping[str, Any], pretty: bool) -> QmpSession:
        """Return the session that a predecessor handed over."""
        session = cls({}, pretty)
        session._out.clear()
        session._negotiated, session.oob = saved["negotiated"], saved["oob"]
        for _ in session._stream.feed(saved["unfinished"].encode("latin-1")):
            pass  # It completes nothing.
        return session

    def data_to_send(self) -> bytes:
        """Return the bytes to send, once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> Iterator[Received]:
        """Take what the client sent; yield its values one by one."""
        for value in self._stream.feed(data):
            if isinstance(value, dict):
                yield Received(value, value.get("id", _NO_ID), self.oob and "exec-oob" in value)
            else:
                yield Received(value, _NO_ID, False)

    def request(self, received: Received) -> Request | None:
        """Return the command to run; None: it was wrong or a negotiation, and is answered already."""
        try:
            if isinstance(received.value, JsonError):
                raise QmpError(str(received.value))
            request = self._request(received)
        except QmpError as error:
            self._fail(received.id, error)
            return None
        if request.command == _NEGOTIATE:
            self._negotiate(request)
            return None
        return request

    def answer(self, request: Request, result: object) -> None:
        """Answer a request with its result or a QmpError."""
        if isinstance(result, QmpError):
            self._fail(request.id, result)
            return
        answer = {"return": result}
        if request.id is not _NO_ID:
            answer["id"] = request.id
        self.send(answer)

    def event(self, name: str, data: dict[str, object] | None, now: float) -> None:
        """Send an event, if the client has negotiated.  `now`: seconds since 1970."""
        seconds, microseconds = divmod(int(now * 1_000_000), 1_000_000)
        event: dict[str, object] = {"timestamp": {"seconds": seconds, "microseconds": microseconds}, "event": name}
        if data is not None:
            event["data"] = data
        self.pass_event(event)

    def pass_event(self, event: Mapping[str, object]) -> None:
        """Send an event as QEMU made it."""
        if self._negotiated:
            self.send(event)

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message as it is."""
        self._out.append(json.dumps(message, indent=4 if self._pretty else None).encode() + b"\r\n")

    def _fail(self, request_id: object, error: QmpError) -> None:
        answer: dict[str, object] = {} if request_id is _NO_ID else {"id": request_id}
        answer["error"] = {"class": error.error_class, "desc": str(error)}
        self.send(answer)

    def _request(self, received: Received) -> Request:
        value = received.value
        if not isinstance(value, dict):
            raise QmpError("QMP input must be a JSON object")
        command: str | None = None
        arguments: dict[str, object] = {}
        oob = False
        for member, content in value.items():
            if member == "execute" or (member == "exec-oob" and self.oob):
                if not isinstance(content, str):
                    raise QmpError(f"QMP input member '{member}' must be a string")
                if command is not None:
                    raise QmpError("QMP input member 'execute' clashes with 'exec-oob'")
                command, oob = content, member == "exec-oob"
            elif member == "arguments":
                if not isinstance(content, dict):
                    raise QmpError("QMP input member 'arguments' must be an object")
                arguments = content
            elif member != "id":
                raise QmpError(f"QMP input member '{member}' is unexpected")
        if command is None:
            raise QmpError("QMP input lacks member 'execute'")
        if not self._negotiated and command != _NEGOTIATE:
            raise QmpError(f"Expecting capabilities negotiation with '{_NEGOTIATE}'", COMMAND_NOT_FOUND)
        if command == _NEGOTIATE and oob:
            raise no_oob(command)
        return Request(command, arguments, received.id, oob)

    def _negotiate(self, request: Request) -> None:
        try:
            enabled = self._capabilities(request.arguments)
            if self._negotiated:
                text = "Capabilities negotiation is already complete, command ignored"
                raise QmpError(text, COMMAND_NOT_FOUND)
        except QmpError as error:
            self.answer(request, error)
            return
        self._negotiated = True
        self.oob = "oob" in enabled
        self.answer(request, {})

    @staticmethod
    def _capabilities(arguments: dict[str, object]) -> list[str]:
        enabled = arguments.get("enable", [])
        if not isinstance(enabled, list):
            raise QmpError("Invalid parameter type for 'enable', expected: array")
        for capability in enabled:
            if not isinstance(capability, str):
                raise QmpError("Invalid parameter type for 'enable[0]', expected: string")
            if capability not in CAPABILITIES:
                raise QmpError(f"Parameter 'null' does not accept value '{capability}'")
        for name in arguments:
            if name != "enable":
                raise QmpError(f"Parameter '{name}' is unexpected")
        return enabled
