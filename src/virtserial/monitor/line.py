"""One monitor on the keeper's loop: it serves the clients of its chardev, one at a time, in QMP or HMP."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

from virtserial.channel.codec import decode, encode
from virtserial.channel.connections import CONNECTION, LayeredConnection, SocketConnection, unlogged
from virtserial.errors import BackendError
from virtserial.host_end.stream import DescriptorStream
from virtserial.monitor.client_socket import open_client_end
from virtserial.monitor.conversation import Conversation
from virtserial.monitor.descriptors import Client, NamedDescriptors
from virtserial.monitor.hmp_session import HmpSession
from virtserial.monitor.qmp import QmpError, QmpSession
from virtserial.options.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from virtserial.channel.connections import Connection
    from virtserial.chardev.base import Chardev, Put, Take
    from virtserial.daemon.keeper.keeper import Keeper
    from virtserial.host_end.base import HostEnd
    from virtserial.loop import EventLoop
    from virtserial.monitor.client_socket import ClientSocket
    from virtserial.monitor.conversation import Backend
    from virtserial.options.monitor_options import MonitorOptions

log = logging.getLogger("virtserial.monitor")

READ_SIZE = 4 << 10
"""Bytes of input in one turn."""
WRITE_SIZE = 64 << 10
"""Bytes of output in one call; a client without focus gets no more events after as many."""
MAX_UNSENT = 4 << 20
"""Unread bytes after which a client's connection is closed (events do that: requests wait from the first)."""


