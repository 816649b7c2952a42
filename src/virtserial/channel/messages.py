"""What keeper and worker say to each other: one record per message, and which descriptors come with it.

From the keeper, until a worker serves (daemon/keeper/briefing.py says why in this order):

| message | descriptors | what the worker does |
|---|---|---|
| Prepare | files | reads what it cannot once it is confined |
| Begin | ledger | enters the sandbox |
| Controller, Port | state memory; - | makes the device and its ports over their state |
| Interrupted, Backlog | - | finishes what its predecessor was killed over, or had not yet handed on |
| AddFront, Connect | a stream; the host end's | joins host ends |
| Listen | listening sockets | takes clients off them: in one loop with all else that hosts do, so in their order |
| DmaMap, Irq | the guest's memory, if it is a file; an eventfd | takes what its predecessors had from the VMM |
| ConnectVmm | the VMM's socket | serves it |
| Start | - | looks at the controller's rings, and serves it |

and later, as things change:

| message | descriptors | what the worker does |
|---|---|---|
| Controller, Port, ConnectVmm, AddFront, Connect | as above | adds it; Connect replaces a chardev's last connection |
| RemoveController, RemovePort, Disconnect | - | unplugs; takes a chardev's connection away |
| Resize | - | tells the driver |
| Listen, StopListening | listening sockets; - | takes clients; closes the sockets |
| Save, Restore, Load | a file each | does it and sends Answer |
| Resume, Pause, LogWrites, TouchWritten, Store | - | the same |
| Ping | - | sends Pong |
| Stop | - | sends Backlog for what no ring and no socket holds, and ends |

From the worker:

| message | descriptors | what the keeper does |
|---|---|---|
| Ready | - | a worker of other code has been read: the old one may stop |
| Confined | - | tells once what of the sandbox this system lacks |
| Started | - | forgets what predecessors left |
| DmaMap, Irq | as above | holds it for the next worker; it is sent before the VMM gets its answer |
| DropDma, DropIrq | - | closes what it holds |
| VmmGone | - | closes the VMM's socket, lets the next VMM come |
| Accepted | the client's socket | holds it as if it had sent Connect |
| ConnectionEnded, FrontChanged, GuestOpen, Quit | - | passes it on to chardevs, monitors, and who serves |
| Answer, Pong, Backlog | - | ends the wait; keeps it for the next worker |

The worker is not trusted: daemon/keeper/reports.py.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from virtserial.channel.codec import U16, U32, U64, OneOf, Range
from virtserial.channel.connections import Connection, Readable
from virtserial.channel.record import record
from virtserial.channel.requests import Index, Load, Request, Restore, Save, Serial

PortNumber = Annotated[int, Range(0, 511)]
FrontState = Literal["opened", "closed", "in", "out"]
"""The host end under a front has opened or closed; the front's focus has come or gone."""


@record
class Prepare:
    """Read something before the sandbox.

    Attributes:
        name: for messages.
    """

    name: str
    what: Readable


@record
class Begin:
    """Go into the sandbox, if there is one."""

    sandbox: bool


@record
class Controller:
    """A controller, over its state memory.

    Attributes:
        vhost_user: its VMM speaks vhost-user, not vfio-user.
        trust_vmm: map guest memory even if its file may shrink.
    """

    controller: Index
    name: str
    max_ports: Annotated[int, Range(1, 511)]
    vhost_user: bool
    vectors: Annotated[int, Range(0, 2048)]
    unplug: bool
    legacy: bool
    modern: bool
    page_per_vq: bool
    iommu_platform: bool
    event_idx: bool
    indirect_desc: bool
    packed: bool
    in_order: bool
    queue_reset: bool
    emergency_write: bool
    resize_rows_first: bool
    trust_vmm: bool


@record
class Port:
    """A port.

    Attributes:
        guest_open: what the keeper has last heard: a predecessor may have died before it said more.
        chardev: its back end's id.
        cols, rows: of the console, 0 if not known.
    """

    controller: Index
    number: PortNumber
    serial: Serial
    guest_open: bool
    name: str | None
    is_console: bool
    chardev: str | None
    cols: U16
    rows: U16


@record
class Interrupted:
    """A predecessor was killed over this (accounting.Note)."""

    kind: int
    exact: bool
    controller: Index
    queue: U16
    progress: int
    moved: int


@record
class Backlog:
    """Console output that a worker has taken from the guest and could not yet write, a piece of it."""

    controller: Index
    number: PortNumber
    serial: Serial
    data: bytes


@record
class DmaMap:
    """Guest memory: its range of I/O addresses, VFIO's protection flags, and the offset in its file, if it has one."""

    controller: Index
    iova: U64
    size: U64
    prot: U32
    offset: U64


@record
class Irq:
    """An interrupt's eventfd: VFIO's type of interrupt, and the vector; or what a vhost-user front end has sent
    (daemon/worker/vhost_user_front.py)."""

    controller: Index
    index: Annotated[int, Range(0, 4)]
    number: U16


@record
class AddFront:
    """Somebody beside the ports uses a multiplexed chardev, over a stream."""

    chardev: str
    front: str


