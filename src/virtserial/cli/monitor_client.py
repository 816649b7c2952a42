"""A few QMP commands to a process of ours, for subcommands: connect, ask, answer."""

from __future__ import annotations

import array
import json
import socket
from typing import TYPE_CHECKING, cast

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

TIMEOUT = 30.0
"""Seconds to wait for an answer."""
MAX_LINE = 1 << 20


class MonitorClient:
    """A connection to a QMP monitor on a UNIX socket, ready for commands.

    Raises:
        ConfigError: nobody listens there, or it is no QMP.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(TIMEOUT)
            try:
                self._socket.connect(path)
            except OSError as error:
                raise ConfigError(f"monitor {path}: {error.strerror or error}") from error
            if "QMP" not in self._message():
                raise ConfigError(f"monitor {path}: it does not greet as QMP does")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, object] | None = None, fd: int | None = None) -> object:
        """Run a command, with a descriptor if it takes one, and return what it returns.

        Raises:
            ConfigError: it is refused, in the monitor's words, or nobody answers.
        """
        request = json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n"
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        try:
            sent = self._socket.sendmsg([request], control)
            self._socket.sendall(request[sent:])
        except OSError as error:
            raise ConfigError(f"monitor {self._path}: {error.strerror or error}") from error
        while True:
            message = self._message()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise ConfigError(str(cast("dict[str, object]", message["error"]).get("desc")))

    def _message(self) -> dict[str, object]:
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise ConfigError(f"monitor {self._path}: no answer: {error.strerror or error}") from error
            self._received += data
            if not data or len(self._received) > MAX_LINE:
                raise ConfigError(f"monitor {self._path}: it has closed the connection, or does not speak QMP")
        line, self._received = self._received.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise ConfigError(f"monitor {self._path}: it does not speak QMP")
        return message
