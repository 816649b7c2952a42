"""QMP, one client's side of it: greeting, negotiation, requests, answers, events; no I/O.

A server gives what it has received to `receive`, runs each request it yields and answers it by `succeed` or `fail`
before it asks for the next, and sends what `data_to_send` returns.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from virtserial import __version__
from virtserial.errors import VirtserialError
from virtserial.monitor.json_stream import JsonError, JsonStream

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

QEMU_VERSION: Final = {"major": 11, "minor": 1, "micro": 3}
"""The QEMU whose monitor this is like; clients decide by it what they may use."""

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


class Request(NamedTuple):
    """A command to be run.

    Attributes:
        id: what the client sent with it; goes into the answer (`QmpSession`'s own mark if there was none).
    """

    command: str
    arguments: dict[str, object]
    id: object


def version() -> dict[str, object]:
    """What query-version and the greeting say."""
    return {"qemu": QEMU_VERSION, "package": f"virtserial {__version__}"}


class QmpSession:
    """One client.

    Args:
        commands: the names of the commands there are.
        pretty: indent what is sent.
    """

    def __init__(self, commands: Container[str], pretty: bool = False) -> None:
        self._commands = commands
        self._pretty = pretty
        self._stream = JsonStream()
        self._out: list[bytes] = []
        self._negotiated = False
        self._oob = False
        self._send({"QMP": {"version": version(), "capabilities": list(CAPABILITIES)}})

    def data_to_send(self) -> bytes:
        """Return what is to be sent, once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> Iterator[Request]:
        """Take what the client sent; yield the commands to run.  What is wrong with the rest is answered here."""
        for value in self._stream.feed(data):
            request_id = value.get("id", _NO_ID) if isinstance(value, dict) else _NO_ID
            try:
                if isinstance(value, JsonError):
                    raise QmpError(str(value))
                request = self._request(value)
            except QmpError as error:
                self._fail(request_id, error)
                continue
            if request.command == _NEGOTIATE:
                self._negotiate(request)
            else:
                yield request

    def succeed(self, request: Request, value: object) -> None:
        """Answer a request."""
        answer = {"return": value}
        if request.id is not _NO_ID:
            answer["id"] = request.id
        self._send(answer)

    def fail(self, request: Request, error: QmpError) -> None:
        """Refuse a request."""
        self._fail(request.id, error)

    def event(self, name: str, data: dict[str, object] | None, now: float) -> None:
        """Tell of an event, if the client has negotiated.  `now`: seconds since 1970."""
        if not self._negotiated:
            return
        seconds, microseconds = divmod(int(now * 1_000_000), 1_000_000)
        event: dict[str, object] = {"timestamp": {"seconds": seconds, "microseconds": microseconds}, "event": name}
        if data is not None:
            event["data"] = data
        self._send(event)

    def _send(self, message: dict[str, object]) -> None:
        self._out.append(json.dumps(message, indent=4 if self._pretty else None).encode() + b"\r\n")

    def _fail(self, request_id: object, error: QmpError) -> None:
        answer: dict[str, object] = {} if request_id is _NO_ID else {"id": request_id}
        answer["error"] = {"class": error.error_class, "desc": str(error)}
        self._send(answer)

    def _request(self, value: object) -> Request:
        if not isinstance(value, dict):
            raise QmpError("QMP input must be a JSON object")
        command: str | None = None
        arguments: dict[str, object] = {}
        oob = False
        for member, content in value.items():
            if member == "execute" or (member == "exec-oob" and self._oob):
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
        if command != _NEGOTIATE and command not in self._commands:
            raise QmpError(f"The command {command} has not been found", COMMAND_NOT_FOUND)
        if oob:
            raise QmpError(f"The command {command} does not support OOB")
        return Request(command, arguments, value.get("id", _NO_ID))

    def _negotiate(self, request: Request) -> None:
        try:
            enabled = self._capabilities(request.arguments)
            if self._negotiated:
                text = "Capabilities negotiation is already complete, command ignored"
                raise QmpError(text, COMMAND_NOT_FOUND)
        except QmpError as error:
            self.fail(request, error)
            return
        self._negotiated = True
        self._oob = "oob" in enabled
        self.succeed(request, {})

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
