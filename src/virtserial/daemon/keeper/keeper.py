"""The keeper: opens, binds, listens and accepts; holds a copy of every descriptor that must outlive a crash.

QEMU aborts its VM when a vfio-user socket closes with unread bytes in it, so the sockets are held here, in a process
that handles no guest's bytes.  When the worker dies, a new one gets the same descriptors and the same state memory.

| part | subject |
|---|---|
| machine | controllers and ports, as the operator plugged them |
| back_ends | chardevs and their connections |
| vmms | where VMMs come, and what is held of theirs |
| held | the descriptors, with the messages that a worker gets them with |
| workers | the worker: start, replace, end; its briefing is briefing.py, what it reports goes to reports.py |
| fronts | users of multiplexed chardevs that are no ports |
| hotplug | devices that come and go |
| blame | whom to part from when workers end one after the other |
| renewal | new code in the keeper's own place |
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from virtserial.channel.messages import Connect, ConnectionEnded
from virtserial.daemon.keeper.announcement import announce
from virtserial.daemon.keeper.back_ends import BackEnds
from virtserial.daemon.keeper.blame import Blame
from virtserial.daemon.keeper.briefing import Briefing
from virtserial.daemon.keeper.descriptor_limit import warn_of_low_limit
from virtserial.daemon.keeper.fronts import Fronts
from virtserial.daemon.keeper.heartbeat import Heartbeat
from virtserial.daemon.keeper.held import HeldDescriptors
from virtserial.daemon.keeper.hotplug import HotPlug
from virtserial.daemon.keeper.reports import Reports
from virtserial.daemon.keeper.supervisor import Supervisor
from virtserial.daemon.keeper.vmms import Vmms
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtserial.chardev.base import Chardev
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.daemon.keeper.path_policy import PathPolicy
    from virtserial.daemon.keeper.renewal import Renewal
    from virtserial.daemon.keeper.worker_process import WorkerCode, WorkerProcess
    from virtserial.loop import EventLoop
    from virtserial.machine.model import Machine, Port

log = logging.getLogger("virtserial.keeper")


class Keeper:
    """Keeps one machine running.

    Args:
        loop: the keeper's event loop.
        worker_code: what workers run.
        machine: the controllers and ports to begin with.
        chardevs: every back end by id.
        trust_vmm: map guest memory even if its file may shrink.
        objects: what -object has made, by id.
        sandbox: confine the worker.
        path_policy: what monitors may name; None trusts them.

    Attributes:
        guest_open_listener: is told of a port whose `guest_open` has changed.
        quit: does what Ctrl-a x asks for.
        renewal: None: it lives as long as its VMM, with the code that it has.
    """

    def __init__(
        self,
        loop: EventLoop,
        worker_code: WorkerCode,
        machine: Machine,
        chardevs: dict[str, Chardev],
        trust_vmm: bool = False,
        objects: dict[str, TlsCredentials] | None = None,
        sandbox: bool = True,
        path_policy: PathPolicy | None = None,
    ) -> None:
        self.loop = loop
        self.machine = machine
        self.chardevs = chardevs
        self.objects = objects or {}
        self.path_policy = path_policy
        self.held = HeldDescriptors()
        self.workers = Supervisor(
            loop,
            worker_code,
            self,
            self._brief,
            lambda message, fds: self._reports.handle(message, fds),
            Blame(lambda controller: self.vmms.detach(controller), self._disconnect),
        )
        self._heartbeat = Heartbeat(loop, self.workers.hang_watch.ping)
        self.back_ends = BackEnds(
            loop, machine, chardevs, self.held, self.workers, self._heartbeat, path_policy, sandbox
        )
        self.vmms = Vmms(loop, self.held, self._heartbeat, self.workers.send)
        self._briefing = Briefing(machine, self.vmms.states, self.held, self.workers.send, trust_vmm, sandbox)
        self.fronts = Fronts(machine, self.held, self.workers.send)
        self.hotplug = HotPlug(machine, self.vmms, self.back_ends, self._briefing, path_policy)
        self._reports = Reports(
            machine, self.vmms, self.back_ends, self.fronts, self.held, self._guest_open_changed, lambda: self.quit()
        )
        self.guest_open_listener: Callable[[Port], None] | None = None
        self.quit: Callable[[], None] = loop.stop
        self.renewal: Renewal | None = None

    def start(self) -> None:
        """Open everything and start the worker.

        Raises:
            ConfigError: something cannot be opened; `close` removes what was.
        """
        for controller in self.machine.controllers:
            self.vmms.open(controller)
        self.back_ends.open(announce)
        self.workers.start()
        warn_of_low_limit(sum(1 for _ in self.machine.ports()))
        self.back_ends.wait()

    def restart(self, *, with_keeper: bool) -> None:
        """Begin to replace the worker, or both processes, by the code that is installed now.

        Raises:
            ConfigError: that is not possible; the present processes stay.
        """
        if not with_keeper:
            self.workers.upgrade()
        elif self.renewal is not None:
            self.renewal.begin()
        else:
            raise ConfigError("this process cannot be renewed: it ends with its VMM")

    def _brief(self, worker: WorkerProcess) -> None:
        self._briefing.brief(worker.ledger_fd, self.back_ends.preparations.values(), self.workers.left)

    def _disconnect(self, controller: int, number: int) -> None:
        """Disconnect the back end of a port over which workers hang."""
        for port in self.machine.ports():
            if (port.controller.index, port.number) != (controller, number) or port.chardev is None:
                continue
            log.error("chardev '%s': workers hang over it again and again; it is disconnected", port.chardev)
            for chardev in self.chardevs[port.chardev].with_connections():
                if not chardev.is_shared and (held := self.held.find(Connect, chardev.id)) is not None:
                    self.back_ends.connection_ended(ConnectionEnded(chardev.id, held.serial))

    def _guest_open_changed(self, port: Port) -> None:
        if self.guest_open_listener is not None:
            self.guest_open_listener(port)

    def close(self) -> None:
        """End the worker and every connection, and remove what was bound."""
        if self.renewal is not None:
            self.renewal.close()
        self.vmms.stop_listening()
        self.workers.close()
        self._heartbeat.close()
        self.vmms.close()
        self.held.close()
        self.back_ends.close()
