"""Where machines and ports come from: the seam between the web console and those who know them.

local_source.py is this machine.  Another source, such as a fleet behind a broker, gives ports longer names and is
asked in the same way; nothing else in this room knows the difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class ShownPort(NamedTuple):
    """A port as browsers see it.

    Attributes:
        name: what it is opened by, VM/PORT.
        console: hvcN for a console, else "".
        refusal: why nobody can connect to it; "" if one can.
        has_watch: whether lookers-on have places of their own.
        busy_with: who has its only place, if that is not us; "" for nobody.
        clients: how many are connected; None if nobody knows.
    """

    name: str
    console: str
    refusal: str
    has_watch: bool
    busy_with: str
    clients: int | None
    max_clients: int
    guest_open: bool
    to_host: int
    to_guest: int
    discarded: int
    dropped: int


class ShownMachine(NamedTuple):
    """A virtual machine as browsers see it.

    Attributes:
        error: why nothing is known of its ports; "" if they are.
        restarts: how often a part of its device process was started again.
        pluggable: whether ports can be plugged into it and unplugged.
    """

    name: str
    error: str
    restarts: int
    pluggable: bool
    ports: Sequence[ShownPort]


class Connection(Protocol):
    """A connection to a port's host end."""

    async def read(self, limit: int) -> bytes:
        """Wait for bytes; b"" when the connection is over."""

    async def write(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            PeerAway: the connection is over.
        """

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the guest how large the terminal is, if there is a way."""

    def close(self) -> None:
        """End it."""


class Source(Protocol):
    """Machines and their ports.  All calls but look() raise VirtserialError with a text for people."""

    async def look(self) -> list[ShownMachine]:
        """Everything, as it is now; a machine that does not answer holds up nobody."""

    async def open(self, name: str, only_watch: bool, force: bool) -> Connection:
        """Connect to a port.

        Args:
            only_watch: nothing will be sent.
            force: send away a client that has its only place.

        Raises:
            BusyError: it has no free place.
        """

    async def restart(self, machine: str) -> None:
        """Begin to restart its device process, in place."""

    async def plug(self, machine: str, port: str, is_console: bool) -> None:
        """Plug a port of this name, with a socket as its host end."""

    async def unplug(self, name: str) -> None:
        """Unplug a port."""

    def close(self) -> None:
        """Let go of what it holds."""
