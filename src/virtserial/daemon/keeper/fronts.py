"""Users of multiplexed chardevs that are no ports - monitors, QEMU's own devices - as the keeper knows them.

Each has a stream to the worker, which joins it to the host end (host_end/mux_front.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from virtserial.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from virtserial.channel.channel import Message
    from virtserial.chardev.base import Chardev
    from virtserial.machine.model import Machine

    class HoldAndSend(Protocol):
        """Keeps descriptors for every worker to come, and sends them to the one that runs."""

        def __call__(self, key: str, message: Message, fds: Sequence[int]) -> None: ...


class FrontUser(Protocol):
    """Who shares a multiplexed chardev with ports."""

    def front_changed(self, state: str, serial: int) -> None:
        """The host end of connection `serial` is "opened" or "closed"; the focus is "in" or "out"."""


class Fronts:
    """
    Args:
        machine: knows the ports, which count as users too.
    """

    def __init__(self, machine: Machine, hold_and_send: HoldAndSend) -> None:
        self._machine = machine
        self._hold_and_send = hold_and_send
        self._users: dict[str, FrontUser] = {}

    def add(self, chardev: Chardev, name: str, stream: socket.socket, user: FrontUser | None = None) -> None:
        """Give somebody a share of a multiplexed chardev.

        Args:
            name: of this user, among those of the chardev.
            stream: what is for the user goes out here, and what it says comes in; owned from here on.
            user: hears of the host end.

        Raises:
            ConfigError: it has all the users it can have.
        """
        users = self._machine.users_of(chardev.id)
        if len(users) + chardev.fronts >= chardev.max_users:
            raise ConfigError(
                f"too many uses of multiplexed chardev '{chardev.id}' (maximum is {chardev.max_users})"
            )
        stream.setblocking(False)
        key = self.keep(chardev, name, user)
        self._hold_and_send(key, {"type": "front", "chardev": chardev.id, "front": name}, [stream.detach()])

    def keep(self, chardev: Chardev, name: str, user: FrontUser | None) -> str:
        """Count a user whose stream is held already; returns the key that it is held under."""
        chardev.fronts += 1
        key = f"front/{chardev.id}/{name}"
        if user is not None:
            self._users[key] = user
        return key

    def changed(self, message: Message) -> None:
        """The worker tells of a change."""
        user = self._users.get(f"front/{message['chardev']}/{message['front']}")
        if user is not None:
            user.front_changed(str(message["state"]), cast(int, message["serial"]))
