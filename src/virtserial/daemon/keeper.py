"""The keeper: opens, binds, listens and accepts; holds a copy of every descriptor that must outlive a crash; starts the
worker, and starts it again.

QEMU aborts its VM when a vfio-user socket closes with unread bytes in it, so the sockets are held here, in a process
that handles no guest's bytes.  When the worker dies, a new one gets the same descriptors and the same state memory.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from typing import TYPE_CHECKING, cast

from virtserial.daemon.announcement import announce
from virtserial.daemon.channel import Channel, Message
from virtserial.daemon.farewell import close_vmm, close_vmms_now
from virtserial.daemon.held import HeldDescriptors
from virtserial.daemon.hotplug import HotPlug
from virtserial.daemon.vmm_listener import VmmListener
from virtserial.errors import ConfigError, StateError
from virtserial.loop import EPOLLIN

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from virtserial.chardev.base import Chardev, Connection, ConnectionSink
    from virtserial.chardev.tls_credentials import TlsCredentials
    from virtserial.loop import EventLoop, Timer
    from virtserial.machine.model import Controller, Machine, Port

log = logging.getLogger("virtserial.keeper")

RESTART_DELAYS = (0.0, 0.05, 0.2, 0.5, 1.0)
"""Seconds before a worker that died young is started again: the n-th time in a row.  QEMU waits 5 s for an answer."""
YOUNG = 2.0
SEND_TIMEOUT = 4
"""Seconds the keeper waits for a worker that does not read its channel; then it counts as hung and is replaced."""


class Keeper:
    """Keeps one machine running.

    Args:
        loop: the keeper's event loop.
        machine: the controllers and ports to begin with.
        chardevs: every back end by id.
        trust_vmm: map guest memory even if its file may shrink.
        objects: what -object has made, by id.
    """

    def __init__(
        self,
        loop: EventLoop,
        machine: Machine,
        chardevs: dict[str, Chardev],
        trust_vmm: bool = False,
        objects: dict[str, TlsCredentials] | None = None,
    ) -> None:
        self.loop = loop
        self.machine = machine
        self.chardevs = chardevs
        self.restarts = 0
        self._trust_vmm = trust_vmm
        self._held = HeldDescriptors()
        self._connections = 0
        self.hotplug = HotPlug(self, self._held, self._send)
        self.guest_open_listener: Callable[[Port], None] | None = None
        """Hears of a port whose `guest_open` has changed."""
        self.objects = objects or {}
        self.sinks: dict[str, ConnectionSink] = {}
        """By id: who else but a port uses a chardev, and takes its connections."""
        self._listeners: list[VmmListener] = []
        self._states: list[int] = []
        self._channel: Channel | None = None
        self._worker = 0
        self._worker_pidfd = -1
        self._worker_started = 0.0
        self._young_deaths = 0
        self._restart_timer: Timer | None = None
        self._hang_timer: Timer | None = None
        self._last_sent = 0.0
        self._closing = False

    # Start and end

    def start(self) -> None:
        """Open everything and start the worker.

        Raises:
            ConfigError: something cannot be opened; `close` removes what was.
        """
        for index, controller in enumerate(self.machine.controllers):
            self.open_controller(index, controller)
        for chardev in self.chardevs.values():
            chardev.report = log.warning
            chardev.open(self.loop, self)
            if chardev.announcement:
                announce(chardev.announcement)
        self._start_worker()
        for chardev in self.chardevs.values():
            if chardev.wait:
                chardev.wait_connected()

    def open_controller(self, index: int, controller: Controller) -> None:
        """Make a controller's state memory and listen for its VMM.

        Raises:
            ConfigError: its socket cannot be had.
        """
        from virtserial.daemon.guest_device import state_size

        size = state_size(controller.max_ports)
        memory = os.memfd_create(f"virtserial {controller.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, size)
        self._states.append(memory)
        if self._default_directory(controller.socket):
            _make_directory(os.path.dirname(controller.socket))

        def accepted(client: socket.socket) -> None:
            fd = client.detach()
            self._hold_and_send(f"vmm/{index}", {"type": "vmm", "controller": index}, [fd])

        self._listeners.append(VmmListener(self.loop, controller.name, controller.socket, accepted))

    @staticmethod
    def _default_directory(path: str) -> bool:
        from virtserial.daemon.run_directory import run_directory

        return os.path.dirname(path) == run_directory()

    def close(self) -> None:
        """End the worker and every connection, and remove what was bound."""
        self._closing = True
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        for listener in self._listeners:
            listener.close()
        if self._worker:
            self._end_worker()
        vmms = [key for key, _, _ in self._held.entries("vmm/")]
        close_vmms_now([fd for key in vmms for fd in self._held.take(key)])
        self._held.drop_all("")
        for chardev in self.chardevs.values():
            chardev.close()
        for memory in self._states:
            os.close(memory)
        self._states.clear()

    # The worker

    def _start_worker(self) -> None:
        ours, theirs = Channel.pair()
        pid = os.fork()
        if pid == 0:
            from virtserial.daemon.worker import run_forked

            run_forked(self, theirs)  # does not return
        theirs.close()
        try:
            self._worker_pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._worker, self._channel = pid, ours
        self._worker_started = time.monotonic()
        ours.set_send_timeout(SEND_TIMEOUT)
        self.loop.watch(ours.fileno(), EPOLLIN, self._worker_spoke)
        self.loop.watch(self._worker_pidfd, EPOLLIN, self._worker_exited)
        self._configure_worker()

    def _configure_worker(self) -> None:
        """Tell a new worker everything; the order is that of building: controllers, ports, maps, connections."""
        for index, controller in enumerate(self.machine.controllers):
            self.send_controller(index, controller)
            for port in controller.ports.values():
                self._send(self.port_message(port))
        for prefix in ("dma/", "irq/", "chardev/", "vmm/"):
            for _, message, fds in self._held.entries(prefix):
                self._send(message, fds)
        self._send({"type": "go"})

    def send_controller(self, index: int, controller: Controller) -> None:
        """Tell the worker of a controller that `open_controller` has opened."""
        message: Message = {
            "type": "controller",
            "controller": index,
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
        self._send(message, [self._states[index]])

    def port_message(self, port: Port) -> Message:
        """What the worker has to know of a port."""
        return {
            "type": "port",
            "controller": self.machine.controllers.index(port.controller),
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
        """Send to the worker.  One that is gone or hung is replaced, and its successor told everything anew."""
        if self._channel is None:
            return
        try:
            self._channel.send(message, fds)
        except BlockingIOError:
            self._kill_hung_worker()
        except OSError:
            pass  # its end is on its way to us
        self._last_sent = self.loop.now()
        if self._hang_timer is None:
            self._hang_timer = self.loop.call_at(self._last_sent + SEND_TIMEOUT, self._look_whether_worker_hangs)

    def _look_whether_worker_hangs(self) -> None:
        self._hang_timer = None
        if self._channel is None or not self._channel.has_unread():
            return
        due = self._last_sent + SEND_TIMEOUT
        if self.loop.now() < due:
            self._hang_timer = self.loop.call_at(due, self._look_whether_worker_hangs)
        else:
            self._kill_hung_worker()

    def _kill_hung_worker(self) -> None:
        log.error("worker %d has not read its channel for %d s: it is replaced", self._worker, SEND_TIMEOUT)
        os.kill(self._worker, signal.SIGKILL)

    def _hold_and_send(self, key: str, message: Message, fds: Sequence[int]) -> None:
        self._held.hold(key, message, fds)
        self._send(message, fds)

    def _worker_exited(self, _: int) -> None:
        channel, self._channel = self._channel, None
        assert channel is not None
        self.loop.unwatch(channel.fileno())
        self.loop.unwatch(self._worker_pidfd)
        os.close(self._worker_pidfd)
        self._drain_channel(channel)
        channel.close()
        _, status = os.waitpid(self._worker, 0)
        pid, self._worker = self._worker, 0
        if self._closing:
            return
        self.restarts += 1
        young = time.monotonic() - self._worker_started < YOUNG
        self._young_deaths = self._young_deaths + 1 if young else 0
        delay = RESTART_DELAYS[min(self._young_deaths, len(RESTART_DELAYS) - 1)]
        code = os.waitstatus_to_exitcode(status)
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        log.error("worker %d %s; a new one takes over", pid, cause)
        self._restart_timer = self.loop.call_later(delay, self._restart_worker)

    def _restart_worker(self) -> None:
        try:
            self._start_worker()
        except OSError as error:
            log.error("no worker can be started: %s", error.strerror)
            self._restart_timer = self.loop.call_later(RESTART_DELAYS[-1], self._restart_worker)

    def _end_worker(self) -> None:
        """End the worker for good: a word first, then by force."""
        channel, self._channel = self._channel, None
        assert channel is not None
        self.loop.unwatch(channel.fileno())
        self.loop.unwatch(self._worker_pidfd)
        channel.close()
        deadline = time.monotonic() + 1.0
        while os.waitpid(self._worker, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self._worker, signal.SIGKILL)
                os.waitpid(self._worker, 0)
                break
            time.sleep(0.002)
        os.close(self._worker_pidfd)
        self._worker = 0

    # What the worker says

    def _worker_spoke(self, _: int) -> None:
        if self._channel is not None and not self._drain_channel(self._channel):
            # End of file without an exit: it has closed its end, so it is useless.
            self.loop.unwatch(self._channel.fileno())
            os.kill(self._worker, signal.SIGKILL)

    def _drain_channel(self, channel: Channel) -> bool:
        """Handle everything that has arrived; False at end of file."""
        while True:
            try:
                received = channel.receive()
            except EOFError:
                return False
            except StateError as error:
                log.error("worker %d: %s", self._worker, error)
                continue
            if received is None:
                return True
            message, fds = received
            try:
                self._handle(message, fds)
            except (KeyError, IndexError, TypeError, ValueError, StateError) as error:
                log.error("worker %d: message %s makes no sense: %r", self._worker, message.get("type"), error)
            finally:
                for fd in fds:
                    os.close(fd)

    def _handle(self, message: Message, fds: list[int]) -> None:
        kind = message["type"]
        if kind == "hold":
            index = int(cast(int, message["controller"]))
            key = f"{message['kind']}/{index}/{message['key']}/"
            if message["kind"] not in ("dma", "irq"):
                raise ValueError(f"kind {message['kind']!r} is not a worker's to hold")
            taken, fds[:] = fds[:], []
            self._held.hold(key, message | {"type": message["kind"]}, taken)
        elif kind == "drop":
            key = f"{message['kind']}/{int(cast(int, message['controller']))}/"
            self._held.drop_all(key if message["key"] is None else f"{key}{message['key']}/")
        elif kind == "vmm gone":
            self._vmm_gone(int(cast(int, message["controller"])))
        elif kind == "connection ended":
            self._connection_ended(str(message["chardev"]), message["serial"])
        elif kind == "guest open":
            self._guest_open_changed(message)
        elif kind == "quit":
            if self.chardevs[str(message["chardev"])].mux_quit:
                self.loop.stop()
        else:
            raise ValueError(f"type {kind!r}")

    def _connection_ended(self, chardev_id: str, serial: object) -> None:
        held = self._held.message(f"chardev/{chardev_id}")
        if held is not None and held["serial"] == serial:  # else another has taken its place
            self._held.drop(f"chardev/{chardev_id}")
            self.chardevs[chardev_id].connection_ended()

    def _guest_open_changed(self, message: Message) -> None:
        controller = self.machine.controllers[int(cast(int, message["controller"]))]
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
        self._held.drop_all(f"dma/{index}/")
        self._held.drop_all(f"irq/{index}/")
        for fd in self._held.take(f"vmm/{index}"):
            close_vmm(self.loop, fd)
        self._listeners[index].client_gone()

    # chardev.base.ConnectionSink

    def connection_opened(self, chardev: Chardev, connection: Connection) -> None:
        """A back end has a connection: hold it, hand it to the worker."""
        if (sink := self.sinks.get(chardev.id)) is not None:
            sink.connection_opened(chardev, connection)
            return
        self._connections += 1
        message: Message = {
            "type": "chardev",
            "chardev": chardev.id,
            "hub": chardev.hub.id if chardev.hub is not None else None,
            "mux": chardev.mux,
            "mux_quit": chardev.mux_quit,
            "serial": self._connections,
            "flavour": connection.flavour,
            "params": connection.params,
        }
        self._hold_and_send(f"chardev/{chardev.id}", message, connection.fds)


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Could not create '{path}': {error.strerror}; say socket=PATH") from error
