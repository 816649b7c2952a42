"""A blocking QMP client, for QEMU's monitor and virtserial's alike."""

from __future__ import annotations

import array
import contextlib
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from virtserial.client.address import TerminalAddress, UnixAddress, parse_address
from virtserial.errors import ConfigError, PeerError
from virtserial.monitor.qmp import QmpError
from virtserial.monitor.qmp_client import Ask, MonitorGoneError, QmpClientSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ANSWER_TIME = 3.0
"""Seconds until a monitor that says nothing is given up."""
READ_SIZE = 64 << 10
MAX_EVENTS = 1000
"""Events kept for wait_event; then the oldest are dropped."""


class QmpClient:
    """One connection to a monitor; for one thread.

    Attributes:
        events: those that came and were not taken, oldest first, as the monitor sent them.
    """

    def __init__(self, where: str | socket.socket, answer_time: float = ANSWER_TIME, name: str = "monitor") -> None:
        """Connect and negotiate.

        Args:
            where: a socket's path, unix:PATH or tcp:HOST:PORT; or a connected socket, owned from here on.
            answer_time: seconds that the greeting, and later each answer, may take.
            name: for messages, of a connected socket.

        Raises:
            ConfigError: it cannot be reached.
            PeerError: no answer, or no QMP.
        """
        self.events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._answer_time = answer_time
        self._is_ready = False
        self._session = QmpClientSession(self.events.append, self._negotiated)
        if isinstance(where, str):
            self._name = f"monitor {where}"
            self._socket = _connect(where, answer_time)
        else:
            self._name = name
            self._socket = where
        try:
            # A socket that came connected is a keeper's own, which serves many at once.
            hint = "; does it serve another client?" if isinstance(where, str) else ""
            self._run_until(lambda: self._is_ready, answer_time, "no QMP greeting", hint)
        except BaseException:
            self.close()
            raise

    def _negotiated(self) -> None:
        self._is_ready = True

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        fd: int | None = None,
        answer_time: float | None = None,
    ) -> Any:  # noqa: ANN401  # a JSON value
        """Run a command and return its value.

        Args:
            fd: a descriptor to pass along; it stays the caller's.
            answer_time: seconds, if not those of the connection.

        Raises:
            QmpError: the monitor refuses it, in the monitor's words.
            PeerError: no answer, or the connection is lost.
        """
        results: list[object] = []
        self._session.ask(Ask(command, arguments or {}, fd=fd), results.append)
        seconds = self._answer_time if answer_time is None else answer_time
        self._run_until(lambda: bool(results), seconds, f"no answer to {command}")
        [result] = results
        if isinstance(result, MonitorGoneError):
            raise PeerError(f"{self._name}: the connection is closed")
        if isinstance(result, QmpError):
            raise result
        return result

    def __call__(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  # a JSON value
        """`execute` with keywords: an underscore stands for a dash, except in device_add."""
        if command != "device_add":
            arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.execute(command, arguments)

    def wait_event(self, name: str, timeout: float | None = 30) -> dict[str, Any]:
        """Take the oldest event of a name out of `events`; wait for it if there is none.

        Raises:
            TimeoutError: it did not come.
            PeerError: the connection is lost.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            try:
                self._transfer(deadline)
            except TimeoutError:
                raise TimeoutError(f"{self._name}: no event {name} in {timeout:g} s") from None

    def _run_until(self, is_done: Callable[[], bool], seconds: float, failure: str, hint: str = "") -> None:
        deadline = time.monotonic() + seconds
        try:
            while not is_done():
                self._transfer(deadline)
        except TimeoutError:
            raise PeerError(f"{self._name}: {failure} in {seconds:g} s{hint}") from None

    def _transfer(self, deadline: float | None) -> None:
        """Send what is to be sent, then receive once."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        try:
            while self._session.to_send:
                data, fd = self._session.to_send.popleft()
                rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                # A monitor that is gone is an error here, also in a program that a closed pipe ends.
                sent = self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                if sent < len(data):
                    self._socket.sendall(data[sent:], socket.MSG_NOSIGNAL)
            data = self._socket.recv(READ_SIZE)
        except TimeoutError:
            raise
        except OSError as error:
            raise PeerError(f"{self._name}: {error.strerror or error}") from error
        if not data:
            self._session.end()
            raise PeerError(f"{self._name}: the connection is closed")
        try:
            self._session.receive(data)
        except PeerError as error:
            raise PeerError(f"{self._name}: {error}") from error

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(text: str, seconds: float) -> socket.socket:
    # A path needs no prefix, and nothing may be there yet.
    where = parse_address(text) if text.startswith(("unix:", "tcp:", "pty:")) else UnixAddress(text)
    if isinstance(where, TerminalAddress):
        raise ConfigError(f"monitor {text}: not a socket")
    connection = socket.socket(socket.AF_UNIX)
    try:
        if isinstance(where, UnixAddress):
            connection.settimeout(seconds)
            connection.connect(where.path)
        else:
            connection.close()
            connection = socket.create_connection(where, seconds)
    except OSError as error:
        connection.close()
        # The queue of a UNIX socket is full, which is what a monitor that serves nobody comes to.
        reason = "it accepts no connection" if isinstance(error, BlockingIOError) else error.strerror or error
        hint = f"a process listens there if it has -qmp {text if ':' in text else f'unix:{text}'},server=on,wait=off"
        raise ConfigError(f"monitor {text}: {reason}", hint) from error
    return connection
