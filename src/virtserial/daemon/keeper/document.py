"""The document that a keeper leaves: all that it knows, but descriptors, which are numbers here (handover.py).

What it takes from other rooms is theirs to read: the machine's description, the chardevs' and the monitors'.
"""

from collections.abc import Mapping

from virtserial.channel.codec import U64
from virtserial.channel.messages import (
    AddFront,
    Backlog,
    Connect,
    ConnectVmm,
    DmaMap,
    Interrupted,
    Irq,
)
from virtserial.channel.record import record
from virtserial.channel.requests import Index, Serial


@record
class ListenerLeft:
    """Where a VMM comes.

    Attributes:
        descriptor: of the listening socket.
        inode: device and number of the file that we bound it to, None if a service manager did.
        activated_as: the service manager's name of it.
        busy: a VMM is there.
        waiting: descriptors of the VMMs that wait for that one's end.
    """

    path: str
    descriptor: int
    inode: tuple[int, int] | None
    activated_as: str | None
    busy: bool
    waiting: tuple[int, ...]


@record
class ControllerLeft:
    """A controller of the machine.

    Attributes:
        state: the descriptor of its state memory.
        listener: None if its one VMM came by a descriptor.
    """

    controller: Index
    state: int
    listener: ListenerLeft | None


@record
class ChardevLeft:
    """A chardev.

    Attributes:
        kind, values: what options.chardev_options.make_chardev makes its like of.
        saved: what Chardev.take_over takes.
        restricted: the path policy uses its paths.
    """

    id: str
    kind: str
    values: Mapping[str, object]
    saved: Mapping[str, object]
    restricted: bool


@record
class HeldLeft:
    """What is held for the next worker, and the descriptors that go with it."""

    message: DmaMap | Irq | AddFront | Connect | ConnectVmm
    descriptors: tuple[int, ...]


@record
class HostsWanted:
    """What a keeper wants of another one's (host_hand_over.py).

    Attributes:
        recipes: by chardev's id, its kind and values as text that is equal for equal ones.
    """

    recipes: Mapping[str, str]


@record
class HostLeft:
    """A chardev of a port.

    Attributes:
        held: its connections; what several clients share comes before them.
    """

    chardev: ChardevLeft
    held: tuple[HeldLeft, ...]


@record
class HostsLeft:
    """Those that were wanted and can go."""

    hosts: tuple[HostLeft, ...]


@record
class WorkersLeft:
    """Of the supervisor: what workers have left, and what is counted."""

    left: tuple[Interrupted | Backlog, ...]
    restarts: U64
    upgrades: U64
    doubtful: U64


@record
class Document:
    """All of it.

    Attributes:
        state_version: memory.state.VERSION of the state memories.
        machine: machine.model.Machine.describe.
        objects: chardev.tls_credentials.TlsCredentials.describe, each.
        chardevs: those that others refer to come before them.
        connections: how many connections of chardevs there were.
        allowed: the paths that monitors may name; None: all.
        monitors: monitor.server.Monitors.hand_over.
        words: the command line that it was made from.
        renewals: how many there were, with this one.
    """

    state_version: int
    machine: Mapping[str, object]
    objects: tuple[Mapping[str, object], ...]
    chardevs: tuple[ChardevLeft, ...]
    held: tuple[HeldLeft, ...]
    controllers: tuple[ControllerLeft, ...]
    connections: Serial
    workers: WorkersLeft
    allowed: tuple[str, ...] | None
    monitors: Mapping[str, object] | None
    words: tuple[str, ...]
    renewals: int
