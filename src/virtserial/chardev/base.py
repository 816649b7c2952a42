"""The keeper's half of a host back end: what a chardev is, and what it hands to the worker.

A Chardev does the system calls that need names and rights (open, bind, listen, accept, connect) and yields
connections (channel/connections.py) with their descriptors.  The worker makes the moving half of each (host_end/).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

from virtserial.channel.connections import MAX_FRONTS
from virtserial.chardev.reach import ANYWHERE
from virtserial.standard_error import has_room

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from virtserial.channel.connections import Connection
    from virtserial.chardev.preparation import Preparation
    from virtserial.chardev.reach import Reach
    from virtserial.loop import EventLoop

    Put = Callable[[int], int]
    """Takes a descriptor that outlives this process, and returns the number to ask `Take` for it by."""
    Take = Callable[[int], int]


class ConnectionSink(Protocol):
    """Who takes the connections: the keeper."""

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """Take a connection, and own its descriptors."""


def report_to_stderr(line: str) -> None:
    """Print one line for the operator, if there is room for it."""
    if has_room():
        print(line, file=sys.stderr, flush=True)


class Chardev:
    """A named host back end, as QEMU's -chardev makes one.

    Attributes:
        id: the name that `chardev=` of a port refers to.
        kind: QEMU's backend name ("socket", "pty", ...).
        filename: what QEMU's query-chardev shows, e.g. "disconnected:unix:/tmp/foo,server=on".
        wait: startup waits for a client (`wait_connected`).
        mux: up to four ports may use it (`mux=on`); Ctrl-a switches between them.
        mux_quit: Ctrl-a x ends the process (`mux-quit=on`, ours).
        fronts: how many users of a multiplexer are not ports but monitors or QEMU's own devices.
        hub: the hub chardev that it is a part of, or None.
        is_hub: whether it is one.
        is_shared: it has several clients, each with a connection of its own.
        announcement: a line to print once it is open, or None.
        report: prints a line for the operator; the keeper sets another than standard error.
        reach: uses its paths; the keeper sets another for what monitors add.
        recipe: the arguments of options.chardev_options.make_chardev for an equal one: kind, and values as in JSON.
    """

    kind = ""
    wait = False
    announcement: str | None = None
    mux = False
    mux_quit = False
    fronts = 0
    hub: Chardev | None = None
    is_hub = False
    is_shared = False
    recipe: tuple[str, Mapping[str, object]] = ("", {})

    def __init__(self, chardev_id: str) -> None:
        self.id = chardev_id
        self.report: Callable[[str], None] = report_to_stderr
        self.reach: Reach = ANYWHERE

    @property
    def filename(self) -> str:
        return self.kind

    @property
    def host_end(self) -> str:
        """Where programs find it: as `filename`, with the path where that shows a listening socket's descriptor."""
        return self.filename.removeprefix("disconnected:")

    @property
    def backend(self) -> Chardev:
        """The chardev of its kind: itself, unless it wraps another."""
        return self

    def listing(self) -> list[tuple[str, str]]:
        """(label, filename) as query-chardev shows them: under a multiplexer the back end has a label of its own."""
        return [(self.id, "mux"), (f"{self.id}-base", self.filename)] if self.mux else [(self.id, self.filename)]

    def with_connections(self) -> Sequence[Chardev]:
        """The chardevs whose connections its port gets: itself, or the parts of a hub."""
        return (self,)

    def replace_part(self, part: Chardev, successor: Chardev) -> None:
        """Replace a part of this hub by another chardev (chardev-change)."""
        raise NotImplementedError

    def paths(self) -> Sequence[str]:
        """The paths that it uses in the file system."""
        return ()

    def preparations(self) -> Sequence[Preparation]:
        """What the worker reads for it before it is confined; known once it is open."""
        return ()

    @property
    def max_users(self) -> int:
        """The most users it can have."""
        return MAX_FRONTS if self.mux else 1

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        """Do what needs names and rights; hand connections to `sink` now or later.

        Raises:
            ConfigError: it cannot be opened, in QEMU's words; nothing is left behind.
        """
        raise NotImplementedError

    def hand_over(self, put: Put) -> dict[str, object]:
        """Return what `take_over` in another process needs, as JSON can carry it.

        Nothing is closed or removed: this process ends without cleaning up.
        """
        return {}

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        """Continue where another process stopped, instead of `open`.  The keeper holds its connection."""

    def wait_connected(self) -> None:
        """Run the loop until a client is connected; kinds without clients return at once.

        Do not call it from inside the loop.

        Raises:
            ConfigError: the loop was stopped (SIGTERM) before a client came.
            StateError: it is not open.
        """

    def connection_ended(self) -> None:
        """The connection has ended and its descriptors are closed: listen or connect again, or stay closed."""

    def client_left(self, place: int) -> None:
        """One of several clients (ClientConnection.place) has left, and its descriptors are closed."""

    def clients(self, positions: Mapping[int, int]) -> dict[str, object]:
        """What x-virtserial-query-clients tells of a chardev with several clients.

        Args:
            positions: of each client, by place, the descriptor that it reads the output by.
        """
        raise NotImplementedError

    def let_accept(self) -> tuple[Connection, Sequence[int]] | None:
        """Let somebody else accept the clients, who says so by `client_accepted`.

        Returns:
            What each client's connection is, its socket the first descriptor, the listening sockets the others; and
            those, which stay this chardev's.  None: it has none, or accepts itself.
        """
        return None

    def stop_accepting(self) -> None:
        """Leave clients that come where they wait."""

    def accept_here(self) -> None:
        """Accept clients itself again, after `let_accept` or `stop_accepting`."""

    def client_accepted(self, fd: int) -> None:
        """Somebody else has accepted a client; its socket stays the caller's.

        Raises:
            StateError: it is no socket.
        """

    def guest_opened(self) -> None:
        """The guest has opened the port that uses this chardev (a handler process that has ended starts again)."""

    def release(self) -> None:
        """Close what another process has taken over; names in the file system are its own now."""
        self.close()

    def close(self) -> None:
        """Release everything: descriptors, timers, names in the file system.  Closing twice is harmless."""


def could_not_open(path: str, error: OSError) -> str:
    """QEMU's text for a path that cannot be opened."""
    return f"Could not open '{path}': {os.strerror(error.errno or 0)}"
