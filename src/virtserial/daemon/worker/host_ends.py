"""The host ends of the worker's ports: each connection that the keeper hands over is joined to what uses its chardev.

| the chardev | is joined to |
|---|---|
| of a port | the port, in the place of the connection it has |
| a part of a hub | the hub's host end, which the port that uses the hub has |
| shared by several clients | as above; each client's connection is added to that host end (host_end/clients.py) |
| multiplexed | a Multiplexer: each port and front (a monitor, QEMU) has a share, the last has the focus |
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from virtserial.channel.connections import ClientConnection
from virtserial.channel.messages import Accepted, ConnectionEnded, FrontChanged, Quit
from virtserial.daemon.worker.client_listener import ClientListener
from virtserial.errors import VirtserialError
from virtserial.host_end.client_ends import open_client
from virtserial.host_end.factory import open_host_end
from virtserial.host_end.hub import HubHostEnd
from virtserial.host_end.mux import Multiplexer
from virtserial.host_end.mux_front import StreamFront

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from virtserial.accounting import Account
    from virtserial.channel.channel import Send
    from virtserial.channel.messages import Connect, FromWorker, FrontState, Listen
    from virtserial.console.port import Port
    from virtserial.daemon.worker.guest_device import GuestDevice
    from virtserial.host_end.clients import ClientsHostEnd
    from virtserial.loop import EventLoop

log = logging.getLogger("virtserial.worker")

MOST_TURNS = 8
"""For which the next client, and all input, waits until a port has dropped what was for the last one: a guest that
never stops writing must not hold up others."""
FREE_TURNS = 2
"""In which input goes on after so many running: hosts that come and go all the time must not hold it up for ever."""


class HostEnds:
    """
    Args:
        send: to the keeper.
        account: gets what host ends read and write.
    """

    def __init__(self, loop: EventLoop, send: Send[FromWorker], account: Account) -> None:
        self._loop = loop
        self._account = account
        self._send = send
        self._ports: dict[str, list[tuple[GuestDevice, Port]]] = {}
        self._muxes: dict[str, tuple[int, Multiplexer]] = {}
        self._fronts: dict[str, list[StreamFront]] = {}
        self._shared: dict[str, ClientsHostEnd] = {}
        self._listeners: dict[str, ClientListener] = {}
        self._connected: set[str] = set()
        self._vacant: dict[str, int] = {}
        self._turns_held = 0

    def add_port(self, device: GuestDevice, port: Port, chardev: str) -> None:
        """A port uses a chardev; connections come after this."""
        self._ports.setdefault(chardev, []).append((device, port))

    def remove_port(self, device: GuestDevice, port: Port, chardev: str) -> None:
        """A port that used a chardev is gone."""
        users = self._ports[chardev]
        users.remove((device, port))
        if not users:
            del self._ports[chardev]

    def add_front(self, chardev: str, name: str, fd: int) -> None:
        """Somebody beside the ports uses a multiplexed chardev, over a stream."""

        def tell(state: FrontState) -> None:
            serial, _ = self._muxes.get(chardev, (0, None))
            self._send(FrontChanged(chardev, name, state, serial))

        front = StreamFront(self._loop, f"chardev '{chardev}' ({name})", fd, tell, self._account)
        self._fronts.setdefault(chardev, []).append(front)

    def disconnect(self, chardev: str) -> None:
        """Take the connection of a chardev away from its ports, or from the hub that it is a part of."""
        self._connected.discard(chardev)
        for device, port in self._ports.get(chardev, ()):
            if port.host is not None:
                host = port.host
                port.detach()
                host.close()
                device.connection_serials.pop(port, None)
        for front in self._fronts.get(chardev, ()):
            front.leave()
        self._muxes.pop(chardev, None)
        self._shared.pop(chardev, None)
        for users in self._ports.values():
            for _, port in users:
                if isinstance(port.host, HubHostEnd):
                    port.host.leave(chardev)

    def listen(self, message: Listen, fds: Sequence[int]) -> None:
        """Take the clients of a chardev from now on; `fds` are owned."""
        chardev = message.connect.chardev
        self.stop_listening(chardev)
        listener = self._listeners[chardev] = ClientListener(self._loop, message.connect, fds, self._accepted)
        if chardev not in self._connected:
            listener.listen()

    def stop_listening(self, chardev: str) -> None:
        """Take no more clients of a chardev."""
        listener = self._listeners.pop(chardev, None)
        if listener is not None:
            listener.close()

    def _accepted(self, connect: Connect, fds: Sequence[int]) -> None:
        self._send(Accepted(connect.chardev, connect.serial, self._is_used(connect)), fds[:1])
        self.connect(connect, fds)

    def _is_used(self, connect: Connect) -> bool:
        return (connect.hub or connect.chardev) in self._ports or connect.chardev in self._fronts

    def ended(self, chardev: str) -> None:
        """The keeper was told that a chardev's connection is over: the next client may come.

        Not before the port has had its turn: it tells the guest of the end, and drops what was for the last host.
        """
        self._connected.discard(chardev)
        if chardev in self._listeners:
            self._vacant[chardev] = 0
            self._hold_input()
            self._loop.add_turn(self._listen_again)

    def _listen_again(self) -> None:
        """Take the next clients of chardevs whose ports have had their turn; until then all input waits.

        One turn more shows whether input could go on, or the next host has left already.
        """
        if not self._vacant:
            self._turns_held = 0
            return
        for chardev, turns in list(self._vacant.items()):
            if turns < MOST_TURNS and any(port.work for _, port in self._ports.get(chardev, ())):
                self._vacant[chardev] = turns + 1
                continue
            del self._vacant[chardev]
            if chardev in self._listeners and chardev not in self._connected:
                self._listeners[chardev].listen()
        self._turns_held = (self._turns_held + 1) % (MOST_TURNS + FREE_TURNS)
        self._hold_input()
        self._loop.add_turn(self._listen_again)

    def _hold_input(self) -> None:
        self._loop.input_waits = bool(self._vacant) and self._turns_held < MOST_TURNS

    def connect(self, message: Connect, fds: Sequence[int]) -> None:
        """Join a connection to what uses its chardev, in place of the one that is there; `fds` are owned."""
        chardev, serial, hub = message.chardev, message.serial, message.hub
        if isinstance(message.connection, ClientConnection):
            self._add_client(message, message.connection, fds)
            return
        self._connected.add(chardev)
        if not self._is_used(message):
            _close(fds)
            return
        users = self._ports.get(hub or chardev)
        known_serial, mux = self._muxes.get(chardev, (0, None))
        if mux is not None and known_serial == serial and mux.fronts:
            # It was sent again, for a port that has just been plugged in.
            _close(fds)
            self._share(chardev, serial, mux)
            return
        shared: list[ClientsHostEnd] = []
        try:
            host = open_host_end(message.connection, fds, self._loop, self._account, shared.append)
        except VirtserialError as error:
            log.error("chardev %s: %s", chardev, error)
            self._ended(chardev, serial)
            return
        self.disconnect(chardev)
        self._connected.add(chardev)
        if shared:
            self._shared[chardev] = shared[0]
        if message.mux:
            leave = self._quit_of(chardev) if message.mux_quit else None
            mux = Multiplexer(self._loop, host, leave, message.program)
            self._muxes[chardev] = serial, mux
            self._share(chardev, serial, mux)
            mux.start()
            return
        assert users is not None  # Fronts are of multiplexers only.
        device, port = users[0]
        if hub is not None:
            self._hub_of(port, hub).join(chardev, host, lambda: self._ended(chardev, serial))
        else:
            device.connection_serials[port] = serial
            port.attach(host)

    def _add_client(self, message: Connect, connection: ClientConnection, fds: Sequence[int]) -> None:
        """Add a client to the host end of its chardev; `fds` are owned."""
        chardev, serial = message.chardev, message.serial
        shared = self._shared.get(chardev)
        if shared is None:
            _close(fds)  # It is sent again with a port that uses the chardev.
            return
        try:
            end = open_client(connection, fds[:-1], self._loop, self._account)
        except VirtserialError as error:
            log.error("chardev %s: %s", chardev, error)
            os.close(fds[-1])
            self._ended(chardev, serial)
            return
        shared.add_client(connection.place, end, fds[-1], lambda: self._ended(chardev, serial))

    def _quit_of(self, chardev: str) -> Callable[[], None]:
        return lambda: self._send(Quit(chardev))

    def _ended(self, chardev: str, serial: int) -> None:
        self._send(ConnectionEnded(chardev, serial))

    def _hub_of(self, port: Port, hub: str) -> HubHostEnd:
        """The hub under a port; made with the first connection of a part."""
        if not isinstance(port.host, HubHostEnd):
            port.attach(HubHostEnd(self._loop, f"chardev '{hub}' (hub)"))
        assert isinstance(port.host, HubHostEnd)
        return port.host

    def _share(self, chardev: str, serial: int, mux: Multiplexer) -> None:
        """Give each user of a multiplexed chardev that has no share of it one; the last gets the focus."""
        for front in self._fronts.get(chardev, ()):
            front.join(mux, lambda: self._ended(chardev, serial))
        for device, port in self._ports.get(chardev, ()):
            if port.host is None:
                device.connection_serials[port] = serial
                port.attach(mux.add_front())


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
