"""Host ends that go from one running keeper to another, with their connections: a guest moves on one machine.

| step | the keeper that has them | the other one |
|---|---|---|
| start | | does not open chardevs that are to come (BackEnds.later) |
| `wanted` | | names them, each with its options |
| `describe` | takes no more clients; its device stands still, so no byte moves | |
| `take_over` | | holds the connections, and tells its worker |
| `release` | closes its copies, and removes no names | |
| `keep`, if the other one fails | takes clients again; its worker has lost nothing | |
| `open_rest` | | opens what has not come |

Only plain chardevs of ports can go: what is multiplexed, in a hub, shared by several clients, or has a protocol's state
in the worker (TLS, websocket, telnet) cannot.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from virtserial.channel.connections import LayeredConnection, SharedConnection, unlogged
from virtserial.channel.messages import Connect, Disconnect, StopListening
from virtserial.daemon.keeper.announcement import announce
from virtserial.daemon.keeper.document import ChardevLeft, HostLeft, HostsLeft, HostsWanted
from virtserial.errors import ConfigError, StateError, VirtserialError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from virtserial.chardev.base import Chardev, Put, Take
    from virtserial.daemon.keeper.keeper import Keeper

log = logging.getLogger("virtserial.keeper")

KINDS: Final = ("socket", "pty", "pipe", "file", "serial", "udp")


class HostHandOver:
    """One keeper's part in it, on either side."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._back_ends = keeper.back_ends

    def _candidates(self) -> list[Chardev]:
        return [chardev for chardev in self._keeper.chardevs.values() if self._can_go(chardev)]

    def _can_go(self, chardev: Chardev) -> bool:
        if chardev.mux or chardev.is_hub or chardev.hub is not None or chardev.id in self._back_ends.sinks:
            return False
        return chardev.recipe[0] in KINDS and self._keeper.machine.user_of(chardev.id) is not None

    # The keeper that gets them

    def expect(self) -> None:
        """Before the start: do not open what is to come."""
        self._back_ends.later = {chardev.id for chardev in self._candidates()}

    def wanted(self) -> HostsWanted:
        """What is not open yet."""
        return HostsWanted({chardev.id: _recipe_of(chardev) for chardev in self._expected()})

    def _expected(self) -> list[Chardev]:
        return [chardev for chardev in self._keeper.chardevs.values() if chardev.id in self._back_ends.later]

    def take_over(self, left: HostsLeft, take: Take) -> None:
        """Continue with what another keeper has left.

        Raises:
            StateError: a descriptor is missing.
        """
        for host in left.hosts:
            chardev = self._keeper.chardevs.get(host.chardev.id)
            if chardev is None or chardev.id not in self._back_ends.later:
                continue
            self._back_ends.later.discard(chardev.id)
            chardev.report = log.warning
            chardev.take_over(self._keeper.loop, self._back_ends, host.chardev.saved, take)
            if host.connect is not None:
                fds = tuple(map(take, host.descriptors))
                self._back_ends.connection_opened(chardev, host.connect.connection, fds)
            self._back_ends.let_accept(chardev)

    def open_rest(self) -> None:
        """Open what has not come: hosts have to connect again."""
        for chardev in self._expected():
            self._back_ends.later.discard(chardev.id)
            try:
                self._back_ends.open_one(chardev, announce)
            except ConfigError as error:
                log.error("chardev '%s': %s", chardev.id, error)

    # The keeper that has them

    def describe(self, wanted: HostsWanted, put: Put, settle: Callable[[], object]) -> HostsLeft:
        """Take no more clients of chardevs that are wanted, and describe them.

        Args:
            put: takes their descriptors.
            settle: returns when the worker has told of every client that it has taken; what it raises, this raises,
                and nothing has changed.
        """
        hosts: list[HostLeft] = []
        going = [chardev for chardev in self._candidates() if wanted.recipes.get(chardev.id) == _recipe_of(chardev)]
        for chardev in going:
            # Still held: a client that the worker has taken before is one until we know of it.
            self._keeper.workers.send(StopListening(chardev.id))
        try:
            settle()
        except VirtserialError:
            self.keep(chardev.id for chardev in going)
            raise
        for chardev in going:
            self._back_ends.stop_listening(chardev.id)
            connect = self._keeper.held.find(Connect, chardev.id)
            fds = [fd for _, held in self._keeper.held.all(Connect, chardev.id) for fd in held]
            if connect is not None and isinstance(
                unlogged(connect.connection), LayeredConnection | SharedConnection
            ):
                self._back_ends.let_accept(chardev)
                continue
            left = ChardevLeft(chardev.id, *chardev.recipe, chardev.hand_over(put), restricted=False)
            hosts.append(HostLeft(left, connect, tuple(map(put, fds))))
        return HostsLeft(tuple(hosts))

    def keep(self, ids: Iterable[str]) -> None:
        """The other keeper has not taken them."""
        for chardev in self._chardevs(ids):
            self._back_ends.stop_listening(chardev.id)
            self._back_ends.let_accept(chardev)

    def release(self, ids: Iterable[str]) -> None:
        """The other keeper has them."""
        for chardev in self._chardevs(ids):
            self._keeper.held.drop(Connect, chardev.id)
            self._keeper.workers.send(Disconnect(chardev.id))
            chardev.release()

    def _chardevs(self, ids: Iterable[str]) -> Sequence[Chardev]:
        return [self._keeper.chardevs[name] for name in ids if name in self._keeper.chardevs]


def _recipe_of(chardev: Chardev) -> str:
    kind, values = chardev.recipe
    try:
        return json.dumps([kind, values], sort_keys=True)
    except TypeError as error:
        raise StateError(f"chardev '{chardev.id}' cannot be described: {error}") from None
