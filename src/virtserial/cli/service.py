"""The device process of `virtserial serve`: its keeper and monitors, its signals, and how it follows on itself.

It may be started anew in the middle of everything: by itself, with new code (daemon/keeper/renewal.py), or by systemd,
which keeps what one process leaves for the next while it restarts the service.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from typing import TYPE_CHECKING

from virtserial.channel.codec import decode
from virtserial.daemon.keeper import systemd
from virtserial.daemon.keeper.announcement import announce
from virtserial.daemon.keeper.keeper import Keeper
from virtserial.daemon.keeper.path_policy import PathPolicy
from virtserial.daemon.keeper.signals import Signals
from virtserial.daemon.worker_code import InstalledWorker
from virtserial.errors import ConfigError, StateError
from virtserial.loop import EPOLLIN, EventLoop
from virtserial.monitor.registry import Registration
from virtserial.options.vhost_user_device import vhost_user_argument

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from virtserial.chardev.base import Chardev, Put
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.cli.serve_options import Options
    from virtserial.daemon.keeper.document import Document
    from virtserial.daemon.keeper.handover import Handover
    from virtserial.machine.model import Controller, Machine
    from virtserial.monitor.server import Monitors
    from virtserial.options.monitor_options import MonitorOptions

log = logging.getLogger("virtserial.keeper")

MAX_DESCRIPTORS = 1 << 18
"""The keeper holds one for each DMA map, interrupt and connection: more than the usual soft limit of 1024."""
STORED = "virtserial-handover"
"""What a Handover is called in systemd's store."""


class Service:
    """
    Args:
        options: the command line; of it, what concerns the process.
        machine: the controllers and ports to begin with.
        chardevs: every back end by id.
        objects: what -object has made, by id.
    """

    def __init__(
        self,
        options: Options,
        machine: Machine,
        chardevs: dict[str, Chardev],
        objects: dict[str, TlsCredentials],
    ) -> None:
        _prepare_descriptors()
        self._words = options.words
        self._loop = EventLoop()
        policy = PathPolicy(options.allowed_paths)
        self._worker_code = InstalledWorker()
        self._keeper = Keeper(
            self._loop, self._worker_code, machine, chardevs, options.trust_vmm, objects, options.sandbox, policy
        )
        self._monitors: Monitors | None = None
        self._signals = Signals(self._loop, self._renew)
        if options.exit_with_parent:
            parent = os.pidfd_open(os.getppid())
            self._loop.watch(parent, EPOLLIN, lambda _: self._loop.stop())
        self._registration = Registration(self._keeper, options.name or _name_of(machine))

    def start(
        self,
        monitors: Sequence[MonitorOptions],
        passed: Sequence[tuple[str, int]],
        ready_fd: int | None,
        vmm_fd: int | None = None,
    ) -> None:
        """Open everything and say so.

        Args:
            monitors: each on one of the chardevs.
            passed: descriptors that a service manager listens at, with their names; owned from here on.
            ready_fd: is closed when all is open.
            vmm_fd: a connected socket: the VMM of the first controller is there already; owned from here on.

        Raises:
            ConfigError: something cannot be opened; nothing is left behind.
        """
        keeper = self._keeper
        controllers = keeper.machine.controllers
        if vmm_fd is not None:
            controllers[0].socket = ""  # Its VMM is there: no other may come by a path.
        waiting = [controller for controller in controllers if controller.socket]
        activated = systemd.listeners_by_controller(passed, [controller.id for controller in waiting])
        for controller in controllers:
            if controller.id in activated:
                controller.socket = activated[controller.id].path
        keeper.vmms.activated = activated
        try:
            if monitors:
                from virtserial.monitor.server import Monitors

                self._monitors = Monitors(keeper, monitors)
            self._choose_fronts()
            keeper.start()
            if vmm_fd is not None:
                keeper.vmms.adopt(controllers[0].index, vmm_fd)
            self._allow_renewal(0)
            self._registration.begin()
        except BaseException:
            self._close()
            raise
        # Standard output may be somebody's stream.
        is_stream = any(chardev.kind == "stdio" for chardev in keeper.chardevs.values())
        for controller in waiting:
            if is_stream:
                print(qemu_argument(controller), file=sys.stderr)
            else:
                announce(qemu_argument(controller))
        if ready_fd is not None:
            os.close(ready_fd)

    @classmethod
    def take_over(cls, options: Options, handover: Handover) -> Self:
        """Take over what another process has left, in the place of `start`, with its machine.

        Raises:
            ConfigError: it cannot be done; every VMM's connection is closed in order.
        """
        from virtserial.daemon.keeper import succession
        from virtserial.daemon.keeper.document import Document
        from virtserial.daemon.keeper.farewell import close_all

        service = None
        try:
            document = decode(Document, handover.document)
            service = cls(options, *succession.build(document))
            if tuple(options.words) != document.words:
                log.warning("the options have changed: what they say of devices needs a stop and a start")
                service._words = list(document.words)
            succession.take_over(service._keeper, document, handover.take)
            if document.monitors is not None:
                from virtserial.monitor.server import Monitors

                service._monitors = Monitors.take_over(service._keeper, document.monitors, handover.take)
            service._choose_fronts()
            service._allow_renewal(document.renewals)
            service._keeper.workers.start_or_try_again()
            service._registration.begin()
        except Exception as error:
            log.exception("cannot resume from the previous process's state")
            if service is not None:
                service._close()
            raise ConfigError(f"cannot resume from the previous process's state: {error}") from error
        finally:
            close_all(handover.rest())
        log.info("this process takes over from the previous one")
        return service

    def _choose_fronts(self) -> None:
        """Without a monitor nobody can plug a controller in: workers need no other fronts than those of the options."""
        if self._monitors is None:
            self._worker_code.fronts = {controller.vhost_user for controller in self._keeper.machine.controllers}

    def _allow_renewal(self, count: int) -> None:
        from virtserial.daemon.keeper.renewal import Renewal

        keeper = self._keeper
        keeper.renewal = Renewal(
            self._loop, keeper.workers, keeper.vmms.farewell, self._describe, self._signals, count
        )

    def _describe(self, put: Put, renewals: int) -> Document:
        from virtserial.daemon.keeper.succession import describe

        monitors = self._monitors.hand_over(put) if self._monitors is not None else None
        return describe(self._keeper, put, monitors, self._words, renewals)

    def _renew(self) -> bool:
        """SIGUSR2; False: not yet."""
        renewal = self._keeper.renewal
        if renewal is None or renewal.changing or self._keeper.workers.changing:
            return False
        try:
            renewal.begin()
        except ConfigError as error:
            log.error("SIGUSR2: %s", error)
        return True

    def run(self) -> None:
        """Serve until the process is to end, and close everything: but what a restart by systemd leaves."""
        try:
            systemd.notify("READY=1", f"STATUS={self._serving()}")
            self._loop.run()
            has_quit = self._monitors is not None and self._monitors.operations.has_quit
            if not has_quit and systemd.restarts_this_service() and self._leave():
                return
            systemd.notify("STOPPING=1")
            if self._monitors is not None:
                self._monitors.ended_by_signal()
        except BaseException:
            self._close()
            raise
        self._close()

    def _leave(self) -> bool:
        """Leave everything in systemd's store, for the process that it starts next; False: it could not be."""
        renewal = self._keeper.renewal
        assert renewal is not None
        retired: list[bool] = []
        self._keeper.workers.retire(lambda: retired.append(True))
        while not retired:
            self._loop.run_once()
        try:
            packed = renewal.pack()
        except OSError as error:
            log.error("nothing can be left for the next process: %s", error.strerror)
            return False
        stored = systemd.store(STORED, packed)
        os.close(packed)
        if stored:
            self._registration.end()
        return stored

    def _close(self) -> None:
        self._registration.end()
        try:
            if self._monitors is not None:
                self._monitors.close()
        finally:
            self._keeper.close()
            self._loop.close()

    def _serving(self) -> str:
        machine = self._keeper.machine
        return f"Serving {len(machine.controllers)} controllers, {sum(1 for _ in machine.ports())} ports"


