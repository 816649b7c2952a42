"""What the parts of a console device ask of each other and of those around them, each as narrow as it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.accounting import Ledger
    from virtserial.errors import BackendError, DriverError
    from virtserial.virtio.queue import Virtqueue


# Around the device


class Timer(Protocol):
    """A call that is due at a time, in seconds of the scheduler's clock."""

    due: float

    def cancel(self) -> None:
        """Forget the call."""
        ...


class Look(Protocol):
    """The loop's present look at what has happened."""

    @property
    def input_waits(self) -> bool:
        """Whether ports leave what hosts sent for a moment: something that hosts did before is to be told first."""
        ...

    @property
    def at_leisure(self) -> bool:
        """Whether the callback that runs is all that there is to do: it may serve what it tells of without a turn."""
        ...


class Scheduler(Protocol):
    """A clock and a way to be called later (loop.EventLoop)."""

    @property
    def look(self) -> Look:
        """Always the same; its attributes change."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other devices have had work lately: turns are to be short."""
        ...

    def now(self) -> float:
        """The time, in seconds."""
        ...

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Call back once, soon."""
        ...

    def call_at(self, due: float, callback: Callable[[], None]) -> Timer:
        """Call back once when the clock has reached `due`."""
        ...


class HostEnd(Protocol):
    """The host's end of a port; it never blocks (host_end/ implements it)."""

    connected: bool
    """Somebody is on the other side."""
    ended: bool
    """It will never be connected again."""
    readable: bool
    """`readv` is worth a try; once False, `host_readable` says when that changes."""
    output_discarded: int
    """Bytes it took although nobody was there any more."""
    input_discarded: int
    """Bytes the host had sent and nobody will read."""
    listener: HostListener

    @property
    def exact(self) -> bool:
        """`readv` and `writev` are each one system call, which moves the bytes they return and no others."""
        ...

    @property
    def wants_input(self) -> bool:
        """The guest has the port open, so bytes that wait at a hang-up are still to be read."""
        ...

    @wants_input.setter
    def wants_input(self, wanted: bool) -> None: ...

    def start(self) -> None:
        """Begin to watch; calls `listener.host_opened` at once if somebody is there."""
        ...

    def writev(self, buffers: Sequence[memoryview]) -> int:
        """Give bytes to the host; return how many were taken, from the first buffer on.

        0: it would block, `listener.host_writable` will come; or the buffers were empty.

        Raises:
            BackendError: it failed and has ended.
        """
        ...

    def readv(self, buffers: Sequence[memoryview]) -> int:
        """Take bytes from the host into `buffers`; return how many.

        0: nothing now, `listener.host_readable` will come, or `listener.host_closed` at the end of the stream.

        Raises:
            BackendError: it failed and has ended.
        """
        ...

    def report_end(self) -> None:
        """The last read was short: if that was the end of the stream, `listener.host_closed` comes now."""
        ...

    def wait_readable(self) -> bool:
        """The last read was short: whether `listener.host_readable` will tell of more.  False: another try will."""
        ...

    def hold_input(self) -> bool:
        """The port will try `readv` by itself in a moment: whether `host_readable` keeps still until `readv` has
        returned 0 or `wait_readable` was called."""
        ...

    def wait_writable(self) -> bool:
        """The last write was short: whether `listener.host_writable` will come.  False: another try will tell."""
        ...

    def log_unconnected(self, buffers: Sequence[memoryview]) -> None:
        """The guest has written this to a console, and nobody is connected; `buffers` are discarded after it."""
        ...

    @property
    def backlog_size(self) -> int:
        """Bytes of output that a client who comes late gets first."""
        ...

    def read_backlog(self, most: int) -> bytes:
        """The newest `most` of them."""
        ...

    def restore_backlog(self, backlog: bytes) -> None:
        """Keep what another host end of this port had; nothing is done if this one has had output already."""
        ...

    def guest_opened(self) -> None:
        """The guest has opened the port."""
        ...

    def guest_closed(self) -> None:
        """The guest has closed the port."""
        ...

    def guest_ready(self) -> None:
        """The guest's driver is ready for the port (VIRTIO_CONSOLE_PORT_READY)."""
        ...

    def close(self) -> None:
        """Stop watching and close this process's descriptors.  Twice is harmless."""
        ...


