"""What the worker tells of guests, VMMs and host ends, and what the keeper makes of it.

The worker is not trusted.  A message is checked three times: its form (channel/codec.py), whether this worker was told
of the controller, port or chardev that it names (worker_process.py), and here against what there is.  Whatever is
wrong ends that worker (supervisor.py).  What it names may be gone by now, though: then its message is late, and
ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from virtserial.channel.messages import (
    Accepted,
    ConnectionEnded,
    DmaMap,
    DropDma,
    DropIrq,
    FrontChanged,
    GuestOpen,
    Irq,
    Quit,
    VmmGone,
)
from virtserial.errors import StateError
from virtserial.memory.table import MAX_REGIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.channel.messages import Report
    from virtserial.daemon.keeper.back_ends import BackEnds
    from virtserial.daemon.keeper.fronts import Fronts
    from virtserial.daemon.keeper.held import HeldDescriptors
    from virtserial.daemon.keeper.vmms import Vmms
    from virtserial.machine.model import Machine, Port




class Reports:
    """
    Args:
        guest_open_changed: is told of a port whose `guest_open` has changed.
        quit: does what Ctrl-a x asks for.
    """

    def __init__(
        self,
        machine: Machine,
        vmms: Vmms,
        back_ends: BackEnds,
        fronts: Fronts,
        held: HeldDescriptors,
        guest_open_changed: Callable[[Port], None],
        quit: Callable[[], None],  # noqa: A002 - what it is
    ) -> None:
        self._machine = machine
        self._vmms = vmms
        self._back_ends = back_ends
        self._fronts = fronts
        self._held = held
        self._guest_open_changed = guest_open_changed
        self._quit = quit

    def handle(self, message: Report, fds: list[int]) -> None:
        """Act on a message.

        Args:
            fds: its descriptors; those that are kept are taken out of the list.

        Raises:
            StateError: it cannot be true.
        """
        match message:
            case Accepted():
                self._back_ends.accepted(message, fds)
            case ConnectionEnded():
                self._back_ends.connection_ended(message)
            case FrontChanged():
                self._fronts.changed(message)
            case Quit(chardev):
                self._quit_typed(chardev)
            case _ if message.controller not in self._vmms.states:
                pass  # It has been unplugged meanwhile.
            case DmaMap() | Irq():
                self._hold(message, fds)
            case DropDma(controller, None):
                self._held.drop_all(DmaMap, controller)
            case DropDma(controller, iova):
                self._held.drop(DmaMap, controller, iova)
            case DropIrq(controller, index, None):
                self._held.drop_type(controller, index)
            case DropIrq(controller, index, number):
                self._held.drop(Irq, controller, (index, number))
            case VmmGone(controller):
                self._vmms.gone(controller)
            case GuestOpen():
                self._guest_open(message)
            case _:
                assert_never(message)

    def _hold(self, message: DmaMap | Irq, fds: list[int]) -> None:
        if not self._vmms.is_there(message.controller):
            raise StateError(f"{type(message).__name__} for controller {message.controller}, which has no VMM")
        if type(message) is DmaMap and self._held.count(DmaMap, message.controller) >= MAX_REGIONS:
            raise StateError(f"more than {MAX_REGIONS} maps for controller {message.controller}")
        taken, fds[:] = fds[:], []
        self._held.hold(message, taken)

    def _guest_open(self, message: GuestOpen) -> None:
        controller = next(each for each in self._machine.controllers if each.index == message.controller)
        port = controller.ports.get(message.number)
        if port is None or port.serial != message.serial or port.guest_open == message.open:
            return
        port.guest_open = message.open
        if port.guest_open and port.chardev is not None:
            self._back_ends.chardevs[port.chardev].guest_opened()
        self._guest_open_changed(port)

    def _quit_typed(self, chardev_id: str) -> None:
        chardev = self._back_ends.chardevs.get(chardev_id)
        if chardev is None:
            return
        if not chardev.mux_quit:
            raise StateError(f"Quit by chardev '{chardev_id}', which has no mux-quit=on")
        self._quit()
