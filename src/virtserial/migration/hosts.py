"""Host ends go along with a guest that moves to another virtserial-qemu of the same machine (--take-hosts-from).

| step | where the guest leaves | where it arrives |
|---|---|---|
| `migrate` | listens at hosts.sock (0600, our user only) | has not opened the ports' chardevs |
| loaded, set up, not running yet | | connects, and names the chardevs that it wants |
| the migration is over | if the guest has left: passes what is open (keeper/host_hand_over.py) | |
| | else: closes the connection | |
| taken | | its worker has the connections; answers |
| answered | closes its copies | the guest runs |
| no answer within TIMEOUT | keeps all | opens chardevs of its own: hosts connect again |

Each message is one byte, with one descriptor: a Handover.
"""

from __future__ import annotations

import array
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from virtserial.channel.codec import decode, encode
from virtserial.chardev.unix_listener import UnixListener
from virtserial.closing import close_foreign
from virtserial.daemon.keeper.acceptor import Acceptor
from virtserial.daemon.keeper.document import HostsLeft, HostsWanted
from virtserial.daemon.keeper.handover import Handover
from virtserial.errors import ConfigError, StateError, VirtserialError
from virtserial.loop import EPOLLIN
from virtserial.migration.machine import log
from virtserial.migration.start import peer_of
from virtserial.monitor.steps import Until

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.daemon.keeper.host_hand_over import HostHandOver
    from virtserial.migration.machine import MovingMachine
    from virtserial.migration.source import Departures
    from virtserial.monitor.steps import Steps

SOCKET: Final = "hosts.sock"
TIMEOUT: Final = 5.0
"""Seconds in which either side has to answer."""
TAKEN: Final = b"+"


def send_handover(connection: socket.socket, handover: Handover) -> None:
    """Send one.

    Raises:
        OSError: it cannot be.
    """
    packed = handover.pack()
    try:
        fds = array.array("i", [packed])
        connection.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], socket.MSG_NOSIGNAL)
    finally:
        os.close(packed)


def receive_handover(connection: socket.socket) -> Handover:
    """Receive one.

    Raises:
        StateError: the other side has closed, or sends something else.
        OSError: nothing comes in time.
    """
    _, fds, _, _ = socket.recv_fds(connection, 1, 1)
    if not fds:
        raise StateError("the other virtserial-qemu does not hand over its host ends")
    for fd in fds:
        os.set_inheritable(fd, False)
    return Handover.unpack(fds[0])


def _close(handover: Handover) -> None:
    """Close what nobody has taken: the other side has a copy."""
    for fd in handover.rest():
        close_foreign(fd)


class HostsGiver:
    """Where a guest leaves: gives its host ends to who asks, once the guest has left.

    Args:
        departures: know whether it has.
    """

    def __init__(
        self, machine: MovingMachine, departures: Departures, hand_over: HostHandOver, run_directory: str
    ) -> None:
        self._machine = machine
        self._departures = departures
        self._hand_over = hand_over
        self._path = os.path.join(run_directory, SOCKET)
        self._listener: UnixListener | None = None
        self._acceptor: Acceptor | None = None
        self._client: socket.socket | None = None

    def listen(self) -> None:
        """Let somebody ask; again is harmless."""
        if self._listener is None:
            try:
                self._listener = UnixListener(self._path, 1, mode=0o600)
            except ConfigError as error:
                log.warning("host ends cannot be handed over: %s", error)
                return
            self._acceptor = Acceptor(self._machine.loop, self._listener.socket, "host ends", self._came)

    def _came(self, client: socket.socket) -> None:
        pid, uid = peer_of(client)
        if uid != os.geteuid() or self._client is not None:
            log.warning("a client of process %d and user %d does not get the host ends", pid, uid)
            client.close()
            return
        client.settimeout(TIMEOUT)
        self._client = client
        self._machine.run(self._give(client), self._end)

    def _give(self, client: socket.socket) -> Steps[None]:
        """Give one client what it asks for.  It waits in its own loop meanwhile, and answers at once."""
        yield from self._departures.over()
        if not self._departures.has_left:
            raise ConfigError("the guest has not left: its host ends stay")
        yield Until(lambda call: self._await(client, call))
        given: list[str] = []
        try:
            asked = receive_handover(client)
            _close(asked)
            handover = Handover()
            wanted = decode(HostsWanted, asked.document)
            left = self._hand_over.describe(wanted, handover.put, self._machine.pause)
            given = [host.chardev.id for host in left.hosts]
            handover.document = encode(left)
            send_handover(client, handover)
            yield Until(lambda call: self._await(client, call))
            if client.recv(1) != TAKEN:
                raise StateError("the other virtserial-qemu has not taken them")
        except (OSError, VirtserialError) as error:
            self._hand_over.keep(given)
            raise ConfigError(f"the host ends stay: {error}") from error
        self._hand_over.release(given)

    def _await(self, client: socket.socket, call: Callable[[object], None]) -> None:
        """Call when the client has said something, or has had TIMEOUT for it."""
        loop = self._machine.loop

        def done() -> None:
            timer.cancel()
            loop.unwatch(client.fileno())
            client.setblocking(False)
            call(None)

        timer = loop.call_later(TIMEOUT, done)
        loop.watch(client.fileno(), EPOLLIN, lambda _: done())

    def _end(self, result: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()
        if isinstance(result, Exception):
            log.warning("%s", result)

    def close(self) -> None:
        """Let nobody ask any more."""
        if self._acceptor is not None:
            self._acceptor.unwatch()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def take_hosts(hand_over: HostHandOver, run_directory: str) -> None:
    """Where a guest arrives: get the host ends, or open others in their place.

    Args:
        run_directory: of the virtserial-qemu that the guest has left.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(os.path.join(run_directory, SOCKET))
            send_handover(connection, Handover(encode(hand_over.wanted())))
            given = receive_handover(connection)
            try:
                hand_over.take_over(decode(HostsLeft, given.document), given.take)
            finally:
                _close(given)
            with suppress(OSError):
                connection.send(TAKEN, socket.MSG_NOSIGNAL)
    except (OSError, StateError) as error:
        log.error("the host ends of %s cannot be taken: %s; hosts have to connect again", run_directory, error)
    hand_over.open_rest()
