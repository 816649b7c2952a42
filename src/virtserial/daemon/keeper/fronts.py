"""Users of multiplexed chardevs that are no ports - monitors, QEMU's own devices - as the keeper knows them.

Each has a stream to the worker, which joins it to the host end (host_end/mux_front.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from virtserial.channel.messages import AddFront
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from virtserial.channel.channel import Send
    from virtserial.channel.messages import FromKeeper, FrontChanged
    from virtserial.chardev.base import Chardev
    from virtserial.daemon.keeper.held import HeldDescriptors
    from virtserial.machine.model import Machine


class FrontUser(Protocol):
    """Who shares a multiplexed chardev with ports."""

    def front_changed(self, state: str, serial: int) -> None:
        """The host end of connection `serial` is "opened" or "closed"; the focus is "in" or "out"."""


class Fronts:
    """
    Args:
        machine: knows the ports, which count as users too.
        held: where the streams are held.
        send: to the worker.
    """

    def __init__(self, machine: Machine, held: HeldDescriptors, send: Send[FromKeeper]) -> None:
        self._machine = machine
        self._held = held
        self._send = send
        self._users: dict[tuple[str, str], FrontUser] = {}

    def add(self, chardev: Chardev, name: str, stream: socket.socket, user: FrontUser | None = None) -> None:
        """Give somebody a share of a multiplexed chardev.

        Args:
            name: of this user, among those of the chardev.
            stream: what is for the user goes out here, and what it says comes in; owned from here on.
            user: is told of the host end.

        Raises:
            ConfigError: it has all the users it can have.
        """
        users = self._machine.users_of(chardev.id)
        if len(users) + chardev.fronts >= chardev.max_users:
            raise ConfigError(
                f"too many uses of multiplexed chardev '{chardev.id}' (maximum is {chardev.max_users})"
            )
        stream.setblocking(False)
        self.keep(chardev, name, user)
        fds = [stream.detach()]
        self._held.hold(message := AddFront(chardev.id, name), fds)
        self._send(message, fds)

    def keep(self, chardev: Chardev, name: str, user: FrontUser | None) -> None:
        """Count a user whose stream is held already."""
        chardev.fronts += 1
        if user is not None:
            self._users[chardev.id, name] = user

    def changed(self, message: FrontChanged) -> None:
        """The worker tells of a change."""
        user = self._users.get((message.chardev, message.front))
        if user is not None:
            user.front_changed(message.state, message.serial)
