"""A small QMP client for the rig's own VMs: commands and their answers, events kept by name."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from virtserial.rig.channel import GuestError

if TYPE_CHECKING:
    import socket


class QmpRefusal(GuestError):
    """A command was answered with an error.

    Attributes:
        error_class: QMP's class of it.
        description: its text.
    """

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.error_class = error_class
        self.description = description


class Qmp:
    """One monitor connection; not for use by several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self.events: list[dict[str, Any]] = []
        connection.settimeout(60)
        self._message()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  # a JSON value
        """Runs a command and gives its `return` value.

        Arguments are written with _ for -, but for device_add, where they are the device's properties as they are.

        Raises:
            QmpRefusal: QEMU answered with an error.
            GuestError: QEMU is gone.
        """
        if command != "device_add":
            arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = {"execute": command, "arguments": arguments}
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            while True:
                message = self._message()
                if "return" in message:
                    return message["return"]
                if "error" in message:
                    raise QmpRefusal(command, message["error"]["class"], message["error"]["desc"])
                self.events.append(message)
        except OSError as error:
            raise GuestError(f"{command}: the monitor is gone: {error}") from error

    def wait_event(self, name: str, timeout: float = 30) -> dict[str, Any]:
        """The first event of a name that nobody has taken yet; taken out of `events`."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise GuestError(f"no event {name} in {timeout} s")
            self._connection.settimeout(remaining)
            try:
                self.events.append(self._message())
            except TimeoutError:
                continue
            finally:
                self._connection.settimeout(60)

    def _message(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            data = self._connection.recv(65536)
            if not data:
                raise GuestError("QEMU closed its monitor")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()
