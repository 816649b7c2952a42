"""Monitors on chardevs: each connection of such a chardev is a session of QMP or HMP, in the keeper's own loop."""

from __future__ import annotations

import array
import logging
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, cast

from virtserial.chardev.descriptor_stream import DescriptorStream
from virtserial.chardev.host_end import open_host_end
from virtserial.errors import BackendError
from virtserial.monitor.commands import COMMANDS, Client, execute
from virtserial.monitor.descriptors import NamedDescriptors
from virtserial.monitor.events import Events
from virtserial.monitor.hmp import HmpSession, run_line
from virtserial.monitor.operations import Operations
from virtserial.monitor.qmp import QmpError, QmpSession

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtserial.chardev.base import Chardev, Connection
    from virtserial.chardev.host_end import HostEnd
    from virtserial.daemon.keeper import Keeper
    from virtserial.loop import EventLoop
    from virtserial.machine.model import Port
    from virtserial.options.monitor_options import MonitorOptions

log = logging.getLogger("virtserial.monitor")

READ_SIZE = 64 << 10
MAX_UNSENT = 4 << 20
"""Bytes a client may leave unread; then its connection is closed.  (Its requests wait long before that.)"""
MAX_PASSED = 16
"""Descriptors a client can have passed and not yet used: more are closed."""
PARTING_SECONDS = 0.2


class Monitors:
    """Every monitor of a machine.

    Args:
        keeper: what they act on.
        monitors: the chardevs they are on (each must be one of the keeper's), and how they talk.
    """

    def __init__(self, keeper: Keeper, monitors: Sequence[MonitorOptions]) -> None:
        self._keeper = keeper
        self.events = Events(keeper.loop, self._send_event)
        self.operations = Operations(keeper, self.events, keeper.loop.stop)
        self._lines: list[MonitorLine] = []
        for monitor in monitors:
            line = MonitorLine(keeper.loop, self.operations, monitor)
            keeper.sinks[monitor.chardev] = line
            self._lines.append(line)
        keeper.guest_open_listener = self._guest_open_changed

    def _guest_open_changed(self, port: Port) -> None:
        if port.id is not None:
            self.events.port_changed(port.id, port.guest_open)

    def _send_event(self, name: str, data: Mapping[str, object] | None) -> None:
        for line in self._lines:
            line.send_event(name, data)

    def ended_by_signal(self) -> None:
        """The loop was stopped: by a signal, unless a client has said quit."""
        if not self.operations.has_quit:
            self.events.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})

    def close(self) -> None:
        """Let clients have what was said to them, and part."""
        deadline = time.monotonic() + PARTING_SECONDS
        while any(line.unsent for line in self._lines) and time.monotonic() < deadline:
            self._keeper.loop.run_once(0.01)
        for line in self._lines:
            line.close()
        self.operations.descriptor_sets.close()


