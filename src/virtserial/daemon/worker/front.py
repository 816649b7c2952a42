"""The seam between a device and its front, the way in which a driver reaches it.

| | does | knows nothing of |
|---|---|---|
| `GuestDevice` (guest_device.py) | console device, ports, turns, pausing, saved state | registers, sockets, maps |
| a front | registers or queue messages, interrupts, guest memory, the VMM's connection | ports, host ends |

A front is made with its device and the rest of the device's state memory, and from then on is the device's transport.
It maps guest memory into `console.memory` (and says so by `memory_mapped` and `memory_unmapped`), sets the registers of
`console.queues`, and passes doorbells to `console.notify`.  Fronts are siblings:

* `VfioUserFront` (vfio_user_front.py) is a PCI function behind a vfio-user server.
* The legacy interface is another register file of the same function (pci/legacy.py), over the same device.
* `VhostUserFront` (vhost_user_front.py) has no registers: its server sets the queues' and maps memory; kicks are
  eventfds.  What it holds through a restart are the same messages, `Irq` for every kind of descriptor.
* The in-memory driver (testing/memory_driver.py) is transport and saved state alone: its process has no successor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from virtserial.virtio.device import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtserial.accounting import Ledger, Note
    from virtserial.channel.channel import Send
    from virtserial.channel.messages import DmaMap, FromWorker, Irq
    from virtserial.console.device import ConsoleDevice
    from virtserial.daemon.worker.limited_log import LimitedLog
    from virtserial.daemon.worker.request_budget import LoopUse
    from virtserial.loop import EventLoop
    from virtserial.memory.dirty_log import DirtyLog
    from virtserial.state.device_state import FrontState


class FrontOwner(Protocol):
    """What a front asks of its device (vfio_user.migration.MigratableDevice is a part of it).

    Attributes:
        index: of the controller, for messages to the keeper.
        name: for log lines.
        send: to the keeper; a descriptor that must outlive this process goes there before its sender gets an answer.
        ledger: where the message that is under way is noted.
        log: for what a VMM can cause as often as it likes.
        loop_use: who else has work in this loop.
    """

    index: int
    name: str
    console: ConsoleDevice
    loop: EventLoop
    send: Send[FromWorker]
    ledger: Ledger
    log: LimitedLog
    loop_use: LoopUse

    def add_turn(self, callback: Callable[[], None]) -> None:
        """Call back soon; an exception stops this device and nothing else."""
        ...

    def now(self) -> float:
        """The loop's clock, in seconds."""
        ...

    def broken(self) -> None:
        """Inside an except block: a mistake of ours stops this device until it is reset."""
        ...

    @property
    def max_state_size(self) -> int:
        """The most bytes that a saved state has."""
        ...

    def pause(self) -> None:
        """Stand still: touch no guest memory and no host end."""
        ...

    def resume(self) -> None:
        """Run again, in a turn."""
        ...

    def save_state(self) -> bytes:
        """The state of the paused device."""
        ...

    def load_state(self, data: bytes) -> None:
        """Load a state into the paused device.

        Raises:
            ConfigError: it is not valid, or not of a device like this one.
        """
        ...

    def log_writes(self, log: DirtyLog | None) -> None:
        """Note in `log` what is written into guest memory; None: nowhere."""
        ...


class Front(Transport, Protocol):
    """What a device asks of its front, beside interrupts."""

    @property
    def saved(self) -> FrontState:
        """Its part of the saved state."""
        ...

    def configuration_space(self) -> bytes:
        """The PCI configuration space as it is now, 256 bytes."""
        ...

    def hold_intx(self, held: bool) -> None:
        """Let the interrupt line be low until it is no longer held; a reset ends that too."""
        ...

    def store_posted(self, stores: Sequence[tuple[int, bytes]]) -> None:
        """Have the VMM store bytes at many guest addresses, by which it learns of them.

        Raises:
            VirtserialError: it does not.
        """
        ...

    def settle(self) -> None:
        """Wait until the VMM has answered everything that it was asked.

        Raises:
            PeerError: it does not.
        """
        ...

    def connect(self, fd: int) -> None:
        """Serve whoever has connected, in place of the one before; `fd` is the front's."""
        ...

    def restore(self, message: DmaMap | Irq, fds: Sequence[int]) -> None:
        """Take what a dead predecessor had from its VMM; before `take_over`."""
        ...

    def finish(self, note: Note) -> None:
        """A dead predecessor was killed over this message; before `connect`."""
        ...

    def take_over(self) -> None:
        """Everything is in place: look for messages that nobody has told of."""
        ...

    def close(self) -> None:
        """The device is unplugged: let go of the VMM, and so of the guest's memory."""
        ...
