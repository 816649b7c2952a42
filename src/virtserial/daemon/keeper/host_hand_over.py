"""Host ends that go from one running keeper to another, with their connections: a guest moves on one machine.

| step | the keeper that has them | the other one |
|---|---|---|
| start | | does not open chardevs that are to come (BackEnds.later) |
| `wanted` | | names them, each with its options |
| `describe` | takes no more clients; its device stands still, so no byte moves | |
| | its worker lets go of clients that share a chardev | |
| `take_over` | | holds the connections, and tells its worker |
| `release` | closes its copies, and removes no names | |
| `keep`, if the other one fails | takes clients again; its worker has lost nothing | |
| `open_rest` | | opens what has not come |

Clients that share a chardev go as a killed worker leaves them to the next: each one's place in the output is where
the kernel has it (channel/output_log.py).  No two workers may have them at once: both would send the same bytes.

Only chardevs of ports can go, and what is multiplexed or in a hub cannot.  A connection with a protocol's state in the
worker (TLS, websocket, telnet) keeps its chardev here; of several clients it ends, as with every worker.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from virtserial.channel.connections import ClientConnection, LayeredConnection, unlogged
from virtserial.channel.messages import Connect, Disconnect, StopListening
from virtserial.daemon.keeper.announcement import announce
from virtserial.daemon.keeper.document import ChardevLeft, HeldLeft, HostLeft, HostsLeft, HostsWanted
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
        for chardev in self._candidates():
            self._back_ends.later.add(chardev.id)
            self._back_ends.prepare_for(chardev)

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
            for held in host.held:
                if isinstance(held.message, Connect):
                    fds = tuple(map(take, held.descriptors))
                    self._back_ends.connection_opened(chardev, held.message.connection, fds)
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
            chardev.stop_accepting()
            # Still held: a client that the worker has taken before is one until we know of it.
            self._keeper.workers.send(StopListening(chardev.id))
            if chardev.is_shared:
                self._keeper.workers.send(Disconnect(chardev.id))
        try:
            settle()
        except VirtserialError:
            self.keep(chardev.id for chardev in going)
            raise
        for chardev in going:
            self._back_ends.stop_listening(chardev.id)
            self._end_layered_clients(chardev)
            connect = self._keeper.held.find(Connect, chardev.id)
            if connect is not None and isinstance(unlogged(connect.connection), LayeredConnection):
                self.keep([chardev.id])
                continue
            left = ChardevLeft(chardev.id, *chardev.recipe, chardev.hand_over(put), restricted=False)
            held = [
                HeldLeft(message, tuple(map(put, fds)))
                for message, fds in self._keeper.held.all(Connect, chardev.id)
                if isinstance(message, Connect)
            ]
            hosts.append(HostLeft(left, tuple(held)))
        return HostsLeft(tuple(hosts))

    def _end_layered_clients(self, chardev: Chardev) -> None:
        """Let go of those of several clients with whom a worker that is no more spoke a protocol."""
        for message, _ in self._keeper.held.all(Connect, chardev.id):
            connection = message.connection if isinstance(message, Connect) else None
            if isinstance(connection, ClientConnection) and isinstance(connection.connection, LayeredConnection):
                self._keeper.held.drop_entry(message)
                chardev.client_left(connection.place)

    def keep(self, ids: Iterable[str]) -> None:
        """The other keeper has not taken them."""
        for chardev in self._chardevs(ids):
            self._back_ends.stop_listening(chardev.id)
            if chardev.is_shared:
                self._back_ends.send_again(chardev.id)
            chardev.accept_here()
            self._back_ends.let_accept(chardev)

    def release(self, ids: Iterable[str]) -> None:
        """The other keeper has them."""
        for chardev in self._chardevs(ids):
            self._keeper.held.drop_all(Connect, chardev.id)
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