@record
class Connect:
    """A chardev has a connection.

    Attributes:
        hub: the hub that it is a part of.
        mux: several may use it, Ctrl-a switches.
        mux_quit: Ctrl-a x is for the keeper: Quit.
        program: what Ctrl-a x ends.
        serial: tells it from the chardev's other connections.
    """

    chardev: str
    hub: str | None
    mux: bool
    mux_quit: bool
    program: str
    serial: Serial
    connection: Connection


@record
class Listen:
    """Take the clients of a chardev off its listening sockets, one at a time, before what they or others send is read.

    Attributes:
        connect: what the first client's connection is; the next one's has the next serial number, and so on.
    """

    connect: Connect


@record
class StopListening:
    """Take no more clients of a chardev; those who come belong to nobody."""

    chardev: str


@record
class Disconnect:
    """A chardev's connection is taken away."""

    chardev: str


@record
class ConnectVmm:
    """A controller's VMM has connected."""

    controller: Index


@record
class Start:
    """All of a controller is told; None: of every one."""

    controller: Index | None = None


@record
class Ping:
    """Are you alive?"""

    number: Serial


@record
class Stop:
    """Let a successor take over."""


@record
class Resize:
    """A console's window has another size."""

    controller: Index
    number: PortNumber
    cols: U16
    rows: U16


@record
class RemovePort:
    """A port is unplugged."""

    controller: Index
    number: PortNumber


@record
class RemoveController:
    """A controller is unplugged, with its ports."""

    controller: Index


@record
class Ready:
    """A worker that was started anew has read its code.

    Attributes:
        state_version: memory.state.VERSION of that code.
    """

    state_version: int


@record
class Confined:
    """The worker is in its sandbox.

    Attributes:
        lacking: what this system has not, a few words each.
    """

    lacking: tuple[str, ...]


@record
class Started:
    """The worker serves.

    Attributes:
        doubtful: bytes that were moved twice or not at all, of all controllers, since they were plugged in.
    """

    doubtful: U64


@record
class Pong:
    """Yes: the Ping of that number has been read."""

    number: Serial


@record
class Answer:
    """To the request of that number.

    Attributes:
        error: why it could not be done.
        data: what was asked for.
    """

    request: Serial
    error: str | None
    data: bytes


@record
class DropDma:
    """A map is gone, or all of a controller (None)."""

    controller: Index
    iova: U64 | None


@record
class DropIrq:
    """An interrupt's eventfd is gone, or all of its type (None)."""

    controller: Index
    index: Annotated[int, Range(0, 4)]
    number: U16 | None


@record
class VmmGone:
    """The worker has let go of a controller's VMM."""

    controller: Index


@record
class ConnectionEnded:
    """The connection of that serial is over; the worker has closed it."""

    chardev: str
    serial: Serial


@record
class Accepted:
    """A client has come.  It is served already if a port is known here that uses the chardev.

    The message about that port may still be on its way: then the keeper sends the connection once more.
    """

    chardev: str
    serial: Serial
    is_served: bool


@record
class FrontChanged:
    """A front, or the host end under it, of connection `serial`."""

    chardev: str
    front: str
    state: FrontState
    serial: Serial


@record
class GuestOpen:
    """The guest has opened or closed a port."""

    controller: Index
    number: PortNumber
    serial: Serial
    open: bool


@record
class Quit:
    """Somebody has typed Ctrl-a x."""

    chardev: str


FromKeeper = (
    Prepare | Begin | Controller | Port | Interrupted | Backlog | DmaMap | Irq | AddFront | Connect | Listen
    | ConnectVmm | Start | StopListening | Disconnect | Resize | RemovePort | RemoveController | Request | Ping | Stop
)  # fmt: skip
Report = (
    DmaMap | Irq | DropDma | DropIrq | VmmGone | Accepted | ConnectionEnded | FrontChanged | GuestOpen | Quit
)  # fmt: skip
"""What a worker tells of guests, VMMs and host ends."""
FromWorker = Ready | Confined | Started | Pong | Answer | Backlog | Report
Left = Interrupted | Backlog
"""What a worker leaves to the next."""
Held = DmaMap | Irq | AddFront | Connect | Listen | ConnectVmm
"""What the keeper holds with its descriptors, for every worker to come."""

FROM_KEEPER = OneOf[FromKeeper](get_args(FromKeeper))
FROM_WORKER = OneOf[FromWorker](get_args(FromWorker))

MAX_FDS = 16
"""Descriptors of one message."""
NO_DESCRIPTOR = range(1)
DESCRIPTORS: Mapping[type, range] = {
    Prepare: range(MAX_FDS + 1),
    Begin: range(1, 2),
    Controller: range(1, 2),
    DmaMap: range(2),
    Irq: range(1, 2),
    AddFront: range(1, 2),
    Connect: range(MAX_FDS + 1),
    Listen: range(1, MAX_FDS + 1),
    ConnectVmm: range(1, 2),
    Accepted: range(1, 2),
    Save: range(1, 2),
    Restore: range(1, 2),
    Load: range(1, 2),
}
"""How many descriptors come with a message; where it is not here, none."""
