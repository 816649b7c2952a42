"""The keeper: opens, binds, listens and accepts; holds a copy of every descriptor that must outlive a crash; starts the
worker, and starts it again.

QEMU aborts its VM when a vfio-user socket closes with unread bytes in it, so the sockets are held here, in a process
that handles no guest's bytes.  When the worker dies, a new one gets the same descriptors and the same state memory.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, cast

from virtserial.channel.codec import encode
from virtserial.daemon.keeper.announcement import announce
from virtserial.daemon.keeper.farewell import Farewell
from virtserial.daemon.keeper.fronts import Fronts
from virtserial.daemon.keeper.heartbeat import Heartbeat
from virtserial.daemon.keeper.held import HeldDescriptors
from virtserial.daemon.keeper.hotplug import HotPlug
from virtserial.daemon.keeper.supervisor import Supervisor
from virtserial.daemon.keeper.vmm_listener import VmmListener
from virtserial.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from virtserial.channel.channel import Message
    from virtserial.channel.connections import Connection, Readable
    from virtserial.chardev.base import Chardev, ConnectionSink
    from virtserial.chardev.preparation import Preparation
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.daemon.keeper.path_policy import PathPolicy
    from virtserial.daemon.keeper.renewal import Renewal
    from virtserial.daemon.keeper.systemd import ActivatedListener
    from virtserial.loop import EventLoop
    from virtserial.machine.model import Controller, Machine, Port

log = logging.getLogger("virtserial.keeper")

STATE_BASE = 256 << 10
STATE_PER_PORT = 4 << 10


def state_room(max_ports: int) -> int:
    """Bytes of state memory for one controller, whole pages: more than it needs (guest_device.state_size).

    To know what exactly would be to import all that a worker is made of before the first socket listens; pages that
    nobody touches take no memory; and a newer worker may need more.
    """
    return STATE_BASE + STATE_PER_PORT * max_ports


class Keeper:
    """Keeps one machine running.

    Args:
        loop: the keeper's event loop.
        machine: the controllers and ports to begin with.
        chardevs: every back end by id.
        trust_vmm: map guest memory even if its file may shrink.
        objects: what -object has made, by id.
        sandbox: confine the worker (daemon/worker/sandbox.py).
        path_policy: what monitors may name; None trusts them.

    Attributes:
        workers: starts, replaces and ends the worker.
        fronts: users of multiplexed chardevs that are no ports.
        held: the descriptors that outlive a worker.
        states: by controller's index, the descriptor of its state memory.
        listeners: by controller's index, where its VMM comes.
        connections: counts those of chardevs, to tell one from the next.
    """

    def __init__(
        self,
        loop: EventLoop,
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
        self.workers = Supervisor(loop, self, self._configure_worker, self._handle)
        self.farewell = Farewell(loop)
        self.heartbeat = Heartbeat(loop, self.workers.ping)
        self.path_policy = path_policy
        self._sandbox = sandbox
        self._preparations: dict[Readable, Preparation] = {}
        self._trust_vmm = trust_vmm
        self.held = HeldDescriptors()
        self.connections = 0
        self.fronts = Fronts(machine, self._hold_and_send)
        self.hotplug = HotPlug(self, self.held, self.workers.send)
        self.guest_open_listener: Callable[[Port], None] | None = None
        """Hears of a port whose `guest_open` has changed."""
        self.quit: Callable[[], None] = loop.stop
        """Does what Ctrl-a x asks for."""
        self.objects = objects or {}
        self.sinks: dict[str, ConnectionSink] = {}
        """By id: who else but a port uses a chardev, and takes its connections."""
        self.program = "virtserial"
        """What Ctrl-a x ends."""
        self.renewal: Renewal | None = None
        """Puts new code in the keeper's own place; None: it lives as long as its VMM, with the code that it has."""
        self.activated: dict[str | None, ActivatedListener] = {}
        """By controller's id: sockets that a service manager listens at, for the controllers to come."""
        self.listeners: dict[int, VmmListener] = {}
        self.states: dict[int, int] = {}
        self._closing = False

    # Start and end

    def start(self) -> None:
        """Open everything and start the worker.

        Raises:
            ConfigError: something cannot be opened; `close` removes what was.
        """
        for controller in self.machine.controllers:
            self.open_controller(controller)
        for chardev in self.chardevs.values():
            chardev.report = log.warning
            chardev.open(self.loop, self)
            self.prepare_for(chardev)
            if self.path_policy is not None:
                self.path_policy.allow(chardev.paths())
            if chardev.announcement:
                announce(chardev.announcement)
        self.workers.start()
        for chardev in self.chardevs.values():
            if chardev.wait:
                chardev.wait_connected()

    def open_controller(self, controller: Controller) -> None:
        """Make a controller's state memory and listen for its VMM.

        Raises:
            ConfigError: its socket cannot be had.
        """
        index, size = controller.index, state_room(controller.max_ports)
        memory = os.memfd_create(f"virtserial {controller.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, size)
        self.states[index] = memory
        if self._default_directory(controller.socket):
            _make_directory(os.path.dirname(controller.socket))

        activated = self.activated.pop(controller.id, None)
        try:
            self.listeners[index] = VmmListener(
                self.loop,
                controller.name,
                controller.socket,
                lambda client: self.vmm_came(index, client),
                self.farewell,
                activated,
            )
        except ConfigError:
            os.close(self.states.pop(index))
            raise

    def vmm_came(self, index: int, client: socket.socket) -> None:
        """A controller's VMM has connected."""
        fd = client.detach()
        self._hold_and_send(f"vmm/{index}", {"type": "vmm", "controller": index}, [fd])
        self.heartbeat.watch(fd)

    def close_controller(self, controller: Controller) -> None:
        """Let go of all that was held for a controller; the worker has been told."""
        index = controller.index
        self.listeners.pop(index).close()
        self._free_vmm(index)
        os.close(self.states.pop(index))

    @staticmethod
    def _default_directory(path: str) -> bool:
        from virtserial.daemon.keeper.run_directory import run_directory

        return os.path.dirname(path) == run_directory()

    def close(self) -> None:
        """End the worker and every connection, and remove what was bound."""
        self._closing = True
        if self.renewal is not None:
            self.renewal.close()
        for listener in self.listeners.values():
            listener.close()
        self.workers.close()
        self.heartbeat.close()
        vmms = [key for key, _, _ in self.held.entries("vmm/")]
        sockets = [fd for key in vmms for fd in self.held.take(key)]
        for fd in sockets:
            self.heartbeat.unwatch(fd)
        self.farewell.finish(sockets)
        self.held.drop_all("")
        for chardev in self.chardevs.values():
            chardev.close()
        for memory in self.states.values():
            os.close(memory)
        self.states.clear()

    # The worker

    def _configure_worker(self) -> None:
        """Tell a new worker everything; the order is that of building: controllers, ports, maps, connections."""
        worker = self.workers.worker
        assert worker is not None
        for preparation in self._preparations.values():
            files = preparation.open_files()
            try:
                self._send({"type": "prepare", "name": preparation.name, "what": encode(preparation.what)}, files)
            finally:
                for fd in files:
                    os.close(fd)
        self._send({"type": "begin", "sandbox": self._sandbox}, [worker.ledger_fd])
        for controller in self.machine.controllers:
            self.send_controller(controller)
            for port in controller.ports.values():
                self._send(self.port_message(port))
        for message in self.workers.inheritance:
            if message["controller"] in self.states:
                self._send(message)
        for prefix in ("dma/", "irq/", "front/", "chardev/", "vmm/"):
            for _, message, fds in self.held.entries(prefix):
                self._send(message, fds)
        self._send({"type": "go"})

    def send_controller(self, controller: Controller) -> None:
        """Tell the worker of a controller that `open_controller` has opened."""
        message: Message = {
            "type": "controller",
            "controller": controller.index,
            "name": controller.name,
            "max_ports": controller.max_ports,
            "vectors": controller.vectors,
            "iommu_platform": controller.iommu_platform,
            "event_idx": controller.event_idx,
            "indirect_desc": controller.indirect_desc,
            "queue_reset": controller.queue_reset,
            "emergency_write": controller.emergency_write,
            "resize_rows_first": controller.resize_rows_first,
            "trust_vmm": self._trust_vmm,
        }
        self._send(message, [self.states[controller.index]])

    def port_message(self, port: Port) -> Message:
        """What the worker has to know of a port."""
        return {
            "type": "port",
            "controller": port.controller.index,
            "number": port.number,
            "serial": port.serial,
            "guest_open": port.guest_open,
            "name": port.name,
            "is_console": port.is_console,
            "chardev": port.chardev,
            "cols": port.cols,
            "rows": port.rows,
        }

    def _send(self, message: Message, fds: Sequence[int] = ()) -> None:
        self.workers.send(message, fds)

    def ask_worker(self, message: Message, fds: Sequence[int] = ()) -> Message:
        """Send a request and wait for its answer; what else the worker says meanwhile is handled.

        Raises:
            ConfigError: it has ended, or does not answer.
        """
        return self.workers.ask(message, fds)

    def _hold_and_send(self, key: str, message: Message, fds: Sequence[int]) -> None:
        self.held.hold(key, message, fds)
        self._send(message, fds)

    def prepare_for(self, chardev: Chardev) -> bool:
        """Have the worker read what it needs for a chardev before it is confined; whether it has to be replaced."""
        if not self._sandbox:
            return False
        new = [wanted for wanted in chardev.preparations() if wanted.what not in self._preparations]
        self._preparations.update((wanted.what, wanted) for wanted in new)
        return bool(new) and self.workers.worker is not None

    # What the worker says

    def _handle(self, message: Message, fds: list[int]) -> None:
        kind = message["type"]
        if "controller" in message and message["controller"] not in self.states:
            return  # It has been unplugged meanwhile.
        if kind == "hold":
            index = int(cast(int, message["controller"]))
            key = f"{message['kind']}/{index}/{message['key']}/"
            if message["kind"] not in ("dma", "irq"):
                raise ValueError(f"kind {message['kind']!r} is not a worker's to hold")
            taken, fds[:] = fds[:], []
            self.held.hold(key, message | {"type": message["kind"]}, taken)
        elif kind == "drop":
            key = f"{message['kind']}/{int(cast(int, message['controller']))}/"
            if message["kind"] == "dma" and message["key"] is not None:
                # One of perhaps 65,535: not by looking at all of them.
                self.held.drop(f"{key}{message['key']}/")
            else:
                self.held.drop_all(key if message["key"] is None else f"{key}{message['key']}/")
        elif kind == "vmm gone":
            self._vmm_gone(int(cast(int, message["controller"])))
        elif kind == "connection ended":
            self._connection_ended(str(message["chardev"]), message["serial"])
        elif kind == "guest open":
            self._guest_open_changed(message)
        elif kind == "front":
            self.fronts.changed(message)
        elif kind == "quit":
            if self.chardevs[str(message["chardev"])].mux_quit:
                self.quit()
        else:
            raise ValueError(f"type {kind!r}")

    def _connection_ended(self, chardev_id: str, serial: object) -> None:
        held = self.held.message(f"chardev/{chardev_id}")
        if held is not None and held["serial"] == serial:  # else another has taken its place
            self.held.drop(f"chardev/{chardev_id}")
            self.chardevs[chardev_id].connection_ended()

    def _guest_open_changed(self, message: Message) -> None:
        index = message["controller"]
        controller = next(controller for controller in self.machine.controllers if controller.index == index)
        port = controller.ports.get(int(cast(int, message["number"])))
        if port is None or port.serial != message["serial"] or port.guest_open == message["open"]:
            return
        port.guest_open = bool(message["open"])
        if port.guest_open and port.chardev is not None:
            self.chardevs[port.chardev].guest_opened()
        if self.guest_open_listener is not None:
            self.guest_open_listener(port)

    def _vmm_gone(self, index: int) -> None:
        """The worker has let go of a VMM: free what was its, and close its socket without leaving bytes in it."""
        self._free_vmm(index)
        self.listeners[index].client_gone()

    def _free_vmm(self, index: int) -> None:
        self.held.drop_all(f"dma/{index}/")
        self.held.drop_all(f"irq/{index}/")
        for fd in self.held.take(f"vmm/{index}"):
            self.heartbeat.unwatch(fd)
            self.farewell.close(fd)

    def hear_worker(self) -> None:
        """Handle what the worker has said by now: it tells of a change before what follows from it."""
        self.workers.hear()

    # chardev.base.ConnectionSink

    def connection_opened(self, chardev: Chardev, connection: Connection, fds: tuple[int, ...]) -> None:
        """A back end has a connection: hold it, hand it to the worker."""
        if (sink := self.sinks.get(chardev.id)) is not None:
            sink.connection_opened(chardev, connection, fds)
            return
        self.connections += 1
        message: Message = {
            "type": "chardev",
            "chardev": chardev.id,
            "hub": chardev.hub.id if chardev.hub is not None else None,
            "mux": chardev.mux,
            "mux_quit": chardev.mux_quit,
            "program": self.program,
            "serial": self.connections,
            "connection": encode(connection),
        }
        if self.prepare_for(chardev):
            # The next worker has read what this connection needs, and gets it with all others.
            self.held.hold(f"chardev/{chardev.id}", message, fds)
            self.loop.add_turn(self.workers.replace)
        else:
            self._hold_and_send(f"chardev/{chardev.id}", message, fds)


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Could not create '{path}': {error.strerror}; say socket=PATH") from error