def predecessor() -> tuple[Handover | None, list[tuple[str, int]]]:
    """Return what this process is to take over, if there is anything, and what else systemd has passed to it.

    Raises:
        ConfigError: what systemd says of what it has passed makes no sense.
    """
    from virtserial.daemon.keeper.renewal import left_by_predecessor

    passed = systemd.take_descriptors()
    stored = [fd for name, fd in passed if name == STORED]
    others = [(name, fd) for name, fd in passed if name != STORED]
    if stored:
        systemd.forget(STORED)
    if (left := left_by_predecessor()) is not None:
        stored.append(left)
    if not stored:
        return None, others
    from virtserial.daemon.keeper.handover import Handover

    *older, newest = stored
    for fd in older:
        os.close(fd)
    try:
        return Handover.unpack(newest), others
    except StateError as error:
        log.error("%s; this process begins anew", error)
        return None, others


def _prepare_descriptors() -> None:
    """Have standard input, output and error open, and as many more descriptors as may be had."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        # One of the three was closed: no socket may come to stand in its place.
        pass
    os.close(fd)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most > MAX_DESCRIPTORS:
        most = MAX_DESCRIPTORS
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _name_of(machine: Machine) -> str:
    """What a VM is called that got no name: after its first controller."""
    return next((controller.id for controller in machine.controllers if controller.id is not None), "")


def qemu_argument(controller: Controller) -> str:
    """What to put on QEMU's command line, quoted for a shell."""
    if controller.vhost_user:
        return vhost_user_argument(controller.name, controller.socket, controller.max_ports)
    device: dict[str, object] = {"driver": "vfio-user-pci"}
    if controller.id is not None:
        device["id"] = controller.id
    device["socket"] = {"path": os.path.abspath(controller.socket), "type": "unix"}
    text = json.dumps(device, separators=(",", ":"))
    return "-device '" + text.replace("'", "'\\''") + "'"
