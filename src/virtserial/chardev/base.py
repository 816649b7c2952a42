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
        """Take a connection and the ownership of its descriptors."""


def report_to_stderr(line: str) -> None:
    """Say one line to the operator."""
    print(line, file=sys.stderr, flush=True)


class Chardev:
    """A named host back end, as QEMU's -chardev makes one.

    Attributes:
        id: the name that `chardev=` of a port refers to.
        kind: QEMU's backend name ("socket", "pty", ...).
        filename: what QEMU's query-chardev shows, e.g. "disconnected:unix:/tmp/foo,server=on".
        wait: the operator wants to begin only when a client has come (`wait_connected`).
        mux: up to four ports may use it (`mux=on`); Ctrl-a switches between them.
        mux_quit: Ctrl-a x ends the process: the operator has said so (`mux-quit=on`, ours).
        fronts: how many of a multiplexer's places others than ports have: monitors, QEMU's own devices.
        hub: the hub chardev that it is a part of, or None.
        is_hub: whether it is one.
        announcement: a line to print once it is open, or None.
        report: takes lines for the operator that come up later; standard error unless the keeper sets it.
        reach: uses its paths; the keeper sets another for what monitors add.
        recipe: what options.chardev_options.make_chardev makes its like of: the kind, and values as of JSON.
    """

    kind = ""
    wait = False
    announcement: str | None = None
    mux = False
    mux_quit = False
    fronts = 0
    hub: Chardev | None = None
    is_hub = False
    recipe: tuple[str, Mapping[str, object]] = ("", {})

    def __init__(self, chardev_id: str) -> None:
        self.id = chardev_id
        self.report: Callable[[str], None] = report_to_stderr
        self.reach: Reach = ANYWHERE

    @property
    def filename(self) -> str:
        return self.kind

    @property
    def backend(self) -> Chardev:
        """The chardev of its kind: itself, unless it wraps another."""
        return self

    def listing(self) -> list[tuple[str, str]]:
        """(label, filename) as query-chardev shows them: under a multiplexer the back end has a label of its own."""
        return [(self.id, "mux"), (f"{self.id}-base", self.filename)] if self.mux else [(self.id, self.filename)]

    def with_connections(self) -> Sequence[Chardev]:
        """The chardevs whose connections its port gets: itself, but of a hub the parts."""
        return (self,)

    def replace_part(self, part: Chardev, successor: Chardev) -> None:
        """Of a hub: another chardev takes the place of a part (chardev-change)."""
        raise NotImplementedError

    def paths(self) -> Sequence[str]:
        """What it names in the file system."""
        return ()

    def preparations(self) -> Sequence[Preparation]:
        """What the worker has to read for it before it is confined; known when it is open."""
        return ()

    @property
    def max_users(self) -> int:
        """How many may use it."""
        return MAX_FRONTS if self.mux else 1

    def open(self, loop: EventLoop, sink: ConnectionSink) -> None:
        """Do what needs names and rights; hand connections to `sink` now or later.

        Raises:
            ConfigError: it cannot be had, in QEMU's words; nothing is left behind.
        """
        raise NotImplementedError

    def hand_over(self, put: Put) -> dict[str, object]:
        """Return what another process has to know to take over (`take_over`), as JSON can carry it.

        Nothing is closed or removed: this process is about to end without a word.
        """
        return {}

    def take_over(self, loop: EventLoop, sink: ConnectionSink, saved: Mapping[str, Any], take: Take) -> None:
        """In the place of `open`: continue where another process stopped; its connection is held by the keeper."""

    def wait_connected(self) -> None:
        """Run the loop until a connection is there; returns at once where nothing is to be waited for.

        Not to be called from inside the loop.

        Raises:
            ConfigError: the loop was stopped (SIGTERM) before anybody came.
            StateError: it is not open.
        """

    def connection_ended(self) -> None:
        """The present connection is over and its descriptors are closed: listen or connect again, or stay closed."""

    def let_accept(self) -> tuple[Connection, Sequence[int]] | None:
        """Let somebody else accept the clients, who says so by `client_accepted`.

        Returns:
            What each client's connection is, its socket the first descriptor, the listening sockets the others; and
            those, which stay this chardev's.  None: it has none, or accepts itself.
        """
        return None

    def accept_here(self) -> None:
        """Accept clients itself again, after `let_accept`."""

    def client_accepted(self, fd: int) -> None:
        """Somebody else has accepted a client; its socket stays the caller's.

        Raises:
            StateError: it is no socket.
        """

    def guest_opened(self) -> None:
        """The guest has opened the port that uses this chardev (a handler process that has ended starts again)."""

    def close(self) -> None:
        """Give back everything: descriptors, timers, names in the file system.  Closing twice is harmless."""


def could_not_open(path: str, error: OSError) -> str:
    """QEMU's text for a path that cannot be opened."""
    return f"Could not open '{path}': {os.strerror(error.errno or 0)}"