class MonitorLine:
    """Takes the connections of a chardev (chardev.base.ConnectionSink), one at a time.

    Args:
        backend: runs the clients' requests.
        options: its chardev, and whether it speaks QMP or HMP.
    """

    def __init__(self, loop: EventLoop, backend: Backend, options: MonitorOptions) -> None:
        self._loop = loop
        self._backend = backend
        self.options = options
        self._chardev: Chardev | None = None
        self._host: HostEnd | None = None
        self._socket: ClientSocket | None = None
        self._conversation: Conversation | None = None
        self._names = NamedDescriptors()
        self._client = Client(self._names, self._take_passed)
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._shares = False
        self._hear_first: Callable[[], None] = lambda: None
        self._connection = 0
        self._has_focus = True
        self._taken: tuple[Connection, tuple[int, ...]] | None = None
        self.unsent = bytearray()

    def share(self, keeper: Keeper, chardev: Chardev, name: str) -> None:
        """Become one of several users of a multiplexed chardev; `name` tells it from the others.

        Raises:
            ConfigError: the chardev has as many users as it can have.
        """
        ours, theirs = socket.socketpair()
        keeper.fronts.add(chardev, name, theirs, self)
        self._has_focus = False
        ours.setblocking(False)
        self._open_share(keeper, chardev, ours.detach())

    def _open_share(self, keeper: Keeper, chardev: Chardev, fd: int) -> None:
        self._shares = True
        self._hear_first = keeper.workers.receive
        self._taken = SocketConnection(f"chardev '{chardev.id}'"), (fd,)
        self._listen_to(DescriptorStream(self._loop, self._taken[0].name, fd, fd))

    def _listen_to(self, host: HostEnd) -> None:
        self._host = host
        host.listener = self
        host.wants_input = True
        host.start()

    # Succession

    def hand_over(self, put: Put) -> dict[str, object]:
        """Return what a successor needs to keep the client (`take_over`)."""
        saved: dict[str, object] = {"focus": self._has_focus, "serial": self._connection, "host": None}
        host, taken = self._host, self._taken
        session = None
        if self._conversation is not None and self._conversation.can_receive:
            session = self._conversation.session.hand_over()
        stays = host is not None and (session is not None or self._socket is None)
        if not stays or taken is None or isinstance(unlogged(taken[0]), LayeredConnection):
            # No client, or one whose half-read input or TLS session cannot be handed over.
            return saved
        saved["host"] = {"connection": encode(taken[0]), "fds": [put(fd) for fd in taken[1]]}
        passed = self._socket.passed if self._socket is not None else ()
        return {
            **saved,
            "session": session,
            "unsent": self.unsent.decode("latin-1"),
            "names": self._names.hand_over(put),
            "passed": [put(fd) for fd in passed],
        }

    def take_over(self, keeper: Keeper, chardev: Chardev, name: str, saved: Mapping[str, Any], take: Take) -> None:
        """Take over a predecessor's client; `name` as in `share`."""
        self._chardev = None if chardev.mux else chardev
        self._has_focus, self._connection = saved["focus"], saved["serial"]
        host = saved["host"]
        if host is None:
            chardev.connection_ended()
            return
        self.unsent += saved["unsent"].encode("latin-1")
        self._names.take_over(saved["names"], take)
        if saved["session"] is not None:
            self._converse(self._make_session(saved["session"]))
        fds = tuple(take(number) for number in host["fds"])
        if chardev.mux:
            keeper.fronts.keep(chardev, name, self)
            self._open_share(keeper, chardev, fds[0])
        else:
            self.connection_opened(chardev, decode(CONNECTION, host["connection"]), fds)
        if self._socket is not None:
            self._socket.passed.extend(take(number) for number in saved["passed"])
        self.flush()

    def _converse(self, session: QmpSession | HmpSession) -> None:
        self._conversation = Conversation(session, self._backend, self._client, self)

    def _make_session(self, saved: Mapping[str, Any] | None = None) -> QmpSession | HmpSession:
        welcome = self._backend.greeting()
        if self.options.mode == "control":
            pretty = self.options.pretty
            return QmpSession(welcome, pretty) if saved is None else QmpSession.take_over(saved, pretty)
        version = Values(welcome).values("QMP").values("version").values("qemu")
        session = HmpSession(version, self._backend.candidates)
        if saved is not None:
            session.take_over(saved)
        return session

    # daemon.fronts.FrontUser

    def front_changed(self, state: str, serial: int) -> None:
        """The multiplexer's client connects or leaves, or its focus moves."""
        session = self._conversation.session if self._conversation is not None else None
        if state == "opened" and (serial != self._connection or session is None):
            self._end_session()
            self._connection = serial
            self._greet()
        elif state == "closed":
            self._end_session()
            self._has_focus = False
            self._discard_input()
        elif state == "in" and not self._has_focus:
            self._has_focus = True
            if isinstance(session, HmpSession):
                session.prompt()
            self.host_writable()
        elif state == "out" and self._has_focus:
            if isinstance(session, HmpSession):
                session.leave()
                self.flush()
            self._has_focus = False

    def _discard_input(self) -> None:
        """Drop what a client typed before it left: it is not the next one's."""
        while self._host is not None and self._host.readv([self._buffer]):
            pass

    # chardev.base.ConnectionSink

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """A client has connected; or there is only the chardev's log."""
        if self._host is not None:
            self._host.close()
        self._chardev, self._taken = chardev, (connection, fds)
        host, self._socket = open_client_end(connection, fds, self._loop)
        self._listen_to(host)

    # host_end.base.HostListener

    def host_opened(self) -> None:
        """A client is connected."""
        if not self._shares:  # else front_changed says so
            self._greet()

    def _greet(self) -> None:
        """Begin a session once the backend is ready."""
        host, connection = self._host, self._connection

        def begin() -> None:
            is_there = host is not None and host is self._host and host.connected
            if is_there and self._conversation is None and connection == self._connection:
                self._begin_session()
                self.host_readable()

        self._backend.when_ready(begin)

    def host_closed(self) -> None:
        """The client has left."""
        self._end_session()
        host = self._host
        if host is not None and host.ended:
            self._drop_host()

    def host_readable(self) -> None:
        """The client has sent something."""
        self._hear_first()
        # One read per turn; none before the last one is handled, or while the client does not read our answers.
        conversation = self._conversation
        if self._host is None or conversation is None or not conversation.can_receive or self.unsent:
            return
        try:
            count = self._host.readv([self._buffer])
        except BackendError as error:
            self.fail(str(error))
            return
        if count:
            conversation.receive(bytes(self._buffer[:count]))

    def host_writable(self) -> None:
        """The client reads again."""
        self.flush()
        if self._conversation is not None:
            self._conversation.advance()

    # The session

    def _begin_session(self) -> None:
        session = self._make_session()
        self._converse(session)
        if isinstance(session, HmpSession) and self._has_focus:
            session.prompt()
        self.flush()

    def _take_passed(self) -> int:
        if self._socket is None or not self._socket.passed:
            raise QmpError("No file descriptor supplied via SCM_RIGHTS")
        return self._socket.passed.popleft()

    def send_event(self, name: str, data: Mapping[str, object] | None) -> None:
        """Send an event of ours; HMP has none."""
        if (session := self._hearer()) is not None:
            session.event(name, dict(data) if data is not None else None, time.time())
            self.flush()

    def pass_event(self, event: Mapping[str, object]) -> None:
        """Send an event of QEMU's."""
        if (session := self._hearer()) is not None:
            session.pass_event(event)
            self.flush()

    def _hearer(self) -> QmpSession | None:
        """The session that gets events, if there is one."""
        session = self._conversation.session if self._conversation is not None else None
        hears = self._has_focus or len(self.unsent) < WRITE_SIZE
        return session if isinstance(session, QmpSession) and hears else None

    # conversation.Line

    def read_on(self) -> None:
        """Everything received was handled: read more in the next turn."""
        if self._host is not None and self._host.readable:
            self._loop.add_turn(self.host_readable)

    def run_later(self, callback: Callable[[], None]) -> None:
        """Call back in the next turn of the loop."""
        self._loop.add_turn(callback)

    def flush(self) -> None:
        """Send the session's output."""
        if self._conversation is None or self._host is None:
            return
        self.unsent += self._conversation.session.data_to_send()
        if not self._has_focus:
            return  # Output waits for the focus, as with QEMU's monitors.
        try:
            while self.unsent and self._host is not None:
                with memoryview(bytes(self.unsent[:WRITE_SIZE])) as piece:
                    count = self._host.writev([piece])
                if not count:
                    break
                del self.unsent[:count]
        except BackendError as error:
            self.fail(str(error))
        if len(self.unsent) > MAX_UNSENT:
            self.fail("the client does not read its answers")

    def fail(self, reason: str) -> None:
        """Close the client's connection; log why."""
        log.error("monitor on chardev %s: %s; the connection is closed", self.options.chardev, reason)
        self._end_session()
        if not self._shares:
            self._drop_host()

    def _end_session(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.end()
        self.unsent.clear()
        self._names.close()

    def _drop_host(self) -> None:
        host, self._host = self._host, None
        self._socket = self._taken = None
        if host is not None:
            host.close()
        if self._chardev is not None:
            self._chardev.connection_ended()

    def close(self) -> None:
        """Close the monitor."""
        self._chardev = None
        self._end_session()
        self._drop_host()