class HostListener(Protocol):
    """Who is told about a host end: the port.

    All calls come from the event loop, never from inside readv or writev, except that `start` may call `host_opened`.
    """

    def host_opened(self) -> None:
        """The host side is connected."""
        ...

    def host_closed(self) -> None:
        """The host side is gone; all it had sent and the port wanted has been read.  See `HostEnd.ended`."""
        ...

    def host_readable(self) -> None:
        """`readv` may have bytes again."""
        ...

    def host_writable(self) -> None:
        """`writev` takes bytes again, after it had returned 0."""
        ...


class PortEvents(Protocol):
    """Who is told about a device's ports, each by its number."""

    def guest_open_changed(self, number: int, is_open: bool) -> None:
        """The guest has opened or closed a port."""
        ...

    def host_end_closed(self, number: int) -> None:
        """A port's host end has ended and is closed."""
        ...

    def host_end_failed(self, number: int, error: BackendError) -> None:
        """A port's host end has failed; the port is closed towards the guest."""
        ...


# Inside the device


class Subject(Protocol):
    """Who gets turns (console/turns.py): a port, the control queues, the queues of numbers without a port."""

    @property
    def queues(self) -> Sequence[Virtqueue]:
        """The queues that its turns touch."""
        ...

    def turn(self) -> None:
        """Do a bounded amount of work; ask for another turn if there is more.

        Raises:
            DriverError: the driver broke a rule.
        """
        ...

    def schedule_all(self) -> None:
        """Ask for a turn that looks at everything."""
        ...

    def forget_work(self) -> None:
        """The turn that was asked for does not come."""
        ...


class TurnOwner(Protocol):
    """What the turns ask of their device."""

    paused: bool

    @property
    def live(self) -> bool:
        """The device may use its queues."""
        ...

    def fail(self, error: DriverError) -> None:
        """The driver broke a rule: stop until it resets the device."""
        ...

    def interrupt(self, queue: Virtqueue) -> None:
        """Interrupt for a queue, whether its driver wants it or not."""
        ...

    def await_memory(self) -> bool:
        """The driver named memory that is not mapped: whether there will be a second try (`Turns.retry`)."""
        ...


class PortOwner(Protocol):
    """What a port asks of its device."""

    controller: int
    ledger: Ledger
    port_events: PortEvents
    told_at: float
    """Not 0: ask `hosts_are_heard` before you read of a host."""

    @property
    def input_waits(self) -> bool:
        """See Look."""
        ...

    def turn_chains(self, are_short: bool) -> int:
        """Chains a port may use in one turn and direction; if they are short, each costs more than its bytes."""
        ...

    def hosts_are_heard(self, look: Callable[[], None]) -> bool:
        """Whether the driver has seen which hosts came and left, for which input waits; if not, `look` comes soon."""
        ...

    def schedule(self, subject: Subject) -> None:
        """Give it a turn."""
        ...

    def at_once(self, subject: Subject, turn: Callable[[], None]) -> bool:
        """Give it a short turn now, if nothing else is to be done: whether it had one."""
        ...

    def signal(self, queue: Virtqueue) -> None:
        """Interrupt the driver now if it wants to hear of the chains returned on `queue`."""
        ...

    def now(self) -> float:
        """See Scheduler."""
        ...

    def listen_first(self) -> None:
        """Take the driver's control messages before a port has its next turn."""
        ...

    def guest_opened(self, number: int) -> None:
        """The driver has opened a port: a reset closes it."""
        ...

    def host_open_changed(self, number: int) -> None:
        """The host's end of a port was opened or closed: tell the driver."""
        ...


class ControlOwner(Protocol):
    """What the control queues ask of their device."""

    name: str
    resize_rows_first: bool
    told_at: float
    """When the driver was told last of a host that came or left, which it may not have seen; 0: it has seen all."""

    @property
    def live(self) -> bool:
        """The device may use its queues."""
        ...

    @property
    def driver_listens(self) -> bool:
        """There is a driver that wants control messages."""
        ...

    def has_feature(self, mask: int) -> bool:
        """Whether all bits of `mask` were negotiated."""
        ...

    def schedule_first(self, subject: Subject) -> None:
        """Give it a turn before the ports."""
        ...

    def signal(self, queue: Virtqueue) -> None:
        """Interrupt the driver now if it wants to hear of the chains returned on `queue`."""
        ...

    def now(self) -> float:
        """The scheduler's clock, in seconds."""
        ...
