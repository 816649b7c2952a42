"""What a new worker is told, so that it takes over where its predecessors stopped or were killed.

| step | messages | why here |
|---|---|---|
| 1 | Prepare | what it has to read; it can read nothing later |
| 2 | Begin | the sandbox, before it is told of any guest |
| 3 | Controller, then its Ports | devices are made over their state memory, ports in the order they were plugged |
| 4 | Interrupted, Backlog | what predecessors left is finished before anything new moves |
| 5 | AddFront, Connect | host ends; fronts first: a multiplexer gives its users shares when its connection comes |
| 6 | Listen | sockets at which more hosts come, after those who are there |
| 7 | DmaMap, Irq, of one controller | guest memory and interrupts, before it is served |
| 8 | ConnectVmm, of the same | its next message may concern all that came before |
| 9 | Start, of the same | its rings are looked at once: doorbells may have been lost |
| 10 | Start, of all | after 7 to 9 for each controller, the fewest maps first: nobody waits for one with many |

The worker answers Confined after step 2 and Started after step 10; what it says in between is handled as ever.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from virtserial.channel import messages
from virtserial.channel.messages import AddFront, Begin, Connect, ConnectVmm, DmaMap, Irq, Listen, Prepare, Start

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from virtserial.channel.channel import Send
    from virtserial.channel.messages import FromKeeper, Left
    from virtserial.chardev.preparation import Preparation
    from virtserial.daemon.keeper.held import HeldDescriptors
    from virtserial.machine.model import Controller, Machine, Port

class Briefing:
    """
    Args:
        states: by controller's index, the descriptor of its state memory.
        send: to the worker.
        trust_vmm: map guest memory even if its file may shrink.
        sandbox: confine the worker.
    """

    def __init__(
        self,
        machine: Machine,
        states: Mapping[int, int],
        held: HeldDescriptors,
        send: Send[FromKeeper],
        trust_vmm: bool,
        sandbox: bool,
    ) -> None:
        self._machine = machine
        self._states = states
        self._held = held
        self.send = send
        self._trust_vmm = trust_vmm
        self._sandbox = sandbox

    def brief(self, ledger_fd: int, preparations: Iterable[Preparation], left: Iterable[Left]) -> None:
        """Tell a new worker everything.

        Args:
            ledger_fd: its ledger (accounting.py).
            left: what its predecessors have left.
        """
        for preparation in preparations:
            files = preparation.open_files()
            try:
                self.send(Prepare(preparation.name, preparation.what), files)
            finally:
                for fd in files:
                    os.close(fd)
        self.send(Begin(self._sandbox), [ledger_fd])
        for controller in self._machine.controllers:
            self.tell_controller(controller)
            for port in controller.ports.values():
                self.tell_port(port)
        for message in left:
            if message.controller in self._states:
                self.send(message)
        for kind in (AddFront, Connect, Listen):
            for held, fds in self._held.all(kind):
                self.send(held, fds)
        for index in sorted(self._states, key=lambda index: self._held.count(DmaMap, index)):
            self._start(index)
        self.send(Start())

    def _start(self, index: int) -> None:
        for kind in (DmaMap, Irq, ConnectVmm):
            for held, fds in self._held.all(kind, index):
                self.send(held, fds)
        self.send(Start(index))

    def tell_controller(self, controller: Controller) -> None:
        """Tell of a controller whose state memory there is."""
        message = messages.Controller(
            controller=controller.index,
            name=controller.name,
            max_ports=controller.max_ports,
            vhost_user=controller.vhost_user,
            vectors=controller.vectors,
            unplug=controller.unplug,
            legacy=controller.legacy,
            modern=controller.modern,
            page_per_vq=controller.page_per_vq,
            iommu_platform=controller.iommu_platform,
            event_idx=controller.event_idx,
            indirect_desc=controller.indirect_desc,
            packed=controller.packed,
            in_order=controller.in_order,
            queue_reset=controller.queue_reset,
            emergency_write=controller.emergency_write,
            resize_rows_first=controller.resize_rows_first,
            trust_vmm=self._trust_vmm,
        )
        self.send(message, [self._states[controller.index]])

    def tell_port(self, port: Port) -> None:
        """Tell of a port."""
        self.send(
            messages.Port(
                controller=port.controller.index,
                number=port.number,
                serial=port.serial,
                guest_open=port.guest_open,
                name=port.name,
                is_console=port.is_console,
                chardev=port.chardev,
                cols=port.cols,
                rows=port.rows,
            )
        )