class SocketStream(DescriptorStream):
    """A socket through which descriptors come along; `passed` takes them, and they are its owner's."""

    def __init__(self, loop: EventLoop, name: str, fd: int) -> None:
        super().__init__(loop, name, fd, fd)
        self._socket = socket.socket(fileno=fd)
        self.passed: deque[int] = deque()

    def readv(self, buffers: Sequence[memoryview]) -> int:
        if not self.readable:
            return 0
        space = socket.CMSG_SPACE(4 * MAX_PASSED)
        try:
            count, ancillary, _, _ = self._socket.recvmsg_into(buffers, space, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError:
            count, ancillary = 0, []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self.passed.extend(array.array("i", payload[: len(payload) & ~3]))
        while len(self.passed) > MAX_PASSED:
            os.close(self.passed.popleft())
        if not count:
            self._finish()
        return count

    def close(self) -> None:
        if not self._closed:
            self._socket.detach()
            while self.passed:
                os.close(self.passed.popleft())
        super().close()


class MonitorLine:
    """One monitor: takes the connections of its chardev (chardev.base.ConnectionSink), one at a time."""

    def __init__(self, loop: EventLoop, operations: Operations, options: MonitorOptions) -> None:
        self._loop = loop
        self._operations = operations
        self._options = options
        self._chardev: Chardev | None = None
        self._host: HostEnd | None = None
        self._session: QmpSession | HmpSession | None = None
        self._names = NamedDescriptors()
        self._buffer = memoryview(bytearray(READ_SIZE))
        self.unsent = bytearray()

    def connection_opened(self, chardev: Chardev, connection: Connection) -> None:
        """A client has come."""
        self._chardev = chardev
        params = connection.params
        if connection.flavour == "stream" and params.get("read") == params.get("write"):
            fd = connection.fds[cast(int, params["read"])]
            self._host = SocketStream(self._loop, str(params["name"]), fd)
        else:
            self._host = open_host_end(connection.flavour, connection.fds, params, self._loop)
        self._host.listener = self
        self._host.wants_input = True
        self._host.start()

    # chardev.host_end.HostListener

    def host_opened(self) -> None:
        """Somebody is there: greet."""
        self._session = (
            QmpSession(COMMANDS, self._options.pretty)
            if self._options.mode == "control"
            else HmpSession(self._operations)
        )
        self._flush()

    def host_closed(self) -> None:
        """The client has left."""
        self._end_session()
        host = self._host
        if host is not None and host.ended:
            self._drop_host()

    def host_readable(self) -> None:
        """The client has said something."""
        # One piece in a turn, and none while it does not take our answers.
        if self._host is None or self._session is None or self.unsent:
            return
        try:
            count = self._host.readv([self._buffer])
        except BackendError as error:
            self._fail(str(error))
            return
        if count:
            try:
                self._receive(bytes(self._buffer[:count]))
            except Exception:
                # The keeper must go on, whatever a client has made of us.
                log.exception("internal error in the monitor on chardev %s", self._options.chardev)
                self._fail("internal error")
            if self._host is not None and self._host.readable and not self.unsent:
                self._loop.add_turn(self.host_readable)

    def host_writable(self) -> None:
        """The client takes bytes again."""
        self._flush()
        if not self.unsent:
            self.host_readable()

    # The session

    def _receive(self, data: bytes) -> None:
        session = self._session
        if isinstance(session, HmpSession):
            session.receive(data)
        elif session is not None:
            client = Client(self._names, self._take_passed, self._human)
            for request in session.receive(data):
                try:
                    result = execute(self._operations, client, request)
                except QmpError as error:
                    session.fail(request, error)
                except Exception:
                    log.exception("internal error in command %s", request.command)
                    session.fail(request, QmpError("internal error of virtserial; its log tells more"))
                else:
                    session.succeed(request, result)
        self._flush()

    def _human(self, line: str) -> str:
        return run_line(self._operations, line)

    def _take_passed(self) -> int:
        if not isinstance(self._host, SocketStream) or not self._host.passed:
            raise QmpError("No file descriptor supplied via SCM_RIGHTS")
        return self._host.passed.popleft()

    def send_event(self, name: str, data: Mapping[str, object] | None) -> None:
        """Tell the client of an event; HMP has none."""
        if isinstance(self._session, QmpSession):
            self._session.event(name, dict(data) if data is not None else None, time.time())
            self._flush()

    def _flush(self) -> None:
        if self._session is None or self._host is None:
            return
        self.unsent += self._session.data_to_send()
        try:
            while self.unsent and self._host is not None:
                with memoryview(bytes(self.unsent[:READ_SIZE])) as piece:
                    count = self._host.writev([piece])
                if not count:
                    break
                del self.unsent[:count]
        except BackendError as error:
            self._fail(str(error))
        if len(self.unsent) > MAX_UNSENT:
            self._fail("the client does not read what it asked for")

    def _fail(self, reason: str) -> None:
        log.error("monitor on chardev %s: %s; the connection is closed", self._options.chardev, reason)
        self._end_session()
        self._drop_host()

    def _end_session(self) -> None:
        self._session = None
        self.unsent.clear()
        self._names.close()

    def _drop_host(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.close()
        if self._chardev is not None:
            self._chardev.connection_ended()

    def close(self) -> None:
        """Part from the client for good."""
        self._chardev = None
        self._end_session()
        self._drop_host()
