"""The host back ends of a running keeper: they come, go and take each other's place, and their connections are held.

A chardev does what needs a name or a right (chardev/base.py); each connection that it yields gets a serial number, is
held for the workers to come, and is sent to the one that runs, under the port, the hub or the front that uses it.

The clients of a plain listening socket are accepted by the worker itself, which tells the keeper in the same moment:
so what a host does first - connect here, send there - the guest learns first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from typing import TYPE_CHECKING

from virtserial.channel.connections import (
    ClientConnection,
    LayeredConnection,
    SocketConnection,
    is_peer_there,
    unlogged,
)
from virtserial.channel.messages import Connect, Disconnect, Listen, StopListening
from virtserial.channel.record import replace
from virtserial.errors import ConfigError, StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.channel.connections import Connection, Readable
    from virtserial.channel.messages import Accepted, ConnectionEnded
    from virtserial.chardev.base import Chardev, ConnectionSink
    from virtserial.chardev.preparation import Preparation
    from virtserial.daemon.keeper.heartbeat import Heartbeat
    from virtserial.daemon.keeper.held import HeldDescriptors
    from virtserial.daemon.keeper.path_policy import PathPolicy
    from virtserial.daemon.keeper.supervisor import Supervisor
    from virtserial.loop import EventLoop
    from virtserial.machine.model import Machine

log = logging.getLogger("virtserial.keeper")

KEPT_BACK = 32
"""Descriptors that clients leave to this process: for a message of the worker with all that it may bring, and for the
start of the next worker."""
COMPLAINT_SECONDS = 1.0
SERIALS_AHEAD = 1 << 20
"""Serial numbers that a worker may use for the clients that it accepts at one chardev."""


class BackEnds:
    """
    Args:
        machine: knows which port uses which chardev.
        chardevs: those to begin with, by id.
        held: where their connections are held.
        workers: get them.
        heartbeat: notices a worker that takes no clients.
        path_policy: what monitors may name; None trusts them.
        prepares: a worker can read nothing later, so it is told ahead what to read.

    Attributes:
        chardevs: every back end by id.
        sinks: by id, who else but a port uses a chardev, and takes its connections.
        connections: counts those of chardevs, to tell one from the next.
        preparations: what workers have to read ahead.
        later: ids of those that are not opened with the others: they may come from another keeper.
        program: what Ctrl-a x ends.
    """

    def __init__(
        self,
        loop: EventLoop,
        machine: Machine,
        chardevs: dict[str, Chardev],
        held: HeldDescriptors,
        workers: Supervisor,
        heartbeat: Heartbeat,
        path_policy: PathPolicy | None,
        prepares: bool,
    ) -> None:
        self.chardevs = chardevs
        self.sinks: dict[str, ConnectionSink] = {}
        self.connections = 0
        self.later: set[str] = set()
        self.preparations: dict[Readable, Preparation] = {}
        self.program = "virtserial"
        self._loop = loop
        self._next_complaint = 0.0
        self._machine = machine
        self._held = held
        self._workers = workers
        self._heartbeat = heartbeat
        self._path_policy = path_policy
        self._prepares = prepares

    def open(self, announce: Callable[[str], None]) -> None:
        """Open those to begin with, and say what there is to be said of them.

        Raises:
            ConfigError: one cannot be opened; `close` closes the others.
        """
        for chardev in self.chardevs.values():
            if chardev.id not in self.later:
                try:
                    self.open_one(chardev, announce)
                except ConfigError as error:
                    raise ConfigError(f"-chardev {chardev.kind},id={chardev.id}: {error}", error.hint) from error

    def open_one(self, chardev: Chardev, announce: Callable[[str], None]) -> None:
        """Open one of those to begin with.

        Raises:
            ConfigError: it cannot be opened.
        """
        chardev.report = log.warning
        chardev.open(self._loop, self)
        self.prepare_for(chardev)
        self.let_accept(chardev)
        if self._path_policy is not None:
            self._path_policy.allow(chardev.paths())
        if chardev.announcement:
            announce(chardev.announcement)

    def wait(self) -> None:
        """Wait for the clients that are to be waited for (wait=on).

        Raises:
            ConfigError: the loop was stopped meanwhile.
        """
        for chardev in self.chardevs.values():
            if chardev.wait and chardev.id not in self.later:
                chardev.wait_connected()

    def close(self) -> None:
        """Close all."""
        for chardev in self.chardevs.values():
            chardev.close()

    def prepare_for(self, chardev: Chardev) -> bool:
        """Have the worker read what it needs for a chardev before it is confined; whether it has to be replaced."""
        if not self._prepares:
            return False
        new = [wanted for wanted in chardev.preparations() if wanted.what not in self.preparations]
        self.preparations.update((wanted.what, wanted) for wanted in new)
        return bool(new) and self._workers.worker is not None

    # Connections

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """ConnectionSink: hold a connection, hand it to the worker."""
        if (sink := self.sinks.get(chardev.id)) is not None:
            sink.connection_opened(chardev, connection, fds)
            return
        message = self._connect(chardev, connection)
        self._held.hold(message, fds)
        if self.prepare_for(chardev):
            # The next worker has read what this connection needs, and gets it with all others.
            self._loop.add_turn(self._workers.replace)
        else:
            self._workers.send(message, fds)

    def _connect(self, chardev: Chardev, connection: Connection) -> Connect:
        self.connections += 1
        return Connect(
            chardev=chardev.id,
            hub=chardev.hub.id if chardev.hub is not None else None,
            mux=chardev.mux,
            mux_quit=chardev.mux_quit,
            program=self.program,
            serial=self.connections,
            connection=connection,
        )

    def let_accept(self, chardev: Chardev) -> None:
        """Have workers accept a chardev's clients, if it lets them and its connections are theirs."""
        if chardev.id in self.sinks or (offered := chardev.let_accept()) is None:
            return
        connection, listeners = offered
        message = Listen(self._connect(chardev, connection))
        self.connections += SERIALS_AHEAD
        self._held.hold(message, (), lent=listeners)
        for fd in listeners:
            self._heartbeat.watch(fd)
        self._workers.send(message, listeners)

    def stop_listening(self, chardev_id: str) -> None:
        """Have workers take no more clients of a chardev."""
        for _, fds in self._held.all(Listen, chardev_id):
            for fd in fds:
                self._heartbeat.unwatch(fd)
            self._held.drop(Listen, chardev_id)
            self._workers.send(StopListening(chardev_id))

    def add_sink(self, chardev_id: str, sink: ConnectionSink) -> None:
        """Give a chardev's connections to somebody else than the worker."""
        self.sinks[chardev_id] = sink
        if self._held.find(Listen, chardev_id) is not None:
            self.stop_listening(chardev_id)
            self.chardevs[chardev_id].accept_here()

    def accepted(self, message: Accepted, fds: list[int]) -> None:
        """The worker has taken a client.

        Args:
            fds: its socket; taken out of the list, unless nobody listens there any more.

        Raises:
            StateError: that cannot be.
        """
        listen = self._held.find(Listen, message.chardev)
        if listen is None or message.serial < listen.connect.serial:
            return  # The chardev is gone, or another one by now.
        if message.serial > listen.connect.serial or self._held.find(Connect, message.chardev) is not None:
            raise StateError(f"client {message.serial} of chardev '{message.chardev}' has come before others")
        if fds[0] >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - KEPT_BACK:
            self._is_taken(listen, message)
            self._send_away(message.chardev, fds[0])
            return
        self.chardevs[message.chardev].client_accepted(fds[0])
        listeners = [fd for _, lent in self._held.all(Listen, message.chardev) for fd in lent]
        self._held.hold(listen.connect, [fds.pop()], lent=listeners)
        self._is_taken(listen, message)
        if (listen.connect.mux or not message.is_served) and self._is_used(listen.connect.hub or message.chardev):
            # A port that was plugged in meanwhile found no connection to be sent with it.
            self.send_again(message.chardev)

    def _is_taken(self, listen: Listen, message: Accepted) -> None:
        self._held.change(Listen(replace(listen.connect, serial=message.serial + 1)))
        self.connections = max(self.connections, message.serial)

    def _send_away(self, chardev_id: str, fd: int) -> None:
        """Let the worker find that a client is gone."""
        if self._loop.now() >= self._next_complaint:
            self._next_complaint = self._loop.now() + COMPLAINT_SECONDS
            log.warning("chardev '%s': a client is sent away: hardly a descriptor is left", chardev_id)
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as client:
            client.shutdown(socket.SHUT_RDWR)

    def connection_ended(self, message: ConnectionEnded) -> None:
        """The worker has closed a connection.

        Raises:
            StateError: there was no such connection.
        """
        if message.serial > self.connections:
            raise StateError(f"connection {message.serial} of {self.connections} has ended")
        for held, _ in self._held.all(Connect, message.chardev):
            if isinstance(held, Connect) and held.serial == message.serial:  # else another has taken its place
                self._held.drop_entry(held)
                if isinstance(held.connection, ClientConnection):
                    self.chardevs[message.chardev].client_left(held.connection.place)
                else:
                    self.chardevs[message.chardev].connection_ended()

    def is_connected(self, chardev_id: str) -> bool:
        """Whether a chardev, or a part of a hub, has a connection that was handed over."""
        return any(
            isinstance(held, Connect) and is_peer_there(held.connection)
            for each in self.chardevs[chardev_id].with_connections()
            for held, _ in self._held.all(Connect, each.id)
        )

    def count_clients(self, chardev: Chardev) -> int:
        """How many hosts a chardev is connected to: more than one if several may share it."""
        if chardev.is_shared:
            return len(self._positions(chardev))
        return int(self.is_connected(chardev.id))

    def clients(self) -> list[dict[str, object]]:
        """What x-virtserial-query-clients returns: of each chardev with several clients, these and its counters."""
        return [
            chardev.clients(self._positions(chardev))
            for chardev in self.chardevs.values()
            # None is held of those that another keeper has, or still has.
            if chardev.is_shared and self._held.count(Connect, chardev.id)
        ]

    def _positions(self, chardev: Chardev) -> dict[int, int]:
        """By each client's place, the descriptor that it reads the output by."""
        return {
            held.connection.place: fds[-1]
            for held, fds in self._held.all(Connect, chardev.id)
            if isinstance(held, Connect) and isinstance(held.connection, ClientConnection)
        }

    def shut_down(self, chardev_id: str) -> bool:
        """Shut down the socket of a chardev's connection: the worker finds that its peer is gone.

        Of several clients it is the oldest of those who do not only watch.

        Returns:
            Whether there was one.
        """
        for message, fds in self._held.all(Connect, chardev_id):
            if not isinstance(message, Connect):
                continue
            connection = unlogged(message.connection)
            if isinstance(connection, ClientConnection) and not connection.watches:
                connection = connection.connection
            if isinstance(connection, SocketConnection | LayeredConnection):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as client:
                    client.shutdown(socket.SHUT_RDWR)
                    return True
        return False

    def send_again(self, chardev_id: str) -> None:
        """Send the connections of a chardev to the worker for a port that is new."""
        for chardev in self.chardevs[chardev_id].with_connections():
            self._held.send_again(Connect, chardev.id, self._workers.send)

    # Changes

    def is_busy(self, chardev_id: str) -> bool:
        """Whether a port, a monitor or a hub uses a chardev."""
        return self._is_used(chardev_id) or self.chardevs[chardev_id].hub is not None

    def _is_used(self, chardev_id: str) -> bool:
        if chardev_id in self.sinks or self.chardevs[chardev_id].fronts:
            return True
        return self._machine.user_of(chardev_id) is not None

    def add(self, chardev: Chardev) -> None:
        """Open a back end.

        Raises:
            ConfigError: it cannot be opened; nothing is left behind.
        """
        self._check_paths(chardev)
        parts = chardev.with_connections() if chardev.is_hub else ()
        for part in parts:
            if self._is_used(part.id):
                chardev.close()
                raise ConfigError(f"chardev '{part.id}' is already in use")
            self._set_hub(part, chardev.id)
        self.chardevs[chardev.id] = chardev
        try:
            chardev.open(self._loop, self)
            self.let_accept(chardev)
        except BaseException:
            self._forget(chardev.id)
            del self.chardevs[chardev.id]
            chardev.close()
            raise

    def _check_paths(self, chardev: Chardev) -> None:
        """What a monitor's client names must be allowed; what the command line names is."""
        if self._path_policy is not None:
            chardev.reach = self._path_policy
            try:
                self._path_policy.check(chardev.paths())
            except ConfigError:
                chardev.close()
                raise

    def _set_hub(self, part: Chardev, hub_id: str | None) -> None:
        """Say of a connection that there is already to which hub it belongs."""
        if (held := self._held.find(Connect, part.id)) is not None:
            self._held.change(replace(held, hub=hub_id))
        if (listen := self._held.find(Listen, part.id)) is not None:
            listen = Listen(replace(listen.connect, hub=hub_id))
            self._held.change(listen)
            self._held.send_again(Listen, part.id, self._workers.send)

    def change(self, chardev: Chardev) -> None:
        """Put a new back end in the place of the one of the same id, under its port if it has one.

        A port goes from one connection to the other without a loss: what the old one has not taken goes to the new one.
        If the new one has no connection yet, the guest sees the host's end closed until it has.

        Raises:
            ConfigError: the new one cannot be opened; the old one stays.
        """
        predecessor = self.chardevs[chardev.id]
        if predecessor.mux or predecessor.is_hub or chardev.mux or chardev.is_hub:
            chardev.close()
            raise ConfigError("Mux device hotswap not supported yet")
        self._check_paths(chardev)
        early = _EarlyConnection(self)
        try:
            chardev.open(self._loop, early)
        except BaseException:
            early.drop()
            chardev.close()
            raise
        self.chardevs[chardev.id] = chardev
        if predecessor.hub is not None:
            predecessor.hub.replace_part(predecessor, chardev)
        self.stop_listening(chardev.id)
        predecessor.close()
        self._held.drop_all(Connect, chardev.id)
        if not early.pass_on():
            self._workers.send(Disconnect(chardev.id))
        self.let_accept(chardev)

    def remove(self, chardev_id: str) -> None:
        """Close a back end that nobody uses."""
        chardev = self.chardevs.pop(chardev_id)
        if chardev.is_hub:
            for part in chardev.with_connections():
                self._set_hub(part, None)
        self._forget(chardev_id)
        chardev.close()

    def _forget(self, chardev_id: str) -> None:
        """Have nothing of a chardev left, neither here nor in the worker: the next one of its name starts afresh."""
        self.stop_listening(chardev_id)
        self._held.drop_all(Connect, chardev_id)
        self._workers.send(Disconnect(chardev_id))


class _EarlyConnection:
    """Keeps the connection of a chardev that has not yet taken another's place (ConnectionSink)."""

    def __init__(self, sink: ConnectionSink) -> None:
        self._sink = sink
        self._early: tuple[Chardev, Connection, tuple[int, ...]] | None = None
        self._in_place = False

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        if self._in_place:
            self._sink.connection_opened(chardev, connection, fds)
        else:
            self._early = chardev, connection, fds

    def pass_on(self) -> bool:
        """From now on connections are the sink's; whether there was one."""
        self._in_place = True
        early, self._early = self._early, None
        if early is not None:
            self._sink.connection_opened(*early)
        return early is not None

    def drop(self) -> None:
        if self._early is not None:
            for fd in self._early[2]:
                os.close(fd)
